"""A keypair: who a client is, and how much it may ask for."""

from __future__ import annotations

import base64
import secrets

from attrs import field, frozen

from sorna.model.policy import ResourcePolicy, Slots

EXAMPLE_ACCESS_KEY = "AKIAIOSFODNN7EXAMPLE"
# The published example of the interface's own documentation; it is accepted on loopback only.
EXAMPLE_SECRET_KEY = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"  # noqa: S105

# Owner of keypairs that nobody named an owner for; the historic number of the first real user.
DEFAULT_USER = "2"


@frozen
class Keypair:
    """An access key with its secret and its limits.

    :ivar user_id: whose it is, in the operator's words: a number or a name.
    :ivar concurrency_limit: live kernels at once.
    :ivar rate_limit: requests per window of 900 seconds.
    :ivar taken: what its live kernels take; the store alone changes it.
    :ivar resource_policy: name of its policy, and ``policy`` what that says now; None without one.
    :ivar created_at: seconds since the epoch, like ``last_used``.
    """

    access_key: str
    secret_key: str = field(repr=False)
    user_id: str = DEFAULT_USER
    is_active: bool = True
    is_admin: bool = False
    concurrency_limit: int = 30
    rate_limit: int = 1000
    num_queries: int = 0
    resource_policy: str | None = None
    policy: ResourcePolicy | None = None
    taken: Slots = field(factory=Slots)
    created_at: float = 0.0
    last_used: float | None = None

    @property
    def concurrency_used(self) -> int:
        """Live kernels now."""
        return self.taken.kernels


@frozen
class KeypairChanges:
    """What is to change of a keypair; None leaves a value as it is.

    :ivar resource_policy: the name of a policy; empty for none.
    """

    is_active: bool | None = None
    is_admin: bool | None = None
    concurrency_limit: int | None = None
    rate_limit: int | None = None
    resource_policy: str | None = None


def generate_keypair(
    *,
    created_at: float = 0.0,
    user_id: str = DEFAULT_USER,
    is_active: bool = True,
    is_admin: bool = False,
    rate_limit: int = 1000,
    concurrency_limit: int = 30,
    resource_policy: str | None = None,
) -> Keypair:
    """Draw a keypair: ``AKIA`` and 16 base32 characters, and a secret of 40 URL-safe base64 characters."""
    return Keypair(
        access_key="AKIA" + base64.b32encode(secrets.token_bytes(10)).decode("ascii"),
        secret_key=base64.urlsafe_b64encode(secrets.token_bytes(30)).decode("ascii"),
        user_id=user_id,
        is_active=is_active,
        is_admin=is_admin,
        rate_limit=rate_limit,
        concurrency_limit=concurrency_limit,
        resource_policy=resource_policy,
        created_at=created_at,
    )
