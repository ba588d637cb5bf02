"""Control groups, version 1 and 2: what this host offers, one group per kernel, its counters and its removal.

Standard library only: it is loaded on both sides, in the agent (to find, sweep and read) and in zygotes and kernels (to
make, enter and remove). Knows files below ``/sys/fs/cgroup``; may not know processes' insides.

Note [Where groups are made]: below the agent's own group, so that whatever bounds the agent, a service manager's or a
container engine's limit, bounds its kernels too. Version 1 always lets a group's owner do that. Version 2 wants a
group with children to have no processes of its own; when all of its processes are the agent's, they move to a leaf, and
when they are not, the only other place is the root of the tree, where root may make groups. What can be had in neither
way is reported as missing.

Making a group and entering it takes Linux 0.1 to 0.4 ms per controller and sometimes waits for a grace period; so each
kernel's first process does both for itself, and neither the agent's reactor nor the zygote waits.
"""

import contextlib
import errno
import os
import re
import signal
import time
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

WANTED = ("memory", "cpu", "pids")  # what enforces; cpuacct and io only count
ROOM = "sorna"
_LEAF = "sorna-agent"
_CPU_PERIOD = 100_000  # microseconds
_RIVALS = 4  # how often others may remove what is made at the same time: the two zygotes of a killed agent, and agents
PIECE = 64 * 1024


class Hierarchy(NamedTuple):
    """One tree of groups: the directory that holds the kernels' groups, and what it controls there."""

    version: int
    controllers: Sequence[str]
    directory: str


class Ceilings(NamedTuple):
    """What a group enforces: bytes, processors and processes."""

    memory: int
    cpu_cores: float
    processes: int


