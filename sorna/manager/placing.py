"""Which agent gets the next kernel: the manager's view of its agents, and what it has placed that they do not tell of yet.

Knows no door. The decision itself is ``model/placement``; here are the looks at the directory that it is based on.

Note [How old a look may be]
    A look at a few agents costs less than a millisecond, one at ten thousand costs a tenth of a second. So a look is
    believed for ten times as long as it took, at least a tenth of a second and at the most a second: little of the time
    is spent on looking, however many agents there are and however many kernels are asked for. Nobody is refused on an
    old look: where no agent can hold a kernel, another look is taken first.

Note [What is under way]
    Redis counts a kernel from when it is added to the live ones; until then only the manager that places it knows. What
    is under way here is added to what agents have taken, until a look that began after the kernel was added shows it. What other managers have under way is not seen: the agent then refuses, and the next one
    is asked.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence

from attrs import define, evolve, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from sorna.errors import NoAgentAvailable, SornaError
from sorna.manager.interfaces import AgentDirectory
from sorna.model.agent import Agent
from sorna.model.placement import Demand, Judgement, PlacementRules, explain, fits_when_empty, why_nobody
from sorna.model.placement_index import PlacementIndex
from sorna.model.policy import Slots

BELIEVED = 10.0
SHORTEST_BELIEVED, LONGEST_BELIEVED = 0.1, 1.0
# What is said of so many agents is taken in within a few milliseconds; then others have their turn.
AGENTS_PER_TURN = 200


@define
class _UnderWay:
    """A kernel on its way to an agent; ``live`` once Redis counts it there."""

    agent_id: str
    slots: Slots
    live: bool = False


@define
class Placing:
    """Chooses agents."""

    clock: IReactorTime
    directory: AgentDirectory
    rules: PlacementRules = field(factory=PlacementRules)
    _index: PlacementIndex = field(init=False)
    _said: dict[str, Agent] = field(factory=dict)
    _under_way: dict[uuid.UUID, _UnderWay] = field(factory=dict)
    _promised: dict[str, Slots] = field(factory=dict)
    _believed_until: float = 0.0
    _waiting: list[Deferred[None]] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        self._index = PlacementIndex(self.rules)

    async def choose(self, kernel_id: uuid.UUID, demand: Demand, excluded: Collection[str] = ()) -> Agent:
        """Choose an agent for a kernel and count the kernel on it until :meth:`over` is told.

        :param excluded: ids of agents that are not to be asked.
        :raises NoAgentAvailable: none can hold it; the detail says why.
        """
        fresh = self._outdated
        if fresh:
            await self._look()
        agent = self._index.choose(demand, excluded)
        if agent is None and not fresh:
            await self._look()
            agent = self._index.choose(demand, excluded)
        if agent is None:
            raise NoAgentAvailable(why_nobody(demand, explain(demand, self._index.agents.values(), self.rules)))
        self._under_way[kernel_id] = _UnderWay(agent.id, demand.slots)
        self._count(agent.id, demand.slots)
        return self._said[agent.id]

    @property
    def _outdated(self) -> bool:
        return self.clock.seconds() >= self._believed_until

    def look_soon(self) -> None:
        """Look now if the next choice would have to; it will wait for this look."""
        if self._outdated and not self._waiting:
            # Whoever chooses looks again where this one fails.
            Deferred.fromCoroutine(self._look()).addErrback(Failure.trap, SornaError)

    def distrust(self) -> None:
        """Believe no look that was taken until now: somebody has changed what agents offer."""
        self._believed_until = 0.0

    def over(self, kernel_id: uuid.UUID, *, live: bool) -> None:
        """Note that a kernel has come among the live ones, or that its agent does not have it; harmless for any other."""
        one = self._under_way.get(kernel_id)
        if one is None:
            return
        if live:
            one.live = True
        else:
            self._forget(kernel_id)
            self._show(one.agent_id)

    def could_hold(self, demand: Demand) -> frozenset[str]:
        """Give the ids of agents that could hold a kernel if they held nothing else, by the last look."""
        return frozenset(agent.id for agent in self._said.values() if fits_when_empty(agent, demand, self.rules))

    async def explain(self, demand: Demand) -> Sequence[Judgement]:
        """Judge every agent for a demand as it is now, those first that would be chosen first."""
        await self._look()
        return explain(demand, self._index.agents.values(), self.rules)

    async def agents(self) -> Mapping[str, Agent]:
        """Give every live agent as it is now, with what is under way counted."""
        await self._look()
        return dict(self._index.agents)

    async def _look(self) -> None:
        """Read what agents say of themselves; whoever comes while that goes on waits for the same look."""
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        if len(self._waiting) == 1:
            # Its own, so that a caller who gives up takes it from nobody else.
            Deferred.fromCoroutine(self._look_now()).addBoth(self._looked)
        await waiting

    def _looked(self, result: Failure | None) -> None:
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            if one.called:
                continue
            if isinstance(result, Failure):
                one.errback(result)
            else:
                one.callback(None)

    async def _look_now(self) -> None:
        began = self.clock.seconds()
        shown = [kernel_id for kernel_id, one in self._under_way.items() if one.live]
        alive = {agent.id: agent for agent in await self.directory.alive()}
        for kernel_id in shown:
            self._forget(kernel_id)
        self._said = alive
        for agent_id in self._index.agents.keys() - alive.keys():
            self._index.remove(agent_id)
        for number, agent_id in enumerate(alive, 1):
            self._show(agent_id)
            if number % AGENTS_PER_TURN == 0:
                await deferLater(self.clock, 0)
        now = self.clock.seconds()
        self._believed_until = now + min(max((now - began) * BELIEVED, SHORTEST_BELIEVED), LONGEST_BELIEVED)

    def _forget(self, kernel_id: uuid.UUID) -> None:
        gone = self._under_way.pop(kernel_id)
        left = self._promised.pop(gone.agent_id) - gone.slots
        if left != Slots():
            self._promised[gone.agent_id] = left

    def _count(self, agent_id: str, slots: Slots) -> None:
        self._promised[agent_id] = self._promised.get(agent_id, Slots()) + slots
        self._show(agent_id)

    def _show(self, agent_id: str) -> None:
        """Put an agent into the index with what is under way to it."""
        agent = self._said.get(agent_id)
        if agent is not None:
            more = self._promised.get(agent_id)
            self._index.put(agent if more is None else with_more(agent, more))


def with_more(agent: Agent, slots: Slots) -> Agent:
    """Give an agent with this much more taken."""
    return evolve(
        agent,
        num_kernels=agent.num_kernels + slots.kernels,
        memory_taken=agent.memory_taken + slots.memory,
        cpu_millis_taken=agent.cpu_millis_taken + slots.cpu_millis,
        gpus_taken=agent.gpus_taken + slots.gpus,
    )
