"""A port of this machine that leads to an application in a kernel: each connection that comes is carried over a WebSocket.

Knows sockets and WebSockets, not which kernel it is about: it is handed a way to make the handshake. Nothing is kept:
whoever of the two ends reads slowly, the other one is not read from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol, wrapClientTLS
from twisted.internet.interfaces import IHalfCloseableProtocol, IListeningPort, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import BrowserLikePolicyForHTTPS
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    RejectConnection,
    RejectData,
    Request,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError
from zope.interface import implementer

CONNECT_TIMEOUT = 10
NORMAL = 1000
# Of a refusal's body; a problem document is short.
LONGEST_REFUSAL = 16 * 1024


@frozen
class Handshake:
    """What opens a WebSocket.

    :ivar endpoint: the server's URL; a path in it is put before the target.
    :ivar target: path and query, as they were signed.
    :ivar headers: those that sign it.
    """

    endpoint: str
    target: str
    headers: Mapping[str, str]


class Tunnels:
    """The connections of one port.

    :param reactor: listens and connects.
    :param handshake: makes a handshake for one more connection.
    :param complain: is told, in a sentence, what went wrong with a connection.
    """

    def __init__(self, reactor: Any, handshake: Callable[[], Handshake], complain: Callable[[str], None]) -> None:
        self._reactor = reactor
        self._handshake = handshake
        self._open: set[_Local] = set()
        self._port: IListeningPort | None = None
        self.complain = complain

    def listen(self, host: str, port: int) -> int:
        """Listen, and give the port. :raises CannotListenError: somebody else does, or the address is not this machine's."""
        factory = Factory.forProtocol(lambda: _Local(self))
        factory.noisy = False
        listening = self._port = self._reactor.listenTCP(port, factory, interface=host)
        found: int = listening.getHost().port
        return found

    async def close(self) -> None:
        """Listen no more and drop every connection."""
        port, self._port = self._port, None
        if port is not None:
            await (port.stopListening() or _nothing())
        for local in list(self._open):
            local.drop()

    def opened(self, local: _Local) -> Deferred[Any]:
        """Connect one that came with the server."""
        self._open.add(local)
        handshake = self._handshake()
        remote = _Remote(handshake, local, self.complain)
        connecting: Deferred[Any] = connectProtocol(_endpoint(self._reactor, handshake.endpoint), remote)
        return connecting

    def closed(self, local: _Local) -> None:
        """Forget one that has ended."""
        self._open.discard(local)


async def _nothing() -> None:
    """Have nothing to wait for."""


def _endpoint(reactor: Any, url: str) -> IStreamClientEndpoint:
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    host, port = parts.hostname or "", parts.port or (443 if secure else 80)
    plain = HostnameEndpoint(reactor, host, port, timeout=CONNECT_TIMEOUT)
    if not secure:
        return plain
    # The same judgement of certificates as for every other call.
    creator = BrowserLikePolicyForHTTPS().creatorForNetloc(host.encode("idna"), port)
    endpoint: IStreamClientEndpoint = wrapClientTLS(creator, plain)
    return endpoint


