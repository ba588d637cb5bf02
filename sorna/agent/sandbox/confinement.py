"""What a kernel's first process does between its birth in new namespaces and the first line of the runner.

Standard library only: it is loaded in zygotes and runs in kernels. Knows the order of the steps and says which one
failed; may not return, whatever happens: behind it on the stack is the zygote's own loop.

Note [Order of confinement]: groups are entered while the host's ``/sys`` is still there, before anything that costs the
memory they shall count. Mounts need privileges, so credentials go last but for the filter, which would refuse the
mounts. The death signal must be asked for after the credentials change, because Linux forgets it then; whether the
zygote died in between is seen on its pidfd. The agent is told only when nothing can fail any more, and the socket to
tell it is closed before a line of the user's runs.
"""

import contextlib
import errno
import fcntl
import math
import os
import select
import socket
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

from sorna.agent.sandbox import cgroups, credentials, folders, rootfs, seccomp, wire
from sorna.agent.sandbox import namespaces as ns

CHANNEL = 3  # where the runner finds its channel
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "RAYON_NUM_THREADS",
)
_FAILED_SETUP = 70
_ESCAPED = 71


class Surroundings(NamedTuple):
    """What all kernels of a zygote share.

    :ivar ordinary: user and group id of an agent that is an ordinary user, who needs a user namespace to have any other,
        in which nobody knows these ids any more; None for root.
    :ivar zygote: a pidfd of the zygote.
    """

    control: socket.socket
    zygote: int
    trees: Sequence[cgroups.Hierarchy]
    plan: rootfs.Plan
    program: bytes
    ordinary: tuple[int, int] | None
    entry: Callable[[int], object]

    @property
    def flags(self) -> int:
        """The namespaces to clone into; the control group's follows when the kernel is in its group."""
        flags = ns.CLONE_NEWNS | ns.CLONE_NEWPID | ns.CLONE_NEWUTS | ns.CLONE_NEWIPC | ns.CLONE_NEWNET
        return flags | ns.CLONE_NEWUSER if self.ordinary else flags


class Steps:
    """Remembers what is being tried, for the report of a failure: calling it names the next step."""

    def __init__(self) -> None:
        self.current = "begin"

    def __call__(self, name: str) -> None:
        """Note what is tried next."""
        self.current = name


def second_line(request: wire.Request, trees: Sequence[cgroups.Hierarchy]) -> int:
    """Give the limit per user behind the control group's limit of processes, or in its place.

    The group's limit, which counts its refusals, shall be the one that is met. Linux counts a fork against the user's
    limit when it begins and against the group's when it is nearly done, and every process may be in the middle of one.
    """
    counted = any("pids" in tree.controllers for tree in trees)
    return 2 * request.processes if counted else request.processes


def ceilings(request: wire.Request) -> cgroups.Ceilings:
    """Give the part of a request that a control group enforces."""
    return cgroups.Ceilings(request.memory, request.cpu_cores, request.processes)


def report_failure(control: socket.socket, request_id: int, step: str, error: BaseException) -> None:
    """Tell the agent which step failed; what cannot be told is seen from the exit."""
    number = error.errno if isinstance(error, OSError) else None
    body = {"id": request_id, "step": step, "errno": number or 0, "detail": f"{type(error).__name__}: {error}"[:500]}
    with contextlib.suppress(OSError):
        wire.send(control, wire.pack("failed", body))


def apply_environ(request: wire.Request, home: str) -> None:
    """Replace the zygote's environment by the kernel's; the request's own values win."""
    threads = str(max(1, math.ceil(request.cpu_cores)))
    interpreter = os.path.dirname(sys.executable)
    path = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"
    if interpreter not in path.split(":"):
        path = f"{interpreter}:{path}"
    libraries = os.environ.get("LD_LIBRARY_PATH")
    os.environ.clear()
    if libraries is not None:
        os.environ["LD_LIBRARY_PATH"] = libraries
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, threads))
    os.environ.update(
        {"HOME": home, "USER": "work", "LOGNAME": "work", "SHELL": "/bin/bash", "PATH": path, "LANG": "C.UTF-8"}
    )
    os.environ.update(request.environ)


def reseed() -> None:
    """Give this kernel its own random numbers: a fork continues the zygote's (``random`` has seen to itself)."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def null_stdio() -> None:
    """Put /dev/null on the three standard descriptors."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for number in range(3):
        os.dup2(null, number)
    os.close(null)


