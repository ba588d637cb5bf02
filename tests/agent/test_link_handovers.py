"""Answers to execute at the agent's end of the link: kept until they were passed on."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from sorna.agent.link_sessions import PROBE_DELAY, Sessions
from sorna.cluster.messages import Answer, Call, Cancel, Message, Took, decode, encode, pack_value
from sorna.model.run import RunMode, RunRequest
from sorna.testing.unit import UnitTestCase
from sorna.zeromq import Sent
from tests.cluster.scripted import KERNEL, ScriptedOperations

MANAGER, OTHER = b"manager", b"other"
WISH = {"kernel_id": KERNEL.bytes, "request": pack_value(RunRequest(RunMode.QUERY, "1"))}


class LinkHandoverTests(UnitTestCase):
    """Sessions on a clock, with managers that are lists of what they were sent."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.operations = ScriptedOperations()
        self.sent: list[tuple[bytes, Message]] = []
        self.gone: set[bytes] = set()
        self.sessions = Sessions(self.clock, self.operations, self.send, lambda _key: True, "life")
        self.sessions.start()
        self.addCleanup(lambda: self.successResultOf(Deferred.fromCoroutine(self.sessions.stop())))

    def send(self, identity: bytes, raw: bytes) -> Sent:
        if identity in self.gone:
            return Sent.GONE
        self.sent.append((identity, decode(raw)))
        return Sent.AWAY

    def say(self, message: Message, identity: bytes = MANAGER) -> None:
        self.sessions.receive(identity, "key", encode(message))

    @property
    def arrived(self) -> list[bool]:
        """Tell what became of the answers."""
        return [arrived for _run, arrived in self.operations.handed_over]

    def test_passed_on(self) -> None:
        """The manager says so, and its end later gives nothing back."""
        self.say(Call(3, "execute", WISH, 5.0))
        self.assertIsInstance(self.sent[-1][1], Answer)
        self.assertEqual(self.arrived, [])
        self.say(Took(3))
        self.assertEqual(self.arrived, [True])
        self.leave()
        self.assertEqual(self.arrived, [True])

    def leave(self) -> None:
        """Let the manager's connection be lost."""
        self.gone.add(MANAGER)
        self.sessions.somebody_left()
        self.clock.advance(PROBE_DELAY)

    def test_the_manager_dies_with_it(self) -> None:
        """What one manager had not passed on is given back, what another has in hand is not."""
        self.say(Call(3, "execute", WISH, 5.0))
        self.say(Call(3, "execute", WISH, 5.0), OTHER)
        self.leave()
        self.assertEqual(self.arrived, [False])

    def test_it_cannot_even_be_sent(self) -> None:
        """A connection that is lost at the answer gives it back at once."""
        self.say(Call(2, "usage", {"kernel_id": KERNEL.bytes}, 5.0))
        self.gone.add(MANAGER)
        self.say(Call(3, "execute", WISH, 5.0))
        self.assertEqual(self.arrived, [False])

    def test_nobody_waits_any_more(self) -> None:
        """A call that was cancelled while its answer was on the way."""
        self.say(Call(3, "execute", WISH, 5.0))
        self.say(Cancel(3))
        self.say(Took(3))
        self.assertEqual(self.arrived, [False])

    def test_only_what_exists_once(self) -> None:
        """Other answers can be asked for again."""
        self.say(Call(3, "usage", {"kernel_id": KERNEL.bytes}, 5.0))
        self.leave()
        self.assertEqual(self.arrived, [])
