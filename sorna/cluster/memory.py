"""The link to agents without a network: calls go straight to operations in the same process.

A verified fake: ``tests/contract/test_agent_link.py`` holds it and the real link to the same promises. What crosses it goes
through the real messages, so that what could not travel does not travel here either. It knows deadlines and cancellation,
and no connection: an agent is there or it is not.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from sorna.cluster.messages import (
    Answer,
    Call,
    decode,
    encode,
    error_to_failed,
    failed_to_error,
    pack_file_entries,
    pack_value,
    unpack_file_entries,
    unpack_file_piece,
    unpack_run_reply,
    unpack_services,
    unpack_usage,
)
from sorna.errors import AgentTimeout, InvalidRequest, SornaError
from sorna.manager.interfaces import KernelEnded, KernelOrder, OnKernelEnded, UploadFile
from sorna.model.agent import AgentAddress
from sorna.model.file import FileEntry, FilePiece
from sorna.model.kernel import Usage
from sorna.model.run import OutputRequest, RunReply, RunRequest
from sorna.model.service import Service, Tunnel, TunnelUser, TunnelWish
from sorna.model.terminal import COLUMNS, ROWS, Terminal, TerminalViewer, within_bounds

if TYPE_CHECKING:
    # Only its shape: the manager's side loads nothing of the agent.
    from sorna.agent.interfaces import AgentOperations

T = TypeVar("T")

DEADLINE = 10.0
REPEAT = 2.0


class MemoryAgentLink:
    """Calls to the agents of ``operations``, by agent id; the mapping may change at any time.

    :param on_kernel_ended: is given the news of :meth:`kernel_ended` until it returns without an error.
    """

    _log = Logger()

    def __init__(
        self, clock: IReactorTime, operations: Mapping[str, AgentOperations], on_kernel_ended: OnKernelEnded
    ) -> None:
        self._clock = clock
        self._operations = operations
        self._on_kernel_ended = on_kernel_ended
        self._news: dict[uuid.UUID, KernelEnded] = {}
        self.restarted: list[str] = []
        self.watched: frozenset[AgentAddress] = frozenset()

    def watch(self, addresses: Iterable[AgentAddress]) -> None:
        """Remember which agents are watched; news arrives in any case."""
        self.watched = frozenset(addresses)

    async def restart_program(self, agent: AgentAddress) -> None:
        """Have an agent replace its program."""
        if agent.agent_id not in self._operations:
            raise AgentTimeout(f"agent {agent.agent_id} cannot be reached")
        self.restarted.append(agent.agent_id)

    async def create_kernel(self, agent: AgentAddress, order: KernelOrder) -> Sequence[Service]:
        """Make a kernel."""
        wish = {"kernel_id": order.kernel_id.bytes, "spec": pack_value(order.spec)}
        return unpack_services(
            await self._call(agent, wish, lambda there: _each_packed(there.create_kernel(order.kernel_id, order.spec)))
        )

    async def destroy_kernel(self, agent: AgentAddress, kernel_id: uuid.UUID, reason: str) -> Usage:
        """End a kernel."""
        return unpack_usage(
            await self._call(agent, {"reason": reason}, lambda there: _packed(there.destroy_kernel(kernel_id, reason)))
        )

    async def restart_kernel(self, agent: AgentAddress, kernel_id: uuid.UUID) -> None:
        """Restart a kernel."""
        await self._call(agent, {}, lambda there: there.restart_kernel(kernel_id))

    async def execute(self, agent: AgentAddress, kernel_id: uuid.UUID, request: RunRequest) -> RunReply:
        """Start, continue or feed a run."""
        deadline = None if request.wait is None else request.wait + DEADLINE
        answer = await self._call(
            agent,
            {"request": pack_value(request)},
            lambda there: _packed(there.execute(kernel_id, request)),
            deadline,
        )
        return unpack_run_reply(answer)

    async def read_output(self, agent: AgentAddress, kernel_id: uuid.UUID, request: OutputRequest) -> RunReply:
        """Read a run's output."""
        wish = {"request": pack_value(request)}
        answer = await self._call(
            agent, wish, lambda there: _packed(there.read_output(kernel_id, request)), request.wait + DEADLINE
        )
        return unpack_run_reply(answer)

    async def interrupt(self, agent: AgentAddress, kernel_id: uuid.UUID) -> None:
        """Interrupt what runs."""
        await self._call(agent, {}, lambda there: there.interrupt(kernel_id))

    async def complete(
        self, agent: AgentAddress, kernel_id: uuid.UUID, code: str, options: Mapping[str, Any]
    ) -> Sequence[str]:
        """Give completions."""
        found: Sequence[str] = await self._call(
            agent,
            {"code": code, "options": dict(options)},
            lambda there: _listed(there.complete(kernel_id, code, options)),
        )
        return found

    async def upload(self, agent: AgentAddress, kernel_id: uuid.UUID, file: UploadFile) -> None:
        """Write one file."""
        wish = {"path": file.path, "content": file.content}
        await self._call(agent, wish, lambda there: there.upload(kernel_id, file.path, file.content))

    async def list_files(
        self, agent: AgentAddress, kernel_id: uuid.UUID, path: str, *, recursive: bool
    ) -> Sequence[FileEntry]:
        """List a directory."""
        wish = {"path": path, "recursive": recursive}
        return unpack_file_entries(
            await self._call(
                agent, wish, lambda there: _entries(there.list_files(kernel_id, path, recursive=recursive))
            )
        )

    async def read_file(
        self, agent: AgentAddress, kernel_id: uuid.UUID, path: str, offset: int, size: int
    ) -> FilePiece:
        """Read a piece of a file."""
        wish = {"path": path, "offset": offset, "size": size}
        return unpack_file_piece(
            await self._call(agent, wish, lambda there: _packed(there.read_file(kernel_id, path, offset, size)))
        )

    async def drain(self, agent: AgentAddress, *, draining: bool) -> None:
        """Tell an agent to refuse new kernels, or to take them again."""
        await self._call(agent, {"draining": draining}, lambda there: there.drain(draining=draining))

    async def usage(self, agent: AgentAddress, kernel_id: uuid.UUID) -> Usage:
        """Give what the kernel has used."""
        return unpack_usage(await self._call(agent, {}, lambda there: _packed(there.usage(kernel_id))))

    async def logs(self, agent: AgentAddress, kernel_id: uuid.UUID) -> str:
        """Give the kernel's recent output."""
        text: str = await self._call(agent, {}, lambda there: there.logs(kernel_id))
        return text

    async def open_terminal(
        self,
        agent: AgentAddress,
        kernel_id: uuid.UUID,
        viewer: TerminalViewer,
        rows: int = ROWS,
        columns: int = COLUMNS,
    ) -> Terminal:
        """Look at a kernel's terminal."""
        opened: list[Terminal] = []

        async def look(there: AgentOperations) -> None:
            opened.append(await there.open_terminal(kernel_id, viewer, *within_bounds(rows, columns)))

        await self._call(agent, {}, look)
        return opened[0]

    async def services(self, agent: AgentAddress, kernel_id: uuid.UUID) -> Sequence[Service]:
        """List a kernel's applications."""
        return unpack_services(await self._call(agent, {}, lambda there: _each_packed(there.services(kernel_id))))

    async def open_tunnel(
        self, agent: AgentAddress, kernel_id: uuid.UUID, user: TunnelUser, wish: TunnelWish
    ) -> Tunnel:
        """Open a tunnel."""
        opened: list[Tunnel] = []

        async def dig(there: AgentOperations) -> None:
            opened.append(await there.open_tunnel(kernel_id, user, wish))

        await self._call(agent, {"wish": pack_value(wish)}, dig)
        return opened[0]

    async def stop_service(self, agent: AgentAddress, kernel_id: uuid.UUID, name: str) -> None:
        """End an application."""
        await self._call(agent, {"name": name}, lambda there: there.stop_service(kernel_id, name))

    async def _call(
        self,
        agent: AgentAddress,
        wish: Mapping[str, Any],
        carry_out: Callable[[AgentOperations], Awaitable[Any]],
        deadline: float | None = DEADLINE,
    ) -> Any:
        try:
            encode(Call(1, "call", wish, DEADLINE))
        except (ValueError, TypeError, OverflowError) as error:
            raise InvalidRequest(f"a value cannot be sent to the agent: {error}"[:500]) from error
        operations = self._operations.get(agent.agent_id)
        if operations is None:
            raise AgentTimeout(f"agent {agent.agent_id} cannot be reached")
        work: Deferred[Any] = Deferred.fromCoroutine(self._work(carry_out(operations)))
        if deadline is not None:
            work.addTimeout(deadline, self._clock)
        try:
            answer = decode(encode(Answer(1, await work)))
        except defer.TimeoutError as error:
            raise AgentTimeout(f"agent {agent.agent_id} did not answer within {deadline:g} s") from error
        return answer.result if isinstance(answer, Answer) else None

    async def _work(self, pending: Awaitable[Any]) -> Any:
        try:
            return await pending
        except defer.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 -- raised again, as what the manager would get
            if not isinstance(error, SornaError):
                self._log.failure("an operation failed")
            raise failed_to_error(error_to_failed(1, error)) from None

    def kernel_ended(self, agent_id: str, kernel_id: uuid.UUID, reason: str, usage: Usage) -> None:
        """Be the news of an agent: told now, and again until it was taken care of."""
        if kernel_id not in self._news:
            self._news[kernel_id] = KernelEnded(agent_id, kernel_id, reason, usage)
            self._tell(kernel_id)

    def _tell(self, kernel_id: uuid.UUID) -> None:
        Deferred.fromCoroutine(self._take_care(kernel_id))

    async def _take_care(self, kernel_id: uuid.UUID) -> None:
        try:
            await self._on_kernel_ended(self._news[kernel_id])
        except Exception:  # noqa: BLE001 -- told again, as the real link does
            self._log.failure("the end of kernel {kernel_id} could not be recorded", kernel_id=str(kernel_id))
            self._clock.callLater(REPEAT, self._tell, kernel_id)
        else:
            del self._news[kernel_id]


async def _packed(pending: Awaitable[Any]) -> Any:
    return pack_value(await pending)


async def _entries(pending: Awaitable[Any]) -> Any:
    return pack_file_entries(await pending)


async def _listed(pending: Awaitable[Any]) -> Any:
    return list(await pending)


async def _each_packed(pending: Awaitable[Any]) -> Any:
    return [pack_value(one) for one in await pending]
