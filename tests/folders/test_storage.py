"""Tests of the content of folders on disk, whatever a kernel has planted there."""

from __future__ import annotations

import os
import stat
import tempfile
import uuid
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred, maybeDeferred

from sorna.beneath.storage_root import prepare_root
from sorna.errors import FolderNotFound, InvalidRequest, QuotaExceeded, SornaError, Unavailable, UploadConflict
from sorna.folders import tree
from sorna.folders.storage import MAX_UPLOADS, UPLOAD_RETENTION, DiskFolders
from sorna.manager.folder_interfaces import SmallFile, Upload
from sorna.model.folder import FolderBounds
from sorna.testing.unit import UnitTestCase

T = TypeVar("T")
FOLDER = uuid.UUID(int=7)
BOUNDS = FolderBounds(files=20, size=100_000)
OUT = ("/etc/passwd", "..", "../x", "a/../../x", "a//b", "", "a\0b", "\ud800", "a/" * 70 + "b", "x" * 300)


def at_once(function: Callable[..., T], *arguments: Any) -> Deferred[T]:
    """Stand in for a thread."""
    return maybeDeferred(function, *arguments)


def names(directory: Path) -> list[str]:
    """List what is in a directory."""
    return sorted(path.name for path in directory.iterdir())


class FolderTestCase(UnitTestCase):
    """One folder in a directory of its own, and a secret beside it."""

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory(prefix="sorna-folders-")
        self.addCleanup(directory.cleanup)
        self.root = Path(directory.name, "root")
        self.secret = Path(directory.name, "secret")
        self.secret.write_text("secret")
        self.folders = DiskFolders(self.root, prepare_root(self.root), at_once)
        self.do(self.folders.create(FOLDER))
        self.content = self.root / FOLDER.hex / "content"

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        result: T = self.successResultOf(Deferred.fromCoroutine(work))
        return result

    def refused(self, error: type[SornaError], work: Coroutine[Any, Any, Any]) -> str:
        """See that something is refused, and give the reason."""
        failure = self.failureResultOf(Deferred.fromCoroutine(work), error)
        detail: str = failure.value.detail
        return detail

    def write(self, path: str, content: bytes = b"hello\n") -> None:
        self.do(self.folders.write_files(FOLDER, [SmallFile(path, content)], BOUNDS))

    def upload(self, path: str = "big.bin", size: int = 10, number: str = "1") -> Upload:
        upload = Upload(FOLDER, number * 8, f"place{path.replace('/', '-').replace('.', '-')}", path, size)
        self.do(self.folders.begin_upload(upload, BOUNDS))
        return upload


class RootTests(UnitTestCase):
    def test_preparing(self) -> None:
        """The root is its owner's alone, and has one id however often it is prepared."""
        with tempfile.TemporaryDirectory() as directory:
            root = Path(directory, "a", "b")
            first = prepare_root(root)
            root.chmod(0o755)
            self.assertEqual(prepare_root(root), first)
            self.assertEqual(stat.S_IMODE(root.stat().st_mode), 0o700)
            self.assertEqual(names(root), ["storage-id"])

    def test_another_file_of_that_name(self) -> None:
        """What is no id is not taken for one."""
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, "storage-id").write_text("../..")
            with self.assertRaises(OSError):
                prepare_root(Path(directory))


