"""What administrators do with agents: explanations, and drains that hold whatever happens."""

from __future__ import annotations

import uuid
from typing import Any

from attrs import evolve

from sorna.errors import AgentTimeout, InvalidRequest, NoAgentAvailable, NotFound
from sorna.manager.agents import LONGEST_WAIT, UNDRAINED_TOPIC
from sorna.model.agent import Drain
from sorna.model.kernel import KernelStatus, short_id
from sorna.model.placement import Obstacle
from tests.manager.world import HEARTBEAT, INTERVAL, STRANGER, ManagerTestCase


class AgentTestCase(ManagerTestCase):
    """A manager whose agent tells in its heartbeats whether it refuses kernels."""

    def tell(self, *kernels: uuid.UUID, refuses: bool = False, **more: Any) -> None:
        """Let the agent beat."""
        held = frozenset(map(short_id, kernels))
        self.done(self.heartbeats.beat(evolve(HEARTBEAT, kernels=held, refuses_kernels=refuses, **more), INTERVAL))

    def told(self) -> list[bool]:
        """Give what the agent was told, and forget it."""
        told = [call[1] for call in self.agent.calls if call[0] == "drain"]
        self.agent.calls.clear()
        return told

    def drain(self, wait: float | None = None) -> None:
        """Drain the agent."""
        self.done(self.agent_administration.drain("i-1", wait))

    def status(self, kernel_id: uuid.UUID) -> tuple[KernelStatus, str]:
        """Give a kernel's status and reason."""
        kernel = self.done(self.kernels.by_id(kernel_id))
        assert kernel is not None
        return kernel.status, kernel.status_reason


class DrainTests(AgentTestCase):
    """Taking an agent out of service."""

    def test_no_new_kernels(self) -> None:
        """A drained agent gets no kernel, and the refusal says so; those that run go on."""
        kernel_id = self.make()
        self.drain()
        self.assertEqual(self.told(), [True])
        error = self.fails(self.registry.create(self.wish("token-2")), NoAgentAvailable)
        self.assertEqual(error.detail, "Every agent that could hold python3 is being drained.")
        self.assertEqual(self.status(kernel_id)[0], KernelStatus.RUNNING)
        self.assertEqual(self.used(), 1)

    def test_undone(self) -> None:
        """Afterwards it gets kernels again, and whoever supervises it is told."""
        heard: list[str] = []
        self.announcements.subscribe(UNDRAINED_TOPIC, heard.append)
        self.drain()
        self.tell(refuses=True)
        self.told()
        self.done(self.agent_administration.undo("i-1"))
        self.assertEqual((self.told(), heard), ([False], ["i-1"]))
        self.tell()
        self.make()

    def test_an_agent_that_does_not_know_is_told_again(self) -> None:
        """One that was not reached, or has been started anew, is told until its heartbeats say that it knows."""
        self.link._operations = {}
        self.drain()
        self.done(self.reaper.mend())
        self.assertEqual(self.told(), [])
        self.link._operations = {"i-1": self.agent}
        self.done(self.reaper.mend())
        self.assertEqual(self.told(), [True])
        self.tell(refuses=True)
        self.done(self.reaper.mend())
        self.assertEqual(self.told(), [])
        self.tell(incarnation="second")
        self.done(self.reaper.mend())
        self.assertEqual(self.told(), [True])

    def test_deadline(self) -> None:
        """Kernels that are left at the deadline are ended with a reason, and their quota is free."""
        kernels = [self.make(), self.make("token-2"), self.make(owner=STRANGER)]
        self.drain(60)
        self.clock.advance(59)
        self.tell(*kernels, refuses=True)
        self.done(self.reaper.mend())
        self.assertEqual(self.status(kernels[0])[0], KernelStatus.RUNNING)
        self.clock.advance(1)
        self.tell(*kernels, refuses=True)
        self.done(self.reaper.mend())
        for kernel_id in kernels:
            self.assertEqual(self.status(kernel_id), (KernelStatus.TERMINATED, "drained"))
        self.assertEqual((self.used(), self.used(STRANGER)), (0, 0))
        self.assertEqual(self.agent.kernels, set())

    def test_at_once(self) -> None:
        """Without any time to wait, kernels are ended by the command itself."""
        kernel_id = self.make()
        self.drain(0)
        self.assertEqual(self.status(kernel_id), (KernelStatus.TERMINATED, "drained"))

    def test_a_kernel_that_does_not_end(self) -> None:
        """One whose end fails does not keep the others; it is tried again."""
        kernels = [self.make(), self.make("token-2")]
        failing = iter([AgentTimeout("slow")])

        def fail_once() -> None:
            for error in failing:
                raise error

        self.agent.script["destroy_kernel"] = fail_once
        self.drain(0)
        self.flushLoggedErrors(AgentTimeout)
        statuses = sorted(self.status(kernel_id)[0] for kernel_id in kernels)
        self.assertEqual(statuses, [KernelStatus.TERMINATED, KernelStatus.TERMINATING])
        self.clock.advance(3)
        self.tell(*kernels, refuses=True)
        self.done(self.reaper.mend())
        self.assertEqual({self.status(kernel_id) for kernel_id in kernels}, {(KernelStatus.TERMINATED, "drained")})

    def test_refused(self) -> None:
        """Unknown agents and impossible times change nothing."""
        self.fails(self.agent_administration.drain("i-2", None), NotFound)
        self.fails(self.agent_administration.undo("i-2"), NotFound)
        for wait in (-1.0, float("nan"), float("inf"), LONGEST_WAIT + 1):
            self.fails(self.agent_administration.drain("i-1", wait), InvalidRequest)
        self.assertEqual(self.done(self.agents.drains()), {})

    def test_drained_again(self) -> None:
        """A second drain brings a new deadline."""
        self.drain(600)
        since = self.clock.seconds()
        self.clock.advance(1)
        self.drain()
        self.assertEqual(self.done(self.agents.drains()), {"i-1": Drain(since)})


class ExplainTests(AgentTestCase):
    """Why a kernel would go where."""

    def judged(self, runtime: str = "python", **wishes: Any) -> Any:
        """Give the judgement of the one agent."""
        given = {"cpu_cores": 0.0, "memory": 0, "gpus": None, "labels": (), **wishes}
        (judged,) = self.done(self.agent_administration.explain(runtime, **given))
        return judged

    def test_explained(self) -> None:
        """Aliases are understood; labels and devices count."""
        self.tell(labels={"zone": "a"})
        self.assertEqual((self.judged().place, self.judged(labels=["zone=a"]).place), (1, 1))
        other = self.judged("golang", labels=["zone=b"])
        self.assertEqual([obstacle for obstacle, _ in other.obstacles], [Obstacle.RUNTIME, Obstacle.LABEL])
        self.assertEqual(other.obstacles[1][1], "lacks the label zone=b")

    def test_refused(self) -> None:
        """What nobody can ask for is refused with its name."""
        for wrong in (
            {"runtime": "cobol"},
            {"cpu_cores": -1.0},
            {"memory": -1},
            {"gpus": -1},
            {"labels": ["zone"]},
            {"labels": [f"k{number}=v" for number in range(33)]},
        ):
            given = {"runtime": "python", "cpu_cores": 0.0, "memory": 0, "gpus": None, "labels": (), **wrong}
            self.fails(self.agent_administration.explain(**given), InvalidRequest)  # type: ignore[arg-type]
