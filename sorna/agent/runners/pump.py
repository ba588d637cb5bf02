"""Carries what the kernel's programs print from two pipes to the agent, as far as the agent gave credit.

Standard library only. Knows streams, credit and the order of things; may not know runs or processes. There is one pipe
for stdout and one for stderr for the whole life of the kernel; every program of it gets their write ends.

Note [Order]
~~~~~~~~~~~~
Two pipes have no order between them. Who needs one asks for an *item* in the pump's queue: everything that is in the
pipes at that moment goes out first, then what the item carries, then its action is called. "A run is finished", "a run
waits for input" and a figure are such items, and so is the question of a runner that is about to write to stderr while
stdout is not drained. An item waits for credit like the output before it. What is in the pipes is counted when the
item comes (FIONREAD), so that a program which never stops printing does not hold it up.

Note [Credit]
~~~~~~~~~~~~~
Output goes out while credit is positive, and one frame may overdraw it: a figure may be larger than the whole window, and
the 3 bytes held back from a cut character must not be able to stop everything. Without credit the pipes are not read,
so they fill and the program that prints waits in its ``write``.

Note [Batches]
~~~~~~~~~~~~~~
A program that prints line by line would be read line by line, and every line would cost a frame on its way to the client,
and the program a change of processes. So after a small chunk that came within ``PAUSE`` seconds of the one before it, the
pipes are left alone for as long: the first line goes out at once, and then there is a batch every few milliseconds. Items do not
wait for that. A chunk that is small because there was no more credit says nothing of the program.

Note [Flow]
~~~~~~~~~~~
The REPL has to know at the end of a run whether anything of it went through the pipes, whoever wrote it: its own streams, a program
that it started, C code. Empty pipes do not tell: init may hold what was in them. So init counts in memory that both share,
once before it reads and once after it has sent; an even count that is still the same, and empty pipes looked at before it, mean
that nothing has passed and nothing is on its way. User code can write to that memory, and confuses only itself.
"""

import fcntl
import mmap
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Protocol

from sorna.agent.runners.frames import STDERR, STDOUT
from sorna.agent.runners.linux import bytes_waiting
from sorna.agent.runners.poller import NOTHING, READ, Poller

CHUNK = 64 * 1024
# What a program may print while it is not read, if Linux allows: several chunks, so that it need not wait for the next look.
PIPE_SIZE = 256 * 1024
SMALL = 16 * 1024
PAUSE = 0.003


def incomplete_tail(text: bytes) -> int:
    """Tell how many bytes at the end are the beginning of a UTF-8 character that is not complete: 0 to 3."""
    for back in range(1, min(len(text), 3) + 1):
        byte = text[-back]
        if byte < 0x80:
            return 0
        if byte >= 0xC2:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4 if byte < 0xF5 else 0
            return back if back < length else 0
        if byte >= 0xC0:
            return 0
    return 0


class Sender(Protocol):
    """Where output can go; :class:`~sorna.agent.runners.poller.Link` is the real one."""

    @property
    def congested(self) -> bool:
        """Whether it takes nothing more for now."""
        ...

    def send(self, kind: int, payload: bytes) -> None:
        """Take one frame."""
        ...


class Nobody:
    """Takes what is printed in a rehearsal."""

    congested = False

    def send(self, _kind: int, _payload: bytes) -> None:
        """Forget a frame."""


