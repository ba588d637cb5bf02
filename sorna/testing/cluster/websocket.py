"""A WebSocket that blocks, for loads and tests: connect with a signed request, send texts, take texts. Knows no message."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Mapping

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Ping, RejectConnection, Request, TextMessage
from wsproto.utilities import ProtocolError

_PIECE = 65536


class WebSocketLost(ConnectionError):
    """The connection is refused or over; the text says why."""


class WebSocket:
    """One connection. Every wait is bounded by ``timeout`` seconds."""

    def __init__(self, address: str, port: int, target: str, headers: Mapping[str, str], timeout: float = 10.0) -> None:
        self._socket = socket.create_connection((address, port), timeout)
        self._wire = WSConnection(ConnectionType.CLIENT)
        self._texts: deque[str] = deque()
        self._partial = ""
        self._open = False
        plain = [(name.encode(), text.encode()) for name, text in headers.items() if name.lower() != "host"]
        try:
            self._send(Request(host=f"{address}:{port}", target=target, extra_headers=plain))
            while not self._open:
                self._take()
        except BaseException:
            self.close()
            raise

    def send(self, text: str) -> None:
        """Send one message."""
        self._send(TextMessage(text))

    def receive(self) -> str:
        """Wait for one message.

        :raises OSError: there came none in time, or the connection is over.
        """
        while not self._texts:
            self._take()
        return self._texts.popleft()

    def close(self) -> None:
        """Let go of the connection. Harmless twice."""
        self._socket.close()

    def _send(self, event: Request | TextMessage) -> None:
        self._socket.sendall(self._wire.send(event))

    def _take(self) -> None:
        received = self._socket.recv(_PIECE)
        if not received:
            raise WebSocketLost("the connection was lost")
        try:
            self._wire.receive_data(received)
            events = list(self._wire.events())
        except ProtocolError as error:
            raise WebSocketLost(str(error)) from error
        for event in events:
            match event:
                case AcceptConnection():
                    self._open = True
                case RejectConnection():
                    raise WebSocketLost(f"refused with {event.status_code}")
                case TextMessage():
                    self._partial += event.data
                    if event.message_finished:
                        self._texts.append(self._partial)
                        self._partial = ""
                case Ping():
                    self._socket.sendall(self._wire.send(event.response()))
                case CloseConnection():
                    raise WebSocketLost(f"closed: {event.code} {event.reason or ''}")
