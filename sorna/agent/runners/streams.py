"""The text streams of user code: real ``sys.stdout`` and ``sys.stderr`` over the pipes to init, kept in order.

Standard library only. Knows two descriptors and how to ask init to drain them; may not know runs.

Note [Streams in order]
~~~~~~~~~~~~~~~~~~~~~~~
Init reads two pipes and cannot see which was written first. So at most one of them may hold something that init has not
taken: before a stream writes, it asks whether the *other* pipe is empty (one ioctl), and if not, lets init drain it (one
round trip). The same happens before a process is started, so that its output comes after ours. Complete lines are
written at once. The beginning of a line stays in memory until the line is complete, the other stream is written, or a few
milliseconds have passed: a thread, started when first needed, sees to that.

Note [Last words]
~~~~~~~~~~~~~~~~~
What stdout holds when a run ends, and the echo of its last expression even if that is a line, does not go through the pipe
but with the news of the end, so that init and the agent are woken once for both. Init puts it behind what is in the pipes.
"""

import _thread
import io
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from sorna.agent.runners.interrupts import Interrupts
from sorna.agent.runners.linux import bytes_waiting
from sorna.agent.runners.repl_link import Order

_LARGE = 8192
_PATIENCE = 0.004

STARTS_A_PROCESS = frozenset({"subprocess.Popen", "os.system", "os.posix_spawn", "os.exec", "pty.spawn", "os.spawn"})


class PipeBuffer(io.BufferedIOBase):
    """The binary side of one stream, ``sys.stdout.buffer``."""

    def __init__(self, outlet: "Outlet", fd: int, spare: int, name: str) -> None:
        self._outlet = outlet
        self._fd = fd
        self.spare = spare
        self.name = name
        self.mode = "wb"
        self.pending = b""

    @property
    def raw(self) -> io.FileIO:
        """The descriptor as an unbuffered file."""
        return io.FileIO(self._fd, "wb", closefd=False)

    def writable(self) -> bool:
        """Tell that this is for writing."""
        return True

    def fileno(self) -> int:
        """Give the descriptor."""
        return self._fd

    def isatty(self) -> bool:
        """Tell that this is no terminal."""
        return False

    def write(self, content: Any) -> int:
        """Take bytes; complete lines are on their way when this returns."""
        if self.closed:
            raise ValueError("I/O operation on closed file.")
        if type(content) is not bytes:
            content = bytes(memoryview(content))
        return self._outlet.write(self, content)

    def flush(self) -> None:
        """Send what is held."""
        if not self.closed:
            self._outlet.drain(self)


class Flusher:
    """A thread that sends the beginning of a line when its end does not come."""

    def __init__(self, flush: Callable[[], None]) -> None:
        self._flush = flush
        self._reset()

    def _reset(self) -> None:
        self._gate = _thread.allocate_lock()
        self._gate.acquire()
        self._stop = _thread.allocate_lock()
        self._stop.acquire()
        self._gone = _thread.allocate_lock()
        self._running = False
        self._asleep = False
        self.armed = False

    def arm(self) -> bool:
        """Take note that the beginning of a line waits; cheap, because it happens on most prints.

        :returns: False when there can be no thread, because the kernel is full: then nobody will send it later.
        """
        if self.armed:
            return True
        self.armed = True
        if not self._running:
            self._running = True
            self._gone.acquire()
            try:
                _thread.start_new_thread(self._work, ())
            except RuntimeError:
                self._reset()
                return False
        elif self._asleep:
            self._asleep = False
            self._open_gate()
        return True

    def stop(self) -> None:
        """End the thread and wait for it, because a process with two threads is not well forked."""
        if not self._running:
            return
        self._stop.release()
        self._open_gate()
        self._gone.acquire()
        # The thread's last instructions are still to be done, and Linux counts it until then.
        deadline = time.monotonic() + 0.002
        while len(os.listdir("/proc/self/task")) > threading.active_count() and time.monotonic() < deadline:  # noqa: PTH208
            time.sleep(0)
        self._reset()

    def forget(self) -> None:
        """In a forked child: the thread was left behind."""
        self._reset()

    def _open_gate(self) -> None:
        with suppress(RuntimeError):
            self._gate.release()

    def _work(self) -> None:
        try:
            while True:
                self._asleep = True
                if not self.armed:
                    self._gate.acquire()
                self._asleep = False
                if self._stop.acquire(timeout=_PATIENCE):
                    return
                self.armed = False
                with suppress(Exception):
                    self._flush()
        finally:
            self._gone.release()


