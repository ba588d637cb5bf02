"""The two isolation tiers, both on warm zygotes: ``namespaces``, and ``none`` for development.

Knows how spawn, kill and stop are promised (``sorna.agent.interfaces.Sandbox``); what happens inside a kernel before the
runner is ``confinement.py``'s and ``keeper.py``'s.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import socket
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred, DeferredList, gatherResults
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from sorna.agent.interfaces import ConfinedKernel, KernelExit, SandboxSettings, SandboxSpec
from sorna.agent.sandbox import cgroups, wire
from sorna.agent.sandbox.confined import ConfinedProcess
from sorna.agent.sandbox.control import ControlBusy
from sorna.agent.sandbox.credentials import Identities, IdentitiesExhausted, usable_range
from sorna.agent.sandbox.diagnosis import WAY_OUT, explain, read_facts
from sorna.agent.sandbox.folders import Shown
from sorna.agent.sandbox.launcher import ZygoteProcess
from sorna.agent.sandbox.stacks import Stack
from sorna.beneath.storage_root import read_storage_id
from sorna.errors import AgentFailed, IsolationUnavailable, SornaError
from sorna.model.folder import Mount, valid_alias
from sorna.model.limits import Limits

RUNNER = "sorna.agent.runners.init:main"
STACKS = ("python3", "commands")
SETUP_PATIENCE = 10.0
_STOP_PATIENCE = 5.0
_FOLDER_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9_-]{1,80}", re.ASCII)
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?", re.ASCII)


def _identities(wanted: tuple[int, int]) -> Identities | None:
    """Give the user ids for kernels, or None when the agent cannot become others."""
    if os.geteuid() != 0:
        return None
    usable = usable_range(wanted, Path("/proc/self/uid_map").read_text(encoding="ascii"))
    return None if usable is None else Identities(*usable)


class ZygoteTier:
    """What both tiers share; implements ``Sandbox`` for its subclasses.

    :param reactor: processes, descriptors, time and a thread pool.
    :param agent_id: names the agent's control groups: unique among agents that run at once on a host, and the same
        after a restart, so that a crash's remains are found. At most 80 of ``A-Za-z0-9_-``.
    :param entry: ``module:function`` that a kernel's first process calls with the descriptor of its channel.
    """

    _log = Logger()
    name = ""
    storage = ""
    _ending = signal.SIGKILL
    _network = -1

    def __init__(self, reactor: Any, settings: SandboxSettings, agent_id: str, *, entry: str = RUNNER) -> None:
        if not _NAME.fullmatch(agent_id):
            raise ValueError(f"not a name for control groups: {agent_id!r}")
        self._reactor = reactor
        self._settings = settings
        self._folder_root = os.path.realpath(settings.folder_root) if settings.folder_root else ""
        self._agent_id = agent_id
        self._entry = entry
        self._identities = _identities(settings.uid_range)
        self._trees: tuple[cgroups.Hierarchy, ...] = ()
        self._stacks: dict[str, Stack] = {}
        self._kernels: dict[str, ConfinedProcess] = {}
        self._makers: dict[str, ZygoteProcess] = {}
        self._uids: dict[str, int] = {}
        self._emptied: Deferred[None] | None = None
        self._numbers = itertools.count(1)
        self._stopping = False

    async def start(self) -> None:
        """Find out what the host allows, warm the zygotes, and send a first process through every step.

        :raises IsolationUnavailable: this host cannot; the detail says what is missing, and nothing is left running.
        """
        if not os.access(self._settings.python, os.X_OK):
            raise IsolationUnavailable(f"The kernels' interpreter {self._settings.python!r} cannot be executed.")
        self._trees = await self._in_thread(cgroups.prepare, self._agent_id)
        lacking = cgroups.missing(self._trees)
        if lacking:
            self._log.warn(
                "this host gives no control groups for {lacking}: limits on these hold per process at the best",
                lacking=", ".join(lacking),
            )
        for stack in STACKS:
            self._stacks[stack] = Stack(self._reactor, stack, self._maker(stack))
        try:
            starts = [Deferred.fromCoroutine(stack.start()) for stack in self._stacks.values()]
            outcomes: Sequence[tuple[bool, Any]] = await DeferredList(starts, consumeErrors=True)
            for succeeded, result in outcomes:
                if not succeeded:
                    result.raiseException()
            await self._probe(SandboxSpec(kernel_id="probe", stack=STACKS[-1], limits=Limits()))
        except BaseException as error:
            await self.stop()
            if isinstance(error, AgentFailed):
                raise IsolationUnavailable(f"{error.detail} {error.exception or ''} {WAY_OUT}") from error
            raise

    @property
    def settled(self) -> bool:
        """Whether nothing goes on that another program could not go on with."""
        return not self._stopping and all(stack.settled for stack in self._stacks.values())

    @property
    def held(self) -> int:
        """How many kernels there are, those included that come or go."""
        return len(self._kernels)

    def carry(self) -> Mapping[str, Any]:
        """Give what another program of this process needs to hold zygotes and kernels; it must be settled."""
        self._stopping = True
        return {
            "tier": self.name,
            "storage": self.storage,
            "number": next(self._numbers),
            "uids": dict(self._uids),
            "kernels": {name: kernel.carry() for name, kernel in self._kernels.items()},
            "stacks": {name: stack.carry() for name, stack in self._stacks.items()},
        }

    async def take_over(self, state: Mapping[str, Any], channels: Mapping[str, int]) -> Mapping[str, ConfinedKernel]:
        """Hold the zygotes and kernels of another program of this process, instead of :meth:`start`.

        :param channels: kernel id -> descriptor of its channel.
        """
        self._trees = await self._in_thread(partial(cgroups.prepare, self._agent_id, kept=frozenset(state["kernels"])))
        self.storage = state["storage"]
        self._numbers = itertools.count(state["number"])
        for name, uid in state["uids"].items():
            self._uids[name] = uid
            if self._identities is not None:
                self._identities.keep(uid)
        for name, one in state["kernels"].items():
            channel = socket.socket(fileno=channels[name])
            kernel = self._kernels[name] = self._confined(name, channel)
            kernel.take_over(one)
        for stack, one in state["stacks"].items():
            zygote = self._stacks[stack] = Stack(self._reactor, stack, self._maker(stack))
            zygote.take_over(one, self._kernels)
            process = await zygote.process()
            self._makers.update((name, process) for name in one["kernels"].values())
        return dict(self._kernels)

    def _confined(self, kernel_id: str, channel: socket.socket) -> ConfinedProcess:
        return ConfinedProcess(
            kernel_id, channel, self._trees, ending=self._ending, network=self._network, gone=self._gone
        )

    def _maker(self, stack: str) -> Callable[[], ZygoteProcess]:
        configuration = wire.Configuration(
            tier=self.name,
            entry=self._entry,
            preload=tuple(self._settings.preload) if stack == "python3" else (),
            read_only=tuple(self._settings.read_only),
            trees=self._trees,
            home="",
            identities=self._identities is not None,
        )
        return lambda: ZygoteProcess(self._reactor, stack, self._settings.python, configuration)

    async def _probe(self, spec: SandboxSpec) -> None:
        """Send a process through every step; it ends instead of calling the runner."""
        kernel = await self._ask(spec, probe=True)
        try:
            await kernel.started
        except AgentFailed as error:
            ended: KernelExit = await kernel.exited
            if ended.status != 0:
                raise IsolationUnavailable(explain(kernel.failure, read_facts())) from error

    def template(self, limits: Limits) -> Limits:
        """Leave out what is not the tier's to enforce, and what control groups let be changed afterwards."""
        plain = Limits()
        counted = {controller for tree in self._trees for controller in tree.controllers}
        return evolve(
            limits,
            memory=plain.memory if "memory" in counted else limits.memory,
            cpu_cores=plain.cpu_cores if "cpu" in counted else limits.cpu_cores,
            execution_timeout=plain.execution_timeout,
            idle_timeout=plain.idle_timeout,
            lifetime=plain.lifetime,
            output_size=plain.output_size,
        )

    async def spawn(self, spec: SandboxSpec) -> ConfinedKernel:
        """Confine one kernel; its runner has been called when this returns.

        Cancelling kills what there is of it.

        :raises AgentFailed: it could not be made; nothing of it is left.
        """
        kernel = await self._ask(spec, probe=False)
        patience = self._reactor.callLater(SETUP_PATIENCE, self._overdue, kernel)
        try:
            await kernel.started
        except BaseException:
            kernel.kill()
            kernel.channel.close()
            raise
        finally:
            if patience.active():
                patience.cancel()
        return kernel

    def _overdue(self, kernel: ConfinedProcess) -> None:
        kernel.kill()
        if kernel.pidfd < 0:
            # It was never even cloned: the zygote is stuck, and Linux ends its kernels with it.
            self._makers[kernel.kernel_id].put_down()

    async def _ask(self, spec: SandboxSpec, *, probe: bool) -> ConfinedProcess:
        if not _NAME.fullmatch(spec.kernel_id) or not _HOSTNAME.fullmatch(spec.hostname):
            raise AgentFailed("A kernel's id or host name has characters that it may not have.")
        if spec.stack not in self._stacks:
            raise AgentFailed(f"There is no stack {spec.stack!r}.")
        process = await self._stacks[spec.stack].process()
        if self._stopping or spec.kernel_id in self._kernels:
            raise AgentFailed("The sandbox is stopping." if self._stopping else "The kernel is there already.")
        folders = [self._shown(mount) for mount in spec.mounts]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        kernel = self._confined(spec.kernel_id, ours)
        try:
            request = self._request(spec, self._take_uid(spec.kernel_id), folders, probe=probe)
            process.spawn(request, theirs.fileno(), kernel)
        except (OSError, wire.WireError, ControlBusy, IdentitiesExhausted) as error:
            ours.close()
            self._give_uid_back(spec.kernel_id)
            raise AgentFailed("The kernel could not be asked for.", f"{type(error).__name__}: {error}") from error
        finally:
            theirs.close()
        self._kernels[spec.kernel_id] = kernel
        self._makers[spec.kernel_id] = process
        return kernel

    def _take_uid(self, kernel_id: str) -> int:
        if self._identities is None:
            return -1
        uid = self._identities.take()
        self._uids[kernel_id] = uid
        return uid

    def _give_uid_back(self, kernel_id: str) -> None:
        uid = self._uids.pop(kernel_id, None)
        if uid is not None and self._identities is not None:
            self._identities.give_back(uid)

    def _request(self, spec: SandboxSpec, uid: int, folders: Sequence[Shown], *, probe: bool) -> wire.Request:
        limits = spec.limits
        return wire.Request(
            id=next(self._numbers),
            kernel_id=spec.kernel_id,
            uid=uid,
            hostname=spec.hostname,
            environ=dict(spec.environ),
            memory=limits.memory,
            processes=limits.processes,
            cpu_cores=limits.cpu_cores,
            file_size=limits.file_size,
            scratch_size=limits.scratch_size,
            open_files=limits.open_files,
            probe=probe,
            folders=folders,
            devices=tuple(spec.devices),
        )

    def _shown(self, mount: Mount) -> Shown:
        if not self.storage:
            raise AgentFailed("This agent has no storage of folders.")
        if not _FOLDER_ID.fullmatch(mount.folder_id) or not valid_alias(mount.alias):
            raise AgentFailed("A folder's id or alias has characters that it may not have.")
        return Shown(f"{self._folder_root}/{mount.folder_id}/content", mount.alias, mount.read_only)

    def _gone(self, kernel: ConfinedProcess) -> None:
        self._kernels.pop(kernel.kernel_id, None)
        self._makers.pop(kernel.kernel_id, None)
        self._give_uid_back(kernel.kernel_id)
        if self._emptied is not None and not self._kernels:
            emptied, self._emptied = self._emptied, None
            emptied.callback(None)

    async def stop(self) -> None:
        """Kill every kernel and zygote; nothing is left when this returns. Harmless when called again."""
        self._stopping = True
        for kernel in [*self._kernels.values()]:
            kernel.kill()
        if self._kernels:
            self._emptied = Deferred()
            # What does not go by itself goes with its zygote.
            with contextlib.suppress(TimeoutError):
                await self._emptied.addTimeout(_STOP_PATIENCE, self._reactor)
        await gatherResults([Deferred.fromCoroutine(stack.stop()) for stack in self._stacks.values()])
        self._stacks.clear()
        await self._in_thread(cgroups.release, self._trees)
        self._trees = ()

    def _in_thread(self, function: Any, *arguments: Any) -> Deferred[Any]:
        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), function, *arguments)


