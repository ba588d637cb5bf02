"""One program gives way to the next: what is carried, what refuses it, and what is left when it fails."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NoReturn

import msgpack
from twisted.internet.defer import Deferred, succeed

from sorna.agent.channel import Channel
from sorna.agent.devices import Devices
from sorna.agent.ended import EndedKernels
from sorna.agent.handover import HandoverImpossible
from sorna.agent.heartbeat import INTERVAL, AgentIdentity, Heart
from sorna.agent.kernels import Kernels
from sorna.agent.runners import frames
from sorna.agent.succession import LAST_INTERVAL, LINGER, LOOK, PATIENCE, Succession, take_over
from sorna.errors import Unavailable
from sorna.model.agent import Heartbeat
from sorna.model.limits import OutputBounds
from sorna.model.run import OutputRequest, RunStatus
from sorna.testing.terminals import MemoryViewer
from tests.agent.fakes import KernelTestCase, News, poll, query, spec, text_of


class Link:
    """The link's server, whose calls the test makes."""

    def __init__(self) -> None:
        self.calls_in_flight = 0
        self.events: list[str] = []

    def pause(self) -> None:
        self.events.append("pause")

    def resume(self) -> None:
        self.events.append("resume")

    def carry(self) -> Mapping[str, Any]:
        return {"last": 7, "events": []}

    def stopService(self) -> Deferred[None]:
        self.events.append("close")
        return succeed(None)


class Beats:
    """Keeps heartbeats with their intervals."""

    def __init__(self) -> None:
        self.beats: list[tuple[Heartbeat, float]] = []

    async def beat(self, heartbeat: Heartbeat, interval: float) -> None:
        self.beats.append((heartbeat, interval))

    async def leave(self, agent_id: str) -> None:
        raise AssertionError("an agent that restarts does not leave")


class SuccessionTestCase(KernelTestCase):
    """Kernels that are carried to other Kernels, as over an exec."""

    def setUp(self) -> None:
        super().setUp()
        self.link, self.beats = Link(), Beats()
        self.prepared: Callable[[], Deferred[None]] = lambda: succeed(None)
        self.failures: list[str] = []
        self.states: list[Mapping[str, Any]] = []
        self.broken: Exception | None = None
        identity = AgentIdentity("i-1", "first", "tcp://127.0.0.1:6011", "key", "fake")
        heart = self.heart = Heart(self.clock, self.beats, self.kernels, identity)

        async def prepare() -> None:
            await self.prepared()

        self.succession = Succession(
            self.clock,
            self.sandbox,
            self.pool,
            self.kernels,
            self.link,
            heart,
            "first",
            prepare,
            self.give_way,
            self.failures.append,
        )

    def give_way(self, state: Mapping[str, Any]) -> NoReturn:
        if self.broken is not None:
            raise self.broken
        self.states.append(msgpack.unpackb(msgpack.packb(state)))
        raise SystemExit  # stands for a process that is another program now

    def begin(self) -> None:
        """Have the program replaced."""
        self.successResultOf(self.start(self.succession.begin()))
        self.advance(0)

    def wait(self, seconds: float = LINGER) -> None:
        """Let time pass; the process that is replaced does not come back from it."""
        for _ in range(round(seconds / LOOK) + 2):
            self.advance(LOOK)

    def replace(self) -> None:
        """Carry everything to other kernels, and go on with those."""
        self.begin()
        self.wait()
        self.flushLoggedErrors(SystemExit)
        state = self.states[-1]
        live = [kernel for kernel in self.sandbox.kernels if not kernel.gone]
        self.sandbox.kernels = []
        self.sandbox.given = live
        self.news = News()
        self.kernels = Kernels(
            self.clock,
            self.pool,
            self.kernels.runtimes,
            self.max_kernels,
            self.watch,
            ended=EndedKernels(self.clock, OutputBounds()),
            devices=Devices(self.folder_root, hidden=True),
        )
        self.kernels.report_to(self.news)
        work = take_over(state, self.sandbox, self.kernels, partial(Channel, self.clock))
        self.successResultOf(self.start(work))


