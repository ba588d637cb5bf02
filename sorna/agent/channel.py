"""The agent's end of a kernel's channel: a connected Unix socket in the reactor that carries frames.

Knows the framing and the socket, and nothing of what frames mean. It writes at once when the socket takes it, keeps what
does not fit in a bounded buffer, and reports its end exactly once. No threads.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Protocol

from twisted.internet.interfaces import IReactorFDSet, IReadWriteDescriptor
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.python.failure import Failure
from zope.interface import implementer

from sorna.agent.runners.frames import HEADER, MAX_PAYLOAD, SERVICE_WINDOW, FrameError, FrameReader
from sorna.model.service import MOST_TUNNELS

READ_SIZE = 256 * 1024
SEND_SIZE = 128 * 1024
# One largest frame, what may be on its way to applications, and room for everything small behind it.
WRITE_BOUND = MAX_PAYLOAD + MOST_TUNNELS * SERVICE_WINDOW + 1024 * 1024


class FrameReceiver(Protocol):
    """Who takes a channel's frames."""

    def frame_received(self, kind: int, payload: bytes) -> None:
        """Take one frame. :raises FrameError: it makes no sense; the channel is closed with that as its end."""
        ...

    def channel_lost(self, error: Exception | None) -> None:
        """Learn that no frame will come any more; ``error`` is a FrameError when the peer broke the protocol."""
        ...


class FrameSender(Protocol):
    """A channel as a kernel uses it; :class:`Channel` is the real one."""

    def send(self, kind: int, *parts: bytes) -> None:
        """Send one frame. :raises WriteBufferFull: the peer does not read."""
        ...

    def hand(self, kind: int, payload: bytes, descriptor: int) -> bool:
        """Send one small frame with a copy of a descriptor; False when the peer does not take it right now."""
        ...

    def drain(self) -> None:
        """Read what is still there."""
        ...

    def end(self) -> None:
        """Let the peer write no more, read what it has written, and close."""
        ...

    def carry(self) -> Mapping[str, Any]:
        """Give the socket away, with what was read and not understood yet, and what was not written yet."""
        ...

    def take_over(self, state: Mapping[str, Any]) -> None:
        """Go on where another channel has given the same socket away."""
        ...

    def close(self) -> None:
        """Close at once."""
        ...


class WriteBufferFull(Exception):
    """The peer does not read: the frame was not taken."""


