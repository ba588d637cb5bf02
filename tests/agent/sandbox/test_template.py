"""The process that kernels are cloned of, seen from one that orders clones; the latter is a process of the test's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sorna.testing.unit import UnitTestCase

_PROJECT = str(Path(__file__).resolve().parents[3])
_HEAD = """
import os, select, signal, sys, time
sys.path.insert(0, sys.argv[1])
from sorna.agent.sandbox.template import Template

def body(packet, descriptors):
    os.write(descriptors[0], packet + b" of %d" % os.getppid())
    os._exit(7)

def answer(template):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if outcomes := template.outcomes():
            return outcomes
        select.select([template.answers], [], [], 1)

def broken():
    raise LookupError("no exercise")

CLONE_THREAD = 0x10000  # never without shared memory: Linux refuses
kinds = [(0, body), (CLONE_THREAD, body)]
reader, writer = os.pipe()
"""
_CLONES = """
template = Template(lambda: None, kinds)
template.order(0, b"one", [writer])
template.order(0, b"two", [writer])
pids = []
while len(pids) < 2:
    pids += answer(template)
for pid in pids:
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
text = os.read(reader, 100).decode()
assert sorted(text.replace(f" of {os.getpid()}", ";").split(";")) == ["", "one", "two"], text
template.order(1, b"three", [writer])
print(answer(template))
template.order(0, b"four", [writer])
[pid] = answer(template)
os.waitpid(pid, 0)
print(os.read(reader, 100).startswith(b"four"))
template.order(0, b"five", [writer])
template.stop()
[pid] = template.outcomes()
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
_MANY = """
template = Template(lambda: None, [(0, lambda packet, descriptors: os._exit(packet[0]))])
pids = []
for number in range(100):
    template.order(0, bytes([number]), [writer])
while len(pids) < 100:
    pids += answer(template)
print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == list(range(100)))
template.stop()
"""
_DEATH = """
template = Template(lambda: None, kinds)
os.kill(template._pid, signal.SIGKILL)
print(bool(select.select([template.pidfd], [], [], 10)[0]))
try:
    template.order(0, b"", [writer])
except OSError:
    print("refused")
template.stop()
"""
_BROKEN = """
template = Template(broken, kinds)
template.order(0, b"", [writer])
print(answer(template)[0] > 0)
template.stop()
"""
_PREPARED = """
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append("ended"))

def prepare():
    handler = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.kill(os.getpid(), signal.SIGTERM)
    signal.signal(signal.SIGTERM, handler)
    told.append(f"{os.getpid()}")

def tell(packet, descriptors):
    os.write(descriptors[0], told[0].encode())
    os._exit(0)

template = Template(prepare, [(0, tell)])
print(told == [f"{os.getpid()}", "ended"])
template.order(0, b"", [writer])
os.waitpid(answer(template)[0], 0)
print(os.read(reader, 100) == told[0].encode())
template.stop()
"""


def _run(program: str) -> tuple[str, str]:
    command = [sys.executable, "-c", _HEAD + program, _PROJECT]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return result.stdout, result.stderr


class TemplateTests(UnitTestCase):
    def test_clones(self) -> None:
        """They are the children of who ordered them, get what was ordered, and one that fails does not disturb the next."""
        self.assertEqual(_run(_CLONES), ("[-22]\nTrue\n7\n", ""))

    def test_many_at_once(self) -> None:
        """Each clone gets its own order, and not that of one which was cloned at the same time."""
        self.assertEqual(_run(_MANY), ("True\n", ""))

    def test_its_death_is_seen(self) -> None:
        """A descriptor tells of it, and what is ordered then is refused."""
        self.assertEqual(_run(_DEATH), ("True\nrefused\n", ""))

    def test_a_preparation_that_fails(self) -> None:
        """It is told, and clones are made all the same."""
        output, errors = _run(_BROKEN)
        self.assertEqual(output, "True\n")
        self.assertIn("LookupError: no exercise", errors)

    def test_where_it_is_prepared(self) -> None:
        """It is done before there are two processes that would copy from each other; an order to end meanwhile is not lost."""
        self.assertEqual(_run(_PREPARED), ("True\nTrue\n", ""))
