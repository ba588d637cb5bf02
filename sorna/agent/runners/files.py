"""Init's end of what is done with files of the kernel from outside: written, listed and read, below the working directory.

Standard library only. Knows the frames about files; how a path is found safely is ``sorna/beneath``'s and ``upload``'s.
"""

import json
import os
from typing import Any

from sorna.agent.runners import frames
from sorna.agent.runners.poller import Link
from sorna.agent.runners.repl_link import to_json
from sorna.agent.runners.upload import write_upload
from sorna.beneath.paths import PathRefused
from sorna.beneath.reading import list_files, read_piece


class Files:
    """The files below the current directory. ``attach`` it to the link before anything else."""

    def __init__(self) -> None:
        self._root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._link: Link | None = None

    def attach(self, link: Link) -> None:
        """Say where answers go."""
        self._link = link

    def upload(self, payload: bytes) -> None:
        """Write a file, or more of one."""
        header, _nul, content = payload.partition(b"\0")
        message = json.loads(header)
        try:
            write_upload(self._root, str(message["path"]), content, bool(message.get("append")))
        except PathRefused as refusal:
            self._refuse(message, refusal)
        else:
            self._reply(message, None, None)

    def list(self, message: dict[str, Any]) -> None:
        """List a directory."""
        try:
            rows = list_files(self._root, str(message["path"]), bool(message.get("recursive")))
        except PathRefused as refusal:
            self._refuse(message, refusal)
        else:
            self._reply(message, None, rows)

    def read(self, message: dict[str, Any]) -> None:
        """Read a piece of a file."""
        try:
            size, piece = read_piece(self._root, str(message["path"]), int(message["offset"]), int(message["size"]))
        except PathRefused as refusal:
            self._refuse(message, refusal)
        else:
            header = to_json({"request": message["request"], "size": size})
            self._send(frames.CONTENT, header + b"\0" + piece)

    def _refuse(self, message: dict[str, Any], refusal: PathRefused) -> None:
        self._reply(message, {"kind": "refused", "detail": str(refusal)}, None)

    def _reply(self, message: dict[str, Any], error: dict[str, str] | None, result: Any) -> None:
        self._send(frames.REPLY, to_json({"request": message["request"], "error": error, "result": result}))

    def _send(self, kind: int, payload: bytes) -> None:
        if self._link is not None:
            self._link.send(kind, payload)
