"""The manager's front: everything a door can ask of kernels, looked up together with the access key in one place.

Knows no HTTP and no ZeroMQ. It decides, writes the truth before the effect, and calls agents; making a kernel is in
``creation``, mending what broke without anyone asking is in ``reaper``.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from sorna.errors import (
    AgentError,
    AgentRefused,
    InvalidRequest,
    KernelDestructionFailed,
    KernelExecutionFailed,
    KernelNotFound,
    KernelRestartFailed,
    OutputGone,
    RunNotFound,
)
from sorna.manager.creation import Creation
from sorna.manager.ending import Ending
from sorna.manager.interfaces import (
    AgentDirectory,
    AgentLink,
    KernelPlace,
    KernelStore,
    LiveKernels,
    UploadFile,
)
from sorna.manager.places import Places, end_of
from sorna.manager.requests import Created, CreateRequest, KernelEvent, KernelInfo
from sorna.model.agent import AgentAddress
from sorna.model.file import FileEntry, FilePiece
from sorna.model.kernel import Kernel, KernelStatus, Usage, parse_kernel_id, short_id
from sorna.model.limits import KIB
from sorna.model.run import OutputRequest, RunMode, RunReply, RunRequest
from sorna.model.service import Service, Tunnel, TunnelUser, TunnelWish
from sorna.model.terminal import COLUMNS, ROWS, Terminal, TerminalViewer

T = TypeVar("T")


@frozen
class Registry:
    """Kernels of all owners; each method sees only those of the access key it is given."""

    clock: IReactorTime
    kernels: KernelStore
    live: LiveKernels
    directory: AgentDirectory
    link: AgentLink
    creation: Creation
    ending: Ending
    places: Places

    _log = Logger()

    async def create(self, request: CreateRequest, gone: Deferred[None] | None = None) -> Created:
        """Get or create the kernel of (access key, session token)."""
        return await self.creation.create(request, gone)

    async def info(self, access_key: str, reference: str) -> KernelInfo:
        """Describe a live kernel, with the figures of its agent's last heartbeat, or where it stands while it waits."""
        try:
            place = await self.places.look(access_key, reference)
        except KernelNotFound:
            waiting = await self._info_of_waiting(access_key, reference)
            if waiting is None:
                raise
            return waiting
        return KernelInfo(
            kernel_id=place.kernel_id,
            session_token=place.session_token,
            runtime=place.runtime,
            requested_runtime=place.requested_runtime,
            age=max(0.0, self.clock.seconds() - place.created_at),
            execution_timeout=_number(place.stats, "exec_timeout"),
            idle_timeout=_number(place.stats, "idle_timeout"),
            idle=_number(place.stats, "idle") / 1000,
            memory_limit=int(_number(place.stats, "mem_limit")) * KIB,
            memory_used=max(0, int(_number(place.stats, "mem_max_bytes"))),
            cpu_used=max(0.0, _number(place.stats, "cpu_used")) / 1000,
            num_queries=place.num_queries,
        )

    async def check(self, access_key: str, reference: str) -> None:
        """Find out whether there is such a kernel, live or waiting; one that was found before is believed to be there."""
        try:
            await self.places.find(access_key, reference, count=False)
        except KernelNotFound:
            if await self._info_of_waiting(access_key, reference) is None:
                raise

    async def _info_of_waiting(self, access_key: str, reference: str) -> KernelInfo | None:
        kernel = await self.places.row(access_key, reference)
        if kernel is None or kernel.status is not KernelStatus.PENDING:
            return None
        return KernelInfo(
            kernel_id=kernel.id,
            session_token=kernel.session_token,
            runtime=kernel.runtime,
            requested_runtime=kernel.requested_runtime,
            age=max(0.0, self.clock.seconds() - kernel.created_at),
            execution_timeout=kernel.limits.execution_timeout,
            idle_timeout=kernel.limits.idle_timeout,
            idle=0.0,
            memory_limit=kernel.limits.memory,
            memory_used=0,
            cpu_used=0.0,
            num_queries=0,
            status=kernel.status,
            queue=await self.creation.queue.place_of(kernel.id),
        )

    async def restart(self, access_key: str, reference: str) -> None:
        """Lose the in-memory state, keep the files and the id."""
        place = await self.places.find(access_key, reference)
        now = self.clock.seconds()
        if not await self.kernels.change_status(place.kernel_id, KernelStatus.RESTARTING, "user-requested", now):
            raise KernelRestartFailed("The kernel is being restarted or destroyed by another request.")
        try:
            await self.link.restart_kernel(place.agent, place.kernel_id)
        except KernelNotFound:
            raise await self._vanished(place) from None
        except AgentError as error:
            # What the agent made of it is unknown; the kernel is there, so the next request finds out.
            await self._running_again(place.kernel_id, "restart-failed")
            raise KernelRestartFailed from error
        await self._running_again(place.kernel_id, "restarted")

    async def destroy(self, access_key: str, reference: str, reason: str = "user-requested") -> Usage:
        """End a kernel and give what it used; a second request while the first is under way waits for the same end."""
        kernel_id = parse_kernel_id(reference)
        try:
            usage = None if kernel_id is None else await self.ending.destroy_of(access_key, kernel_id, reason)
            if usage is None:
                usage = await self.ending.destroy(await self._kernel_to_destroy(access_key, reference), reason)
        except AgentError as error:
            raise KernelDestructionFailed from error
        return usage

    async def execute(self, access_key: str, reference: str, request: RunRequest) -> RunReply:
        """Run code, or continue or feed the run that is outstanding.

        What only asks how a run goes on is answered for a kernel that has ended, too, until its last output was told.
        """
        try:
            return await self._ask(
                access_key, reference, lambda place: self.link.execute(place.agent, place.kernel_id, request)
            )
        except KernelNotFound:
            if _only_asks(request):
                with suppress(KernelNotFound, OutputGone, RunNotFound, InvalidRequest):
                    return await self._ask_about_ended(
                        access_key, reference, lambda agent, kernel_id: self.link.execute(agent, kernel_id, request)
                    )
            raise

    async def read_output(self, access_key: str, reference: str, request: OutputRequest) -> RunReply:
        """Read a run's output from a number on; not counted as a query, because one stream needs many.

        The owner of a kernel that has ended is who its row says; the output itself is with the agent that held it.
        """

        def read(agent: AgentAddress, kernel_id: uuid.UUID) -> Coroutine[Any, Any, RunReply]:
            return self.link.read_output(agent, kernel_id, request)

        try:
            return await self._ask(access_key, reference, lambda place: read(place.agent, place.kernel_id), count=False)
        except KernelNotFound:
            return await self._ask_about_ended(access_key, reference, read)

    async def interrupt(self, access_key: str, reference: str) -> None:
        """Interrupt what runs now."""
        await self._ask(access_key, reference, lambda place: self.link.interrupt(place.agent, place.kernel_id))

    async def complete(self, access_key: str, reference: str, code: str, options: Mapping[str, Any]) -> Sequence[str]:
        """Complete code at a position."""
        return await self._ask(
            access_key, reference, lambda place: self.link.complete(place.agent, place.kernel_id, code, options)
        )

    async def upload(self, access_key: str, reference: str, files: Sequence[UploadFile]) -> None:
        """Write files below the working directory; every path is judged before the first is written."""
        await self.places.find(access_key, reference)
        for file in files:
            check_upload_path(file.path)
        for file in files:
            upload = partial(self._upload, file)
            await self._ask_about_file(access_key, reference, upload, count=False)

    async def list_files(
        self, access_key: str, reference: str, path: str, *, recursive: bool = False
    ) -> Sequence[FileEntry]:
        """List below the working directory."""
        return await self._ask_about_file(
            access_key,
            reference,
            lambda place: self.link.list_files(place.agent, place.kernel_id, path, recursive=recursive),
        )

    async def read_file(self, access_key: str, reference: str, path: str, offset: int, size: int) -> FilePiece:
        """Read a piece of a file; not counted as a query, because one download needs many."""
        return await self._ask_about_file(
            access_key,
            reference,
            lambda place: self.link.read_file(place.agent, place.kernel_id, path, offset, size),
            count=False,
        )

    async def logs(self, access_key: str, reference: str) -> str:
        """Give the kernel's recent console output."""
        return await self._ask(access_key, reference, lambda place: self.link.logs(place.agent, place.kernel_id))

    async def watch(
        self, access_key: str, reference: str | None, receive: Callable[[KernelEvent], None]
    ) -> Callable[[], None]:
        """Tell of every change of one live kernel, or of all of an owner when there is no reference."""
        kernel_id = None if reference is None else (await self.places.find(access_key, reference)).kernel_id
        return await self.ending.events.watch(access_key, kernel_id, receive)

    async def open_terminal(
        self, access_key: str, reference: str, viewer: TerminalViewer, rows: int = ROWS, columns: int = COLUMNS
    ) -> Terminal:
        """Look at a kernel's terminal; see ``sorna/model/terminal.py``."""
        return await self._ask(
            access_key,
            reference,
            lambda place: self.link.open_terminal(place.agent, place.kernel_id, viewer, rows, columns),
        )

    async def services(self, access_key: str, reference: str) -> Sequence[Service]:
        """List the applications that can be reached in a kernel."""
        return await self._ask(access_key, reference, lambda place: self.link.services(place.agent, place.kernel_id))

    async def open_tunnel(self, access_key: str, reference: str, user: TunnelUser, wish: TunnelWish) -> Tunnel:
        """Connect with an application in a kernel; see ``sorna/model/service.py``."""
        return await self._ask(
            access_key, reference, lambda place: self.link.open_tunnel(place.agent, place.kernel_id, user, wish)
        )

    async def stop_service(self, access_key: str, reference: str, name: str) -> None:
        """End an application that was started for a connection."""
        await self._ask(access_key, reference, lambda place: self.link.stop_service(place.agent, place.kernel_id, name))

    def _upload(self, file: UploadFile, place: KernelPlace) -> Coroutine[Any, Any, None]:
        return self.link.upload(place.agent, place.kernel_id, file)

    async def _ask(
        self,
        access_key: str,
        reference: str,
        call: Callable[[KernelPlace], Coroutine[Any, Any, T]],
        *,
        count: bool = True,
    ) -> T:
        """Await a call to a kernel's agent; its errors become those that the doors know."""
        place = await self.places.find(access_key, reference, count=count)
        try:
            try:
                return await call(place)
            except KernelNotFound:
                vanished = await self._vanished(place)
            # Its token may name the owner's next kernel by now, which this process was not told of.
            place = await self._next_of(access_key, reference, place, vanished)
            try:
                return await call(place)
            except KernelNotFound:
                raise await self._vanished(place) from None
        except AgentError as error:
            raise KernelExecutionFailed from error

    async def _next_of(
        self, access_key: str, reference: str, place: KernelPlace, vanished: KernelNotFound
    ) -> KernelPlace:
        """Find the kernel that a reference names now that the one it named has vanished."""
        if parse_kernel_id(reference) == place.kernel_id:
            raise vanished
        try:
            return await self.places.find(access_key, reference, count=False)
        except KernelNotFound:
            raise vanished from None

    async def _ask_about_ended(
        self,
        access_key: str,
        reference: str,
        call: Callable[[AgentAddress, uuid.UUID], Coroutine[Any, Any, T]],
    ) -> T:
        """Ask for what the agent of a kernel that has ended remembers of it.

        :raises KernelNotFound: the owner never had such a kernel.
        :raises OutputGone: the agent remembers nothing, or is gone itself.
        :raises RunNotFound: the kernel never came to be.
        """
        kernel = await self.places.row(access_key, reference)
        if kernel is None or not kernel.status.final:
            raise _not_found(kernel)
        if kernel.agent_id is None:
            raise RunNotFound(end_of(kernel))
        agent = await self.directory.find(kernel.agent_id)
        if agent is None:
            raise OutputGone(f"its agent is gone; the kernel is {end_of(kernel)}")
        try:
            return await call(agent.address, kernel.id)
        except KernelNotFound:
            raise OutputGone(f"it is not kept any more; the kernel is {end_of(kernel)}") from None
        except AgentError as error:
            raise KernelExecutionFailed from error

    async def _ask_about_file(
        self,
        access_key: str,
        reference: str,
        call: Callable[[KernelPlace], Coroutine[Any, Any, T]],
        *,
        count: bool = True,
    ) -> T:
        try:
            return await self._ask(access_key, reference, call, count=count)
        except KernelExecutionFailed as error:
            if isinstance(error.__cause__, AgentRefused):
                raise InvalidRequest(error.__cause__.detail) from error
            raise

    async def lives(self, access_key: str, reference: str) -> bool:
        """Tell whether the owner has such a kernel, without counting a query."""
        kernel = await self.places.row(access_key, reference)
        return kernel is not None and not kernel.status.final

    async def _kernel_to_destroy(self, access_key: str, reference: str) -> Kernel:
        kernel = await self.places.row(access_key, reference)
        if kernel is None or kernel.status.final:
            raise _not_found(kernel)
        return kernel

    async def _running_again(self, kernel_id: uuid.UUID, reason: str) -> None:
        kernel = await self.kernels.change_status(kernel_id, KernelStatus.RUNNING, reason, self.clock.seconds())
        if kernel is not None:
            await self.ending.announce(kernel)

    async def _vanished(self, place: KernelPlace) -> KernelNotFound:
        """See to it that the end of a kernel that its agent does not hold any more is written, and say what is known of it.

        One that is being destroyed is whoever does that's to write: with its reason, and with what it used. So is one
        that the agent remembers: its news is on the way, and is repeated until a manager has written it.
        """
        self.places.forget(place.kernel_id)
        kernel = await self.kernels.by_id(place.kernel_id)
        if kernel is not None and not kernel.status.final and kernel.status is not KernelStatus.TERMINATING:
            try:
                await self.link.destroy_kernel(place.agent, place.kernel_id, "lost")
            except KernelNotFound:
                self._log.info("kernel {kernel_id} is not on its agent any more", kernel_id=short_id(place.kernel_id))
                await self.ending.lost(place.kernel_id, "lost")
            kernel = await self.kernels.by_id(place.kernel_id)
        return _not_found(kernel)


def _only_asks(request: RunRequest) -> bool:
    """Tell whether a call to execute wants nothing but to hear how a run goes on."""
    return request.mode is RunMode.CONTINUE or (request.mode is not RunMode.INPUT and not request.code)


def _not_found(kernel: Kernel | None) -> KernelNotFound:
    return KernelNotFound(end_of(kernel) if kernel is not None else "")


def check_upload_path(path: str) -> None:
    """Refuse a path that cannot be meant well; the kernel's own side resolves the rest safely.

    :raises InvalidRequest: it is empty, absolute, too long, holds a NUL, or climbs.
    """
    parts = path.replace("\\", "/").split("/")
    if not path or "\0" in path or len(path.encode("utf-8", "surrogatepass")) > 1024:
        raise InvalidRequest("Invalid file name.")
    if path.startswith("/") or any(part in {"", ".", ".."} for part in parts):
        raise InvalidRequest(f"The path {path[:80]!r} does not stay inside the working directory.")


def _number(stats: Mapping[str, str], name: str) -> float:
    try:
        return float(stats.get(name, 0))
    except ValueError:
        return 0.0
