"""Executions on live kernels: how long one takes, how many go through, and what becomes of a load that does not wait."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

from bench.client import DEPTH, Connection, Effort, Script, WebSocket, drive, pace
from bench.figures import Row, least_row, milliseconds, percentile, times_row
from bench.parts import Settings, run_alone
from bench.session import Failed, Session, expect
from bench.wire import Answer, printed, run_body, run_text

KERNELS, CONNECTIONS = 64, 32
RATE_SECONDS = 10.0
PACE_SECONDS = 30.0
#: Executions of a kernel that differ in what they print, so that an answer which belongs to another one is noticed.
VARIANTS = 8


@contextlib.contextmanager
def warm_kernel(session: Session) -> Iterator[str]:
    """Make a kernel that has run a few things."""
    with session.kernels(1) as [kernel], contextlib.closing(Connection(session.endpoint)) as connection:
        for _ in range(20):
            expect(connection.ask(session.run(kernel, "1+1")), "2")
        yield kernel


def execute(session: Session, settings: Settings) -> list[Row]:
    """Measure one after another on one kernel, over both ways."""
    count = settings.scaled(2000)
    with warm_kernel(session) as kernel:
        times, with_opening, share = websocket_times(session, kernel, count)
        posts, post_share = post_times(session, kernel, count)
    note = (
        "from sending the code on an open socket to the message with its end; with opening the socket, which each run has "
        f"to itself: {milliseconds(percentile(with_opening, 0.5))} / {milliseconds(percentile(with_opening, 0.99))} ms"
    )
    return [
        times_row(f"execute 1+1 over WebSocket, p50 / p99 of {count}", times, (1, 3), share, [note]),
        times_row(f"execute 1+1 over POST, p50 / p99 of {count}", posts, (2, 5), post_share),
    ]


def post_times(session: Session, kernel: str, count: int) -> tuple[list[float], float]:
    """Give the times of executions over one connection, and the client's share of a processor."""
    requests = session.signer.requests(count, "POST", f"/kernel/{kernel}", run_body("1+1"))
    times = []
    with contextlib.closing(Connection(session.endpoint)) as connection, Effort.measured() as effort:
        for request in requests:
            began = time.perf_counter()
            answer = connection.ask(request)
            times.append(time.perf_counter() - began)
            expect(answer, "2")
    return times, effort.share


def websocket_times(session: Session, kernel: str, count: int) -> tuple[list[float], list[float], float]:
    """Give the times of executions, once without and once with opening a socket, which every run has to itself."""
    handshake = session.signer.handshake(f"/stream/kernel/{kernel}/execute")
    text = run_text("1+1")
    times, with_opening = [], []
    with Effort.measured() as effort:
        for _ in range(count):
            opening = time.perf_counter()
            socket = WebSocket(session.endpoint, handshake)
            began = time.perf_counter()
            socket.send(text)
            ended, messages = began, []
            for message in socket.messages():
                messages.append(message)
                if b'"finished"' in message:
                    ended = time.perf_counter()
            times.append(ended - began)
            with_opening.append(ended - opening)
            socket.close()
            if b'"2\\n"' not in b"".join(messages):
                raise Failed(f"a run over a WebSocket printed {messages!r}")
    return times, with_opening, effort.share


def rate(session: Session, settings: Settings) -> list[Row]:
    """Measure as many as go through, each connection waiting for its answer."""
    seconds = settings.scaled(RATE_SECONDS)
    done = 0
    with session.kernels(KERNELS) as kernels:
        deadline = time.perf_counter() + seconds

        def over_and_over(mine: Sequence[str]) -> Script:
            nonlocal done
            requests = [
                (one, f"{number}")
                for number in range(VARIANTS)
                for kernel in mine
                for one in session.signer.requests(1, "POST", f"/kernel/{kernel}", run_body(f"{number}+0"))
            ]
            while True:
                for request, text in requests:
                    if time.perf_counter() >= deadline:
                        return
                    expect((yield request), text)
                    done += 1

        scripts = [over_and_over(kernels[number::CONNECTIONS]) for number in range(CONNECTIONS)]
        before = session.used()
        with Effort.measured() as effort:
            drive(session.endpoint, scripts)
        notes = session.used_for_each(before, done)
    what = f"executions per second, {session.processes}, {KERNELS} kernels, {CONNECTIONS} connections"
    return [least_row(what, done / effort.seconds, 1500, "/s", client=effort.share, notes=notes)]


def pace_64_10(session: Session, settings: Settings) -> list[Row]:
    """Offer what peers lose kernels at."""
    return [_paced(session, settings, 64, 10, 100.0)]


def pace_100_10(session: Session, settings: Settings) -> list[Row]:
    """Offer half as much again."""
    return [_paced(session, settings, 100, 10, 100.0)]


def pace_64_100(session: Session, settings: Settings) -> list[Row]:
    """Offer more than the machine can do."""
    return [_paced(session, settings, 64, 100, None)]


def _paced(session: Session, settings: Settings, count: int, rate: int, goal: float | None) -> Row:
    seconds = settings.scaled(PACE_SECONDS)
    with session.kernels(count) as kernels:
        requests = [
            [session.run(kernel, f"{1000 * (lane + 1)}+{which}") for which in range(VARIANTS)]
            for lane, kernel in enumerate(kernels)
        ]
        failures: list[Answer] = []

        def right(lane: int, which: int, answer: Answer) -> bool:
            fine = printed(answer, f"{1000 * (lane + 1) + which}")
            if not fine and len(failures) < 3:
                failures.append(answer)
            return fine

        with Effort.measured() as effort:
            paced = pace(session.endpoint, requests, rate, seconds, right)
        alive = session.alive(kernels)
    high = percentile(paced.times, 0.99) * 1000 if paced.times else float("inf")
    lost = paced.lost + paced.wrong
    measured = f"{lost} lost, {count - alive} dead, p99 {high:,.0f} ms, {len(paced.times) / effort.seconds:,.0f} of {count * rate:,}/s"
    wanted = "no loss, no kernel dead" + (f", p99 below {goal:g} ms" if goal is not None else "")
    told = (
        f"{paced.due:,} were due, {paced.sent:,} sent (the others found {DEPTH} of their kernel unanswered until the time was "
        f"over), {len(paced.times):,} answered, {paced.wrong:,} of them wrongly; {alive} of {count} kernels run code afterwards"
    )
    notes = [told, *(f"one of the wrong answers: {answer.status} {answer.body[:300]!r}" for answer in failures)]
    met = not lost and alive == count and (goal is None or high < goal)
    return Row(f"{count} kernels x {rate} executions/s for {seconds:g} s", wanted, measured, met, effort.share, notes)


PARTS = {
    "execute": execute,
    "rate": rate,
    "pace-64x10": pace_64_10,
    "pace-100x10": pace_100_10,
    "pace-64x100": pace_64_100,
}

if __name__ == "__main__":
    run_alone(PARTS)
