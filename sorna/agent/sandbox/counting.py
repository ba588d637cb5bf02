"""What control groups count of a kernel, for both versions of the interface.

Standard library only: it is loaded in zygotes. Knows the files of counters; may not know how groups are made or what limits are.
"""

import os
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sorna.agent.sandbox.cgroups import PIECE, Hierarchy, read_text


class Counters(NamedTuple):
    """What a group has used and run into; -1 where no controller counts it."""

    cpu_ms: float = -1
    memory: int = -1
    memory_most: int = -1
    io_read: int = -1
    io_write: int = -1
    out_of_memory: int = -1
    processes_refused: int = -1


def _number(path: str) -> int:
    try:
        return int(read_text(path))
    except (OSError, ValueError):
        return -1


def _entry(path: str, key: str) -> int:
    """Read one line of a file of names and numbers."""
    try:
        return _entry_of(read_text(path), key)
    except (OSError, ValueError):
        return -1


def _entry_of(text: str, key: str) -> int:
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return -1


def _io(path: str) -> tuple[int, int]:
    try:
        text = read_text(path)
    except OSError:
        return -1, -1
    totals = {"rbytes": 0, "wbytes": 0}
    for key, value in re.findall(r"(rbytes|wbytes)=(\d+)", text):
        totals[key] += int(value)
    return totals["rbytes"], totals["wbytes"]


def read(trees: Iterable[Hierarchy], name: str, *, hits: bool = True) -> Counters:
    """Read a kernel's counters; takes some tens of microseconds and never raises.

    :param hits: whether to read, too, how often limits were hit.
    """
    counters = Counters()
    for tree in trees:
        group = f"{tree.directory}/{name}"
        if tree.version == 1:
            counters = _read_legacy(tree.controllers, group, counters)
        else:
            counters = _read_unified(tree.controllers, group, counters)
    if hits:
        out_of_memory, refused = hit_counters(trees, name)
        counters = counters._replace(out_of_memory=out_of_memory.read(), processes_refused=refused.read())
        out_of_memory.close()
        refused.close()
    return counters


class Counter:
    """One number that Linux counts for a kernel and that is read at every run's end, -1 where it is not counted.

    The file is kept open, because to open it takes ten times as long as to read it.
    """

    def __init__(self, path: str | None, key: str) -> None:
        self._path = path
        self._key = key
        self._descriptor = -1
        self._text = b""
        self._value = -1

    def read(self) -> int:
        """Read it; never raises."""
        if self._path is None:
            return -1
        try:
            if self._descriptor < 0:
                self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            text = os.pread(self._descriptor, PIECE, 0)
            if text != self._text:
                self._text, self._value = text, _entry_of(text.decode("ascii"), self._key)
        except (OSError, ValueError):
            return -1
        return self._value

    def close(self) -> None:
        """Read no more."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._path, self._descriptor = None, -1


def hit_counters(trees: Iterable[Hierarchy], name: str) -> tuple[Counter, Counter]:
    """Give the counters of how often memory ran out and a process was refused."""
    out_of_memory = refused = None
    for tree in trees:
        group = f"{tree.directory}/{name}"
        if "memory" in tree.controllers:
            out_of_memory = f"{group}/memory.oom_control" if tree.version == 1 else f"{group}/memory.events"
        if "pids" in tree.controllers:
            refused = f"{group}/pids.events"
    return Counter(out_of_memory, "oom_kill"), Counter(refused, "max")


def _read_legacy(controllers: Sequence[str], group: str, counters: Counters) -> Counters:
    if "cpuacct" in controllers:
        used = _number(f"{group}/cpuacct.usage")
        counters = counters._replace(cpu_ms=used / 1e6 if used >= 0 else -1)
    if "memory" in controllers:
        counters = counters._replace(
            memory=_number(f"{group}/memory.usage_in_bytes"),
            memory_most=_number(f"{group}/memory.max_usage_in_bytes"),
        )
    return counters


def _read_unified(controllers: Sequence[str], group: str, counters: Counters) -> Counters:
    if "cpu" in controllers:
        used = _entry(f"{group}/cpu.stat", "usage_usec")
        counters = counters._replace(cpu_ms=used / 1e3 if used >= 0 else -1)
    if "memory" in controllers:
        counters = counters._replace(
            memory=_number(f"{group}/memory.current"),
            memory_most=_number(f"{group}/memory.peak"),
        )
    if "io" in controllers:
        read_bytes, write_bytes = _io(f"{group}/io.stat")
        counters = counters._replace(io_read=read_bytes, io_write=write_bytes)
    return counters
