"""A client of 2016 for tests: one REQ socket per port, one question at a time, replies as they lie on the wire."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import zmq

TIMEOUT_MS = 30_000


class LegacyClient:
    """One REQ socket."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], port: int) -> None:
        self.socket = context.socket(zmq.REQ)
        for option, value in ((zmq.LINGER, 0), (zmq.RCVTIMEO, TIMEOUT_MS)):
            self.socket.setsockopt(option, value)
        self.socket.connect(f"tcp://127.0.0.1:{port}")

    def exchange(self, raw: bytes) -> bytes:
        """Send a frame and give the frame that comes back. :raises zmq.Again: none comes."""
        self.socket.send(raw)
        frames = self.socket.recv_multipart()
        assert len(frames) == 1, frames
        return frames[0]

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and give its reply."""
        reply: dict[str, Any] = json.loads(self.exchange(json.dumps(request).encode()))
        return reply


@contextlib.contextmanager
def legacy_clients(*ports: int) -> Iterator[list[LegacyClient]]:
    """Give a client of each port; all of it is closed at the end."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        yield [LegacyClient(context, port) for port in ports]
    finally:
        context.destroy(linger=0)
