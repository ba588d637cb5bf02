"""The output of a run from a number on, again if need be: for clients that lost their connection. Sorna's own interface.

One route, asked three ways: a plain GET with ``wait``, server-sent events with ``Last-Event-ID``, and a WebSocket. Knows how
answers look, not where output is kept. Each answer says which number to ask for next, how many bytes that were asked for are
not kept any more, and whether the run is over.

Note [Acknowledging a stream]
=============================
What has been given to a connection may still be lost with it, so a stream tells the agent to keep :data:`UNSURE` bytes more
than it has sent. A client that asks again and again with plain GETs has what lies before the number it asks for.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, ClassVar

from attrs import frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from sorna.errors import AgentError, InvalidRequest, OutputGone, RunNotFound, SornaError
from sorna.gateway import execution
from sorna.gateway.call import Call, Reply, Stream, encode_json, json_reply
from sorna.gateway.described import FLAG, TEXT, WHOLE, Described, exactly, json_content
from sorna.gateway.events import EVENT_TYPE, SIGN_OF_LIFE
from sorna.gateway.interfaces import Kernels
from sorna.gateway.json_text import encode_output
from sorna.gateway.kernels import kernel_paths
from sorna.gateway.problems import Era, error_body
from sorna.gateway.router import Router
from sorna.gateway.websockets import WebSocket
from sorna.model.limits import KIB
from sorna.model.run import OutputRequest, RunReply, RunStatus

MAX_WAIT = 30.0
UNSURE = 512 * KIB
_MOST = 2**53
_OUTPUT = Described(
    query={
        "from": {"type": "integer", "minimum": 0, "maximum": _MOST},
        "wait": {"type": "number", "minimum": 0, "maximum": MAX_WAIT},
    },
    headers={"Last-Event-ID": TEXT},
    answers={
        200: {
            **json_content(
                exactly(result=exactly(**execution.PIECE, first=WHOLE, next=WHOLE, missing=WHOLE, end=FLAG))
            ),
            "text/event-stream": TEXT,
        }
    },
    raises=(AgentError, RunNotFound, OutputGone),
)


@frozen
class OutputRoutes:
    """The route of a run's output."""

    kernels: Kernels

    router: ClassVar[Router[OutputRoutes]] = Router()

    @router.route(
        "GET",
        *kernel_paths("/runs/<run_id>/output"),
        needs_ready=True,
        websocket=True,
        plain=True,
        described=_OUTPUT,
    )
    async def read(self, call: Call) -> Reply:
        """Give what a run has printed from ``from`` on."""
        run_id = call.values["run_id"]
        if len(run_id) > execution.MAX_RUN_ID:
            raise InvalidRequest(f"A run id has at most {execution.MAX_RUN_ID} characters")
        follower = Follower(self.kernels, call.access_key, call.kernel_reference, run_id, _first(call))
        accepted = (call.headers.getRawHeaders(b"Accept") or [b""])[0]
        streamed = call.handshake or EVENT_TYPE.partition(b";")[0] in accepted
        reply = await follower.next(wait=0.0 if streamed else _wait(call))
        if call.handshake:
            return Reply(101, session=_OutputSession(follower, reply))
        if streamed:
            stream = Stream(None, _server_sent(follower, reply))
            return Reply(200, content_type=EVENT_TYPE, headers={b"Cache-Control": b"no-store"}, stream=stream)
        return json_reply({"result": _description(reply)})


class Follower:
    """Reads one run's output on and on.

    :ivar over: whether everything up to the run's end has been read.
    """

    def __init__(self, kernels: Kernels, access_key: str, reference: str, run_id: str, seq: int) -> None:
        self._kernels = kernels
        self._owner = (access_key, reference)
        self._run_id = run_id
        self._seq = seq
        self._begun = False
        self._known: str | None = None
        self.over = False

    async def next(self, wait: float) -> RunReply:
        """Give the next piece, or one without output when nothing new came in time.

        :raises SornaError: see :meth:`sorna.gateway.interfaces.Kernels.read_output`.
        """
        # The first number is one that the client has; see Note [Acknowledging a stream] for those after it.
        acknowledged = max(self._seq - UNSURE, 0) if self._begun else self._seq
        request = OutputRequest(self._run_id, self._seq, acknowledged, wait, self._known)
        reply = await self._kernels.read_output(*self._owner, request)
        self._begun = True
        self._seq, self._known = reply.next_seq, reply.status.value
        self.over = reply.status is RunStatus.FINISHED
        return reply

    def is_news(self, reply: RunReply, before: str | None) -> bool:
        """Tell whether a piece says anything that the one before did not."""
        return bool(reply.console) or reply.missing > 0 or reply.status.value not in {before, RunStatus.CONTINUED.value}

    @property
    def known(self) -> str | None:
        """The status that was told last."""
        return self._known


