"""The limits of one kernel and how a client's wishes are brought within what the operator allows."""

from __future__ import annotations

from attrs import frozen

KIB = 1024
MIB = 1024 * KIB


@frozen
class Limits:
    """What one kernel may use. Sizes in bytes, times in seconds.

    :ivar memory: all memory of the kernel, its scratch space included.
    :ivar processes: processes and threads at once.
    :ivar cpu_cores: processor time per second of wall time.
    :ivar execution_timeout: longest single run, time spent waiting for input not counted.
    :ivar idle_timeout: how long a kernel may sit without a run or a request.
    :ivar lifetime: how long a kernel may live at all; 0 for no bound.
    :ivar output_size: bytes that one run may print.
    :ivar file_size: largest single file.
    :ivar scratch_size: everything below the working directory and ``/tmp`` together.
    :ivar open_files: open descriptors per process.
    """

    memory: int = 512 * MIB
    processes: int = 128
    cpu_cores: float = 1.0
    execution_timeout: float = 180.0
    idle_timeout: float = 600.0
    lifetime: float = 0.0
    output_size: int = 256 * MIB
    file_size: int = 128 * MIB
    scratch_size: int = 256 * MIB
    open_files: int = 1024


def within(wish: float, most: float) -> float:
    """Give the client's wish, where 0 or less means "the default", cut to what is allowed at the most."""
    return min(wish, most) if wish > 0 else most
