"""The content of virtual folders below one root directory, which every host of an installation may share.

Implements :class:`sorna.manager.folder_interfaces.FolderStorage`. Knows where things lie; may not know who may see them. All
work on files is done in threads of its own, of which there are few, behind a bounded queue: a slow file system delays
folders and nothing else. Below the root is one directory per folder, named by its id in hexadecimal::

    <root>/storage-id          what tells this storage from others
    <root>/<id>/content/       what users and kernels see
    <root>/<id>/uploads/       files that have not arrived whole, and what is being removed
    <root>/<id>/lock           held while room is looked for and taken, by one process at a time

Note [Room in a folder]
~~~~~~~~~~~~~~~~~~~~~~~
Nobody keeps a count of what a folder holds, because kernels write to it as well. Whoever adds something holds the lock,
counts, adds what uploads have reserved (the size is in the name of the unfinished file), and writes if it fits. What kernels
write in between is found at the next count, and by the agents, which count what their kernels can write to.
"""

from __future__ import annotations

import fcntl
import os
import stat
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from sorna.beneath.measuring import measure
from sorna.beneath.paths import DIRECTORY, PathRefused, components
from sorna.beneath.reading import list_files, read_piece
from sorna.errors import FolderNotFound, InvalidRequest, QuotaExceeded, Unavailable, UploadConflict
from sorna.folders import copying, tree
from sorna.manager.folder_interfaces import SmallFile, Upload
from sorna.model.file import FileEntry, FilePiece
from sorna.model.folder import FolderBounds, FolderUse
from sorna.model.limits import MIB

T = TypeVar("T")
InThread = Callable[..., Deferred[Any]]

