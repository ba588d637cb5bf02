"""Which agents a manager trusts: those whose advertised public key is the enrolled one; and which it drains.

Anybody who can write to Redis can claim to be an agent, and that a kernel is on it. Who was enrolled is in PostgreSQL, so a claim
counts only when its key is the one found there; CURVE then sees to it that whoever answers holds the secret half. It knows the
two stores as Protocols, and no socket.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from sorna.curve_keys import valid_public_key
from sorna.errors import SornaError
from sorna.manager.enrolment_interfaces import AgentStore
from sorna.manager.interfaces import AgentDirectory
from sorna.model.agent import Agent, AgentAddress, Drain

# Seconds between two regular looks, so that whoever asks need not wait for one; and the age at which it does all the same.
LOOK_INTERVAL = 0.4
KEYS_ARE_FRESH = 0.9
MAX_WARNINGS = 1000


class Trust:
    """The public keys of the enrolled agents, as PostgreSQL has them or had them a moment ago.

    They are read again by :meth:`look`, which is to be called every :data:`LOOK_INTERVAL` seconds, when :meth:`changed` is called,
    when they are older than :data:`KEYS_ARE_FRESH` seconds and somebody asks, and at once when an agent is not trusted by what
    was read before, so that a new agent is not kept waiting.

    :param on_distrust: is called with the id of an agent whose key counts no longer, at each reading that finds that out.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, store: AgentStore, on_distrust: Callable[[str], None]) -> None:
        self._clock = clock
        self._store = store
        self._on_distrust = on_distrust
        self._keys: Mapping[str, str] = {}
        self._drains: Mapping[str, Drain] = {}
        self._read_at: float | None = None
        self._warned: set[tuple[str, str]] = set()

    async def permits(self, address: AgentAddress) -> bool:
        """Tell whether whoever holds this key may be spoken to as this agent."""
        return bool(await self.of([address]))

    async def of(self, addresses: Sequence[AgentAddress]) -> Sequence[AgentAddress]:
        """Give those of these that are trusted; warns once of each other one."""
        fresh = self._read_at is not None and self._clock.seconds() - self._read_at < KEYS_ARE_FRESH
        unknown = len(self._warned) < MAX_WARNINGS and any(
            not self._trusted(one) and _claim(one) not in self._warned for one in addresses
        )
        if unknown or not fresh:
            await self._read()
        trusted = [one for one in addresses if self._trusted(one)]
        for one in addresses:
            if one not in trusted:
                self._warn(one)
        return trusted

    def changed(self, _agent_id: str = "") -> None:
        """Read the keys again now; called when a manager announces that it enrolled or revoked an agent."""
        self._warned.clear()
        Deferred.fromCoroutine(self.look()).addErrback(
            lambda failure: self._log.failure("the keys of agents could not be read again", failure)
        )

    async def look(self) -> None:
        """Read the keys; when that cannot be done now, nothing that was read before is believed at the next question."""
        try:
            await self._read()
        except SornaError as error:
            self._read_at = None
            self._log.debug("the keys of agents cannot be read now: {error}", error=error)

    async def _read(self) -> None:
        asked_at = self._clock.seconds()
        before, keys = self._keys, await self._store.public_keys()
        self._keys, self._drains = keys, await self._store.drains()
        self._read_at = asked_at
        for agent_id, key in before.items():
            if keys.get(agent_id) != key:
                self._log.info("agent {agent_id} is not trusted any more with key {key}", agent_id=agent_id, key=key)
                self._on_distrust(agent_id)

    def drains(self, agent_id: str) -> bool:
        """Whether an agent was to be drained when that was read last."""
        return agent_id in self._drains

    def _trusted(self, address: AgentAddress) -> bool:
        return valid_public_key(address.public_key) and self._keys.get(address.agent_id) == address.public_key

    def _warn(self, address: AgentAddress) -> None:
        if _claim(address) in self._warned or len(self._warned) >= MAX_WARNINGS:
            return
        self._warned.add(_claim(address))
        self._log.warn(
            "agent {agent_id} at {endpoint} is not trusted: its key {key} is not the enrolled one",
            agent_id=address.agent_id,
            endpoint=address.endpoint,
            key=address.public_key,
        )


def _claim(address: AgentAddress) -> tuple[str, str]:
    return address.agent_id, address.public_key


class TrustedDirectory:
    """A directory without the agents that are not to be trusted."""

    def __init__(self, trust: Trust, directory: AgentDirectory) -> None:
        self._trust = trust
        self._directory = directory

    def changed(self) -> None:
        """Read at once what is known of agents: somebody has changed it."""
        self._trust.changed()

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
        trusted = frozenset(await self._trust.of([agent.address for agent in agents]))
        return [
            evolve(agent, draining=True) if self._trust.drains(agent.id) else agent
            for agent in agents
            if agent.address in trusted
        ]
