"""An isolation tier without processes, whose kernels' init is played by the test, and a clock that is a reactor for sockets.

The channel is a real socket pair, so what the tests see is what the reactor would see; only time and readiness are driven
by hand.
"""

from __future__ import annotations

import json
import os
import select
import socket
import tempfile
import uuid
from collections.abc import Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from attrs import evolve
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor, IWriteDescriptor
from twisted.internet.task import Clock
from zope.interface import implementer

from sorna.agent.channel import Channel
from sorna.agent.detection import DetectedRuntime
from sorna.agent.devices import Devices
from sorna.agent.ended import EndedKernels
from sorna.agent.factory import KernelFactory
from sorna.agent.folder_watch import FolderWatch
from sorna.agent.interfaces import KernelExit, LimitHits, SandboxSpec
from sorna.agent.kernels import Kernels
from sorna.agent.languages import RUNTIMES
from sorna.agent.pool import Pool
from sorna.agent.runners import frames, repl_link
from sorna.agent.runners.frames import FrameReader, pack_frame
from sorna.errors import AgentFailed
from sorna.model.kernel import KernelSpec, Usage
from sorna.model.limits import Limits, OutputBounds
from sorna.model.run import RunMode, RunReply, RunRequest
from sorna.testing.unit import UnitTestCase

T = TypeVar("T")
USAGE = Usage(cpu_used=12.5, mem_max_bytes=4096)


@implementer(IReactorFDSet)
class SocketClock(Clock):
    """A clock that also serves descriptors, when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: set[IReadDescriptor] = set()
        self.writers: set[IWriteDescriptor] = set()

    def addReader(self, reader: IReadDescriptor) -> None:
        self.readers.add(reader)

    def addWriter(self, writer: IWriteDescriptor) -> None:
        self.writers.add(writer)

    def removeReader(self, reader: IReadDescriptor) -> None:
        self.readers.discard(reader)

    def removeWriter(self, writer: IWriteDescriptor) -> None:
        self.writers.discard(writer)

    def removeAll(self) -> list[Any]:
        gone = [*self.readers, *self.writers]
        self.readers.clear()
        self.writers.clear()
        return gone

    def getReaders(self) -> list[IReadDescriptor]:
        return list(self.readers)

    def getWriters(self) -> list[IWriteDescriptor]:
        return list(self.writers)

    def serve(self) -> bool:
        """Serve what is ready now; tell whether anything was."""
        readable, writable, _ = select.select(list(self.readers), list(self.writers), [], 0)
        for reader in readable:
            if reader in self.readers:
                reader.doRead()
        for writer in writable:
            if writer in self.writers:
                writer.doWrite()
        return bool(readable or writable)


class FakeKernel:
    """A confined kernel without a process; the test plays its init.

    :ivar received: every frame that the agent sent, as ``(kind, payload)``.
    :ivar obedient: whether ``kill`` ends it at once.
    """

    own_network = True

    def __init__(self, spec: SandboxSpec, *, unadjustable: bool = False) -> None:
        self.spec = spec
        self.unadjustable = unadjustable
        self.kernel_id = spec.kernel_id
        self.pid = 4242
        self.channel, self.peer = socket.socketpair()
        self.channel.setblocking(False)
        self.peer.setblocking(False)
        self.exited: Deferred[KernelExit] = Deferred()
        self.received: list[tuple[int, bytes]] = []
        self.credit = 0
        self.answers_ready = True
        self.obedient = True
        self.reads = True
        self.kills = 0
        self.computed = 0.0
        self.gone = False
        self.adjusted: list[Limits] = []
        self.hits = LimitHits(0, 0)
        self._reader = FrameReader()
        self.lane: FakeLane | None = None
        self.has_lanes = False

    def usage(self) -> Usage:
        return evolve(USAGE, cpu_used=USAGE.cpu_used + 1000 * self.computed)

    def limit_hits(self) -> LimitHits:
        return self.hits

    def adjust(self, limits: Limits) -> None:
        if self.unadjustable:
            raise AgentFailed("limits")
        self.adjusted.append(limits)

    def kill(self) -> None:
        self.kills += 1
        if self.obedient:
            self.exit(-9)

    def exit(self, status: int, *, out_of_memory: bool = False) -> None:
        """Let every process be gone."""
        if not self.gone:
            self.gone = True
            if self.lane is not None:
                self.lane.socket.close()
            self.peer.close()
            self.exited.callback(KernelExit(status, out_of_memory, USAGE))

    def read(self) -> bool:
        """Read what the agent sent; tell whether there was anything."""
        if self.gone or not self.reads:
            return False
        anything = self._read_channel()
        return (self.lane is not None and self.lane.read()) or anything

    def _read_channel(self) -> bool:
        try:
            chunk, found, _flags, _address = socket.recv_fds(self.peer, 1 << 20, 1)
        except BlockingIOError:
            return False
        for kind, payload in self._reader.feed(chunk):
            self.received.append((kind, payload))
            if kind == frames.LANE and self.has_lanes:
                self.lane = FakeLane(socket.socket(fileno=found.pop()))
            elif kind == frames.CREDIT:
                self.credit += int.from_bytes(payload, "big")
            elif kind == frames.CONFIGURE:
                self.credit += json.loads(payload)["credit"]
                if self.answers_ready:
                    self.say(frames.READY, {"pid": 1})
        for descriptor in found:
            os.close(descriptor)
        return bool(chunk)

    def sent(self, kind: int) -> list[Any]:
        """Give the JSON of every frame of a kind that the agent sent."""
        return [json.loads(payload) for one, payload in self.received if one == kind]

    def run(self) -> str:
        """Give the wire id of the latest run."""
        wire_id: str = self.sent(frames.RUN)[-1]["run"]
        return wire_id

    def say(self, kind: int, content: Mapping[str, Any] | bytes) -> None:
        """Send a frame to the agent; ``run`` is filled in where it belongs."""
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        if kind in frames.OUTPUT_KINDS:
            self.credit -= len(content)
        self.peer.send(pack_frame(kind, content))

    def print(self, text: str | bytes, kind: int = frames.STDOUT) -> None:
        """Print."""
        self.say(kind, text.encode() if isinstance(text, str) else text)

    def finish(self, exit_code: int | None = 0, **more: Any) -> None:
        """Finish the latest run."""
        frame = {"run": self.run(), "exit_code": exit_code, "exceptions": [], "files": [], "reset": False, **more}
        self.say(frames.FINISHED, frame)

    def wait_for_input(self, **more: Any) -> None:
        """Let the latest run wait for input."""
        self.say(frames.WAITING_INPUT, {"run": self.run(), "is_password": False, **more})


class FakeLane:
    """A REPL's end of a lane; the test plays the REPL.

    :ivar received: every frame that the agent sent, as ``(kind, payload)``.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.setblocking(False)
        self.received: list[tuple[int, bytes]] = []
        self._reader = FrameReader()
        self.say(repl_link.WARM, b"")

    def read(self) -> bool:
        """Read what the agent sent; tell whether there was anything."""
        try:
            chunk = self.socket.recv(1 << 20)
        except OSError:
            return False
        self.received += self._reader.feed(chunk)
        return bool(chunk)

    def say(self, kind: int, payload: bytes) -> None:
        """Send a frame."""
        self.socket.send(pack_frame(kind, payload))

    def end(self, words: str = "", **more: Any) -> None:
        """End the latest run."""
        run = self.received[-1][1].partition(b"\0")[0].decode()
        frame = {"run": run, "exit_code": 0, "exceptions": [], "files": [], "reset": False, **more}
        self.say(repl_link.ENDED, json.dumps(frame).encode() + b"\0" + words.encode())


