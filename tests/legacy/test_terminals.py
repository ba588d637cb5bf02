"""The two ports of a kernel's terminal, with a terminal in memory behind them."""

from __future__ import annotations

from typing import Any

import zmq
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from sorna.errors import KernelNotFound, Unavailable
from sorna.legacy import terminals as module
from sorna.legacy.terminals import Terminals
from sorna.model.kernel import parse_kernel_id
from sorna.model.terminal import Terminal
from sorna.testing.terminals import MemoryTerminal
from sorna.zeromq import Socket
from tests.legacy.door import SESSION, DoorTestCase, reactor


class Viewer:
    """A client's two sockets."""

    def __init__(self, test: DoorTestCase, reply: dict[str, Any], *, subscribes: bool = True) -> None:
        self.seen = bytearray()
        self.stdin = Socket(test.sockets, zmq.PUB, lambda _parts: None)
        self.stdin.socket.connect(reply["stdin_addr"])
        self.stdout = Socket(test.sockets, zmq.SUB, self._receive)
        self.stdout.socket.connect(reply["stdout_addr"])
        if subscribes:
            self.subscribe()

    def subscribe(self) -> None:
        self.stdout.socket.set(zmq.SUBSCRIBE, b"")

    def _receive(self, parts: list[zmq.Frame]) -> None:
        assert len(parts) == 1, parts
        self.seen += parts[0].bytes


