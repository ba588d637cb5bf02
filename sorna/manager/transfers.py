"""Tokens that let their bearer upload or download one file of a folder without signing, as clients of 20.03 and later do.

A token says what it is for and until when, and is signed with the secret key of the keypair that asked for it: every manager
can check it, nothing has to be kept, and it dies with the keypair. What it is for is looked up again at every use, so that a
folder that is not shared any more cannot be read with a token of yesterday. Knows no door.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import uuid
from typing import Any

from attrs import frozen
from twisted.internet.interfaces import IReactorTime

from sorna.errors import AuthenticationFailed, InvalidRequest
from sorna.manager.folder_interfaces import Upload
from sorna.manager.folders import Folders, OpenFolder
from sorna.manager.interfaces import KeypairFinder

UPLOAD_LIFETIME = 24 * 3600.0
DOWNLOAD_LIFETIME = 3600.0
# The line of a request that holds it must not be longer than servers read.
MAX_TOKEN = 12 * 1024
_PURPOSE = b"sorna folder transfer"


@frozen
class OpenUpload:
    """An upload whose token was believed."""

    folder: OpenFolder
    upload: Upload

    async def offset(self) -> int:
        """Tell how many bytes have arrived. :raises UploadConflict: it is over or was replaced."""
        return await self.folder.storage.upload_offset(self.upload)

    async def append(self, offset: int, content: bytes) -> int:
        """Add a piece; gives the new offset. :raises UploadConflict, QuotaExceeded, FolderForbidden:."""
        return await self.folder.append_upload(self.upload, offset, content)

    async def abandon(self) -> None:
        """Forget it and give its room back."""
        await self.folder.storage.abandon_upload(self.upload)


@frozen
class OpenDownload:
    """A download whose token was believed.

    :ivar archive: whether it is to be a tar archive although it may be one file.
    :ivar version: of the file when the token was given; empty for a directory.
    """

    folder: OpenFolder
    path: str
    archive: bool
    version: str


@frozen
class Transfers:
    """Gives tokens, and believes those that it gave."""

    clock: IReactorTime
    keypairs: KeypairFinder
    folders: Folders

    async def request_upload(self, access_key: str, name: str, path: str, size: int) -> str:
        """Reserve room for a file and give the token with which it is sent. An earlier one for the same path is void."""
        folder = await self.folders.open(access_key, name)
        place = hashlib.sha256(f"{access_key}\0{path}".encode()).hexdigest()[:32]
        upload = Upload(folder.id, secrets.token_hex(16), place, path, size)
        await folder.begin_upload(upload)
        fields = {"o": "upload", "f": folder.id.hex, "u": upload.id, "p": path, "s": size}
        return await self._sign(access_key, fields, UPLOAD_LIFETIME)

    async def request_download(self, access_key: str, name: str, path: str, *, archive: bool) -> str:
        """Give the token with which a file or directory is fetched. :raises InvalidRequest: there is no such thing."""
        folder = await self.folders.open(access_key, name)
        entries = await folder.list_files(path)
        version = entries[0].version if len(entries) == 1 and not entries[0].name else ""
        fields = {"o": "download", "f": folder.id.hex, "p": path, "a": archive, "v": version}
        return await self._sign(access_key, fields, DOWNLOAD_LIFETIME)

    async def upload(self, token: str) -> OpenUpload:
        """Find the upload of a token. :raises AuthenticationFailed, FolderNotFound:."""
        access_key, fields = await self._believe(token, "upload")
        path = fields["p"]
        folder = await self.folders.open_by_id(access_key, uuid.UUID(hex=fields["f"]))
        place = hashlib.sha256(f"{access_key}\0{path}".encode()).hexdigest()[:32]
        return OpenUpload(folder, Upload(folder.id, fields["u"], place, path, fields["s"]))

    async def download(self, token: str) -> OpenDownload:
        """Find what a token lets its bearer fetch. :raises AuthenticationFailed, FolderNotFound:."""
        access_key, fields = await self._believe(token, "download")
        folder = await self.folders.open_by_id(access_key, uuid.UUID(hex=fields["f"]))
        return OpenDownload(folder, fields["p"], fields["a"], fields["v"])

    async def _sign(self, access_key: str, fields: dict[str, Any], lifetime: float) -> str:
        keypair = await self.keypairs.find(access_key)
        if keypair is None:
            raise AuthenticationFailed
        fields = {"k": access_key, "e": int(self.clock.seconds() + lifetime), **fields}
        content = base64.urlsafe_b64encode(
            json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
        ).rstrip(b"=")
        token = f"{content.decode('ascii')}.{_signature(keypair.secret_key, content)}"
        if len(token) > MAX_TOKEN:
            raise InvalidRequest("The path is too long")
        return token

    async def _believe(self, token: str, purpose: str) -> tuple[str, dict[str, Any]]:
        content, _dot, signature = token[: MAX_TOKEN + 1].partition(".")
        try:
            raw = content.encode("ascii")
            fields = json.loads(base64.urlsafe_b64decode(raw + b"=" * (-len(raw) % 4)))
            access_key, expiry, operation = fields["k"], fields["e"], fields["o"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise AuthenticationFailed("Not a token") from None
        keypair = await self.keypairs.find(access_key) if isinstance(access_key, str) else None
        # Nothing else in the token is looked at before its signature was.
        if keypair is None or not keypair.is_active or not keypair.secret_key:
            raise AuthenticationFailed
        if not hmac.compare_digest(signature.encode("utf-8"), _signature(keypair.secret_key, raw).encode("ascii")):
            raise AuthenticationFailed
        if operation != purpose or expiry < self.clock.seconds():
            raise AuthenticationFailed("The token is for something else, or its time is over")
        return access_key, fields


def _signature(secret_key: str, content: bytes) -> str:
    # A key of its own, so that no signature of a request can be one of a token.
    key = hmac.digest(secret_key.encode("utf-8"), _PURPOSE, "sha256")
    return hmac.new(key, content, "sha256").hexdigest()
