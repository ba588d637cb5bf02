"""What the manager needs from the rooms beneath it, as Protocols.

Each has one real and one in-memory implementation, and ``tests/contract`` holds both to the same suite.
Every method raises :class:`sorna.errors.Unavailable` when what it stands on does not answer within its own deadline.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from attrs import frozen

from sorna.manager.folder_interfaces import MountingKernel
from sorna.model.agent import Agent, AgentAddress
from sorna.model.census import Alike, Traces
from sorna.model.file import FileEntry, FilePiece
from sorna.model.kernel import Kernel, KernelSpec, KernelStatus, Usage
from sorna.model.keypair import Keypair, KeypairChanges
from sorna.model.policy import ResourcePolicy, Slots
from sorna.model.run import OutputRequest, RunReply, RunRequest
from sorna.model.selection import EVERYTHING, Selection
from sorna.model.service import Service, Tunnel, TunnelUser, TunnelWish
from sorna.model.terminal import COLUMNS, ROWS, Terminal, TerminalViewer
from sorna.model.usage import KeypairUsage


class KeypairStore(Protocol):
    """Keypairs in PostgreSQL."""

    async def by_access_key(self, access_key: str) -> Keypair | None:
        """Fetch one keypair, active or not."""
        ...

    async def by_access_keys(self, access_keys: Collection[str]) -> Sequence[Keypair]:
        """Fetch those of these keypairs that exist, in any order; one statement."""
        ...

    async def add(self, keypair: Keypair) -> bool:
        """Store a keypair; give False, changing nothing, when its access key is already there, or was once.

        :raises InvalidRequest: there is no such resource policy.
        """
        ...

    async def count(self) -> int:
        """Tell how many keypairs there are."""
        ...

    async def note_use(self, queries: Mapping[str, int], at: float) -> None:
        """Add to ``num_queries`` per access key and set ``last_used``; one statement for the whole batch."""
        ...


class KeypairFinder(Protocol):
    """Keypairs from memory, less than a second old."""

    async def find(self, access_key: str) -> Keypair | None:
        """Give the keypair, active or not, or None."""
        ...


class KeypairLists(KeypairStore, Protocol):
    """What administrators do with keypairs in PostgreSQL."""

    async def page(
        self, user_id: str | None, is_active: bool | None, offset: int, limit: int, selection: Selection = EVERYTHING
    ) -> Sequence[Keypair]:
        """List the keypairs of a user or of all, active ones or others or both, the newest first."""
        ...

    async def count_of(self, user_id: str | None, is_active: bool | None, selection: Selection = EVERYTHING) -> int:
        """Tell how many :meth:`page` would list without a limit."""
        ...

    async def modify(self, access_key: str, changes: KeypairChanges) -> bool:
        """Change a keypair; give False when there is none.

        :raises InvalidRequest: there is no such resource policy.
        """
        ...

    async def remove(self, access_key: str, now: float) -> bool | None:
        """Remove a keypair for good; the record of its kernels stays.

        :returns: False, changing nothing, while it has live kernels; None when there is no such keypair.
        """
        ...


class PolicyStore(Protocol):
    """Resource policies in PostgreSQL."""

    async def all(self) -> Sequence[ResourcePolicy]:
        """List the policies by name."""
        ...

    async def put(self, policy: ResourcePolicy) -> None:
        """Store a policy, or replace the one of its name."""
        ...

    async def remove(self, name: str) -> bool | None:
        """Remove a policy.

        :returns: False, changing nothing, while a keypair has it; None when there is no such policy.
        """
        ...


class KernelStore(Protocol):
    """Kernels in PostgreSQL, with the quota they hold."""

    async def reserve(self, kernel_id: uuid.UUID, spec: KernelSpec, now: float) -> tuple[Kernel, bool]:
        """Find the owner's live kernel of this session token, or write a PREPARING one and take a place of the quota.

        Atomic under concurrency across processes: one kernel per (owner, token), never more than the limit.

        :returns: the kernel, and whether it was made now.
        :raises QuotaExceeded: the owner has no free place (an existing kernel is found all the same).
        """
        ...

    async def change_status(
        self,
        kernel_id: uuid.UUID,
        after: KernelStatus,
        reason: str,
        now: float,
        *,
        agent_id: str | None = None,
        usage: Usage | None = None,
        num_queries: int | None = None,
        access_key: str | None = None,
    ) -> Kernel | None:
        """Change a status if :func:`sorna.model.kernel.may_change` allows it, else give None and change nothing.

        With an access key only a kernel of that owner is changed.

        A final status gives the quota back and writes the usage in the same transaction, exactly once.
        """
        ...

    async def by_id(self, kernel_id: uuid.UUID) -> Kernel | None:
        """Fetch a kernel of any status."""
        ...

    async def live_by_token(self, access_key: str, session_token: str) -> Kernel | None:
        """Fetch the owner's kernel of this token that is in no final status."""
        ...

    async def live(
        self, *, agent_id: str | None = None, after: uuid.UUID | None = None, limit: int = 500
    ) -> Sequence[Kernel]:
        """Page through kernels in no final status in order of id, of one agent or of all."""
        ...

    async def census(self, settled: float) -> Sequence[Alike]:
        """Give the names of all kernels in no final status, in groups, as they are at one moment; one statement.

        :param settled: kernels that have run since before this time are one group for each agent.
        """
        ...

    async def last_by_token(self, access_key: str, session_token: str) -> Kernel | None:
        """Fetch the owner's most recent kernel of this token, of any status."""
        ...

    async def changed(
        self,
        access_keys: Collection[str],
        since: float,
        *,
        after: tuple[float, uuid.UUID] | None = None,
        limit: int = 500,
    ) -> Sequence[Kernel]:
        """Page through kernels of these owners, of any status, whose last change of status was at ``since`` or later.

        In order of that change and of id; one statement. ``after`` is where the last page ended.
        """
        ...


