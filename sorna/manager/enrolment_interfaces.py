"""What the manager needs for the enrolment of agents: keys and tickets in PostgreSQL; Protocols only."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping
from typing import Protocol

from attrs import field, frozen

from sorna.model.agent import Drain


@frozen
class StoredTicket:
    """A ticket as it is kept.

    :ivar secret_hash: SHA-256 of its secret, 64 hexadecimal digits.
    :ivar agent_id: the only agent that may use it; None for any that is new.
    :ivar made_by: access key of the administrator who made it.
    :ivar expires_at: seconds since the epoch.
    :ivar used_by: the agent that was enrolled by it, and ``used_key`` the public key it had; None while it is not used.
    """

    id: uuid.UUID
    secret_hash: str = field(repr=False)
    agent_id: str | None
    made_by: str
    made_at: float
    expires_at: float
    used_by: str | None = None
    used_key: str | None = None


class AgentStore(Protocol):
    """The agents that were enrolled, in PostgreSQL: an agent that merely claims a name in Redis is not trusted."""

    async def enrol(self, agent_id: str, public_key: str, now: float, *, again: bool = True) -> bool:
        """Trust this public key for this agent from now on (replaces an older key).

        :param again: whether that also holds for just the key that was revoked.
        :returns: whether it is trusted now.
        """
        ...

    async def public_keys(self) -> Mapping[str, str]:
        """Give agent id -> public key of every agent that is enrolled and not revoked."""
        ...

    async def enrolled(self) -> Mapping[str, float]:
        """Give agent id -> when it was first enrolled, in seconds since the epoch, of every agent, revoked ones too."""
        ...

    async def note_alive(self, agent_ids: Collection[str], now: float) -> None:
        """Note that these agents live and no others; one that was not lost until now is lost since ``now``."""
        ...

    async def lost(self) -> Mapping[str, float]:
        """Give agent id -> since when it is lost, in seconds since the epoch, of those that are."""
        ...

    async def drain(self, agent_id: str, drain: Drain | None) -> bool:
        """Write down that an agent is drained, or with None that it is not any more; False when there is no such agent.

        One that is drained already keeps its ``since`` and gets the new deadline.
        """
        ...

    async def drains(self) -> Mapping[str, Drain]:
        """Give agent id -> its drain, of every agent that is drained."""
        ...

    async def revoke(self, agent_id: str, now: float) -> bool:
        """Trust this agent no longer; give False when it is not enrolled."""
        ...


class TicketStore(Protocol):
    """Tickets in PostgreSQL."""

    async def add(self, ticket: StoredTicket, most: int) -> bool:
        """Keep a ticket, and forget those that have expired; give False where as many as ``most`` are open already."""
        ...

    async def find(self, ticket_id: uuid.UUID) -> StoredTicket | None:
        """Give a ticket, used or not, or None."""
        ...

    async def use(self, ticket: StoredTicket, agent_id: str, public_key: str, endpoint: str, now: float) -> bool:
        """Enrol an agent and mark the ticket as used, both or neither, whoever else tries at the same time.

        :returns: False, changing nothing, when the ticket is used or has expired, or when an agent of this name has another
            key, is not revoked, and the ticket is not for it by name.
        """
        ...


class ClusterKeyStore(Protocol):
    """The CURVE key that all managers of an installation share, in PostgreSQL."""

    async def manager_key(self, public: str, secret: str, now: float) -> tuple[str, str]:
        """Give the public and the secret key, and keep the ones that are proposed where there are none yet."""
        ...