class _Stream:
    """One pipe. ``taken`` counts the bytes ever read; ``held`` is the beginning of a character."""

    def __init__(self, kind: int) -> None:
        self.kind = kind
        self.reading, self.writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.reading, False)
        with suppress(OSError):
            fcntl.fcntl(self.writing, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        self.taken = 0
        self.held = b""


class Flow:
    """A count that init changes and the REPL reads. See Note [Flow]."""

    def __init__(self) -> None:
        self._memory = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")

    def turn(self) -> None:
        """Count."""
        self._memory[0] += 1

    @property
    def count(self) -> int:
        """How often was counted; odd while something is carried."""
        return self._memory[0]


class _Item:
    """See Note [Order]."""

    def __init__(
        self, targets: list[tuple[_Stream, int]], frames: Iterable[tuple[int, bytes]], action: Callable[[], None]
    ) -> None:
        self.targets = targets
        self.frames = deque(frames)
        self.action = action


class Pump:
    """The two output streams of a kernel. See Note [Order] and Note [Credit]."""

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        self._streams = (_Stream(STDOUT), _Stream(STDERR))
        self._items: deque[_Item] = deque()
        self._link: Sender | None = None
        self._diverted = False
        self._credit = 0
        self._reading = True
        self._paused = False
        self._read_at = 0.0
        self.flow = Flow()
        for stream in self._streams:
            poller.add(stream.reading, partial(self._readable, stream))
        self._adjust()

    @property
    def write_ends(self) -> tuple[int, int]:
        """The descriptors that programs get as 1 and 2."""
        return self._streams[0].writing, self._streams[1].writing

    def attach(self, link: Sender) -> None:
        """Say where the output goes."""
        self._link = link

    def divert(self, link: Sender) -> Callable[[], None]:
        """Let the output go elsewhere until what this gives is called; it costs no credit."""
        before, self._link = self._link, link
        self._diverted = True

        def undo() -> None:
            self._link = before
            self._diverted = False

        return undo

    def add_credit(self, amount: int) -> None:
        """Take note that the agent has room for so many more bytes."""
        self._credit += amount
        self.resume()

    def resume(self) -> None:
        """Go on after the link or the credit had run out."""
        self._advance()
        self._adjust()

    def restore(self) -> None:
        """Make the write ends blocking again: programs share them, and one may have changed that for all."""
        for stream in self._streams:
            os.set_blocking(stream.writing, True)

    def when_drained(self, action: Callable[[], None], frames: Iterable[tuple[int, bytes]] = ()) -> None:
        """Queue an item: what is in the pipes now, then these output frames, then the action."""
        targets = [(stream, stream.taken + bytes_waiting(stream.reading)) for stream in self._streams]
        self._items.append(_Item(targets, frames, action))
        if len(self._items) == 1:
            self._advance()
            self._adjust()

    def end_characters(self) -> None:
        """Send what was held back: nothing will complete these characters."""
        for stream in self._streams:
            if stream.held:
                held, stream.held = stream.held, b""
                self._send(stream.kind, held)

    def discard(self) -> None:
        """Throw away what is in the pipes and in the queue, after sending what credit still allows."""
        self._items.clear()
        for stream in self._streams:
            while self._move(stream):
                pass
            stream.held = b""
            self.flow.turn()
            try:
                while os.read(stream.reading, CHUNK):
                    pass
            except BlockingIOError:
                pass
            self.flow.turn()
        self._adjust()

    def last_words(self, kind: int, text: bytes) -> None:
        """Send a message at once when there is any credit; without any the agent does not want it."""
        if text and self._credit > 0:
            self._send(kind, text)

    def _send_frame(self, kind: int, payload: bytes) -> None:
        """Send a frame of an item, behind the beginning of a character that its stream holds back."""
        for stream in self._streams:
            if stream.kind == kind and stream.held:
                payload, stream.held = stream.held + payload, b""
        self._send(kind, payload)

    def _send(self, kind: int, payload: bytes) -> None:
        if self._link is not None:
            self._link.send(kind, payload)
            if not self._diverted:
                self._credit -= len(payload)

    def _may_send(self) -> bool:
        return self._credit > 0 and self._link is not None and not self._link.congested

    def _readable(self, stream: _Stream, _events: int) -> None:
        if not self._items:
            before, little = stream.taken, min(SMALL, self._credit)
            if self._move(stream):
                self._rest_after(stream.taken - before < little)
        self._advance()
        self._adjust()

    def _rest_after(self, little: bool) -> None:
        """Leave the pipes alone for a moment when little comes at a time; see Note [Batches]."""
        now = time.monotonic()
        if little and now - self._read_at < PAUSE and not self._paused:
            self._paused = True
            self._poller.later(PAUSE, self._go_on)
        self._read_at = now

    def _go_on(self) -> None:
        self._paused = False
        self._adjust()

    def _adjust(self) -> None:
        reading = self._may_send() and not self._paused
        if reading != self._reading:
            self._reading = reading
            for stream in self._streams:
                self._poller.change(stream.reading, READ if reading else NOTHING)

    def _move(self, stream: _Stream) -> bool:
        """Carry one chunk over; False when there is none, or no room for it."""
        if not self._may_send():
            return False
        self.flow.turn()
        try:
            return self._carry(stream)
        finally:
            self.flow.turn()

    def _carry(self, stream: _Stream) -> bool:
        try:
            chunk = os.read(stream.reading, min(CHUNK, self._credit))
        except BlockingIOError:
            return False
        stream.taken += len(chunk)
        if stream.held:
            chunk = stream.held + chunk
            stream.held = b""
        if chunk[-1] >= 0x80 and (tail := incomplete_tail(chunk)):
            stream.held = chunk[-tail:]
            chunk = chunk[:-tail]
        if chunk:
            self._send(stream.kind, chunk)
        return True

    def _advance(self) -> None:
        """Work off the queue as far as link and credit allow."""
        while self._items:
            item = self._items[0]
            for stream, target in item.targets:
                while stream.taken < target and self._move(stream):
                    pass
                if stream.taken < target and not self._may_send():
                    return
            while item.frames:
                if not self._may_send():
                    return
                self._send_frame(*item.frames.popleft())
            # The action may queue or discard items itself.
            self._items.popleft()
            item.action()
