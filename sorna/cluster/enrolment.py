"""Which agents a manager trusts: those whose advertised public key is the enrolled one; and which it drains.

Anybody who can write to Redis can claim to be an agent. What the operator enrolled is in PostgreSQL, so a claim counts only
when its key is the one found there; CURVE then sees to it that whoever answers holds the secret half. It knows the two
stores as Protocols, and no socket.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import evolve
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from sorna.curve_keys import valid_public_key
from sorna.errors import InvalidRequest
from sorna.manager.interfaces import AgentDirectory, AgentStore
from sorna.model.agent import Agent, Drain

KEYS_ARE_FRESH = 1.0
MAX_WARNINGS = 1000


async def enrol(store: AgentStore, agent_id: str, public_key: str, now: float) -> None:
    """Trust this key for this agent from now on.

    :raises InvalidRequest: the id or the key is malformed.
    """
    if not agent_id or len(agent_id) > 64 or not agent_id.isprintable():
        raise InvalidRequest("an agent id is 1 to 64 printable characters")
    if not valid_public_key(public_key):
        raise InvalidRequest("a CURVE public key is 40 characters of Z85")
    await store.enrol(agent_id, public_key, now)


def trusted(agent: Agent, public_keys: Mapping[str, str]) -> bool:
    """Tell whether an agent advertises the key that it was enrolled with."""
    key = agent.address.public_key
    return valid_public_key(key) and public_keys.get(agent.id) == key


class TrustedDirectory:
    """A directory without the agents that are not to be trusted; warns once of each such claim.

    The enrolled keys are read again when they are older than :data:`KEYS_ARE_FRESH` seconds, and at once when an agent is
    not trusted by what was read before, so that a new agent is not kept waiting.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, directory: AgentDirectory, store: AgentStore) -> None:
        self._clock = clock
        self._directory = directory
        self._store = store
        self._keys: Mapping[str, str] = {}
        self._drains: Mapping[str, Drain] = {}
        self._read_at: float | None = None
        self._warned: set[tuple[str, str]] = set()

    async def alive(self) -> Sequence[Agent]:
        """List the live agents that are trusted."""
        return await self._only_trusted(await self._directory.alive())

    async def find(self, agent_id: str) -> Agent | None:
        """Give one live agent that is trusted, or None."""
        agent = await self._directory.find(agent_id)
        if agent is None:
            return None
        return next(iter(await self._only_trusted([agent])), None)

    async def kernels_of(self, agent_id: str) -> frozenset[str]:
        """Give the short ids of the kernels that a trusted agent said it holds; nothing of another."""
        if await self.find(agent_id) is None:
            return frozenset()
        return await self._directory.kernels_of(agent_id)

    async def _only_trusted(self, agents: Sequence[Agent]) -> Sequence[Agent]:
        if not agents:
            return agents
        now = self._clock.seconds()
        fresh = self._read_at is not None and now - self._read_at < KEYS_ARE_FRESH
        unknown = len(self._warned) < MAX_WARNINGS and any(
            not trusted(agent, self._keys) and self._claim(agent) not in self._warned for agent in agents
        )
        if not fresh or unknown:
            self._keys, self._drains = await self._store.public_keys(), await self._store.drains()
            self._read_at = now
        kept = []
        for agent in agents:
            if not trusted(agent, self._keys):
                self._warn(agent)
            elif agent.id in self._drains:
                kept.append(evolve(agent, draining=True))
            else:
                kept.append(agent)
        return kept

    def changed(self) -> None:
        """Believe nothing of what was read before: somebody has changed what is known of an agent."""
        self._read_at = None

    def _claim(self, agent: Agent) -> tuple[str, str]:
        return agent.id, agent.address.public_key

    def _warn(self, agent: Agent) -> None:
        if self._claim(agent) in self._warned or len(self._warned) >= MAX_WARNINGS:
            return
        self._warned.add(self._claim(agent))
        self._log.warn(
            "agent {agent_id} at {endpoint} is not trusted: its key {key} is not the enrolled one",
            agent_id=agent.id,
            endpoint=agent.address.endpoint,
            key=agent.address.public_key,
        )
