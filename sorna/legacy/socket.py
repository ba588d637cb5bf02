"""One port of the ZeroMQ door: requests of many clients side by side, each answered in its own envelope, all of it bounded.

Knows envelopes and bounds, and no action: a :class:`Desk` says what a request is. A client that does not read its replies
loses those that find its queue full, and holds up nobody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol, cast

import zmq
from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from sorna.legacy.backlog import Backlog
from sorna.legacy.codec import MALFORMED, MalformedRequest, Reply, decode, encode, encode_in_turns, failure, invalid
from sorna.zeromq import Socket, Sockets

TOO_MANY_OF_CLIENT = "You have too many requests waiting. Try again later."
TOO_MANY = "The server has too many requests waiting. Try again later."
UNREAD = "You do not read your replies."
STOPPING = "The server is stopping."
INTERNAL = "Internal server error."

LINGER_MS = 50
HANDSHAKE_MS = 10_000
KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_COUNT = 60, 15, 4

Work = Callable[[], Coroutine[Any, Any, Reply]]


@frozen
class Bounds:
    """How much this port takes on.

    :ivar frame: bytes of a frame; a client that sends a larger one is disconnected.
    :ivar waiting: requests of one client that were received and not looked at; then its connection is not read.
    :ivar queued: replies that one client has not read; more are dropped.
    :ivar of_client: requests of one client that are being worked on.
    :ivar of_all: requests of all clients that are being worked on.
    """

    frame: int = 4 * 1024 * 1024
    waiting: int = 8
    queued: int = 1000
    of_client: int = 64
    of_all: int = 1024


class Desk(Protocol):
    """What a port serves."""

    def take(self, request: Mapping[str, Any], peer: str | None) -> Reply | Work:
        """Give the reply where it can be given at once, else the work that ends in it.

        :param peer: the client's address, where ZeroMQ knows it.
        """
        ...


def unwrap(parts: list[zmq.Frame]) -> tuple[list[bytes], zmq.Frame]:
    """Split a message of a ROUTER into the envelope to send back and the frame with the request.

    REQ sockets put an empty frame between the two, and proxies on the way their names before it; a client that leaves
    it out is answered likewise. Frames behind the request are of no meaning.
    """
    for place, part in enumerate(parts[1:-1], 1):
        if len(part) == 0:
            return [frame.bytes for frame in parts[: place + 1]], parts[place + 1]
    return [parts[0].bytes], parts[1]


class RequestSocket:
    """A ROUTER with requests on one side and a desk on the other.

    :param permits: tells whether a CURVE key may (still) ask; None where there are no keys.
    """

    _log = Logger()

    def __init__(
        self,
        sockets: Sockets,
        desk: Desk,
        *,
        bounds: Bounds | None = None,
        permits: Callable[[str], bool] | None = None,
    ) -> None:
        self._reactor = sockets.reactor
        self._desk = desk
        self._bounds = bounds or Bounds()
        self._permits = permits
        self._working: set[Deferred[None]] = set()
        self._of_client: Counter[bytes] = Counter()
        self._backlog = Backlog()
        self._stopping = False
        self.socket = Socket(sockets, zmq.ROUTER, self._receive, most_queued=self._bounds.queued)
        for option, value in (
            (zmq.MAXMSGSIZE, self._bounds.frame),
            (zmq.RCVHWM, self._bounds.waiting),
            (zmq.HANDSHAKE_IVL, HANDSHAKE_MS),
            (zmq.LINGER, LINGER_MS),
            (zmq.TCP_KEEPALIVE, 1),
            (zmq.TCP_KEEPALIVE_IDLE, KEEPALIVE_IDLE),
            (zmq.TCP_KEEPALIVE_INTVL, KEEPALIVE_INTERVAL),
            (zmq.TCP_KEEPALIVE_CNT, KEEPALIVE_COUNT),
            (zmq.BACKLOG, 1024),
        ):
            self.socket.socket.set(option, value)

    @property
    def in_flight(self) -> int:
        """How many requests are being worked on."""
        return len(self._working)

    def bind(self, endpoint: str) -> int:
        """Bind ``tcp://ADDRESS:PORT`` and give the port. :raises zmq.ZMQError: that is not possible."""
        return bind(self.socket, endpoint)

    async def stop(self) -> None:
        """Take no more requests, and tell those that wait that the server is stopping."""
        self._stopping = True
        waiting = list(self._working)
        for one in waiting:
            one.cancel()
        await DeferredList(waiting)

    def _receive(self, parts: list[zmq.Frame]) -> None:
        if len(parts) < 2 or not self._is_permitted(parts[-1]):
            return
        envelope, body = unwrap(parts)
        if self._stopping:
            self._send(envelope, failure(STOPPING))
            return
        try:
            request = decode(body.buffer)
        except MalformedRequest:
            self._send(envelope, invalid(MALFORMED))
            return
        answer = self._desk.take(request, peer_of(body))
        if isinstance(answer, Mapping):
            self._send(envelope, answer)
        elif len(self._working) >= self._bounds.of_all:
            self._send(envelope, failure(TOO_MANY))
        elif self._of_client[envelope[0]] >= self._bounds.of_client:
            self._send(envelope, failure(TOO_MANY_OF_CLIENT))
        else:
            self._begin(envelope, answer)

    def _is_permitted(self, frame: zmq.Frame) -> bool:
        if self._permits is None:
            return True
        key = frame.get("User-Id")
        return isinstance(key, str) and self._permits(key)

    def _begin(self, envelope: list[bytes], work: Work) -> None:
        working = Deferred.fromCoroutine(self._work(envelope, work))
        if working.called:
            return
        client = envelope[0]
        self._working.add(working)
        self._of_client[client] += 1

        def over(_result: object) -> None:
            self._working.discard(working)
            self._of_client[client] -= 1
            if not self._of_client[client]:
                del self._of_client[client]

        working.addBoth(over)

    async def _work(self, envelope: list[bytes], work: Work) -> None:
        try:
            reply = await work()
        except CancelledError:
            reply = failure(STOPPING)
        except Exception:  # noqa: BLE001 - whatever a request brings about, its client is answered
            self._log.failure("a request failed", Failure())
            reply = failure(INTERNAL)
        await self._send_in_turns(envelope, reply)

    async def _send_in_turns(self, envelope: list[bytes], reply: Reply) -> None:
        encoding = encode_in_turns(reply)
        while True:
            try:
                next(encoding)
            except StopIteration as end:
                self._send_raw(envelope, end.value)
                return
            try:
                await deferLater(self._reactor, 0)
            except CancelledError:
                continue  # the server is stopping: the rest is written at once

    def _send(self, envelope: list[bytes], reply: Reply) -> None:
        self._send_raw(envelope, encode(reply))

    def _send_raw(self, envelope: list[bytes], raw: bytes) -> None:
        frame = self._backlog.frame(envelope[0], raw)
        self.socket.send([*envelope, encode(failure(UNREAD)) if frame is None else frame])


def bind(socket: Socket, endpoint: str) -> int:
    """Bind a socket and give the port it got. :raises zmq.ZMQError: that is not possible."""
    socket.socket.set(zmq.IPV6, int("[" in endpoint))
    socket.socket.bind(endpoint)
    bound = cast("bytes", socket.socket.get(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode("ascii")
    return int(bound.rpartition(":")[2])


def peer_of(frame: zmq.Frame) -> str | None:
    """Give the address of the client that sent a frame, where ZeroMQ knows it."""
    try:
        peer = frame.get("Peer-Address")
    except zmq.ZMQError:
        return None
    return peer if isinstance(peer, str) else None
