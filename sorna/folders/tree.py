"""Changes what lies below one directory that user code can write to; synchronous, for threads.

Knows directories and files; may not know folders' names, owners or Twisted. Every function gets an open directory and a
path that may be anything; see Note [Safe paths] in ``sorna/beneath/paths.py``. What is walked can be changed by a kernel at the
same time, so that every walk is bounded and takes what it finds.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sorna.beneath.paths import DIRECTORY, MAX_DEPTH, PathRefused, components, open_directory, reason_of

_TEMPORARY = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def refusals(path: str, what: str) -> Iterator[None]:
    """Turn what the system says into a sentence that names the path."""
    try:
        os.fsencode(path)
        yield
    except UnicodeEncodeError as error:
        raise PathRefused("The path is no valid text.") from error
    except OSError as error:
        raise PathRefused(f"{path!r} cannot be {what}: {reason_of(error)}.") from error


@contextmanager
def _parent(root: int, path: str, *, create: bool = False) -> Iterator[tuple[int, str]]:
    *above, name = components(path)
    directory = open_directory(root, above, create)
    try:
        yield directory, name
    finally:
        os.close(directory)


def put(root: int, path: str, content: bytes, workshop: int) -> None:
    """Write a file whole or not at all, making the directories it needs; replaces a file, never a directory.

    :param workshop: an open directory on the same file system, out of user code's reach, where the file is written.
    :raises PathRefused: nothing was written.
    """
    temporary = secrets.token_hex(16)
    with refusals(path, "written"):
        target = os.open(temporary, _TEMPORARY, 0o644, dir_fd=workshop)
        try:
            try:
                write_all(target, content)
            finally:
                os.close(target)
            move_in(root, path, workshop, temporary)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=workshop)
            raise


def move_in(root: int, path: str, workshop: int, name: str) -> None:
    """Put a file of the workshop in its place, making the directories it needs.

    :raises PathRefused: it is where it was.
    """
    with refusals(path, "written"), _parent(root, path, create=True) as (directory, target):
        _refuse_to_replace(directory, target)
        os.rename(name, target, src_dir_fd=workshop, dst_dir_fd=directory)


def _refuse_to_replace(directory: int, name: str) -> None:
    with suppress(FileNotFoundError):
        mode = os.lstat(name, dir_fd=directory).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
            raise PathRefused(f"{name!r} is no regular file.")


def make_directory(root: int, path: str) -> None:
    """Make a directory and those above it; harmless when it is there. :raises PathRefused:."""
    with refusals(path, "made"):
        os.close(open_directory(root, components(path), create=True))


def rename(root: int, path: str, new_name: str) -> None:
    """Give an entry another name in its directory. :raises PathRefused: it is taken, or no plain name."""
    if components(new_name) != [new_name]:
        raise PathRefused(f"{new_name!r} is no plain name.")
    with refusals(new_name, "given"), refusals(path, "renamed"), _parent(root, path) as (directory, name):
        try:
            os.lstat(new_name, dir_fd=directory)
        except FileNotFoundError:
            os.rename(name, new_name, src_dir_fd=directory, dst_dir_fd=directory)
        else:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


def move(root: int, source: str, target: str) -> None:
    """Move an entry: into ``target`` if that is a directory, else in its place, where only a file may be.

    :raises PathRefused: it is where it was.
    """
    names = [] if target == "." else components(target)
    with refusals(source, "moved"), _parent(root, source) as (origin, name):
        os.lstat(name, dir_fd=origin)
        place, final = _destination(root, names, name)
        try:
            _refuse_to_replace(place, final)
            os.rename(name, final, src_dir_fd=origin, dst_dir_fd=place)
        finally:
            os.close(place)


def _destination(root: int, names: list[str], name: str) -> tuple[int, str]:
    """Open the directory that something is moved to, and give the name that it gets there."""
    try:
        return open_directory(root, names), name
    except OSError:
        if not names:
            raise
        return open_directory(root, names[:-1]), names[-1]


def kind(root: int, path: str) -> int:
    """Give the mode of an entry, with its type bits. :raises PathRefused: there is none."""
    with refusals(path, "found"), _parent(root, path) as (directory, name):
        return os.lstat(name, dir_fd=directory).st_mode


def remove(root: int, path: str, recursive: bool, workshop: int) -> None:
    """Remove an entry; a directory only if it is empty or ``recursive``.

    :param workshop: as for :func:`put`; what goes is put there first.
    :raises PathRefused: it is where it was.
    """
    with refusals(path, "removed"), _parent(root, path) as (directory, name):
        if not stat.S_ISDIR(os.lstat(name, dir_fd=directory).st_mode):
            os.unlink(name, dir_fd=directory)
        elif not recursive:
            os.rmdir(name, dir_fd=directory)
        else:
            doomed = secrets.token_hex(16)
            os.rename(name, doomed, src_dir_fd=directory, dst_dir_fd=workshop)
            clear(workshop, doomed)


def clear(trash: int, name: str) -> None:
    """Remove an entry of a directory of ours with everything in it, however deep it is nested.

    A directory below the deepest level that is walked is moved up beside the first: so no depth takes more descriptors.
    """
    pending = [name]
    while pending:
        current = pending[-1]
        deeper = _clear_level(trash, current, 0)
        if deeper:
            pending += deeper
        else:
            pending.pop()


def _clear_level(trash: int, name: str, depth: int, parent: int | None = None) -> list[str]:
    """Remove what can be; gives the names in ``trash`` to which what is too deep was moved."""
    where = trash if parent is None else parent
    moved: list[str] = []
    try:
        directory = _open_to_clear(name, where)
    except FileNotFoundError:
        return moved
    except OSError:
        with suppress(OSError):
            os.unlink(name, dir_fd=where)
        return moved
    try:
        with os.scandir(directory) as entries:
            found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for inner, is_directory in found:
            with suppress(OSError):
                if not is_directory:
                    os.unlink(inner, dir_fd=directory)
                elif depth < MAX_DEPTH:
                    moved += _clear_level(trash, inner, depth + 1, directory)
                else:
                    fresh = secrets.token_hex(16)
                    os.rename(inner, fresh, src_dir_fd=directory, dst_dir_fd=trash)
                    moved.append(fresh)
    finally:
        os.close(directory)
    with suppress(OSError):
        os.rmdir(name, dir_fd=where)
    return moved


def _open_to_clear(name: str, where: int) -> int:
    try:
        return os.open(name, DIRECTORY, dir_fd=where)
    except PermissionError:
        # Its owner, which we are too where kernels run as we do, has taken the permission away.
        handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=where)
        try:
            os.chmod(f"/proc/self/fd/{handle}", 0o700)  # noqa: PTH101 - no path, a descriptor
        finally:
            os.close(handle)
        return os.open(name, DIRECTORY, dir_fd=where)


def write_all(target: int, content: bytes) -> None:
    """Write all of it."""
    view = memoryview(content)
    while view:
        view = view[os.write(target, view) :]
