"""Kernels in memory, for tests of the doors; held to the same contract as the manager's (``tests/contract``)."""

from __future__ import annotations

import stat
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from sorna.errors import InvalidRequest, KernelAlreadyExists, KernelNotFound, QuotaExceeded, RunNotFound, RuntimeUnknown
from sorna.manager.interfaces import UploadFile
from sorna.manager.requests import Created, CreateRequest, KernelEvent, KernelInfo
from sorna.model.file import FileEntry, FilePiece
from sorna.model.kernel import KernelStatus, Usage, new_kernel_id, parse_kernel_id
from sorna.model.limits import Limits
from sorna.model.queue import QueuePlace
from sorna.model.run import OutputRequest, RunMode, RunReply, RunRequest, RunStatus, new_run_id
from sorna.model.runtime import resolve_runtime
from sorna.model.service import Service, Tunnel, TunnelUser, TunnelWish, preopened
from sorna.model.terminal import COLUMNS, ROWS, Terminal, TerminalViewer
from sorna.testing.services import SERVICES, MemoryServices
from sorna.testing.terminals import MemoryTerminal


@define
class MemoryKernel:
    """A kernel that runs nothing."""

    id: uuid.UUID
    request: CreateRequest
    runtime: str
    created_at: float
    used_at: float
    terminal: MemoryTerminal
    services: MemoryServices
    num_queries: int = 0
    starts: int = 1
    interrupts: int = 0
    files: dict[str, bytes] = field(factory=dict)
    runs: list[RunRequest] = field(factory=list)