class NamespaceSandbox(ZygoteTier):
    """Kernels in namespaces of their own, on a root file system of their own, without privileges, behind a filter."""

    name = wire.NAMESPACES
    _network = 0  # there is none but the kernel's own loopback

    async def start(self) -> None:
        """Warm the zygotes, and find out whether folders can be mounted."""
        await super().start()
        if self._folder_root:
            await self._try_folders()

    async def _try_folders(self) -> None:
        """Send a process through every step with a folder; folders are offered only where that works."""
        try:
            storage = await self._in_thread(read_storage_id, Path(self._folder_root))
        except OSError as error:
            self._log.info("kernels will see no folders: there is no storage: {error}", error=error)
            return
        trial = uuid.uuid4().hex
        place = Path(self._folder_root, trial)
        self.storage = storage
        try:
            await self._in_thread((place / "content").mkdir, 0o755, True)
            spec = SandboxSpec("probe", STACKS[-1], Limits(), mounts=[Mount(trial, "folder", False, 0, 0)])
            await self._probe(spec)
        except (OSError, SornaError) as error:
            self.storage = ""
            self._log.warn("kernels will see no folders: {error}", error=getattr(error, "detail", "") or error)
        finally:
            await self._in_thread(shutil.rmtree, place, True)


class UnconfinedSandbox(ZygoteTier):
    """No isolation: processes of this host with limits and a directory that goes with them. For development only."""

    name = wire.NONE
    _ending = signal.SIGTERM

    async def start(self) -> None:
        """Warm the zygotes, and shout."""
        self._log.critical(
            "ISOLATION IS OFF: user code runs as ordinary processes of this host and can read and change what its user can. "
            "For development only."
        )
        await super().start()
