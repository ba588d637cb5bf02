"""What a kernel's first process does between its birth in new namespaces and the first line of the runner.

Standard library only: it is loaded in zygotes and runs in kernels. Knows the order of the steps and says which one
failed; may not return, whatever happens: behind it on the stack is the zygote's own loop.

Note [Order of confinement]: groups are entered while the host's ``/sys`` is still there, before anything that costs the
memory they shall count, or through descriptors that were opened there. Mounts need privileges, so credentials go last but for the filter, which would refuse the
mounts. The death signal must be asked for after the credentials change, because Linux forgets it then; whether the
zygote died in between is seen on its pidfd. The agent is told only when nothing can fail any more, and the socket to
tell it is closed before a line of the user's runs.

Note [Prepared by the zygote]: a clone copies each page of memory that it writes to, and Python writes to all that it looks at, so
the same code is twice as dear in a kernel's first process as in the zygote. What can be done before that process is there, the zygote
therefore does: it makes the groups, enters new namespaces, builds the root file system in them, clones the process into them and
goes back. Only ``/proc`` is left, which belongs to a PID namespace, and what a process does to itself. An agent that is an ordinary
user makes all of it in the new process, since nobody comes back from a user namespace; so does a kernel with folders or devices,
whose storage may hang, which would be a zygote that hangs.
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
_USUAL_HOSTNAME = "sorna"
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
        """The namespaces that a kernel is cloned into; the control group's follows when it is in its group."""
        flags = ns.CLONE_NEWPID | ns.Place.FLAGS
        return flags | ns.CLONE_NEWUSER if self.ordinary else flags


class Stranded(Exception):
    """The zygote is in a kernel's namespaces for good and must end: nothing that it made there would be where it should."""


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


def _join_groups(doors: Sequence[int]) -> None:
    if doors:
        cgroups.join(doors)
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


def _memory_counted(trees: Sequence[cgroups.Hierarchy]) -> bool:
    return any("memory" in tree.controllers for tree in trees)


def _name_and_connect(request: wire.Request, step: Steps) -> None:
    """Give this process's namespaces their host name and loopback."""
    step("host name")
    socket.sethostname(request.hostname)
    step("loopback")
    ns.raise_loopback()


class Prepared(NamedTuple):
    """What the zygote has made of a kernel.

    :ivar place: its namespaces.
    :ivar scratch: the descriptor of its scratch space.
    :ivar doors: descriptors to enter its groups through.
    """

    place: ns.Place
    scratch: int
    doors: Sequence[int]

    @property
    def descriptors(self) -> list[int]:
        """All of it, to be sent."""
        return [self.scratch, *self.place.descriptors, *self.doors]

    @classmethod
    def of(cls, descriptors: Sequence[int]) -> "Prepared":
        """Take what was sent."""
        first_door = 1 + len(ns.Place.KINDS)
        return cls(ns.Place(descriptors[1:first_door]), descriptors[0], descriptors[first_door:])


