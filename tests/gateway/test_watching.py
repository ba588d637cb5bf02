"""A session that ends when its keypair stops working."""

from __future__ import annotations

from attrs import evolve

from sorna.gateway.watching import REVOKED, WatchedSession
from sorna.gateway.websockets import POLICY, WebSocket
from sorna.testing.gateway import EXAMPLE, MemoryKeypairs
from sorna.testing.unit import UnitTestCase
from tests.gateway.test_terminals import FakeSocket


class Heard:
    """A session that remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def opened(self, socket: WebSocket) -> None:
        self.told.append("opened")

    def received(self, text: str) -> None:
        self.told.append(text)

    def resumed(self) -> None:
        self.told.append("resumed")

    def closed(self) -> None:
        self.told.append("closed")


class WatchedSessionTests(UnitTestCase):
    """One session of the example keypair."""

    def setUp(self) -> None:
        self.keypairs = MemoryKeypairs(EXAMPLE)
        self.heard, self.socket = Heard(), FakeSocket()
        self.session = WatchedSession(self.heard, self.keypairs, EXAMPLE.access_key)

    def test_everything_is_passed_on(self) -> None:
        """The session behind it hears what it would hear without."""
        self.session.opened(self.socket)
        self.session.received("text")
        self.session.resumed()
        self.session.closed()
        self.assertEqual(self.heard.told, ["opened", "text", "resumed", "closed"])

    def test_a_keypair_that_stops_working(self) -> None:
        """A change that leaves the keypair active ends nothing; being disabled or removed does."""
        self.session.opened(self.socket)
        self.keypairs.change(EXAMPLE.access_key, evolve(EXAMPLE, rate_limit=1))
        self.assertEqual(self.socket.closed_with, [])
        self.keypairs.change(EXAMPLE.access_key, evolve(EXAMPLE, is_active=False))
        self.keypairs.change(EXAMPLE.access_key, None)
        self.assertEqual(self.socket.closed_with, [(POLICY, REVOKED)] * 2)

    def test_nobody_is_watched_after_the_end(self) -> None:
        """A session that is over is not told any more, and one that never opened watched nobody."""
        self.session.opened(self.socket)
        self.session.closed()
        self.keypairs.change(EXAMPLE.access_key, None)
        self.assertEqual(self.socket.closed_with, [])
        WatchedSession(self.heard, self.keypairs, EXAMPLE.access_key).closed()
        self.assertEqual(self.keypairs.watchers[EXAMPLE.access_key], [])
