"""What the contract suites of the live room run against: the fakes on a clock, and a real server of their own."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from twisted.internet import reactor  # noqa: TID251 - the one place where these tests get the real reactor from
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import TestCase

from sorna.agent.interfaces import HeartbeatStore
from sorna.live.address import parse_redis_address
from sorna.live.channels import RedisAnnouncements
from sorna.live.connection import RedisConnection
from sorna.live.instances import RedisAgentDirectory, RedisHeartbeatStore
from sorna.live.kernels import RedisLiveKernels
from sorna.live.memory import (
    MemoryAgentDirectory,
    MemoryAnnouncements,
    MemoryHeartbeatStore,
    MemoryLiveKernels,
    MemoryRateCounters,
    MemoryRedis,
)
from sorna.live.rate_counters import RedisRateCounters
from sorna.manager.interfaces import AgentDirectory, Announcements, LiveKernels, RateCounters
from sorna.model.agent import AgentAddress, Capacity, Heartbeat
from sorna.model.census import Traces
from sorna.model.kernel import Kernel, KernelStatus, short_id
from sorna.model.limits import Limits
from sorna.testing.valkey import ValkeyServer, start_valkey

REACTOR: Any = reactor
PUBLIC_KEY = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"


class LiveCase(TestCase):
    """A test with the five things of this room. ``window`` is the rate counters', in seconds."""

    window = 0.8
    heartbeats: HeartbeatStore
    directory: AgentDirectory
    kernels: LiveKernels
    counters: RateCounters
    announcements: Announcements

    async def pass_time(self, seconds: float) -> None:
        """Let time pass for what expires."""
        raise NotImplementedError

    async def settle(self) -> None:
        """Let messages arrive."""
        raise NotImplementedError

    async def lose_entry(self, kernel: Kernel) -> None:
        """Let the server lose the hash of a kernel, and nothing else."""
        raise NotImplementedError


class MemoryCase(LiveCase):
    """The fakes."""

    def setUp(self) -> None:
        self.clock = Clock()
        # A real clock is not near zero either.
        self.clock.advance(1_700_000_000)
        self.redis = MemoryRedis(self.clock)
        self.heartbeats = MemoryHeartbeatStore(self.redis)
        self.directory = MemoryAgentDirectory(self.redis)
        self.kernels = MemoryLiveKernels(self.redis)
        self.counters = MemoryRateCounters(self.redis, self.window)
        self.announcements = MemoryAnnouncements(self.redis)

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    async def settle(self) -> None:
        """Nothing is under way."""

    async def lose_entry(self, kernel: Kernel) -> None:
        del self.redis.kernels[short_id(kernel.id)]


class ValkeyCase(LiveCase):
    """A real server with a password, and one connection for each database."""

    password: str | None = "s3 cret:/@"
    server: ValkeyServer

    def setUp(self) -> None:
        self.server = start_valkey(self, self.password)
        self.listeners: list[RedisAnnouncements] = []
        self.address = parse_redis_address(self.server.url)
        self.db = {number: self.connect(number) for number in (1, 2, 3, 4)}
        self.heartbeats = RedisHeartbeatStore(self.db[2])
        self.directory = RedisAgentDirectory(self.db[2])
        self.kernels = RedisLiveKernels(self.db[1])
        self.counters = RedisRateCounters(self.db[4], self.window)
        self.announcements = self.listen()

    def connect(self, number: int, **settings: Any) -> RedisConnection:
        """Make a connection that ends with the test."""
        connection = RedisConnection(REACTOR, self.address, number, **settings)
        connection.startService()
        self.addCleanup(connection.stopService)
        return connection

    def listen(self, **settings: Any) -> RedisAnnouncements:
        """Make announcements that end with the test."""
        announcements = RedisAnnouncements(REACTOR, self.address, self.db[1], **settings)
        announcements.startService()
        self.listeners.append(announcements)
        self.addCleanup(announcements.stopService)
        return announcements

    async def sleep(self, seconds: float) -> None:
        """Wait for real."""
        await deferLater(REACTOR, seconds)

    async def pass_time(self, seconds: float) -> None:
        await self.sleep(seconds)

    async def lose_entry(self, kernel: Kernel) -> None:
        await self.db[1].command("DEL", short_id(kernel.id))

    async def settle(self) -> None:
        """Ask every listener's connection for an answer, which comes after all that was under way to it."""
        for listener in self.listeners:
            await self.eventually(partial(getattr, listener, "listening"))
            assert listener._wire is not None
            await listener._wire.send("PING")

    async def eventually(self, condition: Callable[[], bool], seconds: float = 5.0) -> float:
        """Wait until something holds; give how long that took."""
        started = REACTOR.seconds()
        while not condition():
            self.assertLess(REACTOR.seconds() - started, seconds)
            await self.sleep(0.005)
        return cast("float", REACTOR.seconds() - started)


async def all_traces(kernels: LiveKernels) -> Traces:
    """Walk over all traces."""
    part = await kernels.traces()
    names, sessions = set(part.names), dict(part.sessions)
    while part.rest:
        part = await kernels.traces(part.rest)
        names |= part.names
        sessions |= part.sessions
    return Traces(frozenset(names), sessions)


def address_of(agent_id: str = "i-one") -> AgentAddress:
    """Give the address of an agent."""
    return AgentAddress(agent_id, "tcp://127.0.0.1:6011", PUBLIC_KEY)


def beat_of(agent_id: str = "i-one", **changes: Any) -> Heartbeat:
    """Give a heartbeat."""
    fields: dict[str, Any] = {
        "agent_id": agent_id,
        "incarnation": "one",
        "endpoint": "tcp://127.0.0.1:6011",
        "public_key": PUBLIC_KEY,
        "runtimes": frozenset({"python3", "c"}),
        "kernels": frozenset(),
        "max_kernels": 10,
        "isolation": "zygote",
        "stats": {},
        "capacity": Capacity(4000, 1024, 1),
    }
    return Heartbeat(**{**fields, **changes})


def kernel_of(access_key: str = "AKIAONE", session: str = "token-1", **changes: Any) -> Kernel:
    """Give a running kernel."""
    fields: dict[str, Any] = {
        "id": uuid.uuid4(),
        "access_key": access_key,
        "session_token": session,
        "runtime": "python3",
        "requested_runtime": "python",
        "status": KernelStatus.RUNNING,
        "status_reason": "",
        "status_changed_at": 1_700_000_000.0,
        "created_at": 1_700_000_000.25,
        "limits": Limits(),
        "agent_id": "i-one",
    }
    return Kernel(**{**fields, **changes})
