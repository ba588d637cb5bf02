"""A tunnel's WebSocket over loopback, with a real client and an application in memory."""

from __future__ import annotations

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from wsproto.events import CloseConnection, TextMessage

from sorna.gateway.tunnels import BROKEN
from sorna.gateway.watching import REVOKED
from sorna.gateway.websockets import WebSocketLimits
from sorna.model.kernel import parse_kernel_id
from sorna.model.service import WINDOW
from sorna.testing.gateway import EXAMPLE, Signer
from sorna.testing.services import MemoryServices, MemoryTunnel
from tests.integration.test_gateway_wire import WireTestCase, reactor
from tests.integration.websocket_client import WebSocketClient, open_websocket


class TunnelWireTests(WireTestCase):
    """What clients and the server say to each other."""

    websocket_limits = WebSocketLimits(ping=0.5, patience=4.0)
    timeout = 60

    async def listen(self) -> None:
        await super().listen()
        self.kernel = (await self.create(await self.connect())).decode()
        kernel_id = parse_kernel_id(self.kernel)
        assert kernel_id is not None
        self.inside: MemoryServices = self.kernels.live[kernel_id].services

    async def dig(self, target: str = "/stream/kernel/{}/httpproxy?app=files") -> tuple[WebSocketClient, MemoryTunnel]:
        client = await self.ask(target.format(self.kernel), self.signer)
        self.assertEqual(client.status, 101, client.refusal)
        return client, self.inside.tunnels[-1]

    async def ask(self, target: str, signer: Signer) -> WebSocketClient:
        client = await open_websocket(reactor, self.number, target, signer)

        async def close() -> None:
            if not client.lost:
                client.transport.abortConnection()  # type: ignore[union-attr]  # connected, and TCP
                await client.until(lambda: client.lost)

        self.addCleanup(lambda: Deferred.fromCoroutine(close()))
        return client

    async def soon(self, condition: object) -> None:
        for _ in range(2000):
            if condition():  # type: ignore[operator]  # a function
                return
            await deferLater(reactor, 0.01, lambda: None)
        self.fail("it did not happen")

    async def test_bytes_both_ways(self) -> None:
        """Every byte arrives, in pieces of any size, under each path that clients know."""
        every = bytes(range(256)) * 3000
        for target in (
            "/v4/stream/kernel/{}/httpproxy?app=files",
            "/stream/session/{}/tcpproxy?app=files&arguments=%7B%22--directory%22%3A+%22d%22%7D",
            "/v2/stream/kernel/{}/tcpproxy?app=5000",
        ):
            client, app = await self.dig(target)
            for size in (1, 1000, 65_536, len(every) - 66_537):
                taken = len(app.taken)
                client.send_bytes(every[taken : taken + size])
                await self.soon(lambda taken=taken, size=size, app=app: len(app.taken) == taken + size)
            app.say(every)
            await client.until(lambda client=client: len(client.received) == len(every))
            self.assertEqual((app.taken, client.received), (every, every))

    async def test_a_client_that_does_not_read(self) -> None:
        """It costs a window and what sockets hold; the application waits, and nothing grows."""
        client, app = await self.dig()
        client.transport.pauseProducing()  # type: ignore[union-attr]  # connected
        total = 64 * 1024 * 1024
        app.say(bytes(total))
        await deferLater(reactor, 0.3, lambda: None)
        self.assertGreater(len(app.unsent), total // 2)
        client.transport.resumeProducing()  # type: ignore[union-attr]
        await client.until(lambda: len(client.received) == total, 40.0)

    async def test_an_application_that_does_not_read(self) -> None:
        """Its client is not read from, for longer than it may be silent; then everything arrives."""
        client, app = await self.dig()
        app.reads = False
        total = 40 * 1024 * 1024
        for _ in range(total // 65_536):
            client.send_bytes(bytes(65_536))
        await self.soon(lambda: len(app.taken) == WINDOW)
        await deferLater(reactor, 5.0, lambda: None)
        self.assertEqual(len(app.taken), WINDOW)
        self.assertFalse(client.lost)
        app.reads = True
        app.read()
        await self.soon(lambda: len(app.taken) == total)
        self.assertFalse(client.lost)

    async def test_ends(self) -> None:
        """The application's end closes with 1000, a failure with 1011 and its reason, the client's end lets go."""
        client, app = await self.dig()
        app.say(b"last words")
        app.user.tunnel_finished()
        await client.until(lambda: client.lost)
        self.assertEqual((client.received, client.code), (b"last words", 1000))
        client, app = await self.dig()
        app.end("Nothing listens on port 8009 (Connection refused).")
        await client.until(lambda: client.lost)
        self.assertEqual((client.code, client.reason), (BROKEN, "Nothing listens on port 8009 (Connection refused)."))
        client, app = await self.dig()
        client.send_bytes(b"bye")
        client.send_event(CloseConnection(1000))
        await self.soon(lambda: not self.inside.tunnels)
        self.assertEqual(app.taken, b"bye")

    async def test_a_client_that_vanishes_while_it_is_not_read_from(self) -> None:
        """Its going is noticed by the pings that it does not take."""
        client, app = await self.dig()
        app.reads = False
        for _ in range(16):
            client.send_bytes(bytes(65_536))
        await self.soon(lambda: len(app.taken) == WINDOW)
        client.transport.abortConnection()  # type: ignore[union-attr]  # connected, and TCP
        app.reads = True
        app.read()
        await self.soon(lambda: not self.inside.tunnels)

    async def test_half_closed(self) -> None:
        """With half-close=1 an empty message is an end, both ways."""
        client, app = await self.dig("/stream/session/{}/tcpproxy?app=files&half-close=1")
        client.send_bytes(b"question")
        client.send_bytes(b"")
        await self.soon(lambda: app.client_finished)
        app.say(b"answer")
        app.user.tunnel_finished()
        await client.until(lambda: client.empty_messages == 1)
        self.assertEqual((app.taken, client.received, client.lost), (b"question", b"answer", False))
        app.end("")
        await client.until(lambda: client.lost)
        self.assertEqual(client.code, 1000)

    async def test_text_and_giants(self) -> None:
        """Text is refused with 1003, a message beyond the limit with 1009, and either ends the tunnel."""
        client, _ = await self.dig()
        client.send_event(TextMessage("hello"))
        await client.until(lambda: client.lost)
        self.assertEqual(client.code, 1003)
        client, _ = await self.dig()
        client.send_bytes(bytes(3 * 1024 * 1024))
        await client.until(lambda: client.lost)
        await self.soon(lambda: not self.inside.tunnels)

    async def test_strangers_stay_outside(self) -> None:
        """Without a right signature, or for another's kernel, there is no WebSocket and no tunnel."""
        target = f"/stream/kernel/{self.kernel}/tcpproxy?app=files"
        guess = evolve(self.signer, keypair=evolve(EXAMPLE, secret_key="guess"))
        for signer, there, status in (
            (guess, target, 401),
            (self.signer, "/stream/kernel/nobody-has-this/tcpproxy?app=files", 404),
            (self.signer, f"/stream/kernel/{self.kernel}/tcpproxy?app=22", 400),
            (self.signer, f"/stream/kernel/{self.kernel}/tcpproxy?app=10.0.0.1%3A8000", 400),
        ):
            self.assertEqual((await self.ask(there, signer)).status, status)
        self.assertEqual(self.inside.tunnels, [])

    async def test_a_disabled_key(self) -> None:
        """A tunnel closes as soon as its keypair stops working."""
        client, _ = await self.dig()
        self.keypairs.change(EXAMPLE.access_key, evolve(EXAMPLE, is_active=False))
        await client.until(lambda: client.lost)
        self.assertEqual((client.code, client.reason), (1008, REVOKED))
        self.assertEqual(self.inside.tunnels, [])
