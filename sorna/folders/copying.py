"""Copies what lies below one directory that user code can write to into another one; synchronous, for threads.

Knows directories and files; may not know folders or Twisted. The copy is cut into steps that each take a moment: what there
is, then the directories and links, then each file in pieces. So nobody waits for a large folder, and a process that stops
does not either. What changes in between is copied as it is found; what goes is left out. Pipes, sockets and devices are
nobody's content and are left out too.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from sorna.beneath.paths import DIRECTORY, MAX_DEPTH, components, open_directory

PIECE = 32 * 1024 * 1024
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_APPEND = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Entry(NamedTuple):
    """Something to copy: its path, and its mode with the type bits."""

    path: str
    mode: int


def plan(root: int, most: int) -> Sequence[Entry] | None:
    """List what there is, directories before what is in them; None where it is more than ``most`` or too deep."""
    found: list[Entry] = []
    if not _list(root, "", most, found):
        return None
    return found


def _list(directory: int, prefix: str, most: int, found: list[Entry]) -> bool:
    if prefix.count("/") > MAX_DEPTH:
        return False
    inner: list[str] = []
    with os.scandir(directory) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                mode = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISDIR(mode) or stat.S_ISREG(mode) or stat.S_ISLNK(mode):
                    found.append(Entry(prefix + entry.name, mode))
                    inner += [entry.name] if stat.S_ISDIR(mode) else []
            if len(found) > most:
                return False
    for name in inner:
        # It may have been replaced meanwhile, or its owner may not let us look.
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            deeper = os.open(name, DIRECTORY, dir_fd=directory)
            try:
                if not _list(deeper, f"{prefix}{name}/", most, found):
                    return False
            finally:
                os.close(deeper)
    return True


def copy_shape(source: int, target: int, entries: Sequence[Entry]) -> None:
    """Make the directories and links among these."""
    for entry in entries:
        *above, name = components(entry.path)
        if stat.S_ISDIR(entry.mode):
            os.close(open_directory(target, [*above, name], create=True))
        elif stat.S_ISLNK(entry.mode):
            with suppress(OSError):  # it is gone, or no link any more
                where = open_directory(source, above)
                try:
                    link = os.readlink(name, dir_fd=where)
                finally:
                    os.close(where)
                place = open_directory(target, above)
                try:
                    os.symlink(link, name, dir_fd=place)
                finally:
                    os.close(place)


def copy_piece(source: int, target: int, entry: Entry, offset: int, size: int) -> int | None:
    """Copy a piece of a file to its end there; gives how many bytes that were, None where the file is gone.

    :param offset: where the piece begins; the target is made at 0.
    """
    *above, name = components(entry.path)
    opened = _open_file(source, above, name)
    if opened is None:
        return None
    try:
        place = open_directory(target, above)
        try:
            mode = stat.S_IMODE(entry.mode) & 0o777 | 0o600
            written = os.open(name, _APPEND if offset else _CREATE, mode, dir_fd=place)
        finally:
            os.close(place)
        try:
            os.lseek(written, offset, os.SEEK_SET)
            return _send(opened, written, offset, size)
        finally:
            os.close(written)
    finally:
        os.close(opened)


def _open_file(source: int, above: list[str], name: str) -> int | None:
    try:
        where = open_directory(source, above)
    except OSError:
        return None
    try:
        opened = os.open(name, _READ, dir_fd=where)
    except OSError:
        return None
    finally:
        os.close(where)
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        return None
    return opened


def _send(source: int, target: int, offset: int, size: int) -> int:
    done = 0
    while done < size:
        sent = os.sendfile(target, source, offset + done, size - done)
        if not sent:
            break
        done += sent
    return done
