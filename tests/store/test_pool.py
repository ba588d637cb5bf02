"""The pool's own rules, with connections of paper and a clock of our own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from sorna.errors import Unavailable
from sorna.store.connection import Conflict, Parameters, Row
from sorna.store.pool import Pool, PoolSettings, Transaction, uncancelled
from sorna.testing.unit import UnitTestCase

SETTINGS = PoolSettings(size=2, waiting=3, acquire_timeout=3, query_timeout=6, first_pause=1, longest_pause=4)


class PaperConnection:
    """Answers when the test says so."""

    def __init__(self) -> None:
        self.lost: Callable[[], None] = lambda: None
        self.usable = True
        self.closed = False
        self.statements: list[str] = []
        self.answers: list[Deferred[list[Row]]] = []

    async def execute(self, sql: str, parameters: Parameters, seconds: float) -> list[Row]:
        self.statements.append(sql)
        answer: Deferred[list[Row]] = Deferred()
        self.answers.append(answer)
        return await answer

    def answer(self, *rows: Row) -> None:
        self.answers.pop(0).callback(list(rows))

    def fail(self, error: Exception) -> None:
        self.answers.pop(0).errback(error)

    def close(self) -> None:
        self.closed = True
        self.usable = False
        for answer in self.answers:
            answer.errback(Unavailable("closed"))
        self.answers.clear()


class PoolCase(UnitTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.made: list[PaperConnection] = []
        self.attempts: list[Deferred[PaperConnection]] = []
        self.pool = Pool(self.clock, self.connect, SETTINGS)

    async def connect(self) -> PaperConnection:
        attempt: Deferred[PaperConnection] = Deferred()
        self.attempts.append(attempt)
        return await attempt

    def accept(self) -> PaperConnection:
        connection = PaperConnection()
        self.made.append(connection)
        self.attempts.pop(0).callback(connection)
        return connection

    def refuse(self) -> None:
        self.attempts.pop(0).errback(Unavailable("refused"))

    def query(self, sql: str = "SELECT 1") -> Deferred[list[Row]]:
        return Deferred.fromCoroutine(self.pool.query(sql))

    def stop(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.pool.stop())

    def full(self) -> tuple[PaperConnection, PaperConnection]:
        self.pool.start()
        return self.accept(), self.accept()


class QueryTests(PoolCase):
    def test_waits_for_the_first_connection(self) -> None:
        """A query of the first moment waits until there is a connection."""
        self.pool.start()
        asked = self.query()
        self.assertNoResult(asked)
        self.accept().answer((1,))
        self.assertEqual(self.successResultOf(asked), [(1,)])
        self.assertTrue(self.pool.connected)

    def test_connection_is_used_again(self) -> None:
        """What comes back is used for the next query."""
        _first, second = self.full()
        for _time in range(3):
            asked = self.query()
            second.answer()
            self.successResultOf(asked)
        self.assertEqual(len(self.made), 2)

    def test_no_more_than_its_size(self) -> None:
        """More queries than connections wait in line."""
        first, second = self.full()
        one, two, three = self.query("one"), self.query("two"), self.query("three")
        self.assertEqual(self.attempts, [])
        self.assertEqual(second.statements + first.statements, ["one", "two"])
        second.answer()
        self.successResultOf(one)
        self.assertEqual(second.statements, ["one", "three"])
        second.answer((3,))
        self.assertEqual(self.successResultOf(three), [(3,)])
        first.answer()
        self.successResultOf(two)

    def test_waiting_is_bounded(self) -> None:
        """The line has an end, in length and in time."""
        self.full()
        asked = [self.query() for _number in range(5)]
        self.failureResultOf(self.query(), Unavailable)
        self.clock.advance(3)
        for one in asked[2:]:
            self.failureResultOf(one, Unavailable)
        self.assertNoResult(asked[0])

    def test_error_of_a_statement_keeps_the_connection(self) -> None:
        """A conflict is told; the connection, back between transactions, is used again."""
        _first, second = self.full()
        asked = self.query()
        second.fail(Conflict("23505"))
        self.failureResultOf(asked, Conflict)
        self.assertFalse(second.closed)
        self.assertEqual(self.attempts, [])

    def test_broken_connection_is_replaced(self) -> None:
        """A connection that broke is closed and a new one made in its place."""
        _first, second = self.full()
        asked = self.query()
        second.usable = False
        second.fail(Unavailable("gone"))
        self.failureResultOf(asked, Unavailable)
        self.assertTrue(second.closed)
        third = self.accept()
        asked = self.query()
        third.answer()
        self.successResultOf(asked)

    def test_idle_connection_that_breaks_is_replaced(self) -> None:
        """The end of an idle connection is noticed without a query."""
        first, _second = self.full()
        first.lost()
        self.assertTrue(first.closed)
        self.assertEqual(len(self.attempts), 1)

    def test_unusable_idle_connection_is_passed_over(self) -> None:
        """A connection that turns out to be broken when it is wanted is not given out."""
        first, second = self.full()
        second.usable = False
        asked = self.query()
        first.answer()
        self.successResultOf(asked)
        self.assertTrue(second.closed)

    def test_cancelled_caller(self) -> None:
        """A statement whose caller is gone runs to its end, and its connection comes back."""
        _first, second = self.full()
        asked = self.query()
        asked.cancel()
        self.failureResultOf(asked, CancelledError)
        self.assertEqual(len(second.answers), 1)
        second.answer()
        again = self.query()
        second.answer()
        self.successResultOf(again)

    def test_cancelled_caller_and_an_error(self) -> None:
        """An error that nobody hears any more is logged, unless it is one of those that may happen."""
        waiting: list[Deferred[None]] = []

        async def later(error: Exception) -> None:
            gate: Deferred[None] = Deferred()
            waiting.append(gate)
            await gate
            raise error

        for error in (ValueError("unheard"), Unavailable("unheard")):
            outer = uncancelled(later(error))
            outer.cancel()
            self.failureResultOf(outer, CancelledError)
            waiting.pop().callback(None)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)


class AwayTests(PoolCase):
    def test_unavailable_at_once(self) -> None:
        """While the database is away nobody waits, and those who wait when it is found out are told."""
        self.pool.start()
        waiting = self.query()
        self.refuse()
        self.failureResultOf(waiting, Unavailable)
        self.failureResultOf(self.query(), Unavailable)

    def test_tries_for_ever_and_comes_back(self) -> None:
        """Attempts go on, with pauses that grow to a bound, and one that works ends the trouble."""
        self.pool.start()
        for pause in (1, 2, 4, 4, 4):
            self.refuse()
            self.clock.advance(pause - 0.01)
            self.assertEqual(self.attempts, [])
            self.clock.advance(0.01)
            self.assertEqual(len(self.attempts), 1)
        connection = self.accept()
        asked = self.query()
        connection.answer((1,))
        self.assertEqual(self.successResultOf(asked), [(1,)])

    def test_some_connections_left(self) -> None:
        """With a connection left, its place in line is worth waiting for."""
        first, second = self.full()
        first.lost()
        self.refuse()
        asked = self.query()
        second.answer((1,))
        self.assertEqual(self.successResultOf(asked), [(1,)])

    def test_before_the_start(self) -> None:
        """A pool that does not run gives nothing."""
        self.failureResultOf(self.query(), Unavailable)


class StopTests(PoolCase):
    def test_lets_work_end(self) -> None:
        """A stop waits for what runs, refuses what waits and what comes, and closes everything."""
        first, second = self.full()
        running, other = self.query(), self.query()
        waiting = self.query()
        stopped = self.stop()
        self.failureResultOf(waiting, Unavailable)
        self.failureResultOf(self.query(), Unavailable)
        self.assertNoResult(stopped)
        first.answer()
        second.answer((2,))
        self.successResultOf(other)
        self.assertEqual(self.successResultOf(running), [(2,)])
        self.successResultOf(stopped)
        self.assertTrue(first.closed and second.closed)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_is_bounded(self) -> None:
        """What does not end in time is cut off."""
        self.full()
        running = self.query()
        stopped = self.stop()
        self.clock.advance(5)
        self.successResultOf(stopped)
        self.failureResultOf(running, Unavailable)

    def test_while_away(self) -> None:
        """A stop does not wait for a pause to end, and no timer is left."""
        self.pool.start()
        self.refuse()
        self.successResultOf(self.stop())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_while_connecting(self) -> None:
        """A connection that comes too late is closed."""
        self.pool.start()
        stopped = self.stop()
        connection = self.accept()
        self.successResultOf(stopped)
        self.assertTrue(connection.closed)

    def test_can_start_again(self) -> None:
        """A stopped pool works again after a start."""
        self.full()
        self.successResultOf(self.stop())
        self.pool.start()
        asked = self.query()
        self.accept().answer()
        self.successResultOf(asked)


class TransactionTests(PoolCase):
    def run_in_transaction(self, *statements: str, error: Exception | None = None) -> Deferred[None]:
        async def work() -> None:
            async with self.pool.transaction() as transaction:
                await self.each(transaction, *statements)
                if error is not None:
                    raise error

        return Deferred.fromCoroutine(work())

    async def each(self, transaction: Transaction, *statements: str) -> None:
        for statement in statements:
            await transaction.query(statement)

    def answer_all(self, connection: PaperConnection, *more: Any) -> list[str]:
        while connection.answers:
            connection.answer(*more)
        return connection.statements

    def test_commits(self) -> None:
        """The first statement begins, the end of the block commits."""
        _first, second = self.full()
        done = self.run_in_transaction("one", "two")
        self.assertEqual(self.answer_all(second), ["BEGIN; one", "two", "COMMIT"])
        self.successResultOf(done)
        self.assertFalse(second.closed)

    def test_rolls_back(self) -> None:
        """An error in the block rolls back and is told."""
        _first, second = self.full()
        done = self.run_in_transaction("one", error=ValueError())
        self.assertEqual(self.answer_all(second), ["BEGIN; one", "ROLLBACK"])
        self.failureResultOf(done, ValueError)
        self.assertFalse(second.closed)

    def test_error_of_a_statement(self) -> None:
        """An error of a statement rolls back."""
        _first, second = self.full()
        done = self.run_in_transaction("one", "two")
        second.fail(Conflict("40001"))
        self.assertEqual(self.answer_all(second), ["BEGIN; one", "ROLLBACK"])
        self.failureResultOf(done, Conflict)

    def test_rollback_that_fails(self) -> None:
        """A connection that cannot even roll back is thrown away, and the first error is told."""
        _first, second = self.full()
        done = self.run_in_transaction("one", error=ValueError())
        second.answer()
        second.fail(Unavailable("gone"))
        self.failureResultOf(done, ValueError)
        self.assertTrue(second.closed)

    def test_commit_that_fails(self) -> None:
        """A commit that fails is told."""
        _first, second = self.full()
        done = self.run_in_transaction("one")
        second.answer()
        second.fail(Unavailable("gone"))
        self.failureResultOf(done, Unavailable)
        self.assertTrue(second.closed)

    def test_empty(self) -> None:
        """A block without a statement costs no round trip."""
        _first, second = self.full()
        self.successResultOf(self.run_in_transaction())
        self.assertEqual(second.statements, [])

    def test_cancelled_in_a_statement(self) -> None:
        """A caller cancelled in the middle loses its connection, which rolls back, and nobody else gets it."""
        _first, second = self.full()
        done = self.run_in_transaction("one", "two")
        second.answer()
        done.cancel()
        self.failureResultOf(done, CancelledError)
        self.assertTrue(second.closed)
        self.assertEqual(second.statements, ["BEGIN; one", "two"])

    def test_cancelled_while_waiting(self) -> None:
        """A caller cancelled in line leaves it."""
        first, second = self.full()
        busy = [self.query(), self.query()]
        done = self.run_in_transaction("one")
        done.cancel()
        self.failureResultOf(done, CancelledError)
        second.answer()
        first.answer()
        for one in busy:
            self.successResultOf(one)
        self.assertNotIn("BEGIN; one", first.statements + second.statements)
