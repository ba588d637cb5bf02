"""A keypair: who a client is, and how much it may ask for."""

from __future__ import annotations

import base64
import secrets

from attrs import field, frozen

EXAMPLE_ACCESS_KEY = "AKIAIOSFODNN7EXAMPLE"
# The published example of the interface's own documentation; it is accepted on loopback only.
EXAMPLE_SECRET_KEY = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"  # noqa: S105


@frozen
class Keypair:
    """An access key with its secret and its limits.

    :ivar concurrency_limit: live kernels at once.
    :ivar rate_limit: requests per window of 900 seconds.
    """

    access_key: str
    secret_key: str = field(repr=False)
    user_id: int = 2
    is_active: bool = True
    is_admin: bool = False
    concurrency_limit: int = 30
    concurrency_used: int = 0
    rate_limit: int = 1000
    num_queries: int = 0


def generate_keypair(
    *, user_id: int = 2, is_admin: bool = False, rate_limit: int = 1000, concurrency_limit: int = 30
) -> Keypair:
    """Draw a keypair: ``AKIA`` and 16 base32 characters, and a secret of 40 URL-safe base64 characters."""
    return Keypair(
        access_key="AKIA" + base64.b32encode(secrets.token_bytes(10)).decode("ascii"),
        secret_key=base64.urlsafe_b64encode(secrets.token_bytes(30)).decode("ascii"),
        user_id=user_id,
        is_admin=is_admin,
        rate_limit=rate_limit,
        concurrency_limit=concurrency_limit,
    )
