"""A terminal's session without a wire: credit for what the client has read, and restarts."""

from __future__ import annotations

import base64
import json
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from sorna.errors import AgentTimeout, KernelExecutionFailed, KernelNotFound, KernelRestartFailed
from sorna.gateway.call import Call
from sorna.gateway.terminals import TerminalRoutes
from sorna.gateway.websockets import NORMAL, Session
from sorna.model.kernel import parse_kernel_id
from sorna.model.terminal import WINDOW
from sorna.testing.gateway import EXAMPLE
from sorna.testing.kernels import MemoryKernels
from sorna.testing.terminals import MemoryTerminal
from tests.gateway.base import TOKEN, GatewayTestCase, TextSocket


@define(eq=False)
class FakeSocket(TextSocket):
    """A WebSocket whose client reads when the test says so."""

    is_writable: bool = True
    sent: list[dict[str, Any]] = field(factory=list)
    closed_with: list[tuple[int, str]] = field(factory=list)

    def send(self, text: str) -> None:
        self.sent.append(json.loads(text))

    def close(self, code: int = NORMAL, reason: str = "") -> None:
        self.closed_with.append((code, reason))


class SlowlyRestarting(MemoryKernels):
    """Kernels whose restarts take until the gate opens."""

    def __init__(self, clock: IReactorTime) -> None:
        super().__init__(clock)
        self.gate: Deferred[None] = Deferred()

    async def restart(self, access_key: str, reference: str) -> None:
        await super().restart(access_key, reference)
        await self.gate


class TerminalSessionTests(GatewayTestCase):
    """One session, opened by its owner."""

    def setUp(self) -> None:
        super().setUp()
        kernel_id = parse_kernel_id(self.create())
        assert kernel_id is not None
        self.kernel = self.kernels.live[kernel_id]
        self.terminal: MemoryTerminal = self.kernel.terminal
        self.routes = TerminalRoutes(self.kernels, self.operations)
        self.socket = FakeSocket()
        self.session = self.open()
        self.session.opened(self.socket)
        self.clock.advance(0)

    def look(self, reference: str) -> Deferred[Session | None]:
        call = Call("1", "GET", 2, {"reference": reference}, b"", b"", EXAMPLE)

        async def session() -> Session | None:
            return (await self.routes.look(call)).session

        return Deferred.fromCoroutine(session())

    def open(self) -> Session:
        session = self.successResultOf(self.look(TOKEN))
        assert session is not None
        return session

    def say(self, **message: Any) -> None:
        self.session.received(json.dumps(message))

    def test_credit_follows_the_client(self) -> None:
        """Output is credited at once while the client reads, and in one piece when it reads again."""
        (seat,) = self.terminal.seats
        self.terminal.show(b"x" * 1000)
        self.assertEqual(seat.allowed, WINDOW)
        self.socket.is_writable = False
        self.terminal.show(b"y" * 2 * WINDOW)
        self.assertEqual(seat.allowed, 0)
        self.socket.is_writable = True
        self.session.resumed()
        self.assertEqual(seat.allowed, WINDOW)
        output = b"".join(base64.b64decode(one["data"]) for one in self.socket.sent)
        self.assertEqual(output, b"x" * 1000 + b"y" * 2 * WINDOW)

    def test_restarts_do_not_pile_up(self) -> None:
        """While one restart is under way another wish for it is ignored; afterwards it counts."""
        slow = SlowlyRestarting(self.clock)
        slow.live = self.kernels.live
        self.routes = TerminalRoutes(slow, self.operations)
        self.session = self.open()
        self.say(type="restart")
        self.say(type="restart")
        self.assertEqual(self.kernel.starts, 2)
        slow.gate.callback(None)
        self.say(type="restart")
        self.assertEqual(self.kernel.starts, 3)
        self.assertEqual(self.socket.sent, [])

    def test_failed_restarts_are_told(self) -> None:
        """A restart that fails is told by its title; a fault of ours is logged and told without its text."""
        self.kernels.errors["restart"] = KernelRestartFailed("busy")
        self.say(type="restart")
        self.kernels.errors["restart"] = ValueError("secret")
        self.say(type="restart")
        self.assertEqual(
            self.socket.sent,
            [
                {"type": "error", "data": "Kernel restart has failed. (busy)"},
                {"type": "error", "data": "General Sorna API Error."},
            ],
        )
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_end_and_close(self) -> None:
        """The end of the kernel closes the socket with its reason; a closed socket is told nothing more."""
        other = self.open()
        other.closed()
        self.terminal.end("idle-timeout")
        self.assertEqual(self.socket.closed_with, [(1000, "idle-timeout")])
        self.session.closed()
        self.session.received('{"type": "stdin", "chars": "eA=="}')
        self.session.resumed()
        self.assertEqual(self.terminal.typed, b"")

    def test_kernels_that_cannot_be_looked_at(self) -> None:
        """What goes wrong before the socket opens is the answer to the handshake."""
        self.failureResultOf(self.look("nobody-has-this"), KernelNotFound)
        failed = KernelExecutionFailed()
        failed.__cause__ = AgentTimeout("slow")
        self.kernels.errors["open_terminal"] = failed
        self.failureResultOf(self.look(TOKEN), KernelExecutionFailed)
        self.assertEqual(len(self.terminal.seats), 1)
