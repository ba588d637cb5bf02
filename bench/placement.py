"""How many agents a manager can choose in a second: 100,000 kernels on 10,000 agents.

The decisions are those of :class:`sorna.manager.placing.Placing`, asked as the creation of a kernel asks it, with looks at a directory
in memory in between: what Redis and the link would take is not in the figures. Agents differ in size, labels and devices,
requests in runtime and limits; kernels end at random, so that the cluster stays at the share that ``--full`` says. Seconds
are those of this process's processor time.
"""

from __future__ import annotations

import argparse
import random
import time
import uuid
from collections.abc import Sequence

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from sorna.manager.placing import Placing, with_more
from sorna.model.agent import Agent, AgentAddress, Room
from sorna.model.limits import MIB
from sorna.model.placement import Demand, read_rules
from sorna.model.policy import Slots

RUNTIMES = ("python3", "c", "nodejs", "r")


class Cluster:
    """Agents that know what they hold; the directory of :class:`Placing`."""

    def __init__(self, number: int, seed: int) -> None:
        self.random = random.Random(seed)
        self.agents = {agent.id: agent for agent in map(self._agent, range(number))}
        self.kernels: list[tuple[str, Slots]] = []
        self.looks = 0

    def _agent(self, number: int) -> Agent:
        name, size = f"i-{number:05}", self.random.choice((8, 16, 32))
        return Agent(
            AgentAddress(name, f"tcp://10.0.{number // 250}.{number % 250}:6011", "k" * 40),
            "1",
            frozenset(self.random.sample(RUNTIMES, 3)),
            0,
            size,
            room=Room(size * 600 * MIB, None, self.random.choice((0, 0, 0, 4))),
            labels={"zone": self.random.choice("abcd")},
        )

    def demand(self) -> Demand:
        """Draw what a client asks for."""
        memory = self.random.choice((256, 512, 512, 512, 1024)) * MIB
        labels = frozenset({("zone", self.random.choice("abcd"))}) if self.random.random() < 0.1 else frozenset()
        gpus = int(self.random.random() < 0.02)
        return Demand(self.random.choice(RUNTIMES), Slots(1, memory, 1000, gpus), labels)

    def hold(self, agent_id: str, slots: Slots) -> None:
        """Note a kernel that has come."""
        self.agents[agent_id] = with_more(self.agents[agent_id], slots)
        self.kernels.append((agent_id, slots))

    def end_one(self) -> None:
        """End a kernel, whichever."""
        number = self.random.randrange(len(self.kernels))
        self.kernels[number], self.kernels[-1] = self.kernels[-1], self.kernels[number]
        agent_id, slots = self.kernels.pop()
        self.agents[agent_id] = with_more(self.agents[agent_id], Slots() - slots)

    async def alive(self) -> Sequence[Agent]:
        """List the agents; each time new values, as they would come from Redis."""
        self.looks += 1
        return [evolve(agent) for agent in self.agents.values()]

    async def find(self, agent_id: str) -> Agent | None:
        """Give one."""
        return self.agents.get(agent_id)

    async def kernels_of(self, _agent_id: str) -> frozenset[str]:
        """Nobody asks."""
        return frozenset()

    def check(self) -> None:
        """See that nobody is overfilled. :raises AssertionError: somebody is."""
        for agent in self.agents.values():
            assert 0 <= agent.num_kernels <= agent.max_kernels, agent
            assert agent.room.memory is None or agent.memory_taken <= agent.room.memory, agent
            assert agent.room.gpus is None or agent.gpus_taken <= agent.room.gpus, agent


class ProcessorTime(Clock):
    """The processor time of this process: looks are believed as long as they would be in a manager that does nothing else."""

    def seconds(self) -> float:
        """Give the time."""
        return time.process_time()


def measure(strategy: str, kernels: int, agents: int, full: float, seed: int) -> None:
    """Place kernels with one strategy and print what it took."""
    rules = read_rules(strategy)
    if rules is None:
        raise SystemExit(f"{strategy!r} is no strategy")
    cluster, clock = Cluster(agents, seed), ProcessorTime()
    placing = Placing(clock, cluster, rules)
    most = round(full * sum(agent.max_kernels for agent in cluster.agents.values()))
    durations = []
    for number in range(kernels):
        demand, kernel_id = cluster.demand(), uuid.UUID(int=number)
        began = clock.seconds()
        chosen = decide(clock, placing, kernel_id, demand)
        placing.over(kernel_id, live=True)
        durations.append(clock.seconds() - began)
        cluster.hold(chosen.id, demand.slots)
        if len(cluster.kernels) > most:
            cluster.end_one()
    cluster.check()
    durations.sort()
    print(
        f"{strategy:12} {kernels / sum(durations):12,.0f} {durations[len(durations) // 2] * 1e6:12.0f}"
        f" {cluster.looks:8} {100 * sum(durations[-cluster.looks :]) / sum(durations):11.0f} %"
    )


def decide(clock: Clock, placing: Placing, kernel_id: uuid.UUID, demand: Demand) -> Agent:
    """Get an agent, letting a look take its turns."""
    found: list[Agent] = []
    asked = Deferred.fromCoroutine(placing.choose(kernel_id, demand))
    asked.addCallback(found.append)
    while not found:
        clock.advance(0)
    return found[0]


def main() -> None:
    """Read the command line and measure each strategy."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kernels", type=int, default=100_000)
    parser.add_argument("--agents", type=int, default=10_000)
    parser.add_argument("--full", type=float, default=0.6, help="share of all places that stay taken")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("strategies", nargs="*", default=["spread", "pack", "device", "label:zone"])
    asked = parser.parse_args()
    print(f"{asked.kernels:,} kernels on {asked.agents:,} agents, {asked.full:.0%} of the places taken at the most")
    print("strategy      decisions/s    median us    looks  time in looks")
    for strategy in asked.strategies:
        measure(strategy, asked.kernels, asked.agents, asked.full, asked.seed)


if __name__ == "__main__":
    main()
