"""The runs of one kernel: the queue, the outstanding run, the calls that wait for output, and what is kept to be read again.

Knows no channel, no limits and no sandbox: it tells its owner what to send (:class:`RunCommands`) and is told what arrived.
Which call means which run is decided by :mod:`sorna.agent.run_rules`.

Note [Nothing lost, nothing doubled]
~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
A waiting call takes nothing. Output stays unread in its run's log, and the answer is cut from the log in the same turn in
which it is handed to the caller. So a cancelled call has nothing to give back, a call that gives way to a later one on the
same run takes what is there and leaves the rest, and whatever becomes of the calls, every byte is in exactly one answer.
What a call changes while it waits is only how much may gather unread before the program is blocked. An answer that its
carrier loses is given back; see Note [An answer and its carrier] in :mod:`sorna.agent.handovers`.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, Protocol

from attrs import define
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from sorna.agent.deadlines import cancel
from sorna.agent.handovers import Handovers
from sorna.agent.output_log import KIB, OutputLog
from sorna.agent.run import Ending, Run, RunState
from sorna.agent.run_rules import Action, decide
from sorna.agent.runners.frames import STDERR
from sorna.errors import InvalidRequest, KernelNotFound, OutputGone, RunNotFound
from sorna.model.limits import OutputBounds
from sorna.model.run import OutputRequest, RunReply, RunRequest, RunStatus, new_run_id

# A call is answered when this much has gathered; one that waits for the end, later.  Decoding can turn one byte that is
# no UTF-8 into three, and the answer has to fit into one message of the link.
GATHER = 1024 * KIB
GATHER_UNTIL_END = 7 * 1024 * KIB
# An eager call is answered with the first byte, but after an answer of so many bytes it lets more come together for a
# moment: half of what each answer costs on its way to the client does not depend on how much is in it.
MUCH = 32 * KIB
MOMENT = 0.008
# How far output may go beyond that before the program is blocked.
WINDOW = 256 * KIB
MAX_QUEUED = 32
MAX_CODE = 4 * 1024 * KIB
MAX_QUEUED_CODE = 8 * 1024 * KIB
MAX_RUN_ID = 128
MAX_TYPED_AHEAD = 64 * KIB
KEEP_RUNS = 32
# So many ids of runs whose output is gone are told from ids that no run ever had.
KEEP_NAMES = 512
KEEP_BYTES = 8 * 1024 * KIB
# An answer that was lost on its way can be read again, whatever its size but for runs that nobody polls.
KEEP_PER_RUN = GATHER + 256 * KIB
# What a run costs besides its code and its output.
RUN_COST = 2 * KIB
READ_PIECE = 256 * KIB
RETENTION = OutputBounds().retention


class RunCommands(Protocol):
    """What the runs need done."""

    def start_run(self, run: Run) -> None:
        """Send the run to the kernel."""
        ...

    def send_input(self, run: Run, text: str) -> None:
        """Send a line to the run that goes on."""
        ...

    def room_changed(self) -> None:
        """Look again at :attr:`Runs.room`: more output may be welcome now."""
        ...


@define(eq=False)
class _Call:
    deferred: Deferred[RunReply]
    most: int
    enough: int
    timer: IDelayedCall | None = None
    soon: IDelayedCall | None = None
    moment: IDelayedCall | None = None

    def cancel_timers(self) -> None:
        """Let nothing happen by itself any more."""
        cancel(self.timer)
        cancel(self.soon)
        cancel(self.moment)


class Runs:
    """The runs of one kernel.

    :ivar retention: seconds after a run's end for which its output is kept, where there is room.
    """

    def __init__(self, reactor: IReactorTime, commands: RunCommands) -> None:
        self._reactor = reactor
        self._commands = commands
        self.current: Run | None = None
        self._queue: deque[Run] = deque()
        self._undelivered: list[Run] = []
        self._named: dict[str, Run] = {}
        self._finished: list[Run] = []
        self._finished_cost = 0
        self._gone: OrderedDict[str, None] = OrderedDict()
        self.retention = RETENTION
        self._calls: dict[Run, _Call] = {}
        self._readers: dict[Run, list[Deferred[None]]] = {}
        self._background = OutputLog(keep=0)
        self._held = False
        self._closed = False
        self._count = 0
        self._prune_timer: IDelayedCall | None = None
        self._handovers = Handovers(reactor, self._given_back)

    @property
    def undelivered(self) -> bool:
        """Whether some run's end was not told to anybody, as far as is known."""
        return bool(self._undelivered) or self._handovers.pending

    @property
    def cost(self) -> int:
        """What everything that is kept of the runs costs, in bytes."""
        runs = sum(run.log.cost + len(run.request.code) + RUN_COST for run in self._named.values())
        return self._background.cost + runs

    @property
    def room(self) -> int:
        """How many bytes of output are welcome now; less than 0 when too much is unread."""
        run = self.current
        if run is None:
            return GATHER + WINDOW - self._background.pressure
        call = self._calls.get(run)
        return (GATHER if call is None else call.most) + WINDOW - run.log.pressure

    # -- calls

    async def execute(self, request: RunRequest) -> RunReply:
        """Start, continue or feed a run, and wait for what there is to tell.

        :raises InvalidRequest: see :func:`~sorna.agent.run_rules.decide`; or a bound is passed.
        :raises KernelNotFound: the kernel has ended, and this call wants more than what is left to read.
        """
        if request.run_id is not None and not 0 < len(request.run_id) <= MAX_RUN_ID:
            raise InvalidRequest(f"A run id has 1 to {MAX_RUN_ID} characters.")
        await self._handovers.settled()
        outstanding = self._undelivered[0] if self._undelivered else None
        named = None if request.run_id is None else self._named.get(request.run_id)
        decision = decide(request, outstanding, named)
        run = decision.run
        if run is None:
            run = self._start(request)
        elif decision.action is Action.FEED:
            self._feed(run, request.code)
        return await self._answer_to(run, request.wait, eager=request.eager)

    def hand_over(self, run_id: str) -> Callable[[bool], None] | None:
        """Note that the answer that was given just now is on its way; see :class:`~sorna.agent.handovers.Handovers`.

        :returns: None when the run is known no more.
        """
        run = self._named.get(run_id)
        return None if run is None else self._handovers.begin(run)

    def _given_back(self, run: Run) -> None:
        """Count a run whose answer did not arrive among those whose end nobody was told, unless it was forgotten."""
        if self._named.get(run.id) is run and not run.delivered and run not in self._undelivered:
            self._undelivered.insert(0, run)
        self._commands.room_changed()

    async def read(self, request: OutputRequest) -> RunReply:
        """Read the output of a run from a number on, and wait for something new if there is nothing.

        What is not acknowledged stays unread, so that a program waits rather than that it is lost.

        :raises RunNotFound: no run has this id.
        :raises OutputGone: the run's output is not kept any more.
        """
        run = self._named.get(request.run_id)
        if run is None:
            if request.run_id in self._gone:
                raise OutputGone("The output of this run is not kept any more.")
            raise RunNotFound("No run of this session has this run id.")
        run.log.acknowledge(min(request.acknowledged, request.seq))
        self._commands.room_changed()
        reply = run.read(request.seq, READ_PIECE)
        if reply.console or request.wait <= 0 or reply.status not in {RunStatus.CONTINUED, request.known}:
            return self._told(run, reply)
        news: Deferred[None] = Deferred()
        self._readers.setdefault(run, []).append(news)
        try:
            await news.addTimeout(request.wait, self._reactor)
        except DeferredTimeoutError:
            pass
        finally:
            readers = self._readers.get(run, [])
            if news in readers:
                readers.remove(news)
            if not readers:
                self._readers.pop(run, None)
        return self._told(run, run.read(request.seq, READ_PIECE))

    def _told(self, run: Run, reply: RunReply) -> RunReply:
        if run.delivered and run in self._undelivered:
            self._undelivered.remove(run)
        return reply

    def _wake_readers(self, run: Run) -> None:
        for news in self._readers.pop(run, ()):
            news.callback(None)

    def _start(self, request: RunRequest) -> Run:
        self._refuse_if_closed()
        size = sum(len(text or "") for text in (request.code, request.clean, request.build, request.exec))
        if size > MAX_CODE:
            raise InvalidRequest(f"The code is larger than {MAX_CODE // KIB} KiB.")
        waiting = sum(len(run.request.code) for run in self._queue)
        if len(self._queue) >= MAX_QUEUED or waiting + size > MAX_QUEUED_CODE:
            raise InvalidRequest(f"Too many runs are waiting in this session; at most {MAX_QUEUED} may.")
        if request.run_id is None:
            # The client has turned to new code: what is left of runs that are over can still be read by their ids.
            self._undelivered = [run for run in self._undelivered if run.state is not RunState.FINISHED]
        self._count += 1
        run = Run(request.run_id or new_run_id(), str(self._count), request, log=OutputLog(KEEP_PER_RUN))
        self._named[run.id] = run
        self._undelivered.append(run)
        self._queue.append(run)
        self._start_next()
        return run

    def _feed(self, run: Run, text: str) -> None:
        self._refuse_if_closed()
        size = len(text)
        if run.typed_ahead + size > MAX_TYPED_AHEAD and (run.state is not RunState.WAITING or size > GATHER):
            raise InvalidRequest(f"More than {MAX_TYPED_AHEAD // KIB} KiB were typed that the run has not read.")
        run.told = None
        run.typed_ahead += size + 1
        if run.state is RunState.QUEUED:
            run.typed.append(text)
            return
        run.state = RunState.RUNNING
        self._send_input(run, text)

    def _send_input(self, run: Run, text: str) -> None:
        run.inputs += 1
        self._commands.send_input(run, text)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise KernelNotFound("The kernel has ended.")

    async def _answer_to(self, run: Run, wait: float | None, *, eager: bool = False) -> RunReply:
        while run in self._calls:
            self._answer(run)  # the earlier call gives way
        most = GATHER_UNTIL_END if wait is None else GATHER
        hurries = run.log.last_taken < MUCH
        enough = 1 if eager and hurries else most
        if run.answerable(enough) or (wait is not None and wait <= 0):
            return self._reply(run, most)
        call = _Call(Deferred(lambda _deferred: self._forget_call(run, call)), most, enough)
        self._calls[run] = call
        if wait is not None:
            call.timer = self._reactor.callLater(wait, self._answer, run)
        if eager and not hurries:
            call.moment = self._reactor.callLater(MOMENT, self._settle_for_less, run, call)
        self._commands.room_changed()
        return await call.deferred

    def _settle_for_less(self, run: Run, call: _Call) -> None:
        call.enough = 1
        if run.answerable(1):
            self._answer(run)

    def _forget_call(self, run: Run, call: _Call) -> None:
        if self._calls.get(run) is call:
            del self._calls[run]
        call.cancel_timers()

    def _answer(self, run: Run) -> None:
        call = self._calls.pop(run)
        call.cancel_timers()
        call.deferred.callback(self._reply(run, call.most))

    def _answer_if_due(self, run: Run) -> None:
        self._wake_readers(run)
        call = self._calls.get(run)
        if call is None or not run.answerable(call.enough):
            return
        if run.answerable(call.most):
            self._answer(run)
        elif call.soon is None:
            # The end of a short run comes with its output, and can be told in the same answer.
            call.soon = self._reactor.callLater(0, self._answer, run)

    def _reply(self, run: Run, most: int) -> RunReply:
        reply = self._told(run, run.reply(most))
        self._commands.room_changed()
        return reply

    # -- what arrives from the kernel

    def output(self, kind: int, content: bytes) -> None:
        """Take output of the current run, or of what goes on in the background."""
        run = self.current
        if run is None:
            self._background.append(kind, content)
        else:
            run.log.append(kind, content)
            self._answer_if_due(run)

    def waiting(self, *, is_password: bool) -> None:
        """Note that the current run waits for a line."""
        run = self.current
        if run is not None:
            run.state = RunState.WAITING
            run.is_password = is_password
            run.typed_ahead = 0
            self._answer_if_due(run)

    def build_finished(self, exit_code: int | None) -> None:
        """Note that the current run's build is over."""
        run = self.current
        if run is not None:
            run.note_build(exit_code)
            self._answer_if_due(run)

    def finished(self, ending: Ending) -> None:
        """Note that the current run is over, and start the next one."""
        run = self.current
        if run is not None:
            self.current = None
            self._end(run, ending)
            self._start_next()

    def _end(self, run: Run, ending: Ending) -> None:
        run.finish(ending)
        run.finished_at = self._reactor.seconds()
        self._keep(run)
        self._prune()
        self._answer_if_due(run)

    def _keep(self, run: Run) -> None:
        self._finished.append(run)
        run.cost = run.log.cost
        self._finished_cost += run.cost

    def _start_next(self) -> None:
        if self.current is not None or self._held or not self._queue:
            return
        run = self.current = self._queue.popleft()
        self._background.move_unread_to(run.log)
        run.state = RunState.RUNNING
        self._commands.start_run(run)
        for text in run.typed:
            self._send_input(run, text)
        run.typed.clear()

    # -- ends of everything

    def hold(self) -> None:
        """Start no run until :meth:`release`."""
        self._held = True

    def release(self) -> None:
        """Start runs again."""
        self._held = self._closed
        self._start_next()

    def end_all(self, exit_code: int, sentence: str, *, timed_out: bool = False) -> None:
        """End the current run and every queued one, saying why on stderr; only the current one can have timed out."""
        held, self._held = self._held, True
        current = self.current
        ending = [current] if current is not None else []
        ending.extend(self._queue)
        self.current = None
        self._queue.clear()
        for run in ending:
            run.log.append(STDERR, sentence.encode())
            self._end(run, Ending(exit_code, reset=True, timed_out=timed_out and run is current))
        self._held = held

    def close(self, exit_code: int, sentence: str, *, timed_out: bool = False) -> None:
        """End everything for good; what is unread can be read until it is forgotten."""
        self._closed = self._held = True
        self.end_all(exit_code, sentence, timed_out=timed_out)

    def forget(self) -> None:
        """Let go of everything but the names, timers included."""
        cancel(self._prune_timer)
        self._prune_timer = None
        self._handovers.forget()
        for run_id in self._named:
            self._note_gone(run_id)
        self._background = OutputLog(keep=0)
        self._named.clear()
        self._finished.clear()
        self._finished_cost = 0
        self._undelivered.clear()

    # -- another program goes on

    def answer_all(self) -> None:
        """Answer every call that waits with what there is: the next program can be asked for the rest."""
        for run in list(self._calls):
            self._answer(run)
        for run in list(self._readers):
            self._wake_readers(run)

    def carry(self) -> Mapping[str, Any]:
        """Give everything as plain values, to be taken over by other Runs; no call may wait, and nothing here goes on."""
        cancel(self._prune_timer)
        self._prune_timer = None
        # Its managers live, so the answers that are on their way arrive.
        self._handovers.forget()
        known = {id(run): run for run in (*self._finished, *self._queue, *self._undelivered, *self._named.values())}
        if self.current is not None:
            known[id(self.current)] = self.current
        index = {one: number for number, one in enumerate(known)}
        now = self._reactor.seconds()
        return {
            "runs": [run.carry(now) for run in known.values()],
            "current": None if self.current is None else index[id(self.current)],
            "queue": [index[id(run)] for run in self._queue],
            "undelivered": [index[id(run)] for run in self._undelivered],
            "finished": [index[id(run)] for run in self._finished],
            "gone": list(self._gone),
            "named": {name: index[id(run)] for name, run in self._named.items()},
            "background": self._background.carry(),
            "count": self._count,
            "closed": self._closed,
        }

    def take_over(self, state: Mapping[str, Any]) -> None:
        """Go on with what :meth:`carry` gave; nothing has happened here yet."""
        now = self._reactor.seconds()
        runs = [Run.carried(one, now) for one in state["runs"]]
        self.current = None if state["current"] is None else runs[state["current"]]
        self._queue.extend(runs[number] for number in state["queue"])
        self._undelivered.extend(runs[number] for number in state["undelivered"])
        for number in state["finished"]:
            self._keep(runs[number])
        self._named.update((name, runs[number]) for name, number in state["named"].items())
        self._background = OutputLog.carried(state["background"])
        self._gone.update(dict.fromkeys(state["gone"]))
        self._count = state["count"]
        self._closed = self._held = state["closed"]
        self._prune()

    # -- what is kept

    def _prune(self) -> None:
        """Forget runs that are over: too old ones, and the oldest (delivered ones first) when there are too many."""
        oldest = self._reactor.seconds() - self.retention
        while self._finished and self._finished[0].finished_at <= oldest:
            self._forget(self._finished[0])
        if self._finished_cost > KEEP_BYTES:  # as it was when they ended
            finished, self._finished, self._finished_cost = self._finished, [], 0
            for run in finished:
                self._keep(run)
        while len(self._finished) > 1 and (len(self._finished) > KEEP_RUNS or self._finished_cost > KEEP_BYTES):
            others = islice(self._finished, len(self._finished) - 1)
            self._forget(next((run for run in others if run.delivered), self._finished[0]))
        if self._finished and self._prune_timer is None:
            due = self._finished[0].finished_at + self.retention - self._reactor.seconds()
            self._prune_timer = self._reactor.callLater(max(due, 1.0), self._prune_later)

    def _prune_later(self) -> None:
        self._prune_timer = None
        self._prune()

    def _forget(self, run: Run) -> None:
        self._finished.remove(run)
        self._finished_cost -= run.cost
        if self._named.get(run.id) is run:
            del self._named[run.id]
            self._note_gone(run.id)
        if run in self._undelivered:
            self._undelivered.remove(run)

    def _note_gone(self, run_id: str) -> None:
        self._gone[run_id] = None
        if len(self._gone) > KEEP_NAMES:
            self._gone.popitem(last=False)
