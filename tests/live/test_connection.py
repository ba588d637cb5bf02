"""Connections on a clock that tests advance, with a server that tests play."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs

from sorna.errors import Unavailable
from sorna.live.address import RedisAddress
from sorna.live.connection import RedisConnection, Script
from sorna.live.reconnection import Reconnection
from sorna.live.wire import Wire, encoded
from sorna.testing.unit import UnitTestCase
from tests.live.memory_server import Server


class ConnectionCase(UnitTestCase):
    def setUp(self) -> None:
        self.server = Server()
        self.reactor = self.server.reactor
        self.connection = RedisConnection(
            self.reactor,
            RedisAddress(path="/s", username="me", password="hush"),
            4,
            timeout=2,
            grace=1,
            limit=3,
            on_up=lambda: self.ups.append(self.connection.connected),
        )
        self.ups: list[bool] = []

    def ask(self, *words: str) -> Deferred[Any]:
        return Deferred.fromCoroutine(self.connection.command(*words))

    def come_up(self) -> None:
        """Start, and let the server agree."""
        self.connection.startService()
        self.agree()

    def agree(self) -> None:
        self.server.accept()
        self.server.say(b"+OK\r\n")
        self.server.say(b"+OK\r\n")
        self.server.hear()


class EncodingTests(UnitTestCase):
    def test_every_kind_of_word(self) -> None:
        """Texts, bytes and numbers travel with their lengths in bytes; what is no Unicode travels too."""
        command = encoded(("SET", b"\x00\r\n", 12, "\u00e9", "\ud800"))
        self.assertEqual(
            command,
            b"*5\r\n$3\r\nSET\r\n$3\r\n\x00\r\n\r\n$2\r\n12\r\n$2\r\n\xc3\xa9\r\n$3\r\n\xed\xa0\x80\r\n",
        )

    def test_a_script_chooses_its_database(self) -> None:
        """Whatever the connection's own is; scripts of two databases are two."""
        there = Script("return 1", 4)
        self.assertEqual(there.source, "redis.call('SELECT', 4)\nreturn 1")
        self.assertEqual(len({there.sha, Script("return 1").sha, Script("return 1", 1).sha}), 3)


