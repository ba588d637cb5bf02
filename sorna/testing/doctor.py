"""The invariants of the whole system, checked after a test: what ``sorna doctor`` finds, run as the operator runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import sorna

PROJECT = Path(sorna.__file__).parents[1]
TIMEOUT = 120.0


class PromisesBroken(AssertionError):
    """The doctor found something; the text says what."""


def findings(*options: str, **environ: str) -> list[dict[str, Any]]:
    """Give what the doctor finds.

    :param options: as ``sorna doctor`` takes them, for instance ``--state-dir``; :param environ: more variables.
    :raises PromisesBroken: it could not look.
    """
    command = [sys.executable, "-m", "sorna.command", "doctor", "--json", *options]
    environment = {name: text for name, text in os.environ.items() if not name.startswith("SORNA_")}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT,
        cwd="/",
        env={**environment, "PYTHONPATH": str(PROJECT), **environ},
    )
    try:
        return list(json.loads(done.stdout)["findings"])
    except ValueError:
        raise PromisesBroken(f"the doctor ended with {done.returncode}: {done.stderr[-3000:]}") from None


def check_promises(*options: str, **environ: str) -> None:
    """Fail when any promise does not hold; see :func:`findings`.

    :raises PromisesBroken: with everything that was found.
    """
    found = findings(*options, **environ)
    if found:
        raise PromisesBroken("\n".join(f"{one['check']} {one['subject']}: {one['meaning']}" for one in found))
