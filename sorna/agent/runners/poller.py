"""The loop of the kernel's first process: descriptors, one wake-up at a time, and a few deadlines.

Standard library only. Knows descriptors and callbacks; may not know frames, runs or processes. Nothing here polls: the
loop sleeps until a descriptor is ready or a deadline passes.
"""

import heapq
import itertools
import os
import select
import socket
import time
from collections.abc import Callable

from sorna.agent.runners.frames import HEADER, FrameError, FrameReader

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
NOTHING = 0
# Most bytes that are gathered to be written together.
MOST_GATHERED = 64 * 1024
_CHUNK = 256 * 1024


class Poller:
    """Calls back when a descriptor is ready."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._events: dict[int, int] = {}
        self._deadlines: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()

    def add(self, fd: int, callback: Callable[[int], None], events: int = READ) -> None:
        """Call ``callback`` with what is ready, until :meth:`remove`."""
        self._epoll.register(fd, events)
        self._callbacks[fd] = callback
        self._events[fd] = events

    def change(self, fd: int, events: int) -> None:
        """Wait for something else from now on."""
        if self._events[fd] != events:
            self._epoll.modify(fd, events)
            self._events[fd] = events

    def remove(self, fd: int) -> None:
        """Forget a descriptor, before it is closed."""
        del self._callbacks[fd], self._events[fd]
        self._epoll.unregister(fd)

    def later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call back once after a while; a safety net, so it cannot be taken back and must check for itself."""
        heapq.heappush(self._deadlines, (time.monotonic() + seconds, next(self._count), callback))

    def once(self, longest: float = -1.0) -> None:
        """Wait for the next events and serve them, in the order in which they came up.

        :param longest: seconds after which there need not be any; without limit when negative.
        """
        timeout = longest
        if self._deadlines:
            due = max(self._deadlines[0][0] - time.monotonic(), 0.0)
            timeout = due if longest < 0.0 else min(due, longest)
        for fd, events in self._epoll.poll(timeout):
            callback = self._callbacks.get(fd)
            if callback is not None:
                callback(events)
        while self._deadlines and self._deadlines[0][0] <= time.monotonic():
            heapq.heappop(self._deadlines)[2]()


class Link:
    """One end of a stream socket that carries frames, non-blocking, in both directions.

    :param on_frame: is given each frame that arrives.
    :param on_closed: called once when the peer is gone or broke the protocol.
    :param on_idle: called when everything that had to wait was written.
    :param descriptors: whether the peer sends some, too.
    :ivar descriptors: those that came, the oldest first.
    """

    def __init__(
        self,
        poller: Poller,
        sock: socket.socket,
        on_frame: Callable[[int, bytes], None],
        on_closed: Callable[[], None],
        on_idle: Callable[[], None] = lambda: None,
        *,
        descriptors: bool = False,
    ) -> None:
        self._takes_descriptors = descriptors
        self.descriptors: list[int] = []
        self._poller = poller
        self._socket = sock
        self._on_frame = on_frame
        self._on_closed = on_closed
        self._on_idle = on_idle
        self._reader = FrameReader()
        self._waiting = bytearray()
        self._listening = READ
        self._gathering = False
        self.closed = False
        sock.setblocking(False)
        poller.add(sock.fileno(), self._ready)

    @property
    def congested(self) -> bool:
        """Whether the peer does not keep up: something waits to be written."""
        return len(self._waiting) > (MOST_GATHERED if self._gathering else 0)

    def gather(self) -> None:
        """Keep frames until :meth:`let_go`, to write them with one system call, so that the peer is woken once for all."""
        self._gathering = not self._waiting

    def let_go(self) -> None:
        """Write what was gathered."""
        if self._gathering and self._waiting:
            gathered, self._waiting = self._waiting, bytearray()
            self._gathering = False
            self._write(gathered)
            if len(gathered) > MOST_GATHERED and not self._waiting and not self.closed:
                self._on_idle()
        self._gathering = False

    def send(self, kind: int, payload: bytes) -> None:
        """Write one frame now, or as soon as the peer takes it."""
        if self.closed:
            return
        header = HEADER.pack(len(payload), kind)
        if self._waiting or self._gathering:
            self._waiting += header
            self._waiting += payload
        else:
            self._write(header, payload)

    def hand(self, kind: int, descriptor: int) -> bool:
        """Write one frame without a payload, and give a descriptor away with it; False if that cannot be done right now."""
        try:
            if self.closed or self._waiting or self._gathering:
                return False
            return socket.send_fds(self._socket, [HEADER.pack(0, kind)], [descriptor]) == HEADER.size
        except OSError:
            return False
        finally:
            os.close(descriptor)

    def _write(self, *pieces: bytes | bytearray) -> None:
        try:
            sent = self._socket.sendmsg(pieces)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        if sent < sum(map(len, pieces)):
            self._waiting += b"".join(pieces)[sent:]
            self._poller.change(self._socket.fileno(), self._listening | WRITE)

    def listen(self, listening: bool) -> None:
        """Stop or resume reading from the peer."""
        if not self.closed:
            self._listening = READ if listening else NOTHING
            self._poller.change(self._socket.fileno(), self._listening | (WRITE if self._waiting else NOTHING))

    def close(self) -> None:
        """Close the socket; tells ``on_closed`` when that had not happened yet."""
        if not self.closed:
            self.closed = True
            self._waiting.clear()
            self._poller.remove(self._socket.fileno())
            self._socket.close()
            self._on_closed()

    def _ready(self, events: int) -> None:
        if events & WRITE and not self._flush():
            return
        if events & ~WRITE:
            self._receive()

    def _flush(self) -> bool:
        try:
            sent = self._socket.send(self._waiting)
        except BlockingIOError:
            return True
        except OSError:
            self.close()
            return False
        del self._waiting[:sent]
        if not self._waiting:
            self._poller.change(self._socket.fileno(), self._listening)
            self._on_idle()
        return not self.closed

    def _receive(self) -> None:
        try:
            if self._takes_descriptors:
                chunk, found, _flags, _address = socket.recv_fds(self._socket, _CHUNK, 1, socket.MSG_CMSG_CLOEXEC)
                self.descriptors += found
            else:
                chunk = self._socket.recv(_CHUNK)
            frames = self._reader.feed(chunk)
        except BlockingIOError:
            return
        except (OSError, FrameError):
            chunk, frames = b"", []
        if not chunk:
            self.close()
            return
        for kind, payload in frames:
            if self.closed:
                return
            self._on_frame(kind, payload)
