"""A random client against one kernel: whatever is called in whatever order, no code is lost and no byte doubled."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import partial

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from twisted.internet.defer import CancelledError, Deferred

from sorna.agent.channel import Channel
from sorna.agent.interfaces import SandboxSpec
from sorna.agent.kernel import Kernel
from sorna.agent.languages import RUNTIMES
from sorna.agent.run import Run, RunState
from sorna.agent.run_rules import Action, decide
from sorna.agent.runners import frames
from sorna.errors import InvalidRequest
from sorna.model.limits import Limits
from sorna.model.run import RunMode, RunReply, RunRequest, RunStatus
from sorna.testing.unit import UnitTestCase
from tests.agent.fakes import FakeKernel, SocketClock

IDS = st.sampled_from([None, "a", "b"])


class Sessions(RuleBasedStateMachine):
    """Calls, cancellations, output and ends in any order; the model is what init printed per run."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = SocketClock()
        self.init = FakeKernel(SandboxSpec("k", "python3", Limits(idle_timeout=0.0, execution_timeout=0.0)))
        self.kernel = Kernel(
            self.clock, self.init, self.init.spec.limits, partial(Channel, self.clock), lambda *_: None
        )
        ready = Deferred.fromCoroutine(self.kernel.configure(RUNTIMES["python3"].language, {}))
        self.flow()
        assert ready.called
        self.count = 0
        self.pending: list[tuple[Deferred[RunReply], list[RunReply]]] = []
        self.printed: dict[str, str] = defaultdict(str)  # wire id -> text
        self.read: dict[str, str] = defaultdict(str)  # wire id -> text

    def flow(self) -> None:
        while self.clock.serve() | self.init.read():
            pass

    @property
    def current(self) -> Run | None:
        return self.kernel.runs.current

    def send(self, request: RunRequest) -> None:
        outcome: list[RunReply] = []
        deferred = Deferred.fromCoroutine(self.kernel.execute(request))
        refused: list[bool] = []
        deferred.addCallbacks(
            outcome.append, lambda failure: refused.append(bool(failure.trap(InvalidRequest, CancelledError)))
        )
        self.flow()
        self.pending.append((deferred, outcome))
        self.collect()

    def collect(self) -> None:
        """Sort every answer's text to the run it says it is of."""
        for item in list(self.pending):
            for reply in item[1]:
                for _stream, text in reply.console:
                    # Each piece of text says which run printed it: "<wire id>:<number>;"
                    for part in str(text).split(";")[:-1]:
                        self.read[part.split(":")[0]] += part + ";"
            if item[0].called:
                self.pending.remove(item)

    @rule(run_id=IDS, wait=st.sampled_from([0.0, 2.0, None]), empty=st.booleans())
    def query(self, run_id: str | None, wait: float | None, empty: bool) -> None:
        self.count += 1
        code = "" if empty else f"code{self.count}"
        self.send(RunRequest(RunMode.QUERY, code, run_id, wait=wait))

    @rule(run_id=IDS, wait=st.sampled_from([0.0, 2.0]))
    def poll(self, run_id: str | None, wait: float) -> None:
        self.send(RunRequest(RunMode.CONTINUE, run_id=run_id, wait=wait))

    @rule(run_id=IDS)
    def type(self, run_id: str | None) -> None:
        self.send(RunRequest(RunMode.INPUT, "line", run_id))

    @rule(run_id=IDS, step=st.sampled_from([None, "x"]))
    def batch(self, run_id: str | None, step: str | None) -> None:
        self.send(RunRequest(RunMode.BATCH, run_id=run_id, exec=step))

    @precondition(lambda self: bool(self.pending))
    @rule(which=st.integers(0, 5))
    def cancel(self, which: int) -> None:
        deferred, _outcome = self.pending[which % len(self.pending)]
        deferred.cancel()
        self.collect()

    @precondition(lambda self: self.current is not None)
    @rule(stream=st.sampled_from([frames.STDOUT, frames.STDERR]))
    def print(self, stream: int) -> None:
        assert self.current is not None
        self.count += 1
        text = f"{self.current.wire_id}:{self.count};"
        self.printed[self.current.wire_id] += text
        self.init.print(text, stream)
        self.flow()
        self.collect()

    @precondition(lambda self: self.current is not None and self.current.state is RunState.RUNNING)
    @rule()
    def wait_for_input(self) -> None:
        self.init.wait_for_input()
        self.flow()
        self.collect()

    @precondition(lambda self: self.current is not None)
    @rule()
    def finish_build(self) -> None:
        self.init.say(frames.BUILD_FINISHED, {"run": self.init.run(), "exit_code": 0})
        self.flow()
        self.collect()

    @precondition(lambda self: self.current is not None)
    @rule()
    def finish(self) -> None:
        self.init.finish()
        self.flow()
        self.collect()

    @rule()
    def time(self) -> None:
        self.clock.advance(1.1)
        self.flow()
        self.collect()

    @invariant()
    def nothing_doubled_or_reordered(self) -> None:
        for wire_id, text in self.read.items():
            printed = self.printed[wire_id]
            # A restarted read of a run that was given up may come after others, but within a run order holds.
            assert printed.startswith(text), (printed, text)

    def teardown(self) -> None:
        """Read every run to its end: then everything that was printed has been read, and every code has run."""
        while self.current is not None:
            self.init.finish()
            self.flow()
            self.collect()
        known = list(self.kernel.runs._finished)
        for run in known:
            while run.log.unread:
                deferred = Deferred.fromCoroutine(self.kernel.runs._answer_to(run, 0.0))
                outcome: list[RunReply] = []
                deferred.addCallback(outcome.append)
                self.pending.append((deferred, outcome))
                self.collect()
        assert dict(self.read) == {k: v for k, v in self.printed.items() if v}, (self.read, self.printed)
        queued = [frame["code"] for frame in self.init.sent(frames.RUN) if frame["mode"] == "query" and "code" in frame]
        assert len(queued) == len(set(queued)), "code ran twice"
        self.init.exit(-9)
        self.kernel.runs.forget()


