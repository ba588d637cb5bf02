"""Large files in and out of virtual folders: uploads that resume (tus 1.0), and downloads by token.

Source: https://tus.io/protocols/resumable-upload (core, termination), RFC 9110 on ranges, and what clients of 20.03 and later
do: they ask for an address and a token, signed, and then send or fetch without signing.
"""

from __future__ import annotations

import re
from functools import partial
from typing import ClassVar

from attrs import frozen

from sorna.errors import (
    AuthenticationFailed,
    FolderForbidden,
    FolderNotFound,
    InvalidRequest,
    QuotaExceeded,
    UploadConflict,
)
from sorna.gateway.archive import TAR_TYPE, archive, archive_length, members
from sorna.gateway.call import Access, Call, Reply, Stream, json_reply
from sorna.gateway.described import (
    BINARY,
    FLAG,
    NOTHING,
    TEXT,
    WHOLE,
    Described,
    Schema,
    exactly,
    json_content,
    open_object,
    optional,
)
from sorna.gateway.folder_files import below, directory_below, disposition, pieces_of, size_of_file
from sorna.gateway.interfaces import Operations
from sorna.gateway.parameters import Parameters
from sorna.gateway.problems import PreconditionFailed, UnsupportedMediaType
from sorna.gateway.receiving import PIECE_TYPE
from sorna.gateway.router import Router
from sorna.manager.transfers import OpenUpload, Transfers

UPLOAD, DOWNLOAD = "/folders/_/upload", "/folders/_/download"
TUS_VERSION = b"1.0.0"
_TUS = {b"Tus-Resumable": TUS_VERSION, b"Cache-Control": b"no-store"}
_RANGE = re.compile(rb"bytes=(\d{1,19})-", re.ASCII)
_HOST = re.compile(rb"[A-Za-z0-9.:\[\]_-]{1,255}", re.ASCII)

_ADDRESS = json_content(exactly(token=TEXT, url={"type": "string", "format": "uri"}))
_REQUEST_UPLOAD = Described(
    body=json_content(open_object("path", "size", path=TEXT, size={**WHOLE, "minimum": 0})),
    answers={200: _ADDRESS},
    raises=(FolderForbidden, QuotaExceeded),
)
_REQUEST_DOWNLOAD = Described(
    body=json_content(open_object("path", path=TEXT, archive=optional(FLAG))), answers={200: _ADDRESS}
)
_VERSION: Schema = {"type": "string", "enum": [TUS_VERSION.decode("ascii")]}
_SENDING = (FolderNotFound, FolderForbidden, QuotaExceeded, UploadConflict, PreconditionFailed)
_ABILITIES = Described(answers={200: NOTHING})
_OFFSET = Described(headers={"Tus-Resumable": _VERSION}, answers={200: NOTHING}, raises=_SENDING)
_APPEND = Described(
    headers={"Tus-Resumable": _VERSION, "Upload-Offset": {**WHOLE, "minimum": 0}},
    body={PIECE_TYPE.decode("ascii"): BINARY},
    answers={204: NOTHING},
    raises=(*_SENDING, UnsupportedMediaType),
)
_ABANDON = Described(headers={"Tus-Resumable": _VERSION}, answers={204: NOTHING}, raises=_SENDING)
_FILE = {"application/octet-stream": BINARY}
_DOWNLOAD = Described(
    headers={"Range": TEXT},
    answers={200: _FILE | {TAR_TYPE.decode("ascii"): BINARY}, 206: _FILE, 416: NOTHING},
    raises=(FolderNotFound,),
)


