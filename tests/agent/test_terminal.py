"""A kernel's terminal in the agent: viewers, credit, the past, and when there is a shell."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from sorna.agent import terminal as module
from sorna.agent.runners import frames
from sorna.agent.runners.frames import FrameError
from sorna.agent.terminal import BACKLOG, IN_FLIGHT, PATIENCE, SCROLLBACK, SharedTerminal, recent
from sorna.errors import KernelNotFound, Unavailable
from sorna.model.terminal import WINDOW, Terminal
from sorna.testing.terminals import MemoryViewer
from sorna.testing.unit import UnitTestCase
from tests.agent.fakes import KernelTestCase

CLOSED = b'{"error": null, "stopped": false}'
STOPPED = b'{"error": null, "stopped": true}'
OPEN = (frames.TERMINAL_OPEN, {"rows": 24, "columns": 80})


class TerminalTestCase(UnitTestCase):
    """A terminal on a clock, whose init is this test."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.sent: list[tuple[int, Any]] = []
        self.credit = 0
        self.touches = 0
        self.shared = SharedTerminal(self.clock, self.send, self.touch)

    def send(self, kind: int, content: Mapping[str, Any] | bytes) -> None:
        if kind == frames.TERMINAL_CREDIT:
            assert isinstance(content, bytes)
            self.credit += int.from_bytes(content, "big")
        else:
            self.sent.append((kind, content))

    def touch(self) -> None:
        self.touches += 1

    def look(self, rows: int = 24, columns: int = 80) -> tuple[Terminal, MemoryViewer]:
        viewer = MemoryViewer()
        seat = self.shared.open(viewer, rows, columns)
        self.assertEqual(viewer.seen, b"")
        self.clock.advance(0)
        return seat, viewer

    def print(self, data: bytes) -> None:
        """Print, as far as there is credit; there must be enough."""
        self.assertLessEqual(len(data), self.credit)
        self.credit -= len(data)
        self.shared.output_received(data)

    def print_all(self) -> int:
        """Print until there is no credit; tell how much that was."""
        printed = 0
        while self.credit:
            printed += self.credit
            self.print(b"x" * self.credit)
        return printed


class ViewerTests(TerminalTestCase):
    """Who sees what."""

    def test_viewers_share_one_shell(self) -> None:
        """The first viewer starts the shell, the second resizes it; both see the same, the second the past, too."""
        _, first = self.look()
        self.print(b"$ ls\r\n")
        _, second = self.look(30, 100)
        self.print(b"a.txt\r\n")
        self.assertEqual((first.seen, second.seen), (b"$ ls\r\na.txt\r\n",) * 2)
        self.assertEqual(self.sent, [OPEN, (frames.TERMINAL_RESIZE, {"rows": 30, "columns": 100})])

    def test_what_viewers_do(self) -> None:
        """Keys go to the shell as they are, sizes within bounds; all of it counts as use, also typing nothing."""
        seat, _ = self.look()
        before = self.touches
        seat.write(b"\x03\xff")
        seat.write(b"")
        seat.resize(0, 5000)
        seat.restart()
        self.assertEqual(
            self.sent[1:],
            [
                (frames.TERMINAL_INPUT, b"\x03\xff"),
                (frames.TERMINAL_RESIZE, {"rows": 1, "columns": 1000}),
                (frames.TERMINAL_STOP, {}),
            ],
        )
        self.assertEqual(self.touches - before, 4)

    def test_closed_seats_do_nothing(self) -> None:
        """Who has closed is neither told nor obeyed, even when it closed before it saw anything."""
        seat, viewer = self.look()
        seat.close()
        hasty = MemoryViewer()
        self.shared.open(hasty, 24, 80).close()
        sent = list(self.sent)
        seat.write(b"x")
        seat.resize(5, 5)
        seat.restart()
        seat.consumed(5)
        seat.close()
        self.print(b"x")
        self.shared.end("gone")
        self.clock.advance(1)
        self.assertEqual(self.sent, sent)
        self.assertEqual((viewer.seen, viewer.ends, hasty.seen, hasty.ends), (b"", [], b"", []))

    def test_a_viewer_that_leaves_while_it_is_told(self) -> None:
        """A viewer may close any seat from within what it is told."""
        seats: list[Terminal] = []

        class Leaver(MemoryViewer):
            def terminal_output(self, data: bytes) -> None:
                super().terminal_output(data)
                for seat in seats:
                    seat.close()

        viewers = [Leaver(), Leaver()]
        seats += [self.shared.open(viewer, 24, 80) for viewer in viewers]
        self.clock.advance(0)
        self.print(b"x")
        self.print(b"y")
        self.assertEqual([bytes(viewer.seen) for viewer in viewers], [b"x", b""])

    def test_a_viewer_that_reads_at_once(self) -> None:
        """Credit may be given back from within what it is for."""
        seats: list[Terminal] = []

        class Reader(MemoryViewer):
            def terminal_output(self, data: bytes) -> None:
                super().terminal_output(data)
                seats[0].consumed(len(data))

        viewer = Reader()
        seats.append(self.shared.open(viewer, 24, 80))
        self.clock.advance(0)
        for _ in range(100):
            self.print(b"x" * IN_FLIGHT)
        self.assertEqual(len(viewer.seen), 100 * IN_FLIGHT)

    def test_too_many(self) -> None:
        """There is a bound to viewers, and no look at what has ended."""
        for _ in range(module.MOST_VIEWERS):
            self.look()
        with self.assertRaises(Unavailable):
            self.look()
        self.shared.end("gone")
        with self.assertRaises(Unavailable):
            self.look()

    def test_end(self) -> None:
        """Each viewer gets what it has room for, and then the reason, once."""
        _, viewer = self.look()
        self.print_all()
        self.shared.end("gone")
        self.shared.end("gone again")
        self.assertEqual((len(viewer.seen), viewer.ends), (WINDOW, ["gone"]))
        self.assertEqual(self.clock.getDelayedCalls(), [])


