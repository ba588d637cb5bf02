"""A kernel's terminal as everybody sees it: who looks, and what a viewer may do; knows no transport and no process.

A kernel has one terminal: one shell in its sandbox, in the working directory, whatever its runtime. Several viewers share it.

Note [Viewers and credit]
=========================
Output reaches a viewer in order and whole, but only ``WINDOW`` bytes further than it has :meth:`~Terminal.consumed`. What is
beyond waits at the agent, within a bound of its own for each viewer; while any viewer is that far behind, the program that
prints waits in its ``write``, so nobody loses a byte and nothing grows. So that one viewer cannot hold up the others for
ever, one that is behind and hardly reads is cut off after a while, with a reason. Without viewers nothing is held up.
"""

from __future__ import annotations

from typing import Protocol

WINDOW = 128 * 1024
MOST_TYPED = 1024 * 1024
MOST_ROWS_OR_COLUMNS = 1000
ROWS, COLUMNS = 24, 80


class TerminalViewer(Protocol):
    """Whoever looks at a terminal. Nothing is called before the coroutine that opened it has returned."""

    def terminal_output(self, data: bytes) -> None:
        """Take raw bytes of the terminal, in order; a character may be cut in two. The first are the recent past."""
        ...

    def terminal_ended(self, reason: str) -> None:
        """Learn, once and last, that the kernel or the way to it is gone, or that this viewer was too slow."""
        ...


class Terminal(Protocol):
    """One viewer's hold on a kernel's terminal. Once it has ended or is closed, every method does nothing."""

    def write(self, data: bytes) -> None:
        """Type. Nothing at all counts as use of the kernel, too; what nobody reads is kept up to a mebibyte."""
        ...

    def resize(self, rows: int, columns: int) -> None:
        """Give the screen another size for all viewers; each number is brought within 1 and 1000."""
        ...

    def restart(self) -> None:
        """End the shell and what it runs, and start a fresh one."""
        ...

    def consumed(self, size: int) -> None:
        """Note that so many bytes of output were passed on; without it delivery stops after ``WINDOW`` bytes."""
        ...

    def close(self) -> None:
        """Look no more; the viewer is told nothing further. The shell goes on."""
        ...


def within_bounds(rows: int, columns: int) -> tuple[int, int]:
    """Bring a size of a screen within what terminals are made for."""
    return max(1, min(rows, MOST_ROWS_OR_COLUMNS)), max(1, min(columns, MOST_ROWS_OR_COLUMNS))