THREADS = 8
MOST_WAITING = 256
MAX_UPLOADS = 64
# Folders that are copied at the same time, so that most threads are free for what takes a moment, and those that wait.
COPIES = 2
MOST_COPIES_WAITING = 32
_ENTRIES_AT_ONCE = 200
# Seconds without a byte after which an unfinished upload is forgotten.
UPLOAD_RETENTION = 24 * 3600.0
# Seconds for which what lies here may not be known elsewhere yet.
YOUNG = 3600.0
_PARTIAL = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class Threads(Service):
    """A few threads for work on files, and a bounded queue before them."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._pool = ThreadPool(0, THREADS, "folders")
        self._turns = DeferredSemaphore(THREADS)

    def startService(self) -> None:
        """Be ready to run functions."""
        super().startService()
        self._pool.start()

    def stopService(self) -> None:
        """Wait for what runs, and run no more."""
        super().stopService()
        self._pool.stop()

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        """Run a function in a thread.

        :raises Unavailable: too many wait already.
        """
        if not self.running or len(self._turns.waiting) >= MOST_WAITING:
            raise Unavailable("Too many requests for folders at once.")
        return self._turns.run(deferToThreadPool, self._reactor, self._pool, function, *arguments)


class DiskFolders:
    """Folders below a root directory.

    :param in_thread: runs a function with its arguments outside of the reactor's thread.
    """

    def __init__(self, root: Path, storage_id: str, in_thread: InThread) -> None:
        self.storage_id = storage_id
        self._root = root
        self._in_thread = in_thread
        self._copies = DeferredSemaphore(COPIES)

    async def create(self, folder_id: uuid.UUID) -> None:
        """Make the place of a new folder."""
        await self._run(self._create, folder_id)

    def _create(self, folder_id: uuid.UUID) -> None:
        place = self._root / folder_id.hex
        place.mkdir(mode=0o700)
        for name, mode in (("uploads", 0o700), ("content", 0o755)):
            (place / name).mkdir()
            (place / name).chmod(mode)

    async def destroy(self, folder_id: uuid.UUID) -> None:
        """Remove a folder's content, however much it is; harmless when there is none."""
        await self._run(self._destroy, folder_id)

    def _destroy(self, folder_id: uuid.UUID) -> None:
        with suppress(FileNotFoundError):
            root = os.open(self._root, DIRECTORY)
            try:
                # Under another name at once, so that nobody finds half of it.
                doomed = f".removed-{folder_id.hex}"
                with suppress(FileNotFoundError):
                    os.rename(folder_id.hex, doomed, src_dir_fd=root, dst_dir_fd=root)
                tree.clear(root, doomed)
            finally:
                os.close(root)

    async def measure(self, folder_id: uuid.UUID, bounds: FolderBounds) -> FolderUse:
        """Count what a folder holds, no further than its bounds."""
        return await self._run(self._measure, folder_id, bounds)

    def _measure(self, folder_id: uuid.UUID, bounds: FolderBounds) -> FolderUse:
        with self._open(folder_id, "content") as content:
            return FolderUse(*measure(content, bounds.files, bounds.size))

    async def list_files(self, folder_id: uuid.UUID, path: str, *, recursive: bool = False) -> Sequence[FileEntry]:
        """List a directory; what is no directory is one entry without a name."""
        rows = await self._run(self._list, folder_id, path, recursive)
        return [FileEntry(*row) for row in rows]

    def _list(self, folder_id: uuid.UUID, path: str, recursive: bool) -> Sequence[Any]:
        with self._open(folder_id, "content") as content:
            return list_files(content, path, recursive)

    async def read_file(self, folder_id: uuid.UUID, path: str, offset: int, size: int) -> FilePiece:
        """Read a piece of a regular file."""
        return FilePiece(*await self._run(self._read, folder_id, path, offset, size))

    def _read(self, folder_id: uuid.UUID, path: str, offset: int, size: int) -> tuple[int, bytes]:
        with self._open(folder_id, "content") as content:
            return read_piece(content, path, offset, size)

    async def write_files(self, folder_id: uuid.UUID, files: Sequence[SmallFile], bounds: FolderBounds) -> None:
        """Write files, each whole or not at all. :raises QuotaExceeded: they do not fit; none was written."""
        await self._run(self._write, folder_id, files, bounds)

    def _write(self, folder_id: uuid.UUID, files: Sequence[SmallFile], bounds: FolderBounds) -> None:
        for file in files:
            components(file.path)
        with self._locked(folder_id), self._open(folder_id, "content") as content:
            size = sum(len(file.content) for file in files)
            self._require_room(folder_id, content, len(files), size, bounds)
            with self._open(folder_id, "uploads") as workshop:
                for file in files:
                    tree.put(content, file.path, file.content, workshop)

    async def make_directory(self, folder_id: uuid.UUID, path: str, bounds: FolderBounds) -> None:
        """Make a directory and those above it. :raises QuotaExceeded: the folder holds as many entries as it may."""
        await self._run(self._make_directory, folder_id, path, bounds)

    def _make_directory(self, folder_id: uuid.UUID, path: str, bounds: FolderBounds) -> None:
        needed = len(components(path))
        with self._locked(folder_id), self._open(folder_id, "content") as content:
            self._require_room(folder_id, content, needed, 0, bounds)
            tree.make_directory(content, path)

    async def remove_files(self, folder_id: uuid.UUID, paths: Sequence[str], *, recursive: bool) -> None:
        """Remove files, and directories with what is in them only if ``recursive``."""
        await self._run(self._remove, folder_id, paths, recursive)

    def _remove(self, folder_id: uuid.UUID, paths: Sequence[str], recursive: bool) -> None:
        with self._open(folder_id, "content") as content, self._open(folder_id, "uploads") as workshop:
            for path in paths:
                tree.kind(content, path)
            for path in paths:
                tree.remove(content, path, recursive, workshop)

    async def rename_file(self, folder_id: uuid.UUID, path: str, new_name: str) -> None:
        """Give a file or directory another name in the same directory, where nothing has that name."""
        await self._run(self._rename, folder_id, path, new_name)

    def _rename(self, folder_id: uuid.UUID, path: str, new_name: str) -> None:
        with self._open(folder_id, "content") as content:
            tree.rename(content, path, new_name)

    async def move_file(self, folder_id: uuid.UUID, source: str, target: str) -> None:
        """Move a file or directory: into the target if that is a directory, else in its place, where only a file may be."""
        await self._run(self._move, folder_id, source, target)

    def _move(self, folder_id: uuid.UUID, source: str, target: str) -> None:
        with self._open(folder_id, "content") as content:
            tree.move(content, source, target)

    async def copy(self, source_id: uuid.UUID, target_id: uuid.UUID, bounds: FolderBounds) -> FolderUse:
        """Fill an empty folder with what another holds, a step at a time; see :mod:`sorna.folders.copying`.

        :raises QuotaExceeded: it is more than ``bounds`` allow.
        :raises Unavailable: too many folders are being copied already.
        """
        if len(self._copies.waiting) >= MOST_COPIES_WAITING:
            raise Unavailable("Too many folders are being cloned at once.")
        await self._copies.acquire()
        try:
            return await self._copy(source_id, target_id, bounds)
        finally:
            self._copies.release()

    async def _copy(self, source_id: uuid.UUID, target_id: uuid.UUID, bounds: FolderBounds) -> FolderUse:
        too_much = QuotaExceeded(f"The folder may hold {bounds.files} files and {bounds.size // MIB} MiB.")
        entries = await self._run(self._in_content, source_id, copying.plan, bounds.files)
        if entries is None:
            raise too_much
        for first in range(0, len(entries), _ENTRIES_AT_ONCE):
            some = entries[first : first + _ENTRIES_AT_ONCE]
            await self._run(self._in_contents, source_id, target_id, copying.copy_shape, some)
        copied = 0
        for entry in entries:
            offset, piece = 0, copying.PIECE if stat.S_ISREG(entry.mode) else 0
            while piece == copying.PIECE:
                arguments = (copying.copy_piece, entry, offset, copying.PIECE)
                piece = await self._run(self._in_contents, source_id, target_id, *arguments) or 0
                offset += piece
                copied += piece
                if copied > bounds.size:
                    raise too_much
        held = await self.measure(target_id, bounds)
        if held.exceeds(bounds):
            raise too_much
        return held

    def _in_content(self, folder_id: uuid.UUID, function: Callable[..., T], *arguments: Any) -> T:
        with self._open(folder_id, "content") as content:
            return function(content, *arguments)

    def _in_contents(self, source: uuid.UUID, target: uuid.UUID, function: Callable[..., T], *arguments: Any) -> T:
        with self._open(source, "content") as origin, self._open(target, "content") as copy:
            return function(origin, copy, *arguments)

    # -- uploads

    async def begin_upload(self, upload: Upload, bounds: FolderBounds) -> None:
        """Reserve the room of an upload. :raises QuotaExceeded: there is none."""
        await self._run(self._begin, upload, bounds)

    def _begin(self, upload: Upload, bounds: FolderBounds) -> None:
        components(upload.path)
        with (
            self._locked(upload.folder_id),
            self._open(upload.folder_id, "content") as content,
            self._open(upload.folder_id, "uploads") as uploads,
        ):
            for name in _pending(uploads):
                if name.startswith(f"{upload.place}."):
                    os.unlink(name, dir_fd=uploads)
            if len(_pending(uploads)) >= MAX_UPLOADS:
                raise QuotaExceeded(f"At most {MAX_UPLOADS} files can be on their way into a folder at once.")
            self._require_room(upload.folder_id, content, 1, upload.size, bounds)
            flags = _PARTIAL | os.O_CREAT | os.O_EXCL
            os.close(os.open(_partial(upload), flags, 0o644, dir_fd=uploads))
            if upload.size == 0:
                tree.move_in(content, upload.path, uploads, _partial(upload))

    async def upload_offset(self, upload: Upload) -> int:
        """Tell how many bytes of an upload have arrived. :raises UploadConflict: it is over or was replaced."""
        return await self._run(self._offset, upload)

    def _offset(self, upload: Upload) -> int:
        with self._open(upload.folder_id, "uploads") as uploads:
            try:
                return os.lstat(_partial(upload), dir_fd=uploads).st_size
            except FileNotFoundError:
                raise UploadConflict("The upload is over, or another one took its place.") from None

    async def append_upload(self, upload: Upload, offset: int, content: bytes, bounds: FolderBounds) -> int:
        """Add a piece, and put the file in its place when it is whole; gives the new offset.

        :raises UploadConflict: it is not at this offset. :raises QuotaExceeded: the folder has become full meanwhile.
        """
        return await self._run(self._append, upload, offset, content, bounds)

    def _append(self, upload: Upload, offset: int, content: bytes, bounds: FolderBounds) -> int:
        with self._locked(upload.folder_id), self._open(upload.folder_id, "uploads") as uploads:
            there = self._offset(upload)
            if offset != there:
                raise UploadConflict(f"It is at {there}, not at {offset}.")
            if offset + len(content) > upload.size:
                raise InvalidRequest(f"The upload was announced with {upload.size} bytes, and this would be more.")
            self._add_piece(uploads, upload, offset, content)
            after = offset + len(content)
            if after == upload.size:
                with self._open(upload.folder_id, "content") as place:
                    # Its own room is among what is reserved.
                    self._require_room(upload.folder_id, place, 0, 0, bounds)
                    tree.move_in(place, upload.path, uploads, _partial(upload))
            return after

    def _add_piece(self, uploads: int, upload: Upload, offset: int, content: bytes) -> None:
        target = os.open(_partial(upload), _PARTIAL | os.O_APPEND, dir_fd=uploads)
        try:
            try:
                tree.write_all(target, content)
            except OSError:
                os.ftruncate(target, offset)
                raise
        finally:
            os.close(target)

    async def abandon_upload(self, upload: Upload) -> None:
        """Forget an upload and give its room back; harmless when it is over."""
        await self._run(self._abandon, upload)

    def _abandon(self, upload: Upload) -> None:
        with self._open(upload.folder_id, "uploads") as uploads, suppress(FileNotFoundError):
            os.unlink(_partial(upload), dir_fd=uploads)

    # -- keeping house

    async def sweep(self, now: float) -> Sequence[uuid.UUID]:
        """Remove what was left behind: uploads that nobody goes on with, and what was being removed when a process ended.

        :returns: the folders that lie here and are not :data:`YOUNG`, so that those which nobody knows any more can be removed.
        """
        return await self._run(self._sweep, now)

    def _sweep(self, now: float) -> Sequence[uuid.UUID]:
        found = []
        with os.scandir(self._root) as entries:
            names = [entry.name for entry in entries]
        root = os.open(self._root, DIRECTORY)
        try:
            for name in names:
                if name.startswith(".removed-"):
                    tree.clear(root, name)
                elif len(name) == 32:
                    with suppress(ValueError, FolderNotFound, FileNotFoundError):
                        folder_id = uuid.UUID(hex=name)
                        self._sweep_uploads(folder_id, now)
                        if os.lstat(name, dir_fd=root).st_mtime < now - YOUNG:
                            found.append(folder_id)
        finally:
            os.close(root)
        return found

    def _sweep_uploads(self, folder_id: uuid.UUID, now: float) -> None:
        with self._open(folder_id, "uploads") as uploads, suppress(FileNotFoundError):
            for name in os.listdir(uploads):  # noqa: PTH208 - an open directory has no path
                if os.lstat(name, dir_fd=uploads).st_mtime < now - UPLOAD_RETENTION:
                    tree.clear(uploads, name)

    # -- what they share

    async def _run(self, function: Callable[..., T], *arguments: Any) -> T:
        try:
            result: T = await self._in_thread(function, *arguments)
        except PathRefused as refusal:
            raise InvalidRequest(str(refusal)) from None
        except OSError as error:
            raise Unavailable(f"the storage of folders fails: {os.strerror(error.errno or 0)}") from error
        return result

    @contextmanager
    def _open(self, folder_id: uuid.UUID, part: str) -> Iterator[int]:
        try:
            directory = os.open(self._root / folder_id.hex / part, DIRECTORY)
        except FileNotFoundError:
            raise FolderNotFound("Its content is gone.") from None
        try:
            yield directory
        finally:
            os.close(directory)

    @contextmanager
    def _locked(self, folder_id: uuid.UUID) -> Iterator[None]:
        try:
            lock = os.open(self._root / folder_id.hex / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            raise FolderNotFound("Its content is gone.") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _require_room(self, folder_id: uuid.UUID, content: int, files: int, size: int, bounds: FolderBounds) -> None:
        """See Note [Room in a folder]."""
        use = FolderUse(*measure(content, bounds.files, bounds.size))
        with self._open(folder_id, "uploads") as uploads:
            reserved = [_size_in(name) for name in _pending(uploads)]
        if not use.complete or use.files + len(reserved) + files > bounds.files:
            raise QuotaExceeded(f"The folder may hold {bounds.files} files and {bounds.size // MIB} MiB.")
        if use.size + sum(reserved) + size > bounds.size:
            room = max(0, bounds.size - use.size - sum(reserved))
            raise QuotaExceeded(f"The folder may hold {bounds.size // MIB} MiB; there is room for {room} bytes.")


def _partial(upload: Upload) -> str:
    return f"{upload.place}.{upload.id}.{upload.size}"


def _pending(uploads: int) -> list[str]:
    return [name for name in os.listdir(uploads) if name.count(".") == 2]


def _size_in(name: str) -> int:
    size = name.rpartition(".")[2]
    return int(size) if size.isdecimal() else 0
