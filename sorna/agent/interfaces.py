"""What the agent needs from an isolation tier, and what the link needs from the agent, as Protocols; knows no mechanism."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from attrs import field, frozen
from twisted.internet.defer import Deferred

from sorna.model.agent import Heartbeat
from sorna.model.file import FileEntry, FilePiece
from sorna.model.folder import Mount
from sorna.model.kernel import KernelSpec, Usage
from sorna.model.limits import Limits
from sorna.model.run import OutputRequest, RunReply, RunRequest
from sorna.model.service import Service, Tunnel, TunnelUser, TunnelWish
from sorna.model.terminal import Terminal, TerminalViewer


@frozen
class SandboxSpec:
    """One kernel to be confined.

    :ivar stack: which warm zygote to fork from: ``python3`` (libraries imported) or ``commands`` (lean).
    :ivar limits: memory, processes, cpu_cores, file_size, scratch_size and open_files are the tier's to enforce;
        times and output size are the agent's.
    :ivar devices: paths of the host's device nodes that the kernel sees in its ``/dev``.
    """

    kernel_id: str
    stack: str
    limits: Limits
    hostname: str = "sorna"
    environ: Mapping[str, str] = field(factory=dict)
    mounts: Sequence[Mount] = ()
    devices: Sequence[str] = ()


@frozen
class KernelExit:
    """Why a kernel's first process is gone. ``status`` as ``os.waitstatus_to_exitcode`` gives it."""

    status: int
    out_of_memory: bool
    usage: Usage


@frozen
class LimitHits:
    """How often the kernel ran into a limit so far; -1 where the host cannot tell."""

    out_of_memory: int
    processes: int


class ConfinedKernel(Protocol):
    """A kernel whose first process (``runners/init.py``) is running.

    :ivar channel: the agent's end of a connected, non-blocking ``AF_UNIX`` ``SOCK_STREAM`` pair that carries the frames of
        ``runners/frames.py``; the agent owns and closes it.
    :ivar own_network: whether its loopback is its own, and not its host's.
    :ivar exited: fires once, when every process of the kernel is gone and nothing of it is left on the host.
    """

    kernel_id: str
    own_network: bool
    pid: int
    channel: socket.socket
    exited: Deferred[KernelExit]

    def usage(self) -> Usage:
        """Read the kernel's counters now; cheap enough to call at each run's end."""
        ...

    def limit_hits(self) -> LimitHits:
        """Read how often a limit was hit; cheap enough to call at each run's end."""
        ...

    def adjust(self, limits: Limits) -> None:
        """Enforce these limits from now on; they differ from those it was made with only as ``Sandbox.template`` allows.

        :raises AgentFailed: they cannot be enforced; the kernel must not run anybody's code.
        """
        ...

    def kill(self) -> None:
        """Kill every process of the kernel; ``exited`` fires when they are gone. Harmless when they are."""
        ...


class Sandbox(Protocol):
    """One isolation tier.

    :ivar storage: id of the folders' storage that kernels of this tier can see once it has started; empty for none.
    """

    name: str
    storage: str

    async def start(self) -> None:
        """Make ready: check the host, warm the zygotes.

        :raises IsolationUnavailable: this host cannot; the detail says what is missing.
        """
        ...

    async def spawn(self, spec: SandboxSpec) -> ConfinedKernel:
        """Confine one kernel; its init is running and waits for the first frame when this returns.

        :raises AgentFailed: it could not be made; nothing of it is left.
        """
        ...

    @property
    def held(self) -> int:
        """How many kernels there are, those included that come or go."""
        ...

    @property
    def settled(self) -> bool:
        """Whether nothing goes on that another program could not go on with."""
        ...

    def carry(self) -> Mapping[str, Any]:
        """Give what another program of this process needs to hold what there is; nothing here goes on."""
        ...

    async def take_over(self, state: Mapping[str, Any], channels: Mapping[str, int]) -> Mapping[str, ConfinedKernel]:
        """Hold what another program of this process has carried, instead of :meth:`start`.

        :param channels: kernel id -> descriptor of its channel.
        """
        ...

    def template(self, limits: Limits) -> Limits:
        """Give the limits of a kernel that can be made now and be adjusted to ``limits`` later; one value for many wishes."""
        ...

    async def stop(self) -> None:
        """Kill every kernel and zygote; nothing is left when this returns."""
        ...


@frozen
class SandboxSettings:
    """What every tier is built from.

    :ivar python: the interpreter of the ``python3`` runtime.
    :ivar preload: modules the ``python3`` zygote imports; one that is missing is skipped.
    :ivar read_only: host paths a kernel may read besides the system's own, for tools outside ``/usr``.
    :ivar folder_root: the root directory of the folders' storage; empty for none.
    :ivar uid_range: first host uid for kernels and how many, when the agent runs as root.
    """

    python: str
    preload: Sequence[str] = ()
    read_only: Sequence[str] = ()
    uid_range: tuple[int, int] = (1_879_048_192, 65_536)
    folder_root: str = ""


