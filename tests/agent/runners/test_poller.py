"""The sockets of the kernel's first process: what is written together, and who is told that there is room again."""

from __future__ import annotations

import socket

from sorna.agent.runners.frames import HEADER, pack_frame
from sorna.agent.runners.poller import MOST_GATHERED, Link, Poller
from sorna.testing.unit import UnitTestCase


class GatheringTests(UnitTestCase):
    """Frames that are written with one system call."""

    def setUp(self) -> None:
        ours, self.peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.peer.setblocking(False)
        self.addCleanup(self.peer.close)
        self.poller = Poller()
        self.idle = 0
        self.link = Link(self.poller, ours, lambda _kind, _payload: None, lambda: None, self.on_idle)
        self.addCleanup(self.link.close)

    def on_idle(self) -> None:
        self.idle += 1

    def read(self) -> bytes:
        try:
            return self.peer.recv(1 << 20)
        except BlockingIOError:
            return b""

    def test_together(self) -> None:
        """Nothing goes out before the end, and then everything does, in order."""
        self.link.gather()
        self.link.send(1, b"a")
        self.link.send(2, b"b")
        self.assertEqual((self.read(), self.link.congested), (b"", False))
        self.link.let_go()
        self.assertEqual(self.read(), pack_frame(1, b"a") + pack_frame(2, b"b"))
        self.link.send(3, b"c")
        self.assertEqual((self.read(), self.idle), (pack_frame(3, b"c"), 0))

    def test_bounded(self) -> None:
        """Who gathers much is told to stop, and told to go on when that was written."""
        content = bytes(MOST_GATHERED)
        self.link.gather()
        self.link.send(1, content)
        self.assertTrue(self.link.congested)
        self.link.let_go()
        self.assertEqual(len(self.read()), HEADER.size + len(content))
        self.assertEqual((self.idle, self.link.congested), (1, False))

    def test_behind_what_waits(self) -> None:
        """Where the peer does not read, frames wait behind those before them."""
        filler = bytes(1 << 20)
        self.link.send(1, filler)
        self.assertTrue(self.link.congested)
        self.link.gather()
        self.link.send(2, b"b")
        self.link.let_go()
        received = self.read()
        while not received.endswith(pack_frame(2, b"b")):
            self.poller.once()
            received += self.read()
        self.assertEqual(received, pack_frame(1, filler) + pack_frame(2, b"b"))
        self.assertEqual((self.idle, self.link.congested), (1, False))

    def test_peer_that_is_gone(self) -> None:
        """The link is closed, as by any other write."""
        self.peer.close()
        self.link.gather()
        self.link.send(1, b"a")
        self.link.let_go()
        self.assertTrue(self.link.closed)
