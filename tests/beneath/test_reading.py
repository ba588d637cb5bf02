"""Tests of listing and reading below the working directory, links and other traps included."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from pathlib import Path

from sorna.agent.runners import frames
from sorna.beneath import paths, reading
from sorna.beneath.paths import PathRefused
from sorna.beneath.reading import list_files, read_piece
from sorna.testing.unit import UnitTestCase
from tests.agent.runners.driver import Kernel, KernelTestCase


class ReadingTests(UnitTestCase):
    def setUp(self) -> None:
        self.outside = Path(tempfile.mkdtemp(prefix="sorna-test-"))
        self.addCleanup(shutil.rmtree, self.outside)
        (self.outside / "secret").write_text("secret")
        self.work = self.outside / "work"
        (self.work / "a" / "b").mkdir(parents=True)
        (self.work / "a" / "one.txt").write_bytes(b"0123456789")
        (self.work / "a" / "b" / "two").write_bytes(b"")
        (self.work / "away").symlink_to(self.outside)
        (self.work / "link").symlink_to(self.outside / "secret")
        os.mkfifo(self.work / "fifo")
        self.root = os.open(self.work, os.O_RDONLY | os.O_DIRECTORY)
        self.addCleanup(os.close, self.root)

    def names(self, path: str, recursive: bool = False) -> list[str]:
        return sorted(row[0] for row in list_files(self.root, path, recursive))

    def test_directory(self) -> None:
        """A directory is listed with names below it; links are shown as links and not followed."""
        for path in (".", ""):
            self.assertEqual(self.names(path), ["a", "away", "fifo", "link"])
        modes = {row[0]: row[1] for row in list_files(self.root, ".", False)}
        self.assertTrue(stat.S_ISLNK(modes["away"]))
        self.assertEqual(self.names("a"), ["b", "one.txt"])
        self.assertEqual(self.names(".", True), ["a", "a/b", "a/b/two", "a/one.txt", "away", "fifo", "link"])

    def test_file(self) -> None:
        """What is no directory is one row without a name."""
        ((name, mode, size, modified, _changed, _used),) = list_files(self.root, "a/one.txt", True)
        self.assertEqual((name, stat.S_ISREG(mode), size), ("", True, 10))
        self.assertEqual(modified, (self.work / "a" / "one.txt").stat().st_mtime)

    def test_pieces(self) -> None:
        """A piece has the bytes from its offset on, and the size of the whole."""
        for offset, size, piece in ((0, 4, b"0123"), (8, 4, b"89"), (10, 4, b""), (2**62, 4, b""), (2, 0, b"")):
            self.assertEqual(read_piece(self.root, "a/one.txt", offset, size), (10, piece))
        (self.work / "big").write_bytes(bytes(2 * reading.MAX_PIECE))
        self.assertEqual(len(read_piece(self.root, "big", 0, 1 << 40)[1]), reading.MAX_PIECE)

    def test_ways_out(self) -> None:
        """Neither climbing, nor absolute paths, nor links at any place of the path lead out."""
        for path in ("../secret", "/etc/passwd", "away/secret", "link", "a/../../secret", "a\0b", "\ud800"):
            with self.assertRaises(PathRefused):
                read_piece(self.root, path, 0, 10)
        for path in ("..", "/", "away", "away/work", "a/../.."):
            if path != "away":
                with self.assertRaises(PathRefused):
                    list_files(self.root, path, True)
        ((name, mode, *_rest),) = list_files(self.root, "away", True)
        self.assertEqual((name, stat.S_ISLNK(mode)), ("", True))

    def test_without_openat2(self) -> None:
        """An older Linux keeps the same walls."""

        def missing(*_arguments: object) -> int:
            raise OSError(errno.ENOSYS, "")

        self.patch(paths, "open_beneath", missing)
        self.test_ways_out()
        self.test_directory()
        self.test_pieces()

    def test_no_files(self) -> None:
        """Directories, pipes and what is missing cannot be read, and say so at once."""
        for path, reason in (("a", "regular"), (".", "directory"), ("fifo", "regular"), ("nothing", "no such")):
            with self.assertRaisesRegex(PathRefused, reason):
                read_piece(self.root, path, 0, 10)
        with self.assertRaisesRegex(PathRefused, "no such"):
            list_files(self.root, "nothing/more", False)
        with self.assertRaisesRegex(PathRefused, "no directory"):
            list_files(self.root, "a/one.txt/x", False)

    def test_bounds(self) -> None:
        """Too many files and too deep directories are refused, and no descriptor stays open."""
        deep = self.work / "deep"
        deep.mkdir()
        at = os.open(deep, os.O_RDONLY)
        for _ in range(paths.MAX_DEPTH + 1):
            os.mkdir("d", dir_fd=at)
            inner = os.open("d", os.O_RDONLY, dir_fd=at)
            os.close(at)
            at = inner
        os.close(at)
        for number in range(reading.MAX_ENTRIES + 1 - 5):
            (self.work / str(number)).touch()
        before = len(list(Path("/proc/self/fd").iterdir()))
        with self.assertRaisesRegex(PathRefused, "too deep"):
            list_files(self.root, "deep", True)
        with self.assertRaisesRegex(PathRefused, "more than"):
            list_files(self.root, ".", True)
        self.assertEqual(len(list(Path("/proc/self/fd").iterdir())), before)

    def test_names_that_are_no_text(self) -> None:
        """They are listed with replacement characters, which every encoding can carry."""
        (self.work / os.fsdecode(b"\xff.txt")).touch()
        self.assertIn("\N{REPLACEMENT CHARACTER}.txt", self.names("."))


class ReadingFrameTests(KernelTestCase):
    def test_through_the_channel(self) -> None:
        """Listings and refusals come as replies, content raw behind its header, also during a run."""
        kernel = self.kernel()
        kernel.begin("import time; open('x.bin', 'wb').write(bytes(range(256))); time.sleep(.3)")
        while not kernel_lists(kernel, "."):
            pass
        kernel.send(frames.READ, {"request": 2, "path": "x.bin", "offset": 250, "size": 100})
        content = kernel.wait(frames.CONTENT)
        self.assertEqual((content["request"], content["size"], content["content"]), (2, 256, bytes(range(250, 256))))
        kernel.send(frames.READ, {"request": 3, "path": "../x", "offset": 0, "size": 1})
        self.assertEqual(kernel.wait(frames.REPLY)["error"]["kind"], "refused")
        kernel.send(frames.LIST, {"request": 4, "path": "nothing", "recursive": False})
        self.assertEqual(kernel.wait(frames.REPLY)["error"]["kind"], "refused")
        kernel.wait(frames.FINISHED)


def kernel_lists(kernel: Kernel, path: str) -> list[str]:
    """Give the names of files that have content."""
    kernel.send(frames.LIST, {"request": 1, "path": path, "recursive": True})
    return [row[0] for row in kernel.wait(frames.REPLY)["result"] if row[2]]
