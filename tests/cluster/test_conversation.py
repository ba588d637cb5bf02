"""A manager's conversation with an agent: how calls wait, travel and end."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from sorna import errors
from sorna.cluster import conversation
from sorna.cluster.conversation import Conversation
from sorna.cluster.messages import (
    RESTARTING,
    Acknowledge,
    Answer,
    Call,
    Cancel,
    Event,
    Failed,
    Message,
    Took,
    decode,
    encode,
)
from sorna.testing.unit import UnitTestCase
from sorna.zeromq import Sent


class ConversationTestCase(UnitTestCase):
    """A clock and a list of what was sent."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.sent: list[Message] = []
        self.room = Sent.AWAY
        self.events: list[Event] = []
        self.talk = Conversation(self.clock, "i-1", self.send, self.events.append, greets=False)

    def send(self, raw: bytes) -> Sent:
        if self.room is Sent.AWAY:
            self.sent.append(decode(raw))
        return self.room

    def answer(self, message: Message) -> None:
        self.talk.receive(encode(message))

    def call(self, deadline: float = 10.0, **parameters: Any) -> Deferred[Any]:
        return self.talk.call("usage", parameters, deadline)


class ConversationTests(ConversationTestCase):
    """How calls go and end."""

    def test_call_and_answer(self) -> None:
        """A call goes out at once and its answer comes back; nothing stays behind."""
        self.talk.connection_made()
        call = self.call(x=1)
        self.assertEqual(self.sent, [Call(1, "usage", {"x": 1}, 10.0)])
        self.answer(Answer(1, "result"))
        self.assertEqual(self.successResultOf(call), "result")
        self.assertEqual((self.talk.calls, self.clock.getDelayedCalls()), (0, []))

    def test_error_answer(self) -> None:
        """An error is raised as the class it names."""
        self.talk.connection_made()
        call = self.call()
        self.answer(Failed(1, "KernelNotFound", "gone", None))
        self.assertEqual(self.failureResultOf(call, errors.KernelNotFound).value.detail, "gone")

    def test_waits_for_the_connection(self) -> None:
        """Calls made before there is a connection go out in order once there is, with their whole deadline."""
        first, second = self.call(x=1), self.call(x=2)
        self.clock.advance(conversation.CONNECT_PATIENCE - 0.1)
        self.assertEqual(self.sent, [])
        self.talk.connection_made()
        self.assertEqual([message.parameters["x"] for message in self.sent if isinstance(message, Call)], [1, 2])
        self.clock.advance(5)
        self.assertNoResult(first)
        self.clock.advance(5)
        for call in (first, second):
            self.assertIn("did not answer", self.failureResultOf(call, errors.AgentTimeout).value.detail)

    def test_no_connection(self) -> None:
        """Without a connection a call does not wait for its deadline."""
        call = self.call(30.0)
        self.clock.advance(conversation.CONNECT_PATIENCE)
        self.assertIn("cannot be reached", self.failureResultOf(call, errors.AgentTimeout).value.detail)

    def test_deadline(self) -> None:
        """A call that is too late is called off at the agent, and its late answer means nothing."""
        self.talk.connection_made()
        call = self.call(3.0)
        self.clock.advance(3.0)
        self.failureResultOf(call, errors.AgentTimeout)
        self.assertEqual(self.sent[1:], [Cancel(1)])
        self.answer(Answer(1, "late"))
        self.assertEqual(self.talk.calls, 0)

    def test_caller_cancels(self) -> None:
        """The agent hears of it; a call that never went out is just forgotten."""
        unsent = self.call()
        unsent.cancel()
        self.failureResultOf(unsent, CancelledError)
        self.talk.connection_made()
        self.assertEqual(self.sent, [])
        call = self.call()
        call.cancel()
        self.failureResultOf(call, CancelledError)
        self.assertEqual(self.sent[1:], [Cancel(2)])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_lost_connection(self) -> None:
        """What was sent fails at once, what was not goes out on the next connection."""
        self.talk.connection_made()
        sent = self.call()
        self.room = Sent.FULL
        unsent = self.call()
        self.talk.connection_lost()
        self.assertIn("was lost", self.failureResultOf(sent, errors.AgentTimeout).value.detail)
        self.assertNoResult(unsent)
        self.room = Sent.AWAY
        self.talk.connection_made()
        self.answer(Answer(2, None))
        self.assertIsNone(self.successResultOf(unsent))

    def test_refused(self) -> None:
        """Where the keys do not fit, everything fails, each with an exception of its own."""
        calls = [self.call(), self.call()]
        self.talk.refused()
        raised = [self.failureResultOf(call, errors.AgentFailed).value for call in calls]
        self.assertIsNot(raised[0], raised[1])

    def test_no_room(self) -> None:
        """Without room at the transport calls wait, in order, and can still be too late."""
        self.talk.connection_made()
        self.room = Sent.FULL
        late, patient = self.call(1.0), self.call(5.0)
        self.clock.advance(1.0)
        self.failureResultOf(late, errors.AgentTimeout)
        self.room = Sent.AWAY
        self.talk.writable()
        self.assertEqual(self.sent, [Call(2, "usage", {}, 5.0)])
        self.answer(Answer(2, 1))
        self.successResultOf(patient)

    def test_bounds(self) -> None:
        """Too many calls, or too many bytes, are refused at once and counted back when they end."""
        big = b"x" * (20 * 1024 * 1024)
        calls = [self.call(x=big) for _ in range(6)]
        self.failureResultOf(self.call(x=big), errors.Unavailable)
        calls[0].cancel()
        self.failureResultOf(calls[0], CancelledError)
        calls.append(self.call(x=big))
        self.assertNoResult(calls[-1])
        self.failureResultOf(self.call(x=big + big), errors.InvalidRequest)
        few = [self.call() for _ in range(conversation.MAX_CALLS - 6)]
        self.failureResultOf(self.call(), errors.Unavailable)
        self.talk.close()
        for call in (*calls[1:], *few):
            self.failureResultOf(call, errors.Unavailable)
        self.failureResultOf(self.call(), errors.Unavailable)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_garbage(self) -> None:
        """Nonsense and messages of the other direction are counted and change nothing."""
        self.talk.connection_made()
        call = self.call()
        for raw in (b"", b"\xc1", encode(Cancel(1)), encode(Acknowledge(1)), encode(Answer(99, 1))):
            self.talk.receive(raw)
        self.assertNoResult(call)
        self.answer(Answer(1, 2))
        self.assertEqual(self.successResultOf(call), 2)

    def test_events(self) -> None:
        """Events are handed on; an acknowledgement goes out only where there is a connection."""
        event = Event(5, "kernel_ended", {})
        self.answer(event)
        self.talk.acknowledge(5)
        self.talk.connection_made()
        self.talk.acknowledge(6)
        self.assertEqual((self.events, self.sent), ([event], [Acknowledge(6)]))


