"""A manager on verified fakes: every test of ``manager`` that needs more than one part starts here."""

from __future__ import annotations

import uuid
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from sorna.cluster.memory import MemoryAgentLink
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
from sorna.manager.interfaces import KernelEnded
from sorna.manager.keypairs import CachedKeypairs
from sorna.manager.places import Places
from sorna.manager.placing import Placing
from sorna.manager.queue import Queue
from sorna.manager.reaper import Reaper
from sorna.manager.registry import Registry
from sorna.manager.requests import CreateRequest
from sorna.model.agent import Agent, Heartbeat
from sorna.model.keypair import Keypair
from sorna.model.limits import LimitPolicy
from sorna.model.queue import QueueBounds
from sorna.store.memory import MemoryKernels, MemoryKeypairs
from sorna.store.memory_agents import MemoryAgents
from sorna.store.memory_queue import MemoryQueue
from sorna.testing.folders import memory_folders
from sorna.testing.unit import UnitTestCase
from tests.cluster.scripted import ScriptedOperations

T = TypeVar("T")
OWNER, STRANGER = "AKIA" + "O" * 16, "AKIA" + "S" * 16
HEARTBEAT = Heartbeat(
    "i-1", "first", "tcp://127.0.0.1:1", "k" * 40, frozenset({"python3", "c"}), frozenset(), 5, "none", {}
)
INTERVAL = 1.2


class DrainedDirectory:
    """A directory that says of its agents whether they are drained, and trusts all of them."""

    def __init__(self, directory: MemoryAgentDirectory, agents: MemoryAgents) -> None:
        self._directory = directory
        self._agents = agents

    async def alive(self) -> Sequence[Agent]:
        """List the live agents."""
        drains = await self._agents.drains()
        return [evolve(agent, draining=agent.id in drains) for agent in await self._directory.alive()]

    async def find(self, agent_id: str) -> Agent | None:
        """Give one."""
        return next((agent for agent in await self.alive() if agent.id == agent_id), None)

    async def kernels_of(self, agent_id: str) -> frozenset[str]:
        """Give the ids of its kernels."""
        return await self._directory.kernels_of(agent_id)


class ManagerTestCase(UnitTestCase):
    """One agent that does what the test tells it, and a manager."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000)
        self.redis = MemoryRedis(self.clock)
        self.keypairs = MemoryKeypairs(
            [Keypair(OWNER, "s" * 40, concurrency_limit=2), Keypair(STRANGER, "t" * 40, concurrency_limit=2)]
        )
        self.kernels = MemoryKernels(self.keypairs)
        self.live = MemoryLiveKernels(self.redis)
        self.directory = MemoryAgentDirectory(self.redis)
        self.agent = ScriptedOperations()
        self.agent.kernels.clear()
        announcements = self.announcements = MemoryAnnouncements(
            self.redis,
            on_resync=lambda: self.events.heard_again(),  # noqa: PLW0108 - made below
            on_loss=lambda: self.events.lost(),  # noqa: PLW0108 - likewise
        )
        self.link = MemoryAgentLink(self.clock, {"i-1": self.agent}, self._ended)
        self.events = KernelEvents(self.clock, self.kernels, announcements)
        self.events.listen()
        announcements.hear_again()
        self.ending = Ending(self.clock, self.kernels, self.live, self.directory, self.link, self.events)
        keypairs = [Keypair(OWNER, "s" * 40), Keypair(STRANGER, "t" * 40)]
        self.folders, _transfers = memory_folders(
            self, self.clock, *keypairs, kernels=self.kernels, end=self.ending.destroy
        )
        self.absence = Absence(self.clock)
        self.agents = MemoryAgents()
        self.done(self.agents.enrol("i-1", "k" * 40, 0.0))
        self.drained = DrainedDirectory(self.directory, self.agents)
        self.placing = Placing(self.clock, self.drained)
        self.queue = Queue(
            self.clock,
            self.kernels,
            MemoryQueue(self.kernels),
            self.placing,
            self.ending,
            announcements,
            lambda spec: self.creation.demand(spec),  # noqa: PLW0108 - made below
            lambda *chosen: self.creation.make_waiting(*chosen),  # noqa: PLW0108 - made below
            QueueBounds(4, 3),
        )
        self.queue.listen()
        self.creation = Creation(
            self.clock,
            self.kernels,
            self.live,
            self.directory,
            self.link,
            announcements,
            self.ending,
            self.absence,
            CachedKeypairs(self.clock, self.keypairs),
            self.folders,
            LimitPolicy(),
            self.placing,
            self.queue,
        )
        self.places = Places(self.clock, self.kernels, self.live, self.directory)
        self.places.listen(announcements)
        self.registry = Registry(
            self.clock, self.kernels, self.live, self.directory, self.link, self.creation, self.ending, self.places
        )
        self.agent_administration = AgentAdministration(
            self.clock,
            self.agents,
            self.drained,
            self.link,
            self.kernels,
            self.ending,
            announcements,
            self.placing,
            LimitPolicy(),
        )
        self.reaper = Reaper(
            self.clock,
            self.kernels,
            self.live,
            self.drained,
            self.link,
            self.ending,
            self.absence,
            self.agent_administration,
            self.queue,
        )
        self.heartbeats = MemoryHeartbeatStore(self.redis)
        self.beat()

    async def _ended(self, ended: KernelEnded) -> None:
        await self.ending.on_kernel_ended(ended)

    def beat(self, *kernels: str, incarnation: str = "first") -> None:
        """Let the agent say that it lives and holds these kernels."""
        heartbeat = evolve(HEARTBEAT, kernels=frozenset(kernels), incarnation=incarnation)
        self.done(self.heartbeats.beat(heartbeat, INTERVAL))

    def start(self, work: Coroutine[Any, Any, T]) -> Deferred[T]:
        """Start something that may not be done at once."""
        return Deferred.fromCoroutine(work)

    def done(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something that is done at once."""
        return self.successResultOf(self.start(work))

    def fails(self, work: Coroutine[Any, Any, Any], error: type[Exception]) -> Any:
        """Do something that fails at once, and give the error."""
        return self.failureResultOf(self.start(work), error).value

    def used(self, access_key: str = OWNER) -> int:
        """Tell how much of the quota is taken."""
        keypair = self.done(self.keypairs.by_access_key(access_key))
        assert keypair is not None
        return keypair.concurrency_used

    def wish(self, token: str = "token-1", runtime: str = "python", owner: str = OWNER) -> CreateRequest:
        """Build a wish for a kernel."""
        return CreateRequest(owner, token, runtime)

    def make(self, token: str = "token-1", owner: str = OWNER) -> uuid.UUID:
        """Make a kernel."""
        return self.done(self.registry.create(self.wish(token, owner=owner))).kernel_id
