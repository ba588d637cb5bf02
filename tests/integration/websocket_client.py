"""A WebSocket client that signs its handshake, on wsproto, because Twisted's own can send no headers."""

from __future__ import annotations

import base64
import json
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
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
    TextMessage,
)

from sorna.testing.gateway import Signer


class WebSocketClient(Protocol):
    """One connection.

    :ivar messages: the JSON of every text message that came.
    :ivar received: the bytes of all binary messages; those that held none are counted in ``empty_messages``.
    :ivar status: of the handshake's answer; 101 is a WebSocket.
    :ivar code: with which the server closed.
    """

    def __init__(self, reactor: Any, signer: Signer | None, target: str, port: int, **headers: str) -> None:
        self._reactor = reactor
        self._wire = WSConnection(ConnectionType.CLIENT)
        host = f"127.0.0.1:{port}".encode("ascii")
        signed = (
            {} if signer is None else signer.headers(b"GET", target.encode("ascii"), b"", b"application/octet-stream")
        )
        extra = [(name, value) for name, value in signed.items() if name != b"Host"]
        extra += [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        extra.append((b"Content-Length", b"0"))
        self._request = Request(host=host.decode(), target=target, extra_headers=extra)
        self._text = ""
        self._waiting: list[tuple[Any, Deferred[None]]] = []
        self.answers_pings = True
        self.messages: list[dict[str, Any]] = []
        self.received = bytearray()
        self.empty_messages = 0
        self._empty = True
        self.pings = 0
        self.status = 0
        self.refusal = b""
        self.code: int | None = None
        self.reason: str | None = None
        self.lost = False

    def connectionMade(self) -> None:
        self._write(self._request)

    def dataReceived(self, data: bytes) -> None:
        self._wire.receive_data(data)
        for event in self._wire.events():
            self._take(event)
        self._look()

    def connectionLost(self, reason: Failure | None = None) -> None:
        self.lost = True
        self._look()

    def send(self, message: dict[str, Any]) -> None:
        self._write(TextMessage(json.dumps(message)))

    def send_bytes(self, data: bytes) -> None:
        self._write(BytesMessage(data))

    def send_event(self, event: Event) -> None:
        self._write(event)

    def pack(self, event: Event) -> bytes:
        return self._wire.send(event)

    def send_raw(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)

    def type(self, text: str) -> None:
        self.send({"type": "stdin", "chars": base64.b64encode(text.encode()).decode("ascii")})

    @property
    def screen(self) -> bytes:
        """Everything the terminal printed."""
        return b"".join(base64.b64decode(one["data"]) for one in self.messages if one["type"] == "out")

    async def until(self, condition: Any, patience: float = 15.0) -> None:
        """Wait until something about this client is true."""
        waiting: Deferred[None] = Deferred()
        self._waiting.append((condition, waiting))
        self._look()
        await waiting.addTimeout(patience, self._reactor)

    def _write(self, event: Event) -> None:
        assert self.transport is not None
        self.transport.write(self._wire.send(event))

    def _look(self) -> None:
        ready = [one for one in self._waiting if one[0]()]
        self._waiting = [one for one in self._waiting if one not in ready]
        for _, waiting in ready:
            if not waiting.called:
                waiting.callback(None)

    def _take(self, event: Event) -> None:
        match event:
            case AcceptConnection():
                self.status = 101
            case RejectConnection():
                self.status = event.status_code
            case RejectData():
                self.refusal += event.data
            case Ping():
                self.pings += 1
                if self.answers_pings:
                    self._write(event.response())
            case CloseConnection():
                self.code, self.reason = event.code, event.reason
                assert self.transport is not None
                self.transport.loseConnection()
            case TextMessage():
                self._text += event.data
                if event.message_finished:
                    text, self._text = self._text, ""
                    self.messages.append(json.loads(text))
            case BytesMessage():
                self._take_bytes(event)

    def _take_bytes(self, event: BytesMessage) -> None:
        self.received += event.data
        self._empty = self._empty and not event.data
        if event.message_finished:
            self.empty_messages += self._empty
            self._empty = True


async def open_websocket(
    reactor: Any, port: int, target: str, signer: Signer | None, **headers: str
) -> WebSocketClient:
    """Connect, and wait for the answer to the handshake."""
    client = WebSocketClient(reactor, signer, target, port, **headers)
    await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", port), client)
    await client.until(lambda: client.status or client.lost)
    return client