class HandOverTests(ConversationTestCase):
    """Answers that exist once: the agent is told when they have left this process."""

    def setUp(self) -> None:
        super().setUp()
        self.talk.connection_made()

    def execute(self) -> Deferred[Any]:
        return self.talk.call("execute", {}, 10.0)

    def test_told_after_it_was_written(self) -> None:
        """In a later turn of the reactor than the answer, a moment later, and not before."""
        answer = self.execute()
        self.answer(Answer(1, "piece"))
        self.assertEqual(self.successResultOf(answer), "piece")
        self.clock.advance(0)
        self.assertEqual(self.took, [])
        self.clock.advance(conversation.TOOK_PATIENCE)
        self.assertEqual(self.took, [1])
        self.clock.advance(1)
        self.assertEqual(self.took, [1])

    def test_told_with_the_next_call(self) -> None:
        """A call does not wait, and the agent hears of all answers that were written before it, but not of those that were not."""
        answers = [self.execute(), self.execute(), self.execute()]
        self.answer(Answer(1, "a"))
        self.answer(Answer(2, "b"))
        self.clock.advance(0)
        self.answer(Answer(3, "c"))
        self.execute()
        self.assertEqual(self.sent[-3:-1], [Took(1), Took(2)])
        self.assertIsInstance(self.sent[-1], Call)
        self.clock.pump([conversation.TOOK_PATIENCE] * 2)
        self.assertEqual(self.took, [1, 2, 3])
        self.assertEqual([self.successResultOf(answer) for answer in answers], ["a", "b", "c"])

    def test_told_when_there_is_room(self) -> None:
        """What the connection has no room for is told later, and once."""
        self.execute()
        self.answer(Answer(1, "piece"))
        self.room = Sent.FULL
        self.clock.advance(0)
        self.clock.advance(conversation.TOOK_PATIENCE)
        self.assertEqual(self.took, [])
        self.room = Sent.AWAY
        self.talk.writable()
        self.assertEqual(self.took, [1])

    def test_told_before_the_end(self) -> None:
        """A link that is closed tells what it has to tell."""
        self.execute()
        self.answer(Answer(1, "piece"))
        self.clock.advance(0)
        self.talk.close()
        self.assertEqual(self.took, [1])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    @property
    def took(self) -> list[int]:
        return [one.id for one in self.sent if isinstance(one, Took)]

    def test_an_answer_that_nobody_waits_for(self) -> None:
        """Cancelled or too late, it was not taken: the agent has been told to give it back."""
        self.execute().addErrback(lambda failure: failure.trap(CancelledError))
        self.sent.clear()
        late = self.execute()
        late.cancel()
        self.failureResultOf(late, CancelledError)
        self.answer(Answer(2, "piece"))
        self.clock.pump([0, 0, 0])
        self.assertEqual([one for one in self.sent if not isinstance(one, Call)], [Cancel(2)])

    def test_other_answers_and_lost_connections(self) -> None:
        """Nothing is said of an answer that can be asked for again, nor to the next life of the connection."""
        self.call()
        self.answer(Answer(1, "usage"))
        answer = self.execute()
        self.answer(Answer(2, "piece"))
        self.successResultOf(answer)
        self.talk.connection_lost()
        self.clock.pump([0, 0, 0])
        self.assertEqual([one for one in self.sent if isinstance(one, Took)], [])