class CreditTests(TerminalTestCase):
    """How the slowest viewer is waited for, and how long."""

    def test_a_slow_viewer_stops_the_program_and_loses_nothing(self) -> None:
        """What is printed for a viewer that does not read is bounded; when it reads, everything comes in order."""
        slow, slow_viewer = self.look()
        _, other = self.look()
        printed = self.print_all()
        self.assertEqual(printed, WINDOW + BACKLOG)
        self.assertEqual((len(slow_viewer.seen), len(other.seen)), (WINDOW, WINDOW))
        content = bytearray(b"x" * printed)
        for number in range(50):
            slow.consumed(40_000)
            if self.credit > 7:
                self.print(b"%7d" % number)
                content += b"%7d" % number
        self.assertEqual(slow_viewer.seen, content)

    def test_nobody_is_waited_for(self) -> None:
        """Without viewers the shell prints on, and the past stays bounded."""
        seat, _ = self.look()
        seat.close()
        for _ in range(100):
            self.print(b"y" * IN_FLIGHT)
        _, viewer = self.look()
        self.assertEqual(len(viewer.seen), SCROLLBACK)

    def test_who_reads_nothing_is_cut_off(self) -> None:
        """A viewer that is behind and does not read is told why, and the others get on."""
        _, dead = self.look()
        alive, viewer = self.look()
        self.print_all()
        self.clock.advance(PATIENCE - 1)
        alive.consumed(WINDOW)
        self.assertEqual(dead.ends, [])
        self.clock.advance(1.5)
        self.assertEqual(dead.ends, ["This viewer read nothing for 30 seconds."])
        alive.consumed(WINDOW)
        alive.consumed(WINDOW)
        self.print(b"on")
        self.assertEqual(viewer.seen[-2:], b"on")
        self.clock.advance(10 * PATIENCE)
        self.assertEqual(viewer.ends, [])

    def test_who_reads_slowly_is_borne_with(self) -> None:
        """A viewer that reads enough in time stays, however far behind."""
        seat, viewer = self.look()
        for _ in range(20):
            self.print_all()
            self.clock.advance(PATIENCE - 1)
            seat.consumed(module.LEAST)
        self.assertEqual(viewer.ends, [])
        self.clock.pump([PATIENCE, PATIENCE])
        self.assertEqual(len(viewer.ends), 1)

    def test_output_without_credit(self) -> None:
        """Init may not print more than it was allowed to."""
        with self.assertRaises(FrameError):
            self.shared.output_received(b"x")
        self.look()
        with self.assertRaises(FrameError):
            self.shared.output_received(b"x" * (IN_FLIGHT + 1))

    def test_credit_that_nobody_has(self) -> None:
        """A viewer that claims to have read what it was never given gets no more than the window."""
        seat, viewer = self.look()
        seat.consumed(2**60)
        seat.consumed(-5)
        self.print_all()
        self.assertEqual(len(viewer.seen), WINDOW)


