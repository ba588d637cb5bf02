"""The output of kernels that have ended: read again until its time or the room is over."""

from __future__ import annotations

import uuid

from twisted.internet.defer import Deferred

from sorna.agent.runners import frames
from sorna.errors import KernelNotFound, OutputGone, RunNotFound
from sorna.model.limits import MIB, OutputBounds
from sorna.model.run import OutputRequest, RunReply, RunStatus
from tests.agent.fakes import FakeKernel, KernelTestCase, poll, query, text_of


class EndedTestCase(KernelTestCase):
    bounds = OutputBounds(size=2 * MIB, retention=400.0)

    def read(self, kernel_id: uuid.UUID | None = None, run_id: str = "r1", seq: int = 0) -> Deferred[RunReply]:
        request = OutputRequest(run_id, seq, seq)
        return self.start(self.kernels.read_output(kernel_id or self.kernel_id, request))

    def text(self, kernel_id: uuid.UUID | None = None, run_id: str = "r1") -> str:
        reply = self.successResultOf(self.read(kernel_id, run_id))
        self.assertEqual(reply.status, RunStatus.FINISHED)
        return text_of(reply)

    def run_one(self, init: FakeKernel, text: str | bytes, run_id: str = "r1") -> None:
        """Run something that prints and ends, and have its output polled."""
        self.execute(query("x", run_id, wait=0))
        init.print(text)
        init.finish()
        self.flow()
        self.reply(poll(run_id, wait=0))

    def end(self, size: int) -> uuid.UUID:
        """Let a kernel print so much, and end."""
        init = self.create()
        self.execute(query("x", "r1", wait=0))
        for _ in range(size // 60_000):
            init.print(b"x" * 60_000)
            self.flow()
        init.exit(1)
        self.flow()
        return self.kernel_id

    def is_kept(self, kernel_id: uuid.UUID) -> bool:
        found = self.read(kernel_id).addErrback(lambda failure: failure.trap(OutputGone))
        return isinstance(self.successResultOf(found), RunReply)


class KeptOutputTests(EndedTestCase):
    def test_read_again_after_the_end(self) -> None:
        """What was told already is read again, however the kernel ended, and whether the run had ended before or not."""
        for number, ending in enumerate(("destroyed", "idle-timeout", "crashed")):
            init = self.create()
            self.run_one(init, f"first {number}")
            self.execute(query("x", "r2", wait=0))
            init.print("second")
            self.flow()
            if ending == "destroyed":
                self.successResultOf(self.start(self.kernels.destroy_kernel(self.kernel_id, "user-requested")))
            elif ending == "crashed":
                init.exit(1)
            else:
                self.kernels.live()[self.kernel_id].end(ending)
            self.flow()
            for _ in range(2):
                self.assertEqual(self.text(), f"first {number}")
            reply = self.successResultOf(self.read(run_id="r2"))
            self.assertEqual((text_of(reply), reply.status), ("second", RunStatus.FINISHED))
            self.assertIn("kernel", text_of(reply, "stderr"))

    def test_poll_after_the_end(self) -> None:
        """A poll gets what it has not been told; then there is nothing left to ask for."""
        init = self.create()
        self.execute(query("x", "r1", wait=0))
        init.print("rest")
        init.exit(1)
        self.flow()
        self.assertEqual(text_of(self.reply(poll("r1"))), "rest")
        self.failureResultOf(self.execute(poll("r1")), KernelNotFound)

    def test_while_it_ends(self) -> None:
        """A kernel whose processes are still being killed is read, and a poll waits for the last of it."""
        init = self.create()
        self.execute(query("x", "r1", wait=0))
        init.print("a")
        self.flow()
        init.obedient = False
        destroyed = self.start(self.kernels.destroy_kernel(self.kernel_id, "x"))
        self.assertEqual(text_of(self.successResultOf(self.read())), "a")
        polled = self.execute(poll("r1"))
        self.assertNoResult(polled)
        self.failureResultOf(self.execute(query("new")), KernelNotFound)
        init.exit(-9)
        self.flow()
        self.successResultOf(destroyed)
        self.assertEqual(self.successResultOf(polled).status, RunStatus.FINISHED)

    def test_restart(self) -> None:
        """Runs of before a restart are read after it, and after the kernel's end."""
        init = self.create()
        self.run_one(init, "before")
        restarted = self.start(self.kernels.restart_kernel(self.kernel_id))
        answer = {"request": init.sent(frames.RESTART)[0]["request"], "error": None, "result": None}
        init.say(frames.REPLY, answer)
        self.flow()
        self.successResultOf(restarted)
        self.assertEqual(self.text(), "before")
        init.exit(0)
        self.flow()
        self.assertEqual(self.text(), "before")

    def test_other_runs(self) -> None:
        """A run that never was is told from one whose output is gone."""
        init = self.create()
        self.run_one(init, "x")
        init.exit(0)
        self.flow()
        self.failureResultOf(self.read(run_id="r9"), RunNotFound)
        self.advance(self.bounds.retention + 1)
        self.failureResultOf(self.read(), OutputGone)
        self.failureResultOf(self.read(run_id="r9"), RunNotFound)


class BoundsTests(EndedTestCase):
    def test_size(self) -> None:
        """The oldest kernels lose their output when there is too much, and not one more than needed."""
        ids = [self.end(600_000) for _ in range(6)]
        kept = [number for number, one in enumerate(ids) if self.is_kept(one)]
        self.assertEqual(kept, [3, 4, 5])
        self.failureResultOf(self.read(ids[0]), OutputGone)

    def test_time(self) -> None:
        """Output is kept as long as was configured, in a living kernel too, and then forgotten by itself."""
        ended = self.end(60_000)
        living = self.create()
        self.run_one(living, "x")
        self.advance(self.bounds.retention - 1)
        self.assertTrue(self.is_kept(ended))
        self.text()
        self.advance(2)
        self.failureResultOf(self.read(ended), OutputGone)
        self.failureResultOf(self.read(), OutputGone)

    def test_after_a_long_time(self) -> None:
        """A kernel is forgotten altogether, once another ends, when its retention is over."""
        first = self.end(60_000)
        self.advance(self.bounds.retention + 1)
        self.end(60_000)
        self.failureResultOf(self.read(first), KernelNotFound)


class FewKernelsTests(EndedTestCase):
    most_ended = 3

    def test_many_kernels(self) -> None:
        """However many end, so many are remembered, the newest."""
        ids = [self.end(60_000) for _ in range(5)]
        for one in ids[:2]:
            self.failureResultOf(self.read(one), KernelNotFound)
        self.assertTrue(all(self.is_kept(one) for one in ids[2:]))


class NothingKeptTests(EndedTestCase):
    bounds = OutputBounds(size=0)

    def test_nothing_is_kept(self) -> None:
        """With no room for it the output goes with its kernel."""
        init = self.create()
        self.run_one(init, "x")
        init.exit(1)
        self.flow()
        self.failureResultOf(self.read(), OutputGone)
