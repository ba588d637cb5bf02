"""Lists directories and reads files below a directory that user code can write to, in bounded pieces.

Standard library only. Knows directories and files; may not know kernels or folders. See Note [Safe paths] in ``paths``.
"""

import errno
import os
import stat

from sorna.beneath.paths import DIRECTORY, MAX_DEPTH, PathRefused, components, open_directory, reason_of

# Every part that a listing passes handles it in one go.
MAX_ENTRIES = 3000
MAX_NAMES = 512 * 1024
MAX_PIECE = 256 * 1024
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY

#: Name below what was asked for, mode with its type bits, size, times of change, of the entry's change, and of use.
Row = tuple[str, int, int, float, float, float]


def list_files(root: int, path: str, recursive: bool) -> list[Row]:
    """List what is in the directory ``path`` below ``root``; of anything else one row without a name.

    :param recursive: list what is in its directories as well, each before what it holds.
    :raises PathRefused: it cannot be found, or holds more than may be listed.
    """
    parts = _parts(path)
    try:
        if parts:
            status = _status(root, parts)
            if not stat.S_ISDIR(status.st_mode):
                return [_row("", status)]
        listing = _Listing(recursive)
        listing.scan(open_directory(root, parts), "", len(parts))
    except OSError as error:
        raise PathRefused(f"{path!r} cannot be listed: {reason_of(error)}.") from error
    return listing.rows


def read_piece(root: int, path: str, offset: int, size: int) -> tuple[int, bytes]:
    """Give the size of a whole file, and at most ``size`` bytes of it from ``offset`` on.

    :raises PathRefused: it is no regular file, or cannot be read.
    """
    parts = _parts(path)
    try:
        if not parts:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        directory = open_directory(root, parts[:-1])
        try:
            file = os.open(parts[-1], _FILE, dir_fd=directory)
        finally:
            os.close(directory)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise PathRefused(f"{path!r} is no regular file.")
            return status.st_size, os.pread(file, max(0, min(size, MAX_PIECE)), max(0, offset))
        finally:
            os.close(file)
    except OSError as error:
        raise PathRefused(f"{path!r} cannot be read: {reason_of(error)}.") from error


def _parts(path: str) -> list[str]:
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise PathRefused("The path is no valid text.") from error
    return [] if path in {"", "."} else components(path)


def _status(root: int, parts: list[str]) -> os.stat_result:
    directory = open_directory(root, parts[:-1])
    try:
        return os.lstat(parts[-1], dir_fd=directory)
    finally:
        os.close(directory)


class _Listing:
    """Rows within bounds: their number, and their names together."""

    def __init__(self, recursive: bool) -> None:
        self.rows: list[Row] = []
        self._recursive = recursive
        self._room = MAX_NAMES

    def scan(self, directory: int, below: str, depth: int) -> None:
        """Add what is in an open directory, which is closed."""
        inner: list[str] = []
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue  # it went meanwhile
                    self._add(below + entry.name, status)
                    if self._recursive and stat.S_ISDIR(status.st_mode):
                        inner.append(entry.name)
            if inner and depth >= MAX_DEPTH:
                raise PathRefused("The directories are too deep.")
            for name in inner:
                self.scan(os.open(name, DIRECTORY, dir_fd=directory), f"{below}{name}/", depth + 1)
        finally:
            os.close(directory)

    def _add(self, name: str, status: os.stat_result) -> None:
        self._room -= len(name)
        if len(self.rows) >= MAX_ENTRIES or self._room < 0:
            raise PathRefused(f"There are more than {MAX_ENTRIES} files, or their names are too long.")
        self.rows.append(_row(name, status))


def _row(name: str, status: os.stat_result) -> Row:
    # A name that is no text is shown with replacement characters, and cannot be asked for.
    shown = os.fsencode(name).decode("utf-8", "replace")
    return (shown, status.st_mode, status.st_size, status.st_mtime, status.st_ctime, status.st_atime)
