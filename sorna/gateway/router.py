"""The table of routes, and the resource that matches requests to it. The only file that knows Klein.

An area declares its routes on a class-level :class:`Router`; :class:`Application` puts the bound routes of all areas on one
Klein app and passes every request through the :class:`~sorna.gateway.gate.Gate`.

Note [What Klein would do by itself]
====================================
Klein keeps the table of routes and calls their endpoints; its resource is not used. That one binds the table anew to each
request's ``Host`` and wraps every request into several Deferreds, which costs more than authentication does; it answers in
HTML where its matching fails, redirects between ``/x`` and ``/x/`` (signed requests break on that), and logs and answers
plain text to a path that is no UTF-8. So the application looks at the request first, asks the table, which is bound
once and remembers what it matched, and writes the answer itself. Slashes do not count, HEAD is not added to routes with GET,
whatever goes wrong becomes a problem body, and a client that hangs up cancels the route.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar, cast

from attrs import evolve, field, frozen
from klein import Klein
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request
from werkzeug import exceptions

from sorna.errors import SornaError
from sorna.gateway import cross_origin, streaming
from sorna.gateway.call import Access, Call, Reply, Stream
from sorna.gateway.described import Described
from sorna.gateway.gate import Answer, Gate, Incoming, era_of
from sorna.gateway.interfaces import Keypairs
from sorna.gateway.open_sessions import OpenSessions
from sorna.gateway.problems import BadRequest, Era, MethodNotAllowed, UnknownPath
from sorna.gateway.watching import WatchedSession, when_revoked
from sorna.gateway.websockets import Session, WebSockets

A = TypeVar("A")
Handler = Callable[[A, Call], Coroutine[Any, Any, Reply]]

VERSIONS = {"v1": 1, "v2": 2, "v3": 3, "v4": 4}
#: What clients are told. Those of 20.03 and later would sign as an older server wants, and as this one does not, if it said less;
#: and those of 18.12 to 20.09 would use WebSockets for every run if it said more.
API_VERSION = "v4.20181215"
SERVER = b"BackendAI-API/" + API_VERSION.encode("ascii")

_PREFIX = f"/<any({', '.join(VERSIONS)}):_version>"
_LOOKS_LIKE_VERSION = re.compile(rb"v\d+", re.ASCII)
_BAD_HOST = "Malformed Host header."
# Bytes between two dots of a host's name, and a port behind the last.
_LONGEST_LABEL = 63 + len(":65535")
# A kernel's id in a path. Nothing that a route spells out looks like one, so that paths that differ in it alone match alike.
_KERNEL = re.compile(rb"(?<=/)[A-Za-z0-9_-]{21}[AQgw](?=/|\Z)")
# Matches that are remembered, of paths of so many bytes.
_MOST_REMEMBERED = 8192
_LONGEST_REMEMBERED = 256

_log = Logger()
_OVERRIDES = frozenset({b"GET", b"POST", b"PUT", b"PATCH", b"DELETE"})


@frozen
class Route:
    """What is declared of a route.

    :ivar path: without version prefix and trailing slash; variable parts in angle brackets.
    :ivar versioned: whether the path is found below ``/v1`` and so on besides the root.
    :ivar needs_ready: whether it answers 503 until the process is ready.
    :ivar websocket: whether it is opened by a WebSocket's handshake, and answers with a session.
    :ivar plain: whether a route for WebSockets answers requests without a handshake as well.
    :ivar summary: what it does, in a sentence.
    :ivar described: what it takes and gives.
    """

    method: str
    path: str
    access: Access = Access.KEYPAIR
    versioned: bool = True
    needs_ready: bool = False
    websocket: bool = False
    plain: bool = False
    summary: str = field(default="", eq=False)
    described: Described | None = field(default=None, eq=False)


@frozen
class BoundRoute:
    """A route with the method of the area that answers it."""

    route: Route
    answer: Answer


class Router(Generic[A]):
    """The routes of one area, declared beside the methods that answer them."""

    def __init__(self) -> None:
        self._declared: list[tuple[Route, Handler[A]]] = []

    def route(
        self,
        method: str,
        *paths: str,
        access: Access = Access.KEYPAIR,
        versioned: bool = True,
        needs_ready: bool = False,
        websocket: bool = False,
        plain: bool = False,
        described: Described | None = None,
    ) -> Callable[[Handler[A]], Handler[A]]:
        """Declare that a method of the area's class answers routes; several declarations may be stacked on one method.

        The first paragraph of the method's docstring is what the interface's description says of them.
        """

        def declare(handler: Handler[A]) -> Handler[A]:
            summary = " ".join((inspect.getdoc(handler) or "").partition("\n\n")[0].split())
            for path in paths:
                route = Route(method, path, access, versioned, needs_ready, websocket, plain, summary, described)
                self._declared.append((route, handler))
            return handler

        return declare

    @property
    def routes(self) -> Sequence[Route]:
        """The routes, whoever answers them."""
        return [route for route, _handler in self._declared]

    def bind(self, area: A) -> Sequence[BoundRoute]:
        """Give the routes as an instance of the area answers them."""
        return [BoundRoute(route, _bound(handler, area)) for route, handler in self._declared]


def _bound(handler: Handler[A], area: A) -> Answer:
    return lambda call: handler(area, call)


@frozen
class _Match:
    """What the table says of a path.

    :ivar values: the variable parts of the path, but for those that are the kernel's id, whose names are ``names``.
    """

    endpoint: str
    values: Mapping[str, str]
    names: tuple[str, ...]


class Application(Resource):
    """The resource at the root of the site."""

    isLeaf = True

    def __init__(self, gate: Gate, websockets: WebSockets, keypairs: Keypairs, routes: Iterable[BoundRoute]) -> None:
        super().__init__()
        self._gate = gate
        self._websockets = websockets
        self._sessions = OpenSessions()
        self._keypairs = keypairs
        self._bound = tuple(routes)
        self._klein = Klein()
        self._klein.url_map.strict_slashes = False
        self._klein.url_map.merge_slashes = False
        for bound in self._bound:
            self._add(bound)
        for rule in self._klein.url_map.iter_rules():
            if rule.methods is not None and not str(rule.endpoint).startswith("HEAD "):
                rule.methods.discard("HEAD")
        self._table = self._klein.url_map.bind("localhost")
        self._matched: dict[tuple[bytes, bytes], tuple[str, Mapping[str, str]]] = {}
        self._shapes: dict[tuple[bytes, bytes], _Match] = {}

    @property
    def routes(self) -> Sequence[Route]:
        """Every route there is."""
        return [bound.route for bound in self._bound]

    def going_away(self) -> None:
        """Close what is open over WebSockets, because the server stops."""
        self._sessions.going_away()

    def render(self, request: Request) -> int:
        """Answer a request; see Note [What Klein would do by itself]."""
        override = request.getHeader(b"X-Method-Override")
        try:
            if cross_origin.is_preflight(request.method, request.requestHeaders):
                self._finish(request, self._preflight(request))
                return NOT_DONE_YET
            if override is not None:
                request.method = _overriding(request.method, override)
            _check_host(request.getHeader(b"Host"))
            endpoint, values = self._match(request)
        except SornaError as error:
            self._finish(request, self._gate.refuse(error, _era(request)))
        except Exception:  # noqa: BLE001 - Twisted would answer in HTML
            self._finish(request, self._gate.break_down(Failure(), _era(request)))
        else:
            self._call(request, endpoint, values)
        return NOT_DONE_YET

    def _match(self, request: Request) -> tuple[str, Mapping[str, str]]:
        """Find the endpoint of a request and the variable parts of its path.

        :raises MethodNotAllowed: the path has other methods.
        :raises UnknownPath: there is no such path.
        """
        key = (request.method, request.path)
        found = self._matched.get(key)
        if found is None:
            found = self._match_shape(request)
            if len(request.path) <= _LONGEST_REMEMBERED:
                if len(self._matched) >= _MOST_REMEMBERED:
                    self._matched.clear()
                self._matched[key] = found
        return found

    def _match_shape(self, request: Request) -> tuple[str, Mapping[str, str]]:
        """Match a path that was not matched before, perhaps like that of another kernel."""
        kernel = _KERNEL.search(request.path)
        if kernel is None:
            found = self._look_up(request, None)
            return found.endpoint, found.values
        shape = (request.method, request.path[: kernel.start()] + b"?" + request.path[kernel.end() :])
        name = kernel[0].decode("ascii")
        known = self._shapes.get(shape)
        found = self._look_up(request, name) if known is None else known
        # Where the id is no variable part by itself, others may match otherwise.
        if known is None and len(found.names) == 1 and len(request.path) <= _LONGEST_REMEMBERED:
            if len(self._shapes) >= _MOST_REMEMBERED:
                self._shapes.clear()
            self._shapes[shape] = found
        return found.endpoint, {**found.values, **dict.fromkeys(found.names, name)}

    def _look_up(self, request: Request, kernel: str | None) -> _Match:
        """Ask the table. :param kernel: the segment of the path that is a kernel's id."""
        segments = request.postpath or []
        _check_path(segments)
        try:
            path, method = b"/".join((b"", *segments)).decode("utf-8"), request.method.decode("latin-1")
            rule, values = self._table.match(path, method, return_rule=True)
        except exceptions.MethodNotAllowed as error:
            raise MethodNotAllowed(frozenset(error.valid_methods or ())) from None
        except exceptions.HTTPException:
            raise UnknownPath from None
        names = tuple(name for name, value in values.items() if value == kernel)
        return _Match(rule.endpoint, {name: value for name, value in values.items() if name not in names}, names)

    def _call(self, request: Any, endpoint: str, values: Mapping[str, str]) -> None:
        """Let a route answer, and cancel it when the client hangs up."""
        # Every endpoint of the table gives one; see _add.
        answering = cast("Deferred[bytes | Session]", self._klein.execute_endpoint(endpoint, request, **values))
        if not answering.called:
            request.notifyFinish().addErrback(lambda _gone: answering.cancel())
        answering.addCallback(self._answered, request)
        answering.addErrback(self._not_answered, request)

    def _answered(self, answer: bytes | Session, request: Any) -> None:
        if isinstance(answer, bytes):
            if request.channel is not None:
                request.write(answer)
                request.finish()
        elif request.channel is not None:
            self._websockets.upgrade(request, answer)

    def _not_answered(self, failure: Failure, request: Any) -> None:
        if request.channel is None:
            if failure.check(CancelledError) is None:
                _log.failure("a request whose client has hung up met an error", failure)
        elif request.startedWriting:
            # It is too late for another status; the client must see that this is not all.
            _log.failure("a request met an error after its answer had begun", failure)
            request.transport.abortConnection()
        else:
            self._finish(request, self._gate.break_down(failure, _era(request)))

    def _preflight(self, request: Request) -> Reply:
        _check_path(request.postpath or [])
        path = request.path.decode("utf-8")
        methods = set(self._table.allowed_methods(path))
        if not methods:
            raise UnknownPath
        return cross_origin.preflight_reply(methods, request.requestHeaders)

    def _add(self, bound: BoundRoute) -> None:
        route = bound.route

        def endpoint(request: IRequest, _version: str = "", **values: str) -> Deferred[Any]:
            return Deferred.fromCoroutine(self._answer(request, bound, _version, values))

        for prefix in (_PREFIX, "") if route.versioned else ("",):
            path = prefix + route.path or "/"
            self._klein.route(path, methods=[route.method], endpoint=f"{route.method} {path}")(endpoint)

    async def _answer(self, request: Any, bound: BoundRoute, version: str, values: dict[str, str]) -> bytes | Session:
        # The request is Any because IRequest lacks half of what every request has.
        incoming = Incoming(
            method=request.method.decode("ascii"),
            target=request.uri,
            version=VERSIONS.get(version, 0),
            values=values,
            headers=request.requestHeaders,
            body=request.content.read(),
            stored_to=getattr(request, "stored_to", None),
            gone=lambda: getattr(request, "channel", None) is None,
        )
        route = bound.route
        handshake = route.websocket and (incoming.headers.hasHeader(b"Upgrade") or not route.plain)
        answer = self._opening(incoming, bound.answer) if handshake else bound.answer
        reply = await self._gate.pass_through(incoming, answer, route.access, needs_ready=route.needs_ready)
        if reply.session is not None:
            return reply.session
        body = write_head(request, reply)
        if reply.stream is not None:
            await self._send(request, reply.stream, reply.owner)
        return body

    async def _send(self, request: Any, stream: Stream, owner: str | None) -> None:
        clock = self._websockets.clock
        if owner is None:
            await streaming.send(request, stream, clock)
            return
        unwatch = when_revoked(self._keypairs, owner, request.transport.abortConnection)
        try:
            await streaming.send(request, stream, clock)
        finally:
            unwatch()

    def _opening(self, incoming: Incoming, answer: Answer) -> Answer:
        """Let a route for WebSockets be asked only by what can become one, once the gate knows who asks."""

        async def open_session(call: Call) -> Reply:
            self._websockets.check(incoming.headers, incoming.body)
            reply = await answer(evolve(call, handshake=True))
            if reply.session is None:
                return reply
            session = self._sessions.keep(reply.session)
            if call.keypair is not None:
                session = WatchedSession(session, self._keypairs, call.access_key)
            return evolve(reply, session=session)

        return open_session

    @staticmethod
    def _finish(request: Request, reply: Reply) -> None:
        request.write(write_head(request, reply))
        request.finish()