class Workshop:
    """Where a zygote prepares kernels; see Note [Prepared by the zygote].

    :raises OSError: this process may not come back from namespaces of others, so that it must not go there.
    """

    def __init__(self, plan: rootfs.Plan) -> None:
        self._plan = plan
        self._compass = ns.Compass()
        self._home = self._compass.place()
        if not ns.may_come_back(self._home):
            raise PermissionError(errno.EPERM, "no way back from other namespaces")
        self._known = rootfs.Owner(0, 0, _USUAL_HOSTNAME)
        try:
            ns.unshare(ns.CLONE_NEWNS)
            self._model = self._compass.mounts()
            rootfs.model(plan, self._known)
        finally:
            self._go_home()

    def can_prepare(self, request: wire.Request) -> bool:
        """Tell whether this kernel is one that a zygote can prepare."""
        return not request.folders and not request.devices

    def prepare(self, request: wire.Request, trees: Sequence[cgroups.Hierarchy], step: Steps) -> Prepared:
        """Make a kernel's groups and namespaces, and come home.

        :raises OSError: ``step`` tells what failed.
        :raises Stranded: the way home failed.
        """
        step("control group")
        opened = cgroups.make(trees, request.kernel_id, ceilings(request))
        doors = tuple(opened)
        try:
            step("namespaces")
            ns.unshare(ns.Place.FLAGS & ~ns.CLONE_NEWNS)
            if not _memory_counted(trees):
                _bound_shared_memory(request.memory)
            step("root file system")
            ns.enter(self._model)
            ns.unshare(ns.CLONE_NEWNS)
            place = self._compass.place()
            opened += place.descriptors
            owner = rootfs.Owner(request.uid, request.uid, request.hostname)
            scratch = rootfs.furnish(self._plan, owner, self._known, request.scratch_size)
            opened.append(scratch)
            _name_and_connect(request, step)
        except BaseException:
            wire.close_all(opened)
            raise
        finally:
            self._go_home()
        return Prepared(place, scratch, doors)

    def _go_home(self) -> None:
        try:
            self._home.enter()
        except OSError as error:
            raise Stranded(f"the zygote does not come back from a kernel's namespaces: {error}") from error


def _prepare_oneself(request: wire.Request, around: Surroundings, step: Steps) -> int:
    """Do in the new process what the zygote has not; gives the descriptor of the scratch space."""
    uid = request.uid
    if around.ordinary:
        step("map user")
        credentials.map_own_identity(*around.ordinary)
        uid = credentials.INSIDE_ID
    step("control group")
    _join_groups(cgroups.make(around.trees, request.kernel_id, ceilings(request)))
    shown = [folders.Shown(*row) for row in request.folders]
    step("folders")
    mapped = {} if around.ordinary else folders.mappings(shown, uid)

    def mount_more(owner: rootfs.Owner) -> None:
        rootfs.mount_proc(around.plan)
        _show(shown, owner, mapped, step)
        if request.devices:
            step("devices")
            rootfs.show_devices(request.devices)

    if not _memory_counted(around.trees):
        _bound_shared_memory(request.memory)
    step("root file system")
    owner = rootfs.Owner(uid, uid, request.hostname)
    scratch = rootfs.enter(around.plan, owner, request.scratch_size, lambda: mount_more(owner))
    _name_and_connect(request, step)
    return scratch


def _confine(request: wire.Request, around: Surroundings, prepared: Prepared | None, step: Steps) -> int:
    """Go through every step up to the filter; gives the descriptor of the scratch space."""
    credentials.forget_signals()
    if prepared is None:
        scratch = _prepare_oneself(request, around, step)
    else:
        scratch = prepared.scratch
        step("namespaces")
        prepared.place.enter()
        step("control group")
        _join_groups(prepared.doors)
        step("root file system")
        rootfs.mount_proc(around.plan)
        os.chdir(rootfs.WORK)
    step("resource limits")
    os.umask(0o022)
    os.setsid()
    credentials.limit_resources(
        processes=second_line(request, around.trees),
        file_size=request.file_size,
        open_files=request.open_files,
        memory=None if _memory_counted(around.trees) else request.memory,
    )
    step("credentials")
    if around.ordinary:
        ns.drop_bounding_set()
    else:
        credentials.become(request.uid)
    credentials.forsake_privileges()
    step("parent")
    credentials.die_with_parent()
    check_parent(around.zygote)
    null_stdio()
    return scratch


def become_kernel(packet: bytes, around: Surroundings, channel: int, prepared: Prepared | None = None) -> NoReturn:
    """Confine this process, the first of its PID namespace, tell the agent, and call the entry.

    :param packet: the request, which the zygote could read.
    """
    _op, body = wire.unpack(packet)
    request = wire.Request(**body)
    step = Steps()
    try:
        channel = out_of_the_way(channel)
        scratch = _confine(request, around, prepared, step)
        step("environment")
        apply_environ(request, rootfs.WORK)
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
