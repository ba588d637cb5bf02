"""How a drained agent stops."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from sorna.agent.retirement import MOMENT, PATIENCE, Retirement
from sorna.errors import NoAgentAvailable
from sorna.model.kernel import new_kernel_id
from tests.agent.fakes import KernelTestCase, spec


class RetirementTests(KernelTestCase):
    """It stops when it has been told to and holds nothing."""

    def setUp(self) -> None:
        super().setUp()
        self.retired = 0
        self.untold = 0
        self.retirement = Retirement(self.clock, self.kernels, lambda: self.untold, self.retire)
        self.addCleanup(self.retirement.stop)

    def retire(self) -> None:
        """Count."""
        self.retired += 1

    def drain(self, *, draining: bool = True) -> None:
        """Tell the agent."""
        self.successResultOf(Deferred.fromCoroutine(self.kernels.drain(draining=draining)))

    def test_empty(self) -> None:
        """Without kernels it stops after a moment, in which its answer gets out, and once."""
        self.advance(60)
        self.assertEqual(self.retired, 0)
        for _ in range(2):
            self.drain()
        self.assertEqual(self.retired, 0)
        self.advance(MOMENT)
        self.advance(60)
        self.assertEqual(self.retired, 1)

    def test_after_the_last_kernel(self) -> None:
        """It takes no new kernel, and stops after the last one has ended."""
        self.create()
        self.drain()
        refused = Deferred.fromCoroutine(self.kernels.create_kernel(new_kernel_id(), spec()))
        self.failureResultOf(refused, NoAgentAvailable)
        self.advance(60)
        self.assertEqual(self.retired, 0)
        ended = Deferred.fromCoroutine(self.kernels.destroy_kernel(self.kernel_id, "user-requested"))
        self.flow()
        self.successResultOf(ended)
        self.advance(MOMENT)
        self.assertEqual(self.retired, 1)

    def test_undone(self) -> None:
        """Undone within the moment, it goes on and takes kernels."""
        self.drain()
        self.drain(draining=False)
        self.advance(60)
        self.assertEqual(self.retired, 0)
        self.create()

    def test_news_are_told_first(self) -> None:
        """It waits until its managers know what has ended, but not for ever."""
        self.untold = 1
        self.drain()
        self.advance(MOMENT)
        self.advance(MOMENT)
        self.assertEqual(self.retired, 0)
        self.untold = 0
        self.advance(MOMENT)
        self.assertEqual(self.retired, 1)

    def test_patience_ends(self) -> None:
        """News that no manager wants do not keep it."""
        self.untold = 1
        self.drain()
        for _ in range(round(PATIENCE / MOMENT)):
            self.assertEqual(self.retired, 0)
            self.advance(MOMENT)
        self.assertEqual(self.retired, 1)
