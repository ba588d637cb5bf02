"""A few seconds of chaos: the load, the faults and the report work, and nothing is lost."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter

from sorna.testing.cluster.client import Progress
from sorna.testing.cluster.load import Session, Tally, expected
from sorna.testing.server import PROJECT
from sorna.testing.unit import UnitTestCase


class ChaosTests(UnitTestCase):
    """The command as ``make chaos`` runs it."""

    def test_some_seconds(self) -> None:
        """It ends with 0, and says what happened."""
        command = [sys.executable, "-m", "sorna.testing.cluster.chaos", "--seconds=8", "--seed=5", "--loopback"]
        done = subprocess.run(
            command, cwd=PROJECT, capture_output=True, text=True, timeout=300, check=False, stdin=subprocess.DEVNULL
        )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertRegex(done.stdout, r"seed 5\.\n")
        self.assertRegex(done.stdout, r"\nfaults +[1-9]")
        for line in ("lost acknowledged outputs", "doubled outputs", "leaked kernels", "quota drift"):
            self.assertRegex(done.stdout, rf"\n{line} +0\n")
        self.assertRegex(done.stdout, r"\nthe doctor +satisfied\n")


class CheckTests(UnitTestCase):
    """What the load takes for a loss; a check that cannot fail would be none."""

    def judged(self, said: str, exit_code: int | None = 0) -> dict[str, int]:
        """Give what is counted for a run that said this."""
        import threading  # noqa: PLC0415

        tally = Tally()
        session = Session("one", (), tally, random.Random(1), threading.Event())
        session._check("polled", "run", "kernel", said, Progress("finished", "", exit_code))
        counts = {"lost": len(tally.lost), "doubled": len(tally.doubled), "did": sum(tally.operations.values())}
        return {**{name: count for name, count in counts.items() if count}, **Counter(tally.ended)}

    def test_whole(self) -> None:
        """Every line once."""
        self.assertEqual(self.judged(expected(60)), {"did": 1})

    def test_gaps(self) -> None:
        """A line that is missing, wherever, and everything."""
        lines = expected(60).splitlines(keepends=True)
        for missing in (0, 30, 59):
            self.assertEqual(self.judged("".join(lines[:missing] + lines[missing + 1 :])), {"lost": 1})
        self.assertEqual(self.judged(""), {"lost": 1})

    def test_twice(self) -> None:
        """A line that came twice."""
        self.assertEqual(self.judged(expected(60) + "59\n"), {"doubled": 1})

    def test_ended_with_a_reason(self) -> None:
        """A kernel that was ended in the middle, with a sentence and an exit code, has lost nothing that was acknowledged."""
        judged = self.judged(expected(10) + "The kernel was destroyed.\n", 130)
        self.assertEqual(judged, {"while polled: exit code 130": 1})

    def test_ended_with_a_gap(self) -> None:
        """But what it said before must be whole."""
        self.assertEqual(self.judged("0\n2\nThe kernel was destroyed.\n", 130), {"lost": 1})
