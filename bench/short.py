"""The short bench for continuous integration: has anything become slower by half? ``make bench-short``, under a minute.

It knows no goals and no milliseconds: a few figures are divided by those of reference loops that run in turn with them on the
same machine (``reference.py``), and compared with the ratios that are kept in ``baseline.json``. Processor time is compared,
which a busy machine hardly changes, and the times of the quickest fiftieth, which would show a wait that takes no processor.
What seems worse is measured once more. Keep new ratios with
``--update`` when a change is meant.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from attrs import define, field, frozen

from bench import machine, reference
from bench.baseline import FILE, UnreadableBaseline, better, compare, highest, keep, load
from bench.client import Connection, Script, WebSocket, drive
from bench.figures import percentile, text_table
from bench.parts import run_program, tell
from bench.printing import SHORT_LINES, into_a_pipe, read_lines
from bench.processes import descendants, own_and_children, processor_time
from bench.reference import Reference, fork_and_compute
from bench.session import Failed, Session, created, expect, started
from bench.wire import run_body, run_text

T = TypeVar("T")

ROUNDS = 6
PER_ROUND = 60
CREATES = 8
CONNECTIONS, READS = 8, 200
LINES = 30_000
UPDATES = 3
#: The part of times that counts as undisturbed.
QUICK = 0.02
#: Seconds that it is left alone before it is measured, and for which its processor is measured while it is.
CALM = 0.7


@define
class _Side:
    """One side of a comparison.

    :ivar used: gives the seconds of processor that its processes took until now.
    :ivar idle: seconds of processor per second that they take while nothing is asked of them.
    """

    used: Callable[[], float]
    idle: float = 0.0
    times: list[float] = field(factory=list)
    processor: float = 0.0

    def calm(self) -> None:
        """Let what went before come to an end, and see what is taken without being asked for anything."""
        time.sleep(CALM)
        before, began = self.used(), time.perf_counter()
        time.sleep(CALM)
        self.idle = (self.used() - before) / (time.perf_counter() - began)

    def once(self, action: Callable[[], T]) -> T:
        """Do something, note how long it took, and give what it gives."""
        began = time.perf_counter()
        result = action()
        self.times.append(time.perf_counter() - began)
        return result

    def round(self, action: Callable[[], object], count: int) -> None:
        """Do something so many times."""
        before, first = self.used(), time.perf_counter()
        for _ in range(count):
            self.once(action)
        self.processor += max(0.0, self.used() - before - self.idle * (time.perf_counter() - first))

    def ratios(self, other: _Side, name: str) -> dict[str, float]:
        """Compare times and processor."""
        return {**self.time_ratio(other, name), **self.processor_ratio(other, name)}

    def time_ratio(self, other: _Side, name: str) -> dict[str, float]:
        """Compare the times of those that nothing came between."""
        return {f"{name}, time": percentile(self.times, QUICK) / percentile(other.times, QUICK)}

    def processor_ratio(self, other: _Side, name: str) -> dict[str, float]:
        """Compare the processor that each took on average; alone where times are of many requests at once and so never undisturbed."""
        mine, theirs = self.processor / len(self.times), other.processor / len(other.times)
        return {f"{name}, processor": mine / theirs}


@frozen
class Short:
    """What is measured, on one server and one reference."""

    session: Session
    constant: Reference

    def _sides(self) -> tuple[_Side, _Side]:
        """Give ours, with all processes of the server, its databases and kernels, and the constant's."""
        ours = _Side(lambda: processor_time(descendants(self.session.server.pid)))
        return ours, _Side(lambda: processor_time([self.constant.pid]))

    def execute(self) -> Mapping[str, float]:
        """Compare an execution over POST with a constant answer."""
        ours, theirs = self._sides()
        with (
            self.session.kernels(1) as [kernel],
            contextlib.closing(Connection(self.session.endpoint)) as connection,
            contextlib.closing(Connection(self.constant.endpoint)) as other,
        ):
            request = self.session.run(kernel, "1+1")
            alike = self.session.signer.request("POST", "/kernel/x", run_body("1+1"))
            ours.calm()
            for _ in range(ROUNDS):
                ours.round(lambda: expect(connection.ask(request), "2"), PER_ROUND)
                theirs.round(lambda: other.ask(alike), PER_ROUND * 4)
        return ours.ratios(theirs, "execute over POST : constant answer")

    def stream(self) -> Mapping[str, float]:
        """Compare an execution over a WebSocket of its own with a constant answer over a connection of its own."""
        ours, theirs = self._sides()
        with self.session.kernels(1) as [kernel]:
            handshake = self.session.signer.handshake(f"/stream/kernel/{kernel}/execute")
            alike = self.session.signer.request("POST", "/kernel/x", run_body("1+1"))

            def run() -> None:
                with contextlib.closing(WebSocket(self.session.endpoint, handshake)) as socket:
                    socket.send(run_text("1+1"))
                    if b'"2\\n"' not in b"".join(socket.messages()):
                        raise Failed("a run over a WebSocket did not print its result")

            def ask() -> None:
                with contextlib.closing(Connection(self.constant.endpoint)) as other:
                    other.ask(alike)

            ours.calm()
            for _ in range(ROUNDS):
                ours.round(run, PER_ROUND)
                theirs.round(ask, PER_ROUND * 2)
        return ours.ratios(theirs, "execute over WebSocket : constant answer")

    def create(self) -> Mapping[str, float]:
        """Compare a kernel's life, from create over two executions to its end, with a fork that computes.

        Times are compared within it, since all of it waits for its turn of the processor alike: that until the first result
        with that of the second execution.
        """
        ours, _constant = self._sides()
        fork = _Side(own_and_children)
        first, second = _Side(lambda: 0.0), _Side(lambda: 0.0)
        with contextlib.closing(Connection(self.session.endpoint)) as connection:

            def begin() -> str:
                kernel = created(connection.ask(self.session.creation()))
                expect(connection.ask(self.session.run(kernel, "1+1")), "2")
                return kernel

            def live() -> None:
                kernel = first.once(begin)
                again = self.session.run(kernel, "1+1")
                expect(second.once(lambda: connection.ask(again)), "2")
                connection.ask(self.session.destruction(kernel))

            for _ in range(CREATES):
                live()
            ours.calm()
            for _ in range(ROUNDS):
                ours.round(live, CREATES)
                fork.round(fork_and_compute, CREATES)
        return {
            **first.time_ratio(second, "create to first result : second execution"),
            **ours.processor_ratio(fork, "kernel's life : fork that computes"),
        }

    def read(self) -> Mapping[str, float]:
        """Compare a signed read with a constant answer, several connections at once."""
        ours, theirs = self._sides()
        with self.session.kernels(1) as [kernel]:
            request = self.session.signer.request("GET", f"/kernel/{kernel}")
            ours.calm()
            for _ in range(ROUNDS):
                ours.round(lambda: _reads(self.session.endpoint, request), 1)
                theirs.round(lambda: _reads(self.constant.endpoint, request), 1)
        return ours.processor_ratio(theirs, "signed read : constant answer")

    def output(self) -> Mapping[str, float]:
        """Compare printing over a WebSocket with printing into a pipe."""
        ours, _constant = self._sides()
        theirs = _Side(own_and_children)
        code = SHORT_LINES.code(LINES * SHORT_LINES.line)
        with self.session.kernels(1) as [kernel]:
            handshake = self.session.signer.handshake(f"/stream/kernel/{kernel}/execute")

            def stream() -> None:
                with contextlib.closing(WebSocket(self.session.endpoint, handshake)) as socket:
                    lines = read_lines(socket, code).lines
                if lines != LINES:
                    raise Failed(f"{lines} of {LINES} lines arrived")

            ours.calm()
            for _ in range(ROUNDS):
                ours.round(stream, 1)
                theirs.round(lambda: into_a_pipe(code), 1)
        return ours.ratios(theirs, "printing over WebSocket : into a pipe")

    def all(self) -> dict[str, tuple[Callable[[], Mapping[str, float]], Mapping[str, float]]]:
        """Measure everything; give each ratio's name, what measures it again, and its first measurement."""
        found = {}
        for measure in (self.execute, self.stream, self.create, self.read, self.output):
            ratios = measure()
            for name in ratios:
                found[name] = (measure, ratios)
        return found


