"""The same figures of Jupyter Kernel Gateway, measured in the same run on the same machine, and the ratio of ours to them.

It is measured as it is installed, and once more with TCP_NODELAY, without which its WebSocket waits for the other side's
delayed acknowledgements: the second is the fairer comparison of two programs, the first is what its users see.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from attrs import frozen

from bench import peer
from bench.client import Connection, Effort, Script, Stuck, drive
from bench.creating import burst_times, first_results
from bench.executing import warm_kernel, websocket_times
from bench.figures import Row, Section, milliseconds, percentile, plain, text_table
from bench.parts import Settings, run_alone
from bench.reading import CONNECTIONS, reads
from bench.session import Session

CREATES, BURST, RUNS, READ_SECONDS = 20, 16, 200, 4.0
TITLE = f"Beside Jupyter Kernel Gateway {peer.VERSION}, measured in the same run"


@frozen
class Figures:
    """What is compared; times in seconds.

    :ivar burst: until the last of those that were asked for at once has its first result.
    :ivar reads: per second.
    """

    first: Sequence[float]
    burst: float
    runs: Sequence[float]
    reads: float


def compare(session: Session, settings: Settings) -> list[Row | Section]:
    """Measure both, one after the other."""
    try:
        python = peer.installed()
        theirs = [_theirs(python, settings, nodelay=nodelay) for nodelay in (False, True)]
    except (peer.Unavailable, Stuck) as error:
        return [Section(TITLE, f"Not measured: {plain(str(error))}")]
    return [Section(TITLE, table(_ours(session, settings), *theirs))]


def table(ours: Figures, plain: Figures, patched: Figures) -> str:
    """Write the comparison; a ratio is how many times as long (or as many reads) theirs takes as ours."""

    def times(name: str, pick: Callable[[Figures], float]) -> tuple[str, ...]:
        mine = pick(ours)
        cells = [f"{milliseconds(pick(one))} ms" for one in (ours, plain, patched)]
        return (name, *cells, *(f"1 : {pick(one) / mine:.1f}" for one in (plain, patched)))

    lines = [
        times("create → first result of 1+1, p50", lambda one: percentile(one.first, 0.5)),
        times("the slowest of them", lambda one: max(one.first)),
        times(f"burst of {BURST} creates, until the last first result", lambda one: one.burst),
        times("execute 1+1 over an open WebSocket, p50", lambda one: percentile(one.runs, 0.5)),
        times("p99", lambda one: percentile(one.runs, 0.99)),
        (
            f"reads of a kernel's description, {CONNECTIONS} connections (ours signed)",
            *(f"{one.reads:,.0f}/s" for one in (ours, plain, patched)),
            *(f"{ours.reads / one.reads:.2f} : 1" for one in (plain, patched)),
        ),
    ]
    return text_table(("figure", "ours", "JKG", "JKG, TCP_NODELAY", "ours : JKG", "ours : JKG, NODELAY"), lines)


def _ours(session: Session, settings: Settings) -> Figures:
    _made, first, _share = first_results(session, settings.scaled(CREATES), "1+1", "2")
    time.sleep(2.0)
    burst, _effort = burst_times(session, BURST)
    with warm_kernel(session) as kernel:
        runs, _with_opening, _share = websocket_times(session, kernel, settings.scaled(RUNS))
    per_second, _share, _notes = reads(session, settings.scaled(READ_SECONDS))
    return Figures(first, max(burst), runs, per_second)


def _theirs(python: Path, settings: Settings, *, nodelay: bool) -> Figures:
    with peer.running(python, nodelay=nodelay) as gateway:
        first = [_first_result(gateway) for _ in range(settings.scaled(CREATES) + 1)][1:]
        burst = _burst(gateway)
        with _kernel(gateway) as kernel:
            runs = _runs(gateway, kernel, settings.scaled(RUNS))
            per_second = _reads(gateway, kernel, settings.scaled(READ_SECONDS))
    return Figures(first, burst, runs, per_second)


def _first_result(gateway: peer.Peer) -> float:
    with contextlib.closing(Connection(gateway.endpoint)) as connection:
        request = gateway.creation()
        began = time.perf_counter()
        kernel = peer.kernel_of(connection.ask(request))
        with contextlib.closing(gateway.open(kernel)) as socket:
            peer.run(socket)
            took = time.perf_counter() - began
        gateway.destroy(connection, kernel)
        return took


def _burst(gateway: peer.Peer) -> float:
    """Ask for all at once, each from a thread of its own, because each has an HTTP and a WebSocket conversation to hold."""
    took: list[float] = []
    failures: list[Exception] = []
    made: list[str] = []
    barrier = threading.Barrier(BURST)

    def one() -> None:
        try:
            with contextlib.closing(Connection(gateway.endpoint)) as connection:
                request = gateway.creation()
                barrier.wait()
                began = time.perf_counter()
                made.append(kernel := peer.kernel_of(connection.ask(request)))
                with contextlib.closing(gateway.open(kernel)) as socket:
                    peer.run(socket)
                    took.append(time.perf_counter() - began)
        except (Stuck, OSError, threading.BrokenBarrierError) as error:
            barrier.abort()
            failures.append(error)

    threads = [threading.Thread(target=one) for _ in range(BURST)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise Stuck(f"{len(failures)} of {BURST} creates at once failed: {failures[0]}")
    with contextlib.closing(Connection(gateway.endpoint)) as connection:
        for kernel in made:
            gateway.destroy(connection, kernel)
    return max(took)


@contextlib.contextmanager
def _kernel(gateway: peer.Peer) -> Iterator[str]:
    with contextlib.closing(Connection(gateway.endpoint)) as connection:
        kernel = peer.kernel_of(connection.ask(gateway.creation()))
        try:
            yield kernel
        finally:
            gateway.destroy(connection, kernel)


def _runs(gateway: peer.Peer, kernel: str, count: int) -> list[float]:
    times = []
    with contextlib.closing(gateway.open(kernel)) as socket:
        for _ in range(count + 5):
            began = time.perf_counter()
            peer.run(socket)
            times.append(time.perf_counter() - began)
    return times[5:]


def _reads(gateway: peer.Peer, kernel: str, seconds: float) -> float:
    done = 0
    request = gateway.description(kernel)
    deadline = time.perf_counter() + seconds

    def over_and_over() -> Script:
        nonlocal done
        while time.perf_counter() < deadline:
            answer = yield request
            if answer.status != 200:
                raise Stuck(f"the peer answered a read with {answer.status}")
            done += 1

    with Effort.measured() as effort:
        drive(gateway.endpoint, [over_and_over() for _ in range(CONNECTIONS)])
    return done / effort.seconds


PARTS: Mapping[str, Callable[[Session, Settings], list[Row | Section]]] = {"jupyter": compare}

if __name__ == "__main__":
    run_alone(PARTS)
