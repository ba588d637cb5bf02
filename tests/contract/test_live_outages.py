"""What happens when the Redis server goes away, freezes, comes back, or does not want us: against a real one."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, cast

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.interfaces import ITCPTransport
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.tcp import Port
from twisted.logger import LogEvent, capturedLogs
from twisted.trial.unittest import TestCase

from sorna.errors import Unavailable
from sorna.live.address import RedisAddress, parse_redis_address
from sorna.live.connection import RedisConnection, Script
from sorna.live.kernels import RedisLiveKernels
from sorna.testing.valkey import start_valkey
from tests.contract.live_backends import REACTOR, ValkeyCase, address_of, kernel_of


def outages(events: Sequence[LogEvent]) -> list[str]:
    """Pick the formats of what was logged about outages."""
    formats = [str(event.get("log_format")) for event in events]
    return [text for text in formats if "out of reach" in text or "answers again" in text]


async def until(what: Awaitable[Any], seconds: float = 5.0) -> Any:
    """Wait for a result, but not for ever."""

    async def wait() -> Any:
        return await what

    return await Deferred.fromCoroutine(wait()).addTimeout(seconds, REACTOR)


class OutageTests(ValkeyCase):
    async def wait_for(self, connection: RedisConnection, key: str = "key") -> float:
        """Ask until Redis answers; give how long that took."""
        started = REACTOR.seconds()
        while True:
            try:
                await connection.command("GET", key)
            except Unavailable:
                await self.sleep(0.01)
            else:
                return cast("float", REACTOR.seconds() - started)

    async def test_restart(self) -> None:
        """After a crash calls fail fast, and work within 2 s of the return, logged in and in their database; logged once."""
        await self.db[4].command("SET", "key", "before")
        with capturedLogs() as events:
            self.server.kill()
            await self.sleep(0.05)
            started = REACTOR.seconds()
            with self.assertRaises(Unavailable):
                await self.db[4].command("GET", "key")
            self.assertLess(REACTOR.seconds() - started, 2)
            started = REACTOR.seconds()
            for _ in range(100):
                with self.assertRaises(Unavailable):
                    await self.db[4].command("GET", "key")
            self.assertLess(REACTOR.seconds() - started, 0.9)
            self.server.start()
            self.assertLess(await self.wait_for(self.db[4]), 2)
        await self.db[4].command("SET", "key", "after")
        self.assertIsNone(await self.wait_and_get(self.db[1]))
        self.assertEqual(await self.wait_and_get(self.db[4]), b"after")
        mine = [event for event in events if event.get("purpose") == "db 4"]
        self.assertEqual(len(outages(mine)), 2, mine)

    async def wait_and_get(self, connection: RedisConnection) -> bytes | None:
        await self.wait_for(connection)
        return cast("bytes | None", await connection.command("GET", "key"))

    async def test_short_restart_is_waited_for(self) -> None:
        """Calls made right after a crash succeed when the server is back within the grace."""
        await self.db[4].command("GET", "key")
        self.server.kill()
        await self.sleep(0.05)
        waiting = [Deferred.fromCoroutine(self.db[4].command("INCR", "key")) for _ in range(50)]
        self.server.start()
        self.assertEqual(await gatherResults(waiting), list(range(1, 51)))

    async def test_commands_under_way(self) -> None:
        """Commands that a crashing server had not answered fail at once."""
        await self.db[4].command("GET", "key")
        self.server.freeze()
        waiting = [Deferred.fromCoroutine(self.db[4].command("GET", "key")) for _ in range(10)]
        await self.sleep(0.05)
        started = REACTOR.seconds()
        self.server.kill()
        for one in waiting:
            with self.assertRaises(Unavailable):
                await one
        self.assertLess(REACTOR.seconds() - started, 0.5)

    async def test_frozen(self) -> None:
        """A frozen server makes calls time out, and later calls fail fast; thawed, it is found again within 2 s."""
        connection = self.connect(4, timeout=0.3, grace=0.3)
        await connection.command("SET", "key", "1")
        with capturedLogs() as events:
            self.server.freeze()
            started = REACTOR.seconds()
            waiting = [Deferred.fromCoroutine(connection.command("GET", "key")) for _ in range(100)]
            for one in waiting:
                with self.assertRaises(Unavailable):
                    await one
            self.assertTrue(0.25 < REACTOR.seconds() - started < 1.2)
            await self.sleep(1.0)
            started = REACTOR.seconds()
            with self.assertRaises(Unavailable):
                await connection.command("GET", "key")
            self.assertLess(REACTOR.seconds() - started, 0.1)
            self.server.thaw()
            self.assertLess(await self.wait_for(connection), 2)
        self.assertEqual(await connection.command("GET", "key"), b"1")
        mine = [event for event in events if "in time" in str(event.get("reason")) or "again after" in str(event)]
        self.assertEqual(len(outages(mine)), 2, mine)

    async def test_late_answers_reach_nobody_else(self) -> None:
        """After cancelled calls and after time-outs every call still gets its own answer."""
        connection = self.connect(4, timeout=0.3)
        await connection.command("MSET", "a", "1", "b", "2")
        self.server.freeze()
        given_up = Deferred.fromCoroutine(connection.command("GET", "a"))
        given_up.addErrback(lambda _: None)
        kept = Deferred.fromCoroutine(connection.command("GET", "b"))
        await self.sleep(0.05)
        given_up.cancel()
        self.server.thaw()
        self.assertEqual(await kept, b"2")
        self.server.freeze()
        with self.assertRaises(Unavailable):
            await connection.command("GET", "a")
        self.server.thaw()
        await self.wait_for(connection)
        self.assertEqual([await connection.command("GET", key) for key in "ab"], [b"1", b"2"])

    async def test_scripts_after_a_restart(self) -> None:
        """A server that has forgotten the scripts is taught them anew."""
        kernels = RedisLiveKernels(self.db[1])
        await kernels.add(kernel_of(), address_of())
        self.server.kill()
        self.server.start()
        await self.wait_for(self.db[1])
        self.assertIsNone(await kernels.use("AKIAONE", "token-1"))
        await kernels.add(kernel_of(), address_of())
        self.assertIsNotNone(await kernels.use("AKIAONE", "token-1"))
        await self.db[1].command("SCRIPT", "FLUSH")
        self.assertIsNotNone(await kernels.use("AKIAONE", "token-1"))

    async def test_refused(self) -> None:
        """What Redis refuses raises Unavailable without the values, is logged once, and harms no neighbour."""
        await self.db[4].command("SET", "key", "secret-value")
        with capturedLogs() as events:
            for _ in range(3):
                refused = Deferred.fromCoroutine(self.db[4].command("HGET", "key", "field"))
                fine = Deferred.fromCoroutine(self.db[4].command("GET", "key"))
                error = await self.assertFailure(refused, Unavailable)
                self.assertEqual(error.detail, "Redis refused a command: WRONGTYPE.")
                self.assertEqual(await fine, b"secret-value")
            with self.assertRaises(Unavailable):
                await self.db[4].run(Script("this is no Lua"))
        logged = [event["what"] for event in events if "refuses" in str(event.get("log_format"))]
        self.assertEqual(logged, ["HGET", "script " + Script("this is no Lua").sha[:8]])

    async def test_stop_lets_answers_arrive(self) -> None:
        """Stopping waits for the answers that are due and refuses new calls."""
        connection = self.connect(4)
        await connection.command("GET", "key")
        waiting = [Deferred.fromCoroutine(connection.command("INCR", "key")) for _ in range(10)]
        stopped = connection.stopService()
        with self.assertRaises(Unavailable):
            await connection.command("GET", "key")
        await until(stopped)
        self.assertEqual([self.successResultOf(one) for one in waiting], list(range(1, 11)))

    async def test_stop_while_frozen(self) -> None:
        """Stopping takes no longer than the timeout, whatever the server does."""
        connection = self.connect(4, timeout=0.2)
        await connection.command("GET", "key")
        self.server.freeze()
        # More than the socket takes, so that closing politely cannot work.
        lost = [Deferred.fromCoroutine(connection.command("SET", "key", b"x" * 4_000_000)) for _ in range(2)]
        outcome = gatherResults([self.assertFailure(one, Unavailable) for one in lost])
        await until(connection.stopService(), 1.5)
        await outcome

    async def test_stop_while_logging_in(self) -> None:
        """Stopping in the middle of an attempt ends it."""
        self.server.freeze()
        connection = self.connect(4)
        await self.sleep(0.05)
        await until(connection.stopService(), 1)
        self.server.thaw()

    async def test_start_again(self) -> None:
        """A service that was stopped can be started again."""
        await self.db[4].command("SET", "key", "1")
        await self.db[4].stopService()
        with self.assertRaises(Unavailable):
            await self.db[4].command("GET", "key")
        self.db[4].startService()
        self.assertEqual(await self.db[4].command("GET", "key"), b"1")

    async def test_password_put_right(self) -> None:
        """A server that refuses the login is tried for as long as it does, and found when it has the right password."""
        other = start_valkey(self, "another")
        address = RedisAddress(path=str(other.socket_path), password=self.password)
        connection = RedisConnection(REACTOR, address, 4)
        self.addCleanup(connection.stopService)
        with capturedLogs() as events:
            connection.startService()
            with self.assertRaises(Unavailable):
                await connection.command("GET", "key")
        self.assertEqual(len(outages(events)), 1)
        self.assertIn("WRONGPASS", str(events))
        self.assertNotIn("s3 cret", str(events))
        administrator = RedisConnection(REACTOR, parse_redis_address(other.url), 0)
        administrator.startService()
        await administrator.command("CONFIG", "SET", "requirepass", str(self.password))
        await administrator.stopService()
        self.assertLess(await self.wait_for(connection), 2)


class AnnouncementOutageTests(ValkeyCase):
    async def test_restart(self) -> None:
        """After a restart messages arrive again, and the listener is told that it may have missed some."""
        resyncs: list[int] = []
        losses: list[int] = []
        got: list[str] = []
        listener = self.listen(on_resync=lambda: resyncs.append(1), on_loss=lambda: losses.append(len(resyncs)))
        listener.subscribe("t", got.append)
        await self.settle()
        self.assertEqual((len(resyncs), listener.listening), (1, True))
        self.server.kill()
        await self.eventually(lambda: not listener.listening)
        late: list[str] = []
        listener.subscribe("late", late.append)
        self.server.start()
        self.assertLess(await self.eventually(lambda: len(resyncs) == 2), 2)
        self.assertEqual(losses, [1])
        await self.db[1].command("GET", "key")
        await self.announcements.publish("t", "a")
        await self.announcements.publish("late", "b")
        await self.settle()
        self.assertEqual((got, late), (["a"], ["b"]))

    async def test_frozen(self) -> None:
        """A server that is silent is noticed although nobody asks it anything."""
        resyncs: list[int] = []
        listener = self.listen(on_resync=lambda: resyncs.append(1), timeout=0.1, keepalive=0.1)
        await self.sleep(0.5)
        self.assertEqual((len(resyncs), listener.listening), (1, True))
        self.server.freeze()
        await self.eventually(lambda: not listener.listening)
        self.server.thaw()
        self.assertLess(await self.eventually(lambda: len(resyncs) == 2), 2)

    async def test_a_resync_that_fails(self) -> None:
        """An error in what is called after a gap is logged and the connection stays."""

        def fail() -> None:
            raise ZeroDivisionError

        listener = self.listen(on_resync=fail)
        await self.settle()
        self.assertTrue(listener.listening)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class Reluctant(Protocol):
    """A server that hangs up on the first AUTH and on the first SELECT, and agrees to everything later."""

    def dataReceived(self, received: bytes) -> None:
        factory = cast("ReluctantFactory", self.factory)
        word = received.split(b"\r\n")[2]
        factory.heard.append(word)
        assert self.transport is not None
        if word in factory.refusing:
            factory.refusing.remove(word)
            self.transport.loseConnection()
        else:
            self.transport.write(b"+OK\r\n")


class ReluctantFactory(Factory):
    protocol = Reluctant
    noisy = False

    def __init__(self) -> None:
        self.refusing = {b"AUTH", b"SELECT"}
        self.heard: list[bytes] = []


class TCPTests(TestCase):
    async def test_hung_up_on_at_login(self) -> None:
        """A connection lost during AUTH or SELECT is only one failed attempt, and TCP connections do not delay."""
        factory = ReluctantFactory()
        port = cast("Port", await TCP4ServerEndpoint(REACTOR, 0, interface="127.0.0.1").listen(factory))
        self.addCleanup(port.stopListening)
        connection = RedisConnection(REACTOR, parse_redis_address(f"redis://:p@127.0.0.1:{port.getHost().port}"), 4)
        connection.startService()
        self.addCleanup(connection.stopService)
        self.assertIn(await connection.command("PING"), {"OK", b"OK"})
        self.assertEqual(factory.heard, [b"AUTH", b"AUTH", b"SELECT", b"AUTH", b"SELECT", b"PING"])
        wire = connection._wire
        assert wire is not None
        assert ITCPTransport.providedBy(wire.transport)
        self.assertTrue(wire.transport.getTcpNoDelay())
