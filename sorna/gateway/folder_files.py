"""What is in virtual folders: listing, small uploads, downloads, making and removing; large uploads are ``transfers.py``'s.

Source: section 2.11 of the REST interface's specification and what clients do with the answer to a download: they want to know
the length of all of it before, and until 19.03 take each part of it for compressed.
"""

from __future__ import annotations

import re
import secrets
import zlib
from collections.abc import AsyncGenerator, Sequence
from typing import ClassVar
from urllib.parse import quote

from attrs import frozen
from twisted.web.http_headers import Headers

from sorna.errors import FolderForbidden, InvalidRequest, QuotaExceeded
from sorna.gateway.archive import PIECE, FileChanged
from sorna.gateway.call import Call, Reply, Stream, json_reply
from sorna.gateway.described import (
    BINARY,
    FLAG,
    TEXT,
    Described,
    exactly,
    json_content,
    list_of,
    open_object,
    optional,
)
from sorna.gateway.files import listing
from sorna.gateway.interfaces import Operations
from sorna.gateway.parameters import Parameters
from sorna.gateway.router import Router
from sorna.gateway.upload import read_files
from sorna.manager.folder_interfaces import SmallFile
from sorna.manager.folders import Folders, OpenFolder

MAX_FILES = 20
MAX_REMOVED = 1000
_MAX_PATH = 4096
_CLIENT = re.compile(rb"Backend\.AI Client for Python (\d{1,4})\.(\d{1,4})")
_UNFIT_FOR_A_NAME = re.compile(r'[^\x20-\x7e]|["\\]')

_DONE = json_content(exactly())
_CHANGING = (FolderForbidden, QuotaExceeded)
#: A body says the same as the query, for clients that can give one to a GET.
_LIST = Described(
    query={"path": TEXT}, answers={200: json_content(exactly(files=TEXT, folder_path=TEXT, error_msg=TEXT))}
)
_UPLOAD = Described(body={"multipart/form-data": open_object(file=BINARY)}, answers={201: _DONE}, raises=_CHANGING)
_MKDIR = Described(body=json_content(open_object("path", path=TEXT)), answers={201: _DONE}, raises=_CHANGING)
_RENAME = Described(
    body=json_content(open_object("target_path", "new_name", target_path=TEXT, new_name=TEXT)),
    answers={201: _DONE},
    raises=_CHANGING,
)
_MOVE = Described(
    body=json_content(open_object("src", "dst", src=TEXT, dst=TEXT)), answers={201: _DONE}, raises=_CHANGING
)
_DELETE = Described(
    body=json_content(
        open_object("files", files=list_of(TEXT, minItems=1, maxItems=MAX_REMOVED), recursive=optional(FLAG))
    ),
    answers={200: _DONE},
    raises=_CHANGING,
)
_DOWNLOAD = Described(
    query={"files": list_of(TEXT, minItems=1, maxItems=MAX_FILES)}, answers={200: {"multipart/mixed": BINARY}}
)


@frozen
class FolderFileRoutes:
    """The routes about what is in a folder."""

    folders: Folders
    operations: Operations

    router: ClassVar[Router[FolderFileRoutes]] = Router()

    @router.route("GET", "/folders/<folder>/files", needs_ready=True, described=_LIST)
    async def list_files(self, call: Call) -> Reply:
        """List a directory; the list is a text of JSON within the JSON, as it always was."""
        path = directory_below(_wish(call).text("path", "."))
        folder = await self._open(call)
        entries = await folder.list_files(path)
        return json_reply(
            {
                "files": listing(path, entries),
                "folder_path": path,
                "error_msg": "",
            }
        )

    @router.route("POST", "/folders/<folder>/upload", needs_ready=True, described=_UPLOAD)
    async def upload(self, call: Call) -> Reply:
        """Write up to twenty small files."""
        files = [SmallFile(below(one.path), one.content) for one in read_files(call.content_type, call.body)]
        folder = await self._open(call)
        await self.operations.detach(folder.write_files(files))
        return json_reply({}, 201)

    @router.route("POST", "/folders/<folder>/mkdir", needs_ready=True, described=_MKDIR)
    async def make_directory(self, call: Call) -> Reply:
        """Make a directory and those above it."""
        path = below(Parameters(call.json_object()).required_text("path"))
        folder = await self._open(call)
        await self.operations.detach(folder.make_directory(path))
        return json_reply({}, 201)

    @router.route(
        "POST", "/folders/<folder>/rename_file", "/folders/<folder>/rename-file", needs_ready=True, described=_RENAME
    )
    async def rename_file(self, call: Call) -> Reply:
        """Give a file or directory another name in its directory."""
        body = Parameters(call.json_object())
        path, new_name = below(body.required_text("target_path")), body.required_text("new_name")
        folder = await self._open(call)
        await self.operations.detach(folder.rename_file(path, new_name))
        return json_reply({}, 201)

    @router.route("POST", "/folders/<folder>/move-file", needs_ready=True, described=_MOVE)
    async def move_file(self, call: Call) -> Reply:
        """Move a file or directory into a directory, or to another place."""
        body = Parameters(call.json_object())
        source, target = below(body.required_text("src")), directory_below(body.required_text("dst"))
        folder = await self._open(call)
        await self.operations.detach(folder.move_file(source, target))
        return json_reply({}, 201)

    @router.route(
        "DELETE",
        "/folders/<folder>/delete_files",
        "/folders/<folder>/delete-files",
        needs_ready=True,
        described=_DELETE,
    )
    async def delete_files(self, call: Call) -> Reply:
        """Remove files, and directories if that was said."""
        body = Parameters(call.json_object())
        paths = [below(path) for path in body.texts("files")]
        if not 1 <= len(paths) <= MAX_REMOVED:
            raise body.wrong("files", f"a list of 1 to {MAX_REMOVED} paths")
        recursive = body.flag("recursive")
        folder = await self._open(call)
        await self.operations.detach(folder.remove_files(paths, recursive=recursive))
        return json_reply({})

    @router.route("GET", "/folders/<folder>/download", needs_ready=True, described=_DOWNLOAD)
    async def download(self, call: Call) -> Reply:
        """Send files, each as one compressed part."""
        body = _wish(call)
        paths = [below(path) for path in body.texts("files")]
        if not 1 <= len(paths) <= MAX_FILES:
            raise body.wrong("files", f"a list of 1 to {MAX_FILES} paths")
        folder = await self._open(call)
        files = [(path, await size_of_file(folder, path)) for path in paths]
        boundary = secrets.token_hex(16).encode("ascii")
        return Reply(
            200,
            content_type=b'multipart/mixed; boundary="' + boundary + b'"',
            headers={b"X-TOTAL-PAYLOADS-LENGTH": b"%d" % sum(size for _path, size in files)},
            stream=Stream(None, _parts(folder, files, boundary, compressed=takes_compressed(call.headers))),
        )

    async def _open(self, call: Call) -> OpenFolder:
        return await self.folders.open(call.access_key, call.values["folder"])