class ShellTests(TerminalTestCase):
    """When there is a shell."""

    def test_exit(self) -> None:
        """A shell that ends is started again at once, at the last size, and everybody is told."""
        seat, viewer = self.look()
        seat.resize(50, 132)
        self.clock.advance(5)
        self.shared.closed_received(CLOSED)
        self.assertEqual(self.sent[-1], (frames.TERMINAL_OPEN, {"rows": 50, "columns": 132}))
        self.assertEqual(viewer.seen, b"Restarting the shell...\r\n")

    def test_shells_that_die_at_once(self) -> None:
        """A shell that does not live is started after longer and longer pauses, and says why it could not be started."""
        _, viewer = self.look()
        pauses = []
        for _ in range(9):
            self.sent.clear()
            self.shared.closed_received(b'{"error": "No more processes."}')
            began = self.clock.seconds()
            while not self.sent:
                self.clock.advance(0.25)
            pauses.append(self.clock.seconds() - began)
        self.assertEqual(pauses, [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0])
        self.assertEqual(viewer.seen, b"No more processes.\r\nRestarting the shell...\r\n" * 9)
        self.clock.advance(5)
        self.shared.closed_received(CLOSED)
        self.shared.closed_received(CLOSED)
        self.sent.clear()
        self.clock.advance(0.5)
        self.assertEqual(self.sent, [OPEN])

    def test_restart_is_asked_for(self) -> None:
        """Who asks for a fresh shell gets it without a pause, also when the next one is being waited for."""
        seat, _ = self.look()
        seat.restart()
        self.shared.closed_received(STOPPED)
        self.assertEqual(self.sent, [OPEN, (frames.TERMINAL_STOP, {}), OPEN])
        self.shared.closed_received(CLOSED)
        self.assertEqual(len(self.sent), 3)
        seat.restart()
        self.assertEqual(len(self.sent), 4)
        self.clock.advance(100)
        self.assertEqual(len(self.sent), 4)

    def test_no_shell_for_nobody(self) -> None:
        """A shell that ends while nobody looks is started by the next viewer, who sees what it said."""
        seat, _ = self.look()
        self.print(b"bye\r\n")
        seat.close()
        self.shared.closed_received(CLOSED)
        self.clock.advance(100)
        self.assertEqual(self.sent, [OPEN])
        _, viewer = self.look()
        self.assertEqual((self.sent, viewer.seen), ([OPEN, OPEN], b"bye\r\n"))

    def test_leaving_while_the_next_shell_is_waited_for(self) -> None:
        """When nobody is left after the pause, no shell starts; the end of the kernel ends the pause."""
        seat, _ = self.look()
        self.shared.closed_received(CLOSED)
        seat.close()
        self.clock.advance(1)
        self.assertEqual(self.sent, [OPEN])
        self.look()
        self.shared.closed_received(CLOSED)
        self.shared.end("gone")
        self.assertEqual(self.clock.getDelayedCalls(), [])


class RecentTests(UnitTestCase):
    """Where the past begins."""

    def test_beginnings(self) -> None:
        """A line, an escape sequence or a character, whichever comes first; and short texts whole."""
        for content, most, expected in (
            (b"abc", 3, b"abc"),
            (b"one\ntwo\nthree", 8, b"three"),
            (b"aaaa\x1b[1mb\nc", 8, b"\x1b[1mb\nc"),
            ("\u6f22\u6f22".encode(), 5, "\u6f22".encode()),
            (b"\x80" * 10, 5, b"\x80" * 2),
        ):
            self.assertEqual(recent(content, most), expected)

    @given(st.binary(max_size=300), st.integers(1, 100))
    def test_any(self, content: bytes, most: int) -> None:
        """It is always an end of the text, and never longer than asked."""
        piece = recent(content, most)
        self.assertLessEqual(len(piece), max(most, len(content) if len(content) <= most else 0))
        self.assertTrue(content.endswith(piece))


class KernelTests(KernelTestCase):
    """The terminal as a part of its kernel."""

    def open(self, viewer: MemoryViewer) -> Terminal:
        return self.successResultOf(self.start(self.kernels.open_terminal(self.kernel_id, viewer, 24, 80)))

    def test_whole_way(self) -> None:
        """Frames go both ways, and the terminal's output is in no run and no log."""
        init = self.create()
        viewer = MemoryViewer()
        seat = self.open(viewer)
        seat.write(b"ls\r")
        init.say(frames.TERMINAL_OUTPUT, b"a.txt")
        self.advance(0)
        self.assertEqual(viewer.seen, b"a.txt")
        self.assertEqual([payload for kind, payload in init.received if kind == frames.TERMINAL_INPUT], [b"ls\r"])
        self.assertEqual(self.successResultOf(self.start(self.kernels.logs(self.kernel_id))), "")

    def test_typing_is_use(self) -> None:
        """A kernel whose terminal is typed into is not idle; one that is only looked at is."""
        self.create(idle_timeout=10.0)
        viewer = MemoryViewer()
        seat = self.open(viewer)
        for _ in range(3):
            self.advance(9)
            seat.write(b"")
        self.assertEqual(viewer.ends, [])
        self.advance(10.5)
        self.assertEqual(viewer.ends, ["The kernel has ended (idle-timeout)."])

    def test_destroyed(self) -> None:
        """Viewers of a destroyed kernel are told why, and nobody may look at it."""
        self.create()
        viewer = MemoryViewer()
        self.open(viewer)
        self.successResultOf(self.start(self.kernels.destroy_kernel(self.kernel_id, "user-requested")))
        self.assertEqual(viewer.ends, ["The kernel has ended (user-requested)."])
        self.failureResultOf(self.start(self.kernels.open_terminal(self.kernel_id, viewer, 24, 80)), KernelNotFound)
        self.failureResultOf(self.start(self.kernels.open_terminal(uuid.UUID(int=99), viewer, 24, 80)), KernelNotFound)
