"""The files of one kernel as its agent asks for them: uploads, listings and pieces of content, all within bounds.

Knows the frames about files and that init resolves every path safely; knows nothing of runs or of how a kernel ends.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import DeferredLock

from sorna.agent.output_log import KIB
from sorna.agent.replies import Replies
from sorna.agent.run import read_object
from sorna.agent.runners import frames
from sorna.beneath.reading import MAX_ENTRIES, MAX_PIECE
from sorna.errors import AgentFailed, AgentRefused
from sorna.model.file import FileEntry, FilePiece

UPLOAD_DEADLINE = 25.0
READ_DEADLINE = 8.0
MAX_PATH = 4096
# What Linux takes for an offset.
MAX_OFFSET = 2**63 - 1
# Even a name of which every character is escaped fits beside it into one frame.
MAX_UPLOAD = frames.MAX_PAYLOAD - 64 * KIB
MAX_PENDING_UPLOADS = 64 * 1024 * KIB


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def to_json(value: Mapping[str, Any]) -> bytes:
    """Write a frame's JSON; lone surrogates, which no UTF-8 has, are escaped."""
    try:
        return _encode(value).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


_NUMBERS = frozenset({int, float})


class KernelFiles:
    """What can be done with the files below one kernel's working directory.

    :param send: sends a frame to init.
    :param touch: is called for every use, which keeps an idle kernel alive.
    """

    def __init__(self, replies: Replies, send: Callable[..., None], touch: Callable[[], None]) -> None:
        self._replies = replies
        self._send = send
        self._touch = touch
        self._uploads = DeferredLock()
        self._uploading = 0
        self._reading = DeferredLock()

    async def upload(self, path: str, content: bytes) -> None:
        """Write one file below the working directory; init resolves the path.

        :raises AgentRefused: the path climbs out, or the file is too large or cannot be written.
        """
        self._touch()
        _check_path(path)
        if len(content) > MAX_UPLOAD:
            raise AgentRefused(f"A file of more than {MAX_UPLOAD} bytes cannot be uploaded at once.")
        self._uploading += len(content)
        try:
            if self._uploading > MAX_PENDING_UPLOADS:
                raise AgentRefused("Too many uploads to this kernel at once.")
            async with self._uploads:  # so that the channel buffers one file at the most
                number, result = self._replies.ask(UPLOAD_DEADLINE)
                header = to_json({"request": number, "path": path, "append": False})
                self._send(frames.UPLOAD, header, b"\0", content)
                await result
        finally:
            self._uploading -= len(content)
            self._touch()

    async def list_files(self, path: str, *, recursive: bool) -> Sequence[FileEntry]:
        """List a directory below the working directory, or describe what else is there.

        :raises AgentRefused: the path climbs out, there is nothing, or too much.
        :raises AgentFailed: the kernel answered with what is no listing.
        """
        _check_path(path)
        rows = await self._ask(frames.LIST, {"path": path, "recursive": recursive})
        if not isinstance(rows, list) or len(rows) > MAX_ENTRIES:
            raise AgentFailed("The kernel gave a listing that is none.")
        return [_entry(row) for row in rows]

    async def read_file(self, path: str, offset: int, size: int) -> FilePiece:
        """Read at most ``size`` bytes of a file from ``offset`` on; never more than 256 KiB.

        :raises AgentRefused: the path climbs out, or is no regular file, or cannot be read.
        """
        _check_path(path)
        size = max(0, min(size, MAX_PIECE))
        piece = await self._ask(frames.READ, {"path": path, "offset": max(0, min(offset, MAX_OFFSET)), "size": size})
        if not isinstance(piece, FilePiece) or len(piece.content) > size:
            raise AgentFailed("The kernel gave another piece of a file than was asked for.")
        return piece

    def content_received(self, payload: bytes) -> None:
        """Take a CONTENT frame. :raises FrameError: it makes no sense."""
        header, _nul, content = payload.partition(b"\0")
        frame = read_object(header)
        size = frame.get("size")
        result = FilePiece(size, content) if isinstance(size, int) and not isinstance(size, bool) else None
        self._replies.received({"request": frame.get("request"), "error": None, "result": result})

    async def _ask(self, kind: int, question: Mapping[str, Any]) -> Any:
        self._touch()
        async with self._reading:  # so that one piece at the most is on its way, whoever asks
            number, result = self._replies.ask(READ_DEADLINE)
            self._send(kind, to_json({"request": number, **question}))
            try:
                return await result
            finally:
                self._touch()


def _check_path(path: str) -> None:
    if not path or len(path) > MAX_PATH:
        raise AgentRefused(f"A file name has 1 to {MAX_PATH} characters.")


def _entry(row: Any) -> FileEntry:
    # Plain checks, because there may be thousands of rows: a match statement takes three times as long.
    if isinstance(row, list) and len(row) == 6 and isinstance(row[0], str):
        name, mode, size, *times = row
        if type(mode) is int and type(size) is int and all(type(time) in _NUMBERS for time in times):
            return FileEntry(name, mode, size, *times)
    raise AgentFailed("The kernel gave a listing that is none.")
