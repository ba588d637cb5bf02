"""Kernels that are ready before anybody asks: who gets them, when new ones are made, and what becomes of the rest."""

from __future__ import annotations

import uuid

from twisted.internet.defer import Deferred

from sorna.agent import pool as module
from sorna.agent.runners import frames
from sorna.errors import AgentFailed
from sorna.model.kernel import KernelSpec
from sorna.model.limits import MIB
from tests.agent.fakes import FakeKernel, KernelTestCase, query, spec


class PoolTestCase(KernelTestCase):
    max_kernels = 20
    most_ready = 3

    def begin(self, least: int = 2) -> None:
        """Start the pool and let it fill."""
        self.pool.start("python3", least)
        self.settle()

    def settle(self) -> None:
        """Let the pool make what it wants to, one after another."""
        for _ in range(10):
            self.advance(module.REST)

    def made(self) -> list[FakeKernel]:
        """Give every kernel that was ever made."""
        return self.sandbox.kernels


class PoolTests(PoolTestCase):
    """Filling and taking."""

    def test_ready_before_anybody_asks(self) -> None:
        """A kernel that is kept ready becomes somebody's without anything being made."""
        self.begin()
        self.assertEqual((len(self.pool), self.kernels.occupied), (2, 0))
        self.sandbox.slow = Deferred()
        self.kernel_id = uuid.UUID(int=7)
        self.successResultOf(self.start(self.kernels.create_kernel(self.kernel_id, spec())))
        self.assertEqual((len(self.pool), self.kernels.occupied), (1, 1))
        first = self.made()[0]
        self.execute(query("1+1"))
        self.assertEqual(first.sent(frames.RUN)[0]["code"], "1+1")
        self.assertEqual(len(self.kernels.live()), 1)

    def test_refilled_after_a_rest(self) -> None:
        """What was taken is made again, and not while its taker has just begun."""
        self.begin()
        self.create()
        self.assertEqual(len(self.made()), 2)
        self.settle()
        self.assertEqual((len(self.pool), len(self.made())), (2, 3))

    def test_environment_and_limits(self) -> None:
        """The variables and limits of the request reach a kernel that was made before it."""
        self.begin()
        order = KernelSpec("AKIA", "t", "python3", "python3", spec(memory=64 * MIB).limits, {"A": "b"})
        self.successResultOf(self.start(self.kernels.create_kernel(uuid.UUID(int=9), order)))
        first = self.made()[0]
        self.start(self.kernels.interrupt(uuid.UUID(int=9)))
        (assignment,) = first.sent(frames.ASSIGN)
        self.assertEqual((assignment["environ"]["A"], assignment["environ"]["SORNA_MEMORY_MIB"]), ("b", "64"))
        self.assertEqual([limits.memory for limits in first.adjusted], [64 * MIB])

    def test_other_kind(self) -> None:
        """What differs in something that cannot be changed afterwards is made; asked for once, one more is kept."""
        self.begin()
        made = self.create(file_size=5 * MIB)
        self.assertEqual(made.spec.limits.file_size, 5 * MIB)
        self.settle()
        self.assertEqual(sum(kernel.spec.limits.file_size == 5 * MIB for kernel in self.made()), 3)

    def test_operators_limits_become_the_usual_ones(self) -> None:
        """When requests of the first runtime bring other limits, these are kept ready and the first ones let go."""
        self.begin()
        self.create(file_size=5 * MIB)
        self.settle()
        self.advance(module.REVIEW)
        self.assertEqual([kernel.gone for kernel in self.made()[:2]], [True, True])
        self.assertEqual((len(self.pool), self.kernels.occupied), (2, 1))

    def test_never_more_than_allowed(self) -> None:
        """Demand is met up to the bound only, of all kinds together."""
        self.begin()
        for runtime in ("python3", "c", "java", "python3", "c", "python3"):
            self.create(runtime)
        for _ in range(5):
            self.settle()
        self.assertEqual(len(self.pool), self.most_ready)

    def test_demand_fades(self) -> None:
        """Kernels that nobody asks for any more are ended; the least number stays."""
        self.begin(1)
        for _ in range(3):
            self.create("c")
        self.settle()
        self.assertEqual(len(self.pool), 3)
        for _ in range(80):
            self.advance(module.REVIEW)
        self.assertEqual(len(self.pool), 1)
        self.assertEqual(self.news.ended[3:], [])

    def test_places_are_not_taken(self) -> None:
        """Ready kernels take no place of those that the agent has to offer."""
        self.kernels.max_kernels = 1
        self.begin()
        self.create()
        self.assertEqual(self.kernels.occupied, 1)


class ReserveTests(PoolTestCase):
    """When it is filled again while requests come without a pause."""

    max_kernels = 40
    most_ready = 16

    def test_an_eighth_is_left(self) -> None:
        """Until then nothing is made beside those who have just got theirs; then one is at once, pause or not."""
        self.begin(16)
        self.settle()
        self.assertEqual(len(self.pool), 16)
        for _ in range(14):
            self.create()
        self.assertEqual((len(self.pool), len(self.made())), (2, 16))
        self.create()
        self.advance(0.0)
        self.assertGreater(len(self.made()), 16)


class PoolTroubleTests(PoolTestCase):
    """What goes wrong."""

    def test_ready_kernel_that_dies(self) -> None:
        """It is replaced, and nobody is told."""
        self.begin()
        self.made()[0].exit(1)
        self.flow()
        self.assertEqual(len(self.pool), 1)
        self.advance(module.FIRST_BACKOFF)
        self.settle()
        self.assertEqual((len(self.pool), self.news.ended), (2, []))

    def test_tier_that_fails(self) -> None:
        """Making is tried again at growing intervals, and a request gets the error at once."""
        self.sandbox.broken = AgentFailed("no memory")
        self.begin()
        self.assertEqual(
            self.agent_failed(self.start(self.kernels.create_kernel(uuid.UUID(int=9), spec()))).detail, "no memory"
        )
        self.sandbox.broken = None
        self.advance(module.LONGEST_BACKOFF)
        self.settle()
        self.assertEqual(len(self.pool), 2)

    def test_stop(self) -> None:
        """Nothing that was kept ready is left, one that is being made included."""
        self.begin()
        self.create()
        self.sandbox.slow = Deferred()
        self.settle()
        self.successResultOf(self.start(self.kernels.stop()))
        self.successResultOf(self.start(self.pool.stop()))
        self.assertTrue(all(kernel.gone for kernel in self.made()))
        self.assertEqual((len(self.pool), self.flushLoggedErrors()), (0, []))

    def test_stop_before_init_is_ready(self) -> None:
        """Giving up a kernel whose first process is still getting ready is no failure."""
        self.sandbox.answers_ready = False
        self.begin()
        self.successResultOf(self.start(self.pool.stop()))
        self.assertTrue(all(kernel.gone for kernel in self.made()))
        self.assertEqual((len(self.made()), self.flushLoggedErrors()), (1, []))

    def test_ready_kernel_that_does_not_end(self) -> None:
        """Stopping gives it up after a bound."""
        self.begin()
        self.made()[0].obedient = False
        stopped = self.start(self.pool.stop())
        self.assertNoResult(stopped)
        self.advance(module.STOP_DEADLINE)
        self.successResultOf(stopped)


class SuggestedSizeTests(PoolTestCase):
    """How many an operator gets who does not say."""

    def test_by_memory(self) -> None:
        """A sixteenth of the memory, neither next to none nor without end."""
        sizes = [module.suggested_size(memory << 30) for memory in (0, 1, 4, 24, 1024)]
        self.assertEqual(sizes, [8, 8, 32, 192, 256])
