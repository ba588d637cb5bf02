"""Terminals and tunnels between a manager and an agent."""

from __future__ import annotations

from sorna import errors
from sorna.cluster.messages import (
    Answer,
    Call,
    Ended,
    Finished,
    Output,
    Room,
    Steer,
)
from sorna.cluster.terminals import MAX_UNSENT
from sorna.model.service import WINDOW as TUNNEL_WINDOW
from sorna.model.service import Tunnel
from sorna.model.terminal import WINDOW, Terminal
from sorna.testing.services import MemoryUser
from sorna.testing.terminals import MemoryViewer
from sorna.zeromq import Sent
from tests.cluster.test_conversation import ConversationTestCase


class TerminalTests(ConversationTestCase):
    """Terminals over one connection."""

    def look(self) -> tuple[Terminal, MemoryViewer]:
        viewer = MemoryViewer()
        opening = self.talk.open_terminal({"rows": 24}, viewer, 5.0)
        calls = [message.id for message in self.sent if isinstance(message, Call)]
        self.answer(Answer(calls[-1], None))
        return self.successResultOf(opening), viewer

    def test_each_viewer_has_its_own_output(self) -> None:
        """Output goes to the viewer whose call it names; what names nobody is ignored."""
        self.talk.connection_made()
        (_, first), (_, second) = self.look(), self.look()
        self.assertEqual(len(self.talk._terminals), 2)
        self.answer(Output(2, b"two"))
        self.answer(Output(1, b"one"))
        self.answer(Output(7, b"nobody"))
        self.answer(Ended(7, "nobody"))
        self.assertEqual((first.seen, second.seen), (b"one", b"two"))
        self.answer(Ended(1, "gone"))
        self.answer(Ended(1, "gone"))
        self.answer(Output(1, b"late"))
        self.assertEqual((first.ends, first.seen, second.ends, len(self.talk._terminals)), (["gone"], b"one", [], 1))

    def test_credit_travels_in_good_pieces(self) -> None:
        """Small pieces that were consumed are told together."""
        self.talk.connection_made()
        terminal, _ = self.look()
        for _ in range(WINDOW // 4):
            terminal.consumed(1)
        self.assertEqual(self.sent[1:], [Steer(1, "consumed", WINDOW // 4)])

    def test_keys_wait_for_room_in_order(self) -> None:
        """What the connection has no room for goes out later, behind what came before it."""
        self.talk.connection_made()
        terminal, _ = self.look()
        self.room = Sent.FULL
        terminal.write(b"1")
        terminal.restart()
        terminal.close()
        terminal.write(b"not any more")
        self.room = Sent.AWAY
        other, _ = self.look()
        other.write(b"2")
        self.talk.writable()
        steps = [message for message in self.sent if isinstance(message, Steer)]
        self.assertEqual(
            steps, [Steer(1, "write", b"1"), Steer(1, "restart"), Steer(1, "close"), Steer(2, "write", b"2")]
        )

    def test_keys_that_nobody_takes_are_bounded(self) -> None:
        """Who types on and on into a connection without room is ended, and closed at the agent."""
        self.talk.connection_made()
        (first, viewer), (_, other) = self.look(), self.look()
        self.room = Sent.FULL
        for _ in range(MAX_UNSENT // 1_000_000 + 1):
            first.write(b"x" * 1_000_000)
        self.assertEqual(viewer.ends, ["the agent does not take what is typed"])
        self.room = Sent.AWAY
        self.talk.writable()
        self.assertEqual(self.sent[-1], Steer(1, "close"))
        self.assertEqual(other.ends, [])

    def test_every_loss_ends_every_look(self) -> None:
        """A lost, refused or closed connection ends its terminals once each, with the reason."""
        for lose, reason in (
            (self.talk.connection_lost, "the connection to agent i-1 was lost"),
            (self.talk.refused, "agent i-1 does not accept this manager's key"),
            (self.talk.close, "the link to the agent is closed"),
        ):
            self.talk.connection_made()
            _, viewer = self.look()
            lose()
            lose()
            self.assertEqual((viewer.ends, len(self.talk._terminals)), ([reason], 0))
        self.failureResultOf(self.talk.open_terminal({}, MemoryViewer(), 5.0), errors.Unavailable)

    def test_nothing_typed_reaches_the_next_life(self) -> None:
        """What waited on a connection that was lost is not sent on the next."""
        self.talk.connection_made()
        terminal, _ = self.look()
        self.room = Sent.FULL
        terminal.write(b"x")
        self.talk.connection_lost()
        self.room = Sent.AWAY
        before = len(self.sent)
        self.talk.connection_made()
        self.talk.writable()
        self.assertEqual(len(self.sent), before)


class TunnelTests(ConversationTestCase):
    """Tunnels over one connection."""

    def open(self) -> tuple[Tunnel, MemoryUser]:
        user = MemoryUser()
        opening = self.talk.open_tunnel({"wish": {}}, user, 5.0)
        calls = [message.id for message in self.sent if isinstance(message, Call)]
        self.answer(Answer(calls[-1], None))
        return self.successResultOf(opening), user

    def test_each_user_has_its_own(self) -> None:
        """What an agent says goes to the user whose call it names, in order; what names nobody is ignored."""
        self.talk.connection_made()
        (_, first), (_, second) = self.open(), self.open()
        for message in (Output(2, b"two"), Room(1, 5), Finished(1), Output(7, b"x"), Room(7, 1), Finished(7)):
            self.answer(message)
        self.assertEqual((first.seen, first.room, first.told), (b"", 5, ["finished"]))
        self.answer(Ended(1, ""))
        self.answer(Ended(1, "again"))
        self.answer(Finished(1))
        self.assertEqual((second.seen, first.told, first.reasons), (b"two", ["finished", "ended"], [""]))
        self.assertTrue(self.talk.in_use)

    def test_terminals_are_beside(self) -> None:
        """A terminal and a tunnel of one connection do not hear each other."""
        self.talk.connection_made()
        _, user = self.open()
        viewer = MemoryViewer()
        looking = self.talk.open_terminal({"rows": 24}, viewer, 5.0)
        self.answer(Answer(2, None))
        self.successResultOf(looking)
        self.answer(Output(2, b"$ "))
        self.answer(Output(1, b"page"))
        self.answer(Ended(2, "gone"))
        self.assertEqual((viewer.seen, viewer.ends, user.seen, user.told), (b"$ ", ["gone"], b"page", []))

    def test_what_a_user_does(self) -> None:
        """Credit travels in good pieces; the rest at once, in order, until the tunnel is closed."""
        self.talk.connection_made()
        tunnel, user = self.open()
        self.room = Sent.FULL
        tunnel.write(b"GET")
        tunnel.write(b"")
        tunnel.finish()
        tunnel.consumed(TUNNEL_WINDOW // 4 - 1)
        tunnel.consumed(1)
        tunnel.close()
        tunnel.write(b"not any more")
        tunnel.close()
        self.room = Sent.AWAY
        self.talk.writable()
        self.answer(Ended(1, "crossed"))
        steps = [message for message in self.sent if isinstance(message, Steer)]
        consumed = Steer(1, "consumed", TUNNEL_WINDOW // 4)
        self.assertEqual(steps, [Steer(1, "write", b"GET"), Steer(1, "finish"), consumed, Steer(1, "close")])
        self.assertEqual(user.told, [])
        self.assertFalse(self.talk.in_use)

    def test_every_loss_ends_every_tunnel(self) -> None:
        """A lost, refused or closed connection ends its tunnels once each, with the reason."""
        for lose, reason in (
            (self.talk.connection_lost, "the connection to agent i-1 was lost"),
            (self.talk.refused, "agent i-1 does not accept this manager's key"),
            (self.talk.close, "the link to the agent is closed"),
        ):
            self.talk.connection_made()
            _, user = self.open()
            lose()
            lose()
            self.assertEqual(user.reasons, [reason])
        self.failureResultOf(self.talk.open_tunnel({}, MemoryUser(), 5.0), errors.Unavailable)
