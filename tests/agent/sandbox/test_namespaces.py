"""The system calls of zygotes, in a process of the test's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sorna.testing.unit import UnitTestCase

_PROJECT = str(Path(__file__).resolve().parents[3])
_COLLAPSE = """
import sys
sys.path.insert(0, sys.argv[1])
from sorna.agent.sandbox import namespaces
block = [bytes([number % 251]) * 4096 for number in range(8192)]
huge = namespaces.collapse_memory()
assert all(page == bytes([number % 251]) * 4096 for number, page in enumerate(block))
rolled = dict(line.split()[:2] for line in open("/proc/self/smaps_rollup") if ":" in line.split()[0])
print(huge, int(rolled["AnonHugePages:"]) // 2048)
"""


class CollapseTests(UnitTestCase):
    def test_memory_stays_what_it_was(self) -> None:
        """Memory is moved into huge pages as far as Linux lets it be, and holds what it held."""
        result = subprocess.run(
            [sys.executable, "-c", _COLLAPSE, _PROJECT], capture_output=True, text=True, check=False
        )
        self.assertEqual(result.stderr, "")
        moved, seen = map(int, result.stdout.split())
        self.assertGreaterEqual(seen, min(moved, 1))
