"""Reading the output of kernels that have ended: who may, through which manager, and what is said when it is gone."""

from __future__ import annotations

import uuid

from attrs import evolve

from sorna.errors import (
    AgentTimeout,
    InvalidRequest,
    KernelCreationFailed,
    KernelExecutionFailed,
    KernelNotFound,
    OutputGone,
    RunNotFound,
    Unavailable,
)
from sorna.live.memory import MemoryLiveKernels, MemoryRedis
from sorna.manager.interfaces import KernelEnded
from sorna.manager.places import Places
from sorna.manager.registry import Registry
from sorna.model.agent import AgentAddress
from sorna.model.kernel import Kernel, KernelStatus, Usage, short_id
from sorna.model.run import OutputRequest, RunMode, RunReply, RunRequest
from tests.cluster.scripted import REPLY
from tests.manager.world import HEARTBEAT, INTERVAL, OWNER, STRANGER, ManagerTestCase

READ = OutputRequest("run-1", 0, 0)
POLL = RunRequest(RunMode.CONTINUE, run_id="run-1")


class EndedOutputTests(ManagerTestCase):
    """The agent remembers the kernel; everybody else has forgotten it."""

    def setUp(self) -> None:
        super().setUp()
        self.kernel_id = self.make()
        self.reference = short_id(self.kernel_id)
        self.done(self.registry.destroy(OWNER, self.reference))
        self.agent.kernels.add(self.kernel_id)
        self.agent.calls.clear()

    def read(self, owner: str = OWNER, reference: str = "", registry: Registry | None = None) -> RunReply:
        return self.done((registry or self.registry).read_output(owner, reference or self.reference, READ))

    def test_the_owner_reads(self) -> None:
        """By either spelling of the id and by the token; a stranger finds nothing, as before."""
        for reference in (self.reference, str(self.kernel_id), "token-1"):
            self.assertEqual(self.read(reference=reference), REPLY)
            self.fails(self.registry.read_output(STRANGER, reference, READ), KernelNotFound)
        self.assertEqual([call[:2] for call in self.agent.calls], [("read_output", self.kernel_id)] * 3)

    def test_the_token_has_a_new_kernel(self) -> None:
        """A session that was made again is the new kernel; the old one is still there by its id."""
        second = self.make()
        self.read(reference="token-1")
        self.read()
        self.assertEqual([call[1] for call in self.agent.calls[-2:]], [second, self.kernel_id])

    def test_another_manager(self) -> None:
        """Any manager reads it from the row alone: one that was started later, with a Redis that knows nothing."""
        live = MemoryLiveKernels(MemoryRedis(self.clock))
        other = evolve(self.registry, live=live, places=Places(self.clock, self.kernels, live, self.directory))
        self.assertEqual(self.read(registry=other), REPLY)

    def test_a_manager_that_did_not_hear(self) -> None:
        """One that takes the kernel for alive gets the same output, and finds out when there is none any more."""
        self.done(self.live.add(self.row(), AgentAddress("i-1", HEARTBEAT.endpoint, HEARTBEAT.public_key)))
        self.done(self.registry.places.look(OWNER, self.reference))
        self.assertEqual(self.read(), REPLY)
        self.agent.kernels.clear()
        self.fails(self.registry.read_output(OWNER, self.reference, READ), OutputGone)

    def row(self) -> Kernel:
        found = self.done(self.kernels.by_id(self.kernel_id))
        assert found is not None
        return found

    def test_polls(self) -> None:
        """What only asks how a run goes on is answered; anything else wants a kernel that lives."""
        execute = self.registry.execute
        for request in (POLL, RunRequest(RunMode.QUERY), RunRequest(RunMode.BATCH, build="*", exec="*")):
            self.assertEqual(self.done(execute(OWNER, self.reference, request)), REPLY)
            self.fails(execute(STRANGER, self.reference, request), KernelNotFound)
        self.agent.calls.clear()
        for request in (RunRequest(RunMode.QUERY, "new code"), RunRequest(RunMode.INPUT, "line")):
            error = self.fails(execute(OWNER, self.reference, request), KernelNotFound)
            self.assertIn("user-requested", error.detail)
        self.assertEqual(self.agent.calls, [])

        def unknown() -> None:
            raise InvalidRequest("No run of this session has this run id.")

        self.agent.script["execute"] = unknown
        self.fails(execute(OWNER, self.reference, POLL), KernelNotFound)

    def test_not_kept(self) -> None:
        """When the agent has forgotten the kernel, it is said that the output is gone, and how the kernel ended."""
        self.agent.kernels.clear()
        error = self.fails(self.registry.read_output(OWNER, self.reference, READ), OutputGone)
        self.assertIn("not kept any more", error.detail)
        self.assertIn("user-requested", error.detail)
        self.fails(self.registry.execute(OWNER, self.reference, POLL), KernelNotFound)

    def test_agent_gone(self) -> None:
        """The output of an agent that is gone is gone, and that is said."""
        self.clock.advance(2 * INTERVAL)
        error = self.fails(self.registry.read_output(OWNER, self.reference, READ), OutputGone)
        self.assertIn("agent is gone", error.detail)

    def test_agent_in_trouble(self) -> None:
        """An agent that does not answer is no reason to say that output is gone."""

        def late() -> None:
            raise AgentTimeout

        self.agent.script["read_output"] = late
        self.fails(self.registry.read_output(OWNER, self.reference, READ), KernelExecutionFailed)
        self.redis.available = False
        self.fails(self.registry.read_output(OWNER, self.reference, READ), Unavailable)

    def test_never_there(self) -> None:
        """A kernel that nobody had is not found; one that no agent made never had a run."""
        self.fails(self.registry.read_output(OWNER, short_id(uuid.uuid4()), READ), KernelNotFound)

        def refuse() -> None:
            raise AgentTimeout

        self.agent.script["create_kernel"] = refuse
        self.fails(self.registry.create(self.wish("token-9")), KernelCreationFailed)
        self.fails(self.registry.read_output(OWNER, "token-9", READ), RunNotFound)


