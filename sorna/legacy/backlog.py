"""How much of what was sent is still unread, per client and together; knows frames and nothing of what they say.

ZeroMQ bounds a client's queue in messages only, and a reply may have mebibytes. So a larger reply is handed over without being
copied, and ZeroMQ tells when it has let go of it: until then it counts.
"""

from __future__ import annotations

from collections import deque

import zmq

# Bytes of a reply from which on it is counted; smaller ones are bounded by their number.
LARGE = 4096
# Bytes that may be unread. A client that has read everything may be sent a reply of any size.
MOST_OF_CLIENT = 16 * 1024 * 1024
MOST_OF_ALL = 256 * 1024 * 1024


class Backlog:
    """The large replies that are on their way."""

    def __init__(self, of_client: int = MOST_OF_CLIENT, of_all: int = MOST_OF_ALL) -> None:
        self._of_client = of_client
        self._of_all = of_all
        # Of each reply its size and what tells that it is read; the frame itself, kept here, would never be.
        self._unread: dict[bytes, deque[tuple[int, zmq.MessageTracker]]] = {}

    def __len__(self) -> int:
        """Tell how many bytes are unread."""
        self._forget_read()
        return sum(map(_size, self._unread.values()))

    def frame(self, client: bytes, raw: bytes) -> zmq.Frame | bytes | None:
        """Give what to send for a reply, counted from now on; None when too much is unread already."""
        if len(raw) < LARGE:
            return raw
        self._forget_read()
        mine = self._unread.get(client)
        if mine and _size(mine) + len(raw) > self._of_client:
            return None
        if self._unread and len(self) + len(raw) > self._of_all:
            return None
        frame = zmq.Frame(raw, track=True, copy=False)
        self._unread.setdefault(client, deque()).append((len(raw), frame.tracker))
        return frame

    def _forget_read(self) -> None:
        for client, replies in list(self._unread.items()):
            # They are read in the order in which they were sent.
            while replies and replies[0][1].done:
                replies.popleft()
            if not replies:
                del self._unread[client]


def _size(replies: deque[tuple[int, zmq.MessageTracker]]) -> int:
    return sum(size for size, _tracker in replies)
