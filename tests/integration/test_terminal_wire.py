"""A terminal's WebSocket over loopback, with a real client and a terminal in memory."""

from __future__ import annotations

import base64
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage

from sorna.gateway.websockets import WebSocketLimits
from sorna.model.kernel import parse_kernel_id
from sorna.model.terminal import WINDOW
from sorna.testing.terminals import MemoryTerminal
from tests.integration.test_gateway_wire import WireTestCase, reactor
from tests.integration.websocket_client import WebSocketClient, open_websocket


class TerminalWireTestCase(WireTestCase):
    """One kernel with a terminal."""

    async def listen(self) -> None:
        await super().listen()
        client = await self.connect()
        self.kernel = (await self.create(client)).decode()
        kernel_id = parse_kernel_id(self.kernel)
        assert kernel_id is not None
        self.terminal: MemoryTerminal = self.kernels.live[kernel_id].terminal

    async def look(self, prefix: str = "v2", *, signed: bool = True, **headers: str) -> WebSocketClient:
        target = f"/{prefix}/stream/kernel/{self.kernel}/pty"
        client = await open_websocket(reactor, self.number, target, self.signer if signed else None, **headers)

        async def close() -> None:
            if not client.lost:
                client.transport.abortConnection()  # type: ignore[union-attr]  # connected, and TCP
                await client.until(lambda: client.lost)

        self.addCleanup(lambda: Deferred.fromCoroutine(close()))
        return client


class TerminalWireTests(TerminalWireTestCase):
    """What clients and the server say to each other."""

    async def test_bytes_both_ways(self) -> None:
        """What is typed arrives byte for byte, what is printed is seen by every viewer, under each version's prefix."""
        every = bytes(range(256)) * 100
        viewers = [await self.look(prefix) for prefix in ("v1", "v2", "v3")]
        viewers[0].send({"type": "stdin", "chars": base64.b64encode(every).decode()})
        for viewer in viewers:
            await viewer.until(lambda viewer=viewer: len(viewer.screen) >= len(every))
            self.assertEqual(viewer.screen, every)
        self.assertEqual(self.terminal.typed, every)

    async def test_first_frame(self) -> None:
        """A message looks as clients have always seen it."""
        viewer = await self.look()
        viewer.type("echo;ls\n")
        await viewer.until(lambda: viewer.messages)
        self.assertEqual(viewer.messages, [{"type": "out", "data": "ZWNobztscwo="}])

    async def test_control_messages(self) -> None:
        """Sizes, pings and restarts do what they say; the socket stays."""
        viewer = await self.look()
        viewer.send({"type": "resize", "rows": 30, "cols": 100})
        viewer.send({"type": "ping"})
        viewer.send({"type": "restart"})
        viewer.type("x")
        await viewer.until(lambda: viewer.screen == b"x")
        self.assertEqual(self.terminal.size, (30, 100))
        self.assertEqual(self.terminal.writes, 2)
        self.assertEqual([one.starts for one in self.kernels.live.values()], [2])

    async def test_nonsense_is_answered_and_changes_nothing(self) -> None:
        """Each message that cannot be understood gets an error, and the connection goes on."""
        viewer = await self.look()
        wrong: list[Any] = [
            {},
            {"type": "stdin", "chars": "%"},
            {"type": "stdin", "chars": 5},
            {"type": "resize", "rows": "x", "cols": 80},
            {"type": "resize", "rows": 24},
            {"type": ["stdin"]},
        ]
        for message in wrong:
            viewer.send(message)
        for text in ("", "[", "7", "[" * 100_000, '{"type": "stdin", "chars": "\\ud800"}'):
            viewer.send_event(TextMessage(text))
        viewer.type("x")
        await viewer.until(lambda: viewer.screen == b"x")
        self.assertEqual([one["type"] for one in viewer.messages], ["error"] * (len(wrong) + 5) + ["out"])
        self.assertEqual((self.terminal.typed, self.terminal.size), (b"x", (24, 80)))

    async def test_strangers_stay_outside(self) -> None:
        """Without a signature, with a wrong one, or for another's kernel there is no WebSocket."""
        unsigned = await self.look(signed=False, Date=self.signer.date().isoformat())
        self.assertEqual(unsigned.status, 401)
        self.assertIn(b"auth-failed", unsigned.refusal)
        self.kernel = "nobody-has-this"
        self.assertEqual((await self.look()).status, 404)
        self.assertEqual(self.terminal.seats, [])

    async def test_the_page_of_this_host_may_look(self) -> None:
        """A browser's origin is accepted when it is this very host."""
        self.assertEqual((await self.look(Origin=f"http://127.0.0.1:{self.number}")).status, 101)
        self.assertEqual((await self.look(Origin="http://127.0.0.1")).status, 400)

    async def test_end_of_the_kernel(self) -> None:
        """When the kernel ends, the server says why and closes with 1000."""
        viewer = await self.look()
        self.terminal.show(b"last words")
        self.terminal.end("idle-timeout")
        await viewer.until(lambda: viewer.lost)
        self.assertEqual(viewer.screen, b"last words")
        self.assertEqual(viewer.messages[-1], {"type": "error", "data": "idle-timeout"})
        self.assertEqual((viewer.code, viewer.reason), (1000, "idle-timeout"))

    async def test_a_viewer_that_leaves_is_let_go(self) -> None:
        """A goodbye and a cut connection both end the look, and nothing is sent afterwards."""
        polite, rude = await self.look(), await self.look()
        polite.send_event(CloseConnection(1000))
        await polite.until(lambda: polite.lost)
        rude.transport.abortConnection()  # type: ignore[union-attr]  # connected, and TCP
        await rude.until(lambda: rude.lost)
        await self.settled(lambda: not self.terminal.seats)
        self.terminal.show(b"nobody")

    async def settled(self, condition: Any) -> None:
        for _ in range(500):
            if condition():
                return
            await deferLater(reactor, 0.01)
        self.fail("it did not come about")


