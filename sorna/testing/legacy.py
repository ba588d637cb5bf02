"""Clients of the ZeroMQ interface for tests and benches, as plain as those of 2016: blocking sockets, and garbage.

Knows only what a client knows: two ports, and frames of JSON.
"""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import zmq
from attrs import frozen

Context = zmq.Context[zmq.Socket[bytes]]

TIMEOUT_MS = 30_000
PING = b'{"action": 0, "body": "hello"}'
# Requests that cost nothing but an answer, to be mutilated.
CHEAP_REQUESTS = (
    PING,
    b'{"action": 1}',
    b'{"action": 3, "kernel_id": "nope"}',
    b'{"action": 2, "user_id": "u"}',
    '{"action": 0, "body": {"x": [1, null, "한"]}}'.encode(),
    b'{"action": 0.0, "body": [1e308, -0, 1E-400, true, "\\ud800\\n"]}',
)
_TOKENS: tuple[bytes, ...] = (
    *(b"{", b"}", b"[", b"]", b'"', b":", b",", b"\\", b"\\u", b"\\ud800", b" " * 5000),
    *(b"NaN", b"Infinity", b"1e999", b"-", b"0", b"null", b"9" * 4301),
    *(b"\x00", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf"),
    *(b"[" * 2000, b'{"a":' * 2000, b'"x",' * 999),
)


class LegacyClient:
    """One REQ socket: one question at a time. ``ready`` is given it before it connects."""

    def __init__(
        self, context: Context, port: int, ready: Callable[[zmq.Socket[bytes]], None] = lambda _socket: None
    ) -> None:
        self.socket = context.socket(zmq.REQ)
        ready(self.socket)
        for option, value in ((zmq.LINGER, 0), (zmq.RCVTIMEO, TIMEOUT_MS), (zmq.SNDTIMEO, TIMEOUT_MS)):
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
def legacy_context() -> Iterator[Context]:
    """Give a ZeroMQ context whose sockets are all closed at the end."""
    context: Context = zmq.Context()
    try:
        yield context
    finally:
        context.destroy(linger=0)


def garbage(generator: random.Random, requests: Sequence[bytes] = CHEAP_REQUESTS, longest: int = 256 * 1024) -> bytes:
    """Make a frame: a request with pieces cut, doubled, moved or replaced, or noise."""
    if generator.random() < 0.1:
        return generator.randbytes(generator.randrange(200))
    frame = bytearray(generator.choice(requests))
    for _ in range(generator.randrange(1, 8)):
        place = generator.randrange(len(frame) + 1)
        until = min(len(frame), place + generator.randrange(1, 12))
        match generator.randrange(5):
            case 0:
                del frame[place:until]
            case 1:
                frame[place:place] = generator.choice(_TOKENS)
            case 2:
                frame[place:place] = bytes(frame[place:until]) * generator.choice((1, 2, 2000))
            case 3:
                frame[place:until] = generator.randbytes(until - place)
            case 4:
                other = generator.choice(requests)
                frame[place:] = other[generator.randrange(len(other)) :]
    return bytes(frame[:longest])


def throw_garbage(context: Context, port: int, count: int, seed: int, *, at_once: int = 64) -> int:
    """Send so many frames of garbage and give how many were answered; each has to be."""
    generator = random.Random(seed)  # noqa: S311 - nothing secret
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.LINGER, 0)
    dealer.setsockopt(zmq.RCVTIMEO, TIMEOUT_MS)
    dealer.connect(f"tcp://127.0.0.1:{port}")
    answered = 0
    try:
        for number in range(count):
            dealer.send_multipart([b"", garbage(generator)])
            if number >= at_once:
                dealer.recv_multipart()
                answered += 1
        while answered < count:
            dealer.recv_multipart()
            answered += 1
    except zmq.Again:
        pass
    finally:
        dealer.close()
    return answered


@frozen
class Pings:
    """How long PINGs took, in milliseconds, sorted."""

    times: Sequence[float]

    def part(self, share: float) -> float:
        """Give the time that this share of them stayed within."""
        return self.times[min(len(self.times) - 1, int(len(self.times) * share))]


def ping_together(clients: Sequence[LegacyClient], rounds: int, pause: float = 0.01) -> Pings:
    """Let all clients PING at once, so many times, and measure each until its answer."""
    times: list[float] = []
    poller = zmq.Poller()
    for client in clients:
        poller.register(client.socket, zmq.POLLIN)
    for _ in range(rounds):
        sent = {}
        for client in clients:
            sent[client.socket] = time.perf_counter()
            client.socket.send(PING)
        while sent:
            ready = poller.poll(TIMEOUT_MS)
            now = time.perf_counter()
            if not ready:
                raise zmq.Again
            for socket, _event in ready:
                socket.recv()
                times.append((now - sent.pop(socket)) * 1000)
        time.sleep(pause)
    return Pings(sorted(times))
