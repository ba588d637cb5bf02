"""Init's end of the kernel's terminal: a shell on a pseudo-terminal, what is typed into it, and what it prints.

Standard library only. Knows one shell and the frames about it; when there is to be one, and again after it has ended, the
agent decides. Nothing here blocks: what the shell does not read waits in a bounded buffer, and without credit the
pseudo-terminal is not read, so that whoever prints waits.
"""

import errno
import fcntl
import os
import shutil
import signal
import struct
import termios
from collections.abc import Mapping
from contextlib import suppress
from typing import NoReturn

from sorna.agent.runners import frames
from sorna.agent.runners.poller import NOTHING, READ, WRITE, Link, Poller
from sorna.agent.runners.processes import Processes
from sorna.agent.runners.repl_link import to_json

PIECE = 32 * 1024
# Most that is kept of what was typed and is not read; the rest is dropped, as a terminal does.
MOST_TYPED = 1024 * 1024
# How long a shell may take to end after its terminal was taken away.
GRACE = 1.0
_IUTF8 = 0o40000


class Terminal:
    """The terminal of a kernel. ``attach`` it to the link before anything else.

    :ivar pid: the shell, None when there is none.
    """

    def __init__(self, poller: Poller, processes: Processes) -> None:
        self._poller = poller
        self._processes = processes
        self._link: Link | None = None
        self._master: int | None = None
        self._events = NOTHING
        self._typed = bytearray()
        self._credit = 0
        self._leaving: set[int] = set()
        self.pid: int | None = None

    def attach(self, link: Link) -> None:
        """Say where the output goes."""
        self._link = link

    @property
    def pids(self) -> set[int]:
        """The shell as a set, for those who spare it."""
        return set() if self.pid is None else {self.pid}

    # What the agent asks for.

    def open(self, rows: int, columns: int, environ: Mapping[str, str]) -> None:
        """Start a shell in the current directory, or give the one that is there another size."""
        if self._master is not None:
            self.resize(rows, columns)
            return
        try:
            self._start(rows, columns, {**environ, "TERM": "xterm-256color"})
        except OSError as error:
            self._tell_closed(f"The shell cannot be started: {error.strerror}.")
        else:
            self._adjust()

    def _start(self, rows: int, columns: int, environ: Mapping[str, str]) -> None:
        master, slave = os.openpty()
        try:
            os.set_blocking(master, False)
            attributes = termios.tcgetattr(slave)
            attributes[0] |= _IUTF8  # so that the terminal erases whole characters
            termios.tcsetattr(slave, termios.TCSANOW, attributes)
            _set_size(master, rows, columns)
            stdio = (slave, slave, slave)
            pid = self._processes.start(_run_shell, stdio, (), environ, lambda _status: self._shell_ended(pid))
        except BaseException:
            os.close(master)
            raise
        finally:
            os.close(slave)
        self._master, self.pid = master, pid

    def resize(self, rows: int, columns: int) -> None:
        """Give the screen another size; Linux tells the program in the foreground."""
        if self._master is not None:
            _set_size(self._master, rows, columns)

    def type(self, data: bytes) -> None:
        """Type; without a shell it is lost."""
        if self._master is not None:
            self._typed += data[: max(MOST_TYPED - len(self._typed), 0)]
            self._write()
            self._adjust()

    def add_credit(self, amount: int) -> None:
        """Take note that the agent has room for so many more bytes."""
        self._credit += amount
        self.resume()

    def resume(self) -> None:
        """Go on after the link or the credit had run out."""
        self._advance()
        self._adjust()

    def stop(self) -> None:
        """Take the terminal away from the shell, which ends it and what it runs."""
        if self._master is None:
            return
        pid = self.pid
        self._close(stopped=True)
        if pid is not None:
            self._leaving.add(pid)
            self._poller.later(GRACE, lambda: self._kill(pid))

    def _kill(self, pid: int) -> None:
        if pid in self._leaving:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    # What the shell does.

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._write()
        self._advance()
        self._adjust()

    def _shell_ended(self, pid: int) -> None:
        self._leaving.discard(pid)
        if pid == self.pid:
            self.pid = None
            self._advance()
            self._adjust()

    def _write(self) -> None:
        while self._typed and self._master is not None:
            try:
                sent = os.write(self._master, self._typed[:PIECE])
            except BlockingIOError:
                return
            except OSError:  # nobody has the terminal open any more
                self._typed.clear()
                return
            del self._typed[:sent]

    def _may_send(self) -> bool:
        return self._credit > 0 and self._link is not None and not self._link.congested

    def _advance(self) -> None:
        """Carry a piece over, and notice the end behind the last one."""
        if self._master is None or self._link is None or not self._may_send():
            return
        pieces: list[bytes] = []
        room = min(PIECE, self._credit)
        ended = False
        while room > 0:
            try:
                piece = os.read(self._master, room)
            except BlockingIOError:
                ended = self.pid is None
                break
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                ended = self.pid is None
                if self.pid is not None:
                    # A shell that has let go of its terminal is of no use to anybody.
                    with suppress(ProcessLookupError):
                        os.kill(self.pid, signal.SIGKILL)
                break
            pieces.append(piece)
            room -= len(piece)
        if pieces:
            output = b"".join(pieces)
            self._credit -= len(output)
            self._link.send(frames.TERMINAL_OUTPUT, output)
        if ended:
            self._close()

    def _adjust(self) -> None:
        """Wait for what can be done now. A terminal that was hung up is always ready, so it is not waited for in vain."""
        if self._master is None:
            return
        events = (READ if self._may_send() else NOTHING) | (WRITE if self._typed else NOTHING)
        if events == self._events:
            return
        if self._events == NOTHING:
            self._poller.add(self._master, self._ready, events)
        elif events == NOTHING:
            self._poller.remove(self._master)
        else:
            self._poller.change(self._master, events)
        self._events = events

    def _close(self, *, stopped: bool = False) -> None:
        if self._master is not None:
            if self._events != NOTHING:
                self._poller.remove(self._master)
            self._events = NOTHING
            os.close(self._master)
            self._master = None
        self.pid = None
        self._typed.clear()
        self._tell_closed(None, stopped=stopped)

    def _tell_closed(self, error: str | None, *, stopped: bool = False) -> None:
        if self._link is not None:
            self._link.send(frames.TERMINAL_CLOSED, to_json({"error": error, "stopped": stopped}))


def _set_size(fd: int, rows: int, columns: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _run_shell() -> NoReturn:
    """Become the shell: interactive, and no login shell, because ``/etc/profile`` would replace the kernel's own PATH."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    shell = shutil.which("bash") or "/bin/sh"
    os.execv(shell, [os.path.basename(shell)])  # noqa: S606, PTH119 - the shell is what is wanted
