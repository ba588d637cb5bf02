"""Enrolled agents, their tickets and the managers' key in PostgreSQL.

Implements the stores of :mod:`sorna.manager.enrolment_interfaces`.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping

from sorna.errors import InvalidRequest
from sorna.manager.enrolment_interfaces import StoredTicket
from sorna.model.agent import Drain
from sorna.store import rows
from sorna.store.pool import Pool

_ENROL = """
INSERT INTO agents (agent_id, public_key, enrolled_at) VALUES (%s, %s, to_timestamp(%s))
ON CONFLICT (agent_id) DO UPDATE SET public_key = excluded.public_key, revoked_at = NULL
 WHERE %s OR agents.revoked_at IS NULL OR agents.public_key <> excluded.public_key
RETURNING agent_id
"""
_PUBLIC_KEYS = "SELECT agent_id, public_key FROM agents WHERE revoked_at IS NULL"
_DRAIN = """
UPDATE agents SET drained_since = coalesce(drained_since, to_timestamp(%s)), drain_deadline = to_timestamp(%s)
 WHERE agent_id = %s RETURNING agent_id
"""
_UNDRAIN = "UPDATE agents SET drained_since = NULL, drain_deadline = NULL WHERE agent_id = %s RETURNING agent_id"
_DRAINS = """
SELECT agent_id, extract(epoch FROM drained_since)::float8, extract(epoch FROM drain_deadline)::float8
  FROM agents WHERE drained_since IS NOT NULL
"""
_ENROLLED = "SELECT agent_id, extract(epoch FROM enrolled_at)::float8 FROM agents"
# Only what is otherwise than it was is written.
_NOTE_ALIVE = """
UPDATE agents SET lost_at = CASE WHEN lost_at IS NULL THEN to_timestamp(%(now)s) END
 WHERE (agent_id = ANY(%(alive)s)) = (lost_at IS NOT NULL)
"""
_LOST = "SELECT agent_id, extract(epoch FROM lost_at)::float8 FROM agents WHERE lost_at IS NOT NULL"
_REVOKE = (
    "UPDATE agents SET revoked_at = to_timestamp(%s) WHERE agent_id = %s AND revoked_at IS NULL RETURNING agent_id"
)

# One statement: the count is of before, so that two at once may exceed it by as many, which is not what it is for.
_ADD_TICKET = """
WITH forgotten AS (DELETE FROM agent_tickets WHERE expires_at <= to_timestamp(%(now)s)),
     open AS (SELECT count(*) AS tickets FROM agent_tickets WHERE expires_at > to_timestamp(%(now)s) AND used_at IS NULL)
INSERT INTO agent_tickets (id, secret_hash, agent_id, made_by, made_at, expires_at)
SELECT %(id)s, %(secret_hash)s, %(agent_id)s, %(made_by)s, to_timestamp(%(now)s), to_timestamp(%(expires_at)s)
  FROM open WHERE open.tickets < %(most)s
RETURNING id
"""
_FIND_TICKET = """
SELECT secret_hash, agent_id, made_by, extract(epoch FROM made_at)::float8, extract(epoch FROM expires_at)::float8,
       used_by, used_key
  FROM agent_tickets WHERE id = %s
"""
# The agent's row first: whether it may be replaced decides whether the ticket is used. Two that try at once wait for each
# other at the ticket's row, and the second finds it used.
_USE_TICKET = """
WITH ticket AS (
    SELECT id, agent_id FROM agent_tickets
     WHERE id = %(id)s AND secret_hash = %(secret_hash)s AND used_at IS NULL AND expires_at > to_timestamp(%(now)s)
       AND (agent_id IS NULL OR agent_id = %(agent_id)s)
       FOR UPDATE
), enrolled AS (
    INSERT INTO agents (agent_id, public_key, enrolled_at, endpoint)
    SELECT %(agent_id)s, %(public_key)s, to_timestamp(%(now)s), %(endpoint)s FROM ticket
    ON CONFLICT (agent_id) DO UPDATE
       SET public_key = excluded.public_key, endpoint = excluded.endpoint, revoked_at = NULL
     WHERE agents.revoked_at IS NOT NULL OR agents.public_key = excluded.public_key
        OR (SELECT agent_id FROM ticket) IS NOT NULL
    RETURNING agent_id
)
UPDATE agent_tickets
   SET used_at = to_timestamp(%(now)s), used_by = %(agent_id)s, used_key = %(public_key)s
 WHERE id = (SELECT id FROM ticket) AND EXISTS (SELECT FROM enrolled)
