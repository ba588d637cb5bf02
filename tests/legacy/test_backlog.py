"""What clients have not read, with real sockets beneath."""

from __future__ import annotations

import zmq

from sorna.legacy.backlog import LARGE, Backlog
from sorna.testing.legacy import Context, legacy_context
from sorna.testing.unit import UnitTestCase


class BacklogTests(UnitTestCase):
    def setUp(self) -> None:
        opened = legacy_context()
        self.context: Context = opened.__enter__()
        self.addCleanup(opened.__exit__, None, None, None)

    def pair(self) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
        """Connect two sockets."""
        ours, theirs = self.context.socket(zmq.PAIR), self.context.socket(zmq.PAIR)
        port = ours.bind_to_random_port("tcp://127.0.0.1")
        theirs.connect(f"tcp://127.0.0.1:{port}")
        for one in (ours, theirs):
            self.addCleanup(one.close, 0)
        return ours, theirs

    def test_small_replies_are_not_counted(self) -> None:
        """They are sent as they are."""
        backlog = Backlog()
        self.assertEqual((backlog.frame(b"a", b"x"), len(backlog)), (b"x", 0))

    def test_each_client_has_its_bound(self) -> None:
        """Who has not read is sent no more, which is nobody else's loss; one reply of any size always goes."""
        backlog = Backlog(of_client=3 * LARGE)
        kept = [backlog.frame(b"a", bytes(4 * LARGE))]
        self.assertIsNotNone(kept[0])
        self.assertIsNone(backlog.frame(b"a", bytes(LARGE)))
        self.assertIsNotNone(backlog.frame(b"b", bytes(LARGE)))

    def test_all_have_a_bound(self) -> None:
        """Many clients that do not read cannot take all memory."""
        backlog = Backlog(of_all=3 * LARGE)
        kept = [backlog.frame(b"%d" % number, bytes(LARGE)) for number in range(5)]
        self.assertEqual([frame is None for frame in kept], [False] * 3 + [True] * 2)
        self.assertEqual(len(backlog), 3 * LARGE)

    def test_what_is_read_is_forgotten(self) -> None:
        """Once ZeroMQ has let go of a reply there is room again, also where the client has gone."""
        backlog = Backlog(of_client=LARGE)
        for leaves in (False, True):
            ours, theirs = self.pair()
            frame = backlog.frame(b"a", bytes(LARGE))
            assert isinstance(frame, zmq.Frame)
            tracker = ours.send(frame, copy=False, track=True)
            if leaves:
                theirs.close(0)
                ours.close(0)
            else:
                self.assertEqual(len(theirs.recv()), LARGE)
            del frame
            assert tracker is not None
            tracker.wait(10)
        kept = backlog.frame(b"b", bytes(LARGE))
        self.assertIsNotNone(kept)
        self.assertEqual(len(backlog), LARGE)
