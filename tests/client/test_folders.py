"""Large files between client and server: pieces, broken connections, and what is left of an attempt that failed."""

from __future__ import annotations

import tempfile
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from sorna.client.folders import FolderClient
from sorna.client.wire import ApiError, Reply
from sorna.testing.unit import UnitTestCase

URL = "http://server/folders/_/x"
LOST = ApiError(0, "unreachable", "lost")


class Server:
    """Stands for the API client: gives prepared answers to transfers, and notes what was asked."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[Any, ...]] = []

    async def call(self, method: str, path: str, *_rest: Any) -> Reply:
        self.asked.append((method, path))
        if path.endswith("/files"):
            return Reply(200, b'{"files": "[{\\"size\\": 10, \\"filename\\": \\"x\\"}]"}')
        return Reply(200, b'{"url": "http://server/folders/_/x", "token": "t"}')

    async def transfer(
        self, method: str, url: str, headers: Mapping[bytes, bytes], body: bytes | None = None, keep: Any = None
    ) -> Reply:
        interesting = headers.get(b"Upload-Offset") or headers.get(b"Range")
        self.asked.append((method, interesting, body))
        answer = self.answers.pop(0)
        if isinstance(answer, tuple):
            chunk, answer = answer
            keep(chunk)
        if isinstance(answer, Exception):
            raise answer
        return Reply(answer, b'{"title": "no"}') if answer >= 400 else answer_at(answer)


def answer_at(number: int) -> Reply:
    """Give a good answer: 200 and 206 are themselves, any smaller number is an offset."""
    return Reply(number, b"") if number in {200, 206} else Reply(204, b"", {"upload-offset": str(number)})


class TransferTests(UnitTestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.folder = Path(directory.name)
        self.clock = Clock()
        self.progress: list[tuple[int, int]] = []

    def note(self, done: int, size: int) -> None:
        self.progress.append((done, size))

    def client(self, server: Any) -> FolderClient:
        return FolderClient(server, self.clock, (1.0, 2.0), piece=4)

    def start(self, work: Coroutine[Any, Any, None]) -> Deferred[None]:
        return Deferred.fromCoroutine(work)

    def upload(self, server: Server, content: bytes = b"0123456789") -> Deferred[None]:
        source = self.folder / "source"
        source.write_bytes(content)
        return self.start(self.client(server).upload("data", source, "d/x", self.note))

    def test_pieces(self) -> None:
        """A file goes in pieces, one after another; an empty one needs none."""
        server = Server(4, 8, 10)
        self.successResultOf(self.upload(server))
        self.assertEqual(server.asked[0], ("POST", "/folders/data/request-upload"))
        sent = [("PATCH", b"0", b"0123"), ("PATCH", b"4", b"4567"), ("PATCH", b"8", b"89")]
        self.assertEqual(server.asked[1:], sent)
        self.assertEqual(self.progress, [(4, 10), (8, 10), (10, 10)])
        self.successResultOf(self.upload(Server(), b""))

    def test_a_broken_upload(self) -> None:
        """After a break the server is asked how much it has, and the upload goes on there."""
        server = Server(4, LOST, 6, 10)
        uploading = self.upload(server)
        self.assertNoResult(uploading)
        self.clock.advance(1)
        self.successResultOf(uploading)
        self.assertEqual(server.asked[3:], [("HEAD", None, None), ("PATCH", b"6", b"6789")])

    def test_a_lost_last_answer(self) -> None:
        """When the upload is over although its end was not told, the file is looked at; another size is no success."""
        server = Server(4, 8, LOST, 409)
        uploading = self.upload(server)
        self.clock.advance(1)
        self.successResultOf(uploading)
        self.assertEqual(server.asked[-1], ("GET", "/folders/data/files"))
        other = self.upload(Server(LOST, 409), b"01234567")
        self.clock.advance(1)
        self.assertEqual(self.failureResultOf(other, ApiError).value.status, 409)

    def test_a_server_that_is_away(self) -> None:
        """An upload is given up when the server stays away, and at once when it refuses."""
        uploading = self.upload(Server(LOST, LOST, LOST, LOST, LOST))
        self.clock.pump([1, 2])
        self.assertEqual(self.failureResultOf(uploading, ApiError).value.type, "unreachable")
        self.failureResultOf(self.upload(Server(412)), ApiError)
        refused = self.upload(Server(LOST, 401))
        self.clock.advance(1)
        self.failureResultOf(refused, ApiError)

    def fetch(self, server: Server) -> Deferred[None]:
        return self.start(self.client(server).download("data", "d/x", self.folder / "x", self.note))

    def test_download(self) -> None:
        """A file is in its place when it is whole."""
        self.successResultOf(self.fetch(Server((b"content", 200))))
        self.assertEqual([path.name for path in self.folder.iterdir()], ["x"])
        self.assertEqual((self.folder / "x").read_bytes(), b"content")

    def test_a_broken_download(self) -> None:
        """After a break only the rest is fetched."""
        server = Server((b"cont", LOST), LOST, (b"ent", 206))
        fetching = self.fetch(server)
        self.clock.pump([1, 2])
        self.successResultOf(fetching)
        self.assertEqual((self.folder / "x").read_bytes(), b"content")
        ranges = [asked[1] for asked in server.asked[1:]]
        self.assertEqual(ranges, [None, b"bytes=4-", b"bytes=4-"])

    def test_a_file_that_changed(self) -> None:
        """The rest of another file is not added, and nothing half is left."""
        fetching = self.fetch(Server((b"cont", LOST), 200))
        self.clock.advance(1)
        self.assertEqual(self.failureResultOf(fetching, ApiError).value.type, "file-changed")
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_a_refused_download(self) -> None:
        """What the server refuses leaves nothing."""
        self.failureResultOf(self.fetch(Server(404)), ApiError)
        self.assertEqual(list(self.folder.iterdir()), [])
