"""The Autobahn suite's fuzzing client against the echo of the test build: ``python -m tests.interop.conformance``.

It is of Python 2.7 and is installed, once, into the folder that the published clients are kept in. Without arguments all
cases are run, those of compression too, which this server does not offer; with ``--cases 1.* 9.*`` those. What did not go as
RFC 6455 wants is printed, and is the exit status.
"""

from __future__ import annotations

import argparse
import collections
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.interop.environments import prepare_autobahn
from tests.interop.memory_gateway import running_test_build

PATIENCE = 300.0  # seconds for the whole suite
#: INFORMATIONAL is what the RFC leaves open, UNIMPLEMENTED an extension that the server declined.
RIGHT = frozenset({"OK", "INFORMATIONAL", "UNIMPLEMENTED"})
_RUN = "import site, sys; site.addsitedir(sys.argv.pop(1)); from autobahntestsuite.wstest import run; run()"


def run_cases(*cases: str, without: Sequence[str] = ()) -> Mapping[str, str]:
    """Run cases, ``9.*`` for all of a chapter, and give how each went.

    :raises ClientUnavailable: the suite cannot be had on this machine.
    :raises RuntimeError: it did not come to its end; the text is what it said.
    """
    python, site = prepare_autobahn()
    with tempfile.TemporaryDirectory(prefix="sorna-autobahn-") as name, running_test_build() as ports:
        folder = Path(name)
        servers = [{"agent": "Sorna", "url": f"ws://127.0.0.1:{ports.echo}/"}]
        wish = {"outdir": name, "servers": servers, "cases": list(cases), "exclude-cases": list(without)}
        (folder / "wish.json").write_text(json.dumps({**wish, "exclude-agent-cases": {}}), "utf-8")
        done = subprocess.run(
            [str(python), "-c", _RUN, str(site), "-m", "fuzzingclient", "-s", "wish.json"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        index = folder / "index.json"
        if done.returncode or not index.exists():
            raise RuntimeError(f"the suite ended with {done.returncode}: {done.stderr[-2000:]}")
        return {case: _worse(**result) for case, result in json.loads(index.read_text("utf-8"))["Sorna"].items()}


def _worse(behavior: str, behaviorClose: str, **_rest: object) -> str:
    return behavior if behavior not in RIGHT or behaviorClose in RIGHT else behaviorClose


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", default=["*"])
    results = run_cases(*parser.parse_args().cases)
    wrong = {case: result for case, result in results.items() if result not in RIGHT}
    sys.stdout.writelines(f"{case}: {result}\n" for case, result in wrong.items())
    counts = ", ".join(f"{count} {result}" for result, count in collections.Counter(results.values()).items())
    sys.stdout.write(f"{len(results)} cases: {counts}\n")
    return min(len(wrong), 100)


if __name__ == "__main__":
    sys.exit(main())
