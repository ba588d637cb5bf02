"""Where the time of one create and of one execute goes, stage by stage, through client, gateway, manager, agent and kernel.

It starts a server of its own with ``--trace-stages``, because noting costs a little, and asks one thing after another.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench.attribution import Mark, faster_half, stages
from bench.client import Connection
from bench.figures import Row, Section, text_table
from bench.parts import Settings, run_alone
from bench.session import Failed, Session, created, started

KERNELS, RUNS = 60, 10
#: Stages that take less of the whole are shown together.
LEAST_SHARE = 0.01
# The kernel itself says when its code began to run: its clock is everybody's.
_CODE = "import time; began = time.time(); 1+1; print(began)"


def breakdown(session: Session, settings: Settings) -> list[Row | Section]:
    """Trace creates and executes."""
    if not session.server.pid:
        return [
            Section("Where the time goes", "Not measured: it wants a server of its own, and --endpoint names another.")
        ]
    with tempfile.TemporaryDirectory(prefix="sorna-bench-") as folder:
        with started("--trace-stages", folder) as traced:
            creates, executes, moments = _requests(traced, settings.scaled(KERNELS))
        marks = [*moments, *_marks(Path(folder))]
    return [
        _section("Where the time of one create goes", creates, marks),
        _section("Where the time of one execute over POST goes", executes, marks),
    ]


def _requests(session: Session, count: int) -> tuple[list[Mark], list[Mark], list[Mark]]:
    """Create kernels, run code several times in each; give when each request began and ended, and when code ran."""
    clock: Callable[[], float] = session.signer.now
    creates, executes, moments = [], [], []
    with contextlib.closing(Connection(session.endpoint)) as connection:
        for _ in range(count):
            request = session.creation()
            began = clock()
            answer = connection.ask(request)
            creates.append(Mark("create", began, clock()))
            kernel = created(answer)
            for _ in range(RUNS):
                request = session.run(kernel, _CODE)
                began = clock()
                answer = connection.ask(request)
                executes.append(Mark("execute", began, clock()))
                try:
                    [(_kind, text)] = answer.json["result"]["console"]
                    ran = float(text)
                except (KeyError, TypeError, ValueError) as error:
                    raise Failed(f"execute was answered with {answer.status}: {answer.body[:300]!r}") from error
                moments.append(Mark("the code runs", ran, ran))
            connection.ask(session.destruction(kernel))
            time.sleep(0.1)  # what the agent makes in advance is made between two requests, not during one
    return creates, executes, moments


def _marks(folder: Path) -> list[Mark]:
    files = sorted(folder.glob("stages-*.json"))
    if len(files) != 2:
        raise Failed(f"server and agent were to write what they noted, and there is {[file.name for file in files]}")
    return [Mark(*mark) for file in files for mark in json.loads(file.read_text(encoding="ascii"))]


def _section(title: str, windows: Sequence[Mark], marks: Sequence[Mark]) -> Section:
    total, taken = faster_half([(window, stages(window, marks)) for window in windows])
    return Section(title, table(len(windows), total, taken))


def table(count: int, total: float, taken: Mapping[str, float]) -> str:
    """Write the stages with their milliseconds and their part of the whole."""
    shown = {name: seconds for name, seconds in taken.items() if seconds >= LEAST_SHARE * total}
    rest = total - sum(shown.values())
    lines = [(name, f"{seconds * 1000:.3f}", f"{seconds / total:.0%}") for name, seconds in shown.items()]
    if rest > 0:
        lines.append((f"what takes less than {LEAST_SHARE:.0%} each", f"{rest * 1000:.3f}", f"{rest / total:.0%}"))
    lines.append((f"all, mean of the faster half of {count}", f"{total * 1000:.3f}", "100%"))
    return text_table(("stage", "ms", "part"), lines)


PARTS = {"stages": breakdown}

if __name__ == "__main__":
    run_alone(PARTS)
