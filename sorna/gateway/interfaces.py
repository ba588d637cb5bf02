"""What the HTTP door needs from the manager, as Protocols; ``sorna.manager`` implements them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred

from sorna.manager.interfaces import RateState, UploadFile
from sorna.manager.requests import Created, CreateRequest, KernelInfo
from sorna.model.file import FileEntry, FilePiece
from sorna.model.kernel import Usage
from sorna.model.keypair import Keypair
from sorna.model.run import RunReply, RunRequest
from sorna.model.terminal import COLUMNS, ROWS, Terminal, TerminalViewer

T = TypeVar("T")


class Kernels(Protocol):
    """Everything a client can do with kernels.

    ``reference`` is a kernel id in either spelling or the owner's session token. Every method with one raises
    KernelNotFound for a kernel that is gone or belongs to another access key, and counts the query unless it says otherwise.
    Every method may raise Unavailable.
    """

    async def create(self, request: CreateRequest) -> Created:
        """Get or create.

        :raises InvalidRequest, RuntimeUnknown, QuotaExceeded, KernelAlreadyExists, NoAgentAvailable,
            KernelCreationFailed: nothing is left behind.
        """
        ...

    async def info(self, access_key: str, reference: str) -> KernelInfo:
        """Describe a live kernel, this query included in its count."""
        ...

    async def restart(self, access_key: str, reference: str) -> None:
        """Lose the in-memory state, keep the files. :raises KernelRestartFailed:."""
        ...

    async def destroy(self, access_key: str, reference: str) -> Usage:
        """End a kernel; its processes are gone when this returns. :raises KernelDestructionFailed:."""
        ...

    async def execute(self, access_key: str, reference: str, request: RunRequest) -> RunReply:
        """Run code, or continue or feed the run that is outstanding.

        :raises InvalidRequest: nothing waits for input, or the run is not known.
        :raises KernelExecutionFailed: its cause is an AgentError.
        """
        ...

    async def interrupt(self, access_key: str, reference: str) -> None:
        """Interrupt what runs now. :raises KernelExecutionFailed:."""
        ...

    async def complete(self, access_key: str, reference: str, code: str, options: Mapping[str, Any]) -> Sequence[str]:
        """Complete code at a position. :raises KernelExecutionFailed:."""
        ...

    async def upload(self, access_key: str, reference: str, files: Sequence[UploadFile]) -> None:
        """Write files below the working directory; none is written when a path of any climbs out.

        :raises InvalidRequest: a path is empty, absolute, climbs out, or cannot be written.
        :raises KernelExecutionFailed:.
        """
        ...

    async def list_files(
        self, access_key: str, reference: str, path: str, *, recursive: bool = False
    ) -> Sequence[FileEntry]:
        """List a directory below the working directory, or describe with one entry without a name what else is there.

        :raises InvalidRequest: the path climbs out, or there is nothing, or too much.
        :raises KernelExecutionFailed:.
        """
        ...

    async def read_file(self, access_key: str, reference: str, path: str, offset: int, size: int) -> FilePiece:
        """Read at most ``size`` bytes of a file, not counted as a query.

        :raises InvalidRequest: it is no regular file below the working directory.
        :raises KernelExecutionFailed:.
        """
        ...

    async def logs(self, access_key: str, reference: str) -> str:
        """Give the kernel's recent console output."""
        ...

    async def open_terminal(
        self, access_key: str, reference: str, viewer: TerminalViewer, rows: int = ROWS, columns: int = COLUMNS
    ) -> Terminal:
        """Look at a kernel's terminal. :raises KernelExecutionFailed:."""
        ...


class Keypairs(Protocol):
    """Keypairs for authentication, cached, so that a request normally needs no query."""

    async def find(self, access_key: str) -> Keypair | None:
        """Give the keypair, active or not; changes are seen within a second."""
        ...

    def watch(self, access_key: str, on_change: Callable[[Keypair | None], None]) -> Callable[[], None]:
        """Call ``on_change`` with the keypair as it is now, None when it is gone: soon, and within a second of every change.

        A stream that is open in the keypair's name closes when there is no keypair or it is not active.

        :returns: a callable that ends the watch.
        """
        ...

    def used(self, access_key: str) -> None:
        """Note one authorised request; written to the database later, many at a time."""
        ...


class RateLimits(Protocol):
    """The rate limiter."""

    async def hit(self, access_key: str, limit: int) -> RateState:
        """Count one request. :raises RateLimitExceeded:."""
        ...


class Operations(Protocol):
    """Work that must finish although the client that asked for it has gone."""

    def detach(self, work: Coroutine[Any, Any, T]) -> Deferred[T]:
        """Start ``work`` and give its result; cancelling what this gives leaves the work alone.

        :raises Unavailable: through the Deferred, when the process is stopping.
        """
        ...


class Readiness(Protocol):
    """Whether the process can serve kernels yet."""

    @property
    def is_ready(self) -> bool:
        """Whether nothing is waited for."""
        ...

    @property
    def reason(self) -> str:
        """What is waited for, as one line without secrets; empty when ready."""
        ...
