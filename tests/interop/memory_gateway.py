"""The test build: the HTTP door as it is, on a port of loopback, with everything behind it in memory and an echo beside it.

``python -m tests.interop.memory_gateway`` prints a line of JSON with the ports and serves until its standard input is closed.
The door knows the example keypair, as one without a rate limit worth the name, and an administrator's. The echo is a WebSocket
at any path of the second port: the same connections as all of the server's, but that it understands bytes too, because
the conformance suite sends some.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from attrs import evolve, frozen
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Protocol
from twisted.internet.stdio import StandardIO
from twisted.internet.task import react
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request
from twisted.web.websocket import WebSocketResource

import sorna
from sorna.gateway.request import LimitedSite, ReadingLimits
from sorna.gateway.service import make_site
from sorna.gateway.websockets import WebSocket, WebSocketLimits, WebSockets, _Connection, _Factory
from sorna.model.keypair import Keypair
from sorna.model.limits import MIB
from sorna.model.run import OutputRequest, RunReply, RunStatus
from sorna.testing.administration import memory_world
from sorna.testing.folders import memory_folders
from sorna.testing.gateway import EXAMPLE, MemoryKeypairs, MemoryOperations, MemoryRateLimits, MemoryReadiness
from sorna.testing.kernels import MemoryKernels

USER = evolve(EXAMPLE, rate_limit=10**9)
ADMINISTRATOR = Keypair(
    "AKIAADMINEXAMPLE0000", "admin-admin-admin-admin-admin-admin-0000", is_admin=True, rate_limit=10**9
)
STOP_TIMEOUT = 10.0  # seconds
#: The suite's largest messages have 16 MiB.
_ECHOED = 17 * MIB


@frozen
class Ports:
    """Where the test build listens."""

    door: int
    echo: int


@contextlib.contextmanager
def running_test_build() -> Iterator[Ports]:
    """Start it in a process of its own, and end it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.interop.memory_gateway"],
        cwd=Path(sorna.__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        try:
            assert process.stdout is not None
            yield Ports(**json.loads(process.stdout.readline()))
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()


class _EchoSession:
    """Says everything again."""

    def __init__(self) -> None:
        self._socket: WebSocket | None = None

    def opened(self, socket: WebSocket) -> None:
        self._socket = socket

    def received(self, text: str) -> None:
        assert self._socket is not None
        self._socket.send(text)

    def resumed(self) -> None:
        pass

    def closed(self) -> None:
        self._socket = None


class _EchoConnection(_Connection):
    def bytesMessageReceived(self, data: bytes | bytearray) -> None:
        self._unfinished = 0
        if not self._closing and self._transport is not None:
            self._transport.sendBytesMessage(bytes(data))


class _Echo(Resource):
    isLeaf = True

    def __init__(self, websockets: WebSockets) -> None:
        super().__init__()
        self._websockets = websockets

    def render_GET(self, request: Request) -> int:
        self._websockets.check(request.requestHeaders, b"")
        channel: Any = request.channel
        connection = _EchoConnection(self._websockets.clock, self._websockets.limits, _EchoSession(), channel.transport)
        WebSocketResource(_Factory(connection)).render_GET(request)
        channel.dataReceived = connection.bounded(channel.dataReceived)
        return NOT_DONE_YET


async def _printed(request: OutputRequest) -> RunReply:
    """Give a run that has printed a little from wherever one asks, and is over."""
    console = (("stdout", "\N{SNAKE}"), ("media", ["image/png", ""]))
    return RunReply(
        request.run_id, RunStatus.FINISHED, console, {}, 0, first_seq=request.seq, next_seq=request.seq + 4, missing=1
    )


class _Cleanups(contextlib.ExitStack):
    def addCleanup(self, function: Callable[..., Any], /) -> object:
        return self.callback(function)


class _UntilEnd(Protocol):
    def __init__(self) -> None:
        self.ended: Deferred[None] = Deferred()

    def connectionLost(self, _reason: Failure | None = None) -> None:
        self.ended.callback(None)


async def serve(reactor: Any) -> None:
    """Listen, tell where, and stop at the end of the input."""
    kernels = MemoryKernels(reactor)
    kernels.on_read = _printed
    cleanups = _Cleanups()
    folders, transfers = memory_folders(cleanups, reactor, USER, ADMINISTRATOR)
    keypairs = MemoryKeypairs(USER, ADMINISTRATOR)
    world = memory_world(reactor, keypairs.all.values())
    door = make_site(
        reactor,
        kernels=kernels,
        folders=folders,
        transfers=transfers,
        administration=world.administration,
        enrolments=world.enrolments,
        keypairs=keypairs,
        rate_limits=MemoryRateLimits(reactor),
        operations=MemoryOperations(),
        readiness=MemoryReadiness(),
    )
    echo = LimitedSite(
        _Echo(WebSockets(reactor, WebSocketLimits(message=_ECHOED))), reactor, ReadingLimits(), lambda: None
    )
    ports = [await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(site) for site in (door, echo)]
    until_end = _UntilEnd()
    StandardIO(until_end, reactor=reactor)
    sys.stdout.write(json.dumps({"door": ports[0].getHost().port, "echo": ports[1].getHost().port}) + "\n")
    sys.stdout.flush()
    await until_end.ended
    cleanups.close()


if __name__ == "__main__":
    react(lambda reactor: Deferred.fromCoroutine(serve(reactor)))
