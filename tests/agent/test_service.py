"""The agent as a service: the order of its start and stop, and what happens when a part fails or hangs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock

from sorna.agent.channel import Channel
from sorna.agent.detection import Detection
from sorna.agent.devices import Devices
from sorna.agent.ended import EndedKernels
from sorna.agent.factory import KernelFactory
from sorna.agent.folder_watch import FolderWatch
from sorna.agent.heartbeat import AgentIdentity, Heart
from sorna.agent.interfaces import ConfinedKernel, SandboxSpec
from sorna.agent.kernels import Kernels
from sorna.agent.pool import Pool
from sorna.agent.service import AgentParts, AgentService
from sorna.errors import IsolationUnavailable
from sorna.model.agent import Heartbeat
from sorna.model.limits import Limits, OutputBounds
from sorna.testing.unit import UnitTestCase
from tests.agent.fakes import SocketClock


class Parts:
    """Parts that write down what is done to them."""

    name = "fake"
    storage = ""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.sandbox_error: Exception | None = None
        self.link_error: Exception | None = None
        self.gates: dict[str, Deferred[None]] = {}

    async def _pass(self, event: str) -> None:
        self.events.append(event)
        if event in self.gates:
            await self.gates[event]

    async def start(self) -> None:
        await self._pass("sandbox starts")
        if self.sandbox_error is not None:
            raise self.sandbox_error

    async def spawn(self, spec: SandboxSpec) -> ConfinedKernel:
        raise NotImplementedError

    def template(self, limits: Limits) -> Limits:
        return limits

    settled, held = True, 0

    def carry(self) -> Mapping[str, Any]:
        raise NotImplementedError

    async def take_over(self, state: Mapping[str, Any], channels: Mapping[str, int]) -> Mapping[str, ConfinedKernel]:
        raise NotImplementedError

    async def stop(self) -> None:
        await self._pass("sandbox stops")

    async def beat(self, heartbeat: Heartbeat, interval: float) -> None:
        self.events.append("beat")

    async def leave(self, agent_id: str) -> None:
        await self._pass("leave")


class Link(Service):
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def startService(self) -> None:
        super().startService()
        self._parts.events.append("link starts")
        if self._parts.link_error is not None:
            raise self._parts.link_error

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self._parts._pass("link stops"))


class AgentServiceTests(UnitTestCase):
    def setUp(self) -> None:
        self.clock: Clock = SocketClock()
        self.parts = Parts()
        self.failures: list[Exception] = []
        self.detected: Deferred[Detection] = Deferred()

        async def detect() -> Detection:
            return await self.detected

        self.service = AgentService(self.clock, detect, self.assemble, self.failures.append)
        self.addCleanup(lambda: self.assertEqual([call for call in self.clock.calls if call.active()], []))

    def assemble(self, detection: Detection) -> AgentParts:
        factory = KernelFactory(self.clock, self.parts, detection.runtimes, partial(Channel, SocketClock()))
        pool = Pool(self.clock, factory, 4)
        watch = FolderWatch(self.clock, Path("nowhere"), maybeDeferred)
        kernels = Kernels(
            self.clock,
            pool,
            detection.runtimes,
            4,
            watch,
            ended=EndedKernels(self.clock, OutputBounds()),
            devices=Devices(Path("nowhere"), hidden=True),
        )
        identity = AgentIdentity("i-1", "inc", "tcp://127.0.0.1:6011", "key", "fake")
        heart = Heart(self.clock, self.parts, kernels, identity)
        return AgentParts(self.parts, pool, kernels, Link(self.parts), heart)

    def start(self) -> Deferred[None]:
        self.service.startService()
        self.detected.callback(Detection({}, {}))
        return self.service.when_ready()

    def test_order(self) -> None:
        """An agent is announced when it serves, and withdrawn before anything stops."""
        ready = self.start()
        self.successResultOf(ready)
        self.assertEqual(self.parts.events, ["sandbox starts", "link starts", "beat"])
        self.parts.events.clear()
        self.successResultOf(self.service.stopService())
        self.assertEqual(self.parts.events, ["leave", "link stops", "sandbox stops"])

    def test_no_isolation(self) -> None:
        """An agent that cannot isolate does not start, and says why."""
        self.parts.sandbox_error = IsolationUnavailable("no namespaces")
        ready = self.start()
        self.failureResultOf(ready, IsolationUnavailable)
        self.assertEqual([type(error) for error in self.failures], [IsolationUnavailable])
        self.assertEqual(self.parts.events, ["sandbox starts", "sandbox stops"])
        self.successResultOf(self.service.stopService())

    def test_port_taken(self) -> None:
        """An agent that cannot listen takes down what it had started."""
        self.parts.link_error = OSError("taken")
        self.failureResultOf(self.start(), OSError)
        self.assertEqual(self.parts.events, ["sandbox starts", "link starts", "sandbox stops"])
        self.assertEqual(len(self.failures), 1)

    def test_stop_during_the_start(self) -> None:
        """Stopping while it starts ends both, and is no failure."""
        self.parts.gates["sandbox starts"] = Deferred()
        ready = self.start()
        self.successResultOf(self.service.stopService())
        self.failureResultOf(ready, RuntimeError)
        self.assertEqual(self.failures, [])
        self.assertEqual(self.parts.events, ["sandbox starts", "sandbox stops"])

    def test_stop_during_detection(self) -> None:
        """Stopping before the parts exist leaves nothing."""
        self.service.startService()
        ready = self.service.when_ready()
        self.successResultOf(self.service.stopService())
        self.failureResultOf(ready, RuntimeError)

    def test_start_that_hangs(self) -> None:
        """A start that hangs fails after its bound."""
        self.parts.gates["sandbox starts"] = Deferred()
        ready = self.start()
        self.clock.advance(60)
        self.failureResultOf(ready)
        self.assertEqual(len(self.failures), 1)

    def test_part_that_does_not_stop(self) -> None:
        """A part that hangs while it stops is left, and the others are stopped."""
        self.successResultOf(self.start())
        self.parts.gates["link stops"] = Deferred()
        stopped = self.service.stopService()
        self.assertNoResult(stopped)
        self.clock.advance(5)
        self.successResultOf(stopped)
        self.assertEqual(self.parts.events[-1], "sandbox stops")

    def test_stop_without_a_start(self) -> None:
        """Stopping what never started is nothing."""
        self.successResultOf(self.service.stopService())