class Outlet:
    """Both streams of this process. See Note [Streams in order].

    :param spares: copies of the pipes' descriptors, for when user code closes the usual ones.
    """

    def __init__(self, order: Order, interrupts: Interrupts, spares: tuple[int, int]) -> None:
        self._order = order
        self._interrupts = interrupts
        self._forked = False
        self._spares = spares
        self._lock = threading.RLock()
        self._flusher = Flusher(self._flush_promptly)
        self._buffers = (
            PipeBuffer(self, 1, spares[0], "<stdout>"),
            PipeBuffer(self, 2, spares[1], "<stderr>"),
        )
        self._texts = [_text(self._buffers[0], "surrogateescape"), _text(self._buffers[1], "backslashreplace")]

    @property
    def stdout(self) -> io.TextIOWrapper:
        """Our stdout, whatever user code has made of ``sys.stdout``."""
        return self._texts[0]

    @property
    def stderr(self) -> io.TextIOWrapper:
        """Our stderr."""
        return self._texts[1]

    def install(self) -> None:
        """Make them the streams of this process and watch for processes being started."""
        sys.stdout = sys.__stdout__ = self._texts[0]  # type: ignore[misc]  # a new process has new originals
        sys.stderr = sys.__stderr__ = self._texts[1]  # type: ignore[misc]
        sys.addaudithook(self._audit)
        os.register_at_fork(
            before=self._before_fork, after_in_parent=self._after_fork, after_in_child=self._in_forked_child
        )

    def mend(self) -> None:
        """Before a run: open again what the last one closed."""
        for fd, spare in zip((1, 2), self._spares, strict=True):
            try:
                os.fstat(fd)
            except OSError:
                os.dup2(spare, fd, inheritable=True)
        for number, (name, errors) in enumerate((("stdout", "surrogateescape"), ("stderr", "backslashreplace"))):
            old = self._texts[number]
            if not _usable(old, self._buffers[number]):
                buffer = PipeBuffer(self, number + 1, self._spares[number], f"<{name}>")
                pair = list(self._buffers)
                pair[number] = buffer
                self._buffers = (pair[0], pair[1])
                self._texts[number] = _text(buffer, errors)
                if getattr(sys, name) is old:
                    setattr(sys, name, self._texts[number])

    def flush_all(self) -> None:
        """Send everything, also what user code's own streams hold."""
        for stream in (sys.stdout, sys.stderr, *self._texts):
            with suppress(Exception):
                stream.flush()

    def write(self, buffer: PipeBuffer, content: bytes) -> int:
        """Take bytes for one stream, all of them. Called twice for each line that is printed, so it does little."""
        with self._lock:
            other = self._buffers[buffer is self._buffers[0]]
            if other.pending and other is not buffer:
                self._drain(other)
            pending = buffer.pending + content if buffer.pending else content
            if b"\n" in content or len(pending) > _LARGE or not (self._flusher.armed or self._flusher.arm()):
                # Taken out first: when an interrupt ends the write, the rest is lost and nothing is sent twice.
                buffer.pending = b""
                self._put(buffer, pending)
            else:
                buffer.pending = pending
        return len(content)

    def hold(self, text: str) -> bool:
        """Keep ASCII text for stdout although it may be a line, because the run is about to end; see Note [Last words].

        :returns: False when it must be written like all other text.
        """
        with self._lock:
            if not self.is_quiet or len(text) > _LARGE or self._texts[0].closed:
                return False
            self._buffers[0].pending += text.encode("ascii")
        return True

    @property
    def is_quiet(self) -> bool:
        """Whether user code has left the streams as they were and nothing but a little of stdout is held."""
        stdout, stderr = self._buffers
        ours = sys.stdout is self._texts[0] and sys.stderr is self._texts[1]
        return ours and not stderr.pending and len(stdout.pending) <= _LARGE

    def last_words(self) -> bytes:
        """Give what stdout holds, which nobody else sends then."""
        stdout = self._buffers[0]
        if not stdout.pending:
            return b""
        with self._lock:
            words, stdout.pending = stdout.pending, b""
        return words

    def drain(self, buffer: PipeBuffer) -> None:
        """Send what a stream holds."""
        if buffer.pending:
            with self._lock:
                self._drain(buffer)

    def settle(self) -> None:
        """Send everything and let init take it, so that what anybody else prints now comes later."""
        with self._lock:
            for buffer in self._buffers:
                self._drain(buffer)
            if not self._forked and any(bytes_waiting(spare) for spare in self._spares):
                self._order.settle()

    def _drain(self, buffer: PipeBuffer) -> None:
        if buffer.pending:
            content, buffer.pending = buffer.pending, b""
            self._put(buffer, content)

    def _put(self, buffer: PipeBuffer, content: bytes) -> None:
        if not self._forked:
            for one in self._buffers:
                if one is not buffer and bytes_waiting(one.spare):
                    self._order.settle()
        fd = buffer.fileno()
        try:
            written = os.write(fd, content)
        except BlockingIOError:
            written = 0
        if written < len(content):
            self._put_rest(fd, memoryview(content)[written:])

    def _put_rest(self, fd: int, view: memoryview) -> None:
        while view:
            try:
                view = view[os.write(fd, view) :]
            except BlockingIOError:
                # A program that we share the pipe with made it non-blocking for all of us.
                _wait_writable(fd)

    def _flush_promptly(self) -> None:
        if self._lock.acquire(blocking=False):
            try:
                for buffer in self._buffers:
                    self._drain(buffer)
            finally:
                self._lock.release()

    def _audit(self, event: str, _arguments: Any) -> None:
        if event in STARTS_A_PROCESS:
            with suppress(OSError):
                self.settle()

    def _before_fork(self) -> None:
        with self._interrupts.held_back(), suppress(OSError):
            self._flusher.stop()
            self.settle()

    def _after_fork(self) -> None:
        return None

    def _in_forked_child(self) -> None:
        self._forked = True
        self._lock = threading.RLock()
        self._flusher.forget()
        for spare in self._spares:
            with suppress(OSError):
                os.close(spare)


def _usable(stream: io.TextIOWrapper, buffer: PipeBuffer) -> bool:
    """Whether nobody has closed or detached a stream."""
    try:
        return not stream.closed and stream.buffer is buffer and not buffer.closed
    except ValueError:
        return False


def _text(buffer: PipeBuffer, errors: str) -> io.TextIOWrapper:
    stream = io.TextIOWrapper(buffer, encoding="utf-8", errors=errors, newline="\n", write_through=True)
    vars(stream)["mode"] = "w"
    return stream


def _wait_writable(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    poll.poll()
