"""What goes between init and the REPL process over their three private sockets, and the REPL's side of it.

Standard library only. Three sockets, because three things wait independently of each other: the main loop for the next
piece of code (*control*), any thread for the pipes to be drained (*order*), and any thread for a typed line (*typing*).
All carry the frames of ``frames.py`` with the kinds below.
"""

import json
import os
import socket
import threading
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

# Most bytes of LAST_WORDS.
MOST_LAST_WORDS = 64 * 1024

# A figure or page larger than this is not sent.
MAX_MEDIA = 8 * 1024 * 1024


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
    """One blocking socket to init. A KeyboardInterrupt can end the waiting, and never tears a frame."""

    def __init__(self, sock: socket.socket, interrupts: Interrupts) -> None:
        self._socket = sock
        self._interrupts = interrupts
        self._reader = FrameReader()
        self._frames: list[tuple[int, bytes]] = []

    def send(self, kind: int, payload: bytes, before: bytes = b"") -> None:
        """Write one frame, behind what is given packed. :raises OSError: init is gone or user code closed the socket."""
        with self._interrupts.held_back():
            self._socket.sendall(before + pack_frame(kind, payload))

    def receive(self) -> tuple[int, bytes]:
        """Wait for one frame. :raises OSError: as for :meth:`send`."""
        while not self._frames:
            with self._interrupts.held_back():
                if not self._interrupts.wait(self._socket.fileno()):
                    continue
                chunk = self._socket.recv(256 * 1024)
                if not chunk:
                    raise ConnectionResetError("init is gone")
                self._frames += self._reader.feed(chunk)
        return self._frames.pop(0)

    def close(self) -> None:
        """Close this end."""
        self._socket.close()


class Order:
    """Asks init to drain the pipes, and to send media in their place among the text."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._number = 0
        self.lock = threading.RLock()
        self._pid = os.getpid()

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
    """Asks init for typed lines."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._number = 0
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def ask(self, is_password: bool) -> str:
        """Wait for a line and give it with its newline; empty text when there will be none."""
        if os.getpid() != self._pid:
            return ""
        with self._lock:
            self._number += 1
            number = self._number.to_bytes(8, "big")
            try:
                self._wire.send(ASK, number + to_json({"is_password": is_password}))
                while True:
                    _kind, payload = self._wire.receive()
                    if payload[:8] == number:
                        return payload[8:].decode("utf-8", "replace")
            except OSError:
                raise
            except BaseException:  # whatever a handler of the user raises where ours raises KeyboardInterrupt
                self._wire.send(WITHDRAW, number)
                raise
