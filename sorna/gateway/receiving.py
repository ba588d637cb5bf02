"""Stores the body of an upload while it still arrives, so that a file of any size takes little memory; knows no routes.

A piece of a resumable upload may be a whole file of many gigabytes. Its token is looked at when the head of the request is
there; then what arrives is written away in blocks, and the connection is read no faster than that. When the body is complete the
route is asked as usual and finds it stored. What a broken connection has brought is kept: the client asks how much that is.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Protocol
from urllib.parse import parse_qs

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.web.http_headers import Headers

from sorna.errors import AuthenticationFailed, InvalidRequest, SornaError, Unavailable
from sorna.gateway.interfaces import Operations
from sorna.manager.transfers import OpenUpload, Transfers

PIECE_TYPE = b"application/offset+octet-stream"
PATH = b"/folders/_/upload"
BLOCK = 1024 * 1024


class Source(Protocol):
    """Where a body comes from."""

    def pause(self) -> None:
        """Read no more for now."""
        ...

    def resume(self) -> None:
        """Go on reading."""
        ...

    def refuse(self, error: SornaError) -> None:
        """Answer for the last time, and read nothing more of this body."""
        ...


@frozen
class Receivers:
    """Makes a :class:`Receiver` for a request whose body is to be stored while it arrives."""

    transfers: Transfers
    operations: Operations

    def receive(self, method: bytes, target: bytes, headers: Headers, source: Source) -> Receiver | None:
        """Look at the head of a request; None when its body is one that is read whole."""
        path, _, query = target.partition(b"?")
        content_type = (headers.getRawHeaders(b"Content-Type") or (b"",))[-1]
        if method != b"PATCH" or not path.rstrip(b"/").endswith(PATH):
            return None
        if content_type.partition(b";")[0].strip().lower() != PIECE_TYPE or not headers.hasHeader(b"Tus-Resumable"):
            return None
        offset = (headers.getRawHeaders(b"Upload-Offset") or (b"",))[-1]
        return Receiver(source, self.operations.detach, self._open(query), offset)

    async def _open(self, query: bytes) -> OpenUpload:
        try:
            tokens = parse_qs(query.decode("ascii"), errors="strict", max_num_fields=4).get("token")
        except ValueError:
            tokens = None
        if not tokens:
            raise AuthenticationFailed("The token is missing")
        return await self.transfers.upload(tokens[0])


class Receiver:
    """One body on its way into a folder.

    :ivar offset: of the upload after what has been stored.
    """

    _log = Logger()

    def __init__(
        self,
        source: Source,
        detach: Callable[[Coroutine[Any, Any, None]], Deferred[None]],
        opening: Coroutine[Any, Any, OpenUpload],
        offset: bytes,
    ) -> None:
        self._source = source
        self._detach = detach
        self._opening = opening
        self._upload: OpenUpload | None = None
        self._buffer = bytearray()
        self._writing = False
        self._paused = False
        self._failed = False
        self._abandoned = False
        self._begun = False
        self._finished: Deferred[None] | None = None
        self._number = offset
        self.offset = 0

    def take(self, chunk: bytes) -> None:
        """Take a piece of the body."""
        if self._failed:
            return
        self._buffer += chunk
        if len(self._buffer) >= BLOCK:
            self._write()
            if len(self._buffer) >= BLOCK and not self._paused:
                self._paused = True
                self._source.pause()

    def finish(self) -> Deferred[None]:
        """Store the rest; fires when all is stored, and never when the request was refused."""
        finished = self._finished = Deferred()
        self._write()
        return finished

    def abandon(self) -> None:
        """Keep what has arrived: nothing more will, and nobody waits for an answer."""
        self._abandoned = True
        self._write()

    def _write(self) -> None:
        if not self._writing and not self._failed:
            self._writing = True
            self._detach(self._store()).addErrback(self._broken)

    async def _store(self) -> None:
        if self._upload is None:
            if not self._number.isdigit() or len(self._number) > 19:
                self._opening.close()
                raise InvalidRequest("Upload-Offset must be a number of bytes")
            self._upload = await self._opening
            self.offset = int(self._number)
        block, self._buffer = bytes(self._buffer), bytearray()
        if self._paused and not self._abandoned:
            self._paused = False
            self._source.resume()
        if block or not self._begun:
            # With the last byte the file goes to its place, and nothing can be added to it any more.
            self._begun = True
            self.offset = await self._upload.append(self.offset, block)
        self._writing = False
        ending = self._abandoned or self._finished is not None
        if len(self._buffer) >= BLOCK or (ending and self._buffer):
            self._write()
        elif self._finished is not None:
            finished, self._finished = self._finished, None
            finished.callback(None)

    def _broken(self, failure: Any) -> None:
        self._failed = True
        self._buffer.clear()
        error = failure.value
        if not isinstance(error, SornaError):
            self._log.failure("an upload could not be stored", failure)
            error = Unavailable("The upload could not be stored.")
        if not self._abandoned:
            self._source.refuse(error)
