"""Kernels that wait for an agent: what is known of one that waits, and in what order they come.

Pure. The order itself lives in the store, so that it outlives every manager.

Note [Fair turns]
    Every kernel that begins to wait gets a turn, a number; the smallest comes first, and among equal ones the older. It is
    one more than the last turn of its owner, and not below the first turn of all that wait. So each owner
    has one kernel per turn: who asks for a hundred comes with the second one after everybody else's first, and who comes
    late begins where the others are now. An owner's last turn counts when that kernel waits no longer, too: else owners who
    ask again whenever they are served would have the first turn again and again, and who waits for the next one would
    starve. Where nobody waits the turn is the time in microseconds, so that what was long ago is below every turn since.
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


def next_turn(first_of_all: int | None, last_of_owner: int | None, now: float) -> int:
    """Give the turn of a kernel that begins to wait now; see Note [Fair turns].

    :param first_of_all: of those that wait; None where nobody does.
    :param last_of_owner: of those that wait or have waited; None where none did that is remembered.
    :param now: seconds since the epoch.
    """
    first = round(now * 1_000_000) if first_of_all is None else first_of_all
    return first if last_of_owner is None else max(first, last_of_owner + 1)
