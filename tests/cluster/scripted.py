"""Operations of an agent that do what a test tells them, for every test of the link."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import evolve
from twisted.internet.defer import CancelledError, Deferred

from sorna.errors import KernelNotFound
from sorna.model.file import FileEntry, FilePiece
from sorna.model.kernel import KernelSpec, Usage
from sorna.model.limits import Limits
from sorna.model.run import OutputRequest, RunMode, RunReply, RunRequest, RunStatus
from sorna.model.service import Service, Tunnel, TunnelUser, TunnelWish
from sorna.model.terminal import Terminal, TerminalViewer
from sorna.testing.services import MemoryServices
from sorna.testing.terminals import MemoryTerminal

KERNEL = uuid.UUID(int=7)
OTHER = uuid.UUID(int=8)
SPEC = KernelSpec("AKIA", "token-1", "python3", "python", Limits(), {"LANG": "C"}, "tag")
USAGE = Usage(cpu_used=12.5, mem_max_bytes=1 << 40)
REPLY = RunReply(
    run_id="run-1",
    status=RunStatus.FINISHED,
    console=(("stdout", "2\n"), ("media", ["image/png", "AAAA"]), ("stderr", "\N{SNOWMAN}")),
    options={},
    exit_code=0,
    files=("a.txt",),
    first_seq=3,
    next_seq=6,
    missing=2,
)
ENTRY = FileEntry("a/é.txt", 0o100644, 12, 1.5, 2.0, 3.25)
PIECE = FilePiece(1 << 40, bytes(range(256)) * 1200)
QUERY = RunRequest(RunMode.QUERY, "1+1", "run-1")


class ScriptedOperations:
    """Holds one kernel; notes every call, and does what ``script`` has under the method's name first."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.cancelled: list[str] = []
        self.handed_over: list[tuple[str, bool]] = []
        self.kernels = {KERNEL}
        self.terminal = MemoryTerminal()
        self.services_inside = MemoryServices()
        self.script: dict[str, Callable[[], Any]] = {}

    async def _do(self, method: str, kernel_id: uuid.UUID, *rest: Any) -> None:
        self.calls.append((method, kernel_id, *rest))
        if method != "create_kernel" and kernel_id not in self.kernels:
            raise KernelNotFound(f"no kernel {kernel_id}")
        step = self.script.get(method)
        if step is not None:
            done = step()
            if isinstance(done, Deferred):
                try:
                    await done
                except CancelledError:
                    self.cancelled.append(method)
                    raise

    async def create_kernel(self, kernel_id: uuid.UUID, spec: KernelSpec) -> Sequence[Service]:
        await self._do("create_kernel", kernel_id, spec)
        self.kernels.add(kernel_id)
        return self.services_inside.services

    async def destroy_kernel(self, kernel_id: uuid.UUID, reason: str) -> Usage:
        await self._do("destroy_kernel", kernel_id, reason)
        self.kernels.discard(kernel_id)
        return USAGE

    def hand_over(self, kernel_id: uuid.UUID, run_id: str) -> Callable[[bool], None] | None:
        """Note what becomes of the answers to execute."""
        return lambda arrived: self.handed_over.append((run_id, arrived))

    async def drain(self, *, draining: bool) -> None:
        self.calls.append(("drain", draining))

    async def restart_kernel(self, kernel_id: uuid.UUID) -> None:
        await self._do("restart_kernel", kernel_id)

    async def execute(self, kernel_id: uuid.UUID, request: RunRequest) -> RunReply:
        await self._do("execute", kernel_id, request)
        return REPLY

    async def read_output(self, kernel_id: uuid.UUID, request: OutputRequest) -> RunReply:
        await self._do("read_output", kernel_id, request)
        return REPLY

    async def interrupt(self, kernel_id: uuid.UUID) -> None:
        await self._do("interrupt", kernel_id)

    async def complete(self, kernel_id: uuid.UUID, code: str, options: Mapping[str, Any]) -> Sequence[str]:
        await self._do("complete", kernel_id, code, options)
        return ("print", "property")

    async def upload(self, kernel_id: uuid.UUID, path: str, content: bytes) -> None:
        await self._do("upload", kernel_id, path, content)

    async def list_files(self, kernel_id: uuid.UUID, path: str, *, recursive: bool) -> Sequence[FileEntry]:
        await self._do("list_files", kernel_id, path, recursive)
        return (ENTRY, evolve(ENTRY, name="", size=1 << 40))

    async def read_file(self, kernel_id: uuid.UUID, path: str, offset: int, size: int) -> FilePiece:
        await self._do("read_file", kernel_id, path, offset, size)
        return PIECE

    async def usage(self, kernel_id: uuid.UUID) -> Usage:
        await self._do("usage", kernel_id)
        return USAGE

    async def logs(self, kernel_id: uuid.UUID) -> str:
        await self._do("logs", kernel_id)
        return "printed\n"

    async def open_terminal(self, kernel_id: uuid.UUID, viewer: TerminalViewer, rows: int, columns: int) -> Terminal:
        await self._do("open_terminal", kernel_id, rows, columns)
        return self.terminal.open(viewer, rows, columns)

    async def services(self, kernel_id: uuid.UUID) -> Sequence[Service]:
        await self._do("services", kernel_id)
        return self.services_inside.services

    async def open_tunnel(self, kernel_id: uuid.UUID, user: TunnelUser, wish: TunnelWish) -> Tunnel:
        await self._do("open_tunnel", kernel_id, wish)
        return self.services_inside.open(user, wish)

    async def stop_service(self, kernel_id: uuid.UUID, name: str) -> None:
        await self._do("stop_service", kernel_id, name)
        self.services_inside.stop(name)
