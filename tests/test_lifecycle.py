"""The lifecycle of services, readiness and detached work."""

from __future__ import annotations

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from sorna.lifecycle import Draining, Operations, OperationsStopped, OrderedServices, Readiness
from sorna.testing.unit import UnitTestCase


class RecordingService(Service):
    """Writes down when it stops, after a Deferred of the test's."""

    def __init__(self, name: str, journal: list[str], gate: Deferred[None] | None = None) -> None:
        self.label = name
        self.journal = journal
        self.gate = gate

    def stopService(self) -> Deferred[None] | None:
        self.journal.append(f"stop {self.label}")
        if self.gate is not None:
            return self.gate.addCallback(lambda _: self.journal.append(f"stopped {self.label}"))
        return None


class OrderedServicesTests(UnitTestCase):
    """Stopping goes one by one in reverse."""

    def test_reverse_order_one_after_another(self) -> None:
        """The first service stops only when the one after it has stopped."""
        journal: list[str] = []
        gate: Deferred[None] = Deferred()
        services = OrderedServices(Clock())
        services.addService(RecordingService("first", journal))
        services.addService(RecordingService("second", journal, gate))
        services.startService()
        stopped = services.stopService()
        self.assertEqual(journal, ["stop second"])
        gate.callback(None)
        self.successResultOf(stopped)
        self.assertEqual(journal, ["stop second", "stopped second", "stop first"])

    def test_stuck_service_is_given_up(self) -> None:
        """A service that never stops holds the others up for the timeout only, and is named in the log."""
        journal: list[str] = []
        clock = Clock()
        services = OrderedServices(clock, stop_timeout=5)
        services.addService(RecordingService("first", journal))
        services.addService(RecordingService("stuck", journal, Deferred()))
        services.startService()
        stopped = services.stopService()
        clock.advance(5)
        self.successResultOf(stopped)
        self.assertEqual(journal, ["stop stuck", "stop first"])
        self.assertEqual(len(self.flushLoggedErrors()), 1)


class ReadinessTests(UnitTestCase):
    """Readiness is the absence of anything that is waited for."""

    def test_waits_for_every_part(self) -> None:
        """It is ready when all that was expected arrived, and not ready again when one goes."""
        readiness = Readiness()
        self.assertTrue(readiness.is_ready)
        readiness.expect("PostgreSQL", "connecting")
        readiness.expect("agent", "no heartbeat yet")
        self.assertEqual(readiness.reason, "PostgreSQL: connecting; agent: no heartbeat yet")
        readiness.arrived("PostgreSQL")
        self.assertFalse(readiness.is_ready)
        readiness.arrived("agent")
        self.assertTrue(readiness.is_ready)
        readiness.expect("PostgreSQL", "gone")
        self.assertFalse(readiness.is_ready)


class OperationsTests(UnitTestCase):
    """Detached work outlives its caller."""

    def test_result_reaches_the_caller(self) -> None:
        """The Deferred fires with the coroutine's result."""
        gate: Deferred[int] = Deferred()

        async def work() -> int:
            return await gate + 1

        waiting = Operations().detach(work())
        self.assertNoResult(waiting)
        gate.callback(1)
        self.assertEqual(self.successResultOf(waiting), 2)

    def test_cancelled_caller_leaves_the_work_running(self) -> None:
        """The work goes on to its end after the caller's Deferred was cancelled."""
        gate: Deferred[None] = Deferred()
        journal: list[str] = []

        async def work() -> None:
            await gate
            journal.append("done")

        operations = Operations()
        waiting = operations.detach(work())
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        gate.callback(None)
        self.assertEqual(journal, ["done"])

    def test_error_without_a_caller_is_logged(self) -> None:
        """An error nobody waits for is logged once."""
        gate: Deferred[None] = Deferred()

        async def work() -> None:
            await gate
            raise ValueError("boom")

        waiting = Operations().detach(work())
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        gate.callback(None)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_drain_waits_for_all_and_refuses_more(self) -> None:
        """Draining ends with the last piece of work, and new work is refused from then on."""
        gates: list[Deferred[None]] = [Deferred(), Deferred()]

        async def work(gate: Deferred[None]) -> None:
            await gate

        operations = Operations()
        for gate in gates:
            operations.detach(work(gate))
        draining = Draining(operations).stopService()
        refused = operations.detach(work(Deferred()))
        self.failureResultOf(refused, OperationsStopped)
        gates[0].callback(None)
        self.assertNoResult(draining)
        gates[1].callback(None)
        self.successResultOf(draining)
