"""Calls to execute against the runs of one kernel: what continues, what starts, what is fed, and what each is told."""

from __future__ import annotations

from twisted.internet.defer import CancelledError

from sorna.agent import runs
from sorna.agent.runners import frames
from sorna.errors import InvalidRequest
from sorna.model.run import RunMode, RunRequest, RunStatus
from tests.agent.fakes import FakeKernel, KernelTestCase, poll, query, text_of, typed


class CallTests(KernelTestCase):
    """One call at a time."""

    init: FakeKernel

    def setUp(self) -> None:
        super().setUp()
        self.init = self.create()

    def codes(self) -> list[str]:
        return [frame["code"] for frame in self.init.sent(frames.RUN)]

    def test_finishes_at_once(self) -> None:
        """A call answers when its run finishes, with its output in order and merged by stream."""
        answer = self.execute(query("print(1)", "r1"))
        self.assertNoResult(answer)
        self.init.print("1\n")
        self.init.print("2\n")
        self.init.print("oops\n", frames.STDERR)
        self.init.print("3\n")
        self.init.finish(0, files=["plot.png"])
        self.flow()
        reply = self.successResultOf(answer)
        self.assertEqual(reply.status, RunStatus.FINISHED)
        self.assertEqual(reply.run_id, "r1")
        self.assertEqual(reply.console, (("stdout", "1\n2\n"), ("stderr", "oops\n"), ("stdout", "3\n")))
        self.assertEqual((reply.options, reply.exit_code, reply.files), ({}, 0, ("plot.png",)))

    def test_sends_the_run(self) -> None:
        """What goes to init is the call, under an id of the agent's own."""
        self.execute(RunRequest(RunMode.BATCH, run_id="mine", build="make", exec="./x", build_log=True, clean="rm x"))
        self.assertEqual(
            self.init.sent(frames.RUN),
            [
                {
                    "run": "1",
                    "mode": "batch",
                    "clean": "rm x",
                    "build": "make",
                    "exec": "./x",
                    "build_log": True,
                }
            ],
        )

    def test_continues_after_the_wait(self) -> None:
        """A run that goes on answers with what there is when the wait is over."""
        answer = self.execute(query())
        self.init.print("a")
        self.flow()
        self.advance(1.9)
        self.assertNoResult(answer)
        self.advance(0.2)
        reply = self.successResultOf(answer)
        self.assertEqual((reply.status, text_of(reply), reply.options), (RunStatus.CONTINUED, "a", None))
        self.init.print("b")
        self.init.finish()
        self.flow()
        reply = self.reply(poll())
        self.assertEqual((reply.status, text_of(reply)), (RunStatus.FINISHED, "b"))

    def test_wait_none_waits_for_the_end(self) -> None:
        """A call of the first interface gets everything at once."""
        answer = self.execute(query(wait=None))
        self.init.print("a")
        self.flow()
        self.advance(100)
        self.assertNoResult(answer)
        self.init.finish()
        self.flow()
        self.assertEqual(text_of(self.successResultOf(answer)), "a")

    def test_wait_zero_answers_now(self) -> None:
        """A call that does not wait does not wait."""
        self.assertEqual(self.reply(query(wait=0)).status, RunStatus.CONTINUED)

    def test_much_output_answers_early(self) -> None:
        """About 1 MiB of output is an answer; the rest stays for the next."""
        answer = self.execute(query())
        total = 0
        while not answer.called:
            self.assertGreater(self.init.credit, 0, "blocked although somebody waits")
            self.init.print(b"x" * 60_000)
            total += 60_000
            self.flow()
        reply = self.successResultOf(answer)
        self.assertEqual(reply.status, RunStatus.CONTINUED)
        self.assertLessEqual(len(text_of(reply)), runs.GATHER)
        self.init.finish()
        self.flow()
        rest = self.reply(poll())
        self.assertEqual(len(text_of(reply)) + len(text_of(rest)), total)
        self.assertEqual(rest.status, RunStatus.FINISHED)

    def test_unread_output_blocks_the_program(self) -> None:
        """Nobody reads: credit runs out after a bounded amount, and comes back with the next call."""
        self.reply(query(wait=0))
        total = 0
        while self.init.credit > 0:
            self.init.print(b"x" * 60_000)
            total += 60_000
            self.flow()
        self.assertLess(total, runs.GATHER + 2 * runs.WINDOW)
        self.assertGreater(total, runs.GATHER)
        read = len(text_of(self.reply(poll(wait=0))))
        self.flow()
        self.assertGreater(self.init.credit, 0)
        read += len(text_of(self.reply(poll(wait=0))))
        self.assertEqual(read, total)

    def test_single_bytes_cost_more(self) -> None:
        """A program that prints single bytes to both streams is blocked long before 1 MiB of bytes."""
        self.reply(query(wait=0))
        total = 0
        granted = self.init.credit
        while self.init.credit > runs.WINDOW // 2 and total < 300_000:
            for _ in range(50):
                self.init.print("o")
                self.init.print("e", frames.STDERR)
            total += 100
            self.flow()
        self.assertLessEqual(total, granted)
        self.assertLess(total, runs.GATHER // 4)
        self.assertLess(self.kernels.live()[self.kernel_id].runs.cost, 20 * runs.GATHER)

    def test_media_is_passed_on(self) -> None:
        """Media, html and log records arrive as they are, between the text."""
        answer = self.execute(query())
        self.init.print("a")
        self.init.say(frames.EMIT, b'["media", ["image/svg+xml", "<svg/>"]]')
        self.init.say(frames.EMIT, b'["html", "<b>"]')
        self.init.say(frames.EMIT, b'["log", ["info", "2026-01-01T00:00:00", "root", "text"]]')
        self.init.finish()
        self.flow()
        self.assertEqual(
            self.successResultOf(answer).console,
            (
                ("stdout", "a"),
                ("media", ["image/svg+xml", "<svg/>"]),
                ("html", "<b>"),
                ("log", ["info", "2026-01-01T00:00:00", "root", "text"]),
            ),
        )

    def test_bytes_that_are_no_text(self) -> None:
        """Bytes that are no UTF-8 become replacement characters."""
        answer = self.execute(query())
        self.init.print(b"\xff\xe2\x82")
        self.init.print(b"\xac")
        self.init.finish()
        self.flow()
        self.assertEqual(text_of(self.successResultOf(answer)), "\ufffd\u20ac")

    def test_exceptions_travel(self) -> None:
        """What FINISHED says of exceptions is in the answer."""
        answer = self.execute(query())
        self.init.finish(1, exceptions=[{"name": "E", "args": ["a", 1], "before_exec": False, "traceback": None}])
        self.flow()
        (error,) = self.successResultOf(answer).exceptions
        self.assertEqual(
            (error.name, list(error.args), error.before_exec, error.traceback), ("E", ["a", 1], False, None)
        )

    def test_nothing_is_outstanding_after_the_end(self) -> None:
        """After an end was delivered there is nothing to continue without a run id; with it, the end is repeated."""
        self.execute(query("1", "r1"))
        self.init.finish(3)
        self.flow()
        self.failureResultOf(self.execute(poll()), InvalidRequest)
        again = self.reply(poll("r1"))
        self.assertEqual((again.status, again.exit_code, again.console), (RunStatus.FINISHED, 3, ()))
        self.failureResultOf(self.execute(typed("x", "r1")), InvalidRequest)

    def test_unknown_run(self) -> None:
        """Continuing an unknown run is refused."""
        self.failureResultOf(self.execute(poll("nope")), InvalidRequest)
        self.failureResultOf(self.execute(typed("x", "nope")), InvalidRequest)
        self.failureResultOf(self.execute(typed("x")), InvalidRequest)
        self.failureResultOf(self.execute(query("1", "x" * 200)), InvalidRequest)

    def test_build_is_told_once(self) -> None:
        """The end of the build is an answer of its own, with the build's output only."""
        answer = self.execute(RunRequest(RunMode.BATCH, build="*", exec="*"))
        self.init.print("building\n")
        self.init.say(frames.BUILD_FINISHED, {"run": "1", "exit_code": 0})
        self.init.print("running\n")
        self.init.finish()
        self.flow()
        reply = self.successResultOf(answer)
        self.assertEqual((reply.status, text_of(reply), reply.options), (RunStatus.BUILD_FINISHED, "building\n", None))
        again = self.reply(RunRequest(RunMode.BATCH, build="*", exec="*"))
        self.assertEqual((again.status, text_of(again)), (RunStatus.FINISHED, "running\n"))

    def test_two_calls_on_one_run(self) -> None:
        """A later call takes over; the earlier one is answered with what there was."""
        first = self.execute(query("1", "r"))
        self.init.print("a")
        self.flow()
        second = self.execute(poll("r"))
        self.assertEqual(text_of(self.successResultOf(first)), "a")
        self.init.print("b")
        self.init.finish()
        self.flow()
        self.assertEqual(text_of(self.successResultOf(second)), "b")

    def test_cancelled_call(self) -> None:
        """A cancelled call's output is read by the next."""
        answer = self.execute(query("1", "r"))
        self.init.print("a")
        self.flow()
        answer.cancel()
        self.failureResultOf(answer, CancelledError)
        self.init.finish()
        self.flow()
        self.assertEqual(text_of(self.reply(poll("r"))), "a")


class InputTests(KernelTestCase):
    """Input of every generation of clients."""

    init: FakeKernel

    def setUp(self) -> None:
        super().setUp()
        self.init = self.create()

    def waiting(self, run_id: str | None = None, **more: bool) -> None:
        """Start a run that waits, and tell the client."""
        answer = self.execute(query("input()", run_id))
        self.init.print("? ")
        self.init.wait_for_input(**more)
        self.flow()
        reply = self.successResultOf(answer)
        self.assertEqual((reply.status, text_of(reply)), (RunStatus.WAITING_INPUT, "? "))
        self.assertEqual(reply.options, {"is_password": more.get("is_password", False)})

    def lines(self) -> list[str]:
        return [frame["text"] for frame in self.init.sent(frames.INPUT)]

    def test_input_as_code(self) -> None:
        """Clients without run ids send the line as code, an empty line too."""
        self.waiting()
        self.execute(query("me"))
        self.init.wait_for_input(is_password=True)
        self.flow()
        answer = self.execute(query(""))
        self.assertEqual(self.lines(), ["me", ""])
        self.init.finish()
        self.flow()
        self.assertEqual(self.successResultOf(answer).status, RunStatus.FINISHED)
        self.assertEqual(len(self.init.sent(frames.RUN)), 1)

    def test_input_mode(self) -> None:
        """Later clients say that it is input."""
        self.waiting("r")
        self.execute(typed("me", "r"))
        self.assertEqual(self.lines(), ["me"])

    def test_input_in_batch_mode(self) -> None:
        """A batch's input comes as the code of the same batch, or of one without commands."""
        batch = RunRequest(RunMode.BATCH, build=None, exec="./ask")
        self.execute(batch)
        self.init.wait_for_input()
        self.flow()
        self.execute(RunRequest(RunMode.BATCH, "one", exec="./ask"))
        self.init.wait_for_input()
        self.flow()
        self.execute(RunRequest(RunMode.BATCH, "two"))
        self.assertEqual(self.lines(), ["one", "two"])

    def test_waiting_is_told_again(self) -> None:
        """Continuing a run that waits says so again."""
        self.waiting("r")
        self.assertEqual(self.reply(poll("r")).status, RunStatus.WAITING_INPUT)

    def test_unpolled_waiting_run(self) -> None:
        """Empty code is no line while the client does not know that the run waits; other code is."""
        self.execute(query("input()", wait=0))
        self.init.wait_for_input()
        self.flow()
        self.assertEqual(self.reply(query("")).status, RunStatus.WAITING_INPUT)
        self.assertEqual(self.lines(), [])
        self.execute(query("x"))
        self.assertEqual(self.lines(), ["x"])

    def test_line_for_a_run_that_went_on(self) -> None:
        """A line for a run that no longer waits is typed ahead, not run as code."""
        self.waiting()
        self.init.finish()
        self.flow()
        reply = self.reply(query("rm -rf /"))
        self.assertEqual(reply.status, RunStatus.FINISHED)
        self.assertEqual(len(self.init.sent(frames.RUN)), 1)

    def test_type_ahead(self) -> None:
        """Lines may come before they are asked for, while the run goes on or is queued, up to a bound."""
        self.execute(query("slow()", "a", wait=0))
        self.execute(query("input()", "b", wait=0))
        self.execute(typed("for a", "a", wait=0))
        self.execute(typed("for b", "b", wait=0))
        self.assertEqual(self.lines(), ["for a"])
        self.init.finish()
        self.flow()
        self.assertEqual(
            [(frame["run"], frame["text"]) for frame in self.init.sent(frames.INPUT)][1:], [("2", "for b")]
        )
        self.failureResultOf(self.execute(typed("x" * runs.MAX_TYPED_AHEAD, "b")), InvalidRequest)

    def test_waiting_that_crossed_a_line(self) -> None:
        """A run that was given a line before it said that it waits does not wait."""
        self.execute(query("input()", "r", wait=0))
        self.execute(typed("x", "r", wait=0))
        self.init.wait_for_input(inputs=0)
        self.flow()
        self.assertEqual(self.reply(poll("r", wait=0)).status, RunStatus.CONTINUED)
        self.init.wait_for_input(inputs=1)
        self.flow()
        self.assertEqual(self.reply(poll("r")).status, RunStatus.WAITING_INPUT)


class QueueTests(KernelTestCase):
    """Several runs in one session."""

    init: FakeKernel

    def setUp(self) -> None:
        super().setUp()
        self.init = self.create()

    def codes(self) -> list[str]:
        return [frame["code"] for frame in self.init.sent(frames.RUN)]

    def test_other_run_ids_queue(self) -> None:
        """Another run id waits its turn, and both get their own output."""
        a = self.execute(query("A", "a"))
        b = self.execute(query("B", "b"))
        self.assertEqual(self.codes(), ["A"])
        self.advance(2)
        self.assertEqual(self.successResultOf(a).status, RunStatus.CONTINUED)
        reply = self.successResultOf(b)
        self.assertEqual((reply.status, reply.console, reply.run_id), (RunStatus.CONTINUED, (), "b"))
        self.init.print("of a")
        self.init.finish()
        self.flow()
        self.assertEqual(self.codes(), ["A", "B"])
        self.init.print("of b")
        self.init.finish()
        self.flow()
        self.assertEqual(text_of(self.reply(poll("b"))), "of b")
        self.assertEqual(text_of(self.reply(poll("a"))), "of a")

    def test_code_during_a_run_is_not_lost(self) -> None:
        """New code without a run id waits behind the run; polls tell the first one's end first."""
        self.execute(query("A", wait=0))
        self.execute(query("B", wait=0))
        self.init.print("a")
        self.init.finish()
        self.flow()
        self.init.print("b")
        self.init.finish()
        self.flow()
        self.assertEqual(self.codes(), ["A", "B"])
        self.assertEqual([text_of(self.reply(query(""))) for _ in range(2)], ["a", "b"])

    def test_code_after_an_unread_end(self) -> None:
        """New code after an end that was not read starts at once; the rest can be read by its id."""
        first = self.reply(query("A", wait=0))
        self.init.print("rest of a")
        self.init.finish()
        self.flow()
        answer = self.execute(query("B"))
        self.init.print("b")
        self.init.finish()
        self.flow()
        self.assertEqual(text_of(self.successResultOf(answer)), "b")
        self.assertEqual(text_of(self.reply(poll(first.run_id))), "rest of a")
        self.failureResultOf(self.execute(poll()), InvalidRequest)

    def test_same_id(self) -> None:
        """A run's own id: its code again or none continues it, other code is refused, and starts anew after the end."""
        self.reply(query("A", "r", wait=0))
        self.reply(query("A", "r", wait=0))
        self.reply(query("", "r", wait=0))
        self.failureResultOf(self.execute(query("B", "r")), InvalidRequest)
        self.failureResultOf(self.execute(RunRequest(RunMode.BATCH, run_id="r", exec="x")), InvalidRequest)
        self.init.finish()
        self.flow()
        self.assertEqual(self.reply(query("A", "r")).status, RunStatus.FINISHED)
        self.execute(query("A", "r"))
        self.assertEqual(self.codes(), ["A", "A"])

    def test_same_batch_continues(self) -> None:
        """The same batch without a run id continues; another one queues."""
        batch = RunRequest(RunMode.BATCH, build="*", exec="*", wait=0)
        self.reply(batch)
        self.reply(batch)
        self.reply(RunRequest(RunMode.BATCH, build="*", exec="./other", wait=0))
        self.init.finish()
        self.flow()
        self.assertEqual([frame["exec"] for frame in self.init.sent(frames.RUN)], ["*", "./other"])

    def test_queue_is_bounded(self) -> None:
        """Too many or too large runs are refused."""
        for number in range(runs.MAX_QUEUED + 1):
            self.reply(query("x", f"r{number}", wait=0))
        self.failureResultOf(self.execute(query("x", "more")), InvalidRequest)
        self.failureResultOf(self.execute(query("x" * (runs.MAX_CODE + 1), "large")), InvalidRequest)

    def test_background_output_goes_to_the_next_run(self) -> None:
        """What is printed between two runs is the beginning of the next run's output."""
        self.execute(query("A"))
        self.init.finish()
        self.flow()
        self.init.print("from a thread\n")
        self.flow()
        answer = self.execute(query("B"))
        self.init.print("b\n")
        self.init.finish()
        self.flow()
        self.assertEqual(text_of(self.successResultOf(answer)), "from a thread\nb\n")

    def test_background_output_is_bounded(self) -> None:
        """A background program that prints without end is blocked, and goes on when its output is read."""
        total = 0
        while self.init.credit > 0:
            self.init.print(b"x" * 60_000)
            total += 60_000
            self.flow()
        self.assertLess(total, runs.GATHER + 2 * runs.WINDOW)
        read = len(text_of(self.reply(query("A", wait=0)))) + len(text_of(self.reply(query("", wait=0))))
        self.assertEqual(read, total)
        self.flow()
        self.assertGreater(self.init.credit, 0)

    def test_ends_are_forgotten(self) -> None:
        """An end that nobody reads is forgotten after its retention."""
        self.reply(query("A", "a", wait=0))
        self.init.finish()
        self.flow()
        self.advance(runs.RETENTION - 1)
        self.reply(query("B", "b", wait=0))
        self.init.finish()
        self.flow()
        self.advance(2)
        self.failureResultOf(self.execute(poll("a")), InvalidRequest)
        self.assertEqual(self.reply(poll("b")).status, RunStatus.FINISHED)

    def test_kept_runs_are_bounded(self) -> None:
        """The oldest ends go first when too many are kept."""
        for number in range(runs.KEEP_RUNS + 2):
            self.reply(query("x", f"r{number}", wait=0))
            self.init.finish()
            self.flow()
        self.failureResultOf(self.execute(poll("r0")), InvalidRequest)
        self.assertEqual(self.reply(poll(f"r{runs.KEEP_RUNS}")).status, RunStatus.FINISHED)