def write_head(request: Request, reply: Reply) -> bytes:
    """Set the status and the headers of a reply, and give the body that is still to be written."""
    request.setResponseCode(reply.status)
    headers = request.responseHeaders
    headers.setRawHeaders(b"Server", [SERVER])
    headers.setRawHeaders(b"Content-Type", [reply.content_type])
    length = len(reply.body) if reply.stream is None else reply.stream.length
    if length is not None:
        headers.setRawHeaders(b"Content-Length", [b"%d" % length])
    for name, value in (*reply.headers.items(), *cross_origin.shared(request.requestHeaders).items()):
        headers.setRawHeaders(name, [value])
    return reply.body


def _era(request: Any) -> Era:
    first = (request.postpath or [b""])[0].decode("latin-1")
    return era_of(VERSIONS.get(first, 0), request.requestHeaders)


def _check_host(host: bytes | None) -> None:
    if host is not None and (not host.isascii() or max(map(len, host.split(b"."))) > _LONGEST_LABEL):
        raise BadRequest(_BAD_HOST)


def _check_path(segments: Sequence[bytes]) -> None:
    try:
        for segment in segments:
            segment.decode("utf-8")
    except UnicodeDecodeError:
        raise BadRequest("The path is not UTF-8.") from None
    if segments and _LOOKS_LIKE_VERSION.fullmatch(segments[0]) and segments[0].decode("ascii") not in VERSIONS:
        raise BadRequest("Unsupported API major version.")


def _overriding(method: bytes, override: bytes) -> bytes:
    method_instead = override.strip().upper()
    # HEAD decides how the answer looks on the wire, so it can be neither replaced nor asked for by a header.
    if method == b"HEAD" or method_instead not in _OVERRIDES:
        raise MethodNotAllowed(frozenset(one.decode("ascii") for one in _OVERRIDES))
    return method_instead
