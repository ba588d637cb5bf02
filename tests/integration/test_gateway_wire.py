"""The HTTP door over real sockets: what only a kernel's TCP shows."""

from __future__ import annotations

import json
from typing import Any

from attrs import evolve
from twisted.internet import reactor as global_reactor  # noqa: TID251 - a test of real sockets runs on the real one
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from sorna.gateway.request import ReadingLimits
from sorna.gateway.service import make_site
from sorna.gateway.websockets import WebSocketLimits
from sorna.model.limits import MIB
from sorna.model.run import RunReply, RunRequest
from sorna.testing.administration import memory_world
from sorna.testing.folders import BOUNDS, memory_folders
from sorna.testing.gateway import (
    EXAMPLE,
    MemoryKeypairs,
    MemoryOperations,
    MemoryRateLimits,
    MemoryReadiness,
    Signer,
    form,
)
from sorna.testing.kernels import MemoryKernels

reactor: Any = global_reactor  # Twisted types it as the union of everything that a reactor may be


class Client(Protocol):
    """A raw connection."""

    def __init__(self) -> None:
        self.received = b""
        self.closed: Deferred[None] = Deferred()
        self._waiting: list[tuple[bytes, int, Deferred[bytes]]] = []

    def send(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)

    def until(self, text: bytes, times: int = 1) -> Deferred[bytes]:
        """Give all that was received once it holds a text so many times."""
        waiting: Deferred[bytes] = Deferred()
        self._waiting.append((text, times, waiting))
        self._look()
        return waiting.addTimeout(10, reactor)

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        self._look()

    def connectionLost(self, reason: Failure | None = None) -> None:
        self.closed.callback(None)

    def _look(self) -> None:
        ready = [one for one in self._waiting if self.received.count(one[0]) >= one[1]]
        self._waiting = [one for one in self._waiting if one not in ready]
        for _, _, waiting in ready:
            waiting.callback(self.received)


class WireTestCase(TestCase):
    """A gateway on a loopback port."""

    limits = ReadingLimits(linger_time=0.3)
    websocket_limits = WebSocketLimits()
    folder_bounds = BOUNDS

    def setUp(self) -> Deferred[None]:  # type: ignore[override]  # trial waits for it, unittest's type does not know
        return Deferred.fromCoroutine(self.listen())

    async def listen(self) -> None:
        self.kernels = MemoryKernels(reactor)
        self.operations = MemoryOperations()
        self.keypairs = MemoryKeypairs(EXAMPLE)
        self.folders, self.transfers = memory_folders(self, reactor, EXAMPLE, bounds=self.folder_bounds)
        world = memory_world(reactor, [EXAMPLE])
        site = make_site(
            reactor,
            kernels=self.kernels,
            folders=self.folders,
            transfers=self.transfers,
            administration=world.administration,
            enrolments=world.enrolments,
            keypairs=self.keypairs,
            rate_limits=MemoryRateLimits(reactor),
            operations=self.operations,
            readiness=MemoryReadiness(),
            limits=self.limits,
            websocket_limits=self.websocket_limits,
        )
        self.port: Any = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(site)
        self.addCleanup(self.port.stopListening)
        self.number = self.port.getHost().port
        self.signer = Signer(reactor, host=b"127.0.0.1:%d" % self.number)

    async def connect(self) -> Client:
        client = Client()
        await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", self.number), client)

        async def close() -> None:
            if not client.closed.called:
                client.transport.abortConnection()  # type: ignore[union-attr]  # connected, and TCP
                await client.closed

        self.addCleanup(lambda: Deferred.fromCoroutine(close()))
        return client

    def request(
        self, method: bytes, target: bytes, body: bytes = b"", content_type: bytes = b"application/json"
    ) -> bytes:
        """Give the bytes of a signed request."""
        headers = self.signer.headers(method, target, body, content_type)
        head = b"".join(b"%s: %s\r\n" % one for one in headers.items())
        return b"%s %s HTTP/1.1\r\n%sContent-Length: %d\r\n\r\n" % (method, target, head, len(body)) + body

    async def create(self, client: Client) -> bytes:
        client.send(
            self.request(b"POST", b"/v2/kernel/create", b'{"lang": "python3", "clientSessionToken": "wire-test"}')
        )
        received = await client.until(b"RUNNING")
        kernel_id: str = json.loads(received.rpartition(b"\r\n")[2])["kernelId"]
        return kernel_id.encode()


