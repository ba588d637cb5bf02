"""Large files over real connections: sent in one request, broken off and gone on with, fetched, and never held in memory."""

from __future__ import annotations

import hashlib
import resource
from typing import Any
from urllib.parse import urlencode

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPullProducer
from twisted.internet.task import deferLater
from zope.interface import implementer

from sorna.model.folder import FolderBounds
from sorna.testing.gateway import EXAMPLE
from tests.integration.test_agent_languages import the_reactor
from tests.integration.test_gateway_wire import Client, WireTestCase

MIB = 1024 * 1024
SIZE = 64 * MIB
PIECE = bytes(range(256)) * (MIB // 256)
KEY = EXAMPLE.access_key


@implementer(IPullProducer)
class Pieces:
    """A number of mebibytes, each when the connection wants it."""

    def __init__(self, client: Client, number: int) -> None:
        self._client = client
        self._left = number
        self.sent: Deferred[None] = Deferred()

    def resumeProducing(self) -> None:
        """Give the next one."""
        self._client.send(PIECE)
        self._left -= 1
        if self._left == 0:
            transport: Any = self._client.transport
            transport.unregisterProducer()
            self.sent.callback(None)

    def stopProducing(self) -> None:
        """Give no more."""


class FolderWireTests(WireTestCase):
    folder_bounds = FolderBounds(100, 256 * MIB)

    async def begin(self, size: int = SIZE) -> bytes:
        """Make a folder and an upload into it; gives the target of the upload's requests."""
        await self.folders.create(KEY, "data")
        token = await self.transfers.request_upload(KEY, "data", "big.bin", size)
        return b"/folders/_/upload?" + urlencode({"token": token}).encode("ascii")

    def head(self, method: bytes, target: bytes, offset: int = 0, length: int = 0) -> bytes:
        return (
            b"%s %s HTTP/1.1\r\nHost: 127.0.0.1\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: %d\r\n"
            b"Content-Type: application/offset+octet-stream\r\nContent-Length: %d\r\n\r\n"
            % (method, target, offset, length)
        )

    async def offset(self, target: bytes) -> int:
        client = await self.connect()
        client.send(self.head(b"HEAD", target))
        received = await client.until(b"\r\n\r\n")
        return int(received.partition(b"Upload-Offset: ")[2].partition(b"\r\n")[0])

    async def send_pieces(self, client: Client, number: int) -> None:
        """Send mebibytes, no faster than they are taken."""
        pieces = Pieces(client, number)
        transport: Any = client.transport
        transport.registerProducer(pieces, False)
        await pieces.sent

    async def test_one_large_request(self) -> None:
        """A file larger than any body that is read whole arrives in one request, and the server does not grow with it."""
        target = await self.begin()
        client = await self.connect()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        client.send(self.head(b"PATCH", target, 0, SIZE))
        await self.send_pieces(client, SIZE // MIB)
        received = await client.until(b"\r\n\r\n")
        self.assertIn(b"204 No Content", received)
        self.assertIn(b"Upload-Offset: %d" % SIZE, received)
        folder = await self.folders.open(KEY, "data")
        self.assertEqual((await folder.read_file("big.bin", SIZE - MIB, 1000)).content, PIECE[:1000])
        # In KiB; the client of this test is in the same process, and its socket's buffer too.
        self.assertLess(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, 40 * 1024)

    async def test_a_broken_connection(self) -> None:
        """What arrived before a connection broke is there, and the rest makes the file whole."""
        target = await self.begin(5 * MIB)
        client = await self.connect()
        client.send(self.head(b"PATCH", target, 0, 5 * MIB))
        await self.send_pieces(client, 3)
        transport: Any = client.transport
        transport.loseConnection()
        await client.closed
        offset = 0
        while offset < 3 * MIB:
            await deferLater(the_reactor(), 0.01)
            offset = await self.offset(target)
        rest = await self.connect()
        rest.send(self.head(b"PATCH", target, offset, 2 * MIB) + 2 * PIECE)
        self.assertIn(b"204 No Content", await rest.until(b"\r\n\r\n"))
        folder = await self.folders.open(KEY, "data")
        self.assertEqual((await folder.read_file("big.bin", 0, 1)).size, 5 * MIB)

    async def test_refused_while_it_arrives(self) -> None:
        """A token that is none is answered before the body has come, and the connection is closed."""
        client = await self.connect()
        client.send(self.head(b"PATCH", b"/folders/_/upload?token=x.y", 0, SIZE) + 2 * PIECE)
        received = await client.until(b"auth-failed")
        self.assertIn(b"401 Unauthorized", received)
        self.assertIn(b"Connection: close", received)

    async def test_the_connection_goes_on(self) -> None:
        """After an upload the same connection takes another request."""
        target = await self.begin(2 * MIB)
        client = await self.connect()
        client.send(self.head(b"PATCH", target, 0, 2 * MIB) + 2 * PIECE + b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")
        self.assertIn(b"204 No Content", await client.until(b'"v4.20181215"}'))

    async def test_download(self) -> None:
        """A large file is sent as fast as it is taken, whole."""
        target = await self.begin(8 * MIB)
        client = await self.connect()
        client.send(self.head(b"PATCH", target, 0, 8 * MIB))
        await self.send_pieces(client, 8)
        await client.until(b"\r\n\r\n")
        token = await self.transfers.request_download(KEY, "data", "big.bin", archive=False)
        fetching = await self.connect()
        query = urlencode({"token": token}).encode("ascii")
        fetching.send(b"GET /folders/_/download?%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % query)
        await fetching.closed
        content = fetching.received.partition(b"\r\n\r\n")[2]
        self.assertEqual(hashlib.sha256(content).hexdigest(), hashlib.sha256(8 * PIECE).hexdigest())
