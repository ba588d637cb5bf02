"""``python -m tests.integration.shifted_clock FILE MODULE ...``: a program whose wall clock is off by what a file says.

The file holds one double, and may be changed at any time: then the clock steps, as when somebody sets it. What Linux does
with time (timeouts of ``epoll``, other processes) is not touched, and neither is the monotonic clock: as on a real host.
Loads nothing before the clock is shifted.
"""

from __future__ import annotations

import mmap
import runpy
import struct
import sys
import time
from pathlib import Path

OFFSET = struct.Struct("d")


def write(file: Path, seconds: float) -> None:
    """Set the clock of whoever reads this file."""
    with file.open("r+b" if file.exists() else "wb") as out:
        out.write(OFFSET.pack(seconds))


def shift(file: str) -> None:
    """Shift this process's wall clock from now on."""
    with Path(file).open("r+b") as opened:
        offset = mmap.mmap(opened.fileno(), OFFSET.size)
    seconds, nanoseconds = time.time, time.time_ns  # noqa: TID251 - the clock itself
    time.time = lambda: seconds() + OFFSET.unpack_from(offset)[0]  # noqa: TID251 - likewise
    time.time_ns = lambda: nanoseconds() + int(OFFSET.unpack_from(offset)[0] * 1e9)


if __name__ == "__main__":
    _, where, module, *arguments = sys.argv
    shift(where)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
