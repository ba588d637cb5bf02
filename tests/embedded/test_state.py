"""The directory of an embedded server: locks, owners, secrets and what a crash left."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from sorna.embedded.process import LAUNCHER
from sorna.embedded.state import (
    SOCKET_PATH_LIMIT,
    DirectoryTaken,
    EmbeddedError,
    ServerDirectory,
    choose_owner,
    kill,
    left_behind,
)
from sorna.testing.unit import UnitTestCase


class DirectoryCase(UnitTestCase):
    def setUp(self) -> None:
        self.place = Path(tempfile.mkdtemp(prefix="sorna-state-"))
        self.addCleanup(shutil.rmtree, self.place)

    def taken(self, path: str = "server") -> ServerDirectory:
        directory = ServerDirectory(self.place / path)
        directory.take()
        self.addCleanup(directory.release)
        return directory


class LockTests(DirectoryCase):
    def test_one_at_a_time(self) -> None:
        """Who comes second is refused until the first has gone."""
        first = self.taken()
        second = ServerDirectory(self.place / "server")
        self.assertRaises(DirectoryTaken, second.take)
        self.assertRaises(DirectoryTaken, first.take)
        first.release()
        second.take()
        second.release()
        second.release()

    def test_modes(self) -> None:
        """Missing parents are closed to others, and so are lock, data and run."""
        directory = self.taken("new/server")
        self.assertEqual((self.place / "new").stat().st_mode & 0o777, 0o700)
        self.assertEqual((directory.path / "lock").stat().st_mode & 0o777, 0o600)
        self.assertEqual(directory.run.stat().st_mode & 0o777, 0o700)

    def test_lock_that_is_a_link(self) -> None:
        """A link in the place of the lock is not followed."""
        target = self.place / "precious"
        (self.place / "server").mkdir()
        (self.place / "server" / "lock").symlink_to(target)
        self.assertRaises(EmbeddedError, ServerDirectory(self.place / "server").take)
        self.assertFalse(target.exists())

    def test_directory_of_somebody_else(self) -> None:
        """Root serves as the owner of what is there."""
        if os.geteuid() != 0:
            self.skipTest("only root can give a directory away")
        directory = self.place / "server"
        (directory / "data").mkdir(parents=True)
        os.chown(directory / "data", 7, 8)
        owner = choose_owner(directory, directory / "data")
        self.assertEqual((owner.uid, owner.gid), (7, 8))

    def test_borrowed_directory(self) -> None:
        """What root writes in an ordinary user's directory is that user's."""
        if os.geteuid() != 0:
            self.skipTest("only root can give a directory away")
        (self.place / "server").mkdir()
        os.chown(self.place / "server", 7, 8)
        directory = self.taken()
        directory.password()
        os.close(directory.append("server.log"))
        for name in ("lock", "password", "server.log", "run"):
            self.assertEqual((directory.path / name).stat().st_uid, 7, name)


class SecretTests(DirectoryCase):
    def test_password_is_kept(self) -> None:
        """The password is drawn once and closed to others."""
        directory = self.taken()
        password = directory.password()
        self.assertGreater(len(password), 24)
        self.assertEqual(directory.password(), password)
        self.assertEqual((directory.path / "password").stat().st_mode & 0o777, 0o600)
        self.assertNotEqual(self.taken("other").password(), password)

    def test_bad_password_file(self) -> None:
        """An empty or unreadable file is named, not replaced: the server knows another password."""
        directory = self.taken()
        for content in (b"", b"\xff"):
            (directory.path / "password").write_bytes(content)
            self.assertRaises(EmbeddedError, directory.password)

    def test_write_replaces_links(self) -> None:
        """Writing for the server follows no link that it may have put there."""
        directory = self.taken()
        target = self.place / "precious"
        target.write_text("x")
        (directory.run / "file").symlink_to(target)
        (directory.run / "file.new").symlink_to(target)
        directory.write(directory.run / "file", "new")
        self.assertEqual(target.read_text(), "x")
        self.assertEqual((directory.run / "file").read_text(), "new")


class ReachTests(DirectoryCase):
    def test_short_path(self) -> None:
        """A path that fits is used as it is."""
        directory = self.taken()
        self.assertEqual(directory.reach(directory.run, "socket"), str(directory.run))

    def test_long_path(self) -> None:
        """One that does not fit is reached through a descriptor, given back at the end."""
        directory = self.taken("d" * 120)
        short = directory.reach(directory.run, "socket")
        self.assertLessEqual(len(f"{short}/socket"), SOCKET_PATH_LIMIT)
        self.assertEqual(Path(short).stat().st_ino, directory.run.stat().st_ino)
        directory.release()
        self.assertFalse(Path(short).exists())


class LeftoverTests(DirectoryCase):
    def start(self, *words: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([*words], cwd=self.place)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def test_only_servers(self) -> None:
        """A process that merely stands in the directory, a shell for instance, is not ours to end."""
        self.start("sleep", "60")
        self.assertEqual(left_behind(self.place, self.place / "missing"), [])

    def test_server(self) -> None:
        """A server in the directory is found, and can be killed."""
        server = self.place / "valkey-server"
        sleep = shutil.which("sleep")
        assert sleep is not None
        shutil.copy(sleep, server)
        process = self.start(str(server), "60")
        self.assertEqual(left_behind(self.place), [process.pid])
        kill([process.pid])
        self.assertEqual(process.wait(5), -9)
        kill([process.pid])


class LauncherTests(DirectoryCase):
    def launch(self, *words: str, parent: int | None = None) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-I", "-S", str(LAUNCHER), "--parent", str(parent or os.getpid())]
        argv += ["--death-signal", "15", *words]
        return subprocess.run(argv, check=False, capture_output=True, text=True)

    def test_becomes_the_program(self) -> None:
        """Names are replaced by directories, in argv and in the working directory."""
        ended = self.launch(
            "--reach", f"here={self.place}", "--cwd", "{here}", "--", "/bin/sh", "-c", "pwd; echo {here}"
        )
        self.assertEqual(ended.stdout, f"{self.place}\n{self.place}\n")

    def test_orphan(self) -> None:
        """Whose parent is gone already does not start."""
        self.assertEqual(self.launch("--cwd", "/", "--", "/bin/true", parent=1).returncode, 122)

    def test_unreachable(self) -> None:
        """What cannot be reached is named."""
        for words in (("--cwd", "/nowhere", "--", "/bin/true"), ("--cwd", "/", "--", "/nowhere")):
            ended = self.launch(*words)
            self.assertEqual(ended.returncode, 121)
            self.assertIn("/nowhere", ended.stderr)

    def test_root_shows_closed_directories(self) -> None:
        """A closed directory is seen by the other user, below a cover that nobody else sees."""
        if os.geteuid() != 0:
            self.skipTest("only root becomes somebody else")
        closed = self.place / "closed"
        inner = closed / "inner"
        inner.mkdir(parents=True)
        closed.chmod(0o700)
        (inner / "file").write_text("seen")
        ended = self.launch(
            "--become", "65534:65534", "--reach", f"wheel/a={inner}", "--cwd", "/", "--",
            "/bin/sh", "-c", "cat {wheel/a}/file; id -u; id -G",
        )  # fmt: skip
        self.assertEqual(ended.stdout, "seen65534\n65534\n", ended.stderr)
        self.assertNotIn("wheel", Path("/proc/self/mounts").read_text())
