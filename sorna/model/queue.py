"""Kernels that wait for an agent: what is known of one that waits, and in what order they come.

Pure. The order itself lives in the store, so that it outlives every manager.

Note [Fair turns]
    Every kernel that begins to wait gets a turn, a number; the smallest comes first, and among equal ones the older. It is
    one more than the last turn of its owner that still waits, and not below the first turn of all that wait. So each owner
    has one kernel per turn: who asks for a hundred comes with the second one after everybody else's first, and who comes
    late begins where the others are now.
"""

from __future__ import annotations

from attrs import frozen

from sorna.model.kernel import Kernel, KernelSpec


@frozen
class QueueBounds:
    """How many kernels may wait, and for how long in seconds."""

    kernels: int = 1000
    kernels_of_owner: int = 100
    longest: float = 86_400.0
    default: float = 3600.0


@frozen
class Waiting:
    """A kernel that waits.

    :ivar spec: what was asked for. :ivar deadline: seconds since the epoch.
    """

    kernel: Kernel
    spec: KernelSpec
    turn: int
    deadline: float


@frozen
class QueuePlace:
    """Where a kernel stands: ``position`` from 1 of all that wait, and until when it may."""

    position: int
    deadline: float


def next_turn(first_of_all: int | None, last_of_owner: int | None) -> int:
    """Give the turn of a kernel that begins to wait; None where nobody waits. See Note [Fair turns]."""
    return max(first_of_all or 0, -1 if last_of_owner is None else last_of_owner + 1, 0)
