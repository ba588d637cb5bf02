"""How long until code has run that has no kernel yet: one after another, many at once, and as many per second as go through."""

from __future__ import annotations

import time

from bench.client import Effort, Script, drive
from bench.figures import Row, least_row, milliseconds, percentile, times_row
from bench.parts import Settings, run_alone
from bench.session import AT_ONCE, Session, created, expect

IMPORTS = "import numpy, pandas; print(numpy.arange(5).sum() + len(pandas.Series([1, 2])))"
BURSTS = 3
SUSTAINED = 10.0
# Seconds after which what was asked for is gone, and what the agent keeps ready is there again.
REFILLED = 5.0


def first_results(session: Session, count: int, code: str, result: str) -> tuple[list[float], list[float], float]:
    """Give the times of create alone, of create to first result, and the client's share; destroys are not in them."""
    made: list[float] = []
    first: list[float] = []

    def one_after_another() -> Script:
        for number in range(count + 3):
            request = session.creation()
            began = time.perf_counter()
            kernel = created((yield request))
            made.append(time.perf_counter() - began)
            expect((yield session.run(kernel, code)), result)
            first.append(time.perf_counter() - began)
            yield session.destruction(kernel)
            if number == 2:  # those before were to warm up
                made.clear()
                first.clear()

    with Effort.measured() as effort:
        drive(session.endpoint, [one_after_another()])
    return made, first, effort.share


def create(session: Session, settings: Settings) -> list[Row]:
    """Measure one after another, each destroyed outside of the clock; twice, because an agent learns what is asked for."""
    count = settings.scaled(300)
    _made, unexpected, _share = first_results(session, count, "1+1", "2")
    time.sleep(REFILLED)
    made, first, share = first_results(session, count, "1+1", "2")
    notes = [
        f"the create alone: {_both(made)}",
        f"in a run of the same {REFILLED:g} s before, the first that the server had ever seen: {_both(unexpected)}",
    ]
    what = f"create → first result of 1+1, one after another, p50 / p99 of {len(first)}"
    return [times_row(what, first, (4, 12), share, notes)]


def _both(times: list[float]) -> str:
    return f"{milliseconds(percentile(times, 0.5))} / {milliseconds(percentile(times, 0.99))} ms"


def imports(session: Session, settings: Settings) -> list[Row]:
    """Measure the same where the first code imports large libraries."""
    time.sleep(REFILLED)
    _made, first, share = first_results(session, settings.scaled(300), IMPORTS, "12")
    return [times_row(f"the same with import numpy, pandas as the first code, of {len(first)}", first, (6, 20), share)]


def burst(session: Session, settings: Settings) -> list[Row]:
    """Measure many at once, each to its first result."""
    count = settings.scaled(100)
    bursts = []
    share = 0.0
    for _ in range(BURSTS):
        time.sleep(REFILLED)
        times, effort = burst_times(session, count)
        bursts.append(times)
        share = max(share, effort.share)
    bursts_in_words = "; ".join(map(_both, bursts))
    middle = sorted(bursts, key=lambda times: percentile(times, 0.5))[len(bursts) // 2]
    what = f"burst of {count} creates at once, each to its first result, p50 / p99"
    return [times_row(what, middle, (250, 450), share, [f"each of the {BURSTS} bursts: {bursts_in_words}"])]


def burst_times(session: Session, count: int) -> tuple[list[float], Effort]:
    """Give the times from create to first result of so many that are asked for at once; they are destroyed in the end."""
    times: list[float] = []
    kernels: list[str] = []

    def one(request: bytes) -> Script:
        began = time.perf_counter()
        kernel = created((yield request))
        kernels.append(kernel)
        expect((yield session.run(kernel, "1+1")), "2")
        times.append(time.perf_counter() - began)

    scripts = [one(session.creation()) for _ in range(count)]
    try:
        with Effort.measured() as effort:
            drive(session.endpoint, scripts)
    finally:
        session.destroy(kernels)
    return times, effort


def sustained(session: Session, settings: Settings) -> list[Row]:
    """Create, execute, destroy, over and over; the clock runs when what was ready before is used up."""
    seconds = settings.scaled(SUSTAINED)
    first, effort = come_and_go(session, deadline=time.perf_counter() + seconds / 2)
    ready = f"in the {seconds / 2:g} s before, which began with kernels that were ready: {first / effort.seconds:.1f}/s"
    before = session.used()
    count, effort = come_and_go(session, deadline=time.perf_counter() + seconds)
    notes = [*session.used_for_each(before, count), ready]
    what = f"sustained create + execute + destroy, {AT_ONCE} connections, kernels per second"
    return [least_row(what, count / effort.seconds, 100, "/s", client=effort.share, notes=notes)]


def come_and_go(session: Session, *, deadline: float, most: int | None = None) -> tuple[int, Effort]:
    """Let kernels come and go until a moment, or until there were so many; give how many and what the client took."""
    count = 0

    def over_and_over() -> Script:
        nonlocal count
        while time.perf_counter() < deadline and (most is None or count < most):
            count += 1
            kernel = created((yield session.creation()))
            expect((yield session.run(kernel, "1+1")), "2")
            answer = yield session.destruction(kernel)
            if answer.status != 200:
                raise RuntimeError(f"destroy was answered with {answer.status}: {answer.body[:500]!r}")

    with Effort.measured() as effort:
        drive(session.endpoint, [over_and_over() for _ in range(AT_ONCE)])
    return count, effort


PARTS = {"create": create, "import": imports, "burst": burst, "sustained": sustained}

if __name__ == "__main__":
    run_alone(PARTS)
