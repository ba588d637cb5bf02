"""One run over a WebSocket: its output as it comes, and lines that are typed, as in section 3.4 of the specification.

Knows messages and runs, not how code is run. A client that reads slowly is not sent to until it reads again, and meanwhile
nothing is asked of the agent, whose bounded log makes the program wait. A client that goes away leaves its run going: what it
has not taken can be polled for.
"""

from __future__ import annotations

from collections import deque
from typing import Any, ClassVar

from attrs import evolve, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from sorna.errors import InvalidRequest, SornaError, Unavailable
from sorna.gateway import execution
from sorna.gateway.call import Call, Reply, encode_json, read_json_object
from sorna.gateway.described import Described
from sorna.gateway.interfaces import Kernels
from sorna.gateway.json_text import encode_output
from sorna.gateway.kernels import stream_paths
from sorna.gateway.parameters import Parameters
from sorna.gateway.problems import Era, error_body
from sorna.gateway.router import Router
from sorna.gateway.websockets import POLICY, WebSocket
from sorna.model.limits import KIB
from sorna.model.run import RunMode, RunReply, RunRequest, RunStatus

#: How much may be typed that the run has not been given yet, in characters and in lines.
MAX_TYPED = 64 * KIB
MAX_LINES = 1000


@frozen
class RunRoutes:
    """The routes that run code over a WebSocket."""

    kernels: Kernels

    router: ClassVar[Router[RunRoutes]] = Router()

    @router.route("GET", *stream_paths("/execute"), needs_ready=True, websocket=True, described=Described(answers={}))
    async def execute(self, call: Call) -> Reply:
        """Wait for the code to run; that there is such a kernel is found out before the connection is a WebSocket."""
        await self.kernels.check(call.access_key, call.kernel_reference)
        return Reply(101, session=RunSession(self.kernels, call.access_key, call.kernel_reference))


class RunSession:
    """One client's run; a :class:`~sorna.gateway.websockets.Session`."""

    _log = Logger()

    def __init__(self, kernels: Kernels, access_key: str, reference: str) -> None:
        self._kernels = kernels
        self._access_key = access_key
        self._reference = reference
        self._socket: WebSocket | None = None
        self._request: RunRequest | None = None
        self._lines: deque[str] = deque()
        self._typed = 0
        self._asking = False
        self._fed: Deferred[RunReply | None] | None = None
        self._change: Deferred[None] | None = None
        self._work: Deferred[None] | None = None

    # From the client.

    def opened(self, socket: WebSocket) -> None:
        """See ``Session``."""
        self._socket = socket

    def received(self, text: str) -> None:
        """Take the code first, lines that are typed after that."""
        if self._request is None:
            self._begin(text)
            return
        self._typed += len(text)
        if self._typed > MAX_TYPED or len(self._lines) >= MAX_LINES:
            self._close(POLICY, "too much was typed that the run has not read")
            return
        self._lines.append(text)
        if self._asking and self._fed is None:
            # The call that waits for output gives way to this one and is answered before it.
            self._fed = Deferred.fromCoroutine(self._feed())
        self._changed()

    def resumed(self) -> None:
        """See ``Session``."""
        self._changed()

    def closed(self) -> None:
        """See ``Session``."""
        self._socket = None
        for pending in (self._fed, self._work):
            if pending is not None:
                pending.cancel()

    def going_away(self) -> None:
        """See ``Departing``: the run goes on, and can be read from the number that was told last."""
        self._say_error(Unavailable("The server is restarting."))

    # The run.

    def _begin(self, text: str) -> None:
        try:
            body = Parameters(read_json_object(text.encode("utf-8", "replace")))
            self._request = execution.read_streamed_run(body)
        except InvalidRequest as error:
            self._say_error(error)
            return
        self._work = Deferred.fromCoroutine(self._run(self._request))

    async def _run(self, request: RunRequest) -> None:
        try:
            reply = await self._ask(request)
            while not self._over(reply):
                reply = await self._ask(await self._next(reply))
        except CancelledError:
            return
        except SornaError as error:
            self._say_error(error)
        except Exception:  # noqa: BLE001 - nobody else would hear of it
            self._log.failure("a run over a WebSocket failed")
            self._say_error(SornaError("Internal server error."))

    async def _ask(self, request: RunRequest) -> RunReply:
        """Make a call, pass its answer on, and then that of a line that was typed meanwhile; give the last."""
        self._asking = True
        try:
            reply = await self._kernels.execute(self._access_key, self._reference, request)
        finally:
            self._asking = False
        fed, self._fed = self._fed, None
        self._tell(reply)
        if fed is not None:
            second = await fed
            # A run that ended before the line came has told so already.
            if second is not None and reply.status is not RunStatus.FINISHED:
                self._tell(second)
                return second
        return reply

    async def _feed(self) -> RunReply | None:
        try:
            return await self._kernels.execute(self._access_key, self._reference, self._line(wait=0.0))
        except (SornaError, CancelledError):
            return None  # the run is over, or the client gone; the main call tells

    async def _next(self, reply: RunReply) -> RunRequest:
        """Give the next call, once the client keeps up and, when the run waits for a line, there is one."""
        while not self._writable or (reply.status is RunStatus.WAITING_INPUT and not self._lines):
            self._change = Deferred()
            await self._change
        if self._lines:
            return self._line(wait=execution.STREAM_WAIT)
        return self._following(RunMode.CONTINUE, "", execution.STREAM_WAIT)

    def _line(self, wait: float) -> RunRequest:
        line = self._lines.popleft()
        self._typed -= len(line)
        return self._following(RunMode.INPUT, line, wait)

    def _following(self, mode: RunMode, code: str, wait: float) -> RunRequest:
        assert self._request is not None
        return evolve(self._request, mode=mode, code=code, clean=None, build=None, exec=None, wait=wait)

    def _changed(self) -> None:
        change, self._change = self._change, None
        if change is not None:
            change.callback(None)

    # To the client.

    @property
    def _writable(self) -> bool:
        return self._socket is not None and self._socket.is_writable

    def _over(self, reply: RunReply) -> bool:
        if reply.status is not RunStatus.FINISHED:
            return False
        self._close()
        return True

    def _tell(self, reply: RunReply) -> None:
        if reply.status is RunStatus.CONTINUED and not reply.console:
            return  # only the agent's sign of life
        result = execution.result(reply)
        told = {key: result[key] for key in ("status", "console", "exitCode", "options", "files", "runId")}
        # With these two a client that loses the connection reads on elsewhere; see ``outputs``.
        self._send(encode_output({**told, "next": reply.next_seq}))

    def _say_error(self, error: SornaError) -> None:
        status = "server-restarting" if isinstance(error, Unavailable) else "error"
        self._send(encode_json({"status": status, "msg": error_body(error, Era.BACKEND)["title"]}).decode("ascii"))
        self._close()

    def _send(self, message: str) -> None:
        if self._socket is not None:
            self._socket.send(message)

    def _close(self, *goodbye: Any) -> None:
        if self._socket is not None:
            self._socket.close(*goodbye)
