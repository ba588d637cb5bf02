"""What is known of a file in a kernel's working directory."""

from __future__ import annotations

import stat

from attrs import field, frozen


@frozen
class FileEntry:
    """One file or directory.

    :ivar name: below the directory that was listed; empty for a listed path that is no directory.
    :ivar mode: with the type bits, as ``stat`` has it.
    :ivar size: bytes.
    :ivar modified: seconds since the epoch, as are ``changed`` (of the entry itself) and ``used``.
    """

    name: str
    mode: int
    size: int
    modified: float
    changed: float
    used: float

    @property
    def version(self) -> str:
        """What changes when the content does."""
        return f"{self.size}-{int(self.modified * 1_000_000)}"

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)


@frozen
class FilePiece:
    """A piece of a file's content.

    :ivar size: of the whole file, bytes.
    """

    size: int
    content: bytes = field(repr=False)
