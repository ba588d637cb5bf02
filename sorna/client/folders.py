"""The calls about virtual folders, and large files that go on where they stopped when the connection breaks.

Knows the wire; may not know the terminal. A file is sent in pieces (tus 1.0) and fetched into a file beside its place, which
is renamed when it is whole: so what is interrupted for good leaves nothing half.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from attrs import field, frozen
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from sorna.client.api import JSON, QUICK, SLOW, ApiClient
from sorna.client.wire import ApiError, Reply, json_object, raise_problem, text_of

PIECE = 4 * 1024 * 1024
#: Seconds to wait before an interrupted transfer goes on; then it is given up.
PATIENCE = (0.5, 1.0, 2.0, 5.0, 10.0)

#: The status of an upload that is over, or whose place another one took.
OVER = 409

Progress = Callable[[int, int], None]


@frozen
class FolderClient:
    """The folders of one keypair.

    :ivar patience: see :data:`PATIENCE`.
    """

    api: ApiClient
    clock: IReactorTime
    patience: Sequence[float] = PATIENCE
    piece: int = field(default=PIECE)

    async def create(self, name: str, quota: str = "0") -> dict[str, Any]:
        """Make a folder."""
        return await self._object("POST", "", {"name": name, "quota": quota})

    async def list_folders(self) -> Sequence[dict[str, Any]]:
        """List the folders that the keypair sees."""
        found = json.loads((await self.api.call("GET", "/folders", QUICK)).body)
        return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []

    async def info(self, name: str) -> dict[str, Any]:
        """Describe a folder."""
        return await self._object("GET", f"/{_name(name)}")

    async def rename(self, name: str, new_name: str) -> None:
        """Give a folder another name."""
        await self._object("POST", f"/{_name(name)}/rename", {"new_name": new_name})

    async def delete(self, name: str) -> None:
        """Remove a folder with everything in it."""
        await self.api.call("DELETE", f"/folders/{_name(name)}", SLOW)

    async def leave(self, name: str) -> None:
        """Give up a folder that somebody else shares."""
        await self._object("POST", f"/{_name(name)}/leave", {})

    async def list_files(self, name: str, path: str) -> Sequence[dict[str, Any]]:
        """List a directory."""
        found = json.loads(text_of(await self._object("GET", f"/{_name(name)}/files", {"path": path}), "files"))
        return [one for one in found if isinstance(one, dict)]

    async def make_directory(self, name: str, path: str) -> None:
        """Make a directory and those above it."""
        await self._object("POST", f"/{_name(name)}/mkdir", {"path": path})

    async def delete_files(self, name: str, paths: Sequence[str], *, recursive: bool) -> None:
        """Remove files, and directories if ``recursive``."""
        body = {"files": list(paths), "recursive": recursive}
        await self._object("DELETE", f"/{_name(name)}/delete_files", body)

    async def invite(self, name: str, users: Sequence[str], permission: str) -> Sequence[str]:
        """Offer a folder to users or access keys; gives those that there are."""
        answer = await self._object("POST", f"/{_name(name)}/invite", {"perm": permission, "user_ids": list(users)})
        found = answer.get("invited_ids")
        return [str(one) for one in found] if isinstance(found, list) else []

    async def invitations(self) -> Sequence[dict[str, Any]]:
        """List what the keypair is invited to."""
        found = (await self._object("GET", "/invitations/list")).get("invitations")
        return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []

    async def accept(self, invitation_id: str) -> str:
        """Take an offer; gives what the server says."""
        return text_of(await self._object("POST", "/invitations/accept", {"inv_id": invitation_id}), "msg")

    async def refuse(self, invitation_id: str) -> str:
        """Refuse an offer, or take it back; gives what the server says."""
        return text_of(await self._object("DELETE", "/invitations/delete", {"inv_id": invitation_id}), "msg")

    async def upload(self, name: str, source: Path, path: str, progress: Progress) -> None:
        """Send a file. :raises OSError: it cannot be read. :raises ApiError: it was given up."""
        with source.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            target = await self._request(f"/{_name(name)}/request-upload", {"path": path, "size": size})
            offset, failures = 0, 0
            while offset < size:
                file.seek(offset)
                try:
                    reply = await self._tus("PATCH", target, file.read(self.piece), offset)
                    offset, failures = _offset(reply), 0
                except ApiError as error:
                    await self._pause(error, failures)
                    failures += 1
                    offset = await self._sent(name, path, size, target, offset)
                progress(offset, size)

    async def _sent(self, name: str, path: str, size: int, target: str, offset: int) -> int:
        """Ask how much has arrived; what it was when nobody answers either."""
        try:
            return _offset(await self._tus("HEAD", target))
        except ApiError as error:
            if error.status == OVER:
                # The answer to the last piece may have been lost.
                rows = await self.list_files(name, path)
                if [row.get("size") for row in rows] == [size]:
                    return size
            elif _passing(error):
                return offset
            raise

    async def download(self, name: str, path: str, target: Path, progress: Progress) -> None:
        """Fetch a file, or a directory as a tar archive. :raises OSError: it cannot be written."""
        address = await self._request(f"/{_name(name)}/request-download", {"path": path})
        beside = target.with_name(f".{target.name}.part")
        try:
            with beside.open("wb") as file:
                await self._fetch(address, file, progress)
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)

    async def _fetch(self, address: str, file: Any, progress: Progress) -> None:
        def keep(chunk: bytes) -> None:
            file.write(chunk)
            progress(file.tell(), 0)

        failures = 0
        while True:
            start = file.tell()
            # The server gives the rest only while the file is the one that the address was asked for.
            headers = {b"Range": b"bytes=%d-" % start} if start else {}
            try:
                reply = await self.api.transfer("GET", address, headers, keep=keep)
            except ApiError as error:
                failures = 0 if file.tell() > start else failures
                await self._pause(error, failures)
                failures += 1
            else:
                if reply.status not in {200, 206}:
                    raise_problem(reply)
                if start and reply.status == 200:
                    raise ApiError(200, "file-changed", "The file was changed while it was fetched.")
                return

    async def _pause(self, error: ApiError, failures: int) -> None:
        if not _passing(error) or failures >= len(self.patience):
            raise error
        await deferLater(self.clock, self.patience[failures])

    async def _tus(self, method: str, target: str, body: bytes | None = None, offset: int = 0) -> Reply:
        headers = {b"Tus-Resumable": b"1.0.0"}
        if body is not None:
            headers[b"Upload-Offset"] = b"%d" % offset
            headers[b"Content-Type"] = b"application/offset+octet-stream"
        reply = await self.api.transfer(method, target, headers, body)
        if not 200 <= reply.status < 300:
            raise_problem(reply)
        return reply

    async def _request(self, path: str, body: Mapping[str, Any]) -> str:
        answer = await self._object("POST", path, body)
        return f"{text_of(answer, 'url')}?{urlencode({'token': text_of(answer, 'token')})}"

    async def _object(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        sent = None if body is None else json.dumps(body).encode("utf-8")
        return json_object(await self.api.call(method, f"/folders{path}", SLOW, sent, JSON))


def _name(name: str) -> str:
    return quote(name, safe="")


def _passing(error: ApiError) -> bool:
    """Tell whether the same request may succeed a little later."""
    return error.status in {0, OVER, 429, 502, 503, 504}


def _offset(reply: Reply) -> int:
    offset = reply.headers.get("upload-offset", "")
    if not offset.isdecimal():
        raise ApiError(reply.status, "unreadable-answer", "The answer holds no Upload-Offset.")
    return int(offset)
