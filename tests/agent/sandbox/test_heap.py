"""What zygotes do to their memory before kernels are cloned, in a process of the test's own."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from unittest import SkipTest

from sorna.testing.unit import UnitTestCase

_PROJECT = str(Path(__file__).resolve().parents[3])
_HEAD = """
import gc, sys
sys.path.insert(0, sys.argv[1])
from sorna.agent.sandbox import heap
"""
_FILL = """
holes = [bytes(number % 400) for number in range(20000)]
del holes[::2]
before = sum(free for _size, free in heap._free_blocks())
heap.settle()
print(before, sum(free for _size, free in heap._free_blocks()), gc.get_freeze_count() > 0)
"""
_MERGE = """
import ctypes, decimal, ssl, sqlite3
def listed():
    return [line.split()[1] for line in open("/proc/self/maps") if line.split()[4] != "0"]
before = listed()
heap.compact()
after = listed()
assert decimal.Decimal("0.1") + 1 == decimal.Decimal("1.1")
assert sqlite3.connect(":memory:").execute("select 6 * 7").fetchone() == (42,)
assert ssl.create_default_context().check_hostname
print(len(before), len(after), any("w" in one and "x" in one for one in after))
"""
_GATHER = """
def places():
    return [line.split()[0].split("-") for line in open("/proc/self/maps") if line.rstrip().endswith("[heap]")]
def inside(objects):
    heaps = [(int(first, 16), int(end, 16)) for first, end in places()]
    return sum(any(first <= id(one) < end for first, end in heaps) for one in objects) / len(objects)
before = [(number,) for number in range(200000)]
print(inside(before) < 0.5)
with heap.gathered():
    after = [(number,) for number in range(200000)]
print(inside(after[50000:]) > 0.9, sum(number for (number,) in after) == 19999900000)
for _time in range(5):
    del before, after
    before = [(number,) for number in range(400000)]
    after = [str(number) for number in range(400000)]
print(len(set(after)) == len(before))
"""


def _printed(program: str) -> list[str]:
    command = [sys.executable, "-c", _HEAD + program, _PROJECT]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stderr == "", result.stderr
    return result.stdout.split()


class HeapTests(UnitTestCase):
    def test_holes_are_filled(self) -> None:
        """Hardly a free block is left in pools that are in use."""
        before, after, frozen = _printed(_FILL)
        self.assertGreater(int(before), 5000)
        self.assertLess(int(after), int(before) // 5)
        self.assertEqual(frozen, "True")

    def test_objects_lie_in_one_heap(self) -> None:
        """What is made afterwards lies in the C library's heap, and what was made before can still be freed."""
        if platform.libc_ver()[0] != "glibc":
            raise SkipTest("only glibc's allocator can be told to keep large pieces in its heap")
        self.assertEqual(_printed(_GATHER), ["True"] * 4)

    def test_libraries_are_fewer_mappings(self) -> None:
        """Parts of a library become one, none becomes writable code, and libraries work as before."""
        before, after, writable_code = map(str, _printed(_MERGE))
        self.assertLess(int(after), 0.7 * int(before))
        self.assertEqual(writable_code, "False")
