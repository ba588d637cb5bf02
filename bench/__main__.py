"""``python -m bench``, or ``make bench``: the whole table with the goals, or parts of it; kept in the docs with ``--save``."""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench import creating, executing, idling, jupyter, machine, printing, reading, stages
from bench.figures import report, text_table
from bench.parts import Part, Settings, add_options, chosen, run_parts, run_program, server_for, tell
from bench.session import OPTIONS, Session

# The idle and the busy ones apart, so that what one leaves to be cleared away is not the next one's burden.
PARTS: Mapping[str, Part] = {
    **creating.PARTS,
    **executing.PARTS,
    **reading.PARTS,
    **printing.PARTS,
    **idling.PARTS,
    **stages.PARTS,
    **jupyter.PARTS,
}
INTRODUCTION = """\
Benchmarks
==========

Made by ``make bench ARGS='--save docs/benchmarks.rst'``. The goals are those of a machine with two cores. Every figure is as seen by a
client on the same machine: signed requests over HTTP connections that are kept open, against a server that is started as
``make run`` starts it, with private PostgreSQL and Redis and isolated kernels. ``client`` is the part of one core that the load
client took, which the server did not have. ``met`` compares a figure with its goal."""


def main() -> None:
    """Read the options, measure, and show or keep the result."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").partition(":")[2].strip())
    add_options(parser, list(PARTS))
    parser.add_argument("--save", type=Path, metavar="FILE", help="keep the result in this file as well")
    options = parser.parse_args()
    if options.save and not options.save.parent.is_dir():
        parser.error(f"--save: there is no directory {options.save.parent}")
    names = chosen(parser, options.only, list(PARTS))
    run_program(lambda: _measure(options, names))


def _measure(options: argparse.Namespace, names: Sequence[str]) -> None:
    began, load = time.perf_counter(), machine.load()
    with server_for(options) as session:
        facts = _facts(session, options)
        results = run_parts(
            session, Settings(options.scale, options.churn), {name: PARTS[name] for name in names}, tell
        )
    facts["took"] = f"{time.perf_counter() - began:.0f} s"
    facts["machine's load"] = (
        f"{load:.1f} before, {machine.load():.1f} after; with nothing else going on, it is about 0 before"
    )
    shape = text_table(("measured", "on"), [*facts.items()])
    document = f"{INTRODUCTION}\n\n{shape}\n\n{report(results)}\n"
    sys.stdout.write(document)
    if options.save:
        options.save.write_text(document, encoding="utf-8")


def _facts(session: Session, options: argparse.Namespace) -> dict[str, str]:
    now = datetime.fromtimestamp(session.signer.now(), UTC)
    command = shlex.join(["make", "bench", *([f"ARGS={shlex.join(sys.argv[1:])}"] if sys.argv[1:] else [])])
    given = " ".join((*OPTIONS, f"--workers={options.workers}"))
    server = options.endpoint or f"twistd sorna with --example-keypair {given}"
    return {
        "date": f"{now:%Y-%m-%d %H:%M} UTC",
        "machine": machine.shape(),
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "isolation tier": machine.isolation(session),
        "commit": machine.commit(),
        "server": server,
        "command": command,
    }


if __name__ == "__main__":
    main()