class FileTests(FolderTestCase):
    def test_writing_listing_reading(self) -> None:
        """What was written is listed and can be read in pieces; a second writing replaces it whole."""
        self.write("d/e/a.txt", b"0123456789")
        self.write("d/e/a.txt", b"abcdefghij")
        (top,) = self.do(self.folders.list_files(FOLDER, "."))
        self.assertEqual((top.name, top.is_directory), ("d", True))
        below = [entry.name for entry in self.do(self.folders.list_files(FOLDER, "d", recursive=True))]
        self.assertEqual(below, ["e", "e/a.txt"])
        piece = self.do(self.folders.read_file(FOLDER, "d/e/a.txt", 4, 3))
        self.assertEqual((piece.size, piece.content), (10, b"efg"))
        self.assertEqual(names(self.root / FOLDER.hex / "uploads"), [])

    def test_paths_that_lead_out(self) -> None:
        """No path leads out of the folder, whatever is done with it, and nothing is changed."""
        folders = self.folders
        works: tuple[Callable[[str], Coroutine[Any, Any, Any]], ...] = (
            lambda path: folders.write_files(FOLDER, [SmallFile("ok", b""), SmallFile(path, b"x")], BOUNDS),
            lambda path: folders.make_directory(FOLDER, path, BOUNDS),
            lambda path: folders.remove_files(FOLDER, [path], recursive=True),
            lambda path: folders.rename_file(FOLDER, path, "y"),
            lambda path: folders.read_file(FOLDER, path, 0, 10),
            lambda path: folders.begin_upload(Upload(FOLDER, "1", "p", path, 0), BOUNDS),
        )
        for path in OUT:
            for work in works:
                self.refused(InvalidRequest, work(path))
        self.assertEqual(self.secret.read_text(), "secret")

    def test_planted_links(self) -> None:
        """A link that a kernel has planted is never followed: neither read nor written through, nor what is behind it removed."""
        (self.content / "file").symlink_to(self.secret)
        (self.content / "out").symlink_to(self.secret.parent)
        (self.content / "up").symlink_to("..")
        for path in ("file", "out/secret", "up/lock", "up/content/x"):
            self.refused(InvalidRequest, self.folders.read_file(FOLDER, path, 0, 10))
        for path in ("out/new", "up/new", "out/secret"):
            self.refused(InvalidRequest, self.folders.write_files(FOLDER, [SmallFile(path, b"x")], BOUNDS))
            self.refused(InvalidRequest, self.folders.make_directory(FOLDER, f"{path}/d", BOUNDS))
            self.refused(InvalidRequest, self.folders.rename_file(FOLDER, path, "y"))
            self.refused(InvalidRequest, self.folders.remove_files(FOLDER, [path], recursive=True))
        (link,) = self.do(self.folders.list_files(FOLDER, "out"))
        self.assertTrue(stat.S_ISLNK(link.mode))
        self.write("file", b"mine")
        self.assertEqual((self.content / "file").read_bytes(), b"mine")
        self.assertFalse((self.content / "file").is_symlink())
        self.do(self.folders.remove_files(FOLDER, ["out", "up"], recursive=True))
        self.assertEqual((self.secret.read_text(), self.secret.parent.exists()), ("secret", True))

    def test_uploads_do_not_follow_links(self) -> None:
        """A link that is planted while an upload is on its way does not send it elsewhere."""
        upload = self.upload("d/f", 4)
        (self.content / "d").symlink_to(self.secret.parent)
        self.refused(InvalidRequest, self.folders.append_upload(upload, 0, b"1234", BOUNDS))
        (self.content / "d").unlink()
        (self.content / "d").mkdir()
        (self.content / "d" / "f").symlink_to(self.secret)
        second = self.upload("d/f", 4, "2")
        self.do(self.folders.append_upload(second, 0, b"1234", BOUNDS))
        self.assertEqual(((self.content / "d/f").read_bytes(), self.secret.read_text()), (b"1234", "secret"))

    def test_special_files(self) -> None:
        """A pipe or socket is neither waited for nor replaced."""
        os.mkfifo(self.content / "pipe")
        self.refused(InvalidRequest, self.folders.read_file(FOLDER, "pipe", 0, 10))
        self.refused(InvalidRequest, self.folders.write_files(FOLDER, [SmallFile("pipe", b"x")], BOUNDS))
        self.do(self.folders.remove_files(FOLDER, ["pipe"], recursive=False))
        self.assertEqual(names(self.content), [])

    def test_directories(self) -> None:
        """Directories are made with those above, and removed only when that was said or they are empty."""
        self.do(self.folders.make_directory(FOLDER, "a/b/c", BOUNDS))
        self.do(self.folders.make_directory(FOLDER, "a/b/c", BOUNDS))
        self.write("a/b/f")
        self.refused(InvalidRequest, self.folders.remove_files(FOLDER, ["a"], recursive=False))
        self.refused(InvalidRequest, self.folders.write_files(FOLDER, [SmallFile("a", b"x")], BOUNDS))
        self.refused(InvalidRequest, self.folders.remove_files(FOLDER, ["a", "nothing"], recursive=True))
        self.assertTrue((self.content / "a/b/f").exists())
        self.do(self.folders.remove_files(FOLDER, ["a/b/c"], recursive=False))
        self.do(self.folders.remove_files(FOLDER, ["a"], recursive=True))
        self.assertEqual((names(self.content), names(self.root / FOLDER.hex / "uploads")), ([], []))

    def test_renaming(self) -> None:
        """An entry gets another plain name that nothing has yet."""
        self.write("a/one")
        self.write("a/two")
        for wrong in ("two", "x/y", "..", "", "x\0", "/x"):
            self.refused(InvalidRequest, self.folders.rename_file(FOLDER, "a/one", wrong))
        self.do(self.folders.rename_file(FOLDER, "a/one", "new\nline"))
        self.assertEqual(names(self.content / "a"), ["new\nline", "two"])


