"""What is left on a host: real control groups and processes of an agent that is not there."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import SkipTest

from sorna.agent.sandbox import cgroups
from sorna.agent.sandbox.remains import Remnant, remains
from sorna.testing.cluster import until
from sorna.testing.unit import UnitTestCase


class GroupTests(UnitTestCase):
    """Groups below those of an agent whose name nobody else has."""

    def setUp(self) -> None:
        self.agent = f"test-{secrets.token_hex(6)}"
        self.trees = cgroups.prepare(self.agent)
        self.addCleanup(cgroups.release, self.trees)
        if not self.trees:
            raise SkipTest("no control groups here")
        self.groups = [f"{tree.directory}/kernel" for tree in self.trees]
        for group in self.groups:
            Path(group).mkdir()

    def found(self, *alive: str) -> list[Remnant]:
        return [one for one in remains([self.agent], alive) if one.agent]

    def test_groups_of_the_dead_and_empty_ones(self) -> None:
        """A group is left when its agent is dead, and when nothing is in it; those of others are not looked at."""
        expected = sorted(Remnant("group", group, self.agent) for group in self.groups)
        self.assertEqual(sorted(self.found()), expected)
        self.assertEqual(sorted(self.found(self.agent)), expected)
        self.assertEqual([one for one in remains([], []) if one.agent], [])

    def put(self, *words: str) -> int:
        """Put a process into the groups."""
        process = subprocess.Popen(words, stdin=subprocess.PIPE)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        for group in self.groups:
            Path(group, "cgroup.procs").write_text(f"{process.pid}\n", "ascii")
        # Its words appear a moment after it was started.
        self.assertTrue(until(lambda: words[0].encode() in Path(f"/proc/{process.pid}/cmdline").read_bytes(), 20))
        return process.pid

    def test_a_process_without_an_agent(self) -> None:
        """It does not descend from an agent, whatever lives under the agent's name."""
        pid = self.put("cat")
        if b"sorna.agent" in Path("/proc/self/cmdline").read_bytes():
            raise SkipTest("these tests look like an agent")
        left = [one for one in self.found(self.agent) if one.kind == "process"]
        self.assertEqual([one.what for one in left], [f"{pid} in {group}" for group in sorted(self.groups)])

    def test_a_process_of_an_agent(self) -> None:
        """What is, or descends from, an agent is owned."""
        self.put(sys.executable, "-c", "import sys; sys.stdin.read()", "sorna.agent")
        self.assertEqual(self.found(self.agent), [])


class DirectoryTests(UnitTestCase):
    """Directories of kernels without namespaces."""

    def test_without_a_process(self) -> None:
        """One in which nobody works is left."""
        place = tempfile.TemporaryDirectory(prefix="sorna-test-")
        self.addCleanup(place.cleanup)
        before, tempfile.tempdir = tempfile.tempdir, place.name
        self.addCleanup(setattr, tempfile, "tempdir", before)
        used, left = (Path(place.name, f"sorna-kernel-{name}") for name in ("used", "left"))
        for path in (used, left):
            (path / "work").mkdir(parents=True)
        process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, cwd=used / "work")
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        self.assertTrue(os.path.exists(f"/proc/{process.pid}"))  # noqa: PTH110
        self.assertEqual(remains([], []), [Remnant("directory", str(left), "")])
