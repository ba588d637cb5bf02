"""A disk of a few megabytes in place of a directory, and how to fill it up. Knows Linux's tmpfs; needs root."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from pathlib import Path
from typing import Self

from attrs import frozen

SIZE = 8 << 20
_LIBC = ctypes.CDLL(None, use_errno=True)
_DETACH = 2


def _checked(status: int, what: str) -> None:
    if status < 0:
        raise OSError(ctypes.get_errno(), what)


@frozen
class SmallDisk:
    """A directory that lies on a disk of its own.

    :ivar path: the directory.
    """

    path: Path

    @property
    def _filler(self) -> Path:
        return self.path / "filler"

    @classmethod
    def mount(cls, path: Path) -> Self:
        """Put a disk in place of a directory; what was in it is on the disk afterwards."""
        with tempfile.TemporaryDirectory() as kept:
            shutil.copytree(path, kept, dirs_exist_ok=True)
            options = f"size={SIZE},mode=0711".encode()
            _checked(_LIBC.mount(b"small", os.fsencode(path), b"tmpfs", 0, options), f"mount on {path}")
            shutil.copytree(kept, path, dirs_exist_ok=True)
        return cls(path)

    def fill(self) -> None:
        """Write until nothing more can be written, not a byte."""
        with self._filler.open("wb", buffering=0) as out:
            try:
                while True:
                    out.write(bytes(4096))
            except OSError:
                return

    def free(self) -> None:
        """Give the room back."""
        self._filler.unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount it. Harmless twice."""
        if os.path.ismount(self.path):
            _checked(_LIBC.umount2(os.fsencode(self.path), _DETACH), f"unmount {self.path}")