class RoomTests(FolderTestCase):
    def test_size(self) -> None:
        """What would take more than there is room for is refused whole."""
        bounds = attrs.evolve(BOUNDS, size=20_000)
        files = [SmallFile("a", bytes(9000)), SmallFile("b", bytes(12_000))]
        self.refused(QuotaExceeded, self.folders.write_files(FOLDER, files, bounds))
        self.assertEqual(names(self.content), [])
        self.do(self.folders.write_files(FOLDER, files[:1], bounds))
        self.assertIn("room for", self.refused(QuotaExceeded, self.folders.write_files(FOLDER, files[1:], bounds)))

    def test_number(self) -> None:
        """Files, directories and links count, and uploads that are on their way."""
        bounds = attrs.evolve(BOUNDS, files=4)
        self.do(self.folders.make_directory(FOLDER, "a/b", bounds))
        (self.content / "link").symlink_to("a")
        self.upload("u", 10)
        self.refused(QuotaExceeded, self.folders.write_files(FOLDER, [SmallFile("c", b"")], bounds))
        self.refused(QuotaExceeded, self.folders.make_directory(FOLDER, "d", bounds))
        self.assertEqual(self.do(self.folders.measure(FOLDER, bounds)).files, 3)

    def test_what_is_too_deep_or_too_much(self) -> None:
        """A folder that cannot be counted is full, and can be removed all the same."""
        directory = os.open(self.content, os.O_RDONLY)
        for _level in range(400):
            os.mkdir("d", dir_fd=directory)
            deeper = os.open("d", os.O_RDONLY, dir_fd=directory)
            os.close(directory)
            directory = deeper
        os.close(directory)
        many = FolderBounds(files=10_000, size=10**9)
        self.assertTrue(self.do(self.folders.measure(FOLDER, many)).exceeds(many))
        self.refused(QuotaExceeded, self.folders.write_files(FOLDER, [SmallFile("c", b"")], many))
        self.do(self.folders.remove_files(FOLDER, ["d"], recursive=True))
        self.assertEqual(self.do(self.folders.measure(FOLDER, many)).files, 0)
        self.assertEqual(names(self.root / FOLDER.hex / "uploads"), [])

    def test_many_directories_beside_each_other(self) -> None:
        """Directories are counted one after another, however many there are."""
        for number in range(300):
            (self.content / str(number)).mkdir()
            (self.content / str(number) / "f").write_bytes(b"")
        use = self.do(self.folders.measure(FOLDER, FolderBounds()))
        self.assertEqual((use.files, use.complete), (600, True))

    def test_holes_and_reserved_space(self) -> None:
        """A file is charged with its length even where it has holes, and with what it takes on the disk."""
        with (self.content / "sparse").open("wb") as file:
            file.truncate(50_000)
        self.assertGreaterEqual(self.do(self.folders.measure(FOLDER, BOUNDS)).size, 50_000)


