"""Answers that are on their way through a manager: given for good, or given back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sorna.agent.handovers import PATIENCE
from sorna.agent.output_log import OutputLog
from sorna.errors import InvalidRequest
from sorna.model.run import OutputRequest, RunReply, RunStatus
from sorna.testing.unit import UnitTestCase
from tests.agent.fakes import KernelTestCase, poll, query, text_of


class HandoverTests(KernelTestCase):
    """A kernel whose answers are carried away."""

    def setUp(self) -> None:
        super().setUp()
        self.init = self.create()

    def ended_run(self) -> RunReply:
        """Give the only answer of a run that has ended."""
        waiting = self.execute(query("x", "r1"))
        self.init.print("all of it")
        self.init.finish(3)
        self.flow()
        return self.successResultOf(waiting)

    def test_an_answer_that_arrived_is_gone(self) -> None:
        """Asked again, the run only says that it is over."""
        self.ended_run()
        settle = self.kernels.hand_over(self.kernel_id, "r1")
        assert settle is not None
        settle(True)
        settle(False)  # a second word changes nothing
        self.assertEqual(text_of(self.reply(poll(run_id="r1"))), "")

    def test_an_answer_that_did_not_arrive_is_given_again(self) -> None:
        """With everything it said: the output, the end and the exit code; to a repeated query as to a poll."""
        for again in (poll(run_id="r1"), query("x", "r1")):
            first = self.ended_run()
            settle = self.kernels.hand_over(self.kernel_id, "r1")
            assert settle is not None
            settle(False)
            self.assertEqual(self.reply(again), first)
            self.assertEqual((text_of(first), first.status, first.exit_code), ("all of it", RunStatus.FINISHED, 3))

    def test_who_comes_sooner_than_the_news_waits(self) -> None:
        """Until it is known what became of the answer, and then gets it, or what follows it."""
        for arrived, expected in ((False, "all of it"), (True, "")):
            self.ended_run()
            settle = self.kernels.hand_over(self.kernel_id, "r1")
            assert settle is not None
            waiting = self.execute(poll(run_id="r1"))
            self.clock.advance(PATIENCE / 2)
            self.assertNoResult(waiting)
            settle(arrived)
            self.assertEqual(text_of(self.successResultOf(waiting)), expected)

    def test_a_carrier_that_says_nothing_is_given_up(self) -> None:
        """The wait is bounded, and ends with the answer given back."""
        self.ended_run()
        settle = self.kernels.hand_over(self.kernel_id, "r1")
        assert settle is not None
        waiting = self.execute(poll(run_id="r1"))
        self.clock.advance(PATIENCE)
        self.assertEqual(text_of(self.successResultOf(waiting)), "all of it")
        settle(True)  # too late to matter

    def test_a_wish_for_input_is_given_back(self) -> None:
        """A line that comes next is the answer to it only once somebody was told."""
        waiting = self.execute(query("x", "r1"))
        self.init.print("name? ")
        self.init.wait_for_input()
        self.flow()
        self.assertEqual(self.successResultOf(waiting).status, RunStatus.WAITING_INPUT)
        settle = self.kernels.hand_over(self.kernel_id, "r1")
        assert settle is not None
        settle(False)
        again = self.reply(query("x", "r1"))
        self.assertEqual((text_of(again), again.status), ("name? ", RunStatus.WAITING_INPUT))

    def test_what_was_read_beyond_it_stays_read(self) -> None:
        """Somebody who reads by numbers has acknowledged more: nothing comes twice."""
        self.execute(query("x", "r1", wait=0))
        self.init.print("one ")
        self.flow()
        self.assertEqual(text_of(self.reply(poll(run_id="r1", wait=0))), "one ")
        settle = self.kernels.hand_over(self.kernel_id, "r1")
        assert settle is not None
        self.init.print("two ")
        self.flow()
        self.read("r1", 8)
        settle(False)
        self.init.finish()
        self.flow()
        self.assertEqual(text_of(self.reply(poll(run_id="r1"))), "")

    def read(self, run_id: str, seq: int) -> None:
        """Read on from a number, everything before it acknowledged."""
        self.successResultOf(self.start(self.kernels.read_output(self.kernel_id, OutputRequest(run_id, seq, seq))))

    def test_runs_that_are_forgotten(self) -> None:
        """Calls that wait for the news of an answer do not outlast what they ask about."""
        self.ended_run()
        self.kernels.hand_over(self.kernel_id, "r1")
        waiting = self.execute(poll(run_id="r1"))
        self.assertNoResult(waiting)
        self.kernels.live()[self.kernel_id].runs.forget()
        self.assertTrue(waiting.called)
        waiting.addErrback(lambda failure: failure.trap(InvalidRequest))

    def test_unknown(self) -> None:
        """Of a run that nobody knows there is nothing to hand over."""
        self.assertIsNone(self.kernels.hand_over(self.kernel_id, "nobody"))


class LogTests(UnitTestCase):
    """Taking and giving back."""

    @given(st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(min_size=1, max_size=50)), max_size=20), st.data())
    def test_nothing_is_lost_and_nothing_doubled(self, printed: list[tuple[int, bytes]], data: st.DataObject) -> None:
        """Whatever is taken and given back in between, what was taken for good is everything, in order."""
        log = OutputLog(keep=1 << 20)
        for kind, content in printed:
            log.append(kind, content)
        whole = b"".join(record.content for record in log.read_from(0, 1 << 20).records)
        kept = b""
        while log.unread:
            before = log.cursor
            piece = log.take(data.draw(st.integers(1, 200)))
            if data.draw(st.booleans()):
                log.give_back(before)
                self.assertEqual(log.cursor, before)
                piece = log.take(1 << 20)
            kept += b"".join(record.content for record in piece.records)
        self.assertEqual(kept, whole)
        self.assertEqual(log.pressure, 0)