def _unescape(path: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


class Mounted(NamedTuple):
    """A mounted tree of groups, with this process's place in it."""

    version: int
    controllers: Sequence[str]
    top: str
    own: str


def parse_mounts(mountinfo: str, membership: str) -> list[Mounted]:
    """Find the trees that are mounted and this process's own group in each.

    :param mountinfo: ``/proc/self/mountinfo``.
    :param membership: ``/proc/self/cgroup``.
    """
    places: dict[str, str] = {}
    for line in membership.splitlines():
        _number, names, place = line.split(":", 2)
        for name in names.split(","):
            places[name] = place
    found: list[Mounted] = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _source, options = after.split(" ", 2)
        fields = before.split(" ")
        root, top = _unescape(fields[3]), _unescape(fields[4])
        if kind == "cgroup2":
            found.append(Mounted(2, (), top, _own_directory(top, root, places.get("", "/"))))
        elif kind == "cgroup":
            held = tuple(name for name in options.split(",") if name in (*WANTED, "cpuacct"))
            if held and all(other.controllers != held for other in found):
                found.append(Mounted(1, held, top, _own_directory(top, root, places.get(held[0], "/"))))
    return found


def _own_directory(top: str, root: str, place: str) -> str:
    relative = os.path.relpath(place, root)
    # Outside of what is mounted (a container whose engine shows it only its own part): the top is ours.
    return top if relative.startswith("..") or relative == "." else os.path.join(top, relative)


def read_text(path: str) -> str:
    """Read a small file whole. :raises OSError: it is gone."""
    # A file object would take three times as long.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pieces = [os.read(descriptor, PIECE)]
        while pieces[-1]:
            pieces.append(os.read(descriptor, PIECE))
    finally:
        os.close(descriptor)
    return b"".join(pieces).decode("ascii")


def _write(path: str, value: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode("ascii"))
    finally:
        os.close(descriptor)


def _enable(directory: str, controllers: Iterable[str]) -> None:
    _write(f"{directory}/cgroup.subtree_control", " ".join(f"+{name}" for name in controllers))


def _only_ours(pids: Iterable[int]) -> bool:
    """Tell whether every process is this one or descends from it."""
    for pid in pids:
        ancestor = pid
        while ancestor not in (os.getpid(), 0, 1):
            try:
                ancestor = int(read_text(f"/proc/{ancestor}/stat").rpartition(")")[2].split()[1])
            except (OSError, UnicodeDecodeError):
                break
        if ancestor != os.getpid():
            return False
    return True


def _make_room(directory: str, controllers: Sequence[str]) -> None:
    """Let a version 2 group have children with controllers, moving the agent to a leaf where that is all it takes."""
    try:
        _enable(directory, controllers)
    except OSError as error:
        pids = [int(pid) for pid in read_text(f"{directory}/cgroup.procs").split()]
        if error.errno != errno.EBUSY or not _only_ours(pids):
            raise
        os.makedirs(f"{directory}/{_LEAF}", exist_ok=True)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                _write(f"{directory}/{_LEAF}/cgroup.procs", str(pid))
        _enable(directory, controllers)


def _furnish(tree: Hierarchy) -> None:
    """Make the agent's own groups in a tree, also while others remove theirs, and with them the common parent."""
    for attempt in range(_RIVALS + 1):
        try:
            for directory in (os.path.dirname(tree.directory), tree.directory):
                os.makedirs(directory, exist_ok=True)
                if tree.version == 2:
                    _enable(directory, tree.controllers)
        except FileNotFoundError:
            if attempt == _RIVALS:
                raise
        else:
            return


def _prepare_unified(mounted: Mounted, agent: str) -> Hierarchy | None:
    own = mounted.own
    if os.path.basename(own) == _LEAF:  # an earlier tier of this process has moved it
        own = os.path.dirname(own)
    for base in dict.fromkeys((own, mounted.top)):
        with contextlib.suppress(OSError):
            offered = read_text(f"{base}/cgroup.controllers").split()
            controllers = tuple(name for name in (*WANTED, "io") if name in offered)
            if not controllers:
                continue
            _make_room(base, controllers)
            tree = Hierarchy(2, controllers, f"{base}/{ROOM}/{agent}")
            _furnish(tree)
            return tree
    return None


def _prepare_legacy(mounted: Mounted, agent: str) -> Hierarchy | None:
    tree = Hierarchy(1, mounted.controllers, f"{mounted.own}/{ROOM}/{agent}")
    try:
        _furnish(tree)
    except OSError:
        return None
    return tree if os.access(tree.directory, os.W_OK) else None


def prepare(
    agent: str, mountinfo: str | None = None, membership: str | None = None, kept: Collection[str] = ()
) -> tuple[Hierarchy, ...]:
    """Find what this host lets us control, make the agent's own groups and sweep what a crash has left. May block.

    :param agent: unique among the agents of this host that run at once, and the same after a restart.
    :param kept: kernels that live on, whose groups are no remains.
    """
    with contextlib.suppress(OSError):
        mountinfo = read_text("/proc/self/mountinfo") if mountinfo is None else mountinfo
        membership = read_text("/proc/self/cgroup") if membership is None else membership
    trees: list[Hierarchy] = []
    for mounted in parse_mounts(mountinfo or "", membership or ""):
        tree = _prepare_legacy(mounted, agent) if mounted.version == 1 else _prepare_unified(mounted, agent)
        if tree is not None:
            trees.append(tree)
    sweep(trees, kept)
    return tuple(trees)


def sweep(trees: Sequence[Hierarchy], kept: Collection[str] = ()) -> None:
    """Remove every other kernel's groups with all that is in them. May block."""
    for name in {entry for tree in trees for entry in _subdirectories(tree.directory)} - set(kept):
        destroy(trees, name)


def _subdirectories(directory: str) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def missing(trees: Iterable[Hierarchy]) -> tuple[str, ...]:
    """Name the controllers that would enforce limits and cannot be had."""
    had = {name for tree in trees for name in tree.controllers}
    return tuple(name for name in WANTED if name not in had)


def release(trees: Sequence[Hierarchy]) -> None:
    """Remove the agent's own groups with all that is in them at its stop. May block."""
    sweep(trees)
    leave(trees)


def leave(trees: Sequence[Hierarchy]) -> None:
    """Remove the agent's own groups where no kernel is left in them; the common parent goes with the last agent.

    Harmless while the agent lives: :func:`enter` makes them again.
    """
    for tree in trees:
        room = os.path.dirname(tree.directory)
        for path in (tree.directory, room):
            with contextlib.suppress(OSError):
                os.rmdir(path)
        base = os.path.dirname(room)
        if tree.version == 2 and os.path.isdir(f"{base}/{_LEAF}") and not os.path.isdir(room):
            with contextlib.suppress(OSError):
                pids = read_text(f"{base}/{_LEAF}/cgroup.procs").split()
                if not _only_ours(map(int, pids)):
                    continue
                _write(f"{base}/cgroup.subtree_control", " ".join(f"-{name}" for name in tree.controllers))
                for pid in pids:
                    _write(f"{base}/cgroup.procs", pid)
                os.rmdir(f"{base}/{_LEAF}")


def _settings(tree: Hierarchy, ceilings: Ceilings) -> list[tuple[str, str, bool]]:
    """List the files to write, their values, and whether a host may lack them."""
    quota = max(1000, round(ceilings.cpu_cores * _CPU_PERIOD))
    files: list[tuple[str, str, bool]] = []
    if "memory" in tree.controllers and tree.version == 1:
        files += [
            ("memory.limit_in_bytes", str(ceilings.memory), False),
            ("memory.memsw.limit_in_bytes", str(ceilings.memory), True),
            ("memory.swappiness", "0", True),
        ]
    elif "memory" in tree.controllers:
        files += [("memory.max", str(ceilings.memory), False), ("memory.swap.max", "0", True)]
    if "cpu" in tree.controllers and tree.version == 1:
        files += [("cpu.cfs_period_us", str(_CPU_PERIOD), False), ("cpu.cfs_quota_us", str(quota), False)]
    elif "cpu" in tree.controllers:
        files.append(("cpu.max", f"{quota} {_CPU_PERIOD}", False))
    if "pids" in tree.controllers:
        files.append(("pids.max", str(ceilings.processes), False))
    return files


def make(trees: Iterable[Hierarchy], name: str, ceilings: Ceilings) -> list[int]:
    """Make a kernel's groups; gives descriptors for :func:`join`, which work where the groups are not seen.

    :raises OSError: a limit that this host can enforce could not be set.
    """
    doors: list[int] = []
    try:
        for tree in trees:
            group = f"{tree.directory}/{name}"
            _make_group(tree, group)
            for file, value, optional in _settings(tree, ceilings):
                try:
                    _write(f"{group}/{file}", value)
                except OSError:
                    if not optional:
                        raise
            doors.append(os.open(f"{group}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
    except BaseException:
        for door in doors:
            os.close(door)
        raise
    return doors


def join(doors: Iterable[int]) -> None:
    """Move the calling process into the groups that :func:`make` made, and close the descriptors."""
    for door in doors:
        os.write(door, b"0")
        os.close(door)


def enter(trees: Iterable[Hierarchy], name: str, ceilings: Ceilings) -> None:
    """Make a kernel's groups and move the calling process into them.

    :raises OSError: a limit that this host can enforce could not be set.
    """
    join(make(trees, name, ceilings))


def _make_group(tree: Hierarchy, group: str) -> None:
    """Make a group, and its parents when the zygotes of a killed agent have just removed them; see :func:`leave`."""
    for _attempt in range(_RIVALS):
        with contextlib.suppress(FileNotFoundError):
            os.mkdir(group)
            return
        _furnish(tree)
    os.mkdir(group)


def adjust(trees: Iterable[Hierarchy], name: str, ceilings: Ceilings) -> None:
    """Change what a kernel's groups enforce.

    Version 1 never lets memory alone exceed memory with swap, so which of the two may be written first depends on the
    direction: what is refused is tried once more after the rest.

    :raises OSError: a limit that this host can enforce could not be set.
    """
    for tree in trees:
        again = []
        for file, value, optional in _settings(tree, ceilings):
            try:
                _write(f"{tree.directory}/{name}/{file}", value)
            except OSError:
                again.append((file, value, optional))
        for file, value, optional in again:
            try:
                _write(f"{tree.directory}/{name}/{file}", value)
            except OSError:
                if not optional:
                    raise


def remove(trees: Iterable[Hierarchy], name: str) -> bool:
    """Remove a kernel's groups whose processes are gone; False when one is still busy. Harmless when they are gone."""
    done = True
    for tree in trees:
        try:
            os.rmdir(f"{tree.directory}/{name}")
        except FileNotFoundError:
            pass
        except OSError:
            done = False
    return done


def kill_members(trees: Iterable[Hierarchy], name: str) -> None:
    """Send SIGKILL to every process in a kernel's groups."""
    for tree in trees:
        with contextlib.suppress(OSError):
            for pid in read_text(f"{tree.directory}/{name}/cgroup.procs").split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)


def destroy(trees: Sequence[Hierarchy], name: str, patience: float = 2.0) -> bool:
    """Kill what is in a kernel's groups and remove them. Blocks until they are gone, or patience (seconds) ends."""
    deadline = time.monotonic() + patience
    while not remove(trees, name):
        if time.monotonic() > deadline:
            return False
        kill_members(trees, name)
        time.sleep(0.005)
    return True
