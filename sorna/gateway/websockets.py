"""WebSockets within bounds: the handshake's checks, and one connection with its limits, its pings and its slow reader.

Knows Twisted's WebSockets and the clock, no route and no kernel: a route answers with a :class:`Session`, which is told what
the client says. Who may open one was decided by the gate, as for every request, before the route was asked.

Note [What Twisted's WebSockets leave to us]
============================================
Twisted collects the fragments of a message without a limit, answers pings but sends none, looks at no origin, and writes
for a client that does not read into a buffer without a bound. So bytes are counted before they are parsed, and who sends
more than a message may have without finishing one is closed with 1009; a ping goes out now and then, and who has not
answered several is dropped; browsers may come from pages of this very host alone; and a session learns when the client
stops to read (``is_writable``) and when it reads on (``resumed``). The HTTP channel is its transport's producer until the
upgrade and has to give that place up. A client that will not take the closing frame is dropped after a moment.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import urlsplit

from attrs import frozen
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.server import Request
from twisted.web.websocket import WebSocketResource, WebSocketTransport
from wsproto.utilities import LocalProtocolError
from zope.interface import implementer

from sorna.gateway.problems import BadRequest
from sorna.model.limits import KIB, MIB

NORMAL, UNSUPPORTED, POLICY, TOO_LARGE = 1000, 1003, 1008, 1009
# Frames' headers, and pings between the fragments of a message.
_OVERHEAD = 64 * KIB
_LONGEST_REASON = 123
# What the head of every handshake says, besides its key.
_HANDSHAKE = {b"Connection": [b"Upgrade"], b"Upgrade": [b"websocket"], b"Sec-WebSocket-Version": [b"13"]}


class WebSocket(Protocol):
    """What a session may do with its connection."""

    @property
    def is_writable(self) -> bool:
        """Whether the client keeps up; what is sent while it does not grows a buffer of this process."""
        ...

    def send(self, text: str) -> None:
        """Send a text message; nothing once the connection closes."""
        ...

    def send_bytes(self, data: bytes) -> None:
        """Send a binary message; nothing once the connection closes."""
        ...

    def take_bytes(self, receive: Callable[[bytes], None]) -> None:
        """Let binary messages come, which a session that does not ask for them is spared. ``receive`` must not raise."""
        ...

    def read(self, wanted: bool) -> None:
        """Read from the client, or leave it waiting; one more message may come after that."""
        ...

    def close(self, code: int = NORMAL, reason: str = "") -> None:
        """Say goodbye after everything that was sent; harmless when that was done."""
        ...


class Session(Protocol):
    """What a route has to say to one client over a WebSocket."""

    def opened(self, socket: WebSocket) -> None:
        """Begin; the first call of all."""
        ...

    def received(self, text: str) -> None:
        """Take a text message, as long as the limits let it be. Must not raise."""
        ...

    def resumed(self) -> None:
        """Learn that the client reads again after it did not."""
        ...

    def closed(self) -> None:
        """Learn, once and last, that the connection is gone, whoever ended it; also when it never opened."""
        ...


@frozen
class WebSocketLimits:
    """Bounds of every connection. Sizes in bytes, times in seconds.

    :ivar message: the largest message, on the wire.
    :ivar ping: between two pings; who is silent for more than ``patience`` is dropped.
    :ivar goodbye: for the client to take the closing frame.
    """

    message: int = 2 * MIB
    ping: float = 20.0
    patience: float = 50.0
    goodbye: float = 5.0


@frozen
class WebSockets:
    """Makes WebSockets of requests."""

    clock: IReactorTime
    limits: WebSocketLimits

    def check(self, headers: Headers, body: bytes) -> None:
        """Judge a request before its route does anything.

        :raises BadRequest: no handshake of version 13, a page of another host, or a body.
        """
        missing = _missing(headers)
        if missing:
            raise BadRequest(f"This URL is for WebSockets: Missing header, {missing!r}")
        for name in (b"Sec-WebSocket-Protocol", b"Sec-WebSocket-Extensions"):
            if not all(map(bytes.isascii, headers.getRawHeaders(name) or ())):
                raise BadRequest("A header of the handshake is no ASCII.")
        if not _is_key((headers.getRawHeaders(b"Sec-WebSocket-Key") or [b""])[-1]):
            raise BadRequest("Sec-WebSocket-Key must be 16 bytes in base64.")
        if body:
            raise BadRequest("A WebSocket's handshake has no body.")
        _check_origin(headers)

    def upgrade(self, request: Request, session: Session) -> None:
        """Switch a request that :meth:`check` let through; the session lives from now on until it is ``closed``."""
        # The request is written by Twisted's resource alone from here on.
        channel: Any = request.channel
        if channel is None:  # the client hung up in the last moment
            session.closed()
            return
        connection = _Connection(self.clock, self.limits, session, channel.transport)
        # Twisted has another library parse the head again, which takes longer the more there is in it.
        key = request.requestHeaders.getRawHeaders(b"Sec-WebSocket-Key", [b""])[-1]
        request.requestHeaders = Headers({**_HANDSHAKE, b"Sec-WebSocket-Key": [key], b"Host": [b"localhost"]})
        WebSocketResource(_Factory(connection)).render_GET(request)
        channel.dataReceived = connection.bounded(channel.dataReceived)


def _missing(headers: Headers) -> str:
    """Name what a handshake lacks; empty when it is all there. Where a header comes twice, the last one counts."""
    for name, value in _HANDSHAKE.items():
        given = (headers.getRawHeaders(name) or [b""])[-1].lower()
        wanted = value[0].lower()
        if given != wanted and (name != b"Connection" or wanted not in map(bytes.strip, given.split(b","))):
            return f"{name.decode()}: {value[0].decode()}"
    return next((name.decode() for name in (b"Sec-WebSocket-Key", b"Host") if not headers.hasHeader(name)), "")


def _is_key(text: bytes) -> bool:
    """Tell whether a text can be a handshake's key, which the library that answers it does not look at."""
    try:
        return len(base64.b64decode(text, validate=True)) == 16
    except binascii.Error:
        return False


