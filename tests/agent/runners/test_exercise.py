"""The exercise of what kernels do, in a process of the test's own: nothing of it is seen afterwards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sorna.testing.unit import UnitTestCase

_PROJECT = str(Path(__file__).resolve().parents[3])
_PROGRAM = """
import builtins, ctypes, os, signal, sys, threading
sys.path.insert(0, sys.argv[1])
from sorna.agent.runners.exercise import exercise

builtins._ = "kept"
reaper = ctypes.c_int(-1)

def state():
    return {
        "descriptors": sorted(os.listdir("/proc/self/fd")),
        "signals": {one: signal.getsignal(one) for one in signal.valid_signals()},
        "environ": dict(os.environ),
        "echo": sys.displayhook,
        "stdout": sys.stdout,
        "last": builtins._,
        "path": sys.path[:],
        "directory": os.getcwd(),
        "threads": threading.active_count(),
        "wakeup": signal.set_wakeup_fd(-1),
        "children": open(f"/proc/self/task/{os.getpid()}/children").read(),
        "dumpable": ctypes.CDLL(None).prctl(3),
        "reaper": (ctypes.CDLL(None).prctl(37, ctypes.byref(reaper)), reaper.value),
    }

before = state()
exercise(int(sys.argv[2]))
after = state()
for name, value in before.items():
    if after[name] != value:
        print(name, value, after[name])
print("done", file=sys.stderr)
"""


class ExerciseTests(UnitTestCase):
    def test_nothing_is_left(self) -> None:
        """Descriptors, signals, variables and the rest are what they were."""
        command = [sys.executable, "-c", _PROGRAM, _PROJECT, "3"]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        self.assertEqual(result.stderr, "done\n")
        # What the exercise's own code prints is all there is.
        self.assertEqual(set(result.stdout.split()), {"0", "1", "2"})
