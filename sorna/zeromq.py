"""ZeroMQ sockets on the reactor, as both ends of a link need them: bounded work per turn, and the reactor as an argument.

A thin layer over txZMQ, which brings the file descriptor of a ZeroMQ socket into the reactor. It knows sockets, their
monitors and CURVE, and nothing of the messages that travel.

Note [Edges of a ZeroMQ descriptor]
-----------------------------------
The descriptor of a ZeroMQ socket tells "something happened inside", not "there is something to read", and every touch of
the socket (a send as much as asking for its events) may swallow that sign. Hence: after every send the socket is asked
whether something came in, and reading goes on in a later turn as long as something is there. A send that found the queue
of its peer full is repeated at the next sign, and, because that very sign may have been swallowed, also after
``BLOCKED_SECONDS``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from ipaddress import ip_address
from typing import cast

import zmq
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from txzmq import ZmqConnection, ZmqFactory
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from sorna.curve_keys import CurveKeypair

TURN_MESSAGES = 100
TURN_SECONDS = 0.004
BLOCKED_SECONDS = 0.01
MAX_PARTS = 16
MAX_SOCKETS = 10_000
# As plain numbers: the library's own become enumerations again with every operation, which costs more than to send does.
_NOW, _MORE = int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE)
_POLLIN, _POLLOUT = int(zmq.POLLIN), int(zmq.POLLOUT)


class Sent(Enum):
    """What became of a message."""

    AWAY = "away"
    FULL = "full"
    GONE = "gone"


def tcp_endpoint(interface: str, port: int) -> str:
    """Spell the ZeroMQ endpoint of an IP address and a port. :raises ValueError: not an address, not a port."""
    address = ip_address(interface)
    if not 0 <= port <= 65535:
        raise ValueError(f"{port} is no port")
    return f"tcp://[{address}]:{port}" if address.version == 6 else f"tcp://{address}:{port}"


class Sockets(ZmqFactory):
    """A ZeroMQ context with its sockets. ``shutdown`` closes them all and ends the context; nothing lingers.

    :param reactor: a real one, with file descriptors.
    :param io_threads: how many threads of ZeroMQ encrypt and move messages.
    """

    lingerPeriod = 0

    def __init__(self, reactor: IReactorTime, io_threads: int = 1) -> None:
        self.reactor = reactor
        self.ioThreads = io_threads
        super().__init__()
        self.context.set(zmq.MAX_SOCKETS, MAX_SOCKETS)


class Socket(ZmqConnection):
    """One ZeroMQ socket.

    :param receive: called with the parts of each message; what it raises is logged and hurts no other message.
    :param writable: called when a message that was refused as ``FULL`` may now find room.
    :param most_queued: high-water mark: messages that ZeroMQ holds per peer and direction.

    The new socket is bound or connected to nothing: set the options of ``socket`` first, then call its ``bind`` or
    ``connect``.
    """

    _log = Logger()

    def __init__(
        self,
        sockets: Sockets,
        kind: int,
        receive: Callable[[list[zmq.Frame]], None],
        writable: Callable[[], None] | None = None,
        most_queued: int = 1000,
    ) -> None:
        # All of it before the constructor of the base, which reads at once.
        self._reactor: IReactorTime = sockets.reactor
        self._receive = receive
        self._writable = writable
        self._blocked: IDelayedCall | None = None
        self._monitor: Socket | None = None
        self.closed = False
        self.socketType = kind
        self.highWaterMark = most_queued
        super().__init__(sockets)

    def send(self, parts: Sequence[bytes | zmq.Frame]) -> Sent:
        """Hand a message to ZeroMQ; a frame is not copied. ``GONE`` only where the socket is a ROUTER that was told to tell."""
        if self.closed:
            return Sent.GONE
        sent = Sent.AWAY
        try:
            for part in parts[:-1]:
                self._hand_over(part, _MORE)
            self._hand_over(parts[-1], _NOW)
        except zmq.Again:
            sent = Sent.FULL
            if self._blocked is None:
                self._blocked = self._reactor.callLater(BLOCKED_SECONDS, self._try_again)
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            sent = Sent.GONE
        if self.read_scheduled is None and self._events() & _POLLIN:
            self._read_later()
        return sent

    def _hand_over(self, part: bytes | zmq.Frame, flags: int) -> None:
        if isinstance(part, bytes):
            self.socket.send(part, flags)
        else:
            self.socket.send(part, flags, copy=False, track=part.tracker is not None)

    def doRead(self) -> None:
        """Take what came in, for a turn's worth of messages and time."""
        if self.read_scheduled is not None:
            if self.read_scheduled.active():
                self.read_scheduled.cancel()
            self.read_scheduled = None
        end = self._reactor.seconds() + TURN_SECONDS
        if self._blocked is not None and self._events() & _POLLOUT:
            self._blocked.cancel()
            self._try_again()
        for _ in range(TURN_MESSAGES):
            if self.closed or not self._events() & _POLLIN:
                return
            self._read_one()
            if self._reactor.seconds() > end:
                break
        if not self.closed and self.read_scheduled is None:
            self._read_later()

    def _events(self) -> int:
        return cast("int", self.socket.get(zmq.EVENTS))

    def _read_later(self) -> None:
        self.read_scheduled = self._reactor.callLater(0, self.doRead)

    def _read_one(self) -> None:
        parts: list[zmq.Frame] = []
        while True:
            try:
                part = self.socket.recv(_NOW, copy=False)
            except zmq.Again:
                return
            if len(parts) < MAX_PARTS:
                parts.append(part)
            if not part.more:
                break
        try:
            self._receive(parts)
        except Exception:  # noqa: BLE001 -- whatever a message brings about, the next one is read
            self._log.failure("a message could not be taken")

    def _try_again(self) -> None:
        self._blocked = None
        if self._writable is not None and not self.closed:
            self._writable()

    def watch(self, events: int, receive: Callable[[int, int], None]) -> None:
        """Call ``receive`` with the number and the value of each of these events of the socket's connections."""

        def parse(parts: list[zmq.Frame]) -> None:
            event = parse_monitor_message([part.bytes for part in parts])
            receive(event["event"], event["value"])

        address = f"inproc://monitor-{id(self)}"
        self.socket.monitor(address, events)
        self._monitor = Socket(self.factory, zmq.PAIR, parse)  # type: ignore[arg-type]  # ours is a Sockets
        self._monitor.socket.connect(address)
        # The pipe is there at once, and gives a sign only after it was found empty.
        self._monitor.doRead()

    def shutdown(self) -> None:
        """Close the socket; harmless when it is closed."""
        if self.closed:
            return
        self.closed = True
        if self._monitor is not None:
            self.socket.disable_monitor()
            self._monitor.shutdown()
        if self._blocked is not None:
            self._blocked.cancel()
            self._blocked = None
        super().shutdown()