class FakeSandbox:
    """A tier whose kernels are :class:`FakeKernel`.

    :ivar has_lanes: whether their init hands lanes on.
    """

    name = "fake"
    storage = "storage-1"

    def __init__(self) -> None:
        self.kernels: list[FakeKernel] = []
        self.slow: Deferred[None] | None = None
        self.broken: Exception | None = None
        self.answers_ready = True
        self.has_lanes = False
        self.unadjustable = False
        self.stopped = False
        self.given: list[FakeKernel] = []

    async def start(self) -> None:
        if self.broken is not None:
            raise self.broken

    async def spawn(self, spec: SandboxSpec) -> FakeKernel:
        if self.slow is not None:
            await self.slow
        if self.broken is not None:
            raise self.broken
        kernel = FakeKernel(spec, unadjustable=self.unadjustable)
        kernel.answers_ready, kernel.has_lanes = self.answers_ready, self.has_lanes
        self.kernels.append(kernel)
        return kernel

    def template(self, limits: Limits) -> Limits:
        return evolve(limits, memory=Limits().memory, execution_timeout=Limits().execution_timeout)

    settled = True

    @property
    def held(self) -> int:
        return sum(not kernel.gone for kernel in self.kernels)

    def carry(self) -> Mapping[str, Any]:
        return {"kernels": [kernel.kernel_id for kernel in self.kernels if not kernel.gone]}

    async def take_over(self, state: Mapping[str, Any], channels: Mapping[str, int]) -> Mapping[str, FakeKernel]:
        """Hold kernels whose init the test goes on to play."""
        for kernel in self.given:
            kernel.channel = socket.socket(fileno=channels[kernel.kernel_id])
            kernel.exited = Deferred()
            self.kernels.append(kernel)
        return {kernel.kernel_id: kernel for kernel in self.given if kernel.kernel_id in state["kernels"]}

    async def stop(self) -> None:
        self.stopped = True
        for kernel in self.kernels:
            kernel.exit(-9)


