"""Writes one uploaded file below the working directory.

Standard library only. Knows directories and files; may not know frames or runs. How a path is kept from leading out is
``paths``' business.
"""

import errno
import os
import secrets
import stat
from contextlib import suppress

from sorna.beneath.paths import PathRefused, components, open_directory, reason_of


def write_upload(root: int, path: str, content: bytes, append: bool) -> None:
    """Write a file below the directory ``root``, making the directories it needs. See Note [Safe paths] in ``paths``.

    :raises PathRefused: it was not written.
    """
    *directories, name = components(path)
    try:
        os.fsencode(path)
        directory = open_directory(root, directories, create=True)
        try:
            _write(directory, name, content, append)
        finally:
            os.close(directory)
    except OSError as error:
        raise PathRefused(f"{path!r} cannot be written: {reason_of(error)}.") from error
    except UnicodeEncodeError as error:
        raise PathRefused("The path is no valid text.") from error


def _write(directory: int, name: str, content: bytes, append: bool) -> None:
    try:
        mode = os.lstat(name, dir_fd=directory).st_mode
    except FileNotFoundError:
        mode = stat.S_IFLNK
    if stat.S_ISREG(mode) and append:
        _append(directory, name, content)
    elif stat.S_ISREG(mode) or stat.S_ISLNK(mode):
        _replace(directory, name, content)
    elif stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    else:
        raise PathRefused(f"{name!r} is no regular file.")


def _append(directory: int, name: str, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    target = os.open(name, flags, dir_fd=directory)
    try:
        before = os.fstat(target)
        if not stat.S_ISREG(before.st_mode):
            raise PathRefused(f"{name!r} is no regular file.")
        try:
            _write_all(target, content)
        except OSError:
            os.ftruncate(target, before.st_size)
            raise
    finally:
        os.close(target)


def _replace(directory: int, name: str, content: bytes) -> None:
    temporary = f".upload-{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    target = os.open(temporary, flags, 0o644, dir_fd=directory)
    try:
        try:
            _write_all(target, content)
        finally:
            os.close(target)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise


def _write_all(target: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(target, view) :]
