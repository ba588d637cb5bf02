"""Calls that want output as it comes: at once, or in larger pieces when there is much of it."""

from __future__ import annotations

from attrs import evolve

from sorna.agent import runs
from sorna.model.run import RunStatus
from tests.agent.fakes import FakeKernel, KernelTestCase, poll, query, text_of


class EagerCallTests(KernelTestCase):
    """Calls with ``eager`` set, as a WebSocket makes them."""

    init: FakeKernel

    def setUp(self) -> None:
        super().setUp()
        self.init = self.create()

    def turn(self) -> None:
        """Let what arrived be told; an answer waits for what arrives in the same turn."""
        self.flow()
        self.advance(0)

    def test_eager_calls(self) -> None:
        """A call that wants output as it comes is answered by the first of it, and waits when there is none."""
        eager = evolve(query(), eager=True)
        answer = self.execute(eager)
        self.init.print("a")
        self.turn()
        self.assertEqual(text_of(self.successResultOf(answer)), "a")
        answer = self.execute(evolve(poll(), eager=True))
        self.turn()
        self.assertNoResult(answer)
        self.init.print("b")
        self.turn()
        self.assertEqual(self.successResultOf(answer).status, RunStatus.CONTINUED)

    def test_eager_calls_of_short_runs(self) -> None:
        """The end that comes with the output is told with it, and a call that gave way in between is not answered twice."""
        answer = self.execute(evolve(query(), eager=True))
        self.init.print("a")
        self.init.finish()
        self.flow()
        reply = self.successResultOf(answer)
        self.assertEqual((reply.status, text_of(reply)), (RunStatus.FINISHED, "a"))
        answer = self.execute(evolve(query(), eager=True))
        self.init.print("b")
        self.flow()
        other = self.execute(evolve(poll(), eager=True))
        self.assertEqual(text_of(self.successResultOf(answer)), "b")
        self.advance(0)
        self.assertNoResult(other)

    def test_eager_calls_of_a_fast_stream(self) -> None:
        """After an answer with much, more comes together for a moment; what little came by then is the answer."""
        answer = self.execute(evolve(query(), eager=True))
        self.init.print("a" * runs.MUCH)
        self.turn()
        self.successResultOf(answer)
        answer = self.execute(evolve(poll(), eager=True))
        self.init.print("b" * runs.MUCH)
        self.turn()
        self.assertNoResult(answer)
        self.init.print("c")
        self.turn()
        self.advance(runs.MOMENT)
        self.assertEqual(text_of(self.successResultOf(answer)), "b" * runs.MUCH + "c")

    def test_eager_call_of_a_stream_that_stops(self) -> None:
        """When nothing came in the moment after much, the first that comes is the answer at once, and an end anyway."""
        for end in (False, True):
            self.init = self.create()
            answer = self.execute(evolve(query(), eager=True))
            self.init.print("a" * runs.MUCH)
            self.turn()
            self.successResultOf(answer)
            answer = self.execute(evolve(poll(), eager=True))
            if not end:
                self.advance(runs.MOMENT)
            self.assertNoResult(answer)
            self.init.print("b")
            if end:
                self.init.finish()
            self.turn()
            reply = self.successResultOf(answer)
            self.assertEqual(text_of(reply), "b")
            self.assertEqual(reply.status, RunStatus.FINISHED if end else RunStatus.CONTINUED)
