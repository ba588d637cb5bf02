"""Writes one uploaded file below the working directory, whatever user code has planted there.

Standard library only. Knows directories and files; may not know frames or runs.

Note [Safe paths]
~~~~~~~~~~~~~~~~~
User code owns the working directory and can swap any component for a symbolic link at any time. So a path is never
resolved by name: the directories are opened one after another, each relative to the one before and without following
links (openat2 does it in one call where Linux has it), and the last component is only ever created anew under a name
that did not exist and renamed over the target. Renaming replaces a planted link and does not follow it.
"""

import errno
import os
import secrets
import stat
from contextlib import suppress

from sorna.agent.runners.linux import open_beneath

MAX_DEPTH = 64
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_REASONS = {
    errno.ENOSPC: "there is no space left",
    errno.EDQUOT: "the space this kernel may use is full",
    errno.EFBIG: "the file is larger than this kernel may write",
    errno.ELOOP: "a component of the path is a symbolic link",
    errno.EXDEV: "the path leads out of the working directory",
    errno.ENOTDIR: "a component of the path is no directory",
    errno.EISDIR: "the path is a directory",
    errno.ENAMETOOLONG: "a component of the path is too long",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "it cannot be written there",
}


class UploadRefused(Exception):
    """The file was not written; the argument says why in one sentence. Nothing of it is left."""


def components(path: str) -> list[str]:
    """Cut a relative path into its components. :raises UploadRefused: it is not one that stays where it starts."""
    if not path:
        raise UploadRefused("The path is empty.")
    if "\0" in path:
        raise UploadRefused("The path contains a NUL character.")
    if path.startswith("/"):
        raise UploadRefused("The path is absolute; it must be relative to the working directory.")
    parts = [part for part in path.split("/") if part != "."]
    if not parts or "" in parts:
        raise UploadRefused("The path has an empty component.")
    if ".." in parts:
        raise UploadRefused("The path climbs out of the working directory.")
    if len(parts) > MAX_DEPTH:
        raise UploadRefused("The path is too deep.")
    return parts


def write_upload(root: int, path: str, content: bytes, append: bool) -> None:
    """Write a file below the directory ``root``, making the directories it needs. See Note [Safe paths].

    :raises UploadRefused: it was not written.
    """
    *directories, name = components(path)
    try:
        os.fsencode(path)
        directory = _open_directory(root, directories)
        try:
            _write(directory, name, content, append)
        finally:
            os.close(directory)
    except OSError as error:
        reason = _REASONS.get(error.errno or 0) or os.strerror(error.errno or 0).lower()
        raise UploadRefused(f"{path!r} cannot be written: {reason}.") from error
    except UnicodeEncodeError as error:
        raise UploadRefused("The path is no valid text.") from error


def _open_directory(root: int, names: list[str]) -> int:
    if names:
        with suppress(OSError):
            # Fails for what is missing, is a link, or on a Linux without the call: the loop below sorts these out.
            return open_beneath(root, "/".join(names), _DIRECTORY)
    directory = os.dup(root)
    for name in names:
        try:
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=directory)
            try:
                deeper = os.open(name, _DIRECTORY, dir_fd=directory)
            except NotADirectoryError as error:
                # What O_NOFOLLOW with O_DIRECTORY says of a link.
                raise _better_reason(directory, name) from error
        finally:
            os.close(directory)
        directory = deeper
    return directory


def _better_reason(directory: int, name: str) -> OSError:
    try:
        is_link = stat.S_ISLNK(os.lstat(name, dir_fd=directory).st_mode)
    except OSError as error:
        return error
    number = errno.ELOOP if is_link else errno.ENOTDIR
    return OSError(number, os.strerror(number))


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
        raise UploadRefused(f"{name!r} is no regular file.")


def _append(directory: int, name: str, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    target = os.open(name, flags, dir_fd=directory)
    try:
        before = os.fstat(target)
        if not stat.S_ISREG(before.st_mode):
            raise UploadRefused(f"{name!r} is no regular file.")
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
