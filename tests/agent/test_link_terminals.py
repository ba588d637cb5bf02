"""Terminals at the agent's end of the link: their place behind answers, and when they are let go."""

from __future__ import annotations

import uuid
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from sorna.agent.link_sessions import SILENCE, Sessions
from sorna.agent.link_terminals import PIECE
from sorna.cluster.messages import Answer, Call, Cancel, Ended, Failed, Message, Output, Steer, decode, encode
from sorna.model.terminal import WINDOW
from sorna.testing.terminals import MemoryTerminal
from sorna.testing.unit import UnitTestCase
from sorna.zeromq import Sent
from tests.cluster.scripted import KERNEL, ScriptedOperations

MANAGER, OTHER = b"manager", b"other"
WISH = {"kernel_id": KERNEL.bytes, "rows": 24, "columns": 80}


class LinkTerminalTests(UnitTestCase):
    """Sessions on a clock, with managers that are lists of what they were sent."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.operations = ScriptedOperations()
        self.screen: MemoryTerminal = self.operations.terminal
        self.sent: list[tuple[bytes, Message]] = []
        self.room = Sent.AWAY
        self.permitted = True
        self.sessions = Sessions(self.clock, self.operations, self.send, lambda _key: self.permitted, "life")
        self.sessions.start()
        self.addCleanup(lambda: self.successResultOf(Deferred.fromCoroutine(self.sessions.stop())))

    def send(self, identity: bytes, raw: bytes) -> Sent:
        if self.room is Sent.AWAY:
            self.sent.append((identity, decode(raw)))
        return self.room

    def say(self, message: Message, identity: bytes = MANAGER) -> None:
        self.sessions.receive(identity, "key", encode(message))

    def look(self, number: int, identity: bytes = MANAGER) -> None:
        self.say(Call(number, "open_terminal", WISH, 5.0), identity)

    def output(self, number: int) -> bytes:
        return b"".join(one.data for _, one in self.sent if isinstance(one, Output) and one.id == number)

    def test_a_look(self) -> None:
        """The answer comes first, then output; what the viewer does reaches the terminal."""
        self.look(3)
        self.screen.show(b"$ ")
        self.assertEqual(self.sent, [(MANAGER, Answer(3, None)), (MANAGER, Output(3, b"$ "))])
        for action, value in (("write", b"ls"), ("resize", [50, 132]), ("restart", None), ("consumed", 5)):
            self.say(Steer(3, action, value))
        self.assertEqual((self.screen.typed, self.screen.size, self.screen.restarts), (b"ls", (50, 132), 1))
        self.assertEqual(self.screen.seats[0].allowed, WINDOW - 4 + 5)
        self.say(Steer(3, "close"))
        self.say(Steer(3, "write", b"late"))
        self.assertEqual((self.screen.seats, self.screen.typed), ([], b"ls"))

    def test_wrong_wishes(self) -> None:
        """A look that makes no sense is refused, one at a time, and opens nothing; nor may it take another's id."""
        wrong: list[dict[str, Any]] = [
            {},
            {**WISH, "rows": "24"},
            {**WISH, "kernel_id": b"short"},
            {**WISH, "more": 1},
        ]
        for number, parameters in enumerate(wrong):
            self.say(Call(number, "open_terminal", parameters, 5.0))
        names = [one.name for _, one in self.sent if isinstance(one, Failed)]
        self.assertEqual(names, ["InvalidRequest"] * len(wrong))
        self.say(Call(9, "open_terminal", {**WISH, "kernel_id": uuid.UUID(int=77).bytes}, 5.0))
        self.assertEqual(self.sent[-1][1], Failed(9, "KernelNotFound", f"no kernel {uuid.UUID(int=77)}", None))
        self.look(10)
        self.look(10)
        self.assertEqual(len(self.screen.seats), 1)

    def test_answers_overtake_output(self) -> None:
        """While there is no room, answers go before everything that terminals printed, and viewers take turns."""
        self.look(1)
        self.look(2)
        self.room = Sent.FULL
        self.sent.clear()
        self.screen.show(b"x" * 2 * PIECE)
        self.say(Call(5, "usage", {"kernel_id": KERNEL.bytes}, 5.0))
        self.say(Call(6, "logs", {"kernel_id": KERNEL.bytes}, 5.0))
        self.assertEqual(self.sent, [])
        self.room = Sent.AWAY
        self.sessions.writable()
        self.assertEqual([one.id for _, one in self.sent if isinstance(one, Answer)], [5, 6])
        self.assertTrue(all(isinstance(one, Answer) for _, one in self.sent[:2]))
        self.assertEqual([one.id for _, one in self.sent[2:] if isinstance(one, Output)], [1, 2, 1, 2])

    def test_what_waits_is_bounded_and_comes_in_order(self) -> None:
        """Without room a viewer's output is the window at the most; the last word comes after it."""
        self.look(1)
        self.room = Sent.FULL
        for number in range(100_000):
            self.screen.show(b"%9d\n" % number)
        self.screen.end("gone")
        self.room = Sent.AWAY
        self.sessions.writable()
        self.assertEqual(self.output(1), bytes(self.screen.screen[:WINDOW]))
        self.assertEqual(self.sent[-1], (MANAGER, Ended(1, "gone")))

    def test_a_manager_that_is_gone(self) -> None:
        """When output finds nobody, every look of that manager ends, and no other's."""
        self.look(1)
        self.look(2)
        self.look(1, OTHER)
        self.room = Sent.GONE
        self.screen.seats[0].viewer.terminal_output(b"x")
        self.room = Sent.AWAY
        self.assertEqual(len(self.screen.seats), 1)
        self.screen.show(b"y")
        self.assertEqual(self.sent[-1], (OTHER, Output(1, b"y")))

    def test_who_only_looks_is_not_forgotten(self) -> None:
        """A manager that says nothing stays while it looks; one whose key is withdrawn does not."""
        self.look(1)
        self.clock.pump([1.0] * round(2 * SILENCE))
        self.screen.show(b"x")
        self.assertEqual(self.sent[-1], (MANAGER, Output(1, b"x")))
        self.permitted = False
        self.clock.advance(1)
        self.assertEqual(self.screen.seats, [])

    def test_cancelled_in_time_and_too_late(self) -> None:
        """A cancelled look leaves no viewer, whether its answer was on the way or the terminal opened after all."""
        self.look(1)
        self.say(Cancel(1))
        self.assertEqual(self.screen.seats, [])
        gate: Deferred[None] = Deferred()
        self.operations.script["open_terminal"] = lambda: gate
        self.look(2)
        self.say(Cancel(2))
        self.assertEqual((self.screen.seats, self.operations.cancelled), ([], ["open_terminal"]))
