"""What happens to kernels, told as it happens: over a WebSocket, or as server-sent events as clients of 19.09 and later read them.

Knows how events look, not where they come from. A client that reads so slowly that too many wait for it is let go: it can
come back and look at what there is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any, ClassVar

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.interfaces import IReactorTime

from sorna.errors import KernelNotFound
from sorna.gateway.call import Call, Reply, Stream, checked_reference, encode_json
from sorna.gateway.interfaces import Kernels
from sorna.gateway.kernels import stream_paths
from sorna.gateway.router import Router
from sorna.gateway.websockets import POLICY, WebSocket
from sorna.manager.requests import KernelEvent
from sorna.model.kernel import KernelStatus, short_id

EVENT_TYPE = b"text/event-stream; charset=utf-8"
#: Seconds without an event after which a comment shows that the connection lives.
SIGN_OF_LIFE = 15.0
MOST_WAITING = 1000
#: Stands for all kernels of the owner.
ALL = "_"


@frozen
class EventRoutes:
    """The routes that tell events."""

    kernels: Kernels
    clock: IReactorTime

    router: ClassVar[Router[EventRoutes]] = Router()

    @router.route("GET", *stream_paths("/events"), "/events/session", needs_ready=True, websocket=True, plain=True)
    async def events(self, call: Call) -> Reply:
        """Tell what happens to one kernel until it has ended, or to all kernels of the owner."""
        reference = _reference(call)
        if call.handshake:
            session = EventSession(alone=reference is not None)
            session.unwatch = await self.kernels.watch(call.access_key, reference, session.receive)
            return Reply(101, session=session)
        if reference is not None:
            # Found out before the head of the answer is sent.
            await self.kernels.info(call.access_key, reference)
        stream = Stream(None, self._server_sent(call.access_key, reference))
        return Reply(200, content_type=EVENT_TYPE, headers={b"Cache-Control": b"no-store"}, stream=stream)

    async def _server_sent(self, access_key: str, reference: str | None) -> AsyncGenerator[bytes, None]:
        # Watched from here on, so that whatever happens to a generator that was never begun, nothing is left watching.
        queue = _Queue(self.clock)
        yield b": watching\n\n"
        try:
            unwatch = await self.kernels.watch(access_key, reference, queue.put)
        except KernelNotFound:
            yield _CLOSE
            return
        try:
            while not queue.overflowed:
                event = await queue.get(SIGN_OF_LIFE)
                if event is None:
                    yield b": alive\n\n"
                    continue
                yield _server_sent_event(event)
                if reference is not None and event.status.final:
                    break
            yield _CLOSE
        finally:
            unwatch()


_CLOSE = b"event: server_close\ndata: \n\n"


class EventSession:
    """One client's look over a WebSocket; a :class:`~sorna.gateway.websockets.Session`.

    :ivar unwatch: ends the watching.
    """

    def __init__(self, *, alone: bool) -> None:
        self._alone = alone
        self._socket: WebSocket | None = None
        self._waiting: deque[KernelEvent] = deque()
        self.unwatch: Callable[[], None] = lambda: None

    def receive(self, event: KernelEvent) -> None:
        """Take an event."""
        self._waiting.append(event)
        if len(self._waiting) > MOST_WAITING and self._socket is not None:
            self._waiting.clear()
            self._socket.close(POLICY, "events are not read")
        self._send()

    def opened(self, socket: WebSocket) -> None:
        """See ``Session``."""
        self._socket = socket
        self._send()

    def received(self, text: str) -> None:
        """Nothing a client says means anything here."""

    def resumed(self) -> None:
        """See ``Session``."""
        self._send()

    def closed(self) -> None:
        """See ``Session``."""
        self._socket = None
        self._waiting.clear()
        self.unwatch()

    def _send(self) -> None:
        while self._waiting and self._socket is not None and self._socket.is_writable:
            event = self._waiting.popleft()
            self._socket.send(encode_json(_description(event)).decode("ascii"))
            if self._alone and event.status.final:
                self._socket.close()


class _Queue:
    """Events that wait for one reader."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._events: deque[KernelEvent] = deque()
        self._reader: Deferred[None] | None = None
        self.overflowed = False

    def put(self, event: KernelEvent) -> None:
        """Add an event; one too many makes the queue useless."""
        if len(self._events) >= MOST_WAITING:
            self.overflowed = True
        else:
            self._events.append(event)
        reader, self._reader = self._reader, None
        if reader is not None and not reader.called:
            reader.callback(None)

    async def get(self, patience: float) -> KernelEvent | None:
        """Give the next event, or None when none came within so many seconds."""
        if not self._events:
            self._reader = Deferred()
            try:
                await self._reader.addTimeout(patience, self._clock)
            except DeferredTimeoutError:
                self._reader = None
        return self._events.popleft() if self._events else None


def _reference(call: Call) -> str | None:
    reference = call.values.get("reference", ALL)
    if reference == ALL:
        query = call.query
        for key in ("sessionId", "sessionName", "name"):
            wanted = query.get(key, [""])[0]
            if wanted and wanted != "*":
                reference = wanted
                break
    return None if reference == ALL else checked_reference(reference)


def _name(event: KernelEvent) -> str:
    if event.status is KernelStatus.RUNNING:
        return event.reason or "started"
    return {KernelStatus.TERMINATED: "terminated", KernelStatus.ERROR: "failed"}.get(event.status, event.status.lower())


def _description(event: KernelEvent) -> dict[str, Any]:
    return {
        "name": _name(event),
        "reason": event.reason,
        "kernelId": short_id(event.kernel_id),
        "sessionId": str(event.kernel_id),
        "sessionName": event.session_token,
        "ownerAccessKey": event.access_key,
        "status": event.status.value,
    }


def _server_sent_event(event: KernelEvent) -> bytes:
    return b"event: session_%s\ndata: %s\n\n" % (
        _name(event).encode("ascii", "replace"),
        encode_json(_description(event)),
    )
