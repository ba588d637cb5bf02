"""Two managers on the same verified fakes, and agents that die, freeze and dawdle: what random faults are tried on.

Each manager sees the databases and the agents through :class:`Sight`, so that it can be killed in the middle of any call: a dead
manager's calls never return, as if its process had been.
"""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

from attrs import define, evolve, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from sorna.cluster.memory import MemoryAgentLink
from sorna.errors import Unavailable
from sorna.live.memory import (
    MemoryAgentDirectory,
    MemoryAnnouncements,
    MemoryHeartbeatStore,
    MemoryLiveKernels,
    MemoryRedis,
)
from sorna.manager.absence import Absence
from sorna.manager.agents import AgentAdministration
from sorna.manager.creation import Creation
from sorna.manager.ending import Ending
from sorna.manager.events import KernelEvents
from sorna.manager.folders import Folders
from sorna.manager.keypairs import CachedKeypairs
from sorna.manager.places import Places
from sorna.manager.placing import Placing
from sorna.manager.queue import Queue
from sorna.manager.reaper import Reaper
from sorna.manager.registry import Registry
from sorna.model.kernel import KernelSpec, Usage, short_id
from sorna.model.limits import LimitPolicy
from sorna.model.queue import QueueBounds
from sorna.model.service import Service
from sorna.store.memory import MemoryKernels, MemoryKeypairs
from sorna.store.memory_agents import MemoryAgents
from sorna.store.memory_queue import MemoryQueue
from tests.cluster.scripted import ScriptedOperations
from tests.manager.world import HEARTBEAT, INTERVAL, DrainedDirectory

KEY = HEARTBEAT.public_key
ROOM = 3  # kernels of one agent


class Dawdler(ScriptedOperations):
    """An agent's operations that can be told to take their time: what was given up meanwhile may be done nevertheless."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels.clear()
        self.dawdles = False
        self._held: list[tuple[Deferred[None], Callable[[], None]]] = []

    async def _in_time(self, late: Callable[[], None]) -> None:
        if self.dawdles:
            held: Deferred[None] = Deferred()
            self._held.append((held, late))
            await held

    async def create_kernel(self, kernel_id: uuid.UUID, spec: KernelSpec) -> Sequence[Service]:
        """Make one; late, it is there although whoever asked has gone."""
        await self._in_time(lambda: self.kernels.add(kernel_id))
        return await super().create_kernel(kernel_id, spec)

    async def destroy_kernel(self, kernel_id: uuid.UUID, reason: str) -> Usage:
        """End one; likewise."""
        await self._in_time(lambda: self.kernels.discard(kernel_id))
        return await super().destroy_kernel(kernel_id, reason)

    async def restart_kernel(self, kernel_id: uuid.UUID) -> None:
        """Restart one."""
        await self._in_time(lambda: None)
        await super().restart_kernel(kernel_id)

    def hurry(self) -> None:
        """Do what is waiting, and dawdle no more."""
        self.dawdles = False
        held, self._held = self._held, []
        for waiting, late in held:
            if waiting.called:
                late()
            else:
                waiting.callback(None)


@define
class SimulatedAgent:
    """One agent: what it holds, whether it can be reached, and its heartbeats."""

    agent_id: str
    clock: Clock
    store: MemoryHeartbeatStore
    operations: Dawdler = field(factory=Dawdler)
    running: bool = True
    frozen: bool = False
    incarnation: int = 0
    beaten_at: float = -1000.0
    away_at: float = -1000.0

    @property
    def reachable(self) -> bool:
        """Whether it answers."""
        return self.running and not self.frozen

    def kill(self) -> None:
        """End it with all its kernels."""
        self.running = self.frozen = False
        self.away_at = self.clock.seconds()
        self.operations = Dawdler()

    def start(self) -> None:
        """Start it again, empty."""
        self.incarnation += not self.running
        self.running = True

    async def beat(self) -> None:
        """Say that it lives, when it is time."""
        if self.reachable and self.clock.seconds() >= self.beaten_at + INTERVAL:
            self.beaten_at = self.clock.seconds()
            held = frozenset(short_id(one) for one in self.operations.kernels)
            beat = evolve(
                HEARTBEAT,
                agent_id=self.agent_id,
                incarnation=f"{self.incarnation}",
                kernels=held,
                max_kernels=ROOM,
                runtimes=frozenset({"python3"}),
            )
            await self.store.beat(beat, INTERVAL)


class Reachable(Mapping[str, Any]):
    """The operations of the agents that answer now, by id."""

    def __init__(self, agents: Mapping[str, SimulatedAgent]) -> None:
        self._agents = agents

    def __getitem__(self, agent_id: str) -> Any:
        """Give one's."""
        if not self._agents[agent_id].reachable:
            raise KeyError(agent_id)
        return self._agents[agent_id].operations

    def __iter__(self) -> Iterator[str]:
        """List their ids."""
        return (name for name, agent in self._agents.items() if agent.reachable)

    def __len__(self) -> int:
        """Count them."""
        return sum(1 for _ in self)


