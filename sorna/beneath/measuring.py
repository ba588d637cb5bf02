"""Counts what lies below a directory that user code can write to, within bounds; standard library only."""

import os
import stat
from contextlib import suppress

from sorna.beneath.paths import DIRECTORY, MAX_DEPTH


def allocated(status: os.stat_result) -> int:
    """Give the bytes that an entry is charged with: its length, or what it takes on the disk if that is more."""
    return max(status.st_size, status.st_blocks * 512)


class _Count:
    """Entries and bytes, within bounds."""

    def __init__(self, most_files: int, most_size: int) -> None:
        self.files = self.size = 0
        self._most_files = most_files
        self._most_size = most_size

    def add(self, directory: int, depth: int) -> bool:
        """Add what is in an open directory, which is closed, and below it; False when it is more than may be counted."""
        inner: list[str] = []
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        self.files += 1
                        self.size += allocated(status)
                        if stat.S_ISDIR(status.st_mode):
                            inner.append(entry.name)
                    if self.files > self._most_files or self.size > self._most_size:
                        return False
            if inner and depth >= MAX_DEPTH:
                return False
            for name in inner:
                # It may have been replaced meanwhile, or its owner may not let us look.
                with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                    if not self.add(os.open(name, DIRECTORY, dir_fd=directory), depth + 1):
                        return False
        finally:
            os.close(directory)
        return True


def measure(root: int, most_files: int, most_size: int) -> tuple[int, int, bool]:
    """Count entries and bytes below a directory, and say whether that is all; stops where a bound is passed."""
    count = _Count(most_files, most_size)
    complete = count.add(os.dup(root), 0)
    return count.files, count.size, complete
