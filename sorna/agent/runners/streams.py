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

Note [Collected lines]
~~~~~~~~~~~~~~~~~~~~~~
To encode each piece that is printed, look at the other pipe and write takes ten times as long as ``print`` itself. So while a
stream is written to many times within a few milliseconds, its text collects the pieces and hands over up to ``_CHUNK`` at a time.
What is collected goes out when there is as much, when the thread looks after a few milliseconds, before the other stream or the
bytes below the text are written, before a process is started, and whenever the stream is flushed, which the end of a run, a
question for input and a figure do. When little came between two looks, lines are written at once again.

Pieces are put into one queue by whichever thread prints, and taken out under the lock alone, so that nothing overtakes. (The
collecting that Python's own text streams can do loses that with several threads, and with a signal's handler that prints, up to
3.12.3, its memory.) ``os._exit`` sends what is collected. What nobody here can see coming is as with every Python: an interpreter that
crashes or is killed in a hurry loses it, and what a program writes to the descriptor itself overtakes it.
"""

import io
import os
import select
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from itertools import repeat
from typing import Any

from sorna.agent.runners.flusher import PATIENCE, Flusher
from sorna.agent.runners.interrupts import Interrupts
from sorna.agent.runners.linux import bytes_waiting
from sorna.agent.runners.repl_link import Order

_LARGE = 8192
# So many writes within the patience are a burst, and fewer bytes than the second its end; see Note [Collected lines].
_BURST = 64
_LITTLE = 4096
_LONGEST_PAUSE = 0.064
_CHUNK = 32 * 1024
# What is handed over at a time, with a last piece that is about as large.
_ROOM = 2 * _CHUNK

_write = io.TextIOWrapper.write

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
        # Exact about what was written when an exception, which a signal may raise anywhere, ends the writing.
        self._out = io.BufferedWriter(self.raw, _ROOM)
        self.unfinished = False

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

    def keep(self, content: bytes) -> None:
        """Take bytes that the next :meth:`put` writes; at most ``_ROOM`` of them need no waiting."""
        self.unfinished = True
        self._out.write(content)

    def put(self, content: bytes | memoryview = b"") -> None:
        """Write bytes to the descriptor, after what an interrupted call has left."""
        self.unfinished = True
        while True:
            try:
                if content:
                    self._out.write(content)
                    content = b""
                self._out.flush()
            except BlockingIOError as error:
                # A program that we share the pipe with made it non-blocking for all of us.
                content = memoryview(content)[error.characters_written :]
                _wait_writable(self._fd)
            else:
                self.unfinished = False
                return

    def put_beside(self, content: bytes) -> None:
        """Write bytes to the descriptor while :meth:`put` waits for room further up on the stack."""
        view = memoryview(content)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                _wait_writable(self._fd)


class Text(io.TextIOWrapper):
    """The text side of one stream, ``sys.stdout``.

    :ivar collects: whether pieces are collected now; see Note [Collected lines].
    :ivar collected: those pieces.
    """

    __slots__ = ("_append", "_outlet", "_size", "below", "collected", "collects")

    def __init__(self, buffer: PipeBuffer, outlet: "Outlet", errors: str) -> None:
        super().__init__(buffer, encoding="utf-8", errors=errors, newline="\n", write_through=True)
        vars(self)["mode"] = "w"
        self.below = buffer
        self.collects = False
        self.collected: deque[str] = deque()
        self._append = self.collected.append
        self._size = 0
        self._outlet = outlet

    def write(self, text: str, /) -> int:
        """Take text. Called twice for many a line that is printed: every look that is not here makes those quicker."""
        if not self.collects or text.__class__ is not str:
            return _write(self, text)
        if not text.isascii():
            text.encode(self.encoding, self.errors or "strict")  # what cannot be encoded is an error now, not later
        self._append(text)
        length = len(text)
        self._size = size = self._size + length
        # Another thread may have ended the collecting since.
        if size >= _CHUNK or not self.collects:
            self._outlet.hand_over(self)
        return length

    def flush(self) -> None:
        """Send what is held."""
        if self.collects and self._size < _LITTLE:
            self._outlet.forgo(self)  # who flushes himself needs no collecting
        elif self.collected:
            self._outlet.hand_over(self)
        super().flush()

    def close(self) -> None:
        """Close it, and the buffer."""
        self._outlet.forgo(self)
        super().close()

    def detach(self) -> Any:
        """Give the buffer away."""
        self._outlet.forgo(self)
        return super().detach()

    def forget(self) -> None:
        """In a forked child: what was collected is the parent's to send."""
        self.collects = False
        self.collected.clear()

    def encode_collected(self) -> None:
        """Let the buffer have what was collected."""
        pieces = map(deque.popleft, repeat(self.collected, len(self.collected)))
        self._size = 0
        super().write("".join(pieces))


