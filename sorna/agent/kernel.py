"""One kernel in this agent: its channel, its runs and its limits, from the first frame to the end of its last process.

Knows how to talk to ``runners/init.py`` and which limits are the agent's to enforce; does not know how the kernel was
confined, who asks, nor which other kernels there are.

Note [How a kernel ends]
~~~~~~~~~~~~~~~~~~~~~~~~
Whatever the reason (destroyed, a limit, a broken protocol, its own death), the kernel is killed and everything else waits
for ``exited``: only then is the rest of the channel read, are its runs ended with the reason, open questions failed, and the
owner told. So a call that waits on a run is answered with all its output, and when destroying returns nothing is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from sorna.agent import completions, verdicts
from sorna.agent.channel import WriteBufferFull
from sorna.agent.deadlines import Life, RunTime, cancel
from sorna.agent.interfaces import ConfinedKernel, KernelExit, LimitHits
from sorna.agent.kernel_files import KernelFiles, to_json
from sorna.agent.lane import Lane, OpenChannel
from sorna.agent.output_log import KIB, CreditWindow, Tail
from sorna.agent.replies import Replies
from sorna.agent.run import Ending, Run, RunState, parse_emit, read_ending, read_object
from sorna.agent.runners import frames
from sorna.agent.runners.frames import FrameError
from sorna.agent.runners.language import Language
from sorna.agent.runs import WINDOW, Runs
from sorna.agent.sharing import Shared
from sorna.agent.terminal import SharedTerminal
from sorna.agent.tunnels import Tunnels
from sorna.agent.verdicts import Verdict
from sorna.cluster.messages import pack_value
from sorna.errors import AgentFailed, AgentRefused, AgentTimeout
from sorna.model.kernel import Usage
from sorna.model.limits import Limits
from sorna.model.run import OutputRequest, RunReply, RunRequest

READY_DEADLINE = 8.0
OBEY_DEADLINE = 2.0
RESTART_DEADLINE = 10.0
COMPLETE_DEADLINE = 5.0
# What a run that is being ended may still say: what is left in its pipes and in init.
LAST_WORDS = 4 * 1024 * KIB


OnEnded = Callable[["Kernel", str, Usage], None]


class Kernel:
    """One kernel. ``on_ended`` is called once, when nothing of it is left, with the reason and its final usage."""

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        confined: ConfinedKernel,
        limits: Limits,
        open_channel: OpenChannel,
        on_ended: OnEnded,
    ) -> None:
        self._reactor = reactor
        self._confined = confined
        self._on_ended = on_ended
        self.id = confined.kernel_id
        self.pid = confined.pid
        self.limits = limits
        self.num_queries = 0
        self.runs = Runs(reactor, self)
        self._tail = Tail()
        self._credit = CreditWindow(WINDOW)
        self._replies = Replies(reactor)
        self._life = Life(reactor, self._is_busy, self.end)
        self.files = KernelFiles(self._replies, self._send, self._life.touch)
        self.terminal = SharedTerminal(reactor, self._send_either, self._life.touch)
        self.tunnels = Tunnels(self._send_either, self._replies, self._life.touch, reachable=confined.own_network)
        self._ready: Shared[None] = Shared()
        self._ended: Shared[Usage] = Shared()
        self._restart: Shared[None] | None = None
        self._reason: str | None = None
        self._verdict: Verdict | None = None
        self._end_verdict: Verdict | None = None
        self._gone = False
        self._discarding = False
        self._output_left = 0
        self._hits = LimitHits(0, 0)
        time_is_up = lambda: self._end_run(verdicts.execution_timeout(self.limits))  # noqa: E731
        self._time = RunTime(reactor, lambda: confined.usage().cpu_used / 1000, time_is_up)
        self._obey: IDelayedCall | None = None
        self._frames: Mapping[int, Callable[[bytes], None]] = {
            frames.READY: self._on_ready,
            frames.STDOUT: lambda payload: self._on_output(frames.STDOUT, payload),
            frames.STDERR: lambda payload: self._on_output(frames.STDERR, payload),
            frames.EMIT: lambda payload: self._on_output(frames.EMIT, payload),
            frames.WAITING_INPUT: self._on_waiting,
            frames.BUILD_FINISHED: self._on_build_finished,
            frames.FINISHED: self._on_finished,
            frames.REPLY: lambda payload: self._replies.received(read_object(payload)),
            frames.CONTENT: self.files.content_received,
            frames.RESTARTED: self._on_restarted,
            frames.TERMINAL_OUTPUT: self.terminal.output_received,
            frames.TERMINAL_CLOSED: self.terminal.closed_received,
            **self.tunnels.takers,
        }
        self._channel = open_channel(confined.channel, self)
        self._lane = Lane(open_channel, self, self._send)
        confined.exited.addCallbacks(self._on_exit, self._on_exit_unknown)

    # -- from the manager

    async def configure(self, language: Language, environ: Mapping[str, str]) -> None:
        """Tell init what it is, and wait until code can run. Nobody's limits of time count yet.

        :raises AgentFailed: it cannot; the kernel is being killed.
        """
        size = self._credit.extend(self._credit.size)
        self._send_either(frames.CONFIGURE, {"runtime": language._asdict(), "environ": dict(environ), "credit": size})
        self._lane.wanted = language.repl
        self._lane.open(self._channel)
        timer = self._reactor.callLater(READY_DEADLINE, self._not_ready)
        try:
            await self._ready.join()
        finally:
            cancel(timer)

    def assign(self, name: str, limits: Limits, environ: Mapping[str, str], on_ended: OnEnded) -> None:
        """Make it somebody's: from now on these limits hold and ``on_ended`` is told of its end.

        :raises AgentFailed: the limits cannot be enforced; the kernel is being killed.
        """
        self.id = name
        self._on_ended = on_ended
        if limits != self.limits:
            try:
                self._confined.adjust(limits)
            except AgentFailed:
                self.end("limits-unenforceable")
                raise
            self.limits = limits
        self._lane.assign(environ)
        self._life.begin(limits.lifetime, limits.idle_timeout)

    async def execute(self, request: RunRequest) -> RunReply:
        """Start, continue or feed a run; see :meth:`sorna.agent.runs.Runs.execute`."""
        self._life.touch()
        self.num_queries += 1
        try:
            return await self.runs.execute(request)
        finally:
            self._life.touch()

    async def read_output(self, request: OutputRequest) -> RunReply:
        """Read a run's output from a number on; see :meth:`sorna.agent.runs.Runs.read`. Being looked at is no use."""
        return await self.runs.read(request)

    def interrupt(self) -> None:
        """Send SIGINT to what runs now."""
        self._life.touch()
        self._send(frames.INTERRUPT, b"{}")

    async def complete(self, code: str, options: Mapping[str, Any]) -> Sequence[str]:
        """Give completions; ``options`` has row, col, line and post, each of which may be missing."""
        self._life.touch()
        number, result = self._replies.ask(COMPLETE_DEADLINE)
        self._send_either(frames.COMPLETE, completions.question(number, code, options))
        return completions.checked(await result)

    async def restart(self) -> None:
        """Throw the in-memory state away and keep the files; the current and queued runs end with 130.

        Callers share one restart.

        :raises AgentFailed: the kernel did not, and is being killed.
        """
        self._life.touch()
        shared = self._restart
        if shared is None:
            shared = self._restart = Shared()
            Deferred.fromCoroutine(self._restart_now(shared)).addErrback(
                lambda failure: self._log.failure("restart of kernel {kernel_id}", failure, kernel_id=self.id)
            )
        await shared.join()

    async def _restart_now(self, shared: Shared[None]) -> None:
        self.runs.hold()
        self._verdict = verdict = verdicts.restarted()
        self._stop_run_timers()
        try:
            number, result = self._replies.ask(RESTART_DEADLINE)
            self._grant(LAST_WORDS)
            self._send(frames.RESTART, to_json({"request": number}))
            await result
        except (AgentTimeout, AgentRefused, AgentFailed) as error:
            self._restart = None
            self.end("stuck", verdicts.stuck())
            shared.fail(AgentFailed(f"The kernel could not be restarted: {error.detail}"))
            return
        self._lane.leave()
        self._restart = None
        self._verdict = None
        self._discarding = False
        self.runs.end_all(verdict.exit_code, verdict.sentence)
        self._hits = self._confined.limit_hits()
        self.runs.release()
        shared.succeed(None)

    def usage(self) -> Usage:
        """Read what the kernel has used so far."""
        return self._confined.usage()

    def logs(self) -> str:
        """Give the recent console output."""
        return self._tail.text()

    @property
    def idle_for(self) -> float:
        """Seconds since anybody wanted anything."""
        return self._life.idle_for

    def end(self, reason: str, verdict: Verdict | None = None) -> None:
        """Kill the kernel; the first reason stays. Its runs are told ``verdict``, or else that it was destroyed."""
        if self._reason is None and not self._gone:
            self._reason = reason
            self._end_verdict = verdict
            self.runs.hold()
            self._stop_timers()
            self._confined.kill()

    def when_ended(self) -> Deferred[Usage]:
        """Give a Deferred of the final usage, which fires when nothing of the kernel is left."""
        return self._ended.join()

    # -- another program goes on

    @property
    def unsettled(self) -> str:
        """What goes on that no other program could go on with; empty when nothing does."""
        if self._reason is not None or self._gone:
            return "it ends"
        if self._restart is not None or self._verdict is not None:
            return "a run of it is being ended"
        return "a question to it is open" if len(self._replies) else self.tunnels.unsettled

    def carry(self) -> Mapping[str, Any]:
        """Give everything as plain values, and the socket's descriptor; nothing here goes on."""
        budget = self._time.carry()
        lifetime, idle = self._life.carry()
        self._stop_timers()
        self._lane.close()
        return {
            "id": self.id, "confined": self._confined.kernel_id, "limits": pack_value(self.limits),
            "num_queries": self.num_queries, "runs": self.runs.carry(), "tail": self._tail.carry(),
            "credit": self._credit.outstanding, "terminal": self.terminal.carry(), "tunnels": self.tunnels.carry(), "discarding": self._discarding,
            "output_left": self._output_left, "hits": [self._hits.out_of_memory, self._hits.processes],
            "budget": budget, "lifetime": lifetime, "idle": idle, "lane": self._lane.wanted, "channel": self._channel.carry(),
        }  # fmt: skip

    def take_over(self, state: Mapping[str, Any]) -> None:
        """Go on where another program has stopped; this has just been made on the same process."""
        self.id, self.num_queries = state["id"], state["num_queries"]
        self._ready.succeed(None)
        self._tail.append(state["tail"])
        self._credit.outstanding, self._hits = state["credit"], LimitHits(*state["hits"])
        self._discarding, self._output_left = state["discarding"], state["output_left"]
        self._channel.take_over(state["channel"])
        self._lane.wanted = state.get("lane", False)  # a program that knew of none has carried none
        self.runs.take_over(state["runs"])
        self.terminal.take_over(state["terminal"])
        self.tunnels.take_over(state["tunnels"])
        self._life.go_on(state["lifetime"], state["idle"], self.limits.idle_timeout)
        self._time.go_on(state["budget"])
        self.room_changed()

    # -- from init

    def frame_received(self, kind: int, payload: bytes) -> None:
        """Take one frame. :raises FrameError: it makes no sense."""
        receive = self._frames.get(kind)
        if receive is None:
            raise FrameError(f"a frame of kind {kind}")
        receive(payload)

    def channel_lost(self, error: Exception | None) -> None:
        """Learn that init is gone or speaks nonsense: kill what is left; ``exited`` tells the rest."""
        if error is not None:
            self._log.error("kernel {kernel_id} broke the protocol: {error}", kernel_id=self.id, error=str(error))
            self.end("protocol-error")
        elif not self._gone:
            self.runs.hold()
            self._stop_timers()
            self._confined.kill()

    def _on_ready(self, _payload: bytes) -> None:
        self._lane.drain()  # the REPL has said that it listens before init said that all is ready
        self._hits = self._confined.limit_hits()
        self._ready.succeed(None)

    def _on_output(self, kind: int, payload: bytes) -> None:
        if not self._credit.spend(len(payload)):
            raise FrameError("output without credit")
        if kind == frames.EMIT:
            parse_emit(payload)
        else:
            self._tail.append(payload)
        if self._discarding:
            self.room_changed()
            return
        if self.runs.current is not None and self.limits.output_size > 0:
            self._output_left -= len(payload)
            if self._output_left < 0:
                if kind != frames.EMIT:
                    self.runs.output(kind, payload[: self._output_left])
                self._discarding = True
                self._end_run(verdicts.output_size(self.limits))
                return
        self.runs.output(kind, payload)
        self.room_changed()

    def _on_waiting(self, payload: bytes) -> None:
        frame = read_object(payload)
        run = self._current(frame)
        # A line that was typed ahead may have crossed this frame: then the run does not wait.
        if run is None or self._verdict is not None or frame.get("inputs", run.inputs) < run.inputs:
            return
        self._time.pause()
        self.runs.waiting(is_password=frame.get("is_password") is True)

    def _on_build_finished(self, payload: bytes) -> None:
        frame = read_object(payload)
        exit_code = frame.get("exit_code")
        if self._current(frame) is not None:
            self.runs.build_finished(exit_code if isinstance(exit_code, int) else None)

    def _on_finished(self, payload: bytes) -> None:
        frame = read_object(payload)
        ending = read_ending(frame)
        if self._current(frame) is not None:
            self._finish(ending)

    def lane_ended_run(self, frame: Mapping[str, Any], words: bytes) -> None:
        """See :class:`~sorna.agent.lane.LaneOwner`."""
        ending = read_ending(frame)
        if self._current(frame) is None:
            return
        if words:
            self._tail.append(words)
            if 0 < self.limits.output_size < len(words):
                self._verdict = verdicts.output_size(self.limits)
            self.runs.output(frames.STDOUT, words[: self.limits.output_size or None])
        self._finish(ending)

    def _finish(self, ending: Ending) -> None:
        """Let the current run be over."""
        self._stop_run_timers()
        verdict, self._verdict = self._verdict, None
        self._discarding = False
        hits = self._confined.limit_hits()
        ending, sentences = verdicts.judge(ending, verdict, self._hits, hits, self.limits)
        self._hits = hits
        self._say(sentences)
        self._life.touch()
        self._lane.forget()
        if ending.reset:
            self._lane.leave()
        self.runs.finished(ending)
        self.room_changed()

    def _on_restarted(self, payload: bytes) -> None:
        frame = read_object(payload)
        reason = str(frame.get("reason"))[:1000]
        if self._lane.lost(frame):
            self._say([f"{reason}; its state is lost.\n"])
            return
        hits = self._confined.limit_hits()
        sentences = verdicts.limit_sentences(self._hits, hits, self.limits)
        self._hits = hits
        self._say([*sentences, verdicts.state_lost(f"{reason}.")])

    def _current(self, frame: Mapping[str, Any]) -> Run | None:
        """Give the current run if the frame is about it; a run that was ended meanwhile may still be spoken of."""
        run = self.runs.current
        return run if run is not None and frame.get("run") == run.wire_id else None

    def _say(self, sentences: Sequence[str]) -> None:
        for sentence in sentences:
            content = sentence.encode()
            self._tail.append(content)
            self.runs.output(frames.STDERR, content)

    # -- what the runs need done

    def start_run(self, run: Run) -> None:
        """Send a run, and let its time count."""
        self._output_left = self.limits.output_size
        self._discarding = False
        self._verdict = None
        if not (run.for_repl and self._lane.start(run.wire_id, run.request, self._reactor.seconds())):
            self._lane.open(self._channel)
            self._send(frames.RUN, to_json(run.frame()))
        self._time.begin(self.limits.execution_timeout)

    def send_input(self, run: Run, text: str) -> None:
        """Send a typed line, and let time count again."""
        self._send(frames.INPUT, to_json({"run": run.wire_id, "text": text}))
        if self._verdict is None:
            self._time.go()

    def room_changed(self) -> None:
        """Grant credit if there is room for output."""
        amount = self._credit.grant(self._credit.size if self._discarding else self.runs.room)
        if amount:
            self._send(frames.CREDIT, amount.to_bytes(4, "big"))

    # -- limits

    def _is_busy(self) -> bool:
        run = self.runs.current
        return (run is not None and run.state is RunState.RUNNING) or len(self._replies) > 0

    def _end_run(self, verdict: Verdict) -> None:
        """End the current run, or the kernel when init does not obey."""
        run = self.runs.current
        if run is None or self._verdict is not None:
            return
        self._log.info(
            "kernel {kernel_id} ends a run: {sentence}", kernel_id=self.id, sentence=verdict.sentence.strip()
        )
        self._verdict = verdict
        self._stop_run_timers()
        self._grant(LAST_WORDS)
        # The sentence is added here, behind everything the run has printed: init cannot know the output's limit.
        self._send(frames.KILL_RUN, to_json({"run": run.wire_id, "message": ""}))
        self._obey = self._reactor.callLater(OBEY_DEADLINE, self.end, "stuck", verdict)

    def _grant(self, amount: int) -> None:
        due = self._credit.extend(amount)
        if due:
            self._send(frames.CREDIT, due.to_bytes(4, "big"))

    def _send_either(self, kind: int, content: Mapping[str, Any] | bytes) -> None:
        self._send(kind, content if isinstance(content, bytes) else to_json(content))

    def _send(self, kind: int, *parts: bytes) -> None:
        self._lane.before(kind)
        try:
            self._channel.send(kind, *parts)
        except WriteBufferFull:
            self.end("stuck", verdicts.stuck())

    def _stop_run_timers(self) -> None:
        self._time.stop()
        cancel(self._obey)
        self._obey = None

    def _stop_timers(self) -> None:
        self._stop_run_timers()
        self._life.stop()

    # -- the end

    def _not_ready(self) -> None:
        self._ready.fail(AgentFailed(f"The kernel was not ready within {READY_DEADLINE:g} seconds."))
        self.end("not-ready")

    def _on_exit_unknown(self, failure: Failure) -> None:
        self._log.failure("how kernel {kernel_id} ended is unknown", failure, kernel_id=self.id)
        self._on_exit(KernelExit(status=-verdicts.SIGKILL, out_of_memory=False, usage=Usage()))

    def _on_exit(self, end: KernelExit) -> None:
        """Everything of the kernel is gone: tell everybody. See Note [How a kernel ends]."""
        self._gone = True
        self.runs.hold()
        self._stop_timers()
        self._lane.drain()
        self._channel.drain()
        reason = self._reason
        if reason is None:
            reason, verdict = verdicts.died(end, self.limits)
        else:
            verdict = self._end_verdict or verdicts.destroyed(reason)
        self._reason = reason
        self._lane.close()
        self._channel.close()
        self._tail.append(verdict.sentence.encode())
        self.runs.close(verdict.exit_code, verdict.sentence, timed_out=verdict.timed_out)
        self._replies.fail_all(f"The kernel has ended ({reason}).")
        self._ready.fail(AgentFailed(f"The kernel ended before it was ready ({reason})."))
        self.terminal.end(f"The kernel has ended ({reason}).")
        self.tunnels.end(f"The kernel has ended ({reason}).")
        self._on_ended(self, reason, end.usage)
        self._ended.succeed(end.usage)