def serve_curve(socket: Socket, keypair: CurveKeypair, domain: bytes) -> None:
    """Let in only peers who know this public key and whom the ZAP responder of the context accepts.

    Without a responder nobody gets in.
    """
    socket.socket.set(zmq.CURVE_SECRETKEY, keypair.secret.encode("ascii"))
    socket.socket.set(zmq.CURVE_PUBLICKEY, keypair.public.encode("ascii"))
    socket.socket.set(zmq.CURVE_SERVER, 1)
    socket.socket.set(zmq.ZAP_DOMAIN, domain)
    socket.socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)


def present_curve(socket: Socket, keypair: CurveKeypair, server: str) -> None:
    """Connect only to a peer that holds the secret half of the public key ``server``."""
    socket.socket.set(zmq.CURVE_SECRETKEY, keypair.secret.encode("ascii"))
    socket.socket.set(zmq.CURVE_PUBLICKEY, keypair.public.encode("ascii"))
    socket.socket.set(zmq.CURVE_SERVERKEY, server.encode("ascii"))


class Doorkeeper:
    """Answers ZeroMQ's question (ZAP, RFC 27) whether a peer's CURVE key may connect, on the reactor.

    The accepted key becomes the ``User-Id`` of every message of that connection. Must exist before the guarded socket is
    bound, and lives until the context ends.
    """

    def __init__(self, sockets: Sockets, permits: Callable[[str], bool], domain: bytes) -> None:
        self._permits = permits
        self._domain = domain
        self._socket = Socket(sockets, zmq.ROUTER, self._answer)
        self._socket.socket.bind("inproc://zeromq.zap.01")

    def _answer(self, parts: list[zmq.Frame]) -> None:
        raw = [part.bytes for part in parts]
        envelope, request = raw[: raw.index(b"") + 1], raw[raw.index(b"") + 1 :]
        version, request_id, domain, _address, _identity, mechanism, *credentials = request
        code, text, user = b"400", b"not authorised", b""
        if (version, domain, mechanism, len(credentials)) == (b"1.0", self._domain, b"CURVE", 1):
            key = z85.encode(credentials[0]).decode("ascii")
            if self._permits(key):
                code, text, user = b"200", b"OK", key.encode("ascii")
        self._socket.send([*envelope, version, request_id, code, text, user, b""])
