"""One kernel's terminal in this agent: one shell, its recent past, and everybody who looks.

Knows the frames about terminals and a clock, no kernel and no connection. Init keeps the shell; whether there is one is
decided here: it starts when somebody looks, and again after it has ended as long as somebody still does.

Note [The slowest viewer]
~~~~~~~~~~~~~~~~~~~~~~~~~
Each viewer has a backlog: what was printed and its window (``sorna/model/terminal.py``) has no room for. Init gets credit
only as far as the longest backlog leaves room below ``BACKLOG``, so nothing grows, nobody loses a byte, and while somebody
is that far behind, the program that prints waits. That somebody has ``PATIENCE`` to read at least ``LEAST`` bytes, and is
cut off otherwise, so that a viewer that died without a word holds the others up only once. With no viewer at all output goes
on into the scrollback, which forgets its beginning. The scrollback is what was printed, not what the screen shows: a program
that draws the whole screen shows itself to a new viewer when it draws next, and what it once asked the viewer's terminal is
asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from sorna.agent.deadlines import cancel
from sorna.agent.output_log import KIB, CreditWindow
from sorna.agent.run import read_object
from sorna.agent.runners import frames
from sorna.agent.runners.frames import FrameError
from sorna.errors import Unavailable
from sorna.model.terminal import COLUMNS, MOST_TYPED, ROWS, WINDOW, Terminal, TerminalViewer, within_bounds

SCROLLBACK = 64 * KIB
BACKLOG = 256 * KIB
IN_FLIGHT = 64 * KIB
MOST_VIEWERS = 64
PATIENCE = 30.0
LEAST = 16 * KIB
# A shell that ends by itself so soon after its start is started again only after a while, and each time later; what is
# typed until then is lost.
SHORT_LIFE = 1.0
FIRST_DELAY, LAST_DELAY = 0.5, 30.0
RESTARTING = b"Restarting the shell...\r\n"
# How far into the scrollback a clean beginning is looked for.
_LOOK = 4 * KIB


def recent(content: bytes | bytearray, most: int = SCROLLBACK) -> bytes:
    """Cut text for a terminal to its last bytes, beginning with a line or an escape sequence or at least a character."""
    if len(content) <= most:
        return bytes(content)
    piece = bytes(content[-most:])
    line, escape = piece.find(b"\n", 0, _LOOK), piece.find(b"\x1b", 0, _LOOK)
    if line >= 0 and (escape < 0 or line < escape):
        return piece[line + 1 :]
    if escape >= 0:
        return piece[escape:]
    start = 0
    while start < min(3, len(piece)) and piece[start] & 0xC0 == 0x80:
        start += 1
    return piece[start:]


class SharedTerminal:
    """A kernel's terminal.

    :param send: sends a frame to init: its kind, and a map for JSON or raw bytes.
    :param touch: is called whenever a viewer does something, which counts as use of the kernel.
    """

    def __init__(
        self, clock: IReactorTime, send: Callable[[int, Mapping[str, Any] | bytes], None], touch: Callable[[], None]
    ) -> None:
        self._send = send
        self._touch = touch
        self._seats: list[_Seat] = []
        self._scrollback = bytearray()
        self._credit = CreditWindow(IN_FLIGHT)
        self._size = (ROWS, COLUMNS)
        self._has_shell = False
        self._started_at = 0.0
        self._delay = 0.0
        self._starting: IDelayedCall | None = None
        self._over = False
        self.clock = clock

    # What viewers do.

    def open(self, viewer: TerminalViewer, rows: int, columns: int) -> Terminal:
        """Give a viewer a seat; the first of all starts the shell.

        :raises Unavailable: too many look already, or the kernel has ended.
        """
        if self._over or len(self._seats) >= MOST_VIEWERS:
            raise Unavailable("The terminal has too many viewers, or has ended.")
        seat = _Seat(self, viewer, recent(self._scrollback))
        self._seats.append(seat)
        self._touch()
        self._size = within_bounds(rows, columns)
        if self._has_shell:
            self._send(frames.TERMINAL_RESIZE, self._measures())
        elif self._starting is None:
            self._start()
        self.room_changed()
        return seat

    def write(self, data: bytes) -> None:
        """Type."""
        self._touch()
        if data:
            self._send(frames.TERMINAL_INPUT, data[:MOST_TYPED])

    def resize(self, rows: int, columns: int) -> None:
        """Change the size; the last one counts."""
        self._touch()
        self._size = within_bounds(rows, columns)
        self._send(frames.TERMINAL_RESIZE, self._measures())

    def restart(self) -> None:
        """End the shell, or start one at once when the next is waited for."""
        self._touch()
        if self._has_shell:
            self._send(frames.TERMINAL_STOP, {})
        else:
            self._start()

    def leave(self, seat: _Seat) -> None:
        """Take a seat away."""
        self._seats.remove(seat)
        self.room_changed()

    def is_seated(self, seat: _Seat) -> bool:
        """Whether a viewer still looks."""
        return seat in self._seats

    def room_changed(self) -> None:
        """Grant credit if every viewer has room."""
        room = BACKLOG - max((seat.behind for seat in self._seats), default=0)
        amount = self._credit.grant(room)
        if amount:
            self._send(frames.TERMINAL_CREDIT, amount.to_bytes(4, "big"))

    # What init tells.

    def output_received(self, payload: bytes) -> None:
        """Take what the shell printed. :raises FrameError: nobody allowed so much."""
        if len(payload) > self._credit.outstanding:
            raise FrameError("a terminal's output without credit")
        self._credit.spend(len(payload))
        self._show(payload)
        self.room_changed()

    def closed_received(self, payload: bytes) -> None:
        """Take it that there is no shell any more, and start another one if somebody looks."""
        frame = read_object(payload)
        error = frame.get("error")
        self._has_shell = False
        if isinstance(error, str):
            self._show(f"{error[:1000]}\r\n".encode("utf-8", "replace"))
        if not self._seats:
            return
        self._show(RESTARTING)
        lived = self.clock.seconds() - self._started_at
        if frame.get("stopped") is True or lived >= SHORT_LIFE:
            self._delay = 0.0
            self._start()
        else:
            self._delay = min(max(2 * self._delay, FIRST_DELAY), LAST_DELAY)
            self._starting = self.clock.callLater(self._delay, self._start_again)

    def carry(self) -> Mapping[str, Any]:
        """Give what another can go on with; viewers are not carried, they look again."""
        return {
            "scrollback": bytes(self._scrollback),
            "credit": self._credit.outstanding,
            "size": list(self._size),
            "has_shell": self._has_shell,
            "age": self.clock.seconds() - self._started_at,
        }

    def take_over(self, state: Mapping[str, Any]) -> None:
        """Go on where another has stopped."""
        self._scrollback += state["scrollback"]
        self._credit.outstanding = state["credit"]
        self._size = state["size"][0], state["size"][1]
        self._has_shell = state["has_shell"]
        self._started_at = self.clock.seconds() - state["age"]
        self.room_changed()

    def end(self, reason: str) -> None:
        """Tell every viewer that the kernel is gone; nobody may look any more."""
        self._over = True
        cancel(self._starting)
        for seat in list(self._seats):
            seat.end(reason)

    def _show(self, data: bytes) -> None:
        self._scrollback += data
        if len(self._scrollback) > 2 * SCROLLBACK:
            del self._scrollback[:-SCROLLBACK]
        for seat in list(self._seats):
            seat.give(data)

    def _start_again(self) -> None:
        self._starting = None
        if self._seats:
            self._start()

    def _start(self) -> None:
        cancel(self._starting)
        self._starting = None
        self._has_shell = True
        self._started_at = self.clock.seconds()
        self._send(frames.TERMINAL_OPEN, self._measures())

    def _measures(self) -> dict[str, Any]:
        return {"rows": self._size[0], "columns": self._size[1]}


class _Seat:
    """One viewer; implements :class:`~sorna.model.terminal.Terminal`."""

    def __init__(self, shared: SharedTerminal, viewer: TerminalViewer, past: bytes) -> None:
        self._shared = shared
        self._viewer = viewer
        self._backlog = bytearray(past)
        self._allowed = WINDOW
        self._read = 0
        self._patience: IDelayedCall | None = None
        # The first output comes after the call that opened this has returned.
        self._delivering = True
        self._first = shared.clock.callLater(0, self._begin)

    @property
    def behind(self) -> int:
        """How many bytes wait for this viewer."""
        return len(self._backlog)

    def write(self, data: bytes) -> None:
        """See ``Terminal``."""
        if self._shared.is_seated(self):
            self._shared.write(data)

    def resize(self, rows: int, columns: int) -> None:
        """See ``Terminal``."""
        if self._shared.is_seated(self):
            self._shared.resize(rows, columns)

    def restart(self) -> None:
        """See ``Terminal``."""
        if self._shared.is_seated(self):
            self._shared.restart()

    def consumed(self, size: int) -> None:
        """See ``Terminal``; more than was given is not believed."""
        if self._shared.is_seated(self):
            self._allowed = min(self._allowed + max(size, 0), WINDOW)
            self._read += size
            self._deliver()
            self._shared.room_changed()

    def close(self) -> None:
        """See ``Terminal``."""
        if self._shared.is_seated(self):
            cancel(self._first)
            cancel(self._patience)
            self._backlog.clear()
            self._shared.leave(self)

    def give(self, data: bytes) -> None:
        """Take output for the viewer, unless that has just left."""
        if self._shared.is_seated(self):
            self._backlog += data
            self._deliver()

    def end(self, reason: str) -> None:
        """Say the last word, after what the viewer still has room for."""
        self._delivering = False
        self._deliver()
        if self._shared.is_seated(self):
            self.close()
            self._viewer.terminal_ended(reason)

    def _begin(self) -> None:
        self._delivering = False
        self._deliver()
        self._shared.room_changed()

    def _deliver(self) -> None:
        if self._delivering:  # a viewer may give credit back while it is given output
            return
        self._delivering = True
        while self._backlog and self._allowed > 0:
            piece = bytes(self._backlog[: self._allowed])
            del self._backlog[: len(piece)]
            self._allowed -= len(piece)
            self._viewer.terminal_output(piece)
        self._delivering = False
        if not self._backlog:
            cancel(self._patience)
            self._patience = None
        elif self._patience is None:
            self._be_patient()

    def _be_patient(self) -> None:
        self._read = 0
        self._patience = self._shared.clock.callLater(PATIENCE, self._look)

    def _look(self) -> None:
        self._patience = None
        if self._read < LEAST:
            self.close()
            self._viewer.terminal_ended(f"This viewer read nothing for {PATIENCE:g} seconds.")
        else:
            self._be_patient()