@frozen
class TransferRoutes:
    """The routes of transfers.

    :ivar tls: whether clients reach this door over TLS.
    """

    transfers: Transfers
    operations: Operations
    tls: bool = False

    router: ClassVar[Router[TransferRoutes]] = Router()

    @router.route("POST", "/folders/<folder>/request-upload", needs_ready=True, described=_REQUEST_UPLOAD)
    async def request_upload(self, call: Call) -> Reply:
        """Reserve room for a file, and tell where to send it."""
        body = Parameters(call.json_object())
        path, size = below(body.required_text("path")), body.whole_number("size")
        if size is None:
            raise InvalidRequest("size is missing")
        work = self.transfers.request_upload(call.access_key, call.values["folder"], path, size)
        return json_reply({"token": await self.operations.detach(work), "url": self._address(call, UPLOAD)})

    @router.route(
        "POST",
        "/folders/<folder>/request-download",
        "/folders/<folder>/request_download",
        needs_ready=True,
        described=_REQUEST_DOWNLOAD,
    )
    async def request_download(self, call: Call) -> Reply:
        """Tell where a file is to be fetched; a directory is fetched as a tar archive."""
        body = Parameters(call.json_object())
        key = "path" if body.content.get("path") is not None else "file"
        path, tar = directory_below(body.required_text(key)), body.flag("archive")
        token = await self.transfers.request_download(call.access_key, call.values["folder"], path, archive=tar)
        return json_reply({"token": token, "url": self._address(call, DOWNLOAD)})

    def _address(self, call: Call, path: str) -> str:
        host = call.header(b"Host") or b""
        if not _HOST.fullmatch(host):
            raise InvalidRequest("The Host header is missing or none")
        tls = self.tls or call.header(b"X-Forwarded-Proto") == b"https"
        return f"{'https' if tls else 'http'}://{host.decode('ascii')}{path}"

    @router.route("OPTIONS", UPLOAD, access=Access.PUBLIC, described=_ABILITIES)
    async def abilities(self, _call: Call) -> Reply:
        """Tell what of the protocol there is."""
        return Reply(200, headers={**_TUS, b"Tus-Version": TUS_VERSION, b"Tus-Extension": b"termination"})

    @router.route("HEAD", UPLOAD, access=Access.TOKEN, needs_ready=True, described=_OFFSET)
    async def offset(self, call: Call) -> Reply:
        """Tell how much of a file has arrived."""
        upload = await self._upload(call)
        offset = await upload.offset()
        headers = {b"Upload-Offset": b"%d" % offset, b"Upload-Length": b"%d" % upload.upload.size}
        return Reply(200, headers=_TUS | headers)

    @router.route("PATCH", UPLOAD, access=Access.TOKEN, needs_ready=True, described=_APPEND)
    async def append(self, call: Call) -> Reply:
        """Add a piece to a file; with the last one it is in its place."""
        upload = await self._upload(call)
        if call.stored_to is not None:
            return Reply(204, headers=_TUS | {b"Upload-Offset": b"%d" % call.stored_to})
        if call.content_type.partition(b";")[0].strip().lower() != PIECE_TYPE:
            raise UnsupportedMediaType(PIECE_TYPE.decode("ascii"))
        offset = call.header(b"Upload-Offset") or b""
        if not offset.isdigit() or len(offset) > 19:
            raise InvalidRequest("Upload-Offset must be a number of bytes")
        after = await self.operations.detach(upload.append(int(offset), call.body))
        return Reply(204, headers=_TUS | {b"Upload-Offset": b"%d" % after})

    @router.route("DELETE", UPLOAD, access=Access.TOKEN, needs_ready=True, described=_ABANDON)
    async def abandon(self, call: Call) -> Reply:
        """Forget a file that has not arrived whole."""
        upload = await self._upload(call)
        await self.operations.detach(upload.abandon())
        return Reply(204, headers=_TUS)

    async def _upload(self, call: Call) -> OpenUpload:
        upload = await self.transfers.upload(_token(call))
        if call.header(b"Tus-Resumable") != TUS_VERSION:
            raise PreconditionFailed("Tus-Resumable must be 1.0.0")
        return upload

    @router.route("GET", DOWNLOAD, access=Access.TOKEN, needs_ready=True, described=_DOWNLOAD)
    async def download(self, call: Call) -> Reply:
        """Send a file, from an offset on if that is asked for; a directory as a tar archive."""
        opened = await self.transfers.download(_token(call))
        folder, path = opened.folder, opened.path
        entries = await folder.list_files(path, recursive=True)
        if opened.archive or len(entries) != 1 or entries[0].name:
            plan = members(path, entries)
            name = disposition(f"{'folder' if path == '.' else path}.tar")
            stream = Stream(archive_length(plan), archive(plan, folder.read_file))
            return Reply(200, content_type=TAR_TYPE, headers={b"Content-Disposition": name}, stream=stream)
        size = await size_of_file(folder, path)
        headers = {b"Content-Disposition": disposition(path), b"Accept-Ranges": b"bytes"}
        pieces = partial(pieces_of, folder, path)
        # The rest of another file than the client has begun with would be of no use.
        same = entries[0].version == opened.version
        wanted = _RANGE.fullmatch(call.header(b"Range") or b"") if same else None
        start = int(wanted[1]) if wanted else 0
        if not wanted:
            return Reply(200, headers=headers, stream=Stream(size, pieces(0, size)))
        if start >= size:
            return Reply(416, headers=headers | {b"Content-Range": b"bytes */%d" % size})
        headers[b"Content-Range"] = b"bytes %d-%d/%d" % (start, size - 1, size)
        return Reply(206, headers=headers, stream=Stream(size - start, pieces(start, size)))


def _token(call: Call) -> str:
    tokens = call.query.get("token")
    if not tokens:
        raise AuthenticationFailed("The token is missing")
    return tokens[0]
