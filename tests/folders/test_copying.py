"""Tests of copying and moving what is in folders, whatever a kernel has planted there."""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Callable
from typing import Any

from attrs import evolve
from twisted.internet.defer import CancelledError, Deferred

from sorna.beneath.paths import DIRECTORY, MAX_DEPTH
from sorna.errors import FolderNotFound, InvalidRequest, QuotaExceeded, Unavailable
from sorna.folders import copying, storage
from tests.folders.test_storage import BOUNDS, FOLDER, OUT, FolderTestCase, at_once, names

COPY = uuid.UUID(int=8)


class CopyTestCase(FolderTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.do(self.folders.create(COPY))
        self.target = self.root / COPY.hex / "content"


class CopyTests(CopyTestCase):
    def test_everything(self) -> None:
        """Directories, files and links are in the copy as they were, links as links, and pipes are left out."""
        (self.content / "a" / "b").mkdir(parents=True)
        (self.content / "a" / "empty").write_bytes(b"")
        (self.content / "a" / "b" / "program").write_bytes(bytes(range(256)) * 100)
        (self.content / "a" / "b" / "program").chmod(0o755)
        (self.content / "out").symlink_to(self.secret)
        os.mkfifo(self.content / "pipe")
        held = self.do(self.folders.copy(FOLDER, COPY, BOUNDS))
        self.assertEqual((names(self.target), names(self.target / "a")), (["a", "out"], ["b", "empty"]))
        program = self.target / "a" / "b" / "program"
        self.assertEqual(program.read_bytes(), bytes(range(256)) * 100)
        self.assertEqual(stat.S_IMODE(program.stat().st_mode), 0o755)
        self.assertEqual((self.target / "out").readlink(), self.secret)
        self.assertEqual((held.files, held.complete), (5, True))
        (self.content / "a" / "empty").write_bytes(b"later")
        self.assertEqual((self.target / "a" / "empty").read_bytes(), b"")

    def test_pieces(self) -> None:
        """A file that is larger than a piece, or just as large, arrives whole."""
        for size in (3 * 4096 + 5, 2 * 4096):
            content = os.urandom(size)
            (self.content / "file").write_bytes(content)
            source, target = os.open(self.content, DIRECTORY), os.open(self.target, DIRECTORY)
            self.addCleanup(os.close, source)
            self.addCleanup(os.close, target)
            entry, offset, piece = copying.Entry("file", 0o100644), 0, 4096
            while piece == 4096:
                piece = copying.copy_piece(source, target, entry, offset, 4096) or 0
                offset += piece
            self.assertEqual((self.target / "file").read_bytes(), content)
            (self.target / "file").unlink()

    def test_bounds(self) -> None:
        """More entries, more bytes or more depth than may be are too much."""
        for number in range(BOUNDS.files + 1):
            (self.content / str(number)).write_bytes(b"")
        self.refused(QuotaExceeded, self.folders.copy(FOLDER, COPY, BOUNDS))
        many = evolve(BOUNDS, files=10_000)
        (self.content / "large").write_bytes(b"x" * (BOUNDS.size + 1))
        self.do(self.folders.create(uuid.UUID(int=9)))
        self.refused(QuotaExceeded, self.folders.copy(FOLDER, uuid.UUID(int=9), many))
        (self.content / "large").unlink()
        deep = self.content
        for _level in range(MAX_DEPTH + 3):
            deep = deep / "d"
            deep.mkdir()
        self.do(self.folders.create(uuid.UUID(int=10)))
        self.refused(QuotaExceeded, self.folders.copy(FOLDER, uuid.UUID(int=10), many))

    def test_what_changes_meanwhile(self) -> None:
        """What goes, or becomes something else, between two steps is left out; a planted link is not followed."""
        for name in ("gone", "replaced", "d/inner", "link"):
            self.write(name)
        planned = copying.plan

        def plan(root: int, most: int) -> Any:
            found = planned(root, most)
            (self.content / "gone").unlink()
            (self.content / "replaced").unlink()
            (self.content / "replaced").symlink_to(self.secret)
            (self.content / "d" / "inner").unlink()
            (self.content / "d").rmdir()
            (self.content / "d").symlink_to(self.secret.parent)
            return found

        def in_thread(function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
            return at_once(function, *(plan if one is planned else one for one in arguments))

        folders = storage.DiskFolders(self.root, "id", in_thread)
        self.do(folders.copy(FOLDER, COPY, BOUNDS))
        self.assertEqual(names(self.target), ["d", "link"])
        self.assertEqual(names(self.target / "d"), [])

    def test_few_at_once(self) -> None:
        """A few are copied at a time, some wait, and more are refused; one that is given up makes room."""
        waiting: list[Deferred[Any]] = []

        def in_thread(_function: Callable[..., Any], *_arguments: Any) -> Deferred[Any]:
            waiting.append(Deferred())
            return waiting[-1]

        folders = storage.DiskFolders(self.root, "id", in_thread)
        most = storage.COPIES + storage.MOST_COPIES_WAITING
        copies = [Deferred.fromCoroutine(folders.copy(FOLDER, COPY, BOUNDS)) for _one in range(most)]
        self.assertEqual(len(waiting), storage.COPIES)
        self.refused(Unavailable, folders.copy(FOLDER, COPY, BOUNDS))
        copies[0].cancel()
        self.failureResultOf(copies[0], CancelledError)
        self.assertEqual(len(waiting), storage.COPIES + 1)
        for copy in copies[1:]:
            copy.addErrback(lambda _failure: None)
            copy.cancel()

    def test_no_folder(self) -> None:
        """What is not there cannot be copied."""
        self.refused(FolderNotFound, self.folders.copy(uuid.UUID(int=11), COPY, BOUNDS))


class MoveTests(CopyTestCase):
    def test_places(self) -> None:
        """A file moves into a directory, to the top, to another name, and over another file."""
        self.write("a")
        self.write("d/b", b"b")
        self.do(self.folders.move_file(FOLDER, "a", "d"))
        self.assertEqual(names(self.content / "d"), ["a", "b"])
        self.do(self.folders.move_file(FOLDER, "d/b", "."))
        self.do(self.folders.move_file(FOLDER, "d/a", "b"))
        self.assertEqual((names(self.content), (self.content / "b").read_bytes()), (["b", "d"], b"hello\n"))
        self.do(self.folders.move_file(FOLDER, "d", "e"))
        self.assertEqual(names(self.content), ["b", "e"])

    def test_what_cannot_be(self) -> None:
        """Nothing moves out, through a link, into itself, over what is no file, or to where nothing is."""
        self.write("a")
        self.write("d/a/inner")
        (self.content / "link").symlink_to(self.secret.parent)
        before = sorted(path.name for path in self.content.rglob("*"))
        wrong = [("a", path) for path in OUT] + [(path, "d") for path in OUT]
        wrong += [("a", "link/x"), ("link/secret", "x"), ("d", "d/x"), ("a", "d"), ("d", "a"), ("a", "x/y"), ("x", "a")]
        for source, target in wrong:
            self.refused(InvalidRequest, self.folders.move_file(FOLDER, source, target))
        self.assertEqual(sorted(path.name for path in self.content.rglob("*")), before)