class MemoryKernels:
    """An implementation of :class:`sorna.gateway.interfaces.Kernels`.

    :ivar on_execute: what a run answers; by default it prints its own code and ends.
    :ivar on_read: what reading a run's output answers; by default no run is known.
    :ivar errors: method name -> what that method raises instead of doing anything.
    """

    def __init__(self, clock: IReactorTime, concurrency_limit: int = 30) -> None:
        self._clock = clock
        self._concurrency_limit = concurrency_limit
        self.live: dict[uuid.UUID, MemoryKernel] = {}
        self.ended: dict[uuid.UUID, MemoryKernel] = {}
        self.on_execute: Callable[[RunRequest], Awaitable[RunReply]] = print_code
        self.on_read: Callable[[OutputRequest], Awaitable[RunReply]] = unknown_run
        self.errors: dict[str, Exception] = {}
        self.turn: Deferred[None] | None = None
        self.watchers: list[Callable[[KernelEvent], None]] = []

    async def create(self, request: CreateRequest, gone: Deferred[None] | None = None) -> Created:
        """Get or create; what is to wait waits until :attr:`turn` fires, or its client has gone."""
        self._fail("create")
        runtime = resolve_runtime(request.runtime)
        if runtime is None:
            raise RuntimeUnknown(request.runtime)
        kernel = self._by_token(request.access_key, request.session_token)
        created = kernel is None
        if kernel is None:
            owned = [one for one in self.live.values() if one.request.access_key == request.access_key]
            if len(owned) >= self._concurrency_limit:
                raise QuotaExceeded
            now = self._clock.seconds()
            terminal = MemoryTerminal(self._clock)
            services = MemoryServices((*SERVICES, *preopened(request.ports)))
            kernel = MemoryKernel(
                new_kernel_id(), request, runtime, created_at=now, used_at=now, terminal=terminal, services=services
            )
            self.live[kernel.id] = kernel
            self.tell(kernel, KernelStatus.RUNNING)
        elif kernel.runtime != runtime or not request.reuse:
            raise KernelAlreadyExists
        inside = kernel.services.services
        if request.wait is not None and self.turn is not None:
            if request.enqueue_only:
                place = QueuePlace(3, self._clock.seconds() + request.wait)
                return Created(kernel.id, request.session_token, runtime, KernelStatus.PENDING, created, place)
            if gone is not None:
                gone.chainDeferred(self.turn)
                gone.addCallback(lambda _gone: self.live.clear())
            await self.turn
        return Created(kernel.id, request.session_token, runtime, KernelStatus.RUNNING, created, services=inside)

    async def info(self, access_key: str, reference: str) -> KernelInfo:
        """Describe a live kernel."""
        idle_since = self._find(access_key, reference).used_at
        kernel = self._use("info", access_key, reference)
        now, limits = self._clock.seconds(), Limits()
        return KernelInfo(
            kernel_id=kernel.id,
            session_token=kernel.request.session_token,
            runtime=kernel.runtime,
            requested_runtime=kernel.request.runtime,
            age=now - kernel.created_at,
            execution_timeout=kernel.request.execution_timeout or limits.execution_timeout,
            idle_timeout=limits.idle_timeout,
            idle=now - idle_since,
            memory_limit=kernel.request.memory or limits.memory,
            memory_used=-1,
            cpu_used=0.0,
            num_queries=kernel.num_queries,
        )

    async def check(self, access_key: str, reference: str) -> None:
        """Find a live kernel."""
        self._find(access_key, reference)

    async def restart(self, access_key: str, reference: str) -> None:
        """Count one more start."""
        kernel = self._use("restart", access_key, reference)
        kernel.starts += 1
        self.tell(kernel, KernelStatus.RUNNING, "restarted")

    async def destroy(self, access_key: str, reference: str, reason: str = "user-requested") -> Usage:
        """Forget a kernel."""
        kernel = self._use("destroy", access_key, reference)
        self.ended[kernel.id] = self.live.pop(kernel.id)
        kernel.terminal.end(reason)
        kernel.services.end(reason)
        self.tell(kernel, KernelStatus.TERMINATED, reason)
        return Usage(cpu_used=12.5, mem_max_bytes=1024)

    async def lives(self, access_key: str, reference: str) -> bool:
        """Tell whether there is such a kernel."""
        try:
            self._find(access_key, reference)
        except KernelNotFound:
            return False
        return True

    async def execute(self, access_key: str, reference: str, request: RunRequest) -> RunReply:
        """Answer a run with :attr:`on_execute`."""
        kernel = self._use("execute", access_key, reference)
        kernel.runs.append(request)
        return await self.on_execute(request)

    async def read_output(self, access_key: str, reference: str, request: OutputRequest) -> RunReply:
        """Answer with :attr:`on_read`, for kernels that have ended as well."""
        names = {parse_kernel_id(reference), reference}
        if not any(
            one.request.access_key == access_key and names & {one.id, one.request.session_token}
            for one in self.ended.values()
        ):
            self._find(access_key, reference)
        self._fail("read_output")
        return await self.on_read(request)

    async def interrupt(self, access_key: str, reference: str) -> None:
        """Count one interrupt."""
        self._use("interrupt", access_key, reference).interrupts += 1

    async def complete(self, access_key: str, reference: str, code: str, options: Mapping[str, Any]) -> Sequence[str]:
        """Complete code with itself, or with the line where the client sent one."""
        self._use("complete", access_key, reference)
        return [f"{options.get('line') or code}_completed"]

    async def upload(self, access_key: str, reference: str, files: Sequence[UploadFile]) -> None:
        """Keep files by path."""
        kernel = self._use("upload", access_key, reference)
        for file in files:
            path = PurePosixPath(file.path)
            if not file.path or path.is_absolute() or ".." in path.parts or "\0" in file.path:
                raise InvalidRequest(f"{file.path!r} is no path below the working directory")
        kernel.files.update({file.path: file.content for file in files})

    async def list_files(
        self, access_key: str, reference: str, path: str, *, recursive: bool = False
    ) -> Sequence[FileEntry]:
        """List what was uploaded."""
        kernel = self._use("list_files", access_key, reference)
        if path in kernel.files:
            return [_entry("", kernel.files[path])]
        below = "" if path in {"", "."} else path + "/"
        found: dict[str, FileEntry] = {}
        for name in sorted(name for name in kernel.files if name.startswith(below)):
            parts = name[len(below) :].split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                directory = "/".join(parts[:depth])
                found.setdefault(directory, _entry(directory, None))
            if recursive or len(parts) == 1:
                found["/".join(parts)] = _entry("/".join(parts), kernel.files[name])
        if not found and below:
            raise InvalidRequest(f"{path!r} cannot be listed: there is no such file.")
        return list(found.values())

    async def read_file(self, access_key: str, reference: str, path: str, offset: int, size: int) -> FilePiece:
        """Read what was uploaded."""
        kernel = self._find(access_key, reference)
        self._fail("read_file")
        if path not in kernel.files:
            raise InvalidRequest(f"{path!r} cannot be read: there is no such file.")
        content = kernel.files[path]
        return FilePiece(len(content), content[offset : offset + size])

    async def watch(
        self, access_key: str, reference: str | None, receive: Callable[[KernelEvent], None]
    ) -> Callable[[], None]:
        """Tell of kernels that are made, restarted and destroyed."""
        kernel_id = None if reference is None else self._use("watch", access_key, reference).id

        def hear(event: KernelEvent) -> None:
            if event.access_key == access_key and kernel_id in {None, event.kernel_id}:
                receive(event)

        self.watchers.append(hear)
        return lambda: self.watchers.remove(hear)

    def tell(self, kernel: MemoryKernel, status: KernelStatus, reason: str = "") -> None:
        """Tell every watcher."""
        token = kernel.request.session_token
        for hear in tuple(self.watchers):
            hear(KernelEvent(kernel.id, status, kernel.request.access_key, token, reason, self._clock.seconds()))

    async def logs(self, access_key: str, reference: str) -> str:
        """Give the code of all runs."""
        return "".join(run.code for run in self._use("logs", access_key, reference).runs)

    async def open_terminal(
        self, access_key: str, reference: str, viewer: TerminalViewer, rows: int = ROWS, columns: int = COLUMNS
    ) -> Terminal:
        """Look at a terminal that prints what is typed."""
        return self._use("open_terminal", access_key, reference).terminal.open(viewer, rows, columns)

    async def services(self, access_key: str, reference: str) -> Sequence[Service]:
        """List applications of memory."""
        return self._use("services", access_key, reference).services.services

    async def open_tunnel(self, access_key: str, reference: str, user: TunnelUser, wish: TunnelWish) -> Tunnel:
        """Connect with an application of memory."""
        return self._use("open_tunnel", access_key, reference).services.open(user, wish)

    async def stop_service(self, access_key: str, reference: str, name: str) -> None:
        """Note that an application is to end."""
        self._use("stop_service", access_key, reference).services.stop(name)

    def _use(self, method: str, access_key: str, reference: str) -> MemoryKernel:
        kernel = self._find(access_key, reference)
        self._fail(method)
        kernel.num_queries += 1
        kernel.used_at = self._clock.seconds()
        return kernel

    def _fail(self, method: str) -> None:
        if method in self.errors:
            raise self.errors[method]

    def _find(self, access_key: str, reference: str) -> MemoryKernel:
        kernel_id = parse_kernel_id(reference)
        kernel = None if kernel_id is None else self.live.get(kernel_id)
        kernel = kernel or self._by_token(access_key, reference)
        if kernel is None or kernel.request.access_key != access_key:
            raise KernelNotFound
        return kernel

    def _by_token(self, access_key: str, token: str) -> MemoryKernel | None:
        for kernel in self.live.values():
            if (kernel.request.access_key, kernel.request.session_token) == (access_key, token):
                return kernel
        return None


def _entry(name: str, content: bytes | None) -> FileEntry:
    mode = stat.S_IFDIR | 0o755 if content is None else stat.S_IFREG | 0o644
    return FileEntry(name, mode, len(content or b""), 1_500_000_000.5, 1_500_000_001.0, 1_500_000_002.0)


async def unknown_run(_request: OutputRequest) -> RunReply:
    """Know no run."""
    raise RunNotFound("No run of this session has this run id.")


async def print_code(request: RunRequest) -> RunReply:
    """Answer a run that prints its own code and ends; only a run that waits can take input, so input is refused."""
    if request.mode is RunMode.INPUT:
        raise InvalidRequest("Nothing waits for input")
    return RunReply(
        run_id=request.run_id or new_run_id(),
        status=RunStatus.FINISHED,
        console=(("stdout", request.code),),
        options={},
        exit_code=0,
    )