class Outlet:
    """Both streams of this process. See Note [Streams in order].

    :ivar spares: copies of the pipes' descriptors, for when user code closes the usual ones.
    """

    def __init__(self, order: Order, interrupts: Interrupts, spares: tuple[int, int]) -> None:
        self._order = order
        self._interrupts = interrupts
        self._forked = False
        self.spares = spares
        self._lock = threading.RLock()
        self._putting = False
        self._burst = 0
        self._burst_at = 0.0
        self._collecting: Text | None = None
        self._handing = False
        self._handed = 0
        self._pause = PATIENCE
        self._flusher = Flusher(self._flush_promptly)
        self._buffers = (
            PipeBuffer(self, 1, spares[0], "<stdout>"),
            PipeBuffer(self, 2, spares[1], "<stderr>"),
        )
        self._texts = [
            Text(self._buffers[0], self, "surrogateescape"),
            Text(self._buffers[1], self, "backslashreplace"),
        ]

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

    def end_hurry(self) -> None:
        """Send what is collected, for a process that ends now."""
        if not self._forked and self._lock.acquire(timeout=1.0):
            with suppress(OSError):
                self._stop_collecting()
            self._lock.release()

    def mend(self) -> None:
        """Before a run: open again what the last one closed."""
        self._putting = False
        for fd, spare in zip((1, 2), self.spares, strict=True):
            try:
                os.fstat(fd)
            except OSError:
                os.dup2(spare, fd, inheritable=True)
        with self._lock, suppress(OSError):
            self._stop_collecting()
        for number, (name, errors) in enumerate((("stdout", "surrogateescape"), ("stderr", "backslashreplace"))):
            old = self._texts[number]
            if not _usable(old, self._buffers[number]):
                buffer = PipeBuffer(self, number + 1, self.spares[number], f"<{name}>")
                pair = list(self._buffers)
                pair[number] = buffer
                self._buffers = (pair[0], pair[1])
                self._texts[number] = Text(buffer, self, errors)
                if getattr(sys, name) is old:
                    setattr(sys, name, self._texts[number])

    def flush_all(self) -> None:
        """Send everything, also what user code's own streams hold."""
        for stream in (sys.stdout, sys.stderr, *self._texts):
            with suppress(Exception):
                stream.flush()

    def write(self, buffer: PipeBuffer, content: bytes) -> int:
        """Take bytes for one stream, all of them. Called twice for many a line that is printed, so it does little."""
        with self._lock:
            if self._collecting is not None and self._comes_to_collected(buffer, content):
                return len(content)
            other = self._buffers[buffer is self._buffers[0]]
            if (other.pending or other.unfinished) and other is not buffer:
                self._drain(other)
            pending = buffer.pending + content if buffer.pending else content
            if b"\n" in content or len(pending) > _LARGE or not (self._flusher.armed or self._flusher.arm()):
                # Taken out first: when an interrupt ends the write, nothing is sent twice.
                buffer.pending = b""
                self._put(buffer, pending)
            else:
                buffer.pending = pending
            self._burst += 1
            if self._burst == _BURST:
                self._consider(buffer)
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
        free = self._collecting is None and not (stdout.unfinished or stderr.unfinished)
        return ours and free and not stderr.pending and len(stdout.pending) <= _LARGE

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
        if buffer.pending or buffer.unfinished:
            with self._lock:
                self._drain(buffer)

    def settle(self) -> None:
        """Send everything and let init take it, so that what anybody else prints now comes later."""
        with self._lock:
            self._stop_collecting()
            for buffer in self._buffers:
                self._drain(buffer)
            if not self._forked and any(bytes_waiting(spare) for spare in self.spares):
                self._order.settle()

    def _drain(self, buffer: PipeBuffer) -> None:
        if buffer.pending or buffer.unfinished:
            content, buffer.pending = buffer.pending, b""
            self._put(buffer, content)

    def _put(self, buffer: PipeBuffer, content: bytes) -> None:
        self._settle_beside(buffer)
        if self._putting:
            buffer.put_beside(content)
            return
        self._putting = True
        try:
            buffer.put(content)
        finally:
            self._putting = False

    def _settle_beside(self, buffer: PipeBuffer) -> None:
        """Let init take what is in the other pipe."""
        if not self._forked:
            for one in self._buffers:
                if one is not buffer and bytes_waiting(one.spare):
                    self._order.settle()

    def _flush_promptly(self) -> float:
        """Send what waits, if nobody is writing now; give the seconds until there is something to look after again."""
        if not self._lock.acquire(blocking=False):
            return self._look_later()
        try:
            if self._collecting is not None:
                return self._look_after(self._collecting)
            for buffer in self._buffers:
                self._drain(buffer)
            return 0.0
        finally:
            self._lock.release()

    # See Note [Collected lines].

    def _consider(self, buffer: PipeBuffer) -> None:
        """Begin to collect what is written to a stream, if there is much of it and nothing against it."""
        self._burst = 0
        now = time.monotonic()
        quick, self._burst_at = now - self._burst_at < PATIENCE, now
        text = self._texts[buffer is self._buffers[1]]
        if quick and not self._forked and self._collecting is None and _usable(text, buffer) and text.write_through:
            # First, so that the thread, which may look just now, looks again.
            self._collecting, self._handed = text, 0
            text.collects = self._flusher.arm()
            if not text.collects:
                self._collecting = None

    def hand_over(self, text: Text) -> None:
        """Send what a text has collected, unless that is being done further up on the stack."""
        with self._lock:
            if self._handing:
                return
            self._handing = True
            try:
                self._drain(text.below)
                with self._interrupts.held_back():
                    text.encode_collected()
                self._drain(text.below)
            finally:
                self._handing = False

    def _comes_to_collected(self, buffer: PipeBuffer, content: bytes) -> bool:
        """Take bytes that are what a text hands over; before all others, have that handed over."""
        text = self._collecting
        if self._handing:
            if text is None or buffer is not text.below or self._putting:
                return False
            self._handed += len(content)
            if len(content) > _ROOM:
                self._put(buffer, content)
            else:
                buffer.keep(content)
            return True
        if text is not None and buffer is text.below:
            self.hand_over(text)
        else:
            self._stop_collecting()
        return False

    def _look_after(self, text: Text) -> float:
        """Send what a stream has collected, if that needs no waiting, and tell when to look again."""
        if bytes_waiting(text.below.spare):
            return self._look_later()
        self._pause = PATIENCE
        self.hand_over(text)
        self._drain(text.below)
        little, self._handed = self._handed < _LITTLE, 0
        if little:
            self._stop_collecting()
            return 0.0
        return self._pause

    def forgo(self, text: Text) -> None:
        """Collect no more of what is written to a text."""
        if text is self._collecting:
            with self._lock:
                self._stop_collecting()

    def _look_later(self) -> float:
        """Look less and less often while nobody takes the output: a client may have gone away for hours."""
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        return self._pause

    def _stop_collecting(self) -> None:
        text = self._collecting
        if text is not None and not self._handing:
            text.collects = False
            try:
                self.hand_over(text)
            finally:
                self._collecting = None

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
        # Where a signal's handler forked, the writing that it interrupted is on the child's stack as well, and counts on.
        self._collecting = None
        for text in self._texts:
            text.forget()
        self._flusher.forget()
        for spare in self.spares:
            with suppress(OSError):
                os.close(spare)


def _usable(stream: io.TextIOWrapper, buffer: PipeBuffer) -> bool:
    """Whether nobody has closed or detached a stream."""
    try:
        return not stream.closed and stream.buffer is buffer and not buffer.closed
    except ValueError:
        return False


def _wait_writable(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    poll.poll()