class EndingTests(ManagerTestCase):
    """Kernels that are asked something at the moment of their end."""

    def test_a_call_while_it_is_destroyed(self) -> None:
        """A call that comes too late for a kernel that is being destroyed does not take its reason and its usage away."""
        kernel_id = self.make()
        change = self.kernels.change_status(kernel_id, KernelStatus.TERMINATING, "user-requested", 1.0)
        self.assertIsNotNone(self.done(change))
        self.agent.kernels.clear()
        self.fails(self.registry.logs(OWNER, short_id(kernel_id)), KernelNotFound)
        ended = KernelEnded("i-1", kernel_id, "user-requested", Usage(cpu_used=7.0))
        self.done(self.ending.on_kernel_ended(ended))
        row = self.done(self.kernels.by_id(kernel_id))
        assert row is not None
        self.assertEqual((row.status_reason, row.usage.cpu_used), ("user-requested", 7.0))

    def test_a_call_before_the_news(self) -> None:
        """A call that meets a kernel which has just died leaves it to the agent's news to say why, and what it used."""
        kernel_id = self.make()
        restart = self.registry.restart(OWNER, short_id(kernel_id))

        def gone() -> None:
            raise KernelNotFound

        for method, work in (("logs", self.registry.logs(OWNER, short_id(kernel_id))), ("restart_kernel", restart)):
            self.agent.script[method] = gone
            self.fails(work, KernelNotFound)
            self.agent.kernels.add(kernel_id)  # that is: remembered
        row = self.done(self.kernels.by_id(kernel_id))
        assert row is not None
        self.assertFalse(row.status.final)
        self.done(self.ending.on_kernel_ended(KernelEnded("i-1", kernel_id, "out-of-memory", Usage(cpu_used=7.0))))
        row = self.done(self.kernels.by_id(kernel_id))
        assert row is not None
        self.assertEqual((row.status_reason, row.usage.cpu_used), ("out-of-memory", 7.0))

    def test_limits_and_idle_timeout(self) -> None:
        """A kernel that its agent ended is read like one that was destroyed."""
        for reason in ("out-of-memory", "idle-timeout"):
            kernel_id = self.make(f"token-{reason}")
            self.done(self.ending.on_kernel_ended(KernelEnded("i-1", kernel_id, reason, Usage())))
            self.assertEqual(self.done(self.registry.read_output(OWNER, short_id(kernel_id), READ)), REPLY)