@frozen
class KernelFilter:
    """Which kernels; None is any. ``statuses`` lists those that are wanted, and ``selection`` what else must be so.

    The order of a page is the selection's.

    :ivar before: those that are listed behind this place, the newest being first: a time of creation and an id.
    """

    access_key: str | None = None
    session_token: str | None = None
    statuses: frozenset[KernelStatus] | None = None
    before: tuple[float, uuid.UUID] | None = None
    selection: Selection = EVERYTHING


class KernelReports(Protocol):
    """Lists of kernels and sums over them, from PostgreSQL; one statement per call."""

    async def page(self, wanted: KernelFilter, offset: int, limit: int) -> Sequence[Kernel]:
        """List kernels, the newest first."""
        ...

    async def count(self, wanted: KernelFilter) -> int:
        """Tell how many kernels :meth:`page` would list without a limit."""
        ...

    async def newest_of_owners(
        self, access_keys: Collection[str], statuses: Collection[KernelStatus] | None, limit: int
    ) -> Sequence[Kernel]:
        """List the newest kernels of each of these owners, at most ``limit`` each, the newest of all first."""
        ...

    async def newest_of_agents(
        self, agent_ids: Collection[str], statuses: Collection[KernelStatus] | None, limit: int
    ) -> Sequence[Kernel]:
        """List the newest kernels of each of these agents, likewise."""
        ...

    async def occupied(self) -> Mapping[str, Slots]:
        """Give agent id -> what its live kernels take; agents without any are left out."""
        ...

    async def mounting(self, folder_ids: Collection[uuid.UUID] | None) -> Sequence[MountingKernel]:
        """List the live kernels that see one of these folders, or any folder where that is None."""
        ...

    async def usage(
        self, since: float, until: float, access_key: str | None, offset: int, limit: int
    ) -> Sequence[KeypairUsage]:
        """Sum up what one keypair or each used in a period (seconds since the epoch), in order of access key.

        Keypairs that used nothing are left out, removed ones are not. What counts is in :mod:`sorna.model.usage`.
        """
        ...


@frozen
class KernelPlace:
    """Where a live kernel is, as Redis has it.

    :ivar stats: figures of the agent's last heartbeat, and the limits: ``exec_timeout`` and ``idle_timeout`` in seconds,
        ``mem_limit`` in KiB.
    """

    kernel_id: uuid.UUID
    access_key: str
    session_token: str
    runtime: str
    requested_runtime: str
    agent: AgentAddress
    created_at: float
    num_queries: int
    stats: Mapping[str, str]