def _check_origin(headers: Headers) -> None:
    host = (headers.getRawHeaders(b"Host") or [b""])[0].lower()
    for origin in headers.getRawHeaders(b"Origin") or ():
        # Browsers alone send it. A page elsewhere has no business here: it could only have been lured a signature.
        try:
            same = urlsplit(origin).netloc.lower() == host
        except ValueError:
            raise BadRequest("The origin is none.") from None
        if not same:
            raise BadRequest("The origin is another host.")


@frozen
class _Factory:
    connection: _Connection

    def buildProtocol(self, request: Request) -> _Connection:  # noqa: ARG002 - the name is Twisted's
        return self.connection


@implementer(IPushProducer)
class _Connection:
    """One WebSocket, between Twisted's protocol and a session; see Note [What Twisted's WebSockets leave to us]."""

    def __init__(self, clock: IReactorTime, limits: WebSocketLimits, session: Session, wire: Any) -> None:
        # The wire is Any because ITransport lacks abortConnection, which every transport of a site has.
        self._clock = clock
        self._limits = limits
        self._session = session
        self._wire = wire
        self._transport: WebSocketTransport | None = None
        self._unfinished = 0
        self._heard = clock.seconds()
        self._closing = False
        self._timer: IDelayedCall | None = None
        self._take_bytes: Callable[[bytes], None] | None = None
        self._reading = True
        self.is_writable = True

    # What Twisted tells.

    def negotiationStarted(self, transport: WebSocketTransport) -> None:
        """Learn over what to send."""
        self._transport = transport

    def negotiationFinished(self) -> None:
        """Begin."""
        assert self._transport is not None
        self._transport.detachProducer()
        self._transport.attachProducer(self)
        self._timer = self._clock.callLater(self._limits.ping, self._ping)
        self._session.opened(self)

    def bounded(self, deliver: Any) -> Any:
        """Wrap what takes bytes of the wire, so that no more of them are kept than one message may have."""

        def receive(data: bytes) -> None:
            self._unfinished += len(data)
            if self._unfinished > self._limits.message + _OVERHEAD:
                self.close(TOO_LARGE, f"a message has at most {self._limits.message} bytes")
                return
            try:
                deliver(data)
            except LocalProtocolError:
                # Twisted answers a ping behind our goodbye; that is on its way, and nothing else matters any more.
                if not self._closing:
                    self._gone()

        return receive

    def textMessageReceived(self, message: str) -> None:
        """Pass a message on."""
        self._heard = self._clock.seconds()
        self._unfinished = 0
        if not self._closing:
            self._session.received(message)

    def bytesMessageReceived(self, data: bytes | bytearray) -> None:
        """Pass a message on to a session that takes such; else everything is JSON in text."""
        self._heard = self._clock.seconds()
        self._unfinished = 0
        if self._take_bytes is None:
            self.close(UNSUPPORTED, "only text messages are understood")
        elif not self._closing:
            self._take_bytes(bytes(data))

    def pongReceived(self, payload: bytes) -> None:  # noqa: ARG002
        """Note that the client is there."""
        self._heard = self._clock.seconds()

    def connectionLost(self, reason: Failure) -> None:  # noqa: ARG002
        """Tell the session."""
        self._closing = True
        self._stop_timer()
        self._session.closed()

    # What the transport tells of a client that reads slowly.

    def pauseProducing(self) -> None:
        """Note that the client does not keep up."""
        self.is_writable = False

    def resumeProducing(self) -> None:
        """Go on."""
        self.is_writable = True
        if not self._closing:
            self._session.resumed()

    def stopProducing(self) -> None:
        """Note that nothing can be sent any more."""
        self._closing = True

    # What the session does.

    def send(self, text: str) -> None:
        """See :class:`WebSocket`."""
        if not self._closing and self._transport is not None:
            try:
                self._transport.sendTextMessage(text)
            except LocalProtocolError:
                self._gone()

    def send_bytes(self, data: bytes) -> None:
        """See :class:`WebSocket`."""
        if not self._closing and self._transport is not None:
            try:
                self._transport.sendBytesMessage(data)
            except LocalProtocolError:
                self._gone()

    def take_bytes(self, receive: Callable[[bytes], None]) -> None:
        """See :class:`WebSocket`."""
        self._take_bytes = receive

    def read(self, wanted: bool) -> None:
        """See :class:`WebSocket`. Who is not read from cannot answer a ping, and is not blamed for that."""
        if wanted is self._reading or self._closing:
            return
        self._reading = wanted
        self._heard = self._clock.seconds()
        if wanted:
            self._wire.resumeProducing()
        else:
            self._wire.pauseProducing()

    def close(self, code: int = NORMAL, reason: str = "") -> None:
        """See :class:`WebSocket`."""
        if self._closing or self._transport is None:
            return
        self.read(True)  # so that the client's own goodbye is heard
        self._closing = True
        self._stop_timer()
        self._timer = self._clock.callLater(self._limits.goodbye, self._wire.abortConnection)
        transport: Any = self._transport  # the published type lacks the reason
        # A producer that is paused would keep the connection open.
        transport.detachProducer()
        try:
            transport.loseConnection(code, reason.encode()[:_LONGEST_REASON].decode("utf-8", "ignore"))
        except LocalProtocolError:
            self._wire.abortConnection()

    def _ping(self) -> None:
        if self._reading and self._clock.seconds() - self._heard > self._limits.patience:
            self._wire.abortConnection()
            return
        self._timer = self._clock.callLater(self._limits.ping, self._ping)
        if self._transport is not None:
            try:
                self._transport.ping()
            except LocalProtocolError:
                self._gone()

    def _gone(self) -> None:
        """Drop a connection whose client has said goodbye and whose transport has not ended by itself."""
        self._closing = True
        self._stop_timer()
        self._wire.abortConnection()

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
