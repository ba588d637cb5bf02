"""The manager's view of its agents: how old a look may be, and that what is under way counts."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from attrs import evolve
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from sorna.errors import NoAgentAvailable, Unavailable
from sorna.manager.placing import LONGEST_BELIEVED, SHORTEST_BELIEVED, Placing
from sorna.model.agent import Agent
from sorna.model.placement import Demand
from sorna.model.policy import Slots
from sorna.testing.unit import UnitTestCase
from tests.model.test_placement import agent

DEMAND = Demand("c", Slots(1, 0, 0, 0))


class Directory:
    """Answers when the test says so, or at once."""

    def __init__(self, *agents: Agent) -> None:
        self.agents: Sequence[Agent] = agents
        self.looks = 0
        self.held: Deferred[None] | None = None

    async def alive(self) -> Sequence[Agent]:
        """Give the agents."""
        self.looks += 1
        if self.held is not None:
            await self.held
        return self.agents

    async def find(self, agent_id: str) -> Agent | None:
        """Give one."""
        return next((one for one in self.agents if one.id == agent_id), None)

    async def kernels_of(self, _agent_id: str) -> frozenset[str]:
        """Nobody asks."""
        return frozenset()


class PlacingTests(UnitTestCase):
    """Decisions one after another."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.directory = Directory(agent("a", 0, 2), agent("b", 0, 2))
        self.placing = Placing(self.clock, self.directory)

    def start(self, kernel_id: uuid.UUID | None = None, excluded: Sequence[str] = ()) -> Deferred[Agent]:
        """Ask for an agent."""
        return Deferred.fromCoroutine(self.placing.choose(kernel_id or uuid.uuid4(), DEMAND, excluded))

    def choose(self, kernel_id: uuid.UUID | None = None, excluded: Sequence[str] = ()) -> str:
        """Get an agent at once."""
        return self.successResultOf(self.start(kernel_id, excluded)).id

    def refused(self) -> str:
        """Get none, and give the sentence."""
        detail: str = self.failureResultOf(self.start(), NoAgentAvailable).value.detail
        return detail

    def slow_look(self, seconds: float) -> None:
        """Let a look take so long."""
        self.directory.held = Deferred()
        asked = self.start()
        self.clock.advance(seconds)
        held, self.directory.held = self.directory.held, None
        held.callback(None)
        self.successResultOf(asked)

    def test_what_is_under_way_counts(self) -> None:
        """Kernels that no agent tells of yet are spread, and fill the agents."""
        self.assertEqual([self.choose() for _ in range(4)], ["a", "b", "a", "b"])
        self.assertEqual(self.refused(), "Every agent that offers c is full.")

    def test_given_up(self) -> None:
        """A kernel that its agent does not have gives its place back at once; the next agent is asked."""
        kernel_id = uuid.uuid4()
        self.assertEqual(self.choose(kernel_id), "a")
        self.placing.over(kernel_id, live=False)
        self.assertEqual(self.choose(kernel_id, ["a"]), "b")
        self.assertEqual([self.choose() for _ in range(3)], ["a", "a", "b"])
        self.placing.over(uuid.uuid4(), live=False)

    def test_live(self) -> None:
        """A kernel that is among the live ones counts once: by this manager, until a look shows it."""
        kernel_id = uuid.uuid4()
        self.assertEqual(self.choose(kernel_id), "a")
        self.placing.over(kernel_id, live=True)
        self.directory.agents = (agent("a", 1, 2), agent("b", 2, 2))
        self.clock.advance(SHORTEST_BELIEVED)
        self.assertEqual(self.choose(), "a")
        self.refused()

    def test_an_old_look_is_believed_for_a_while(self) -> None:
        """A look is believed ten times as long as it took, and a second at the most."""
        self.slow_look(0.05)
        self.choose()
        self.assertEqual(self.directory.looks, 1)
        self.clock.advance(0.49)
        self.choose()
        self.assertEqual(self.directory.looks, 1)
        self.clock.advance(0.02)
        self.slow_look(10)
        self.assertEqual(self.directory.looks, 2)
        self.clock.advance(LONGEST_BELIEVED)
        self.refused()
        self.assertEqual(self.directory.looks, 3)

    def test_a_quick_look_is_believed_for_a_moment(self) -> None:
        """However quick it was."""
        for advance, looks in ((0.0, 1), (0.09, 1), (0.02, 2)):
            self.clock.advance(advance)
            self.choose()
            self.assertEqual(self.directory.looks, looks)

    def test_nobody_is_refused_on_an_old_look(self) -> None:
        """Where the old look knows no place, another one is taken."""
        self.directory.agents = (agent("a", 2, 3),)
        self.slow_look(0.05)
        self.directory.agents = (agent("a", 0, 3), agent("c", 3, 3))
        self.assertEqual(self.choose(), "a")
        self.assertEqual(self.directory.looks, 2)

    def test_agents_come_and_go(self) -> None:
        """An agent that is not listed any more is not chosen, and one that is new is."""
        self.choose()
        self.directory.agents = (agent("c", 1, 2),)
        self.placing.distrust()
        self.assertEqual(self.choose(), "c")
        self.refused()

    def test_looking_ahead(self) -> None:
        """Who is about to choose has the look begin; one that fails is no concern of his until he chooses."""
        self.directory.held = Deferred()
        self.placing.look_soon()
        self.placing.look_soon()
        asked = self.start()
        self.assertNoResult(asked)
        held, self.directory.held = self.directory.held, None
        held.callback(None)
        self.assertEqual(self.successResultOf(asked).id, "a")
        self.placing.look_soon()
        self.assertEqual(self.directory.looks, 1)
        self.placing.distrust()
        self.directory.held = Deferred()
        self.placing.look_soon()
        held, self.directory.held = self.directory.held, None
        held.errback(Unavailable())
        self.choose()
        self.assertEqual(self.directory.looks, 3)

    def test_one_look_for_all(self) -> None:
        """Those who ask while a look is taken wait for that one; who gives up takes it from nobody."""
        self.directory.held = Deferred()
        asked = [self.start() for _ in range(3)]
        asked[0].cancel()
        self.failureResultOf(asked[0], CancelledError)
        self.directory.held.callback(None)
        self.assertEqual([self.successResultOf(one).id for one in asked[1:]], ["a", "b"])
        self.assertEqual(self.directory.looks, 1)

    def test_no_directory(self) -> None:
        """When agents cannot be listed everybody who waits is told, and the next look is a new one."""
        self.directory.held = Deferred()
        asked = [self.start() for _ in range(2)]
        held, self.directory.held = self.directory.held, None
        held.errback(Unavailable("Redis cannot be reached."))
        for one in asked:
            self.failureResultOf(one, Unavailable)
        self.assertEqual(self.choose(), "a")

    def test_explained(self) -> None:
        """An explanation is of this moment and counts what is under way."""
        self.choose()
        self.directory.agents = (*self.directory.agents, evolve(agent("d"), draining=True))
        judged = self.successResultOf(Deferred.fromCoroutine(self.placing.explain(DEMAND)))
        self.assertEqual(
            [(one.agent_id, one.place, one.load) for one in judged], [("b", 1, 0), ("a", 2, 0.5), ("d", None, 0)]
        )