RETURNING id
"""
_PROPOSE_KEY = """
INSERT INTO cluster_keys (name, public_key, secret_key, made_at) VALUES ('manager', %s, %s, to_timestamp(%s))
ON CONFLICT (name) DO NOTHING
"""
_MANAGER_KEY = "SELECT public_key, secret_key FROM cluster_keys WHERE name = 'manager'"


def require_agent(agent_id: str, public_key: str) -> None:
    """Refuse what is no agent.

    :raises InvalidRequest: the id is empty, or the key is not 40 characters.
    """
    rows.require_storable((agent_id, public_key))
    if not agent_id or len(public_key) != 40:
        raise InvalidRequest("an agent has an id and a public key of 40 characters")


class PostgresAgents:
    """Every agent that is or was trusted."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def enrol(self, agent_id: str, public_key: str, now: float, *, again: bool = True) -> bool:
        """Trust this public key for this agent from now on (replaces an older key)."""
        require_agent(agent_id, public_key)
        return bool(await self._pool.query(_ENROL, (agent_id, public_key, now, again)))

    async def public_keys(self) -> Mapping[str, str]:
        """Give agent id -> public key of every agent that is enrolled and not revoked."""
        return dict(await self._pool.query(_PUBLIC_KEYS))

    async def drain(self, agent_id: str, drain: Drain | None) -> bool:
        """Write down that an agent is drained, or not any more; False when there is no such agent."""
        if not rows.storable(agent_id):
            return False
        if drain is None:
            return bool(await self._pool.query(_UNDRAIN, (agent_id,)))
        return bool(await self._pool.query(_DRAIN, (drain.since, drain.deadline, agent_id)))

    async def drains(self) -> Mapping[str, Drain]:
        """Give agent id -> its drain, of every agent that is drained."""
        return {str(row[0]): Drain(*row[1:]) for row in await self._pool.query(_DRAINS)}

    async def enrolled(self) -> Mapping[str, float]:
        """Give agent id -> when it was first enrolled."""
        return dict(await self._pool.query(_ENROLLED))

    async def revoke(self, agent_id: str, now: float) -> bool:
        """Trust this agent no longer; give False when it is not enrolled."""
        rows.require_storable((agent_id,))
        return bool(await self._pool.query(_REVOKE, (now, agent_id)))

    async def note_alive(self, agent_ids: Collection[str], now: float) -> None:
        """Note that these agents live and no others."""
        alive = [agent_id for agent_id in agent_ids if rows.storable(agent_id)]
        await self._pool.query(_NOTE_ALIVE, {"alive": alive, "now": rows.to_microseconds(now)})

    async def lost(self) -> Mapping[str, float]:
        """Give agent id -> since when it is lost, of those that are."""
        return dict(await self._pool.query(_LOST))


class PostgresTickets:
    """Tickets of agents that are to be enrolled."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def add(self, ticket: StoredTicket, most: int) -> bool:
        """Keep a ticket, and forget those that have expired; give False where as many as ``most`` are open already."""
        rows.require_storable((ticket.agent_id, ticket.made_by))
        parameters = {
            "id": str(ticket.id),
            "secret_hash": ticket.secret_hash,
            "agent_id": ticket.agent_id,
            "made_by": ticket.made_by,
            "now": ticket.made_at,
            "expires_at": ticket.expires_at,
            "most": most,
        }
        return bool(await self._pool.query(_ADD_TICKET, parameters))

    async def find(self, ticket_id: uuid.UUID) -> StoredTicket | None:
        """Give a ticket, used or not, or None."""
        found = await self._pool.query(_FIND_TICKET, (str(ticket_id),))
        return StoredTicket(ticket_id, *found[0]) if found else None

    async def use(self, ticket: StoredTicket, agent_id: str, public_key: str, endpoint: str, now: float) -> bool:
        """Enrol an agent and mark the ticket as used, both or neither."""
        require_agent(agent_id, public_key)
        rows.require_storable((endpoint,))
        parameters = {
            "id": str(ticket.id),
            "secret_hash": ticket.secret_hash,
            "agent_id": agent_id,
            "public_key": public_key,
            "endpoint": endpoint,
            "now": now,
        }
        return bool(await self._pool.query(_USE_TICKET, parameters))


class PostgresClusterKeys:
    """The key that all managers share."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def manager_key(self, public: str, secret: str, now: float) -> tuple[str, str]:
        """Give the public and the secret key, and keep the ones that are proposed where there are none yet."""
        await self._pool.query(_PROPOSE_KEY, (public, secret, now))
        ((kept_public, kept_secret),) = await self._pool.query(_MANAGER_KEY)
        return kept_public, kept_secret
