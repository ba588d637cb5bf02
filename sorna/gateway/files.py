"""Listing and downloading what lies in a kernel's working directory; knows how answers look, not how files are found.

Source: section 2.8 of the REST interface's specification and the requests of published clients, which also ask with absolute
paths below ``/home/work``.
"""

from __future__ import annotations

import json
import secrets
import stat
from collections.abc import Iterable, Sequence
from functools import partial
from typing import ClassVar

from attrs import frozen

from sorna.errors import AgentError, InvalidRequest
from sorna.gateway.archive import TAR_TYPE, Member, Multipart, archive, archive_length, members
from sorna.gateway.call import Call, Reply, Stream, json_reply
from sorna.gateway.described import BINARY, TEXT, Described, exactly, json_content, list_of
from sorna.gateway.interfaces import Kernels
from sorna.gateway.kernels import kernel_paths
from sorna.gateway.parameters import Parameters
from sorna.gateway.router import Router
from sorna.model.file import FileEntry

HOME = "/home/work"
MAX_FILES = 5
_MAX_PATH = 4096
#: A body says the same as the query, for clients that can give one to a GET.
_LIST = Described(
    query={"path": TEXT},
    answers={200: json_content(exactly(files=TEXT, errors=TEXT, folder_path=TEXT, abspath=TEXT))},
    raises=(AgentError,),
)
_DOWNLOAD = Described(
    query={"files": list_of(TEXT, minItems=1, maxItems=MAX_FILES)},
    answers={200: {"multipart/mixed": BINARY}},
    raises=(AgentError,),
)
_DOWNLOAD_SINGLE = Described(
    query={"file": TEXT},
    answers={200: {TAR_TYPE.decode("ascii"): BINARY}},
    raises=(AgentError,),
)


@frozen
class FileRoutes:
    """The routes about files of a kernel, but for uploads."""

    kernels: Kernels

    router: ClassVar[Router[FileRoutes]] = Router()

    @router.route("GET", *kernel_paths("/files"), needs_ready=True, described=_LIST)
    async def list_files(self, call: Call) -> Reply:
        """List a directory; the list is a text of JSON within the JSON, as it always was."""
        reference = call.kernel_reference
        path = relative(_wish(call).text("path", "."))
        entries = await self.kernels.list_files(call.access_key, reference, path)
        return json_reply(
            {
                "files": listing(path, entries),
                "errors": "",
                "folder_path": HOME,
                "abspath": HOME if path == "." else f"{HOME}/{path}",
            }
        )

    @router.route("GET", *kernel_paths("/download"), needs_ready=True, described=_DOWNLOAD)
    async def download(self, call: Call) -> Reply:
        """Send files and directories, each as one tar archive."""
        reference = call.kernel_reference
        body = _wish(call)
        paths = [relative(path) for path in body.texts("files")]
        if not 1 <= len(paths) <= MAX_FILES:
            raise body.wrong("files", f"a list of 1 to {MAX_FILES} paths")
        archives = [await self._plan(call, reference, path) for path in paths]
        multipart = Multipart(secrets.token_hex(16).encode("ascii"), archives)
        read = partial(self.kernels.read_file, call.access_key, reference)
        stream = Stream(multipart.length, multipart.pieces(read))
        return Reply(200, content_type=multipart.content_type, stream=stream)

    @router.route("GET", *kernel_paths("/download_single"), needs_ready=True, described=_DOWNLOAD_SINGLE)
    async def download_single(self, call: Call) -> Reply:
        """Send one file or directory as a tar archive."""
        reference = call.kernel_reference
        plan = await self._plan(call, reference, relative(_wish(call).required_text("file")))
        read = partial(self.kernels.read_file, call.access_key, reference)
        return Reply(200, content_type=TAR_TYPE, stream=Stream(archive_length(plan), archive(plan, read)))

    async def _plan(self, call: Call, reference: str, path: str) -> Sequence[Member]:
        return members(path, await self.kernels.list_files(call.access_key, reference, path, recursive=True))


def _wish(call: Call) -> Parameters:
    """Read the body, or the query as clients send it that cannot give a body to a GET."""
    if call.body or not call.query:
        return Parameters(call.json_object())
    return Parameters({key: values if key == "files" else values[0] for key, values in call.query.items()})


def relative(path: str) -> str:
    """Give a path below the working directory, ``.`` for itself, without the needless parts that clients write.

    :raises InvalidRequest: it leads elsewhere.
    """
    if len(path) > _MAX_PATH or "\0" in path:
        raise InvalidRequest("Invalid file name.")
    if path == HOME or path.startswith(HOME + "/"):
        path = path[len(HOME) + 1 :]
    elif path.startswith("/"):
        raise InvalidRequest(f"The path {path[:80]!r} is not below {HOME}")
    parts = [part for part in path.split("/") if part not in {"", "."}]
    if ".." in parts:
        raise InvalidRequest(f"The path {path[:80]!r} does not stay inside the working directory.")
    return "/".join(parts) or "."


def listing(path: str, entries: Iterable[FileEntry]) -> str:
    """Write the listing of a directory, or of one file, as clients read it: JSON inside of JSON."""
    return json.dumps(
        [
            {
                "mode": stat.filemode(entry.mode),
                "size": entry.size,
                "ctime": entry.changed,
                "mtime": entry.modified,
                "atime": entry.used,
                "filename": entry.name or path.rpartition("/")[2],
            }
            for entry in entries
        ]
    )