class AgentOperations(Protocol):
    """Everything a manager may ask of this agent; the link calls it, ``agent/kernels.py`` implements it.

    Every method that names a kernel raises KernelNotFound when this agent does not hold it.
    """

    async def create_kernel(self, kernel_id: uuid.UUID, spec: KernelSpec) -> Sequence[Service]:
        """Make a kernel, ready to run code when this returns; harmless when it is there already.

        :returns: the applications that can be reached in it.
        :raises RuntimeUnknown, NoAgentAvailable, AgentFailed: nothing is left of it.
        """
        ...

    async def destroy_kernel(self, kernel_id: uuid.UUID, reason: str) -> Usage:
        """End a kernel; its processes are gone when this returns."""
        ...

    async def restart_kernel(self, kernel_id: uuid.UUID) -> None:
        """Throw the in-memory state away and keep the working directory."""
        ...

    async def execute(self, kernel_id: uuid.UUID, request: RunRequest) -> RunReply:
        """Start, continue or feed a run. When this coroutine is cancelled, the output it had taken goes back.

        :raises InvalidRequest: nothing waits for input, or the run is unknown.
        """
        ...

    def hand_over(self, kernel_id: uuid.UUID, run_id: str) -> Callable[[bool], None] | None:
        """Note, in the same turn of the reactor, that the answer of :meth:`execute` for this run is on its way.

        :returns: what to call with whether it arrived; when it did not, its output is unread again. None when nothing is
            known of the run any more.
        """
        ...

    async def read_output(self, kernel_id: uuid.UUID, request: OutputRequest) -> RunReply:
        """Read a run's output from a number on, waiting for something new, also of a kernel that has ended.

        :raises RunNotFound: there never was such a run.
        :raises OutputGone: its output is not kept any more.
        """
        ...

    async def interrupt(self, kernel_id: uuid.UUID) -> None:
        """Send SIGINT to what runs now."""
        ...

    async def complete(self, kernel_id: uuid.UUID, code: str, options: Mapping[str, Any]) -> Sequence[str]:
        """Give completions."""
        ...

    async def upload(self, kernel_id: uuid.UUID, path: str, content: bytes) -> None:
        """Write one file below the working directory. :raises AgentRefused: the path climbs out or cannot be written."""
        ...

    async def list_files(self, kernel_id: uuid.UUID, path: str, *, recursive: bool) -> Sequence[FileEntry]:
        """List a directory below the working directory. :raises AgentRefused: it climbs out, or there is none."""
        ...

    async def read_file(self, kernel_id: uuid.UUID, path: str, offset: int, size: int) -> FilePiece:
        """Read a piece of a file below the working directory. :raises AgentRefused: it climbs out, or is none."""
        ...

    async def usage(self, kernel_id: uuid.UUID) -> Usage:
        """Give what the kernel has used so far."""
        ...

    async def drain(self, *, draining: bool) -> None:
        """Refuse new kernels from now on and stop when there are none, or go on as before."""
        ...

    async def logs(self, kernel_id: uuid.UUID) -> str:
        """Give the kernel's recent console output as text."""
        ...

    async def open_terminal(self, kernel_id: uuid.UUID, viewer: TerminalViewer, rows: int, columns: int) -> Terminal:
        """Look at a kernel's terminal. :raises Unavailable: too many do."""
        ...

    async def services(self, kernel_id: uuid.UUID) -> Sequence[Service]:
        """List the applications that can be reached in a kernel."""
        ...

    async def open_tunnel(self, kernel_id: uuid.UUID, user: TunnelUser, wish: TunnelWish) -> Tunnel:
        """Connect with an application in a kernel, which is started if need be; whether that succeeds, the user learns later.

        :raises InvalidRequest: it may not be reached.
        :raises Unavailable: too many connections are open.
        """
        ...

    async def stop_service(self, kernel_id: uuid.UUID, name: str) -> None:
        """End an application that was started for a connection. :raises InvalidRequest: it is none that is started here."""
        ...


class AgentNews(Protocol):
    """Where the agent puts news for its managers; kept and repeated until a manager acknowledges."""

    def kernel_ended(self, kernel_id: uuid.UUID, reason: str, usage: Usage) -> None:
        """Tell that a kernel is gone without a manager having asked for it."""
        ...


class HeartbeatStore(Protocol):
    """Where heartbeats go; ``sorna/live/instances.py`` implements it."""

    async def beat(self, heartbeat: Heartbeat, interval: float) -> None:
        """Write one heartbeat in one transaction; the liveness key expires after two intervals."""
        ...

    async def leave(self, agent_id: str) -> None:
        """Remove the agent at its orderly stop."""
        ...