async def _server_sent(follower: Follower, reply: RunReply) -> AsyncGenerator[bytes, None]:
    yield _event(reply)
    while not follower.over:
        before = follower.known
        try:
            reply = await follower.next(wait=SIGN_OF_LIFE)
        except SornaError as error:
            title = encode_json({"msg": error_body(error, Era.BACKEND)["title"]})
            yield b"event: error\ndata: %s\n\n" % title
            return
        yield _event(reply) if follower.is_news(reply, before) else b": alive\n\n"


class _OutputSession:
    """One client's reading over a WebSocket; a :class:`~sorna.gateway.websockets.Session`."""

    _log = Logger()

    def __init__(self, follower: Follower, reply: RunReply) -> None:
        self._follower = follower
        self._reply = reply
        self._socket: WebSocket | None = None
        self._change: Deferred[None] | None = None
        self._work: Deferred[None] | None = None

    def opened(self, socket: WebSocket) -> None:
        """See ``Session``."""
        self._socket = socket
        self._work = Deferred.fromCoroutine(self._follow())

    def received(self, text: str) -> None:
        """Nothing a client says means anything here."""

    def resumed(self) -> None:
        """See ``Session``."""
        change, self._change = self._change, None
        if change is not None:
            change.callback(None)

    def closed(self) -> None:
        """See ``Session``."""
        self._socket = None
        if self._work is not None:
            self._work.cancel()

    async def _follow(self) -> None:
        try:
            self._send(encode_output(_description(self._reply)))
            while not self._follower.over:
                await self._writable()
                before = self._follower.known
                reply = await self._follower.next(wait=SIGN_OF_LIFE)
                if self._follower.is_news(reply, before):
                    self._send(encode_output(_description(reply)))
        except CancelledError:
            return
        except SornaError as error:
            self._send(encode_json({"status": "error", "msg": error_body(error, Era.BACKEND)["title"]}).decode("ascii"))
        except Exception:  # noqa: BLE001 - nobody else would hear of it
            self._log.failure("reading a run's output over a WebSocket failed")
        if self._socket is not None:
            self._socket.close()

    async def _writable(self) -> None:
        while self._socket is None or not self._socket.is_writable:
            self._change = Deferred()
            await self._change

    def _send(self, message: str) -> None:
        if self._socket is not None:
            self._socket.send(message)


def _first(call: Call) -> int:
    last = (call.headers.getRawHeaders(b"Last-Event-ID") or [b""])[0].decode("latin-1")
    text = last or call.query.get("from", ["0"])[0]
    if not (text.isascii() and text.isdigit() and len(text) <= 16 and int(text) <= _MOST):
        raise InvalidRequest("from must be a whole number, not negative")
    return int(text)


def _wait(call: Call) -> float:
    text = call.query.get("wait", ["0"])[0]
    try:
        wait = float(text)
    except ValueError:
        wait = -1.0
    if not 0.0 <= wait <= MAX_WAIT:
        raise InvalidRequest(f"wait must be a number of seconds from 0 to {MAX_WAIT:g}")
    return wait


def _description(reply: RunReply) -> dict[str, Any]:
    result = execution.result(reply)
    return {
        **{key: result[key] for key in ("status", "runId", "console", "exitCode", "options")},
        "first": reply.first_seq,
        "next": reply.next_seq,
        "missing": reply.missing,
        "end": reply.status is RunStatus.FINISHED,
    }


def _event(reply: RunReply) -> bytes:
    name = b"end" if reply.status is RunStatus.FINISHED else b"output"
    content = encode_output(_description(reply)).encode("ascii")
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (reply.next_seq, name, content)
