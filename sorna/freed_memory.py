"""Keeps what a process frees for what it allocates next, instead of giving it back to Linux and asking for it again.

Knows the C library's allocator; ground for the programs that move much content.

Note [Memory that comes back]
    Content passes through a process in pieces of up to a mebibyte or so, and each piece through several buffers of its size. The C
    library gives a free end of its heap, and every buffer of more than 128 KiB, back to Linux at once, which has to clear each page
    again before it hands it out: a quarter of the processor time of a server whose kernel prints much. So a few mebibytes
    stay. Larger buffers are given back as ever.
"""

from __future__ import annotations

import ctypes

from sorna.model.limits import MIB

# From malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

KEPT = 8 * MIB
LARGEST = 4 * MIB


def keep_freed_memory() -> None:
    """Keep up to :data:`KEPT` bytes at the end of the heap, and buffers of up to :data:`LARGEST` in it; see the note.

    Where the C library is not glibc, nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, KEPT)
        mallopt(_M_MMAP_THRESHOLD, LARGEST)