def _reads(endpoint: str, request: bytes) -> None:
    """Ask so many times over several connections."""
    left = READS

    def over_and_over() -> Script:
        nonlocal left
        while left > 0:
            left -= 1
            answer = yield request
            if answer.status != 200:
                raise Failed(f"a read was answered with {answer.status}: {answer.body[:300]!r}")

    drive(endpoint, [over_and_over() for _ in range(CONNECTIONS)])


def judge(short: Short, kept: Mapping[str, float]) -> bool:
    """Measure, measure what seems worse once more, print the table, and tell whether all is fine."""
    found = short.all()
    measured = {name: ratios[name] for name, (_measure, ratios) in found.items()}
    again = {found[verdict.name][0] for verdict in compare(measured, kept) if verdict.kept and not verdict.fine}
    for measure in again:
        tell(f"{measure.__name__} seems worse; it is measured once more")
        measured = better(measured, measure())
    verdicts = compare(measured, kept)
    lines = [
        (verdict.name, f"{verdict.measured:.2f}", f"{verdict.kept:.2f}" if verdict.kept else "-", verdict.in_words)
        for verdict in verdicts
    ]
    sys.stdout.write(text_table(("ratio", "here", "kept", "judgement"), lines) + "\n")
    missing = sorted(kept.keys() - measured.keys())
    if missing:
        sys.stdout.write(f"kept and not measured any more: {', '.join(missing)}; --update forgets them\n")
    return not missing and all(verdict.fine for verdict in verdicts)


def main() -> int:
    """Measure and judge, or keep what was measured."""
    parser = argparse.ArgumentParser(prog="python -m bench.short", description="Has anything become slower by half?")
    parser.add_argument("--update", action="store_true", help=f"keep the highest of {UPDATES} runs as the new ratios")
    options = parser.parse_args()
    try:
        kept = {} if options.update else load()
    except UnreadableBaseline as error:
        parser.error(str(error))
    status = 0

    def measure() -> None:
        nonlocal status
        status = _measure(kept, update=options.update)

    run_program(measure)
    return status


def _measure(kept: Mapping[str, float], *, update: bool) -> int:
    with started() as session, reference.running() as constant:
        short = Short(session, constant)
        if not update:
            return 0 if judge(short, kept) else 1
        runs = [{name: ratios[name] for name, (_measure, ratios) in short.all().items()} for _ in range(UPDATES)]
    ratios = highest(runs)
    keep(ratios, machine.shape())
    spread = [(name, f"{value:.2f}", *(f"{run[name]:.2f}" for run in runs)) for name, value in ratios.items()]
    sys.stdout.write(text_table(("ratio", "kept", *(f"run {n + 1}" for n in range(UPDATES))), spread) + f"\n{FILE}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
