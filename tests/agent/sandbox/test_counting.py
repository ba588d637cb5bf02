"""The counters of control groups that are read at every run's end."""

from __future__ import annotations

from pathlib import Path

from sorna.agent.sandbox.cgroups import Hierarchy
from sorna.agent.sandbox.counting import Counter, hit_counters
from sorna.testing.unit import UnitTestCase


class CounterTests(UnitTestCase):
    """A number in a file that stays open."""

    def setUp(self) -> None:
        self.file = Path(self.mktemp())

    def test_read_again(self) -> None:
        """Each reading gives what the file says then."""
        self.file.write_text("oom_kill_disable 0\noom_kill 3\n")
        counter = Counter(str(self.file), "oom_kill")
        self.addCleanup(counter.close)
        self.assertEqual([counter.read(), counter.read()], [3, 3])
        self.file.write_text("oom_kill_disable 0\noom_kill 4\n")
        self.assertEqual(counter.read(), 4)

    def test_what_is_not_counted(self) -> None:
        """Nothing is -1: no file, no line, no number, and what is closed."""
        self.assertEqual(Counter(None, "max").read(), -1)
        counter = Counter(str(self.file), "max")
        self.assertEqual(counter.read(), -1)
        self.file.write_text("low 1\n")
        self.assertEqual(counter.read(), -1)
        self.file.write_text("max many\n")
        self.assertEqual(counter.read(), -1)
        self.file.write_text("max 2\n")
        self.assertEqual(counter.read(), 2)
        counter.close()
        counter.close()
        self.assertEqual(counter.read(), -1)

    def test_which_files(self) -> None:
        """The names differ between the versions of control groups."""
        self.file.mkdir()
        group = self.file / "kernel"
        group.mkdir()
        (group / "memory.oom_control").write_text("oom_kill 1\n")
        (group / "memory.events").write_text("oom_kill 2\n")
        (group / "pids.events").write_text("max 5\n")
        for version, expected in ((1, (1, 5)), (2, (2, 5))):
            tree = Hierarchy(version, ("memory", "pids"), str(self.file))
            counters = hit_counters([tree], "kernel")
            self.assertEqual(tuple(counter.read() for counter in counters), expected)
            for counter in counters:
                counter.close()
        self.assertEqual([counter.read() for counter in hit_counters([], "kernel")], [-1, -1])
