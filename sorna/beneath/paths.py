"""Finds files and directories below a directory that user code can write to, whatever it has planted there.

Standard library only. Knows directories; may not know kernels, folders, or what is done with a file.

Note [Safe paths]
~~~~~~~~~~~~~~~~~
User code owns the directory and can swap any component for a symbolic link at any time. So a path is never
resolved by name: the directories are opened one after another, each relative to the one before and without following
links (openat2 does it in one call where Linux has it). What is to be written is only ever created anew under a name that did
not exist and renamed over the target: renaming replaces a planted link and does not follow it. What is to be read is opened
without following a link, and looked at through its descriptor.
"""

import ctypes
import errno
import os
import stat
import struct
from contextlib import suppress

_libc = ctypes.CDLL(None, use_errno=True)
_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08

MAX_DEPTH = 64
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_REASONS = {
    errno.ENOENT: "there is no such file",
    errno.ENOSPC: "there is no space left",
    errno.EDQUOT: "the space that may be used is full",
    errno.EFBIG: "the file is larger than may be written",
    errno.ELOOP: "a component of the path is a symbolic link",
    errno.EXDEV: "the path leads out of its directory",
    errno.ENOTDIR: "a component of the path is no directory",
    errno.EISDIR: "the path is a directory",
    errno.ENAMETOOLONG: "a component of the path is too long",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "it cannot be written there",
}


class PathRefused(Exception):
    """Nothing was done; the argument says why in one sentence."""


def components(path: str) -> list[str]:
    """Cut a relative path into its components. :raises PathRefused: it is not one that stays where it starts."""
    if not path:
        raise PathRefused("The path is empty.")
    if "\0" in path:
        raise PathRefused("The path contains a NUL character.")
    if path.startswith("/"):
        raise PathRefused("The path is absolute; it must be relative.")
    parts = [part for part in path.split("/") if part != "."]
    if not parts or "" in parts:
        raise PathRefused("The path has an empty component.")
    if ".." in parts:
        raise PathRefused("The path climbs out of its directory.")
    if len(parts) > MAX_DEPTH:
        raise PathRefused("The path is too deep.")
    return parts


def open_beneath(directory: int, path: str, flags: int) -> int:
    """Open ``path`` below a directory without following a single symbolic link (openat2).

    :raises OSError: it cannot be opened, or this Linux has no such call (ENOSYS, EPERM).
    """
    resolve = _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, 0, resolve)
    result = _libc.syscall(
        ctypes.c_long(_OPENAT2),
        ctypes.c_long(directory),
        ctypes.c_char_p(os.fsencode(path)),
        ctypes.c_char_p(how),
        ctypes.c_size_t(len(how)),
    )
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return int(result)


def reason_of(error: OSError) -> str:
    """Say in a few words why the system refused."""
    return _REASONS.get(error.errno or 0) or os.strerror(error.errno or 0).lower()


def open_directory(root: int, names: list[str], create: bool = False) -> int:
    """Open a directory below ``root``; the caller closes it. See Note [Safe paths].

    :param create: make those that are missing.
    :raises OSError: a component is a link, no directory, or cannot be entered.
    """
    if names:
        with suppress(OSError):
            # Fails for what is missing, is a link, or on a Linux without the call: the loop below sorts these out.
            return open_beneath(root, "/".join(names), DIRECTORY)
    directory = os.dup(root)
    for name in names:
        try:
            if create:
                with suppress(FileExistsError):
                    os.mkdir(name, dir_fd=directory)
            try:
                deeper = os.open(name, DIRECTORY, dir_fd=directory)
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