class WireTests(WireTestCase):
    """Requests over loopback."""

    async def test_no_content(self) -> None:
        """A 204 carries the type and the length that old clients index, and the connection goes on."""
        client = await self.connect()
        kernel = await self.create(client)
        client.received = b""
        client.send(self.request(b"PATCH", b"/v2/kernel/" + kernel) + b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")
        received = await client.until(b'"v4.20181215"}')
        head = received.split(b"\r\n\r\n")[0].split(b"\r\n")
        self.assertEqual(head[0], b"HTTP/1.1 204 No Content")
        self.assertIn(b"Content-Length: 0", head)
        self.assertIn(b"Content-Type: application/octet-stream", head)
        self.assertNotIn(b"chunked", received)

    async def test_targets_as_sent(self) -> None:
        """The raw target is what was signed, and its needless escapes may be undone."""
        client = await self.connect()
        sent = self.request(b"GET", b"/v2/authorize", b"{}")
        client.send(sent.replace(b"/v2/authorize", b"/v2/%61uthorize", 1) + sent)
        await client.until(b'{"authorized": "yes"}', 2)

    async def test_head(self) -> None:
        """An answer to HEAD has no body, so what follows is the next answer."""
        client = await self.connect()
        client.send(b"HEAD /v2 HTTP/1.1\r\nHost: x\r\n\r\nGET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")
        received = await client.until(b'"v4.20181215"}')
        self.assertTrue(received.startswith(b"HTTP/1.1 405 "))
        self.assertEqual(received.count(b'{"'), 1)

    async def test_pipelining(self) -> None:
        """Many requests at once are all answered in order."""
        client = await self.connect()
        client.send(b"".join(self.request(b"GET", b"/v2/authorize", b'{"echo": %d}' % one) for one in range(50)))
        received = await client.until(b'"echo": 49}')
        echoes = [one.partition(b"}")[0] for one in received.split(b'"echo": ')[1:]]
        self.assertEqual(echoes, [b"%d" % one for one in range(50)])

    async def test_an_oversize_body_in_flight(self) -> None:
        """A client that has already sent much of its body still reads why it was refused."""
        client = await self.connect()
        client.send(b"POST /v2/kernel/create HTTP/1.1\r\nHost: x\r\nContent-Length: 60000000\r\n\r\n" + bytes(2 * MIB))
        received = await client.until(b"payload-too-large")
        self.assertTrue(received.startswith(b"HTTP/1.1 413 "))
        await client.closed.addTimeout(5, reactor)

    async def test_an_upload_at_the_limit(self) -> None:
        """Twenty full files arrive, and no reactor turn takes long for them."""
        client = await self.connect()
        kernel = await self.create(client)
        content_type, body = form(*((f"{one}.bin", bytes(MIB)) for one in range(20)))
        client.send(self.request(b"POST", b"/v2/kernel/%s/upload" % kernel, body, content_type))
        await client.until(b"204 No Content")
        (one,) = self.kernels.live.values()
        self.assertEqual(len(one.files), 20)

    async def test_a_form_without_a_boundary(self) -> None:
        """Twisted's own reading of forms, which answers by itself, is switched off."""
        client = await self.connect()
        kernel = await self.create(client)
        client.send(self.request(b"POST", b"/v2/kernel/%s/upload" % kernel, b"x=1", b"multipart/form-data"))
        self.assertIn(b"invalid-api-params", await client.until(b"boundary)"))

    async def test_a_client_that_hangs_up(self) -> None:
        """Closing the connection cancels the poll on it and nothing else."""
        started: Deferred[None] = Deferred()
        cancelled: Deferred[None] = Deferred()

        async def wait(_request: RunRequest) -> RunReply:
            started.callback(None)
            try:
                await Deferred()
            except CancelledError:
                cancelled.callback(None)
                raise
            raise AssertionError

        self.kernels.on_execute = wait
        client = await self.connect()
        kernel = await self.create(client)
        client.send(self.request(b"POST", b"/v2/kernel/" + kernel, b'{"mode": "query", "code": "1"}'))
        await started.addTimeout(5, reactor)
        client.transport.loseConnection()  # type: ignore[union-attr]  # connected
        await cancelled.addTimeout(5, reactor)
        self.assertEqual(len(self.kernels.live), 1)


class SlowTests(WireTestCase):
    """Time limits that a test can wait for."""

    limits = evolve(WireTestCase.limits, head_time=0.2, body_time=0.2, slowest=MIB, idle_time=0.5)

    async def test_a_trickle(self) -> None:
        """One byte after another, for ever, is not for ever."""
        client = await self.connect()
        client.send(b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
        for _ in range(40):
            if client.closed.called or b"HTTP/1.1 400" in client.received:
                break
            client.send(b"x")
            await deferLater(reactor, 0.02)
        self.assertIn(b"did not arrive in time", client.received)
        await client.closed.addTimeout(5, reactor)