class LiveKernels(Protocol):
    """Live kernels in Redis db 1 and the session ids in db 3."""

    async def add(self, kernel: Kernel, agent: AgentAddress) -> None:
        """Write the kernel's hash (db 1), its membership of the instance's set (db 2) and its session id (db 3)."""
        ...

    async def use(self, access_key: str, reference: str, *, count: bool = True) -> KernelPlace | None:
        """Find a kernel by id (either spelling) or by the owner's session token, and count the query.

        Only a kernel of ``access_key`` is ever found. One round trip when the reference is an id.
        """
        ...

    async def count(self, queries: Mapping[uuid.UUID, int]) -> None:
        """Count queries of kernels that were found before; nothing happens to those that are gone. One round trip."""
        ...

    async def forget(self, kernel: Kernel) -> None:
        """Remove every trace of a kernel; harmless when there is none."""
        ...

    async def places(self, kernel_ids: Collection[uuid.UUID]) -> Mapping[uuid.UUID, KernelPlace]:
        """Find several kernels of any owner and count nothing; one round trip, unknown ones are left out."""
        ...

    async def absent(self, names: Collection[str]) -> Collection[str]:
        """Give those of these short ids that have no entry; one round trip."""
        ...

    async def traces(self, begin: str = "") -> Traces:
        """Give a part of what there is, some hundred names at the most; one round trip.

        What is there all the while is in some part, what comes or goes meanwhile may be; some may be in two.

        :param begin: the ``rest`` of the part before, or nothing for the first.
        """
        ...

    async def forget_traces(self, stale: Traces) -> int:
        """Remove every trace of kernels of which only names are known, as :meth:`forget` does, and tell how many there were."""
        ...


class AgentDirectory(Protocol):
    """Live agents from Redis db 2."""

    async def alive(self) -> Sequence[Agent]:
        """List the agents whose liveness key has not expired, in order of id; one round trip for some hundreds of agents."""
        ...

    async def find(self, agent_id: str) -> Agent | None:
        """Give one live agent, or None."""
        ...

    async def kernels_of(self, agent_id: str) -> frozenset[str]:
        """Give the short ids of the kernels the agent said it holds in its last heartbeat."""
        ...


@frozen
class RateState:
    """Where a keypair stands in its window. ``reset`` in milliseconds from now."""

    limit: int
    remaining: int
    reset: int


class RateCounters(Protocol):
    """Requests per keypair and window, in Redis db 4."""

    async def hit(self, access_key: str, limit: int) -> RateState:
        """Count one request in a window of 900 s that starts with the first one; atomic across processes.

        The first request of a window leaves ``remaining`` = limit, each later one takes one off, never below zero.

        :raises RateLimitExceeded: nothing remains; carries no state.
        """
        ...


class Announcements(Protocol):
    """Short messages between the managers of one installation (Redis pub/sub); any of them may be lost."""

    async def publish(self, topic: str, text: str) -> None:
        """Send to every subscriber of the topic, this process included."""
        ...

    def subscribe(self, topic: str, receive: Callable[[str], None]) -> Callable[[], None]:
        """Call ``receive`` for every message; gives a callable that ends the subscription."""
        ...


@frozen
class KernelOrder:
    """What an agent must know to make a kernel. ``spec.limits`` are final."""

    kernel_id: uuid.UUID
    spec: KernelSpec


@frozen
class UploadFile:
    """One file for the working directory. ``path`` is relative, as the client sent it; the agent resolves it safely."""

    path: str
    content: bytes