class TerminalsTests(DoorTestCase):
    async def begin(self, lang: str = "git") -> MemoryTerminal:
        """Make a kernel and give its terminal."""
        self.reply = await self.manager().ask({**SESSION, "lang": lang})
        kernel_id = parse_kernel_id(self.reply["kernel_id"])
        assert kernel_id is not None
        return self.kernels.live[kernel_id].terminal

    @property
    def terminals(self) -> Terminals:
        """Give the door's terminals."""
        assert self.door._terminals is not None
        return self.door._terminals

    async def seen(self, viewer: Viewer, text: bytes) -> None:
        """Wait until a viewer has seen something."""
        await self.eventually(lambda: text in viewer.seen, repr(viewer.seen[-200:]))

    async def test_raw_bytes_both_ways(self) -> None:
        """What is typed reaches the terminal as it is, what it prints the subscriber; nothing is opened before."""
        terminal = await self.begin()
        self.assertEqual(terminal.seats, [])
        viewer = Viewer(self, self.reply)
        await self.eventually(lambda: bool(terminal.seats), "subscribed")
        every_byte = bytes(range(256))
        terminal.show(b"$ ")
        await self.seen(viewer, b"$ ")
        for _ in range(200):  # a PUB drops what is sent before it is connected
            viewer.stdin.send([every_byte])
            if terminal.typed:
                break
            await deferLater(reactor, 0.01)
        await self.eventually(lambda: every_byte in terminal.typed, "typed")
        await self.seen(viewer, every_byte)

    async def test_typing_opens_it_too(self) -> None:
        """What was typed before the terminal was open is typed into it, in order."""
        terminal = await self.begin()
        viewer = Viewer(self, self.reply, subscribes=False)
        await deferLater(reactor, 0.2)
        for piece in (b"a", b"b", b"c"):
            viewer.stdin.send([piece])
        await self.eventually(lambda: terminal.typed == b"abc", "typed")

    async def test_typed_before_looked_at(self) -> None:
        """Who subscribes after having typed sees what that brought about."""
        terminal = await self.begin()
        viewer = Viewer(self, self.reply, subscribes=False)
        await deferLater(reactor, 0.2)
        viewer.stdin.send([b"ls\r"])
        await self.eventually(lambda: terminal.typed == b"ls\r", "typed")
        viewer.subscribe()
        await self.seen(viewer, b"ls\r")
        self.assertEqual(len(terminal.seats), 1)

    async def test_subscribers_come_and_go(self) -> None:
        """The last subscriber's leaving gives the terminal up; a new one sees the screen again."""
        terminal = await self.begin()
        first = Viewer(self, self.reply)
        await self.eventually(lambda: bool(terminal.seats))
        terminal.show(b"screen")
        await self.seen(first, b"screen")
        first.stdout.shutdown()
        await self.eventually(lambda: not terminal.seats, "given up")
        second = Viewer(self, self.reply)
        await self.seen(second, b"screen")

    async def test_every_byte_of_a_flood(self) -> None:
        """A subscriber that reads gets everything, however much more than any queue it is."""
        terminal = await self.begin()
        viewer = Viewer(self, self.reply)
        await self.eventually(lambda: bool(terminal.seats))
        flood = b"".join(b"%07d\n" % number for number in range(500_000))
        for start in range(0, len(flood), 40_000):
            terminal.show(flood[start : start + 40_000])
            await deferLater(reactor, 0)
        await self.eventually(lambda: len(viewer.seen) >= len(flood), str(len(viewer.seen)))
        self.assertEqual(bytes(viewer.seen), flood)

    async def test_resize(self) -> None:
        """``%resize`` reaches a terminal that is open, and one that is opened later."""
        terminal = await self.begin()
        execute = {"action": 1, "entry_id": "e", "kernel_id": self.reply["kernel_id"], "cell_id": "1"}
        client = self.execution()
        await client.ask({**execute, "code": "%resize 30 100"})
        Viewer(self, self.reply)
        await self.eventually(lambda: bool(terminal.seats))
        self.assertEqual(terminal.size, (30, 100))
        await client.ask({**execute, "code": "%resize 10 20"})
        self.assertEqual(terminal.size, (10, 20))

    async def test_closed_with_the_kernel(self) -> None:
        """The announcement of a kernel's end closes its ports, and no other's; they are not kept by many kernels."""
        await self.begin()
        first = self.reply
        await self.begin("c")
        self.assertEqual(len(self.terminals), 2)
        for text in (
            "",
            "nonsense",
            f"{first['kernel_id']} RUNNING o t ",
            f"{first['kernel_id']} TERMINATED o t user-requested",
        ):
            for listener in self.listeners:
                listener(text)
        self.assertEqual(len(self.terminals), 1)

    async def test_sweep(self) -> None:
        """A kernel whose end nobody told of loses its ports at the next sweep."""
        await self.begin()
        await self.begin("c")
        kernel_id = parse_kernel_id(self.reply["kernel_id"])
        assert kernel_id is not None
        del self.kernels.live[kernel_id]
        await self.door.sweep()
        self.assertEqual(len(self.terminals), 1)

    async def test_kernel_that_is_gone(self) -> None:
        """Opening the terminal of a kernel that is gone closes its ports; another error leaves them for another try."""
        terminal = await self.begin()
        self.kernels.errors["open_terminal"] = Unavailable("not now")
        viewer = Viewer(self, self.reply)
        await deferLater(reactor, 0.3)
        self.assertEqual(len(self.terminals), 1)
        del self.kernels.errors["open_terminal"]
        viewer.stdin.send([b"x"])
        await self.eventually(lambda: terminal.typed == b"x")
        terminal.end("lost")
        self.kernels.errors["open_terminal"] = KernelNotFound()
        viewer.stdin.send([b"y"])
        await self.eventually(lambda: len(self.terminals) == 0)

    async def test_bounds(self) -> None:
        """There are so many terminals at the most, and so much typed ahead."""
        self.patch(module, "MOST_TERMINALS", 1)
        self.patch(module, "MOST_TYPED_AHEAD", 10)
        terminal = await self.begin()
        refused = await self.manager().ask({**SESSION, "lang": "c"})
        self.assertEqual(refused, {"reply": 500, "cause": "Kernel creation failed. Try again later."})
        gate: Deferred[None] = Deferred()
        opening = self.kernels.open_terminal

        async def slowly(*arguments: Any) -> Terminal:
            await gate
            return await opening(*arguments)

        self.kernels.open_terminal = slowly  # type: ignore[method-assign, assignment]
        viewer = Viewer(self, self.reply)
        await deferLater(reactor, 0.2)
        for piece in (b"123456789", b"too much", b"0"):
            viewer.stdin.send([piece])
        await deferLater(reactor, 0.2)
        gate.callback(None)
        await self.eventually(lambda: bool(terminal.typed))
        self.assertEqual(terminal.typed, b"1234567890")

    async def test_inactive_keypair_opens_nothing(self) -> None:
        """Nobody looks at a terminal on a keypair that was taken away."""
        terminal = await self.begin()
        self.keypairs.all.clear()
        Viewer(self, self.reply)
        await deferLater(reactor, 0.2)
        self.assertEqual(terminal.seats, [])
        await self.door.check_access()
        self.assertEqual(len(self.terminals), 0)
