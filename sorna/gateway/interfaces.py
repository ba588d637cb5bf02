"""What the HTTP door needs from the manager, as Protocols; ``sorna.manager`` implements them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred

from sorna.manager.interfaces import KernelFilter, RateState, UploadFile
from sorna.manager.requests import AgentDescription, Created, CreateRequest, KernelEvent, KernelInfo
from sorna.model.file import FileEntry, FilePiece
from sorna.model.folder import Folder, FolderAccess
from sorna.model.kernel import Kernel, KernelStatus, Usage
from sorna.model.keypair import Keypair, KeypairChanges
from sorna.model.placement import Judgement
from sorna.model.policy import ResourcePolicy
from sorna.model.queue import QueuePlace
from sorna.model.run import OutputRequest, RunReply, RunRequest
from sorna.model.selection import EVERYTHING, Selection
from sorna.model.service import Service, Tunnel, TunnelUser, TunnelWish
from sorna.model.terminal import COLUMNS, ROWS, Terminal, TerminalViewer
from sorna.model.usage import KeypairUsage

T = TypeVar("T")


class Kernels(Protocol):
    """Everything a client can do with kernels.

    ``reference`` is a kernel id in either spelling or the owner's session token. Every method with one raises
    KernelNotFound for a kernel that is gone or belongs to another access key, and counts the query unless it says otherwise.
    Every method may raise Unavailable.
    """

    async def create(self, request: CreateRequest, gone: Deferred[None] | None = None) -> Created:
        """Get or create.

        :raises InvalidRequest, RuntimeUnknown, QuotaExceeded, KernelAlreadyExists, NoAgentAvailable,
            KernelCreationFailed: nothing is left behind.
        """
        ...

    async def info(self, access_key: str, reference: str) -> KernelInfo:
        """Describe a live kernel, this query included in its count."""
        ...

    async def check(self, access_key: str, reference: str) -> None:
        """Find out whether there is such a kernel, as far as is known without asking for it again; not counted as a query."""
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

    async def read_output(self, access_key: str, reference: str, request: OutputRequest) -> RunReply:
        """Read the output of a run from a number on, also of a kernel that has ended; not counted as a query.

        :raises RunNotFound: the kernel never had such a run.
        :raises OutputGone: the output is not kept any more, or was lost with its agent.
        :raises KernelExecutionFailed:.
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

    async def watch(
        self, access_key: str, reference: str | None, receive: Callable[[KernelEvent], None]
    ) -> Callable[[], None]:
        """Call ``receive`` for every change of one live kernel, or of all of the owner when ``reference`` is None.

        :returns: what ends it.
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

    async def services(self, access_key: str, reference: str) -> Sequence[Service]:
        """List the applications that can be reached in a kernel. :raises KernelExecutionFailed:."""
        ...

    async def open_tunnel(self, access_key: str, reference: str, user: TunnelUser, wish: TunnelWish) -> Tunnel:
        """Connect with an application in a kernel; whether that succeeds, the user learns later.

        :raises InvalidRequest: there is nothing to be reached.
        :raises KernelExecutionFailed:.
        """
        ...

    async def stop_service(self, access_key: str, reference: str, name: str) -> None:
        """End an application that was started for a connection; harmless when it does not run.

        :raises InvalidRequest: it is none that is started by the server.
        :raises KernelExecutionFailed:.
        """
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


class Administration(Protocol):
    """Questions about many things at once, and changes of keypairs and policies; :class:`sorna.manager.administration.Administration`.

    Lists come the newest first. Whose things a caller may see is for the door to decide. Every method may raise Unavailable.
    """

    async def keypairs(
        self, user_id: str | None, is_active: bool | None, offset: int, limit: int, selection: Selection = EVERYTHING
    ) -> Sequence[Keypair]:
        """List keypairs."""
        ...

    async def count_keypairs(
        self, user_id: str | None, is_active: bool | None, selection: Selection = EVERYTHING
    ) -> int:
        """Tell how many keypairs there are."""
        ...

    async def keypairs_named(self, access_keys: Collection[str]) -> Mapping[str, Keypair]:
        """Give access key -> keypair for those that exist."""
        ...

    async def create_keypair(self, user_id: str, wishes: KeypairChanges) -> Keypair:
        """Make a keypair. :raises InvalidRequest:."""
        ...

    async def modify_keypair(self, access_key: str, changes: KeypairChanges) -> None:
        """Change a keypair. :raises InvalidRequest, NotFound:."""
        ...

    async def remove_keypair(self, access_key: str) -> None:
        """Remove a keypair without live kernels for good. :raises InvalidRequest, NotFound:."""
        ...

    async def policies(self) -> Sequence[ResourcePolicy]:
        """List the resource policies by name."""
        ...

    async def put_policy(self, policy: ResourcePolicy) -> None:
        """Store a policy, or replace the one of its name. :raises InvalidRequest:."""
        ...

    async def remove_policy(self, name: str) -> None:
        """Remove a policy that no keypair has. :raises InvalidRequest, NotFound:."""
        ...

    async def kernels(self, wanted: KernelFilter, offset: int, limit: int) -> Sequence[Kernel]:
        """List kernels."""
        ...

    async def count_kernels(self, wanted: KernelFilter) -> int:
        """Tell how many kernels there are."""
        ...

    async def kernel(self, access_key: str | None, reference: str) -> Kernel | None:
        """Give the kernel of an id, or the newest of a session token; of any owner when ``access_key`` is None."""
        ...

    async def kernels_of_owners(
        self, access_keys: Collection[str], statuses: Collection[KernelStatus] | None, limit: int
    ) -> Sequence[Kernel]:
        """List the newest kernels of each of these owners, at most ``limit`` each."""
        ...

    async def folders(
        self, owner: str | None, offset: int, limit: int, selection: Selection = EVERYTHING
    ) -> Sequence[Folder]:
        """List virtual folders."""
        ...

    async def count_folders(self, owner: str | None, selection: Selection = EVERYTHING) -> int:
        """Tell how many virtual folders there are."""
        ...

    async def folders_shared_with(self, access_key: str) -> Sequence[FolderAccess]:
        """List the virtual folders that others share with an access key, in order of their names."""
        ...

    async def folders_of_owners(self, access_keys: Collection[str], limit: int) -> Sequence[Folder]:
        """List the newest virtual folders of each of these owners, at most ``limit`` each."""
        ...

    async def kernels_of_agents(
        self, agent_ids: Collection[str], statuses: Collection[KernelStatus] | None, limit: int
    ) -> Sequence[Kernel]:
        """List the newest kernels of each of these agents, at most ``limit`` each."""
        ...

    async def figures(self, kernels: Collection[Kernel]) -> Mapping[uuid.UUID, Kernel]:
        """Give each of these kernels with what it has used until now."""
        ...

    async def queue_places(self, kernel_ids: Collection[uuid.UUID]) -> Mapping[uuid.UUID, QueuePlace]:
        """Tell where those of these kernels stand that wait for an agent."""
        ...

    async def agents(self) -> Sequence[AgentDescription]:
        """Describe every agent that was ever enrolled, in order of id."""
        ...

    async def explain_placement(
        self, runtime: str, cpu_cores: float, memory: int, gpus: int | None, labels: Collection[str]
    ) -> Sequence[Judgement]:
        """Judge every live agent for a kernel, those first that would be chosen first. :raises InvalidRequest:."""
        ...

    async def drain_agent(self, agent_id: str, wait: float | None) -> None:
        """Give an agent no new kernels, end those left after ``wait`` seconds, let it stop. :raises InvalidRequest, NotFound:."""
        ...

    async def undrain_agent(self, agent_id: str) -> None:
        """Give an agent kernels again. :raises NotFound:."""
        ...

    async def usage(
        self, since: float, until: float, access_key: str | None, offset: int, limit: int
    ) -> Sequence[KeypairUsage]:
        """Sum up what keypairs used in a period, in order of access key. :raises InvalidRequest:."""
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