@implementer(IReadWriteDescriptor)
class Channel:
    """Frames over one socket, which it owns and closes."""

    def __init__(self, reactor: IReactorFDSet, sock: socket.socket, receiver: FrameReceiver) -> None:
        self._reactor = reactor
        self._socket = sock
        self._fileno = sock.fileno()
        self._receiver = receiver
        self._frames = FrameReader()
        self._outgoing: deque[memoryview] = deque()
        self.buffered = 0
        self._writing = False
        self.closed = False
        sock.setblocking(False)
        reactor.addReader(self)

    def send(self, kind: int, *parts: bytes) -> None:
        """Send one frame, whose payload is the parts together, or nothing when the channel is closed.

        :raises WriteBufferFull: more than the bound is waiting to be written.
        :raises ValueError: the payload is larger than a frame may be.
        """
        length = sum(map(len, parts))
        if length > MAX_PAYLOAD:
            raise ValueError(f"a payload of {length} bytes")
        if self.closed:
            return
        size = HEADER.size + length
        if self.buffered + size > WRITE_BOUND:
            raise WriteBufferFull
        # Small frames go with one system call; large content is not copied.
        pieces = (HEADER.pack(length, kind), *parts)
        whole = (b"".join(pieces),) if size < SEND_SIZE else pieces
        self._outgoing.extend(memoryview(piece) for piece in whole)
        self.buffered += size
        if not self._writing:
            self._flush()

    def close(self) -> None:
        """Close at once; the receiver hears of it, unless it has already."""
        self._finish(None)

    def hand(self, kind: int, payload: bytes, descriptor: int) -> bool:
        """Send one small frame with a copy of a descriptor; False when the peer does not take it right now."""
        if self.closed or self._outgoing:
            return False
        frame = HEADER.pack(len(payload), kind) + payload
        try:
            sent = socket.send_fds(self._socket, [frame], [descriptor])
        except OSError:
            return False
        if sent < len(frame):  # the descriptor went with the first bytes
            self._outgoing.append(memoryview(frame)[sent:])
            self.buffered += len(frame) - sent
            self._want_to_write(True)
        return True

    def end(self) -> None:
        """Let the peer write no more, read what it has written, and close."""
        if not self.closed:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RD)
            self.drain()
            self.close()

    def drain(self) -> None:
        """Read what is still in the socket, up to its end if that is there already."""
        while not self.closed and self._read_once():
            pass

    def carry(self) -> Mapping[str, Any]:
        """Give the socket away, as its descriptor; the receiver is told nothing."""
        state = {
            "descriptor": self._fileno,
            "unread": self._frames.incomplete,
            "unwritten": b"".join(self._outgoing),
        }
        self._reactor.removeReader(self)
        self._want_to_write(False)
        self.closed = True
        self._socket.detach()
        return state

    def take_over(self, state: Mapping[str, Any]) -> None:
        """Go on where another channel has given the same socket away."""
        self._frames.feed(state["unread"])
        if state["unwritten"]:
            self._outgoing.appendleft(memoryview(state["unwritten"]))
            self.buffered += len(state["unwritten"])
            self._want_to_write(True)

    def fileno(self) -> int:
        """Give the descriptor, -1 once closed."""
        return -1 if self.closed else self._fileno

    def logPrefix(self) -> str:
        """Name this in the reactor's log lines."""
        return "Channel"

    def doRead(self) -> Failure | None:
        """Read what is there, a bounded amount per turn of the reactor."""
        self._read_once()
        return None

    def _read_once(self) -> bool:
        """Read one chunk; tell whether there may be more."""
        try:
            chunk = self._socket.recv(READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            chunk = b""
        if not chunk:
            self._finish(None)
            return False
        try:
            for kind, payload in self._frames.feed(chunk):
                self._receiver.frame_received(kind, payload)
                if self.closed:
                    return False
        except FrameError as error:
            self._finish(error)
            return False
        return True

    def doWrite(self) -> Failure | None:
        """Go on writing."""
        self._flush()
        return None

    def _flush(self) -> None:
        budget = 4 * SEND_SIZE
        while self._outgoing and budget > 0:
            view = self._outgoing[0]
            try:
                sent = self._socket.send(view[:SEND_SIZE])
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                # What the peer wrote before it went is still to be read; reading finds the end.
                self._outgoing.clear()
                self.buffered = 0
                break
            budget -= sent
            self.buffered -= sent
            if sent == len(view):
                self._outgoing.popleft()
            else:
                self._outgoing[0] = view[sent:]
        self._want_to_write(bool(self._outgoing))

    def _want_to_write(self, wanted: bool) -> None:
        if wanted and not self._writing:
            self._reactor.addWriter(self)
        elif self._writing and not wanted:
            self._reactor.removeWriter(self)
        self._writing = wanted

    def connectionLost(self, reason: Failure) -> None:
        """Hear from the reactor that the descriptor is of no use any more."""
        expected = reason.check(type(CONNECTION_DONE), type(CONNECTION_LOST)) is not None
        self._finish(None if expected else FrameError(reason.getErrorMessage()))

    def _finish(self, error: Exception | None) -> None:
        if self.closed:
            return
        self._reactor.removeReader(self)
        self._want_to_write(False)
        self.closed = True
        self._outgoing.clear()
        self.buffered = 0
        self._socket.close()
        self._receiver.channel_lost(error)
