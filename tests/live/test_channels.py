"""Announcements on a clock that tests advance, with a server that tests play."""

from __future__ import annotations

from sorna.live.address import RedisAddress
from sorna.live.channels import RedisAnnouncements
from sorna.live.connection import RedisConnection
from sorna.testing.unit import UnitTestCase
from tests.live.memory_server import Server

SUBSCRIBED_A = b"*3\r\n$9\r\nsubscribe\r\n$7\r\nsorna:a\r\n:1\r\n"


class RedisAnnouncementsTests(UnitTestCase):
    def setUp(self) -> None:
        self.server = Server()
        self.reactor = self.server.reactor
        self.resyncs: list[float] = []
        self.losses: list[float] = []
        address = RedisAddress(path="/s")
        self.announcements = RedisAnnouncements(
            self.reactor,
            address,
            RedisConnection(self.reactor, address, 0),
            on_resync=lambda: self.resyncs.append(self.reactor.seconds()),
            on_loss=lambda: self.losses.append(self.reactor.seconds()),
            timeout=2,
            keepalive=5,
        )

    def say(self, raw: bytes) -> None:
        """Answer, and let the driver take what it put off to the next turn."""
        self.server.say(raw)
        for _ in range(20):
            self.reactor.advance(0)

    def test_changes_while_connecting(self) -> None:
        """Topics that come and go while the connection is being prepared are caught up with; then only it listens."""
        end = self.announcements.subscribe("a", self.fail)
        self.announcements.startService()
        self.server.accept()
        self.assertEqual(self.server.hear(), [b"SUBSCRIBE", b"sorna:a"])
        got: list[str] = []
        self.announcements.subscribe("b", got.append)
        end()
        self.assertEqual((self.announcements.listening, self.resyncs), (False, []))
        self.say(SUBSCRIBED_A)
        self.assertEqual(self.server.hear(), [b"SUBSCRIBE", b"sorna:b", b"UNSUBSCRIBE", b"sorna:a"])
        self.assertEqual((self.announcements.listening, len(self.resyncs)), (True, 1))
        self.say(b"*3\r\n$7\r\nmessage\r\n$7\r\nsorna:a\r\n$4\r\nlate\r\n")
        self.say(b"*3\r\n$7\r\nmessage\r\n$7\r\nsorna:b\r\n$4\r\n0042\r\n")
        self.assertEqual(got, ["0042"])

    def test_keepalive(self) -> None:
        """The connection is asked for a sign of life every five seconds and given up when none comes within two."""
        self.announcements.startService()
        self.server.accept()
        for _ in range(3):
            self.reactor.advance(5)
            self.assertEqual(self.server.hear(), [b"PING"])
            self.say(b"+PONG\r\n")
        self.reactor.advance(5)
        self.reactor.advance(2)
        self.assertTrue(self.server.transport.disconnected)
        self.assertEqual(self.losses, [])
        self.server.hang_up()
        self.assertFalse(self.announcements.listening)
        self.assertEqual(len(self.losses), 1)

    def test_refused_topic(self) -> None:
        """When Redis refuses a subscription the connection starts over, and so makes it known."""
        self.announcements.startService()
        self.server.accept()
        self.announcements.subscribe("a", self.fail)
        self.server.say(b"-NOPERM no\r\n")
        self.assertTrue(self.server.transport.disconnected)

    def test_stop(self) -> None:
        """Stopping closes the connection and leaves no timer behind; nobody minds subscriptions that end later."""
        end = self.announcements.subscribe("a", self.fail)
        self.announcements.startService()
        self.server.accept()
        self.say(SUBSCRIBED_A)
        stopped = self.announcements.stopService()
        self.assertNoResult(stopped)
        self.server.hang_up()
        self.successResultOf(stopped)
        end()
        self.assertEqual(self.reactor.getDelayedCalls(), [])
