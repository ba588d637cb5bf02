"""The other end of connections that a memory reactor makes: a Redis server that a test plays line by line."""

from __future__ import annotations

from typing import Any

from twisted.internet.error import ConnectError, ConnectionDone
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure


class Server:
    """The other end of everything that a memory reactor connects to a unix socket."""

    def __init__(self) -> None:
        self.reactor: Any = MemoryReactorClock()
        self.protocol: Any = None
        self.transport = StringTransport()

    @property
    def attempts(self) -> int:
        return len(self.reactor.unixClients)

    def accept(self) -> None:
        """Take the latest attempt."""
        factory = self.reactor.unixClients[-1][1]
        self.transport = StringTransport()
        self.protocol = factory.buildProtocol(None)
        self.protocol.makeConnection(self.transport)

    def refuse(self) -> None:
        """Refuse the latest attempt."""
        factory = self.reactor.unixClients[-1][1]
        factory.clientConnectionFailed(None, Failure(ConnectError()))

    def hear(self) -> list[bytes]:
        """Give the words that arrived since the last time."""
        raw = self.transport.value()
        self.transport.clear()
        return [line for line in raw.split(b"\r\n") if line and line[:1] not in {b"*", b"$"}]

    def say(self, raw: bytes) -> None:
        self.protocol.dataReceived(raw)

    def hang_up(self) -> None:
        self.protocol.connectionLost(Failure(ConnectionDone()))
