"""Makes this process's memory cheap to share with the processes that are cloned of it.

Standard library only: it is loaded in zygotes. Knows how CPython and Linux keep memory; may not know what it is for.

Note [Free blocks]: CPython gives out small objects from pools of one size, and takes first what has become free in pools that were
full. After libraries have been imported there are thousands of such holes, all over memory that is shared with the clones, and
each new object of a clone would fall into one, copying a page for some bytes. So before the first clone they are filled, with
objects that nobody uses; what a clone makes afterwards lies close together in pages of its own.

Note [Fewer mappings]: a clone copies each mapping, its end takes it back, and both find their way through trees of all clones' mappings
of the same file. A shared library is five of them, because each part of it has a protection of its own: constants may not be
executed, and what the loader has written may not be written again. With a hundred libraries that is most of what a process consists
of. Parts that are neighbours in the file become one mapping when they are protected alike, so constants get the protection of the
code before or behind them, and what the loader has written that of the variables behind it. What these two protections keep from
an attacker, code of the user's own choice that runs in this memory has anyway.

Note [One heap]: CPython takes memory for small objects from Linux a megabyte at a time, and each lands between the libraries that are
loaded meanwhile: too small for a huge page, so that a clone copies thousands of entries of page tables one by one. From the C
library's heap they come one behind the other. Its own thresholds are set to what it would have made of them itself in a program that
uses large arrays: it would otherwise give each such piece a mapping of its own.
"""

import ctypes
import gc
import mmap
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from sorna.agent.sandbox import namespaces as ns

# A line of the statistics: class, size of its blocks, pools, blocks in use, free blocks in pools that are in use.
_CLASS = re.compile(r"\s*\d+\s+(\d+)\s+\d+\s+\d+\s+(\d+)\s*", re.ASCII)
_BYTES_HEAD = sys.getsizeof(b"")
# What the two smallest sizes of blocks hold, which are too small for bytes.
_SMALL: dict[int, Callable[[], object]] = {16: object, 32: lambda: float(len(_fillers))}
_fillers: list[object] = []


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_IN_HEAP = 32 << 20
_RAW = 0  # PYMEM_DOMAIN_RAW


class _Allocator(ctypes.Structure):
    """``PyMemAllocatorEx``."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("context", "malloc", "calloc", "realloc", "free"))


class _ArenaAllocator(ctypes.Structure):
    """``PyObjectArenaAllocator``, whose functions are called like the first and the last one of the other."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("context", "alloc", "free"))


@contextmanager
def gathered() -> Iterator[None]:
    """Let memory for objects come from one heap while this lasts; see Note [One heap]. Where that cannot be, nothing happens.

    Afterwards it is as before. What came from the heap stays there: Linux refuses to take it back as the mapping that it is not.
    """
    try:
        adjust = ctypes.CDLL(None).mallopt
        raw_of, arena_of = ctypes.pythonapi.PyMem_GetAllocator, ctypes.pythonapi.PyObject_GetArenaAllocator
        use = ctypes.pythonapi.PyObject_SetArenaAllocator
    except AttributeError:
        yield
        return
    raw, before = _Allocator(), _ArenaAllocator()
    raw_of(_RAW, ctypes.byref(raw))
    arena_of(ctypes.byref(before))
    if adjust(_M_MMAP_THRESHOLD, _LARGEST_IN_HEAP) and adjust(_M_TRIM_THRESHOLD, 2 * _LARGEST_IN_HEAP):
        use(ctypes.byref(_ArenaAllocator(raw.context, raw.malloc, raw.free)))
    try:
        yield
    finally:
        use(ctypes.byref(before))


def settle() -> None:
    """Leave this process's memory as it will be shared, after what it has done last; in huge pages where that is possible."""
    ns.collapse_memory()  # which leaves holes
    _fill()
    gc.freeze()


def compact() -> None:
    """Collect what was left of imports, and let the rest lie in few mappings and pages."""
    gc.collect()
    gc.freeze()
    _merge_mappings()
    ns.collapse_memory()


class _Part(NamedTuple):
    """A private mapping of a file."""

    first: int
    end: int
    protection: str
    offset: int
    file: tuple[str, str]

    def precedes(self, other: "_Part | None") -> bool:
        """Tell whether the other one is what follows, in memory and in the file."""
        return (
            other is not None
            and self.file == other.file
            and (self.end, self.offset + self.end - self.first) == (other.first, other.offset)
        )


def _parts() -> list[_Part]:
    found = []
    with open("/proc/self/maps", "rb") as mappings:
        for line in mappings:
            place, protection, offset, device, inode, *_name = line.decode("ascii", "replace").split()
            first, end = (int(address, 16) for address in place.split("-"))
            if inode != "0":
                found.append(_Part(first, end, protection, int(offset, 16), (device, inode)))
    return found


def _merge_mappings() -> None:
    """See Note [Fewer mappings]; where Linux does not like it, it stays as it is."""
    parts: list[_Part | None] = [None, *_parts(), None]
    for before, part, behind in zip(parts, parts[1:], parts[2:], strict=False):
        if part is None or part.protection != "r--p":
            continue
        if part.precedes(behind) and behind is not None and behind.protection == "rw-p":
            ns.protect(part.first, part.end - part.first, mmap.PROT_READ | mmap.PROT_WRITE)
        elif (part.precedes(behind) and behind is not None and behind.protection == "r-xp") or (
            before is not None and before.protection == "r-xp" and before.precedes(part)
        ):
            ns.protect(part.first, part.end - part.first, mmap.PROT_READ | mmap.PROT_EXEC)


def _fill() -> None:
    """See Note [Free blocks]; a Python that does not tell of its pools, in the form that is known, stays as it is."""
    for size, free in _free_blocks():
        make = _SMALL.get(size, lambda size=size: bytes(size - _BYTES_HEAD))
        _fillers.extend([make() for _block in range(free)])


def _free_blocks() -> list[tuple[int, int]]:
    """List sizes of blocks with the number of those that are free."""
    with tempfile.TemporaryFile() as file:
        errors = os.dup(2)
        try:
            # It has no other way out than the standard error.
            os.dup2(file.fileno(), 2)
            sys._debugmallocstats()  # noqa: SLF001 - documented, for CPython only
        finally:
            os.dup2(errors, 2)
            os.close(errors)
        file.seek(0)
        text = file.read().decode("ascii", "replace")
    found = (_CLASS.fullmatch(line) for line in text.splitlines())
    return [(int(match[1]), int(match[2])) for match in found if match and 16 <= int(match[1]) <= 512]
