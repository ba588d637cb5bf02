"""Tunnels at the agent's end of the link: their place behind answers, each in turn, and when they are let go."""

from __future__ import annotations

import uuid
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from sorna.agent.link_sessions import SILENCE, Sessions
from sorna.agent.link_tunnels import PIECE
from sorna.cluster.messages import (
    Answer,
    Call,
    Cancel,
    Ended,
    Failed,
    Finished,
    Message,
    Output,
    Room,
    Steer,
    decode,
    encode,
    pack_value,
)
from sorna.model.service import WINDOW, TunnelWish
from sorna.testing.services import MemoryTunnel
from sorna.testing.unit import UnitTestCase
from sorna.zeromq import Sent
from tests.cluster.scripted import KERNEL, ScriptedOperations

MANAGER, OTHER = b"manager", b"other"
WISH: dict[str, Any] = {
    "kernel_id": KERNEL.bytes,
    "wish": pack_value(TunnelWish("files", None, {"--directory": ["d"]})),
}


class LinkTunnelTests(UnitTestCase):
    """Sessions on a clock, with managers that are lists of what they were sent."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.operations = ScriptedOperations()
        self.inside = self.operations.services_inside
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

    def open(self, number: int, identity: bytes = MANAGER) -> MemoryTunnel:
        self.say(Call(number, "open_tunnel", WISH, 5.0), identity)
        return self.inside.tunnels[-1]

    def test_a_tunnel(self) -> None:
        """The answer comes first; bytes, room and ends go both ways, and a closed tunnel is gone."""
        tunnel = self.open(3)
        self.assertEqual(self.inside.wishes, [TunnelWish("files", None, {"--directory": ["d"]})])
        self.say(Steer(3, "write", b"GET"))
        tunnel.say(b"page")
        tunnel.user.tunnel_finished()
        self.assertEqual(
            [message for _, message in self.sent], [Answer(3, None), Room(3, 3), Output(3, b"page"), Finished(3)]
        )
        self.say(Steer(3, "consumed", 4))
        self.say(Steer(3, "finish"))
        self.assertEqual((tunnel.taken, tunnel.allowed, tunnel.client_finished), (b"GET", WINDOW, True))
        self.say(Steer(3, "close"))
        self.say(Steer(3, "write", b"late"))
        self.assertEqual((self.inside.tunnels, tunnel.taken), ([], b"GET"))

    def test_wrong_wishes(self) -> None:
        """A wish that makes no sense is refused, one at a time, and opens nothing; nor may it take another's id."""
        for parameters in (
            {},
            {"kernel_id": KERNEL.bytes},
            {**WISH, "more": 1},
            {**WISH, "kernel_id": b"x"},
            {**WISH, "wish": "files"},
            {**WISH, "wish": {"app": 1}},
            {**WISH, "wish": {**WISH["wish"], "port": "8000"}},
            {**WISH, "wish": {**WISH["wish"], "arguments": {"--directory": "d"}}},
            {**WISH, "wish": {**WISH["wish"], "app": "nothing"}},
        ):
            self.say(Call(1, "open_tunnel", parameters, 5.0))
            failed = self.sent.pop()[1]
            self.assertIsInstance(failed, Failed)
            self.assertEqual(getattr(failed, "name", ""), "InvalidRequest", parameters)
        self.say(Call(9, "open_tunnel", {**WISH, "kernel_id": uuid.UUID(int=77).bytes}, 5.0))
        self.assertEqual(getattr(self.sent.pop()[1], "name", ""), "KernelNotFound")
        self.assertEqual(self.inside.tunnels, [])
        self.open(1)
        self.say(Call(1, "open_tunnel", WISH, 5.0))
        self.assertEqual(len(self.inside.tunnels), 1)

    def test_answers_go_first_and_tunnels_in_turn(self) -> None:
        """Without room everything waits; then answers come first, and no tunnel sends twice while another waits."""
        first, second = self.open(1), self.open(2)
        self.room = Sent.FULL
        first.say(b"a" * 2 * PIECE)
        second.say(b"b" * PIECE)
        self.say(Call(5, "logs", {"kernel_id": KERNEL.bytes}, 5.0))
        del self.sent[:]
        self.room = Sent.AWAY
        self.sessions.writable()
        self.assertEqual(
            [message for _, message in self.sent],
            [Answer(5, "printed\n"), Output(1, b"a" * PIECE), Output(2, b"b" * PIECE), Output(1, b"a" * PIECE)],
        )

    def test_the_end_comes_last(self) -> None:
        """The reason waits behind bytes that have no room yet, and the id is free again."""
        tunnel = self.open(1)
        self.room = Sent.FULL
        tunnel.say(b"last words")
        tunnel.end("Nothing listens on port 8009.")
        self.room = Sent.AWAY
        self.sessions.writable()
        ends = [Output(1, b"last words"), Ended(1, "Nothing listens on port 8009.")]
        self.assertEqual([message for _, message in self.sent][1:], ends)
        self.open(1)

    def test_lost_managers(self) -> None:
        """A manager that is gone leaves no tunnel, others' stay; one with tunnels is not forgotten for its silence."""
        self.open(1)
        kept = self.open(1, OTHER)
        self.clock.pump([SILENCE / 2] * 3)
        self.assertEqual(len(self.inside.tunnels), 2)
        self.room = Sent.GONE
        self.sessions.receive(MANAGER, "key", encode(Call(7, "ping", {}, 5.0)))
        self.assertEqual(self.inside.tunnels, [kept])

    def test_cancelled_and_too_late(self) -> None:
        """A cancelled call leaves no tunnel, whether its answer was on the way or it opened after all."""
        self.open(1)
        self.say(Cancel(1))
        self.assertEqual(self.inside.tunnels, [])
        gate: Deferred[None] = Deferred()
        self.operations.script["open_tunnel"] = lambda: gate
        self.say(Call(2, "open_tunnel", WISH, 5.0))
        self.say(Cancel(2))
        self.assertEqual((self.inside.tunnels, self.operations.cancelled), ([], ["open_tunnel"]))
