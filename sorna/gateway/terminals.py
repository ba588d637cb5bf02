"""A kernel's terminal over a WebSocket: JSON in text messages, bytes in base64, as in section 2.9 of the specification.

Knows messages and viewers, not how terminals work. What a client sends that makes no sense is answered with an ``error``
message and changes nothing; credit for output is given back only as fast as the client reads.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, ClassVar

from attrs import frozen
from twisted.logger import Logger

from sorna.errors import InvalidRequest, SornaError
from sorna.gateway.call import Call, Reply, encode_json, read_json_object
from sorna.gateway.interfaces import Kernels, Operations
from sorna.gateway.kernels import stream_paths
from sorna.gateway.parameters import Parameters
from sorna.gateway.problems import error_body
from sorna.gateway.router import Router
from sorna.gateway.websockets import WebSocket
from sorna.model.terminal import Terminal


@frozen
class TerminalRoutes:
    """The route below ``/vN/stream/kernel`` that opens a terminal."""

    kernels: Kernels
    operations: Operations

    router: ClassVar[Router[TerminalRoutes]] = Router()

    @router.route("GET", *stream_paths("/pty"), needs_ready=True, websocket=True)
    async def look(self, call: Call) -> Reply:
        """Look at a kernel's terminal and type into it."""
        session = _TerminalSession(self, call.access_key, call.kernel_reference)
        session.terminal = await self.kernels.open_terminal(call.access_key, call.kernel_reference, session)
        return Reply(101, session=session)


class _TerminalSession:
    """One client's look: a :class:`~sorna.gateway.websockets.Session` and a ``TerminalViewer``."""

    _log = Logger()

    def __init__(self, routes: TerminalRoutes, access_key: str, reference: str) -> None:
        self._routes = routes
        self._access_key = access_key
        self._reference = reference
        self._socket: WebSocket | None = None
        self._owed = 0
        self._restarting = False
        self.terminal: Terminal | None = None

    # From the terminal.

    def terminal_output(self, data: bytes) -> None:
        """Send what was printed; see ``TerminalViewer``."""
        self._owed += len(data)
        self._send("out", base64.b64encode(data).decode("ascii"))
        self._pay()

    def terminal_ended(self, reason: str) -> None:
        """Say why, and close."""
        if self._socket is not None:
            self._send("error", reason)
            self._socket.close(reason=reason)

    # From the client.

    def opened(self, socket: WebSocket) -> None:
        """See ``Session``."""
        self._socket = socket

    def received(self, text: str) -> None:
        """See ``Session``."""
        try:
            self._obey(read_json_object(text.encode("utf-8", "replace")))
        except InvalidRequest as error:
            self._send("error", error.detail)

    def resumed(self) -> None:
        """See ``Session``."""
        self._pay()

    def closed(self) -> None:
        """See ``Session``."""
        self._socket = None
        if self.terminal is not None:
            self.terminal.close()

    def _obey(self, message: dict[str, Any]) -> None:
        if self.terminal is None:
            return
        body, kind = Parameters(message), message.get("type")
        if kind == "stdin":
            self.terminal.write(_bytes(body.text("chars")))
        elif kind == "resize":
            self.terminal.resize(_size(body, "rows"), _size(body, "cols"))
        elif kind == "ping":
            self.terminal.write(b"")
        elif kind == "restart":
            self._restart()
        else:
            raise InvalidRequest("type is none of stdin, resize, ping, restart")

    def _restart(self) -> None:
        """Restart the kernel, its terminal with it; one that is under way is not asked for again."""
        if self._restarting:
            return
        self._restarting = True
        restart = self._routes.operations.detach(self._routes.kernels.restart(self._access_key, self._reference))
        restart.addErrback(self._not_restarted).addBoth(self._restarted)

    def _restarted(self, _result: object) -> None:
        self._restarting = False

    def _not_restarted(self, failure: Any) -> None:
        error = failure.value
        if not isinstance(error, SornaError):
            self._log.failure("a terminal's kernel could not be restarted", failure)
            error = SornaError()
        self._send("error", error_body(error)["title"])

    def _send(self, kind: str, content: str) -> None:
        if self._socket is not None:
            self._socket.send(encode_json({"type": kind, "data": content}).decode("ascii"))

    def _pay(self) -> None:
        if self._owed and self._socket is not None and self._socket.is_writable and self.terminal is not None:
            owed, self._owed = self._owed, 0
            self.terminal.consumed(owed)


def _size(body: Parameters, key: str) -> int:
    size = body.whole_number(key)
    if size is None:
        raise body.wrong(key, "a whole number")
    return size


def _bytes(chars: str) -> bytes:
    try:
        return base64.b64decode(chars, validate=True)
    except (ValueError, binascii.Error):
        raise InvalidRequest("chars is not base64") from None
