"""What a zygote leaves behind whose agent dies while it gets ready."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import SkipTest

from sorna.agent.sandbox import wire
from sorna.agent.sandbox.launcher import _BOOT
from sorna.testing.server import PROJECT
from sorna.testing.unit import UnitTestCase

PATIENCE = 20.0


class DeathTests(UnitTestCase):
    """A zygote alone, whose agent is the test."""

    def test_while_it_prepares(self) -> None:
        """The signal of the agent's death is lost, and all of it is found out and cleared up all the same."""
        if os.geteuid() != 0:
            raise SkipTest("an ordinary user's zygote prepares nothing that it would have to clear up")
        folder = tempfile.TemporaryDirectory(prefix="sorna-zygote-")
        self.addCleanup(folder.cleanup)
        groups, home = Path(folder.name, "sorna", "i-1"), Path(folder.name, "home")
        groups.mkdir(parents=True)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        zygote = subprocess.Popen(
            [sys.executable, "-I", "-B", "-c", _BOOT, str(theirs.fileno()), str(PROJECT)],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "HOME": folder.name},
        )
        self.addCleanup(zygote.wait)
        self.addCleanup(zygote.kill)
        theirs.close()
        entry = "tests.agent.sandbox.slow_entry:main"
        tree = (1, (), str(groups))
        configuration = wire.Configuration(wire.NAMESPACES, entry, (), (), (tree,), str(home), identities=True)
        wire.send(ours, wire.pack("configure", configuration._asdict()))
        self.until(Path(folder.name, "begun").exists)
        zygote.send_signal(signal.SIGTERM)
        ours.close()
        Path(folder.name, "go").touch()
        self.assertEqual(zygote.wait(PATIENCE), 0)
        self.assertEqual((groups.exists(), home.exists()), (False, False))

    def until(self, condition: object) -> None:
        """Wait for something."""
        assert callable(condition)
        deadline = time.monotonic() + PATIENCE
        while not condition():
            self.assertLess(time.monotonic(), deadline, "it did not happen")
            time.sleep(0.01)