class RedisConnectionTests(ConnectionCase):
    def test_login(self) -> None:
        """User, password and database are sent on each connection, one after the other, before anything else."""
        self.connection.startService()
        answer = self.ask("GET", "key")
        self.server.accept()
        self.assertEqual(self.server.hear(), [b"AUTH", b"me", b"hush"])
        self.server.say(b"+OK\r\n")
        self.assertEqual(self.server.hear(), [b"SELECT", b"4"])
        self.assertFalse(self.connection.connected)
        self.server.say(b"+OK\r\n")
        self.assertTrue(self.connection.connected)
        self.assertEqual(self.server.hear(), [b"GET", b"key"])
        self.server.say(b"$4\r\n0042\r\n")
        self.assertEqual(self.successResultOf(answer), b"0042")

    def test_answers_in_order_in_any_pieces(self) -> None:
        """Commands of one turn are answered in order, however the answers are cut."""
        self.come_up()
        answers = [self.ask("GET", key) for key in "abc"]
        for byte in b"$1\r\n1\r\n$-1\r\n$3\r\n\r\n3\r\n":
            self.server.say(bytes([byte]))
            self.reactor.advance(0)
        self.assertEqual([self.successResultOf(one) for one in answers], [b"1", None, b"\r\n3"])

    def test_silence(self) -> None:
        """A server that does not answer within the timeout loses the connection, and all who wait are told."""
        self.come_up()
        first = self.ask("GET", "a")
        self.reactor.advance(1.5)
        second = self.ask("GET", "b")
        self.reactor.advance(0.4)
        self.assertNoResult(first)
        self.reactor.advance(0.1)
        self.assertTrue(self.server.transport.disconnecting or self.server.transport.disconnected)
        self.server.hang_up()
        for one in (first, second):
            self.failureResultOf(one, Unavailable)

    def test_each_connection_is_told_of(self) -> None:
        """The first one and every one after a loss, when it can be used."""
        self.come_up()
        self.assertEqual(self.ups, [True])
        self.server.hang_up()
        self.reactor.advance(0.1)
        self.agree()
        self.assertEqual(self.ups, [True, True])

    def test_each_has_its_own_time(self) -> None:
        """While answers come in time the connection stays, however old it is."""
        self.come_up()
        for _ in range(10):
            answer = self.ask("GET", "a")
            self.reactor.advance(1.9)
            self.server.say(b":1\r\n")
            self.assertEqual(self.successResultOf(answer), 1)
        self.reactor.advance(10)
        self.assertTrue(self.connection.connected)

    def test_grace(self) -> None:
        """Calls wait for the connection until one second after its loss, and fail at once from then on."""
        self.come_up()
        self.server.hang_up()
        self.reactor.advance(0.7)
        waiting = self.ask("GET", "a")
        self.reactor.advance(0.2)
        self.assertNoResult(waiting)
        self.reactor.advance(0.11)
        self.failureResultOf(waiting, Unavailable)
        self.failureResultOf(self.ask("GET", "a"), Unavailable)

    def test_never_gives_up(self) -> None:
        """However often it is refused, the next attempt follows within 0.6 s, and only the outage and its end are logged."""
        with capturedLogs() as events:
            self.connection.startService()
            for attempt in range(1, 200):
                self.assertEqual(self.server.attempts, attempt)
                if attempt % 2:
                    self.server.refuse()
                else:
                    self.server.accept()
                    self.server.say(b"-WRONGPASS no\r\n")
                    self.server.hang_up()
                self.reactor.advance(0.61)
            self.agree()
            self.assertTrue(self.connection.connected)
        formats = [event["log_format"].partition(",")[0] for event in events]
        self.assertEqual(
            formats,
            [
                "Redis at {address} ({purpose}) is out of reach",
                "Redis at {address} ({purpose}) answers again after {seconds:.1f} s",
            ],
        )

    def test_attempt_without_an_answer(self) -> None:
        """A login that is not answered is one more failed attempt."""
        self.connection.startService()
        self.server.accept()
        self.reactor.advance(2)
        self.server.hang_up()
        self.reactor.advance(0.61)
        self.assertEqual(self.server.attempts, 2)

    def test_limits(self) -> None:
        """More than so many calls at once are refused, be it for the connection or for answers that they wait."""
        self.connection.startService()
        waiting = [self.ask("GET", "a") for _ in range(3)]
        self.failureResultOf(self.ask("GET", "a"), Unavailable)
        self.agree()
        self.failureResultOf(self.ask("GET", "a"), Unavailable)
        self.server.say(b":1\r\n:2\r\n:3\r\n")
        self.assertEqual([self.successResultOf(one) for one in waiting], [1, 2, 3])
        self.assertNoResult(self.ask("GET", "a"))

    def test_cancelled_while_waiting(self) -> None:
        """A cancelled call leaves the queue and is not sent."""
        self.connection.startService()
        waiting = [self.ask("GET", key) for key in "abc"]
        waiting[1].cancel()
        self.failureResultOf(waiting[1])
        self.server.accept()
        self.server.say(b"+OK\r\n+OK\r\n")
        self.assertEqual(self.server.hear()[-4:], [b"GET", b"a", b"GET", b"c"])

    def test_cancelled_under_way(self) -> None:
        """The answer to a cancelled call goes to nobody."""
        self.come_up()
        first, second = self.ask("GET", "a"), self.ask("GET", "b")
        first.cancel()
        self.failureResultOf(first)
        self.server.say(b":1\r\n:2\r\n")
        self.assertEqual(self.successResultOf(second), 2)

    def test_not_started(self) -> None:
        """Before the start and after the stop calls fail at once, and the stop fails those that wait."""
        self.failureResultOf(self.ask("GET", "a"), Unavailable)
        self.connection.startService()
        waiting = self.ask("GET", "a")
        stopped = self.connection.stopService()
        self.failureResultOf(waiting, Unavailable)
        self.failureResultOf(self.ask("GET", "a"), Unavailable)
        self.successResultOf(stopped)
        self.reactor.advance(10)
        self.assertEqual(self.server.attempts, 1)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_stop_between_attempts(self) -> None:
        """Stopping while waiting for the next attempt leaves no timer behind."""
        self.connection.startService()
        self.server.refuse()
        self.successResultOf(self.connection.stopService())
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_stop(self) -> None:
        """Stopping waits for answers that are due, then closes, and leaves no timer behind."""
        self.come_up()
        answer = self.ask("GET", "a")
        stopped = self.connection.stopService()
        self.assertNoResult(stopped)
        self.assertFalse(self.server.transport.disconnecting)
        self.server.say(b":1\r\n")
        self.assertEqual(self.successResultOf(answer), 1)
        self.assertTrue(self.server.transport.disconnecting)
        self.server.hang_up()
        self.successResultOf(stopped)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_script_by_digest(self) -> None:
        """A script's text is sent only when the server does not know its digest."""
        script = Script("return 1")
        self.come_up()
        answer = Deferred.fromCoroutine(self.connection.run(script, ("key",), (7, b"x")))
        self.assertEqual(self.server.hear(), [b"EVALSHA", script.sha.encode(), b"1", b"key", b"7", b"x"])
        self.server.say(b"-NOSCRIPT No matching script.\r\n")
        self.assertEqual(self.server.hear(), [b"EVAL", b"return 1", b"1", b"key", b"7", b"x"])
        self.server.say(b":5\r\n")
        self.assertEqual(self.successResultOf(answer), 5)
        self.assertEqual(script.sha, "e0e1f9fabfc9d4800c877a703b823ac0578ff8db")

    def test_script_that_is_refused(self) -> None:
        """A script that Redis knows and refuses is not sent again."""
        self.come_up()
        answer = Deferred.fromCoroutine(self.connection.run(Script("return 1")))
        self.server.hear()
        self.server.say(b"-OOM command not allowed\r\n")
        self.failureResultOf(answer, Unavailable)
        self.assertEqual(self.server.hear(), [])

    def test_stop_by_force(self) -> None:
        """A connection that does not close within the timeout is aborted."""
        self.come_up()
        stopped = self.connection.stopService()
        self.assertEqual((self.server.transport.disconnecting, self.server.transport.disconnected), (True, False))
        self.reactor.advance(2)
        self.assertTrue(self.server.transport.disconnected)
        self.server.hang_up()
        self.successResultOf(stopped)

    def test_a_fault_of_our_own(self) -> None:
        """When what is told of a new connection raises, that is logged as a failure, and stopping still works."""

        def fail(wire: Wire) -> None:
            raise ZeroDivisionError(wire)

        async def nothing(wire: Wire) -> None:
            """Prepare nothing."""

        broken = Reconnection(
            self.reactor,
            RedisAddress(path="/s"),
            purpose="test",
            build=lambda: Wire(self.reactor, 1),
            prepare=nothing,
            up=fail,
            down=lambda: None,
        )
        broken.startService()
        self.server.accept()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        stopped = broken.stopService()
        self.server.hang_up()
        self.successResultOf(stopped)

    def test_refusals_are_logged_once_a_minute(self) -> None:
        """The same kind of refusal is logged again after a minute, another kind at once, and never more than their names."""
        self.come_up()
        with capturedLogs() as events:
            for pause, answer in ((0, b"-ERR no"), (0, b"-ERR no"), (0, b"-OOM memory"), (61, b"-ERR no")):
                self.reactor.advance(pause)
                refused = self.ask("SET", "key", "hush")
                self.server.say(answer + b"\r\n")
                self.failureResultOf(refused, Unavailable)
        self.assertEqual([event["reason"] for event in events], ["ERR no", "OOM memory", "ERR no"])
        self.assertNotIn("hush", str(events))

    def test_errors_that_repeat_their_arguments(self) -> None:
        """Redis repeats the arguments of a command that it does not know; neither the password nor a key is logged."""
        with capturedLogs() as events:
            self.connection.startService()
            self.server.accept()
            self.server.say(b"-ERR unknown command 'AUTH', with args beginning with: 'me' 'hush' \r\n")
            self.reactor.advance(0.1)
            self.agree()
            refused = self.ask("GOT", "hush")
            self.server.say(b"-ERR unknown command 'GOT', with args beginning with: 'hush' \r\n")
            self.failureResultOf(refused, Unavailable)
        reasons = [event["reason"] for event in events if "reason" in event]
        self.assertEqual(reasons, ["ResponseError: ERR unknown command 'AUTH'", "ERR unknown command 'GOT'"])
        self.assertNotIn("hush", str(events))

    def test_many_kinds_of_refusal(self) -> None:
        """What is remembered of refusals is bounded."""
        self.come_up()
        for number in range(200):
            refused = self.ask("GET", "key")
            self.server.say(b"-KIND%d no\r\n" % number)
            self.failureResultOf(refused, Unavailable)
        self.assertLessEqual(len(self.connection._refusals), 50)
