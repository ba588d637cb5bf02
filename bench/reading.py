"""How many signed reads of one kernel's description a server answers per second."""

from __future__ import annotations

import time

from bench.client import Effort, Script, drive
from bench.figures import Row, least_row
from bench.parts import Settings, run_alone
from bench.session import Failed, Session

CONNECTIONS = 32
SECONDS = 6.0
_DATES = 16


def read(session: Session, settings: Settings) -> list[Row]:
    """Ask for it over many connections, each waiting for its answer."""
    per_second, share, notes = reads(session, settings.scaled(SECONDS))
    what = f"signed GET /v2/kernel/:id, {session.processes}, {CONNECTIONS} connections"
    return [least_row(what, per_second, 3500, "/s", client=share, notes=notes)]


def reads(session: Session, seconds: float) -> tuple[float, float, list[str]]:
    """Give how many reads per second were answered, the client's share of a processor, and what each took of the server's."""
    done = 0
    with session.kernels(1) as [kernel]:
        deadline = time.perf_counter() + seconds

        def over_and_over() -> Script:
            nonlocal done
            requests = session.signer.requests(_DATES, "GET", f"/kernel/{kernel}")
            while time.perf_counter() < deadline:
                answer = yield requests[done % _DATES]
                if answer.status != 200 or b'"numQueriesExecuted"' not in answer.body:
                    raise Failed(f"a read was answered with {answer.status}: {answer.body[:300]!r}")
                done += 1

        scripts = [over_and_over() for _ in range(CONNECTIONS)]
        before = session.used()
        with Effort.measured() as effort:
            drive(session.endpoint, scripts)
        notes = session.used_for_each(before, done)
    return done / effort.seconds, effort.share, notes


PARTS = {"read": read}

if __name__ == "__main__":
    run_alone(PARTS)
