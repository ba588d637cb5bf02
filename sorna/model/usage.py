"""What a keypair's kernels used in a period; pure.

Note [What belongs to a period]
    A kernel's counters are final when it ends, so its processor time, memory, network and I/O belong to the period in
    which it ended, whole. Its wall time is known second by second, and is counted as far as it lies within the period, for
    kernels that still live too. Periods begin with ``since`` and end before ``until``: two that follow each other count
    everything once.
"""

from __future__ import annotations

from collections.abc import Iterable

from attrs import frozen

from sorna.model.kernel import Kernel


@frozen
class KeypairUsage:
    """One keypair's row of a report; see Note [What belongs to a period].

    :ivar kernels: kernels that ended in the period.
    :ivar wall_time: seconds. :ivar cpu_used: milliseconds. :ivar mem_max_bytes: the largest of any of the kernels.
    """

    access_key: str
    user_id: str
    kernels: int
    wall_time: float
    cpu_used: float
    mem_max_bytes: int
    net_rx_bytes: int
    net_tx_bytes: int
    io_read_bytes: int
    io_write_bytes: int


def usage_of(
    access_key: str, user_id: str, kernels: Iterable[Kernel], since: float, until: float
) -> KeypairUsage | None:
    """Sum the kernels of one keypair up, or give None when none of them lived in the period."""
    within = [
        kernel
        for kernel in kernels
        if kernel.created_at < until and (kernel.terminated_at is None or kernel.terminated_at >= since)
    ]
    if not within:
        return None
    ended = [one for one in within if one.terminated_at is not None and one.terminated_at < until]
    # A host that cannot tell a counter says -1.
    return KeypairUsage(
        access_key=access_key,
        user_id=user_id,
        kernels=len(ended),
        wall_time=sum(
            min(until, until if one.terminated_at is None else one.terminated_at) - max(since, one.created_at)
            for one in within
        ),
        cpu_used=sum(max(0.0, one.usage.cpu_used) for one in ended),
        mem_max_bytes=max((max(0, one.usage.mem_max_bytes) for one in ended), default=0),
        net_rx_bytes=sum(max(0, one.usage.net_rx_bytes) for one in ended),
        net_tx_bytes=sum(max(0, one.usage.net_tx_bytes) for one in ended),
        io_read_bytes=sum(max(0, one.usage.io_read_bytes) for one in ended),
        io_write_bytes=sum(max(0, one.usage.io_write_bytes) for one in ended),
    )
