"""How requests come off the wire, within bounds; knows Twisted's HTTP, nothing of routes or kernels.

Twisted's ``Site`` reads a body of any size, and lets one byte a minute keep a connection for ever. Here a body over its
limit is refused before it is read (or as soon as a chunked one has grown too large), a request has a time by which it
must have arrived, and all bodies together have a bound as well.

Note [Refusing while the client still sends]
============================================
Whoever closes a socket with unread bytes in it sends a reset, which makes the other side drop what it has not read yet:
the very answer that says what was wrong. So after a refusal the channel answers, tells with ``Connection: close`` that it
will not read another request, throws away what still arrives, and closes after a moment or a bounded number of bytes,
whichever comes first.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

from attrs import define, frozen
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure
from twisted.web.http import RESPONSES, HTTPChannel
from twisted.web.http_headers import Headers
from twisted.web.iweb import INonQueuedRequestFactory
from twisted.web.resource import IResource
from twisted.web.server import Request as TwistedRequest
from twisted.web.server import Site
from zope.interface import provider

from sorna.errors import InvalidRequest, SornaError, Unavailable
from sorna.gateway.call import problem_reply
from sorna.gateway.problems import BadRequest, PayloadTooLarge
from sorna.gateway.receiving import PIECE_TYPE, Receiver, Receivers
from sorna.gateway.router import SERVER
from sorna.model.limits import KIB, MIB

# What a body of unknown length is taken for, where only time depends on it.
_ENDLESS = 64 * 1024 * MIB


@frozen
class ReadingLimits:
    """How much and how long this door reads. Sizes in bytes, times in seconds.

    :ivar form: largest ``multipart`` body, twenty files of a mebibyte and their headers; and largest piece of an upload.
    :ivar other: largest body of any other type; it is hashed and decoded in one go, so it must stay small.
    :ivar together: all bodies that are being read or answered at once, those below ``small`` not counted.
    :ivar head_time: from the first byte of a request to the end of its headers.
    :ivar body_time: for the body, and one second more for each ``slowest`` bytes.
    :ivar idle_time: without a byte, within a request or between two.
    :ivar linger_time: after a refusal; ``linger`` bytes at the most.
    """

    form: int = 22 * MIB
    other: int = MIB
    together: int = 256 * MIB
    small: int = 64 * KIB
    head_time: float = 20.0
    body_time: float = 20.0
    slowest: int = 32 * KIB
    idle_time: float = 60.0
    linger_time: float = 2.0
    linger: int = 64 * MIB


@define
class BodyBudget:
    """What is left of the memory for bodies."""

    left: int

    def take(self, size: int) -> bool:
        """Take a piece if there is one."""
        if size > self.left:
            return False
        self.left -= size
        return True

    def give_back(self, size: int) -> None:
        """Give a piece back."""
        self.left += size


@provider(INonQueuedRequestFactory)
class Request(TwistedRequest):
    """A request whose body stays within the limits of its site.

    :ivar arrived: whether all of it has been received.
    :ivar stored_to: where an upload is after this body, which was stored while it arrived; None for any other body.
    """

    channel: Channel
    site: LimitedSite
    arrived = False
    stored_to: int | None = None
    _receiver: Receiver | None = None
    _size = 0
    _taken = 0
    _limit = 0

    def gotLength(self, length: int | None) -> None:
        """Look at the headers before any of the body is read."""
        site = self.channel.site
        self.content = self._body = BytesIO()
        if site.receivers is not None:
            self._receiver = site.receivers.receive(*self.channel.head, self.requestHeaders, self.channel)
        if self._receiver is not None:
            self.channel.expect_body(_ENDLESS if length is None else length)
            return
        content_type = self.requestHeaders.getRawHeaders(b"Content-Type", (b"",))[0]
        self._budget = site.budget
        # Neither is hashed or decoded in one go.
        in_pieces = content_type.strip().lower().startswith((b"multipart/", PIECE_TYPE))
        self._limit = site.limits.form if in_pieces else site.limits.other
        self.channel.expect_body(self._limit if length is None else length)
        if length is not None and length > self._limit:
            self._refuse_size()

    def handleContentChunk(self, data: bytes) -> None:
        """Take a piece of the body."""
        if self.channel.refused:
            return
        if self._receiver is not None:
            self._receiver.take(data)
            return
        self._size += len(data)
        limits = self.channel.site.limits
        if self._size > self._limit:
            self._refuse_size()
        elif self._size > limits.small and not self._take(self._size - self._taken):
            self.channel.refuse(Unavailable("Too many large requests at once."))
        else:
            self._body.write(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """Handle a request that has arrived whole."""
        if self.channel.refused:
            return
        self.arrived = True
        self.channel.expect_nothing()
        if self._receiver is None:
            super().requestReceived(command, path, version)
            return
        receiver = self._receiver

        def stored(_result: None) -> None:
            self.stored_to = receiver.offset
            if getattr(self, "channel", None) is not None:
                super(Request, self).requestReceived(command, path, version)

        receiver.finish().addCallback(stored)

    def finish(self) -> None:
        """Note that the answer is complete."""
        self._release()
        super().finish()

    def connectionLost(self, reason: Failure) -> None:
        """Note that the client has hung up."""
        self._release()
        if self._receiver is not None and not self.arrived:
            self._receiver.abandon()
        super().connectionLost(reason)

    def _take(self, size: int) -> bool:
        if not self._budget.take(size):
            return False
        self._taken += size
        return True

    def _release(self) -> None:
        if self._taken:
            self._budget.give_back(self._taken)
            self._taken = 0

    def _refuse_size(self) -> None:
        # Without this, Twisted would follow the refusal with an invitation to send the body.
        self.requestHeaders.removeHeader(b"Expect")
        self.channel.refuse(PayloadTooLarge(f"at most {self._limit} bytes"))


class Channel(HTTPChannel):
    """One connection, which gives a request only so much time to arrive.

    The time is looked at when bytes come, and the idle time ends a connection on which none come; so no timer is started
    for each request.

    :ivar refused: whether the connection has been answered for the last time.
    """

    site: LimitedSite
    requestFactory = Request
    refused = False
    _deadline: float | None = None
    _discarded = 0
    _closing: IDelayedCall | None = None
    _host: Any = None

    def getHost(self) -> Any:
        """Give the address that the client connected to, which Twisted asks the system for with every request."""
        if self._host is None:
            self._host = super().getHost()
        return self._host

    @property
    def head(self) -> tuple[bytes, bytes]:
        """Method and target of the request whose head has just arrived."""
        return self._command, self._path

    def pause(self) -> None:
        """Read no more for now."""
        self._transport.pauseProducing()

    def resume(self) -> None:
        """Go on reading."""
        self._transport.resumeProducing()

    def dataReceived(self, data: bytes) -> None:
        """Take bytes from the wire."""
        if self.refused:
            self._discard(len(data))
            return
        if not self.requests or not self.requests[-1].arrived:
            now = self.site.reactor.seconds()
            if self._deadline is None:
                self._deadline = now + self.site.limits.head_time
            elif now > self._deadline:
                self._too_late()
                return
        super().dataReceived(data)

    def lineReceived(self, line: bytes) -> None:
        """Take a line, unless what came before it in the same bytes was refused."""
        if not self.refused:
            super().lineReceived(line)

    def rawDataReceived(self, data: bytes) -> None:
        """Take a piece of a body, or what follows a request that is being answered."""
        if not self.refused:
            super().rawDataReceived(data)

    def expect_body(self, length: int) -> None:
        """Give the body of the request that is being received its time."""
        limits = self.site.limits
        self._deadline = self.site.reactor.seconds() + limits.body_time + length / limits.slowest

    def expect_nothing(self) -> None:
        """Note that the request has arrived."""
        self._deadline = None

    def timeoutConnection(self) -> None:
        """End a connection on which nothing has come for too long."""
        if self._deadline is not None and not self.refused:
            self._too_late()
        else:
            super().timeoutConnection()

    def refuse(self, error: SornaError) -> None:
        """Answer for the last time; see Note [Refusing while the client still sends]."""
        if self.refused:
            return
        self.refused = True
        self.persistent = False
        self.setTimeout(None)
        reply = problem_reply(error)
        head = [
            b"HTTP/1.1 %d %s" % (reply.status, RESPONSES[reply.status]),
            b"Server: " + SERVER,
            b"Content-Type: " + reply.content_type,
            b"Content-Length: %d" % len(reply.body),
            b"Connection: close",
            *(name + b": " + value for name, value in reply.headers.items()),
        ]
        self._transport.writeSequence([b"\r\n".join(head), b"\r\n\r\n", reply.body])
        self._closing = self.site.reactor.callLater(self.site.limits.linger_time, self._close)

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Headers) -> None:
        """Write the head of an answer in one piece; Twisted's own gives the transport four for each header."""
        lines = [b"%b %b %b" % (version, code, reason)]
        for name, values in headers.getAllRawHeaders():
            lines += [b"%b: %b" % (name, value) for value in values]
        self._transport.write(b"\r\n".join((*lines, b"", b"")))

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]  # Twisted's default is untyped here
        """Note that the connection is gone."""
        if self._closing is not None and self._closing.active():
            self._closing.cancel()
        super().connectionLost(reason)

    def _discard(self, size: int) -> None:
        self._discarded += size
        if self._discarded > self.site.limits.linger:
            self._close()

    def _close(self) -> None:
        self._transport.abortConnection()

    def _too_late(self) -> None:
        self.refuse(InvalidRequest("The request did not arrive in time"))

    def _respondToBadRequestAndDisconnect(self) -> None:
        # Twisted's bare 400 has neither length nor type, which old clients index without asking. Should a later Twisted
        # no longer call this, its own answer is what such clients get.
        self.refuse(BadRequest("Malformed HTTP request."))

    @property
    def _transport(self) -> Any:
        # ITransport has no abortConnection, and every transport that a site gets has one.
        return self.transport


class LimitedSite(Site):
    """A site whose connections are :class:`Channel` and which writes no access log.

    :param on_stop: is called when the port closes; connections go on.
    """

    protocol = Channel  # type: ignore[assignment]  # not the one that may switch to HTTP/2: limits and timing are ours
    requestFactory = Request

    def __init__(
        self,
        resource: IResource,
        reactor: IReactorTime,
        limits: ReadingLimits,
        on_stop: Callable[[], None],
        receivers: Receivers | None = None,
    ) -> None:
        super().__init__(resource, timeout=limits.idle_time, reactor=reactor, parsePOSTFormSubmission=False)
        self.limits = limits
        self.receivers = receivers
        self.budget = BodyBudget(limits.together)
        self._on_stop = on_stop

    def startFactory(self) -> None:
        """Start without the clock that stamps access log lines."""

    def stopFactory(self) -> None:
        """Tell that the port has closed."""
        self._on_stop()

    def log(self, request: Any) -> None:
        """Write nothing: what matters is logged where it happens."""

    def acceptableProtocols(self) -> list[bytes]:
        """Offer HTTP/1.1 alone over TLS."""
        return [b"http/1.1"]
