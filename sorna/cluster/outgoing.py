"""Messages to an agent that wait for room on one connection, in order; knows bytes and room, not what they mean.

Who sends through here bounds what can wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from sorna.zeromq import Sent


class Outgoing:
    """What waits for room.

    :ivar size: how many bytes wait.
    """

    def __init__(self, send: Callable[[bytes], Sent]) -> None:
        self._send = send
        self._waiting: deque[bytes] = deque()
        self.size = 0

    def try_to_send(self, raw: bytes) -> bool:
        """Send a message if there is room and nothing waits before it."""
        return not self._waiting and self._send(raw) is Sent.AWAY

    def keep(self, raw: bytes) -> None:
        """Send a message as soon as there is room."""
        self._waiting.append(raw)
        self.size += len(raw)

    def writable(self) -> None:
        """Send what waits, for as long as there is room."""
        while self._waiting and self._send(self._waiting[0]) is Sent.AWAY:
            self.size -= len(self._waiting.popleft())

    def clear(self) -> None:
        """Forget what waits."""
        self._waiting.clear()
        self.size = 0
