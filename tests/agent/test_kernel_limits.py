"""The limits that the agent enforces on a kernel, on a clock."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from sorna.agent import deadlines
from sorna.agent import kernel as module
from sorna.agent.interfaces import LimitHits
from sorna.agent.runners import frames
from sorna.errors import KernelNotFound
from sorna.model.limits import MIB
from sorna.model.run import RunReply, RunStatus
from tests.agent.fakes import USAGE, FakeKernel, KernelTestCase, poll, query, text_of, typed


class LimitTests(KernelTestCase):
    """Limits that the agent enforces."""

    def run_to_kill(self, answer: Deferred[RunReply], init: FakeKernel) -> RunReply:
        """Obey the agent's KILL_RUN as init does."""
        self.assertEqual(init.sent(frames.KILL_RUN), [{"run": init.run(), "message": ""}])
        init.finish(137, signal=9, reset=True)
        self.flow()
        return self.successResultOf(answer)

    def test_execution_timeout(self) -> None:
        """A run that computes too long ends with 124 and a sentence; the kernel stays."""
        init = self.create(execution_timeout=5.0)
        answer = self.execute(query(wait=None))
        init.print("so far")
        self.flow()
        self.advance(4.9)
        self.assertEqual(init.sent(frames.KILL_RUN), [])
        self.advance(0.2)
        reply = self.run_to_kill(answer, init)
        self.assertEqual((reply.status, reply.exit_code, reply.timed_out), (RunStatus.FINISHED, 124, True))
        self.assertEqual(text_of(reply), "so far")
        self.assertEqual(text_of(reply, "stderr"), "The run was ended: it took longer than its limit of 5 seconds.\n")
        self.advance(10)
        self.assertEqual((init.kills, self.news.ended), (0, []))

    def test_waiting_is_not_counted(self) -> None:
        """Time spent waiting for input is not counted; time after the line is."""
        init = self.create(execution_timeout=5.0)
        self.execute(query())
        self.advance(1)
        init.wait_for_input()
        self.flow()
        self.advance(100)
        self.execute(typed("x", wait=None))
        self.advance(3.9)
        self.assertEqual(init.sent(frames.KILL_RUN), [])
        self.advance(0.2)
        self.assertEqual(len(init.sent(frames.KILL_RUN)), 1)
        init.finish(137, reset=True)
        self.flow()

    def test_computing_while_waiting_is_counted(self) -> None:
        """A run of which one thread waits while others compute pays for the processor's time."""
        init = self.create(execution_timeout=20.0)
        self.execute(query(wait=None))
        self.advance(2)
        init.wait_for_input()
        self.flow()
        for _ in range(3):
            init.computed += 5.0
            self.advance(deadlines.LOOK)
        self.assertEqual(init.sent(frames.KILL_RUN), [])
        init.computed += 5.0
        self.advance(deadlines.LOOK)
        self.assertEqual(len(init.sent(frames.KILL_RUN)), 1)
        init.finish(137, reset=True)
        self.flow()

    def test_each_run_has_its_own_time(self) -> None:
        """The limit is a run's, not the session's, and does not count in the queue."""
        init = self.create(execution_timeout=5.0)
        self.execute(query("A", "a", wait=0))
        self.execute(query("B", "b", wait=0))
        for _ in range(2):
            self.advance(4)
            init.finish()
            self.flow()
        self.advance(10)
        self.assertEqual(init.sent(frames.KILL_RUN), [])

    def test_output_size(self) -> None:
        """A run that prints too much ends with exactly its limit of output, and a sentence."""
        init = self.create(output_size=100)
        answer = self.execute(query())
        init.print("x" * 60)
        init.print("y" * 60)
        init.print("z" * 60)
        self.flow()
        reply = self.run_to_kill(answer, init)
        self.assertEqual(text_of(reply), "x" * 60 + "y" * 40)
        self.assertEqual(text_of(reply, "stderr"), "The run was ended: it printed more than its limit of 100 bytes.\n")
        self.assertEqual(reply.exit_code, 124)
        answer = self.execute(query())
        init.print("w" * 100)
        init.finish()
        self.flow()
        self.assertEqual(text_of(self.successResultOf(answer)), "w" * 100)

    def test_disobedient_kernel(self) -> None:
        """A kernel that does not end its run within two seconds is killed, and says why its run ended."""
        init = self.create(execution_timeout=5.0)
        answer = self.execute(query(wait=None))
        self.advance(5)
        self.assertEqual(init.kills, 0)
        self.advance(module.OBEY_DEADLINE)
        self.assertEqual(init.kills, 1)
        reply = self.successResultOf(answer)
        self.assertEqual((reply.status, reply.exit_code), (RunStatus.FINISHED, 124))
        self.assertIn("longer than its limit", text_of(reply, "stderr"))
        self.assertEqual(self.news.ended, [(self.kernel_id, "stuck", USAGE)])

    def test_blocked_program_can_be_ended(self) -> None:
        """A run whose output nobody reads has credit for its last words when its time is over."""
        init = self.create(execution_timeout=5.0)
        self.reply(query(wait=0))
        while init.credit > 0:
            init.print(b"x" * 60_000)
            self.flow()
        self.advance(5)
        self.assertGreaterEqual(init.credit, module.LAST_WORDS)
        init.finish(137, reset=True)
        self.flow()
        reply = self.reply(poll())
        while reply.status is not RunStatus.FINISHED:
            self.assertEqual(reply.status, RunStatus.CONTINUED)
            reply = self.reply(poll())
        self.assertEqual(reply.exit_code, 124)

    def test_out_of_memory(self) -> None:
        """A run whose process was killed for want of memory has 137 and a sentence that names the limit."""
        init = self.create(memory=64 * MIB)
        answer = self.execute(query())
        init.hits = LimitHits(1, 0)
        init.finish(137, signal=9, reset=True)
        self.flow()
        reply = self.successResultOf(answer)
        self.assertEqual(reply.exit_code, 137)
        self.assertEqual(text_of(reply, "stderr"), "The kernel ran out of memory: its limit is 64 MiB.\n")

    def test_child_out_of_memory(self) -> None:
        """A run that outlived the loss of a child keeps its exit code, and is told."""
        init = self.create()
        answer = self.execute(query())
        init.hits = LimitHits(1, 0)
        init.finish(3)
        self.flow()
        reply = self.successResultOf(answer)
        self.assertEqual(reply.exit_code, 3)
        self.assertIn("out of memory", text_of(reply, "stderr"))

    def test_process_limit(self) -> None:
        """A run that hit the limit of processes is told, once."""
        init = self.create(processes=7)
        answer = self.execute(query())
        init.hits = LimitHits(0, 5)
        init.finish(1)
        self.flow()
        reply = self.successResultOf(answer)
        self.assertEqual(
            (reply.exit_code, text_of(reply, "stderr")), (1, "The kernel ran out of processes: its limit is 7.\n")
        )
        answer = self.execute(query())
        init.finish(0)
        self.flow()
        self.assertEqual(self.successResultOf(answer).console, ())

    def test_unknown_hits(self) -> None:
        """A host that cannot count accuses nobody."""
        init = self.create()
        init.hits = LimitHits(-1, -1)
        answer = self.execute(query())
        init.finish(0)
        self.flow()
        self.assertEqual(self.successResultOf(answer).console, ())

    def test_state_lost_between_runs(self) -> None:
        """When the runner died between two runs, the next run says so first."""
        init = self.create()
        init.say(frames.RESTARTED, {"reason": "killed by signal 9", "exit_code": 137, "signal": 9})
        self.flow()
        answer = self.execute(query())
        init.finish()
        self.flow()
        self.assertEqual(
            text_of(self.successResultOf(answer), "stderr"),
            "The kernel lost its in-memory state: killed by signal 9.\n",
        )

    def test_idle_timeout(self) -> None:
        """A kernel that nobody uses ends; use begins the time anew, a run that goes on stops it."""
        init = self.create(idle_timeout=10.0, execution_timeout=100.0)
        self.advance(9)
        answer = self.execute(query(wait=None))
        self.advance(50)
        init.finish()
        self.flow()
        self.successResultOf(answer)
        self.advance(9.9)
        self.assertEqual(init.kills, 0)
        self.advance(0.2)
        self.assertEqual(self.news.ended, [(self.kernel_id, "idle-timeout", USAGE)])
        self.failureResultOf(self.execute(query()), KernelNotFound)

    def test_idle_while_waiting_for_input(self) -> None:
        """A run that waits for a line that never comes does not keep its kernel."""
        init = self.create(idle_timeout=10.0)
        self.execute(query())
        init.wait_for_input()
        self.flow()
        self.advance(10.1)
        self.advance(10.1)
        self.assertEqual([reason for _id, reason, _usage in self.news.ended], ["idle-timeout"])
        reply = self.reply(poll())
        self.assertEqual((reply.status, reply.exit_code), (RunStatus.FINISHED, 130))

    def test_lifetime(self) -> None:
        """A kernel's lifetime ends it however busy it is."""
        init = self.create(lifetime=60.0)
        answer = self.execute(query(wait=None))
        self.advance(60)
        self.assertEqual(init.kills, 1)
        reply = self.successResultOf(answer)
        self.assertEqual((reply.status, reply.exit_code), (RunStatus.FINISHED, 130))
        self.assertIn("lifetime-exceeded", text_of(reply, "stderr"))
