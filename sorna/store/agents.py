"""Enrolled agents in PostgreSQL; implements :class:`sorna.manager.interfaces.AgentStore`."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sorna.errors import InvalidRequest
from sorna.model.agent import Drain
from sorna.store import rows
from sorna.store.pool import Pool

_ENROL = """
INSERT INTO agents (agent_id, public_key, enrolled_at) VALUES (%s, %s, to_timestamp(%s))
ON CONFLICT (agent_id) DO UPDATE SET public_key = excluded.public_key
"""
_PUBLIC_KEYS = "SELECT agent_id, public_key FROM agents"
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


def require_agent(agent_id: str, public_key: str) -> None:
    """Refuse what is no agent.

    :raises InvalidRequest: the id is empty, or the key is not 40 characters.
    """
    rows.require_storable((agent_id, public_key))
    if not agent_id or len(public_key) != 40:
        raise InvalidRequest("an agent has an id and a public key of 40 characters")


class PostgresAgents:
    """Every agent that is trusted."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def enrol(self, agent_id: str, public_key: str, now: float) -> None:
        """Trust this public key for this agent from now on (replaces an older key)."""
        require_agent(agent_id, public_key)
        await self._pool.query(_ENROL, (agent_id, public_key, now))

    async def public_keys(self) -> Mapping[str, str]:
        """Give agent id -> public key of every enrolled agent."""
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

    async def note_alive(self, agent_ids: Collection[str], now: float) -> None:
        """Note that these agents live and no others."""
        alive = [agent_id for agent_id in agent_ids if rows.storable(agent_id)]
        await self._pool.query(_NOTE_ALIVE, {"alive": alive, "now": rows.to_microseconds(now)})

    async def lost(self) -> Mapping[str, float]:
        """Give agent id -> since when it is lost, of those that are."""
        return dict(await self._pool.query(_LOST))
