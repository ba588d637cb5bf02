"""The registry: sharing, places, refusals, news, and what is remembered of kernels that are gone."""

from __future__ import annotations

import uuid
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import provider

from sorna.agent import ended, factory
from sorna.agent import kernels as module
from sorna.errors import AgentFailed, InvalidRequest, KernelNotFound, NoAgentAvailable, RuntimeUnknown
from sorna.model.agent import Room
from sorna.model.limits import MIB
from sorna.model.run import OutputRequest
from tests.agent.fakes import USAGE, KernelTestCase, News, query, spec


class CreateTests(KernelTestCase):
    """Creating."""

    def make(self, number: int, runtime: str = "python3", **environ: str) -> Deferred[Any]:
        order = spec(runtime)
        if environ:
            order = spec(runtime).__class__("AKIA", "t", runtime, runtime, order.limits, environ)
        return self.start(self.kernels.create_kernel(uuid.UUID(int=number), order))

    def test_concurrent_creates_share(self) -> None:
        """Creates of one id make one kernel; a caller that is cancelled does not end it for the other."""
        self.sandbox.slow = Deferred()
        first, second = self.make(5), self.make(5)
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.sandbox.slow.callback(None)
        self.flow()
        self.successResultOf(second)
        self.successResultOf(self.make(5))
        self.assertEqual((len(self.sandbox.kernels), self.kernels.occupied), (1, 1))

    def test_answered_before_it_is_written_down(self) -> None:
        """Whoever waits for a kernel, or for its end, does not wait for the log's line, which comes all the same."""
        happened: list[str] = []

        @provider(ILogObserver)
        def observe(event: LogEvent) -> None:
            if event["log_namespace"] == "sorna.agent.kernels.Kernels":
                happened.append(formatEvent(event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        self.sandbox.slow = Deferred()
        self.make(5).addCallback(lambda _: happened.append("made"))
        self.sandbox.slow.callback(None)
        self.flow()
        [confined] = self.sandbox.kernels
        confined.obedient = False
        ending = self.start(self.kernels.destroy_kernel(uuid.UUID(int=5), "x"))
        ending.addCallback(lambda _: happened.append("ended"))
        confined.exit(-9)
        self.flow()
        made, ready, ended_, over = happened
        self.assertEqual((made, ended_), ("made", "ended"))
        self.assertIn("is ready after", ready)
        self.assertIn("has ended: x", over)

    def test_slow_start_delays_nobody(self) -> None:
        """Another kernel is made while one is slow."""
        slow: Deferred[None] = Deferred()
        self.sandbox.slow = slow
        first = self.make(5)
        self.sandbox.slow = None
        self.successResultOf(self.make(6))
        self.assertNoResult(first)
        slow.callback(None)
        self.flow()
        self.successResultOf(first)

    def test_places(self) -> None:
        """No more kernels than places, those that come and go included."""
        for number in range(self.max_kernels):
            self.successResultOf(self.make(number + 5))
        self.failureResultOf(self.make(50), NoAgentAvailable)
        self.sandbox.kernels[0].obedient = False
        self.start(self.kernels.destroy_kernel(uuid.UUID(int=5), "x"))
        self.failureResultOf(self.make(50), NoAgentAvailable)
        self.sandbox.kernels[0].exit(-9)
        self.successResultOf(self.make(50))

    def test_room(self) -> None:
        """No more is promised than there is room for, by whichever managers; what has failed or ended gives its part back."""
        self.kernels.room = Room(memory=1024 * MIB, cpu_millis=3000)
        for number in (5, 6):
            self.successResultOf(self.make(number))
        refused = self.failureResultOf(self.make(7), NoAgentAvailable).value
        self.assertIn("memory: 1024 of 1024 MiB taken, 512 MiB asked for", refused.detail)
        self.start(self.kernels.destroy_kernel(uuid.UUID(int=5), "x"))
        self.sandbox.broken = AgentFailed("no memory")
        self.agent_failed(self.make(8))
        self.sandbox.broken = None
        self.successResultOf(self.make(9))
        self.failureResultOf(self.make(10), NoAgentAvailable)

    def test_refusals(self) -> None:
        """What cannot be is refused before anything is made."""
        self.failureResultOf(self.make(5, "cobol"), RuntimeUnknown)
        self.failureResultOf(self.make(5, **{"A=B": "x"}), InvalidRequest)
        self.failureResultOf(self.make(5, A="x\0"), InvalidRequest)
        self.failureResultOf(self.make(5, A="x" * 70_000), InvalidRequest)
        self.assertEqual(self.sandbox.kernels, [])

    def test_broken_tier(self) -> None:
        """Whatever the tier raises, the caller gets an AgentFailed and the place is free."""
        self.sandbox.broken = AgentFailed("no memory")
        self.assertEqual(self.agent_failed(self.make(5)).detail, "no memory")
        self.sandbox.broken = OSError(12, "x")
        error = self.agent_failed(self.make(5))
        self.assertIn("OSError(12, 'x')", error.exception or "")
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
        self.assertEqual(self.kernels.occupied, 0)

    def test_tier_that_hangs(self) -> None:
        """A tier that does not answer is given up."""
        self.sandbox.slow = Deferred()
        made = self.make(5)
        self.advance(factory.SPAWN_DEADLINE)
        self.agent_failed(made)
        self.assertEqual(self.kernels.occupied, 0)

    def test_ended_id_is_not_made_again(self) -> None:
        """A late repetition of a create does not bring a dead kernel back."""
        self.successResultOf(self.make(5))
        self.sandbox.kernels[0].exit(1)
        self.assertIn("crashed", self.agent_failed(self.make(5)).detail)

    def test_destroy_while_it_is_made(self) -> None:
        """A destroy waits for the creation, then ends the kernel; of a failed creation nothing is left to destroy."""
        for works in (True, False):
            self.sandbox.slow = slow = Deferred[None]()
            made = self.make(5 + works)
            destroyed = self.start(self.kernels.destroy_kernel(uuid.UUID(int=5 + works), "x"))
            self.assertNoResult(destroyed)
            self.sandbox.broken = None if works else AgentFailed("broken")
            slow.callback(None)
            self.flow()
            if works:
                self.assertEqual(self.successResultOf(destroyed), USAGE)
            else:
                self.failureResultOf(destroyed, KernelNotFound)
                self.agent_failed(made)


class EndedTests(KernelTestCase):
    """What is told and remembered of ends."""

    def test_news_is_kept_for_a_late_listener(self) -> None:
        """Ends before anybody listens are told later, in order."""
        kernels = self.kernels
        kernels._news = None
        self.create().exit(1)
        first = self.kernel_id
        self.create().exit(-9)
        news = News()
        kernels.report_to(news)
        self.assertEqual([kernel_id for kernel_id, _reason, _usage in news.ended], [first, self.kernel_id])

    def test_memory_of_ends_is_bounded(self) -> None:
        """Old ends are forgotten after their retention."""
        self.create()
        old = self.kernel_id
        self.sandbox.kernels[-1].exit(1)
        self.advance(ended.LEAST_RETENTION + 1)
        self.create()
        self.sandbox.kernels[-1].exit(1)
        self.failureResultOf(self.start(self.kernels.destroy_kernel(old, "x")), KernelNotFound)
        self.assertEqual(self.successResultOf(self.start(self.kernels.destroy_kernel(self.kernel_id, "x"))), USAGE)

    def test_unknown_kernel(self) -> None:
        """Every operation on an unknown kernel says so."""
        nobody = uuid.UUID(int=77)
        kernels = self.kernels
        for operation in (
            kernels.execute(nobody, query()),
            kernels.restart_kernel(nobody),
            kernels.interrupt(nobody),
            kernels.complete(nobody, "", {}),
            kernels.upload(nobody, "x", b""),
            kernels.read_output(nobody, OutputRequest("x", 0, 0)),
            kernels.list_files(nobody, ".", recursive=False),
            kernels.read_file(nobody, "x", 0, 1),
            kernels.usage(nobody),
            kernels.logs(nobody),
            kernels.destroy_kernel(nobody, "x"),
        ):
            self.failureResultOf(Deferred.fromCoroutine(operation), KernelNotFound)

    def test_stop(self) -> None:
        """Stopping ends every kernel as news, answers waiting calls, and takes no new kernel."""
        self.create()
        answer = self.execute(query())
        slow: Deferred[None] = Deferred()
        self.sandbox.slow = slow
        made = self.start(self.kernels.create_kernel(uuid.UUID(int=50), spec()))
        stopped = self.start(self.kernels.stop())
        self.assertNoResult(stopped)
        slow.callback(None)
        self.flow()
        self.successResultOf(stopped)
        self.successResultOf(made)
        self.assertEqual(self.successResultOf(answer).exit_code, 130)
        self.assertEqual([reason for _id, reason, _usage in self.news.ended], ["agent-stopped"] * 2)
        self.failureResultOf(self.start(self.kernels.create_kernel(uuid.UUID(int=51), spec())), NoAgentAvailable)

    def test_stop_with_a_kernel_that_stays(self) -> None:
        """Stopping gives up on processes that do not end."""
        self.create().obedient = False
        stopped = self.start(self.kernels.stop())
        self.advance(module.DESTROY_DEADLINE)
        self.successResultOf(stopped)