class AgentLink(Protocol):
    """Calls to agents. Every call raises AgentTimeout, AgentRefused or AgentFailed; KernelNotFound where a kernel is named."""

    def watch(self, addresses: Iterable[AgentAddress]) -> None:
        """Keep connected to exactly these agents, called or not, so that their news arrives."""
        ...

    async def restart_program(self, agent: AgentAddress) -> None:
        """Have an agent replace its program, while its kernels live on. :raises Unavailable: it cannot now."""
        ...

    async def create_kernel(self, agent: AgentAddress, order: KernelOrder) -> Sequence[Service]:
        """Make a kernel, ready to run code when this returns, and list its applications.

        Idempotent per id. NoAgentAvailable when it has no place.
        """
        ...

    async def destroy_kernel(self, agent: AgentAddress, kernel_id: uuid.UUID, reason: str) -> Usage:
        """End a kernel and give what it used; its processes are gone when this returns."""
        ...

    async def restart_kernel(self, agent: AgentAddress, kernel_id: uuid.UUID) -> None:
        """Throw the in-memory state away and keep the working directory."""
        ...

    async def execute(self, agent: AgentAddress, kernel_id: uuid.UUID, request: RunRequest) -> RunReply:
        """Start, continue or feed a run; see ``sorna/agent/runs.py`` for which. Cancelling gives the output back to the log."""
        ...

    async def read_output(self, agent: AgentAddress, kernel_id: uuid.UUID, request: OutputRequest) -> RunReply:
        """Read a run's output from a number on, again if need be, also of a kernel that has ended.

        RunNotFound when there never was such a run, OutputGone when its output is not kept any more.
        """
        ...

    async def interrupt(self, agent: AgentAddress, kernel_id: uuid.UUID) -> None:
        """Send SIGINT to what runs now; harmless when nothing does."""
        ...

    async def complete(
        self, agent: AgentAddress, kernel_id: uuid.UUID, code: str, options: Mapping[str, Any]
    ) -> Sequence[str]:
        """Give completions at ``options`` row, col, line, post."""
        ...

    async def upload(self, agent: AgentAddress, kernel_id: uuid.UUID, file: UploadFile) -> None:
        """Write one file below the working directory, as the kernel's own user. AgentRefused when the path climbs out."""
        ...

    async def list_files(
        self, agent: AgentAddress, kernel_id: uuid.UUID, path: str, *, recursive: bool
    ) -> Sequence[FileEntry]:
        """List a directory below the working directory, with all below it if ``recursive``; else one entry without a name.

        AgentRefused when the path climbs out, or is none, or holds more than can be listed.
        """
        ...

    async def read_file(
        self, agent: AgentAddress, kernel_id: uuid.UUID, path: str, offset: int, size: int
    ) -> FilePiece:
        """Give at most ``size`` bytes of a regular file from ``offset`` on. AgentRefused when it is none."""
        ...

    async def usage(self, agent: AgentAddress, kernel_id: uuid.UUID) -> Usage:
        """Give what the kernel has used so far."""
        ...

    async def drain(self, agent: AgentAddress, *, draining: bool) -> None:
        """Tell an agent to refuse new kernels and to stop when it has none, or to go on as before."""
        ...

    async def logs(self, agent: AgentAddress, kernel_id: uuid.UUID) -> str:
        """Give the kernel's recent console output as text."""
        ...

    async def open_terminal(
        self,
        agent: AgentAddress,
        kernel_id: uuid.UUID,
        viewer: TerminalViewer,
        rows: int = ROWS,
        columns: int = COLUMNS,
    ) -> Terminal:
        """Look at a kernel's terminal; see ``sorna/model/terminal.py``. A lost connection ends it, with a reason."""
        ...

    async def services(self, agent: AgentAddress, kernel_id: uuid.UUID) -> Sequence[Service]:
        """List the applications that can be reached in a kernel."""
        ...

    async def open_tunnel(
        self, agent: AgentAddress, kernel_id: uuid.UUID, user: TunnelUser, wish: TunnelWish
    ) -> Tunnel:
        """Connect with an application; see ``sorna/model/service.py``. A lost connection ends it, with a reason.

        InvalidRequest when there is nothing to be reached, Unavailable when too much is open.
        """
        ...

    async def stop_service(self, agent: AgentAddress, kernel_id: uuid.UUID, name: str) -> None:
        """End an application that was started for a connection. InvalidRequest when it is none that is started there."""
        ...


@frozen
class KernelEnded:
    """An agent's news that a kernel is gone. Repeated on every connection until it is acknowledged."""

    agent_id: str
    kernel_id: uuid.UUID
    reason: str
    usage: Usage


OnKernelEnded = Callable[[KernelEnded], Awaitable[None]]
