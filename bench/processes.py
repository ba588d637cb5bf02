"""What the system tells of processes: who descends from whom, processor time, memory. Linux only, as the server is."""

from __future__ import annotations

import contextlib
import os
import resource
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from attrs import define, field

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
MIB = 1 << 20


def descendants(pid: int) -> list[int]:
    """List a process and everything below it that lives now."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                children.setdefault(int(_stat(int(folder.name))[1]), []).append(int(folder.name))
    found = [pid]
    for one in found:  # grows while it is gone through
        found += children.get(one, ())
    return found


def workers_of(server: int) -> list[int]:
    """Find the processes that share a server's port, but the first one, which is the server's own."""
    found = []
    for pid in descendants(server) if server else ():
        with contextlib.suppress(OSError):
            if b"\0sorna.worker\0" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def agent_of(server: int) -> int | None:
    """Find the local agent among a server's children."""
    for pid in descendants(server):
        with contextlib.suppress(OSError):
            if b"sorna.agent" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    return None


def _stat(pid: int) -> list[str]:
    """Give the fields of ``/proc/PID/stat`` from the state on, which is behind the name in brackets."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()


def processor_time(pids: Iterable[int]) -> float:
    """Add up the seconds of processor that processes and their children that have ended took.

    That of the living is read to the nanosecond where the kernel tells it (``schedstat``): a thousand idle processes that
    took less than a tick each would else count as nothing.
    """
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            stat = _stat(pid)
            own = _precisely(pid)
            total += (int(stat[11]) + int(stat[12])) / _TICK if own is None else own
            total += (int(stat[13]) + int(stat[14])) / _TICK
    return total


def _precisely(pid: int) -> float | None:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return sum(int((task / "schedstat").read_text("ascii").split()[0]) for task in tasks) / 1e9
    except (OSError, ValueError, IndexError):
        return None


def own_and_children() -> float:
    """Give the seconds of processor that this process and its children that have ended took."""
    mine, theirs = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return mine.ru_utime + mine.ru_stime + theirs.ru_utime + theirs.ru_stime


def resident(pid: int) -> int:
    """Give the resident memory of a process in bytes, 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * _PAGE
    except OSError:
        return 0


def proportional(pid: int) -> int | None:
    """Give the proportional set size of a process in bytes: its own memory, and its part of what it shares.

    :returns: None when the process is gone or may not be looked into.
    """
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), None)


def pid_namespace(pid: int) -> str | None:
    """Name the namespace of process ids that a process is in, as ``/proc`` in every kernel names it too."""
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:
        return None


@define
class Growth:
    """The most that processes' resident memory grew to while somebody watched, in bytes above what it was at first."""

    most: dict[int, int] = field(factory=dict)

    @classmethod
    @contextlib.contextmanager
    def watched(cls, pids: Iterable[int], interval: float = 0.05) -> Iterator[Growth]:
        """Look at them every so often while something happens."""
        growth, over = cls(), threading.Event()
        before = {pid: resident(pid) for pid in pids}
        growth.most = dict.fromkeys(before, 0)

        def watch() -> None:
            while not over.wait(interval):
                for pid, size in before.items():
                    growth.most[pid] = max(growth.most[pid], resident(pid) - size)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield growth
        finally:
            over.set()
            watcher.join()
