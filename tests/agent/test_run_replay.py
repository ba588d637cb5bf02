"""Reading a run's output from a number on, again and again, on a tier without processes and a clock."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from sorna.agent import runs
from sorna.agent.output_log import OutputLog
from sorna.agent.runners import frames
from sorna.errors import OutputGone, RunNotFound
from sorna.model.run import OutputRequest, RunReply, RunStatus
from tests.agent.fakes import KernelTestCase, poll, query, text_of


class ReplayTests(KernelTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.init = self.create()

    def read(self, seq: int = 0, acknowledged: int | None = None, **more: object) -> Deferred[RunReply]:
        request = OutputRequest("r1", seq, seq if acknowledged is None else acknowledged, **more)  # type: ignore[arg-type]
        return self.start(self.kernels.read_output(self.kernel_id, request))

    def now(self, seq: int = 0, acknowledged: int | None = None, **more: object) -> RunReply:
        return self.successResultOf(self.read(seq, acknowledged, **more))

    def test_again_and_on(self) -> None:
        """A number gives the same output as often as it is asked for, and the end comes behind all of it."""
        self.execute(query("x", "r1", wait=0))
        self.init.print("one ")
        self.init.print("two ")
        self.flow()
        for _ in range(3):
            reply = self.now()
            self.assertEqual((text_of(reply), reply.first_seq, reply.next_seq), ("one two ", 0, 8))
            self.assertEqual(reply.status, RunStatus.CONTINUED)
        self.assertEqual(text_of(self.now(4)), "two ")
        self.init.print("three")
        self.init.finish(3)
        self.flow()
        reply = self.now(8)
        self.assertEqual((text_of(reply), reply.status, reply.exit_code), ("three", RunStatus.FINISHED, 3))
        self.assertEqual(text_of(self.now(0, 0)), "one two three")
        self.assertEqual((text_of(self.now(99)), self.now(99).next_seq), ("", 13))

    def test_output_that_a_poll_took(self) -> None:
        """An answer that was lost on its way is read again by its number."""
        self.execute(query("x", "r1", wait=0))
        self.init.print("lost")
        self.init.finish()
        self.flow()
        self.assertEqual(text_of(self.reply(poll())), "lost")
        reply = self.now()
        self.assertEqual((text_of(reply), reply.status, reply.missing), ("lost", RunStatus.FINISHED, 0))

    def test_waiting(self) -> None:
        """A call without news waits for output, for the wish for input, for the end, or as long as it said."""
        self.execute(query("x", "r1", wait=0))
        first = self.read(wait=20.0)
        self.assertNoResult(first)
        self.init.print("a")
        self.flow()
        self.assertEqual(text_of(self.successResultOf(first)), "a")
        second = self.read(1, wait=20.0)
        self.init.wait_for_input()
        self.flow()
        self.assertEqual(self.successResultOf(second).status, RunStatus.WAITING_INPUT)
        third = self.read(1, wait=20.0, known="waiting-input")
        self.assertNoResult(third)
        self.advance(20.0)
        self.assertEqual(self.successResultOf(third).status, RunStatus.WAITING_INPUT)
        fourth = self.read(1, wait=20.0, known="waiting-input")
        self.init.finish()
        self.flow()
        self.assertEqual(self.successResultOf(fourth).status, RunStatus.FINISHED)

    def test_callers_that_go_away(self) -> None:
        """A cancelled call leaves nothing behind, and another one that waits gets the news."""
        self.execute(query("x", "r1", wait=0))
        gone, there = self.read(wait=20.0), self.read(wait=20.0)
        gone.addErrback(lambda _failure: None)
        gone.cancel()
        self.init.print("a")
        self.flow()
        self.assertEqual(text_of(self.successResultOf(there)), "a")
        self.assertEqual(self.kernels.live()[self.kernel_id].runs._readers, {})

    def test_unacknowledged_output_blocks_the_program(self) -> None:
        """However often it is read, what is not acknowledged is kept and bounds the program; acknowledging frees it."""
        self.execute(query("x", "r1", wait=0))

        def fill() -> int:
            printed = 0
            while self.init.credit > 0:
                self.init.print(b"x" * 60_000)
                printed += 60_000
                self.flow()
            return printed

        total = fill()
        self.assertLess(total, 2 * runs.GATHER)
        self.now(total, acknowledged=0)
        self.assertEqual(fill(), 0)
        self.assertEqual(self.now(0).missing, 0)
        self.now(total)
        self.flow()
        self.assertGreater(fill(), 0)

    def test_what_is_not_kept(self) -> None:
        """Output that was acknowledged and is over the bound is missing by a number of bytes."""
        self.execute(query("x", "r1", wait=0))
        for number in range(1, 41):
            self.init.print(b"x" * 60_000)
            self.flow()
            self.now(number * 60_000)
        reply = self.now(0)
        self.assertGreater(reply.missing, 40 * 60_000 - runs.KEEP_PER_RUN)
        self.assertLess(reply.missing, 40 * 60_000)
        self.assertEqual(reply.first_seq, reply.missing)

    def test_unknown_runs(self) -> None:
        """A run that nobody knows is told from one that was forgotten."""
        self.failureResultOf(self.read(), RunNotFound)
        self.execute(query("x", "r1", wait=0))
        self.init.finish()
        self.flow()
        self.now()
        self.advance(runs.RETENTION + 1)
        self.failureResultOf(self.read(), OutputGone)

    def test_a_kernel_that_ended(self) -> None:
        """The end of a kernel is the end of its runs, told to whoever waits."""
        self.execute(query("x", "r1", wait=0))
        waiting = self.read(wait=20.0)
        self.init.exit(1)
        self.flow()
        reply = self.successResultOf(waiting)
        self.assertEqual(reply.status, RunStatus.FINISHED)
        self.assertIn("kernel", text_of(reply, "stderr"))


class LogReplayTests(KernelTestCase):
    @settings(max_examples=100)
    @given(st.lists(st.binary(min_size=1, max_size=40), max_size=20), st.lists(st.integers(0, 900), max_size=10))
    def test_any_order_of_reading(self, pieces: list[bytes], marks: list[int]) -> None:
        """Reading on from each answer's number gives every byte once, whatever is acknowledged meanwhile."""
        log = OutputLog(keep=1 << 20)
        for number, piece in enumerate(pieces):
            log.append(frames.STDOUT if number % 2 else frames.STDERR, piece)
        whole = b"".join(pieces)
        seq, read = 0, b""
        for mark in [*marks, *([0] * len(whole))]:
            log.acknowledge(min(mark, seq))
            found = log.read_from(seq, 7)
            self.assertEqual((found.first_seq, found.missing), (seq, 0))
            read += b"".join(record.content for record in found.records)
            seq = found.next_seq
        self.assertEqual(read, whole)