class RestartTests(ConversationTestCase):
    """An agent that replaces its program."""

    def setUp(self) -> None:
        super().setUp()
        self.talk.connection_made()

    def test_calls_that_were_not_begun_are_made_again(self) -> None:
        """What the agent has not begun waits for the next connection, and so does what comes meanwhile; nothing is lost."""
        first, second = self.call(), self.call()
        self.answer(Failed(1, RESTARTING, "", None))
        self.assertTrue(self.talk.restarting)
        third = self.call()
        self.assertEqual([message.id for message in self.sent if isinstance(message, Call)], [1, 2])
        self.answer(Answer(2, "done"))
        self.assertEqual(self.successResultOf(second), "done")
        self.talk.connection_lost()
        self.clock.advance(conversation.CONNECT_PATIENCE + 1)
        fourth = self.call()
        self.clock.advance(conversation.CONNECT_PATIENCE + 1)
        self.sent.clear()
        self.talk.connection_made()
        self.assertFalse(self.talk.restarting)
        self.assertEqual(sorted(message.id for message in self.sent if isinstance(message, Call)), [1, 3, 4])
        for number, one in ((1, first), (3, third), (4, fourth)):
            self.answer(Answer(number, number))
            self.assertEqual(self.successResultOf(one), number)

    def test_a_call_that_was_begun_is_not_repeated(self) -> None:
        """What was sent and got no word fails when the connection goes, as always."""
        begun = self.call()
        self.answer(Failed(0, RESTARTING, "", None))
        self.talk.connection_lost()
        self.failureResultOf(begun, errors.AgentTimeout)

    def test_an_agent_that_goes_on(self) -> None:
        """When it does not restart after all, what waits is sent on the same connection."""
        call = self.call()
        self.answer(Failed(1, RESTARTING, "", None))
        self.sent.clear()
        self.answer(Answer(0, None))
        self.assertEqual([message.id for message in self.sent if isinstance(message, Call)], [1])
        self.answer(Answer(1, "done"))
        self.assertEqual(self.successResultOf(call), "done")

    def test_it_never_comes_back(self) -> None:
        """A call that waits for it ends at its own deadline."""
        call = self.call(deadline=15.0)
        self.answer(Failed(1, RESTARTING, "", None))
        self.talk.connection_lost()
        self.clock.advance(14.9)
        self.assertNoResult(call)
        self.clock.advance(0.2)
        self.failureResultOf(call, errors.AgentTimeout)


class GreetingTests(UnitTestCase):
    """A conversation that says who it is."""

    def test_ping_comes_first(self) -> None:
        """It goes out before what waited, on every connection, and again now and then."""
        clock = Clock()
        order: list[str] = []

        def send(raw: bytes) -> Sent:
            message = decode(raw)
            order.append(message.method if isinstance(message, Call) else "")
            return Sent.AWAY

        talk = Conversation(clock, "i-1", send, lambda _event: None, greets=True)
        call = talk.call("usage", {}, 10.0)
        talk.connection_made()
        self.assertEqual(order, ["ping", "usage"])
        for id_ in (2, 1):
            talk.receive(encode(Answer(id_, {})))
        self.successResultOf(call)
        clock.advance(conversation.PING_INTERVAL)
        self.assertEqual(order[2:], ["ping"])
        talk.connection_lost()
        talk.connection_made()
        self.assertEqual(order[3:], ["ping"])
        talk.close()
        self.assertEqual(clock.getDelayedCalls(), [])
