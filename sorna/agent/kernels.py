"""Every kernel of this agent: the implementation of :class:`sorna.agent.interfaces.AgentOperations`.

Knows where kernels come from only as a :class:`~sorna.agent.pool.Pool`, and of managers only that they ask and want news. Creating and destroying are idempotent per id; whoever gives up waiting leaves the work alone.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from sorna.agent.detection import DetectedRuntime
from sorna.agent.devices import Allotment, Devices
from sorna.agent.ended import EndedKernels
from sorna.agent.folder_watch import FolderWatch
from sorna.agent.interfaces import AgentNews, ConfinedKernel
from sorna.agent.kernel import Kernel
from sorna.agent.lane import OpenChannel
from sorna.agent.pool import Pool
from sorna.agent.sharing import Shared
from sorna.cluster.messages import pack_value, unpack_limits
from sorna.errors import AgentFailed, InvalidRequest, KernelNotFound, NoAgentAvailable, RuntimeUnknown, SornaError
from sorna.model.agent import Room
from sorna.model.file import FileEntry, FilePiece
from sorna.model.kernel import KernelSpec, Usage, short_id
from sorna.model.limits import MIB
from sorna.model.placement import shortages
from sorna.model.policy import Slots, slots_of
from sorna.model.run import OutputRequest, RunMode, RunReply, RunRequest
from sorna.model.service import NotReachable, Service, Tunnel, TunnelUser, TunnelWish, check_ports
from sorna.model.terminal import Terminal, TerminalViewer

DESTROY_DEADLINE = 8.0
MAX_ENVIRON = 64 * 1024
NO_BOUNDS = Room()


class Kernels:
    """The kernels of this agent.

    :param pool: where kernels come from.
    :param runtimes: what this host offers, by canonical name.
    :param room: what all kernels may be promised together.
    :param folders: sees to it that kernels do not write more into folders than these may hold.
    :param ended: remembers those that are gone.
    :param devices: the GPUs of this host.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        pool: Pool,
        runtimes: Mapping[str, DetectedRuntime],
        max_kernels: int,
        folders: FolderWatch,
        *,
        ended: EndedKernels,
        devices: Devices,
        room: Room = NO_BOUNDS,
    ) -> None:
        self._reactor = reactor
        self._pool = pool
        self._folders = folders
        self.runtimes = runtimes
        self.max_kernels = max_kernels
        self.room = room
        self._slots: dict[uuid.UUID, Slots] = {}
        self._live: dict[uuid.UUID, Kernel] = {}
        self._creating: dict[uuid.UUID, Shared[None]] = {}
        self._ending: dict[uuid.UUID, Kernel] = {}
        self._asked: set[uuid.UUID] = set()
        self._ended = ended
        self._devices = devices
        self._numbers: dict[uuid.UUID, Sequence[int]] = {}
        self._news: AgentNews | None = None
        self._untold: list[tuple[uuid.UUID, str, Usage]] = []
        self._watchers: list[Callable[[], None]] = []
        self._stopping = False
        self.draining = False

    def report_to(self, news: AgentNews) -> None:
        """Tell this one of kernels that end unasked, those that already have included."""
        self._news = news
        untold, self._untold = self._untold, []
        for kernel_id, reason, usage in untold:
            news.kernel_ended(kernel_id, reason, usage)

    def watch(self, changed: Callable[[], None]) -> None:
        """Call ``changed`` whenever a kernel comes or goes."""
        self._watchers.append(changed)

    def live(self) -> Mapping[uuid.UUID, Kernel]:
        """Give the kernels that can run code now."""
        return dict(self._live)

    @property
    def occupied(self) -> int:
        """How many places are taken, by kernels that come and go too."""
        return len(self._live) + len(self._creating) + len(self._ending)

    @property
    def taken(self) -> Slots:
        """What the kernels that can run code now have been promised."""
        return sum((self._slots[one] for one in self._live if one in self._slots), Slots())

    def _taken(self) -> Slots:
        """Give what is promised to kernels that come and go, too."""
        return sum(self._slots.values(), Slots())

    # -- life and death

    async def create_kernel(self, kernel_id: uuid.UUID, spec: KernelSpec) -> Sequence[Service]:
        """Make a kernel, ready to run code when this returns; harmless when it is there already.

        Creates of one id share one effort, which goes on although a caller is cancelled.

        :raises RuntimeUnknown, NoAgentAvailable, AgentFailed, InvalidRequest: nothing is left of it.
        """
        shared = self._creating.get(kernel_id)
        if shared is None:
            if kernel_id in self._live:
                return self._live[kernel_id].tunnels.services
            self._refuse_creation(kernel_id, spec)
            self._slots[kernel_id] = slots_of(spec.runtime, spec.limits)
            shared = self._creating[kernel_id] = Shared()
            Deferred.fromCoroutine(self._create(kernel_id, spec, shared)).addErrback(
                lambda failure: self._log.failure("creating kernel {kernel_id}", failure, kernel_id=short_id(kernel_id))
            )
        await shared.join()
        kernel = self._live.get(kernel_id)
        return () if kernel is None else kernel.tunnels.services

    def _refuse_creation(self, kernel_id: uuid.UUID, spec: KernelSpec) -> None:
        if spec.runtime not in self.runtimes:
            raise RuntimeUnknown(f"This agent does not offer {spec.runtime}.")
        if self._stopping:
            raise NoAgentAvailable("This agent is stopping.")
        if self.draining:
            raise NoAgentAvailable("This agent is being drained.")
        ended = self._ended.find(kernel_id)
        if ended is not None or kernel_id in self._ending:
            raise AgentFailed(f"The kernel has ended already ({ended.reason if ended else 'it is being destroyed'}).")
        if self.occupied >= self.max_kernels:
            raise NoAgentAvailable(f"All {self.max_kernels} places of this agent are taken.")
        lacking = next(shortages(self._taken(), self.max_kernels, self.room, slots_of(spec.runtime, spec.limits)), None)
        if lacking is not None:
            raise NoAgentAvailable(f"This agent has no room: {lacking}.")
        size = 0
        for name, value in spec.environ.items():
            size += len(name) + len(value)
            if not name or "=" in name or "\0" in name or "\0" in value:
                raise InvalidRequest("A variable of the environment has an impossible name or value.")
        if size > MAX_ENVIRON:
            raise InvalidRequest(f"The environment is larger than {MAX_ENVIRON} bytes.")
        _check_ports(spec.ports)

    async def _create(self, kernel_id: uuid.UUID, spec: KernelSpec, shared: Shared[None]) -> None:
        began = self._reactor.seconds()
        try:
            kernel = await self._make(kernel_id, spec)
        except SornaError as error:
            self._log.warn(
                "kernel {kernel_id} could not be made: {error}", kernel_id=short_id(kernel_id), error=error.detail
            )
            del self._creating[kernel_id], self._slots[kernel_id]
            shared.fail(error)
        except Exception as error:  # noqa: BLE001 - whatever breaks in a tier, the caller gets an answer
            failure = Failure()
            self._log.failure("kernel {kernel_id} could not be made", failure, kernel_id=short_id(kernel_id))
            del self._creating[kernel_id], self._slots[kernel_id]
            shared.fail(AgentFailed("The kernel could not be made.", f"{type(error).__name__}{error.args!r}"[:1000]))
        else:
            del self._creating[kernel_id]
            self._live[kernel_id] = kernel
            milliseconds = (self._reactor.seconds() - began) * 1000
            # The answer first: it is waited for, and writing the line takes nearly a third of the whole.
            shared.succeed(None)
            self._log.info(
                "kernel {kernel_id} ({runtime}, process {pid}) is ready after {milliseconds:.1f} ms",
                kernel_id=short_id(kernel_id),
                runtime=spec.runtime,
                pid=kernel.pid,
                milliseconds=milliseconds,
            )
        self._changed()

    async def _make(self, kernel_id: uuid.UUID, spec: KernelSpec) -> Kernel:
        limits = self.runtimes[spec.runtime].runtime.adapt(spec.limits)
        devices = self._devices.take(slots_of(spec.runtime, limits).gpus)
        try:
            kernel = await self._pool.obtain(spec.runtime, limits, spec.mounts, devices.nodes)
        except BaseException:
            self._devices.give_back(devices)
            raise
        self._hold_devices(kernel_id, kernel, devices)
        environ = {
            "SORNA_MEMORY_MIB": str(limits.memory // MIB),
            "SORNA_CORES": str(max(1, round(limits.cpu_cores))),
            **spec.environ,
            **self._devices.environ(devices),
        }
        kernel.assign(
            short_id(kernel_id),
            limits,
            environ,
            partial(self._on_ended, kernel_id),
        )
        kernel.tunnels.offer(spec.runtime, self.runtimes[spec.runtime].applications, spec.ports)
        kernel.runs.retention = self._ended.bounds.retention
        self._folders.watch(kernel, spec.mounts)
        return kernel

    def _hold_devices(self, kernel_id: uuid.UUID, kernel: Kernel, devices: Allotment) -> None:
        """Keep a kernel's devices from others until it has ended."""
        if devices.numbers:
            self._numbers[kernel_id] = devices.numbers

        def ended(_usage: object) -> None:
            self._numbers.pop(kernel_id, None)
            self._devices.give_back(devices)

        kernel.when_ended().addBoth(ended)

    def _on_ended(self, kernel_id: uuid.UUID, kernel: Kernel, reason: str, usage: Usage) -> None:
        """Note that nothing of a kernel is left. One that never was ready is not spoken of: its creation fails."""
        was_there = self._live.pop(kernel_id, None) or self._ending.pop(kernel_id, None)
        if was_there is None:
            kernel.runs.forget()
            return
        self._slots.pop(kernel_id, None)
        self._ended.add(kernel_id, usage, reason, kernel.runs)
        # Said when whoever waits for the end has been answered.
        kernel.when_ended().addCallback(lambda _: self._say_ended(kernel_id, reason))
        if kernel_id in self._asked:
            self._asked.discard(kernel_id)
        elif self._news is None:
            self._untold.append((kernel_id, reason, usage))
        else:
            self._news.kernel_ended(kernel_id, reason, usage)
        self._changed()

    def _say_ended(self, kernel_id: uuid.UUID, reason: str) -> None:
        self._log.info("kernel {kernel_id} has ended: {reason}", kernel_id=short_id(kernel_id), reason=reason)

    def _changed(self) -> None:
        for changed in self._watchers:
            changed()

    async def destroy_kernel(self, kernel_id: uuid.UUID, reason: str) -> Usage:
        """End a kernel; its processes are gone when this returns. A kernel that has ended already gives its usage again.

        :raises AgentFailed: its processes are not gone before the deadline; they still are being killed.
        """
        if kernel_id in self._creating:
            try:
                await self._creating[kernel_id].join()
            except SornaError as error:
                raise KernelNotFound("The kernel could not be made.") from error
        ended = self._ended.find(kernel_id)
        if ended is not None:
            return ended.usage
        kernel = self._live.get(kernel_id) or self._ending.get(kernel_id)
        if kernel is None:
            raise KernelNotFound("This agent holds no such kernel.")
        self._asked.add(kernel_id)
        return await self._end(kernel_id, kernel, reason)

    async def _end(self, kernel_id: uuid.UUID, kernel: Kernel, reason: str) -> Usage:
        if self._live.pop(kernel_id, None) is not None:
            self._ending[kernel_id] = kernel
        gone = kernel.when_ended()
        kernel.end(reason)
        gone.addTimeout(DESTROY_DEADLINE, self._reactor)
        try:
            return await gone
        except DeferredTimeout as error:
            raise AgentFailed("The kernel's processes are still being killed.") from error

    async def drain(self, *, draining: bool) -> None:
        """Refuse new kernels, or take them again; whoever watches sees to what follows."""
        if draining != self.draining:
            self.draining = draining
            self._log.info("this agent {does} new kernels", does="refuses" if draining else "takes")
            self._changed()

    async def restart_kernel(self, kernel_id: uuid.UUID) -> None:
        """Throw the in-memory state away and keep the working directory."""
        await self._kernel(kernel_id).restart()

    async def stop(self) -> None:
        """Destroy every kernel, and accept no new one; gives up on what does not end within the deadline."""
        self._stopping = True
        for shared in list(self._creating.values()):
            try:
                await shared.join()
            except SornaError:
                continue
        ends = [
            Deferred.fromCoroutine(self._end(kernel_id, kernel, "agent-stopped"))
            for kernel_id, kernel in [*self._live.items(), *self._ending.items()]
        ]
        for end in ends:
            try:
                await end
            except AgentFailed as error:
                self._log.error("a kernel is left at the agent's stop: {error}", error=error.detail)
        self._ended.clear()

    # -- another program goes on

    @property
    def unsettled(self) -> str:
        """What goes on that no other program could go on with; empty when nothing does."""
        if self._creating or self._ending:
            return f"{len(self._creating)} kernels are being made and {len(self._ending)} ended"
        reasons = {short_id(kernel_id): kernel.unsettled for kernel_id, kernel in self._live.items()}
        return next((f"kernel {name}: {reason}" for name, reason in reasons.items() if reason), "")

    def answer_all(self) -> None:
        """Answer every call that waits for output with what there is."""
        for kernel in self._live.values():
            kernel.runs.answer_all()
        self._ended.answer_all()

    def carry(self) -> Mapping[str, Any]:
        """Give every kernel as plain values and descriptors; nothing here goes on."""
        live = []
        for kernel_id, kernel in self._live.items():
            slots = pack_value(self._slots.get(kernel_id, Slots()))
            state = {
                "folders": self._folders.carry(kernel),
                "slots": slots,
                "devices": self._numbers.get(kernel_id, []),
            }
            live.append([kernel_id.bytes, state, kernel.carry()])
        return {"live": live, "ended": self._ended.carry(), "draining": self.draining}

    def take_over(
        self, state: Mapping[str, Any], confined: Mapping[str, ConfinedKernel], open_channel: OpenChannel
    ) -> None:
        """Go on with the kernels of another program; ``confined`` are those that the sandbox has taken over, by its ids."""
        self.draining = state["draining"]
        for raw, place, one in state["live"]:
            kernel_id, held = uuid.UUID(bytes=raw), confined[one["confined"]]
            ended = partial(self._on_ended, kernel_id)
            kernel = Kernel(self._reactor, held, unpack_limits(one["limits"]), open_channel, ended)
            kernel.runs.retention = self._ended.bounds.retention
            self._live[kernel_id], self._slots[kernel_id] = kernel, Slots(**place["slots"])
            self._hold_devices(kernel_id, kernel, self._devices.keep(place["devices"]))
            kernel.take_over(one)
            had = one["tunnels"]
            if had["runtime"] in self.runtimes:
                kernel.tunnels.offer(had["runtime"], self.runtimes[had["runtime"]].applications, had["ports"])
            self._folders.take_over(kernel, place["folders"])
        self._ended.take_over(state["ended"])

    # -- use

    async def execute(self, kernel_id: uuid.UUID, request: RunRequest) -> RunReply:
        """Start, continue or feed a run; see :mod:`sorna.agent.run_rules`.

        A kernel that has ended still answers calls that only read what was not read.

        :raises InvalidRequest: nothing waits for input, or the run is unknown.
        """
        ended = self._ended.find(kernel_id)
        if ended is not None and ended.runs.undelivered:
            return await ended.runs.execute(request)
        kernel = self._ending.get(kernel_id)
        if kernel is not None and request.mode is RunMode.CONTINUE:
            return await kernel.runs.execute(request)  # it is answered when the kernel is gone, at the latest
        return await self._kernel(kernel_id).execute(request)

    def hand_over(self, kernel_id: uuid.UUID, run_id: str) -> Callable[[bool], None] | None:
        """Note that the answer which :meth:`execute` has just given is on its way; see :meth:`sorna.agent.runs.Runs.hand_over`."""
        ended = self._ended.find(kernel_id)
        kernel = self._live.get(kernel_id) or self._ending.get(kernel_id)
        runs = ended.runs if ended is not None else kernel.runs if kernel is not None else None
        return None if runs is None else runs.hand_over(run_id)

    async def read_output(self, kernel_id: uuid.UUID, request: OutputRequest) -> RunReply:
        """Read a run's output from a number on, also of a kernel that is ending or has ended, while its output is kept.

        :raises RunNotFound, OutputGone: see :meth:`sorna.agent.runs.Runs.read`.
        """
        ended = self._ended.find(kernel_id)
        if ended is not None:
            return await ended.runs.read(request)
        kernel = self._ending.get(kernel_id) or self._kernel(kernel_id)
        return await kernel.read_output(request)

    async def interrupt(self, kernel_id: uuid.UUID) -> None:
        """Send SIGINT to what runs now."""
        self._kernel(kernel_id).interrupt()

    async def complete(self, kernel_id: uuid.UUID, code: str, options: Mapping[str, Any]) -> Sequence[str]:
        """Give completions."""
        return await self._kernel(kernel_id).complete(code, options)

    async def upload(self, kernel_id: uuid.UUID, path: str, content: bytes) -> None:
        """Write one file below the working directory. :raises AgentRefused: the path climbs out or cannot be written."""
        await self._kernel(kernel_id).files.upload(path, content)

    async def list_files(self, kernel_id: uuid.UUID, path: str, *, recursive: bool) -> Sequence[FileEntry]:
        """List below the working directory; see :meth:`sorna.agent.kernel_files.KernelFiles.list_files`."""
        return await self._kernel(kernel_id).files.list_files(path, recursive=recursive)

    async def read_file(self, kernel_id: uuid.UUID, path: str, offset: int, size: int) -> FilePiece:
        """Read a piece of a file; see :meth:`sorna.agent.kernel_files.KernelFiles.read_file`."""
        return await self._kernel(kernel_id).files.read_file(path, offset, size)

    async def usage(self, kernel_id: uuid.UUID) -> Usage:
        """Give what the kernel has used so far."""
        return self._kernel(kernel_id).usage()

    async def logs(self, kernel_id: uuid.UUID) -> str:
        """Give the kernel's recent console output as text."""
        return self._kernel(kernel_id).logs()

    async def open_terminal(self, kernel_id: uuid.UUID, viewer: TerminalViewer, rows: int, columns: int) -> Terminal:
        """Look at the kernel's terminal. :raises Unavailable: too many do."""
        return self._kernel(kernel_id).terminal.open(viewer, rows, columns)

    async def services(self, kernel_id: uuid.UUID) -> Sequence[Service]:
        """List the applications that can be reached in the kernel."""
        return await self._kernel(kernel_id).tunnels.list()

    async def open_tunnel(self, kernel_id: uuid.UUID, user: TunnelUser, wish: TunnelWish) -> Tunnel:
        """Connect with an application; see :meth:`sorna.agent.tunnels.Tunnels.open`."""
        return self._kernel(kernel_id).tunnels.open(wish, user)

    async def stop_service(self, kernel_id: uuid.UUID, name: str) -> None:
        """End an application; see :meth:`sorna.agent.tunnels.Tunnels.stop`."""
        await self._kernel(kernel_id).tunnels.stop(name)

    def _kernel(self, kernel_id: uuid.UUID) -> Kernel:
        kernel = self._live.get(kernel_id)
        if kernel is None:
            raise KernelNotFound("This agent holds no such kernel.")
        return kernel


def _check_ports(ports: Sequence[int]) -> None:
    try:
        check_ports(ports)
    except NotReachable as error:
        raise InvalidRequest(str(error)) from error
