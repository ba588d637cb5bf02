"""The fakes and a real server, asked the same at random, answer the same."""

from __future__ import annotations

import random
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from attrs import define
from twisted.internet.task import Clock

from sorna.errors import SornaError
from sorna.live.memory import (
    MemoryAgentDirectory,
    MemoryHeartbeatStore,
    MemoryLiveKernels,
    MemoryRateCounters,
    MemoryRedis,
)
from sorna.manager.interfaces import AgentDirectory, LiveKernels, RateCounters, RateState
from sorna.model.agent import Heartbeat
from sorna.model.census import Traces
from sorna.model.kernel import Kernel, short_id
from tests.contract.live_backends import ValkeyCase, address_of, all_traces, beat_of, kernel_of

OWNERS = ("AKIAONE", "AKIATWO", "AKIAONE:a")
AGENTS = ("i-one", "i-two")
IDS = tuple(uuid.UUID(int=number << 64) for number in range(1, 7))
# Tokens as plain as can be, one that joins like another owner's, and ids of kernels in both spellings.
TOKENS = ("token", "a:token", short_id(IDS[0]), str(IDS[1]))


@define
class Side:
    """One implementation of everything."""

    heartbeats: Any
    directory: AgentDirectory
    kernels: LiveKernels
    counters: RateCounters


Step = Callable[[Side], Awaitable[Any]]


def a_kernel(chance: random.Random) -> Kernel:
    return kernel_of(
        chance.choice(OWNERS),
        chance.choice(TOKENS),
        id=chance.choice(IDS),
        agent_id=chance.choice((*AGENTS, None)),
        num_queries=chance.randrange(3),
        requested_runtime=chance.choice(("python", "한", 'a"\\\n')),
    )


def a_heartbeat(chance: random.Random) -> Heartbeat:
    kernels = frozenset(short_id(one) for one in chance.sample(IDS, chance.randrange(4)))
    stats = {kernel: {"cpu_used": str(chance.randrange(100)), "access_key": "AKIAEVIL"} for kernel in kernels}
    return beat_of(
        chance.choice(AGENTS),
        kernels=kernels,
        stats=stats if chance.random() < 0.7 else {},
        incarnation=str(chance.random()),
    )


def a_step(chance: random.Random) -> tuple[str, Step]:
    """Draw one thing to ask of both sides."""
    kernel, heartbeat, owner, agent = (
        a_kernel(chance),
        a_heartbeat(chance),
        chance.choice(OWNERS),
        chance.choice(AGENTS),
    )
    place = address_of(agent)
    reference = chance.choice((*TOKENS, *(short_id(one) for one in IDS), *(str(one) for one in IDS), "nope"))
    stale = Traces(
        frozenset(short_id(one) for one in chance.sample(IDS, 2)),
        {f"{chance.choice(OWNERS)}:{chance.choice(TOKENS)}": short_id(chance.choice(IDS))},
    )
    count, limit = chance.random() < 0.7, chance.choice((5, 20, 40))
    steps: list[tuple[str, Step]] = [
        (f"add {kernel} {agent}", lambda side: side.kernels.add(kernel, place)),
        (f"use {owner} {reference}", lambda side: side.kernels.use(owner, reference, count=count)),
        (f"forget {kernel}", lambda side: side.kernels.forget(kernel)),
        ("traces", lambda side: all_traces(side.kernels)),
        (f"forget traces {stale}", lambda side: side.kernels.forget_traces(stale)),
        (f"beat {heartbeat}", lambda side: side.heartbeats.beat(heartbeat, 60)),
        (f"leave {agent}", lambda side: side.heartbeats.leave(agent)),
        ("alive", lambda side: side.directory.alive()),
        (f"find {agent}", lambda side: side.directory.find(agent)),
        (f"kernels of {agent}", lambda side: side.directory.kernels_of(agent)),
        (f"hit {owner} {limit}", lambda side: side.counters.hit(owner, limit)),
    ]
    return chance.choices(steps, weights=(4, 8, 2, 2, 1, 3, 1, 3, 1, 3, 4))[0]


async def outcome(step: Step, side: Side) -> Any:
    try:
        result = await step(side)
    except SornaError as error:
        return type(error)
    # The time that is left differs by what a round trip takes.
    return (result.limit, result.remaining) if isinstance(result, RateState) else result


class EquivalenceTests(ValkeyCase):
    window = 600.0

    async def test_at_random(self) -> None:
        """Whatever is asked in whatever order, both give the same answers."""
        for seed in range(6):
            redis = MemoryRedis(Clock())
            fake = Side(
                MemoryHeartbeatStore(redis),
                MemoryAgentDirectory(redis),
                MemoryLiveKernels(redis),
                MemoryRateCounters(redis, self.window),
            )
            real = Side(self.heartbeats, self.directory, self.kernels, self.counters)
            await self.db[1].command("FLUSHALL")
            chance = random.Random(seed)
            history = []
            for _ in range(300):
                name, step = a_step(chance)
                history.append(name)
                self.assertEqual(
                    await outcome(step, real), await outcome(step, fake), "\n".join([f"seed {seed}", *history[-15:]])
                )
