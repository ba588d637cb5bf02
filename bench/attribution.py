"""From marks of when calls began and ended to how long each stage of a request took. Pure.

The marks of all processes lie on one clock. Every moment of a request belongs to the call that began last of those that are
under way, and within that call to the stretch between two of the calls it makes. So the stages of a request add up to its
time, however its calls are nested or overlap.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence

from attrs import frozen

ENDS = "·"


@frozen
class Mark:
    """A call, or with equal ends a moment; seconds."""

    name: str
    began: float
    ended: float


def within(window: Mark, marks: Sequence[Mark]) -> list[Mark]:
    """Choose the marks that lie wholly within a request."""
    return [mark for mark in marks if window.began <= mark.began and mark.ended <= window.ended]


def stages(window: Mark, marks: Sequence[Mark]) -> dict[str, float]:
    """Give how many seconds of a request each stage took, in the order in which they first come.

    A stage is named ``CALL``, or ``CALL: BEFORE → AFTER`` where the call makes others and this is the stretch between them.

    :param marks: those within the window; others are not looked at.
    """
    calls = sorted([window, *within(window, marks)], key=lambda mark: (mark.began, -mark.ended))
    moments = sorted({moment for call in calls for moment in (call.began, call.ended)})
    taken: dict[str, float] = defaultdict(float)
    for begin, end in itertools.pairwise(moments):
        innermost = max(
            (number for number, call in enumerate(calls) if call.began <= begin and end <= call.ended), default=0
        )
        taken[_stage(calls, innermost, begin, end)] += end - begin
    return dict(taken)


def _stage(calls: Sequence[Mark], number: int, begin: float, end: float) -> str:
    call = calls[number]
    inner = [one for one in calls[number + 1 :] if one.ended <= call.ended and one.began >= call.began]
    if not inner:
        return call.name
    before = max((one for one in inner if one.ended <= begin), key=lambda one: (one.ended, one.began), default=None)
    after = min((one for one in inner if one.began >= end), key=lambda one: (one.began, -one.ended), default=None)
    return f"{call.name}: {before.name if before else ENDS} → {after.name if after else ENDS}"


def faster_half(requests: Sequence[tuple[Mark, Mapping[str, float]]]) -> tuple[float, dict[str, float]]:
    """Give the mean time of the faster half of requests, and the mean of each of their stages, which add up to it.

    The slower half holds what the machine did besides.

    :raises ValueError: there are no requests.
    """
    if not requests:
        raise ValueError("no requests")
    ordered = sorted(requests, key=lambda request: request[0].ended - request[0].began)
    chosen = ordered[: (len(ordered) + 1) // 2]
    sums: dict[str, float] = defaultdict(float)
    for _window, taken in chosen:
        for name, seconds in taken.items():
            sums[name] += seconds
    total = sum(window.ended - window.began for window, _taken in chosen) / len(chosen)
    return total, {name: seconds / len(chosen) for name, seconds in sums.items()}
