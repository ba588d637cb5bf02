"""What dead agents have left on this host: control groups, processes in them, directories and mounts that nobody owns.

Standard library only. Knows how the tiers of this room name things, and no manager; it removes nothing. Blocks for
as long as it takes to walk over ``/proc`` and the trees of control groups.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

from sorna.agent.sandbox import cgroups

_AGENT_WORDS = (b"sorna.agent", b"sorna-agent")
_FOLDER_CONTENT = re.compile(r"/[0-9a-f]{32}/content\Z")
KERNEL_DIRECTORY = "sorna-kernel-"


class Remnant(NamedTuple):
    """Something that nobody owns. ``kind``: ``process``, ``group``, ``directory`` or ``mount``."""

    kind: str
    what: str
    agent: str


def remains(agents: Collection[str], alive: Collection[str]) -> list[Remnant]:
    """List what is left on this host.

    :param agents: those whose control groups are looked at; groups of others are somebody else's.
    :param alive: those of them that live. What lives on another host has no groups here.
    """
    found: list[Remnant] = []
    for agent, group in _groups(agents):
        found += _left_in(agent, group, agent in alive)
    return [*found, *_directories(), *_mounts()]


def _groups(agents: Collection[str]) -> Iterator[tuple[str, str]]:
    """Find every kernel's groups, wherever in the trees agents were started."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8") as file:
            mountinfo = file.read()
    except OSError:
        return
    for mounted in cgroups.parse_mounts(mountinfo, ""):
        for path, directories, _files in os.walk(mounted.top):
            if os.path.basename(path) == cgroups.ROOM:
                for agent in sorted(set(directories) & set(agents)):
                    for name in _subdirectories(f"{path}/{agent}"):
                        yield agent, f"{path}/{agent}/{name}"
                directories.clear()


def _subdirectories(path: str) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []


def _left_in(agent: str, group: str, alive: bool) -> Iterator[Remnant]:
    try:
        with open(f"{group}/cgroup.procs", encoding="ascii") as file:
            pids = [int(pid) for pid in file.read().split()]
    except OSError:
        return  # gone since it was listed
    for pid in pids:
        if not _descends_from_an_agent(pid):
            yield Remnant("process", f"{pid} in {group}", agent)
    if not pids or not alive:
        yield Remnant("group", group, agent)


def _descends_from_an_agent(pid: int) -> bool:
    while pid > 1:
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read()
            with open(f"/proc/{pid}/stat", "rb") as file:
                parent = int(file.read().rpartition(b")")[2].split()[1])
        except OSError:
            return True  # it ended while we looked: nothing is left of it
        if any(word in words for word in _AGENT_WORDS):
            return True
        pid = parent
    return False


def _directories() -> Iterator[Remnant]:
    """Find directories of kernels without namespaces in which no process works any more."""
    place = tempfile.gettempdir()
    directories = [name for name in _subdirectories(place) if name.startswith(KERNEL_DIRECTORY)]
    if not directories:
        return
    used = set(_per_process(lambda process: os.readlink(f"{process}/cwd")))
    for name in directories:
        path = f"{place}/{name}"
        if not any(one == path or one.startswith(f"{path}/") for one in used):
            yield Remnant("directory", path, "")


def _per_process(read: Callable[[str], str]) -> Sequence[str]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                found.append(read(f"/proc/{name}"))
    return found


def _mounts() -> Iterator[Remnant]:
    """Find mounts of kernels in this process's own view; theirs are in namespaces that end with them."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return
    for line in lines:
        fields = line.split(" ")
        if _FOLDER_CONTENT.search(fields[3]) or f"/{KERNEL_DIRECTORY}" in fields[4]:
            yield Remnant("mount", fields[4], "")