@define
class Database:
    """PostgreSQL, and how it is with it.

    :ivar trouble: ``none``; ``away``; or ``deaf``: what is asked is done, and the answer is lost.
    """

    kernels: MemoryKernels
    queue: MemoryQueue
    agents: MemoryAgents
    trouble: str = "none"


class Sight:
    """An outside system as one manager sees it. Its calls never return once that manager is dead."""

    def __init__(self, real: Any, manager: SimulatedManager, trouble: Callable[[], str] = lambda: "none") -> None:
        self._real = real
        self._manager = manager
        self._trouble = trouble

    def __getattr__(self, name: str) -> Any:
        """Give what the real one has."""
        real = getattr(self._real, name)
        if not inspect.iscoroutinefunction(real):
            return real

        async def call(*arguments: Any, **named: Any) -> Any:
            await self._manager.alive()
            trouble = self._trouble()
            if trouble == "away":
                raise Unavailable("PostgreSQL cannot be reached.")
            try:
                result = await real(*arguments, **named)
            finally:
                await self._manager.alive()
            if trouble == "deaf":
                raise Unavailable("The connection to PostgreSQL was lost.")
            return result

        return call


@define(eq=False)
class SimulatedManager:
    """One manager, in the middle of whatever it does when it is killed."""

    name: str
    dead: bool = False
    registry: Registry = field(init=False)
    reaper: Reaper = field(init=False)
    link: MemoryAgentLink = field(init=False)
    announcements: MemoryAnnouncements = field(init=False)
    reaping: Deferred[None] | None = None
    _limbo: list[Deferred[None]] = field(factory=list)

    async def alive(self) -> None:
        """Return if it lives, and never if it does not."""
        if self.dead:
            end: Deferred[None] = Deferred()
            self._limbo.append(end)  # kept: what is never resumed must not be thrown away either
            await end

    def kill(self) -> None:
        """Let it do nothing any more."""
        self.dead = True
        self.announcements.go_deaf()

    def mend(self) -> None:
        """Do what its timer does."""
        if self.reaping is None and not self.dead:
            self.reaping = Deferred.fromCoroutine(self.reaper.mend())
            self.reaping.addErrback(lambda failure: failure.trap(Unavailable) and None)
            self.reaping.addCallback(self._mended)

    def _mended(self, _none: object) -> None:
        self.reaping = None


@frozen
class Surroundings:
    """What two managers share."""

    clock: Clock
    redis: MemoryRedis
    database: Database
    keypairs: MemoryKeypairs
    agents: Mapping[str, SimulatedAgent]
    folders: Folders


def make_manager(name: str, around: Surroundings) -> SimulatedManager:
    """Wire a manager as ``assembly`` does."""
    manager = SimulatedManager(name)
    clock, redis, database = around.clock, around.redis, around.database

    def seen(real: Any) -> Any:
        return Sight(real, manager)

    def stored(real: Any) -> Any:
        return Sight(real, manager, lambda: database.trouble)

    kernels = stored(database.kernels)
    live, plain = seen(MemoryLiveKernels(redis)), MemoryAgentDirectory(redis)
    directory = seen(DrainedDirectory(plain, database.agents))
    absence, limits = Absence(clock), LimitPolicy()

    def resync() -> None:
        places.forget_all()
        absence.distrust()
        events.heard_again()

    manager.announcements = MemoryAnnouncements(redis, on_resync=resync, on_loss=lambda: events.lost())  # noqa: PLW0108 - made below
    announcements = cast("MemoryAnnouncements", seen(manager.announcements))
    manager.link = MemoryAgentLink(
        clock,
        Reachable(around.agents),
        lambda ended: ending.on_kernel_ended(ended),  # noqa: PLW0108 - likewise
    )
    link = seen(manager.link)
    events = KernelEvents(clock, kernels, announcements)
    ending = Ending(clock, kernels, live, directory, link, events)
    placing = Placing(clock, directory)
    queue = Queue(
        clock,
        kernels,
        stored(database.queue),
        placing,
        ending,
        announcements,
        lambda spec: creation.demand(spec),  # noqa: PLW0108 - likewise
        lambda *chosen: creation.make_waiting(*chosen),  # noqa: PLW0108 - likewise
        QueueBounds(4, 3),
    )
    cached = CachedKeypairs(clock, stored(around.keypairs))
    creation = Creation(
        clock,
        kernels,
        live,
        directory,
        link,
        announcements,
        ending,
        absence,
        cached,
        around.folders,
        limits,
        placing,
        queue,
    )
    places = Places(clock, kernels, live, directory)
    manager.registry = Registry(clock, kernels, live, directory, link, creation, ending, places)
    administration = AgentAdministration(
        clock, stored(database.agents), directory, link, kernels, ending, announcements, placing, limits
    )
    manager.reaper = Reaper(clock, kernels, live, directory, link, ending, absence, administration, queue)
    for listener in (events, queue):
        listener.listen()
    places.listen(announcements)
    manager.announcements.hear_again()
    return manager