@implementer(IHalfCloseableProtocol)
class _Local(Protocol):
    """A connection that came to the port."""

    def __init__(self, tunnels: Tunnels) -> None:
        self._tunnels = tunnels
        self._remote: _Remote | None = None
        self._gone = False

    @property
    def wire(self) -> Any:
        """The socket."""
        return self.transport

    def connectionMade(self) -> None:
        """Say nothing until the other end is there."""
        self.wire.setTcpNoDelay(True)
        self.wire.pauseProducing()
        self._tunnels.opened(self).addErrback(self._unreachable)

    def _unreachable(self, failure: Failure) -> None:
        self._tunnels.complain(f"The server cannot be reached: {failure.getErrorMessage()}")
        self.drop()

    def join(self, remote: _Remote) -> bool:
        """Begin; each side is the other's producer, so that it is paused while the other does not take more.

        :returns: False when this one has gone meanwhile.
        """
        if self._gone:
            remote.leave()
            return False
        self._remote = remote
        remote.wire.registerProducer(self.wire, True)
        self.wire.registerProducer(remote.wire, True)
        self.wire.resumeProducing()
        return True

    def dataReceived(self, data: bytes) -> None:
        """Send on."""
        if self._remote is not None:
            self._remote.send(BytesMessage(data))

    def readConnectionLost(self) -> None:
        """Tell that this side has ended."""
        if self._remote is None:
            self.drop()
        else:
            self._remote.send(BytesMessage(b""))

    def writeConnectionLost(self) -> None:
        """Be told that this side reads no more; the socket's own end follows."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002
        """Let the other end go."""
        self._gone = True
        self._tunnels.closed(self)
        if self._remote is not None:
            self._remote.leave()

    def receive(self, data: bytes) -> None:
        """Write what the application sent."""
        self.wire.write(data)

    def finish(self) -> None:
        """Write the end of what the application sends."""
        self.wire.loseWriteConnection()

    def end(self) -> None:
        """Close, after everything was written."""
        if self._remote is not None:
            self.wire.unregisterProducer()
        self.wire.loseConnection()

    def drop(self) -> None:
        """Close at once."""
        self.wire.abortConnection()


class _Remote(Protocol):
    """The WebSocket of one connection."""

    def __init__(self, handshake: Handshake, local: _Local, complain: Callable[[str], None]) -> None:
        self._handshake = handshake
        self._local = local
        self._complain = complain
        self._wire = WSConnection(ConnectionType.CLIENT)
        self._refusal = bytearray()
        self._status = 0
        self._empty = True
        self._joined = False
        self._over = False

    @property
    def wire(self) -> Any:
        """The socket."""
        return self.transport

    def connectionMade(self) -> None:
        """Ask."""
        self.wire.setTcpNoDelay(True)
        headers = dict(self._handshake.headers)
        host = headers.pop("Host")
        extra = [(name.encode("ascii"), value.encode("ascii")) for name, value in headers.items()]
        target = urlsplit(self._handshake.endpoint).path + self._handshake.target
        self.send(Request(host=host, target=target, extra_headers=[*extra, (b"Content-Length", b"0")]))

    def send(self, event: Event) -> None:
        """Send an event, unless it is too late for that."""
        if not self._over:
            try:
                self.wire.write(self._wire.send(event))
            except LocalProtocolError:
                self._over = True

    def leave(self) -> None:
        """Say goodbye."""
        self.send(CloseConnection(NORMAL))
        self._over = True
        if self._joined:
            self.wire.unregisterProducer()
        self.wire.loseConnection()

    def dataReceived(self, data: bytes) -> None:
        """Take what the server sends."""
        try:
            self._wire.receive_data(data)
            for event in self._wire.events():
                self._take(event)
        except RemoteProtocolError as error:
            self._fail(f"The server does not speak WebSocket: {error}")

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002
        """End the other side with this one."""
        if not self._over:
            self._over = True
            self._complain(self._why() if self._status else "The connection to the server was lost.")
        self._local.end()

    def _take(self, event: Event) -> None:
        match event:
            case AcceptConnection():
                self._joined = self._local.join(self)
            case RejectConnection():
                self._status = event.status_code
            case RejectData():
                self._refusal += event.data[: LONGEST_REFUSAL - len(self._refusal)]
                if event.body_finished:
                    self._fail(self._why())
            case Ping():
                self.send(event.response())
            case BytesMessage():
                self._receive(bytes(event.data), finished=event.message_finished)
            case CloseConnection():
                if event.code != NORMAL:
                    self._complain(event.reason or f"The server closed the connection with {event.code}.")
                self.send(event.response())
                self._over = True
                self.wire.loseConnection()
            case _:
                pass

    def _receive(self, data: bytes, *, finished: bool) -> None:
        if data:
            self._local.receive(data)
        self._empty = self._empty and not data
        if finished:
            if self._empty:
                self._local.finish()
            self._empty = True

    def _why(self) -> str:
        """Say what a refusal says."""
        try:
            title = json.loads(self._refusal)["title"]
        except (ValueError, KeyError, TypeError):
            title = "no explanation"
        return f"The server refused the connection: {title} [{self._status}]"

    def _fail(self, why: str) -> None:
        self._over = True
        self._complain(why)
        self.wire.abortConnection()