class News:
    """Remembers what ended."""

    def __init__(self) -> None:
        self.ended: list[tuple[uuid.UUID, str, Usage]] = []

    def kernel_ended(self, kernel_id: uuid.UUID, reason: str, usage: Usage) -> None:
        self.ended.append((kernel_id, reason, usage))


def spec(runtime: str = "python3", **limits: Any) -> KernelSpec:
    """Give what a manager asks for."""
    return KernelSpec("AKIA", "token", runtime, runtime, evolve(Limits(), **limits))


def query(code: str = "1", run_id: str | None = None, wait: float | None = 2.0) -> RunRequest:
    """Give a call in query mode."""
    return RunRequest(RunMode.QUERY, code, run_id, wait=wait)


def poll(run_id: str | None = None, wait: float | None = 2.0) -> RunRequest:
    """Give a call in continue mode."""
    return RunRequest(RunMode.CONTINUE, run_id=run_id, wait=wait)


def typed(text: str, run_id: str | None = None, wait: float | None = 2.0) -> RunRequest:
    """Give a call in input mode."""
    return RunRequest(RunMode.INPUT, text, run_id, wait=wait)


def text_of(reply: RunReply, stream: str = "stdout") -> str:
    """Give what a reply's console has of a stream."""
    return "".join(content for kind, content in reply.console if kind == stream)


class KernelTestCase(UnitTestCase):
    """A :class:`Kernels` on the fake tier."""

    max_kernels = 4
    most_ready = 0
    most_ended = 100
    bounds = OutputBounds()

    def setUp(self) -> None:
        self.clock = SocketClock()
        self.sandbox = FakeSandbox()
        self.news = News()
        runtimes = {
            name: DetectedRuntime(RUNTIMES[name], {"PATH": "/usr/bin", "SORNA_TOOL": "/usr/bin/tool"})
            for name in ("python3", "c", "java")
        }
        factory = KernelFactory(self.clock, self.sandbox, runtimes, partial(Channel, self.clock))
        self.pool = Pool(self.clock, factory, self.most_ready)
        directory = tempfile.TemporaryDirectory(prefix="sorna-folders-")
        self.addCleanup(directory.cleanup)
        self.folder_root = Path(directory.name)
        self.watch = FolderWatch(self.clock, self.folder_root, maybeDeferred)
        self.devices = Devices(self.device_directory(), hidden=True)
        self.ended = EndedKernels(self.clock, self.bounds, self.most_ended)
        self.kernels = Kernels(
            self.clock, self.pool, runtimes, self.max_kernels, self.watch, ended=self.ended, devices=self.devices
        )
        self.kernels.report_to(self.news)
        self.kernel_id = uuid.UUID(int=1)
        self.addCleanup(self._tear_down)

    def _tear_down(self) -> None:
        for kernel in self.sandbox.kernels:
            kernel.exit(-9)
        self.flow()
        self.successResultOf(Deferred.fromCoroutine(self.kernels.stop()))
        self.successResultOf(Deferred.fromCoroutine(self.pool.stop()))
        self.assertEqual([call for call in self.clock.calls if call.active()], [], "timers are left")

    def device_directory(self) -> Path:
        """Give the directory of the host's device nodes; there are none unless a test makes some."""
        return Path("/nonexistent")

    def flow(self) -> None:
        """Let everything arrive on both sides."""
        busy = True
        while busy:
            busy = self.clock.serve()
            for kernel in self.sandbox.kernels:
                busy = kernel.read() or busy

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Deferred[T]:
        """Start an operation and let it go as far as it can."""
        deferred = Deferred.fromCoroutine(coroutine)
        self.flow()
        return deferred

    def create(self, runtime: str = "python3", **limits: Any) -> FakeKernel:
        """Make a kernel with the next id and give its fake side."""
        self.kernel_id = uuid.UUID(int=self.kernel_id.int + 1)
        self.successResultOf(self.start(self.kernels.create_kernel(self.kernel_id, spec(runtime, **limits))))
        return self.sandbox.kernels[-1]

    def execute(self, request: RunRequest) -> Deferred[RunReply]:
        """Call execute on the latest kernel."""
        return self.start(self.kernels.execute(self.kernel_id, request))

    def reply(self, request: RunRequest) -> RunReply:
        """Call execute, which answers at once."""
        return self.successResultOf(self.execute(request))

    def advance(self, seconds: float) -> None:
        """Let time pass, and what follows from it happen."""
        self.clock.advance(seconds)
        self.flow()

    def agent_failed(self, deferred: Deferred[Any]) -> AgentFailed:
        """Give the AgentFailed that a Deferred has."""
        error = self.failureResultOf(deferred, AgentFailed).value
        assert isinstance(error, AgentFailed)
        return error
