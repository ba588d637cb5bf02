"""Files as tar archives, and several of them as one multipart body, whose lengths are known before the first byte; pure.

Source: section 2.8 of the REST interface's specification and what clients do with the answer. Clients of 18.12 look at single
lines of the body, so each header of a part begins with ``Content-``.
"""

from __future__ import annotations

import tarfile
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from typing import Any

from attrs import frozen

from sorna.errors import InvalidRequest
from sorna.model.file import FileEntry, FilePiece

TAR_TYPE = b"application/x-tar"
PIECE = 256 * 1024
_BLOCK = tarfile.BLOCKSIZE
_END = bytes(2 * _BLOCK)

ReadPiece = Callable[[str, int, int], Coroutine[Any, Any, FilePiece]]


class FileChanged(Exception):
    """A file is not as long any more as was promised."""


@frozen
class Member:
    """A file or directory in an archive.

    :ivar name: in the archive.
    :ivar path: below the working directory; empty for a directory, whose content is none.
    """

    name: str
    path: str
    entry: FileEntry

    @property
    def size(self) -> int:
        """Bytes of content."""
        return self.entry.size if self.path else 0

    @property
    def length(self) -> int:
        """Bytes in the archive, filled up to whole blocks."""
        return self._header_length + self.size + -self.size % _BLOCK

    @property
    def _header_length(self) -> int:
        # As the GNU format has it; building thousands of headers only to measure them would block the reactor.
        name = len(self.name.encode("utf-8", "replace")) + (not self.path)
        if name <= tarfile.LENGTH_NAME:
            return _BLOCK
        return 2 * _BLOCK + (name + 1) + -(name + 1) % _BLOCK

    def header(self) -> bytes:
        """Build what stands before the content."""
        info = tarfile.TarInfo(self.name)
        info.mode = self.entry.mode & 0o777
        info.mtime = max(0, int(self.entry.modified))
        info.uname = info.gname = "work"
        info.size = self.size
        if not self.path:
            info.type = tarfile.DIRTYPE
        return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "replace")


def members(path: str, entries: Sequence[FileEntry]) -> Sequence[Member]:
    """Plan the archive of a file or directory from the recursive listing of its path.

    What is neither, links above all, is left out: whoever unpacks it would be led somewhere.

    :raises InvalidRequest: the path itself is neither.
    """
    name = path.rpartition("/")[2]
    if len(entries) == 1 and not entries[0].name:
        if not entries[0].is_file:
            raise InvalidRequest(f"{path!r} is neither a file nor a directory")
        return [Member(name, path, entries[0])]
    top = "work" if path == "." else name
    below = "" if path == "." else f"{path}/"
    return [
        Member(f"{top}/{entry.name}", below + entry.name if entry.is_file else "", entry)
        for entry in entries
        if entry.is_file or entry.is_directory
    ]


def archive_length(parts: Sequence[Member]) -> int:
    """Give the length of an archive."""
    return sum(member.length for member in parts) + len(_END)


async def archive(parts: Sequence[Member], read: ReadPiece) -> AsyncGenerator[bytes, None]:
    """Make an archive, reading each file in pieces.

    :raises FileChanged: a file has another size than it was listed with.
    """
    for member in parts:
        yield member.header()
        offset = 0
        while offset < member.size:
            piece = await read(member.path, offset, min(PIECE, member.size - offset))
            if piece.size != member.size or not piece.content:
                raise FileChanged(member.path)
            offset += len(piece.content)
            yield piece.content
        yield bytes(-member.size % _BLOCK)
    yield _END


@frozen
class Multipart:
    """Several archives as one ``multipart/mixed`` body."""

    boundary: bytes
    archives: Sequence[Sequence[Member]]

    @property
    def content_type(self) -> bytes:
        """The header that tells the boundary."""
        return b'multipart/mixed; boundary="' + self.boundary + b'"'

    @property
    def length(self) -> int:
        """Bytes of the whole body."""
        return sum(len(self._head(one)) + archive_length(one) + 2 for one in self.archives) + len(self._tail())

    async def pieces(self, read: ReadPiece) -> AsyncGenerator[bytes, None]:
        """Make the body."""
        for one in self.archives:
            yield self._head(one)
            async for piece in archive(one, read):
                yield piece
            yield b"\r\n"
        yield self._tail()

    def _head(self, parts: Sequence[Member]) -> bytes:
        return (
            b"--" + self.boundary + b"\r\nContent-Type: " + TAR_TYPE + b"\r\nContent-Encoding: identity\r\n"
            b"Content-Length: %d\r\n\r\n" % archive_length(parts)
        )

    def _tail(self) -> bytes:
        return b"--" + self.boundary + b"--\r\n"
