"""A terminal without a shell, for tests of the doors and of the link: it prints what is typed, and what a test says."""

from __future__ import annotations

from attrs import define, field
from twisted.internet.interfaces import IReactorTime

from sorna.model.terminal import WINDOW, TerminalViewer, within_bounds


@define(eq=False)
class MemoryViewer:
    """A viewer that keeps what it is told."""

    seen: bytearray = field(factory=bytearray)
    ends: list[str] = field(factory=list)

    def terminal_output(self, data: bytes) -> None:
        """Keep output."""
        self.seen += data

    def terminal_ended(self, reason: str) -> None:
        """Keep the reason."""
        self.ends.append(reason)


@define(eq=False)
class MemoryTerminal:
    """One kernel's terminal.

    :ivar clock: shows a new viewer the screen in the next turn; without one it sees that with what comes next.
    :ivar screen: everything that was ever printed.
    :ivar size: rows and columns.
    """

    clock: IReactorTime | None = None
    screen: bytearray = field(factory=bytearray)
    typed: bytearray = field(factory=bytearray)
    writes: int = 0
    size: tuple[int, int] = (24, 80)
    restarts: int = 0
    seats: list[MemorySeat] = field(factory=list)

    def open(self, viewer: TerminalViewer, rows: int, columns: int) -> MemorySeat:
        """Give one more viewer a seat."""
        seat = MemorySeat(self, viewer)
        self.seats.append(seat)
        seat.resize(rows, columns)
        if self.clock is not None:
            self.clock.callLater(0, seat.deliver)
        return seat

    def show(self, data: bytes) -> None:
        """Print."""
        self.screen += data
        for seat in list(self.seats):
            seat.deliver()

    def end(self, reason: str) -> None:
        """Let the kernel be gone."""
        for seat in list(self.seats):
            seat.close()
            seat.viewer.terminal_ended(reason)


@define(eq=False)
class MemorySeat:
    """An implementation of :class:`sorna.model.terminal.Terminal`."""

    terminal: MemoryTerminal
    viewer: TerminalViewer
    shown: int = 0
    allowed: int = WINDOW

    @property
    def is_open(self) -> bool:
        """Whether the viewer still looks."""
        return self in self.terminal.seats

    def write(self, data: bytes) -> None:
        """Type; it is printed again."""
        if self.is_open:
            self.terminal.writes += 1
            self.terminal.typed += data
            self.terminal.show(data)

    def resize(self, rows: int, columns: int) -> None:
        """Note the size."""
        if self.is_open:
            self.terminal.size = within_bounds(rows, columns)

    def restart(self) -> None:
        """Count one more restart."""
        if self.is_open:
            self.terminal.restarts += 1

    def consumed(self, size: int) -> None:
        """Show more."""
        self.allowed += size
        self.deliver()

    def close(self) -> None:
        """Leave."""
        if self.is_open:
            self.terminal.seats.remove(self)

    def deliver(self) -> None:
        """Show the viewer what it has not seen, as far as it reads."""
        piece = bytes(self.terminal.screen[self.shown : self.shown + max(self.allowed, 0)])
        if piece and self.is_open:
            self.shown += len(piece)
            self.allowed -= len(piece)
            self.viewer.terminal_output(piece)
