"""What starts are made of."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from sorna.boot import LONGEST_PAUSE, until_available
from sorna.errors import InvalidRequest, Unavailable
from sorna.testing.unit import UnitTestCase


class UntilAvailableTests(UnitTestCase):
    """Something that others run may come up later."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.attempts = 0
        self.notes: list[str] = []
        self.failing: list[Exception] = []

    async def attempt(self) -> str:
        self.attempts += 1
        if self.failing:
            raise self.failing.pop(0)
        return "there"

    def begin(self) -> Deferred[str]:
        return Deferred.fromCoroutine(
            until_available(self.clock, self.attempt, lambda error: self.notes.append(str(error)))
        )

    def test_what_is_there_is_not_waited_for(self) -> None:
        """One attempt, and nothing is said."""
        self.assertEqual(self.successResultOf(self.begin()), "there")
        self.assertEqual((self.attempts, self.notes), (1, []))

    def test_it_waits_and_says_so_once(self) -> None:
        """However many attempts it takes, there is one line at the beginning and one at the end."""
        self.failing = [Unavailable("no answer") for _ in range(10)]
        waiting = self.begin()
        for _ in range(11):
            self.clock.advance(LONGEST_PAUSE)
        self.assertEqual(self.successResultOf(waiting), "there")
        self.assertEqual(self.attempts, 11)
        self.assertEqual(self.notes, [str(Unavailable("no answer")), "None"])

    def test_what_waiting_cannot_help_ends_it(self) -> None:
        """Another error is the caller's."""
        self.failing = [InvalidRequest("changed by hand")]
        self.failureResultOf(self.begin(), InvalidRequest)

    def test_a_stop_meanwhile_ends_it(self) -> None:
        """Cancelled in a pause, it tries no more."""
        self.failing = [Unavailable("no answer")] * 2
        waiting = self.begin()
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])