class CarryTests(SuccessionTestCase):
    """What the next program goes on with."""

    def test_a_run_goes_on(self) -> None:
        """What was printed before and after is in one run, numbered without a gap, and its end is told."""
        kernel = self.create()
        waiting = self.execute(query("work", "run-1"))
        kernel.print("before ")
        self.replace()
        early = self.successResultOf(waiting)
        self.assertEqual((text_of(early), early.status), ("before ", RunStatus.CONTINUED))
        kernel.print("after")
        kernel.finish(3)
        self.flow()
        late = self.reply(poll("run-1"))
        self.assertEqual((text_of(late), late.status, late.exit_code), ("after", RunStatus.FINISHED, 3))
        self.assertEqual((early.next_seq, late.first_seq, late.next_seq), (7, 7, 12))
        again = self.successResultOf(self.start(self.kernels.read_output(self.kernel_id, OutputRequest("run-1", 0, 0))))
        self.assertEqual(text_of(again), "before after")
        self.assertEqual(self.kernels.live()[self.kernel_id].logs(), "before after")

    def test_a_frame_that_had_half_arrived(self) -> None:
        """A frame of which one program has read the beginning is understood by the next."""
        kernel = self.create()
        self.execute(query("work", "run-1"))
        frame = frames.pack_frame(frames.STDOUT, b"whole")
        kernel.peer.send(frame[:6])
        self.flow()
        self.replace()
        kernel.peer.send(frame[6:])
        kernel.finish()
        self.flow()
        self.assertEqual(text_of(self.reply(poll("run-1"))), "whole")

    def test_what_was_not_written_yet(self) -> None:
        """What the kernel's socket had no room for is written by the next program."""
        kernel = self.create()
        code = "x" * 3_000_000
        kernel.reads = False
        self.execute(query(code, "run-1"))
        self.replace()
        kernel.reads = True
        self.flow()
        self.assertEqual(kernel.sent(frames.RUN)[-1]["code"], code)

    def test_queued_and_finished_runs(self) -> None:
        """Runs that wait start in their order, and one that is over can still be read by its id."""
        kernel = self.create()
        self.execute(query("first", "run-1"))
        kernel.print("one")
        kernel.finish(0)
        self.flow()
        self.execute(query("second", "run-2"))
        self.execute(query("third", "run-3"))
        self.replace()
        self.assertEqual(kernel.sent(frames.RUN)[-1]["code"], "second")
        kernel.finish(0)
        self.flow()
        self.assertEqual(kernel.sent(frames.RUN)[-1]["code"], "third")
        old = self.successResultOf(self.start(self.kernels.read_output(self.kernel_id, OutputRequest("run-1", 0, 0))))
        self.assertEqual((text_of(old), old.status), ("one", RunStatus.FINISHED))

    def test_input(self) -> None:
        """A run that waits for a line waits on, and gets it."""
        kernel = self.create()
        self.execute(query("ask", "run-1"))
        kernel.wait_for_input(is_password=True)
        self.flow()
        self.replace()
        asked = self.reply(poll("run-1"))
        self.assertEqual((asked.status, asked.options), (RunStatus.WAITING_INPUT, {"is_password": True}))

    def test_limits_of_time(self) -> None:
        """What a run has spent of its time stays spent, and so do idleness and lifetime."""
        kernel = self.create(execution_timeout=10.0, idle_timeout=1000.0, lifetime=100.0)
        self.execute(query("work", "run-1"))
        self.advance(6)
        self.replace()
        self.advance(3)
        self.assertEqual(kernel.sent(frames.KILL_RUN), [])
        self.advance(1.2)
        self.assertEqual(len(kernel.sent(frames.KILL_RUN)), 1)
        kernel.finish(None)
        self.flow()
        self.assertTrue(self.reply(poll("run-1")).timed_out)
        self.advance(88)
        self.assertFalse(kernel.gone)
        self.advance(3)
        self.assertEqual([reason for _id, reason, _usage in self.news.ended], ["lifetime-exceeded"])

    def test_idleness(self) -> None:
        """A kernel that nobody has used for a while ends when its time has come, counted over both programs."""
        kernel = self.create(idle_timeout=100.0)
        self.advance(60)
        self.replace()
        self.advance(38)
        self.assertFalse(kernel.gone)
        self.advance(3)
        self.assertTrue(kernel.gone)

    def test_limit_of_output(self) -> None:
        """How much a run may print is counted over both programs."""
        kernel = self.create(output_size=100)
        self.execute(query("work", "run-1"))
        kernel.print("x" * 60)
        self.flow()
        self.replace()
        kernel.print("y" * 60)
        self.flow()
        self.assertEqual(len(kernel.sent(frames.KILL_RUN)), 1)

    def test_a_terminal(self) -> None:
        """The shell goes on; who looks again sees what it printed, and is heard."""
        kernel = self.create()
        self.successResultOf(self.start(self.kernels.open_terminal(self.kernel_id, MemoryViewer(), 24, 80))).close()
        kernel.say(frames.TERMINAL_OUTPUT, b"$ ")
        self.flow()
        self.replace()
        viewer = MemoryViewer()
        seat = self.successResultOf(self.start(self.kernels.open_terminal(self.kernel_id, viewer, 30, 90)))
        self.advance(0.1)
        seat.write(b"ls")
        self.flow()
        self.assertEqual(bytes(viewer.seen), b"$ ")
        self.assertEqual(len(kernel.sent(frames.TERMINAL_OPEN)), 1)
        self.assertEqual([payload for kind, payload in kernel.received if kind == frames.TERMINAL_INPUT], [b"ls"])
        seat.close()

    def test_a_kernel_that_ended(self) -> None:
        """What was not read of a kernel that is gone can still be read, and its usage asked for."""
        kernel = self.create()
        self.execute(query("work", "run-1"))
        self.advance(2.1)  # nobody waits for its output
        kernel.print("last words")
        kernel.exit(-9)
        self.flow()
        self.replace()
        old = self.successResultOf(self.start(self.kernels.read_output(self.kernel_id, OutputRequest("run-1", 0, 0))))
        self.assertIn("last words", text_of(old))
        self.assertEqual(
            self.successResultOf(self.start(self.kernels.destroy_kernel(self.kernel_id, "x"))).cpu_used, 12.5
        )

    def test_the_same_life(self) -> None:
        """The incarnation goes on, and the last heartbeat lasts longer than others."""
        self.create()
        self.replace()
        self.assertEqual(self.states[-1]["incarnation"], "first")
        (heartbeat, interval) = self.beats.beats[-1]
        self.assertEqual((heartbeat.incarnation, len(heartbeat.kernels), interval), ("first", 1, LAST_INTERVAL))
        self.assertEqual(self.link.events, ["pause", "close"])


