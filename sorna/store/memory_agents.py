"""Enrolled agents, their tickets and the managers' key in dicts; held to the same contract as PostgreSQL's."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping

from attrs import evolve

from sorna.manager.enrolment_interfaces import StoredTicket
from sorna.model.agent import Drain
from sorna.store import rows
from sorna.store.agents import require_agent


class MemoryAgents:
    """Enrolled agents."""

    def __init__(self) -> None:
        self._keys: dict[str, str] = {}
        self._enrolled: dict[str, float] = {}
        self._revoked: set[str] = set()
        self._drains: dict[str, Drain] = {}
        self._lost: dict[str, float] = {}

    async def enrol(self, agent_id: str, public_key: str, now: float, *, again: bool = True) -> bool:
        """Trust this public key for this agent from now on."""
        require_agent(agent_id, public_key)
        if not again and agent_id in self._revoked and self._keys[agent_id] == public_key:
            return False
        self._keys[agent_id] = public_key
        self._enrolled.setdefault(agent_id, rows.to_microseconds(now))
        self._revoked.discard(agent_id)
        return True

    async def public_keys(self) -> Mapping[str, str]:
        """Give agent id -> public key of every agent that is enrolled and not revoked."""
        return {agent_id: key for agent_id, key in self._keys.items() if agent_id not in self._revoked}

    async def enrolled(self) -> Mapping[str, float]:
        """Give agent id -> when it was first enrolled."""
        return dict(self._enrolled)

    async def drain(self, agent_id: str, drain: Drain | None) -> bool:
        """Note that an agent is drained, or not any more; False when there is no such agent."""
        if agent_id not in self._enrolled:
            return False
        known = self._drains.pop(agent_id, drain)
        if drain is not None and known is not None:
            deadline = None if drain.deadline is None else rows.to_microseconds(drain.deadline)
            self._drains[agent_id] = Drain(rows.to_microseconds(known.since), deadline)
        return True

    async def drains(self) -> Mapping[str, Drain]:
        """Give agent id -> its drain."""
        return dict(self._drains)

    async def note_alive(self, agent_ids: Collection[str], now: float) -> None:
        """Note that these agents live and no others."""
        at = rows.to_microseconds(now)
        self._lost = {one: self._lost.get(one, at) for one in self._enrolled if one not in agent_ids}

    async def lost(self) -> Mapping[str, float]:
        """Give agent id -> since when it is lost, of those that are."""
        return dict(self._lost)

    async def revoke(self, agent_id: str, now: float) -> bool:  # noqa: ARG002 - the time is not asked for
        """Trust this agent no longer."""
        rows.require_storable((agent_id,))
        known = agent_id in self._keys and agent_id not in self._revoked
        if known:
            self._revoked.add(agent_id)
        return known


class MemoryTickets:
    """Tickets.

    :param agents: where agents are enrolled.
    """

    def __init__(self, agents: MemoryAgents) -> None:
        self._agents = agents
        self._tickets: dict[uuid.UUID, StoredTicket] = {}

    async def add(self, ticket: StoredTicket, most: int) -> bool:
        """Keep a ticket, and forget those that have expired."""
        rows.require_storable((ticket.agent_id, ticket.made_by))
        self._tickets = {name: one for name, one in self._tickets.items() if one.expires_at > ticket.made_at}
        if sum(one.used_by is None for one in self._tickets.values()) >= most:
            return False
        made_at, expires_at = rows.to_microseconds(ticket.made_at), rows.to_microseconds(ticket.expires_at)
        self._tickets[ticket.id] = evolve(ticket, made_at=made_at, expires_at=expires_at)
        return True

    async def find(self, ticket_id: uuid.UUID) -> StoredTicket | None:
        """Give a ticket, used or not, or None."""
        return self._tickets.get(ticket_id)

    async def use(self, ticket: StoredTicket, agent_id: str, public_key: str, endpoint: str, now: float) -> bool:
        """Enrol an agent and mark the ticket as used, both or neither."""
        require_agent(agent_id, public_key)
        rows.require_storable((endpoint,))
        kept = self._tickets.get(ticket.id)
        if kept is None or kept.used_by is not None or kept.expires_at <= now or kept.agent_id not in {None, agent_id}:
            return False
        trusted = (await self._agents.public_keys()).get(agent_id, public_key)
        if (trusted != public_key and kept.agent_id is None) or kept.secret_hash != ticket.secret_hash:
            return False
        await self._agents.enrol(agent_id, public_key, now)
        self._tickets[ticket.id] = evolve(kept, used_by=agent_id, used_key=public_key)
        return True


class MemoryClusterKeys:
    """The key that all managers share."""

    def __init__(self) -> None:
        self._key: tuple[str, str] | None = None

    async def manager_key(self, public: str, secret: str, now: float) -> tuple[str, str]:  # noqa: ARG002 - see above
        """Give the public and the secret key, and keep the ones that are proposed where there are none yet."""
        if self._key is None:
            self._key = public, secret
        return self._key