class UploadTests(FolderTestCase):
    def test_pieces(self) -> None:
        """A file arrives in pieces and is seen when it is whole."""
        upload = self.upload("d/big.bin", 10)
        self.assertEqual(self.do(self.folders.append_upload(upload, 0, b"01234", BOUNDS)), 5)
        self.assertEqual(self.do(self.folders.upload_offset(upload)), 5)
        self.assertEqual(names(self.content), [])
        self.assertEqual(self.do(self.folders.append_upload(upload, 5, b"56789", BOUNDS)), 10)
        self.assertEqual((self.content / "d/big.bin").read_bytes(), b"0123456789")
        self.refused(UploadConflict, self.folders.upload_offset(upload))
        self.refused(UploadConflict, self.folders.append_upload(upload, 10, b"", BOUNDS))

    def test_empty_file(self) -> None:
        """A file without content is there at once."""
        self.upload("empty", 0)
        self.assertEqual((self.content / "empty").read_bytes(), b"")

    def test_offsets(self) -> None:
        """A piece for another offset, or beyond what was announced, is refused."""
        upload = self.upload(size=10)
        self.do(self.folders.append_upload(upload, 0, b"01234", BOUNDS))
        for offset in (0, 4, 6):
            self.refused(UploadConflict, self.folders.append_upload(upload, offset, b"x", BOUNDS))
        self.refused(InvalidRequest, self.folders.append_upload(upload, 5, b"123456", BOUNDS))
        self.assertEqual(self.do(self.folders.upload_offset(upload)), 5)

    def test_room_is_reserved(self) -> None:
        """The room of an upload is taken when it begins, and given back when it is abandoned or replaced."""
        upload = self.upload("a", 60_000)
        other = Upload(FOLDER, "2", "other", "b", 60_000)
        self.refused(QuotaExceeded, self.folders.begin_upload(other, BOUNDS))
        self.do(self.folders.abandon_upload(upload))
        self.do(self.folders.abandon_upload(upload))
        self.do(self.folders.begin_upload(other, BOUNDS))
        again = attrs.evolve(other, id="3")
        self.do(self.folders.begin_upload(again, BOUNDS))
        self.refused(UploadConflict, self.folders.upload_offset(other))
        self.assertEqual(self.do(self.folders.upload_offset(again)), 0)

    def test_a_kernel_fills_the_folder_meanwhile(self) -> None:
        """An upload for which there is no room any more when it is whole is refused, and can be abandoned."""
        upload = self.upload("a", 10)
        (self.content / "kernel").write_bytes(bytes(BOUNDS.size))
        self.refused(QuotaExceeded, self.folders.append_upload(upload, 0, bytes(10), BOUNDS))
        self.assertFalse((self.content / "a").exists())

    def test_not_too_many_at_once(self) -> None:
        """The number of unfinished uploads is bounded."""
        many = FolderBounds()
        for number in range(MAX_UPLOADS):
            self.do(self.folders.begin_upload(Upload(FOLDER, "1", f"p{number}", f"{number}", 1), many))
        self.refused(QuotaExceeded, self.folders.begin_upload(Upload(FOLDER, "1", "p", "x", 1), many))


class LifeTests(FolderTestCase):
    def test_destroying(self) -> None:
        """Everything of a folder goes; a second time is harmless, and nothing can be done with it any more."""
        self.write("a/b")
        self.do(self.folders.destroy(FOLDER))
        self.do(self.folders.destroy(FOLDER))
        self.assertEqual(names(self.root), ["storage-id"])
        self.refused(FolderNotFound, self.folders.list_files(FOLDER, "."))
        self.refused(FolderNotFound, self.folders.write_files(FOLDER, [SmallFile("a", b"")], BOUNDS))
        self.refused(FolderNotFound, self.folders.measure(FOLDER, BOUNDS))
        self.refused(FolderNotFound, self.folders.begin_upload(Upload(FOLDER, "1", "p", "x", 1), BOUNDS))

    def test_sweeping(self) -> None:
        """Old unfinished uploads go, and what a process that died was removing; the rest stays and is told of."""
        self.upload("old")
        self.upload("new")
        os.utime(self.root / FOLDER.hex / "uploads" / "placeold.11111111.10", (0, 0))
        (self.root / f".removed-{'0' * 32}" / "x").mkdir(parents=True)
        now = (self.root / FOLDER.hex / "uploads" / "placenew.11111111.10").stat().st_mtime + UPLOAD_RETENTION - 60
        self.assertEqual(self.do(self.folders.sweep(now)), [FOLDER])
        self.assertEqual(names(self.root / FOLDER.hex / "uploads"), ["placenew.11111111.10"])
        self.assertEqual(names(self.root), [FOLDER.hex, "storage-id"])

    def test_a_broken_storage(self) -> None:
        """What the system says of the storage itself is no fault of the client."""
        (self.root / FOLDER.hex / "lock").mkdir()
        self.refused(Unavailable, self.folders.write_files(FOLDER, [SmallFile("a", b"")], BOUNDS))

    def test_a_failed_piece_leaves_nothing(self) -> None:
        """A piece that could not be written whole is taken back, so that the client may send it again."""
        upload = self.upload(size=10)

        def half(target: int, content: bytes) -> None:
            os.write(target, content[:2])
            raise OSError(28, "full")

        self.patch(tree, "write_all", half)
        self.refused(Unavailable, self.folders.append_upload(upload, 0, b"0123", BOUNDS))
        self.assertEqual(self.do(self.folders.upload_offset(upload)), 0)
