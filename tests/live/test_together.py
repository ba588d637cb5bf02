"""Questions of one turn are asked together, and each is answered for itself."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from sorna.errors import Unavailable
from sorna.live.together import Together
from sorna.testing.unit import UnitTestCase


class TogetherTests(UnitTestCase):
    """Batches of three."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.asked: list[Sequence[int]] = []
        self.answers: list[Deferred[Sequence[int]]] = []
        self.together = Together(self.clock, self.ask_all, 3)

    async def ask_all(self, questions: Sequence[int]) -> Sequence[int]:
        self.asked.append(questions)
        answer: Deferred[Sequence[int]] = Deferred()
        self.answers.append(answer)
        return await answer

    def test_one_turn_is_one_command(self) -> None:
        """Nothing is asked within the turn; then all that came up is, in order, at most so many in one command."""
        waiting = [self.together.ask(number) for number in range(5)]
        self.assertEqual(self.asked, [])
        self.clock.advance(0)
        self.assertEqual(self.asked, [[0, 1, 2], [3, 4]])
        self.answers[1].callback([13, 14])
        self.answers[0].callback([10, 11, 12])
        self.assertEqual([self.successResultOf(one) for one in waiting], [10, 11, 12, 13, 14])

    def test_next_turn(self) -> None:
        """What comes up while an answer is awaited is asked without waiting for it."""
        first = self.together.ask(1)
        self.clock.advance(0)
        second = self.together.ask(2)
        self.clock.advance(0)
        self.assertEqual(self.asked, [[1], [2]])
        self.answers[1].callback([20])
        self.assertEqual(self.successResultOf(second), 20)
        self.assertNoResult(first)

    def test_cancelled(self) -> None:
        """Who does not wait any more gets nothing, and the others get their own answers."""
        waiting = [self.together.ask(number) for number in range(3)]
        waiting[1].cancel()
        self.failureResultOf(waiting[1], CancelledError)
        self.clock.advance(0)
        self.answers[0].callback([10, 11, 12])
        self.assertEqual([self.successResultOf(waiting[number]) for number in (0, 2)], [10, 12])

    def test_unavailable(self) -> None:
        """Each question fails with an error of its own."""
        waiting = [self.together.ask(number) for number in range(2)]
        self.clock.advance(0)
        self.answers[0].errback(Unavailable("Redis did not answer."))
        errors = [self.failureResultOf(one, Unavailable).value for one in waiting]
        self.assertEqual([error.detail for error in errors], ["Redis did not answer."] * 2)
        self.assertIsNot(errors[0], errors[1])

    def test_a_fault_of_our_own(self) -> None:
        """Nobody waits for ever, whatever goes wrong: an exception, or answers that are too few."""
        first, second = self.together.ask(1), self.together.ask(2)
        self.clock.advance(0)
        self.answers[0].errback(ZeroDivisionError())
        self.failureResultOf(first, ZeroDivisionError)
        self.failureResultOf(second, ZeroDivisionError)
        third, fourth = self.together.ask(3), self.together.ask(4)
        self.clock.advance(0)
        self.answers[1].callback([30])
        self.failureResultOf(third, ValueError)
        self.failureResultOf(fourth, ValueError)