class LimitTests(TerminalWireTestCase):
    """What a client may not do to the server."""

    websocket_limits = WebSocketLimits(message=100_000, ping=0.05, patience=0.3, goodbye=0.3)

    async def test_fragments_without_end(self) -> None:
        """A message that never ends is cut off while it is still small."""
        viewer = await self.look()
        for _ in range(40):
            viewer.send_event(TextMessage("x" * 10_000, message_finished=False))
        await viewer.until(lambda: viewer.lost)
        self.assertEqual(viewer.code, 1009)
        self.assertEqual(self.terminal.seats, [])

    async def test_many_messages_are_not_one(self) -> None:
        """Only what is unfinished counts."""
        viewer = await self.look()
        for _ in range(20):
            viewer.type("x" * 30_000)
        await viewer.until(lambda: len(viewer.screen) == 600_000)

    async def test_bytes_are_not_understood(self) -> None:
        """A binary message ends the connection with the code for it, whatever comes right behind it."""
        viewer = await self.look()
        viewer.send_raw(
            b"".join(map(viewer.pack, (BytesMessage(b"x"), Ping(b"p"), TextMessage("{}"), CloseConnection(1000))))
        )
        await viewer.until(lambda: viewer.lost)
        self.assertEqual(viewer.code, 1003)

    async def test_broken_frames(self) -> None:
        """What is no frame ends the connection with a protocol error, and nothing is logged as a fault of ours."""
        viewer = await self.look()
        viewer.send_raw(b"\xff\xff\xff\xff")
        await viewer.until(lambda: viewer.lost)
        self.assertEqual(viewer.code, 1002)
        self.assertEqual(self.terminal.seats, [])

    async def test_pings(self) -> None:
        """Who answers pings stays; who does not is dropped after a while."""
        there, away = await self.look(), await self.look()
        away.answers_pings = False
        await away.until(lambda: away.lost)
        self.assertFalse(there.lost)
        self.assertGreater(there.pings, 3)
        self.assertEqual(len(self.terminal.seats), 1)

    async def test_slow_reader(self) -> None:
        """A client that does not read is owed no more than the window and the buffers of two sockets."""
        viewer = await self.look()
        viewer.transport.pauseProducing()  # type: ignore[union-attr]  # TCP
        self.terminal.show(b"x" * 50_000_000)
        await deferLater(reactor, 0.1)
        (seat,) = self.terminal.seats
        shown = seat.shown
        self.assertLess(shown, 16_000_000)
        self.assertEqual(seat.allowed, 0)
        viewer.transport.resumeProducing()  # type: ignore[union-attr]  # TCP
        await viewer.until(lambda: seat.shown >= shown + 10 * WINDOW)

    async def test_a_client_that_does_not_take_the_goodbye(self) -> None:
        """A closing connection is dropped when its client does not read."""
        viewer = await self.look()
        viewer.transport.pauseProducing()  # type: ignore[union-attr]  # TCP
        self.terminal.show(b"x" * 50_000_000)
        await deferLater(reactor, 0.1)
        self.terminal.end("destroyed")
        await deferLater(reactor, 0.5)
        viewer.transport.resumeProducing()  # type: ignore[union-attr]  # TCP
        await viewer.until(lambda: viewer.lost)
        self.assertIsNone(viewer.code)