class RefusalTests(SuccessionTestCase):
    """When everything goes on as before."""

    def goes_on(self) -> None:
        """See that nothing was carried, and that the agent works."""
        self.addCleanup(lambda: self.successResultOf(self.start(self.heart.outlive(1.0))))
        self.assertEqual((self.states, self.failures), ([], []))
        self.assertEqual(self.link.events, ["pause", "resume"])
        kernel = self.create()
        running = self.execute(query("work", "run-9"))
        kernel.print("fine")
        kernel.finish()
        self.flow()
        self.assertEqual(text_of(self.successResultOf(running)), "fine")

    def test_a_program_that_cannot_be_loaded(self) -> None:
        """Whoever asks is told why, and managers are not bothered."""

        async def broken() -> None:
            raise HandoverImpossible("SyntaxError")

        self.prepared = lambda: Deferred.fromCoroutine(broken())
        error = self.failureResultOf(self.start(self.succession.begin()), Unavailable).value
        self.assertIn("SyntaxError", error.detail)
        self.assertEqual(self.link.events, [])
        self.prepared = lambda: succeed(None)
        self.begin()
        self.wait()
        self.flushLoggedErrors(SystemExit)
        self.assertEqual(len(self.states), 1)

    def test_twice_at_once(self) -> None:
        """While the program is being replaced it cannot be asked for again."""
        gate: Deferred[None] = Deferred()
        self.prepared = lambda: gate
        first = self.start(self.succession.begin())
        self.failureResultOf(self.start(self.succession.begin()), Unavailable)
        self.assertNoResult(first)
        first.cancel()
        self.failureResultOf(first)

    def test_calls_that_do_not_end(self) -> None:
        """A call that is worked on for too long refuses it."""
        self.link.calls_in_flight = 1
        self.begin()
        self.wait(PATIENCE)
        self.goes_on()

    def test_a_last_heartbeat_that_was_not(self) -> None:
        """What comes up after the last heartbeat refuses it as well, and heartbeats go on."""
        self.begin()
        self.assertEqual([interval for _beat, interval in self.beats.beats], [LAST_INTERVAL])
        self.link.calls_in_flight = 1
        self.wait(PATIENCE)
        self.assertEqual(self.beats.beats[-1][1], INTERVAL)
        self.goes_on()

    def test_a_kernel_that_comes(self) -> None:
        """A kernel that is being made is waited for."""
        gate: Deferred[None] = Deferred()
        self.sandbox.slow = gate
        making = self.start(self.kernels.create_kernel(uuid.UUID(int=77), spec()))
        self.begin()
        self.wait(1.0)
        self.assertEqual(self.states, [])
        self.sandbox.slow = None
        gate.callback(None)
        self.flow()
        self.successResultOf(making)
        self.wait(1.0)
        self.flushLoggedErrors(SystemExit)
        self.assertEqual(len(self.states[-1]["kernels"]["live"]), 1)

    def test_a_run_that_is_being_ended(self) -> None:
        """A kernel that is being restarted is waited for, and when that takes too long nothing is replaced."""
        kernel = self.create()
        kernel.obedient = False
        restarting = self.start(self.kernels.restart_kernel(self.kernel_id))
        self.begin()
        self.wait(PATIENCE)
        self.assertEqual(self.states, [])
        self.successResultOf(self.start(self.heart.outlive(1.0)))
        kernel.exit(-9)
        self.flow()
        self.failureResultOf(restarting)

    def test_no_way_back(self) -> None:
        """What fails after the link is closed ends the process, and says why."""
        self.broken = OSError("no memory")
        self.begin()
        self.wait()
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
        self.assertEqual(self.failures, ["the program could not be replaced: no memory"])