def _wish(call: Call) -> Parameters:
    """Read the body, or the query as clients send it that cannot give a body to a GET."""
    if call.body or not call.query:
        return Parameters(call.json_object())
    return Parameters({key: values if key == "files" else values[0] for key, values in call.query.items()})


def directory_below(path: str) -> str:
    """Give a path in a folder, ``.`` for the folder itself, without the needless parts that clients write.

    :raises InvalidRequest: it leads elsewhere, or is absolute, as no path in a folder is.
    """
    if len(path) > _MAX_PATH or "\0" in path:
        raise InvalidRequest("Invalid file name.")
    parts = [part for part in path.split("/") if part not in {"", "."}]
    if path.startswith("/") or ".." in parts:
        raise InvalidRequest(f"The path {path[:80]!r} does not stay inside the folder.")
    return "/".join(parts) or "."


def below(path: str) -> str:
    """Give a path of something in a folder. :raises InvalidRequest: it leads elsewhere, or is the folder itself."""
    inner = directory_below(path)
    if inner == ".":
        raise InvalidRequest("The path is that of the folder itself.")
    return inner


async def size_of_file(folder: OpenFolder, path: str) -> int:
    """Give a file's size. :raises InvalidRequest: it is no regular file."""
    return (await folder.read_file(path, 0, 0)).size


async def pieces_of(folder: OpenFolder, path: str, start: int, size: int) -> AsyncGenerator[bytes, None]:
    """Read a file from ``start`` to its end in pieces. :raises FileChanged: it is not ``size`` bytes long any more."""
    offset = start
    while offset < size:
        piece = await folder.read_file(path, offset, min(PIECE, size - offset))
        if piece.size != size or not piece.content:
            raise FileChanged(path)
        offset += len(piece.content)
        yield piece.content


def takes_compressed(headers: Headers) -> bool:
    """Tell whether a client takes each part for compressed, as all did until 19.03, or as it is, as all have since 19.09.

    Both accept the same encodings and may name the same version of the interface, so that only their names tell.
    """
    told = _CLIENT.search((headers.getRawHeaders(b"User-Agent") or [b""])[0])
    return told is None or (int(told[1]), int(told[2])) < (19, 9)


async def _parts(
    folder: OpenFolder, files: Sequence[tuple[str, int]], boundary: bytes, *, compressed: bool
) -> AsyncGenerator[bytes, None]:
    encoding = b"Content-Encoding: gzip\r\n" if compressed else b""
    for path, size in files:
        yield (
            b"--" + boundary + b"\r\n" + encoding + b"Content-Type: application/octet-stream\r\n"
            b"Content-Disposition: " + disposition(path) + b"\r\n\r\n"
        )
        # Those clients want the format; compressing would cost the reactor more than it spares the network.
        stored = zlib.compressobj(level=0, wbits=16 + zlib.MAX_WBITS) if compressed else None
        async for piece in pieces_of(folder, path, 0, size):
            yield stored.compress(piece) if stored else piece
        yield (stored.flush() if stored else b"") + b"\r\n"
    yield b"--" + boundary + b"--\r\n"


def disposition(path: str) -> bytes:
    """Give the header that names a download after the last part of its path, whatever characters that has."""
    name = path.rpartition("/")[2]
    plain = _UNFIT_FOR_A_NAME.sub("_", name)
    extended = "" if plain == name else f"; filename*=utf-8''{quote(name, safe='')}"
    return f'attachment; filename="{plain}"{extended}'.encode("ascii")
