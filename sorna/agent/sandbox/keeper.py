"""The ``none`` tier inside: a kernel without namespaces, and the process that clears up after it.

Standard library only: it is loaded in zygotes. Knows processes and one directory; may not know namespaces. A *keeper* is
forked per kernel. It adopts every orphan below it (``PR_SET_CHILD_SUBREAPER``), starts the kernel's first process in a
session of its own, and when that ends, or the agent says SIGTERM, or the zygote dies (SIGTERM again, by its death
signal), it kills whatever still descends from it, removes the kernel's directory and ends as the first process did.

This is no isolation: as an ordinary user the kernel can even kill its keeper. It is for development.
"""

import contextlib
import os
import resource
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, NoReturn

from sorna.agent.sandbox import cgroups, confinement, credentials, wire
from sorna.agent.sandbox import namespaces as ns

_WAKING = frozenset({signal.SIGTERM, signal.SIGCHLD})


class Surroundings(NamedTuple):
    """What all kernels of a zygote share. ``drop``: whether root may become another user and still reach Python."""

    control: socket.socket
    zygote: int
    trees: Sequence[cgroups.Hierarchy]
    drop: bool
    entry: Callable[[int], object]


def children() -> list[int]:
    """List this process's children, zombies included."""
    own = os.getpid()
    with contextlib.suppress(OSError), open(f"/proc/self/task/{own}/children", encoding="ascii") as file:
        return [int(pid) for pid in file.read().split()]
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError), open(f"/proc/{name}/stat", "rb") as file:
                if int(file.read().rpartition(b")")[2].split()[1]) == own:
                    found.append(int(name))
    return found


def end_children(spared: Collection[int] = ()) -> None:
    """Kill and reap all children, and what they leave to this process by dying, until there are none."""
    while True:
        doomed = [pid for pid in children() if pid not in spared]
        if not doomed:
            return
        for pid in doomed:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        for pid in doomed:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _end_user(uid: int) -> None:
    """Kill every process of a user id that only this kernel has, in one blow that no fork can outrun."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setresuid(uid, uid, uid)
            os.kill(-1, signal.SIGKILL)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def _start(request: wire.Request, around: Surroundings, channel: int, home: str, keeper: int) -> NoReturn:
    """Become the kernel's first process."""
    step = confinement.Steps()
    try:
        credentials.forget_signals()
        os.setsid()
        os.umask(0o022)
        step("control group")
        if around.trees:
            cgroups.enter(around.trees, request.kernel_id, confinement.ceilings(request))
        step("resource limits")
        memory_counted = any("memory" in tree.controllers for tree in around.trees)
        credentials.limit_resources(
            processes=confinement.second_line(request, around.trees) if around.drop else None,
            file_size=request.file_size,
            open_files=request.open_files,
            memory=None if memory_counted else request.memory,
        )
        step("credentials")
        os.chdir(home)
        if around.drop:
            credentials.become(request.uid)
        credentials.forsake_privileges()
        step("parent")
        credentials.die_with_parent()
        confinement.check_parent(keeper)
        confinement.null_stdio()
        step("environment")
        confinement.apply_environ(request, home)
        os.environ.setdefault("TMPDIR", f"{os.path.dirname(home)}/tmp")
        credentials.prefer_as_victim_after_fork()
        if request.probe:
            os._exit(0)
        step("report")
        wire.send(around.control, wire.pack("started", {"id": request.id, "pid": os.getpid()}))
        around.control.detach()
    except BaseException as error:  # noqa: BLE001  # not one may reach the zygote's loop below on the stack
        confinement.report_failure(around.control, request.id, step.current, error)
        os._exit(70)
    confinement.call_entry(around.entry, channel)


def _make_home(request: wire.Request, around: Surroundings) -> tuple[str, str]:
    """Make the kernel's directory: ``work`` to work in and ``tmp`` beside it."""
    directory = tempfile.mkdtemp(prefix="sorna-kernel-")
    for name in ("work", "tmp"):
        os.mkdir(f"{directory}/{name}", 0o755)
    if around.drop:
        for path in (directory, f"{directory}/work", f"{directory}/tmp"):
            os.chown(path, request.uid, request.uid)
    return directory, f"{directory}/work"


def _end_like(status: int) -> NoReturn:
    """End as the kernel's first process did, so that the zygote sees its status."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError, ValueError):
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 128 - code)


def _keep(request: wire.Request, around: Surroundings, channel: int, directory: str, home: str) -> int:
    """Start the kernel, wait for its end, end all that is left; gives the wait status of its first process."""
    own = os.pidfd_open(os.getpid())
    first = os.fork()
    if first == 0:
        _start(request, around, channel, home, own)
    os.close(channel)
    status = None
    while status is None:
        if signal.sigwaitinfo(_WAKING).si_signo == signal.SIGTERM:
            os.kill(first, signal.SIGKILL)
            _pid, status = os.waitpid(first, 0)
        else:
            status = _reap_until(first)
    if around.drop:
        _end_user(request.uid)
    cgroups.kill_members(around.trees, request.kernel_id)
    end_children()
    shutil.rmtree(directory, ignore_errors=True)
    return status


def _reap_until(first: int) -> int | None:
    """Reap what has ended; gives the first process's status when it is among them."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == first:
            return status
        if pid == 0:
            return None


def become_keeper(request: wire.Request, around: Surroundings, channel: int) -> NoReturn:
    """Run one kernel without namespaces and leave nothing of it."""
    directory = None
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, _WAKING)
        signal.set_wakeup_fd(-1)
        os.setsid()
        ns.checked(ns.prctl(ns.PR_SET_CHILD_SUBREAPER, 1), "subreaper")
        ns.checked(ns.prctl(ns.PR_SET_PDEATHSIG, int(signal.SIGTERM)), "parent death signal")
        confinement.check_parent(around.zygote)
        channel = confinement.out_of_the_way(channel)
        directory, home = _make_home(request, around)
        status = _keep(request, around, channel, directory, home)
    except BaseException as error:  # noqa: BLE001  # not one may reach the zygote's loop below on the stack
        confinement.report_failure(around.control, request.id, "keeper", error)
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)
        os._exit(70)
    _end_like(status)
