"""What an audit of the promises needs besides what managers need, as Protocols; everything only reads.

Each has one real and one in-memory implementation, held to the same suite in ``tests/contract``. Every method raises
:class:`sorna.errors.Unavailable` when what it stands on does not answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from attrs import frozen

from sorna.model.policy import Slots


@frozen
class QuotaDrift:
    """A keypair whose counters are not what its kernels take.

    :ivar counted: what its row says. :ivar held: what its live kernels took, from their rows.
    """

    access_key: str
    counted: Slots
    held: Slots


class QuotaAudit(Protocol):
    """The counters of PostgreSQL."""

    async def drifted(self) -> Sequence[QuotaDrift]:
        """List the keypairs whose counters are wrong, at one moment, in order of access key."""
        ...


class LiveAudit(Protocol):
    """Everything that Redis holds about kernels, as it is there."""

    async def kernels(self) -> Mapping[str, Mapping[str, str]]:
        """Give every hash of db 1: its key (a short id) and its fields. What changes meanwhile may be in it or not."""
        ...

    async def sessions(self) -> Mapping[str, str]:
        """Give every session id of db 3: its key (``ACCESS_KEY:TOKEN``) and the short id it names. As above."""
        ...
