"""Answers that are sent in pieces, over loopback: events and downloads, slow readers and clients that go away."""

from __future__ import annotations

import json
from typing import Any

from attrs import evolve
from twisted.internet.task import deferLater

from sorna.gateway.watching import REVOKED
from sorna.model.file import FilePiece
from tests.integration.test_gateway_wire import Client, WireTestCase, reactor
from tests.integration.websocket_client import open_websocket

BIG = 64 * 1024 * 1024


class StreamWireTests(WireTestCase):
    """One kernel and its owner."""

    async def until(self, condition: Any) -> None:
        for _ in range(500):
            if condition():
                return
            await deferLater(reactor, 0.01, lambda: None)
        self.fail("nothing of the kind happened")

    async def kernel(self) -> str:
        return (await self.create(await self.connect())).decode()

    async def test_events(self) -> None:
        """Events arrive while the answer is still being sent, and whoever hangs up watches nothing any more."""
        kernel = await self.kernel()
        for target in (f"/v4/stream/kernel/{kernel}/events", "/stream/kernel/_/events", "/events/session?name=*"):
            client = await self.connect()
            client.send(self.request(b"GET", target.encode()))
            await client.until(b": watching")
            self.assertIn(b"text/event-stream", client.received)
            await self.kernels.restart(self.signer.keypair.access_key, kernel)
            await client.until(b"event: session_restarted")
            self.assertEqual(len(self.kernels.watchers), 1)
            assert client.transport is not None
            client.transport.loseConnection()
            await client.closed
            await self.until(lambda: not self.kernels.watchers)

    async def test_events_over_a_websocket(self) -> None:
        """The same events come as messages; the end of the kernel ends the connection, a handshake or not decides."""
        kernel = await self.kernel()
        one = await open_websocket(reactor, self.number, f"/v2/stream/kernel/{kernel}/events", self.signer)
        every = await open_websocket(reactor, self.number, "/stream/session/_/events", self.signer)
        self.assertEqual((one.status, every.status), (101, 101))
        await self.kernels.destroy(self.signer.keypair.access_key, kernel)
        await one.until(lambda: one.lost)
        self.assertEqual((one.code, one.messages[0]["name"]), (1000, "terminated"))
        await every.until(lambda: every.messages)
        self.assertFalse(every.lost)
        every.transport.loseConnection()  # type: ignore[union-attr]  # connected
        await every.until(lambda: every.lost)
        await self.until(lambda: not self.kernels.watchers)

    async def test_revoked_keypairs(self) -> None:
        """What is open in the name of a keypair ends with it, over WebSockets and not; what is closed watches nothing."""
        kernel = await self.kernel()
        access_key = self.signer.keypair.access_key
        target = f"/v2/stream/kernel/{kernel}/events"
        for last in (evolve(self.signer.keypair, is_active=False), None):
            self.keypairs.all[access_key] = self.signer.keypair
            client = await self.connect()
            client.send(self.request(b"GET", target.encode()))
            await client.until(b": watching")
            socket = await open_websocket(reactor, self.number, target, self.signer)
            self.keypairs.change(access_key, evolve(self.signer.keypair, rate_limit=5))
            self.assertEqual((socket.lost, client.closed.called), (False, False))
            self.keypairs.change(access_key, last)
            await socket.until(lambda socket=socket: socket.lost)
            self.assertEqual((socket.code, socket.reason), (1008, REVOKED))
            await client.closed
            await self.until(lambda: not self.keypairs.watchers.get(access_key) and not self.kernels.watchers)

    async def test_server_that_stops(self) -> None:
        """When the port closes every WebSocket is told, runs in words of their own."""
        kernel = await self.kernel()
        events = await open_websocket(reactor, self.number, f"/v2/stream/kernel/{kernel}/events", self.signer)
        run = await open_websocket(reactor, self.number, f"/v2/stream/kernel/{kernel}/execute", self.signer)
        await self.port.stopListening()
        for client in (events, run):
            await client.until(lambda client=client: client.lost)
        self.assertEqual((events.code, events.reason), (1001, "The server is restarting"))
        self.assertEqual(run.messages[0]["status"], "server-restarting")

    async def download(self, kernel: str) -> Client:
        client = await self.connect()
        client.send(self.request(b"GET", f"/v2/kernel/{kernel}/download".encode(), b'{"files": ["big"]}'))
        return client

    async def test_slow_reader(self) -> None:
        """A client that does not read makes the server read no more of the file; one that goes away ends the reading."""
        kernel = await self.kernel()
        pieces = 0
        file = bytes(BIG)
        next(iter(self.kernels.live.values())).files["big"] = file

        async def read_file(_owner: str, _reference: str, _path: str, offset: int, size: int) -> FilePiece:
            nonlocal pieces
            pieces += 1
            await deferLater(reactor, 0, lambda: None)
            return FilePiece(BIG, file[offset : offset + size])

        self.patch(self.kernels, "read_file", read_file)
        client = await self.download(kernel)
        await client.until(b"Content-Encoding")
        client.transport.pauseProducing()  # type: ignore[union-attr]  # connected, and TCP
        await self.until(lambda: pieces > 1)
        await deferLater(reactor, 0.3, lambda: None)
        before = pieces
        await deferLater(reactor, 0.3, lambda: None)
        self.assertEqual(pieces, before)
        self.assertLess(pieces * 256 * 1024, BIG / 2)
        client.transport.abortConnection()  # type: ignore[union-attr]
        await client.closed
        await deferLater(reactor, 0.1, lambda: None)
        self.assertEqual(pieces, before)

    async def test_whole(self) -> None:
        """A large file arrives whole, and the connection serves the next request."""
        kernel = await self.kernel()
        next(iter(self.kernels.live.values())).files["big"] = bytes(range(256)) * 40_000
        client = await self.download(kernel)
        head = (await client.until(b"\r\n\r\n")).partition(b"\r\n\r\n")[0]
        length = int(head.lower().rpartition(b"content-length: ")[2].split(b"\r\n")[0])
        self.assertGreater(length, 256 * 40_000)
        client.send(self.request(b"GET", b"/v2/authorize", b'{"echo": "after"}'))
        received = await client.until(b'"after"')
        self.assertEqual(json.loads(received.rpartition(b"\r\n")[2])["echo"], "after")
        self.assertEqual(received.count(bytes(range(256)) * 4), 10_000)