class SessionTests(UnitTestCase):
    def test_random_sessions(self) -> None:
        """See the module's text."""
        run_state_machine_as_test(Sessions, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))


class DecisionTests(UnitTestCase):
    """The rules themselves."""

    def check(self, request: RunRequest, run: Run | None) -> None:
        try:
            decision = decide(request, run, run)
        except InvalidRequest:
            return
        if decision.action is Action.START:
            self.assertIsNone(decision.run)
            self.assertIn(request.mode, {RunMode.QUERY, RunMode.BATCH})
        else:
            self.assertIs(decision.run, run)
        if decision.action is Action.FEED and run is not None:
            self.assertNotEqual(run.state, RunState.FINISHED)
            self.assertTrue(
                request.mode is RunMode.INPUT or run.state is RunState.WAITING or run.told is RunStatus.WAITING_INPUT
            )
        if decision.action is Action.CONTINUE and request.mode is RunMode.QUERY and run is not None:
            # New code may only be passed over where the client meant it as a line for a program that is gone.
            self.assertTrue(
                request.code in {"", run.request.code}
                or (run.told is RunStatus.WAITING_INPUT and run.state is RunState.FINISHED)
            )

    def test_table(self) -> None:
        """Decisions are consistent for every combination of call and run."""
        for mode in RunMode:
            for code in ("", "old", "new"):
                for run_id in (None, "r"):
                    for steps in (None, "x"):
                        request = RunRequest(mode, code, run_id, exec=steps)
                        self.check(request, None)
                        for run in every_run():
                            self.check(request, run)


def every_run() -> Iterator[Run]:
    """Give a run in every state that matters."""
    for first in (RunRequest(RunMode.QUERY, "old"), RunRequest(RunMode.BATCH, exec="x"), RunRequest(RunMode.BATCH)):
        for state in RunState:
            for told in (None, *RunStatus):
                for delivered in (False, True) if state is RunState.FINISHED else (False,):
                    yield Run("r", "1", first, state, told=told, delivered=delivered)
