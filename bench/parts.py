"""What a part of the bench is, and how parts are run: all of them, some, or one module's alone.

Knows the options and the server's start, not what is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from attrs import evolve, frozen

from bench.client import Stuck
from bench.figures import Row, Section, report
from bench.session import Failed, Session, opened, started
from sorna.testing.server import RunningServer, ServerDidNotStart


@frozen
class Settings:
    """What the command line says of how much is measured.

    :ivar scale: multiplies counts and seconds; 1 for figures that may be compared with the goals.
    :ivar churn: how many kernels come and go for the figure of memory.
    """

    scale: float = 1.0
    churn: int = 10_000

    def scaled(self, amount: float) -> int:
        """Give a count or a number of seconds, at least 1."""
        return max(1, round(amount * self.scale))


#: Measures something; raises Failed or Stuck when the server does otherwise than it should.
Part = Callable[[Session, Settings], Sequence[Row | Section]]


def add_options(parser: argparse.ArgumentParser, parts: Sequence[str]) -> None:
    """Declare the options that all and single parts have in common."""
    parser.add_argument("--only", help=f"parts with commas between them: {', '.join(parts)}")
    parser.add_argument("--endpoint", help="a running server; without it, one is started")
    parser.add_argument(
        "--access-key",
        default=os.environ.get("SORNA_ACCESS_KEY", ""),
        help="of an administrator, for --endpoint; its secret is read from SORNA_SECRET_KEY",
    )
    parser.add_argument(
        "--pid", type=int, default=0, help="process of that server, for figures of memory and processor"
    )
    parser.add_argument("--churn", type=int, default=10_000, help="kernels that come and go for the figure of memory")
    parser.add_argument(
        "--workers", type=int, default=1, help="processes that the server shares its port among, where one is started"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies counts and seconds, to try the bench out")


def chosen(parser: argparse.ArgumentParser, only: str | None, parts: Sequence[str]) -> list[str]:
    """Give the names of the parts to run, in the order in which they run."""
    names = [name.strip() for name in only.split(",")] if only else list(parts)
    unknown = [name for name in names if name not in parts]
    if unknown:
        parser.error(f"--only: there is no part {', '.join(unknown)}; there are {', '.join(parts)}")
    return [name for name in parts if name in names]


def run_program(program: Callable[[], None]) -> None:
    """Run a program's main function; what keeps it from measuring at all is said in a sentence, with status 1."""
    try:
        program()
    except (Failed, Stuck, ServerDidNotStart, OSError) as error:
        sys.exit(f"nothing was measured: {error}")


@contextlib.contextmanager
def server_for(options: argparse.Namespace) -> Iterator[Session]:
    """Start a server, or use the one that the options name."""
    with contextlib.ExitStack() as stack:
        if options.endpoint:
            secret = os.environ.get("SORNA_SECRET_KEY", "")
            running = RunningServer(options.endpoint, options.access_key, secret, options.pid)
            yield stack.enter_context(opened(running))
        else:
            yield stack.enter_context(started(workers=options.workers))


def run_parts(
    session: Session, settings: Settings, parts: Mapping[str, Part], tell: Callable[[str], None]
) -> list[Row | Section]:
    """Measure part after part; one that fails leaves a row that says why, and the next goes on."""
    results: list[Row | Section] = []
    for name, measure in parts.items():
        tell(f"{name} ...")
        measured: Sequence[Row | Section]
        try:
            measured = measure(session, settings)
        except (Failed, Stuck, OSError) as error:
            measured = [Row(f"part {name}", "-", "failed", met=False, notes=[f"{type(error).__name__}: {error}"])]
        else:
            measured = [_judged(result, settings) for result in measured]
        for result in measured:
            tell(_in_words(result))
        results += measured
    return results


def _judged(result: Row | Section, settings: Settings) -> Row | Section:
    """Leave the goals out of a trial run: what holds for three requests says nothing of a hundred."""
    return evolve(result, met=None) if isinstance(result, Row) and settings.scale < 1 else result


def _in_words(result: Row | Section) -> str:
    if isinstance(result, Section):
        return f"{result.title}\n{result.text}"
    notes = "".join(f"\n    {note}" for note in result.notes)
    return f"  {result.what}: {result.measured} (goal {result.goal}){notes}"


def tell(line: str) -> None:
    """Say how far it is; the results alone go to standard output."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def run_alone(parts: Mapping[str, Part]) -> None:
    """Be the program of one module: measure its parts and print their rows."""
    parser = argparse.ArgumentParser()
    add_options(parser, list(parts))
    options = parser.parse_args()
    names = chosen(parser, options.only, list(parts))
    settings = Settings(options.scale, options.churn)

    def measure() -> None:
        with server_for(options) as session:
            results = run_parts(session, settings, {name: parts[name] for name in names}, tell)
        sys.stdout.write(report(results) + "\n")

    run_program(measure)
