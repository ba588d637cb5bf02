"""What goes between init and the REPL process over their three private sockets, and the REPL's side of it.

Standard library only. Three sockets, because three things wait independently of each other: the main loop for the next
piece of code (*control*), any thread for the pipes to be drained (*order*), and any thread for a typed line (*typing*).
All carry the frames of ``frames.py`` with the kinds below.
"""

import json
import os
import socket
import threading
from contextlib import suppress
from typing import Any

from sorna.agent.runners.frames import FrameReader, pack_frame
from sorna.agent.runners.interrupts import Interrupts

# control: init to REPL, and back
EXECUTE = 1
EXECUTE_UNATTENDED = 12
COMPLETE = 2
DONE = 3
COMPLETED = 4
# order: REPL to init, and the answer, which repeats the number
SYNC = 5
EMIT = 6
SETTLED = 7
# typing: REPL to init, and the answer, which repeats the number; an empty line means that there will be none. A question
# whose asker was interrupted is withdrawn: an answer that was on its way is not one to the next question.
ASK = 8
LINE = 9
WITHDRAW = 12
# control: init to REPL, before the first piece of code
ENVIRON = 10
# control: REPL to init, when it can execute
WARM = 11
# control: init to REPL, like EXECUTE, of code that nobody sent: no trace of it stays
REHEARSE = 13
# control: REPL to init, right before DONE: what of stdout is in no pipe
LAST_WORDS = 14
# control: init to REPL, and with its bytes this side of a lane; see ``frames.py``
LANE = 15
# lane: REPL to agent; EXECUTE, EXECUTE_UNATTENDED, ENVIRON and WARM pass there too
ENDED = 16

# Most bytes of LAST_WORDS.
MOST_LAST_WORDS = 64 * 1024

# A figure or page larger than this is not sent.
MAX_MEDIA = 8 * 1024 * 1024

_CHUNK = 256 * 1024


# Made once: every kernel would make one for each message, and touch that much more memory of its own.
_encode = json.JSONEncoder(ensure_ascii=False).encode
_decode = json.JSONDecoder().decode


def from_json(payload: bytes) -> Any:
    """Read JSON in UTF-8. :raises ValueError: it is none."""
    return _decode(payload.decode("utf-8"))


def to_json(value: Any) -> bytes:
    """Write JSON in UTF-8; lone surrogates, which no text may carry, become question marks."""
    return _encode(value).encode("utf-8", "replace")


class Wire:
    """One blocking socket to init or, a lane, to the agent. A KeyboardInterrupt can end the waiting, and never tears a frame.

    :ivar descriptors: those that came, the oldest first.
    """

    def __init__(self, sock: socket.socket, interrupts: Interrupts, *, descriptors: bool = False) -> None:
        self._socket = sock
        self._interrupts = interrupts
        self._reader = FrameReader()
        self._frames: list[tuple[int, bytes]] = []
        self._takes_descriptors = descriptors
        self.descriptors: list[int] = []

    def send(self, kind: int, payload: bytes, before: bytes = b"") -> None:
        """Write one frame, behind what is given packed. :raises OSError: init is gone or user code closed the socket."""
        with self._interrupts.held_back():
            self._socket.sendall(before + pack_frame(kind, payload), socket.MSG_NOSIGNAL)

    def receive(self) -> tuple[int, bytes]:
        """Wait for one frame. :raises OSError: as for :meth:`send`."""
        while (frame := self.next()) is None:
            with self._interrupts.held_back():
                if self._interrupts.wait(self._socket.fileno()):
                    self.fill()
        return frame

    def next(self) -> tuple[int, bytes] | None:
        """Give a frame that has arrived, if there is one."""
        return self._frames.pop(0) if self._frames else None

    def fill(self) -> None:
        """Read what is there. :raises OSError: as for :meth:`send`."""
        if self._takes_descriptors:
            # CPython, unlike for all others, leaves it to the caller that these are not inherited.
            chunk, found, _flags, _address = socket.recv_fds(self._socket, _CHUNK, 1, socket.MSG_CMSG_CLOEXEC)
            self.descriptors += found
        else:
            chunk = self._socket.recv(_CHUNK)
        if not chunk:
            raise ConnectionResetError("the other side is gone")
        self._frames += self._reader.feed(chunk)

    def fileno(self) -> int:
        """Give the descriptor."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this end, which user code may have done before."""
        with suppress(OSError):
            self._socket.close()


class Order:
    """Asks init to drain the pipes, and to send media in their place among the text."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._number = 0
        self.lock = threading.RLock()
        self._pid = os.getpid()

    @property
    def asked(self) -> int:
        """How often init was asked."""
        return self._number

    def settle(self) -> None:
        """Return when init has taken over everything that is in the pipes now."""
        self._ask(SYNC, b"")

    def emit(self, record: list[Any]) -> bool:
        """Send a record in its place; False when it is too large to be sent."""
        payload = to_json(record)
        if len(payload) > MAX_MEDIA:
            return False
        self._ask(EMIT, payload)
        return True

    def _ask(self, kind: int, payload: bytes) -> None:
        if os.getpid() != self._pid:
            return
        with self.lock:
            self._number += 1
            number = self._number.to_bytes(8, "big")
            self._wire.send(kind, number + payload)
            # The answer to a question that was interrupted may come first.
            while self._wire.receive() != (SETTLED, number):
                pass


class Typing:
    """Asks init for typed lines. Of a run that came over a lane init learns by that."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._number = 0
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._of_lane: dict[str, Any] = {}
        self._before = 0
        self._crossing = False

    def begin(self, run: str, *, unattended: bool) -> None:
        """Take note of the run of a lane that begins.

        No lock, which a signal could leave locked: any thread counts first, then says which run it belongs to, and holds the
        lock of questions all the while; this and :meth:`end` do things in the order that leaves no gap for it.
        """
        self._before = self._number
        self._crossing = self._lock.locked()
        self._of_lane = {"run": run, "unattended": unattended}

    def end(self) -> bool:
        """Take note that it is over; tell whether init may know of it, by a question of any thread."""
        self._of_lane = {}
        return self._crossing or self._number != self._before

    def ask(self, is_password: bool) -> str:
        """Wait for a line and give it with its newline; empty text when there will be none."""
        if os.getpid() != self._pid:
            return ""
        with self._lock:
            self._number += 1
            number = self._number.to_bytes(8, "big")
            try:
                self._wire.send(ASK, number + to_json({"is_password": is_password, **self._of_lane}))
                while True:
                    _kind, payload = self._wire.receive()
                    if payload[:8] == number:
                        return payload[8:].decode("utf-8", "replace")
            except OSError:
                raise
            except BaseException:  # whatever a handler of the user raises where ours raises KeyboardInterrupt
                self._wire.send(WITHDRAW, number)
                raise
