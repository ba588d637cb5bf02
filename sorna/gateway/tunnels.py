"""Connections with applications in a kernel, each over a WebSocket, as clients of 18.12 and later tunnel them.

Bytes travel in binary messages. Lists of those applications are here, too. Knows messages, credit and the clock, not how an application is reached. A client that reads slowly is not given credit, and
one that sends more than its application takes is not read from.

Note [The ends of a tunnel]
===========================
A WebSocket has no half-closed state. The published clients close theirs when their side has ended, and they want it closed when
the application has. So the end of what an application sends closes the WebSocket, and the end of the WebSocket ends the
connection, after what came over it before has been written. Who wants more says ``half-close=1`` in the query: then
an empty binary message, which no published client sends, is the end of one direction, either way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from attrs import frozen
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from sorna.errors import InvalidRequest
from sorna.gateway.call import Call, Reply, json_reply, no_content, read_json_object
from sorna.gateway.described import NOTHING, TEXT, Described, Schema, json_content, list_of, open_object
from sorna.gateway.interfaces import Kernels, Operations
from sorna.gateway.kernels import kernel_paths, stream_paths
from sorna.gateway.parameters import Parameters
from sorna.gateway.router import Router
from sorna.gateway.service_rows import SERVICE, service_row
from sorna.gateway.websockets import NORMAL, UNSUPPORTED, WebSocket
from sorna.model.service import LONGEST_NAME, LONGEST_VALUE, MOST_OPTIONS, WINDOW, Arguments, Tunnel, TunnelWish

#: The application cannot be reached, or its connection broke.
BROKEN = 1011
#: How long what a client sent before it went away may wait for an application that does not read. Seconds.
LINGER = 10.0

_FLAG: Schema = {"type": "string", "enum": ["0", "1"]}
_TUNNEL = Described(
    answers={},
    query={"app": TEXT, "port": TEXT, "arguments": TEXT, "envs": TEXT, "half-close": _FLAG},
    raises=(InvalidRequest,),
)
_APPS = Described(answers={200: json_content(list_of(SERVICE))})
_STOP = Described(body=json_content(open_object("service_name", service_name=TEXT)), answers={204: NOTHING})


@frozen
class TunnelRoutes:
    """The routes about applications in kernels."""

    kernels: Kernels
    operations: Operations
    clock: IReactorTime

    router: ClassVar[Router[TunnelRoutes]] = Router()

    @router.route("GET", *stream_paths("/httpproxy"), needs_ready=True, websocket=True, described=_TUNNEL)
    @router.route("GET", *stream_paths("/tcpproxy"), needs_ready=True, websocket=True, described=_TUNNEL)
    async def dig(self, call: Call) -> Reply:
        """Connect with an application in a kernel; one WebSocket for each connection, bytes in binary messages."""
        reference = call.kernel_reference
        query = Parameters({name: values[-1] for name, values in call.query.items()})
        session = TunnelSession(self.clock, half_close=query.text("half-close") == "1")
        session.tunnel = await self.kernels.open_tunnel(call.access_key, reference, session, read_wish(query))
        return Reply(101, session=session)

    @router.route("GET", *stream_paths("/apps"), needs_ready=True, described=_APPS)
    async def apps(self, call: Call) -> Reply:
        """List the applications in a kernel that can be connected with."""
        services = await self.kernels.services(call.access_key, call.kernel_reference)
        return json_reply([service_row(service) for service in services])

    @router.route("POST", *kernel_paths("/shutdown-service"), needs_ready=True, described=_STOP)
    async def stop(self, call: Call) -> Reply:
        """End an application that was started for a connection; the next connection starts it again."""
        reference = call.kernel_reference
        # Clients in JavaScript put it into the query and send no body.
        named = call.query.get("service_name")
        content = {"service_name": named[-1]} if named and not call.body else call.json_object()
        name = Parameters(content).required_text("service_name")
        await self.operations.detach(self.kernels.stop_service(call.access_key, reference, name))
        return no_content()


def read_wish(query: Parameters) -> TunnelWish:
    """Read what a client wants to be connected with. :raises InvalidRequest: names what is wrong."""
    app = query.required_text("app")
    if not app or len(app) > LONGEST_NAME:
        raise query.wrong("app", f"1 to {LONGEST_NAME} characters long")
    port = query.text("port")
    if port and not (port.isascii() and port.isdecimal() and len(port) <= 5):
        raise query.wrong("port", "a whole number")
    return TunnelWish(app, int(port) if port else None, _arguments(query), _environ(query))


def _arguments(query: Parameters) -> Arguments:
    given = _object(query, "arguments")
    return {name: [_value(given, name, one) for one in _values(given.content[name])] for name in given.content}


def _values(value: Any) -> Sequence[Any]:
    if value is None:
        return ()
    return value if isinstance(value, list) else (value,)


def _environ(query: Parameters) -> Mapping[str, str]:
    given = _object(query, "envs")
    return {name: _value(given, name, given.content[name]) for name in given.content}


def _object(query: Parameters, key: str) -> Parameters:
    """Read a JSON object out of a field of the query."""
    text = query.text(key)
    given = Parameters(read_json_object(text.encode("utf-8")) if text else {}, key)
    if len(given.content) > MOST_OPTIONS:
        raise query.wrong(key, f"an object with at most {MOST_OPTIONS} names")
    for name in given.content:
        _value(given, name[:LONGEST_NAME], name)
    return given


def _value(given: Parameters, name: str, value: Any) -> str:
    text = Parameters({name: value}, given.path).required_text(name)
    if len(text) > LONGEST_VALUE or "\0" in text:
        raise given.wrong(name, f"at most {LONGEST_VALUE} characters long and without NUL")
    return text


class TunnelSession:
    """One connection: a :class:`~sorna.gateway.websockets.Session` and a :class:`~sorna.model.service.TunnelUser`."""

    def __init__(self, clock: IReactorTime, *, half_close: bool) -> None:
        self._clock = clock
        self._half_close = half_close
        self._socket: WebSocket | None = None
        self._early: list[bytes] = []
        self._owed = 0
        self._app_finished = False
        self._reason: str | None = None
        self._pending = bytearray()
        self._room = WINDOW
        self._client_finished = False
        self._finish_told = False
        self._linger: IDelayedCall | None = None
        self._gone = False
        self.tunnel: Tunnel | None = None

    # From the application.

    def tunnel_data(self, data: bytes) -> None:
        """See ``TunnelUser``."""
        if self._gone:
            if self.tunnel is not None:
                self.tunnel.consumed(len(data))
            return
        if self._socket is None:
            self._early.append(data)
            return
        self._owed += len(data)
        self._socket.send_bytes(data)
        self._pay()

    def tunnel_room(self, size: int) -> None:
        """See ``TunnelUser``."""
        self._room += size
        self._push()

    def tunnel_finished(self) -> None:
        """See ``TunnelUser``, and Note [The ends of a tunnel]."""
        self._app_finished = True
        if self._socket is not None:
            if self._half_close:
                self._socket.send_bytes(b"")
            else:
                self._socket.close()

    def tunnel_ended(self, reason: str) -> None:
        """See ``TunnelUser``."""
        self.tunnel = None
        self._pending.clear()
        self._stop_lingering()
        self._reason = reason
        if self._socket is not None:
            self._socket.close(BROKEN if reason else NORMAL, reason)

    # From the client.

    def opened(self, socket: WebSocket) -> None:
        """See ``Session``; an application may have spoken before."""
        self._socket = socket
        socket.take_bytes(self._received_bytes)
        early, self._early = self._early, []
        for data in early:
            self.tunnel_data(data)
        if self._app_finished:
            self.tunnel_finished()
        if self._reason is not None:
            self.tunnel_ended(self._reason)

    def received(self, text: str) -> None:  # noqa: ARG002 - the interface's own argument
        """See ``Session``."""
        if self._socket is not None:
            self._socket.close(UNSUPPORTED, "only binary messages are understood")

    def resumed(self) -> None:
        """See ``Session``."""
        self._pay()

    def closed(self) -> None:
        """See ``Session``."""
        self._socket = None
        self._gone = True
        self._early.clear()
        if self.tunnel is None:
            return
        if not self._pending:
            self._close()
            return
        # Its last words are to be written; the application's are nobody's, and must not stop it from reading.
        self.tunnel.consumed(self._owed)
        self._linger = self._clock.callLater(LINGER, self._close)

    def _received_bytes(self, data: bytes) -> None:
        if self._client_finished or self.tunnel is None:
            return
        if not data and self._half_close:
            self._client_finished = True
        self._pending += data
        self._push()

    def _push(self) -> None:
        """Pass on what there is room for; while something waits, the client is not read from."""
        if self.tunnel is None:
            return
        if self._pending and self._room:
            piece = bytes(self._pending[: self._room])
            del self._pending[: len(piece)]
            self._room -= len(piece)
            self.tunnel.write(piece)
        if not self._pending and self._client_finished and not self._finish_told:
            self._finish_told = True
            self.tunnel.finish()
        if self._gone and not self._pending:
            self._close()
        elif self._socket is not None:
            self._socket.read(not self._pending)

    def _pay(self) -> None:
        if self._owed and self.tunnel is not None and self._socket is not None and self._socket.is_writable:
            owed, self._owed = self._owed, 0
            self.tunnel.consumed(owed)

    def _close(self) -> None:
        self._stop_lingering()
        tunnel, self.tunnel = self.tunnel, None
        if tunnel is not None:
            tunnel.close()

    def _stop_lingering(self) -> None:
        if self._linger is not None and self._linger.active():
            self._linger.cancel()
        self._linger = None
