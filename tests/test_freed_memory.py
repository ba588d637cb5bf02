"""Freed memory that a process keeps."""

from __future__ import annotations

import subprocess
import sys

from sorna.testing.unit import UnitTestCase

PROGRAM = """
import resource
from sorna.freed_memory import keep_freed_memory
{call}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    pieces = [bytearray(1 << 20) for _ in range(4)]
    del pieces
before = faults()
for _ in range(50):
    pieces = [bytearray(1 << 20) for _ in range(4)]
    del pieces
print(faults() - before)
"""


class KeepingTests(UnitTestCase):
    def test_pages_are_not_asked_for_again(self) -> None:
        """Buffers of a mebibyte that come and go cost Linux no pages once the first of them have gone."""
        program = PROGRAM.format(call="keep_freed_memory()")
        printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        self.assertLess(int(printed), 1000)