def check_parent(pidfd: int) -> None:
    """End when the parent is gone: its death signal was sent before it was asked for."""
    waiting = select.poll()
    waiting.register(pidfd, select.POLLIN)
    if waiting.poll(0):
        raise ProcessLookupError(errno.ESRCH, "the zygote is gone")


def call_entry(entry: Callable[[int], object], channel: int) -> NoReturn:
    """Give the process to the runner with nothing open but its channel and /dev/null; whatever escapes ends it."""
    try:
        os.dup2(channel, CHANNEL, inheritable=False)
        ns.close_from(CHANNEL + 1)
        entry(CHANNEL)
    finally:
        os._exit(_ESCAPED)


def out_of_the_way(channel: int) -> int:
    """Move the channel above the descriptors that others want."""
    moved = fcntl.fcntl(channel, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(channel)
    return moved


def _enter_groups(request: wire.Request, around: Surroundings) -> None:
    if around.trees:
        cgroups.enter(around.trees, request.kernel_id, ceilings(request))
        # Its own group is the root of what it sees, so that no name of ours is in its /proc/self/cgroup.
        with contextlib.suppress(OSError):
            ns.unshare(ns.CLONE_NEWCGROUP)


def _bound_shared_memory(memory: int) -> None:
    """Bound System V shared memory, which belongs to no process, where no control group counts it."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/shmall", "w", encoding="ascii") as file:
        file.write(str(memory // 4096))


def _show(shown: Sequence[folders.Shown], owner: rootfs.Owner, mapped: dict[tuple[int, int], int], step: Steps) -> None:
    """Mount folders below the working directory; what is on the way there is the kernel's own."""
    before = step.current
    step("folders")
    for one in shown:
        place = rootfs.WORK
        for part in one.alias.split("/"):
            place = f"{place}/{part}"
            if not os.path.isdir(place):
                os.mkdir(place, 0o755)
                os.chown(place, owner.uid, owner.gid)
        folders.show(one, rootfs.HOST, place, mapped)
    wire.close_all(list(mapped.values()))
    step(before)


def _confine(request: wire.Request, around: Surroundings, step: Steps) -> int:
    """Go through every step up to the filter; gives the descriptor of the scratch space."""
    credentials.forget_signals()
    uid = request.uid
    if around.ordinary:
        step("map user")
        credentials.map_own_identity(*around.ordinary)
        uid = credentials.INSIDE_ID
    step("control group")
    _enter_groups(request, around)
    memory_counted = any("memory" in tree.controllers for tree in around.trees)
    if not memory_counted:
        _bound_shared_memory(request.memory)
    shown = [folders.Shown(*row) for row in request.folders]
    step("folders")
    mapped = {} if around.ordinary else folders.mappings(shown, uid)
    step("root file system")
    owner = rootfs.Owner(uid, uid, request.hostname)

    def mount_more() -> None:
        _show(shown, owner, mapped, step)
        if request.devices:
            step("devices")
            rootfs.show_devices(request.devices)

    scratch = rootfs.enter(around.plan, owner, request.scratch_size, mount_more)
    step("host name")
    socket.sethostname(request.hostname)
    step("loopback")
    ns.raise_loopback()
    step("resource limits")
    os.umask(0o022)
    os.setsid()
    credentials.limit_resources(
        processes=second_line(request, around.trees),
        file_size=request.file_size,
        open_files=request.open_files,
        memory=None if memory_counted else request.memory,
    )
    step("credentials")
    if around.ordinary:
        ns.drop_bounding_set()
    else:
        credentials.become(uid)
    credentials.forsake_privileges()
    step("parent")
    credentials.die_with_parent()
    check_parent(around.zygote)
    null_stdio()
    return scratch


def become_kernel(request: wire.Request, around: Surroundings, channel: int) -> NoReturn:
    """Confine this process, the first of its namespaces, tell the agent, and call the entry."""
    step = Steps()
    try:
        channel = out_of_the_way(channel)
        scratch = _confine(request, around, step)
        step("environment")
        apply_environ(request, rootfs.WORK)
        reseed()
        credentials.prefer_as_victim_after_fork()
        step("filter")
        seccomp.install(around.program)
        if request.probe:
            os._exit(0)
        step("report")
        wire.send(around.control, wire.pack("started", {"id": request.id}), [scratch])
        around.control.detach()
    except BaseException as error:  # noqa: BLE001  # not one may reach the zygote's loop below on the stack
        report_failure(around.control, request.id, step.current, error)
        os._exit(_FAILED_SETUP)
    call_entry(around.entry, channel)
