"""Tests of bodies that are stored while they arrive."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any
from urllib.parse import urlencode

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.web.http_headers import Headers

from sorna.errors import (
    AuthenticationFailed,
    InvalidRequest,
    QuotaExceeded,
    SornaError,
    Unavailable,
    UploadConflict,
)
from sorna.gateway.receiving import BLOCK, PATH, PIECE_TYPE, Receiver, Receivers
from sorna.model.folder import FolderBounds
from sorna.testing.folders import memory_folders
from sorna.testing.gateway import EXAMPLE, MemoryOperations
from sorna.testing.unit import UnitTestCase

KEY = EXAMPLE.access_key
SIZE = 3 * BLOCK + 5


class Connection:
    """Where a body comes from: notes what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.refusals: list[SornaError] = []

    def pause(self) -> None:
        self.asked.append("pause")

    def resume(self) -> None:
        self.asked.append("resume")

    def refuse(self, error: SornaError) -> None:
        self.refusals.append(error)


class ReceivingTests(UnitTestCase):
    def setUp(self) -> None:
        bounds = FolderBounds(10, 8 * BLOCK)
        self.folders, self.transfers = memory_folders(self, Clock(), EXAMPLE, bounds=bounds)
        self.do(self.folders.create(KEY, "data"))
        self.source = Connection()
        self.slow: Deferred[None] | None = None
        self.receivers = Receivers(self.transfers, MemoryOperations())

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(work))

    def token(self, size: int = SIZE) -> str:
        token: str = self.do(self.transfers.request_upload(KEY, "data", "big", size))
        return token

    def receiver(self, token: str, offset: bytes = b"0", **changes: Any) -> Receiver | None:
        headers = {b"Content-Type": PIECE_TYPE, b"Tus-Resumable": b"1.0.0", b"Upload-Offset": offset}
        sent = Headers({name: [value] for name, value in {**headers, **changes.get("headers", {})}.items() if value})
        target = changes.get("path", b"/v4" + PATH) + b"?" + urlencode({"token": token}).encode()
        return self.receivers.receive(changes.get("method", b"PATCH"), target, sent, self.source)

    def started(self, token: str, offset: bytes = b"0") -> Receiver:
        receiver = self.receiver(token, offset)
        assert receiver is not None
        return receiver

    def offset(self, token: str) -> int:
        offset: int = self.do(self.do(self.transfers.upload(token)).offset())
        return offset

    def hold(self) -> Deferred[None]:
        """Let storage wait until the test goes on."""
        storage: Any = self.folders.storage
        waiting: Deferred[None] = Deferred()
        original = storage._in_thread

        def in_thread(function: Any, *arguments: Any) -> Deferred[Any]:
            return waiting.addCallback(lambda _: None) and _after(waiting, lambda: original(function, *arguments))

        storage._in_thread = in_thread
        return waiting

    def test_other_requests(self) -> None:
        """Any other request is read whole, as ever."""
        token = self.token()
        for changes in (
            {"method": b"POST"},
            {"path": b"/v4/folders/vf1/upload"},
            {"headers": {b"Content-Type": b"text/plain"}},
            {"headers": {b"Tus-Resumable": b""}},
        ):
            self.assertIsNone(self.receiver(token, **changes))

    def test_a_whole_file(self) -> None:
        """What arrives in small pieces is stored in blocks, and the file is in its place when the body ends."""
        token = self.token()
        receiver = self.started(token)
        for _piece in range(SIZE // 1000):
            receiver.take(b"x" * 1000)
        self.assertEqual(self.offset(token) % 1000, 0)
        self.assertGreaterEqual(self.offset(token), 2 * BLOCK)
        receiver.take(b"y" * (SIZE % 1000))
        self.successResultOf(receiver.finish())
        self.assertEqual(receiver.offset, SIZE)
        folder = self.do(self.folders.open(KEY, "data"))
        self.assertEqual(self.do(folder.read_file("big", SIZE - 2, 10)).content, b"yy")

    def test_a_broken_connection(self) -> None:
        """What a connection brought before it broke is kept, and the next one goes on there."""
        token = self.token()
        receiver = self.started(token)
        receiver.take(b"x" * (BLOCK + 7))
        receiver.take(b"y" * 3)
        receiver.abandon()
        self.assertEqual(self.offset(token), BLOCK + 10)
        rest = self.started(token, b"%d" % (BLOCK + 10))
        rest.take(b"z" * (SIZE - BLOCK - 10))
        self.successResultOf(rest.finish())
        self.assertEqual(self.source.refusals, [])

    def test_a_slow_storage(self) -> None:
        """A connection is not read while more than a block waits, and read on when that is stored."""
        receiver = self.started(self.token())
        waiting = self.hold()
        receiver.take(b"x" * BLOCK)
        receiver.take(b"x" * BLOCK)
        receiver.take(b"x" * 100)
        self.assertEqual(self.source.asked, ["pause"])
        finished = receiver.finish()
        self.assertNoResult(finished)
        waiting.callback(None)
        self.assertEqual(self.source.asked, ["pause", "resume"])

    def test_refusals(self) -> None:
        """A body that must not be stored is refused while it arrives, whatever else would come."""
        token = self.token()
        other = self.token()  # takes the place of the first
        for wrong, offset, size, error in (
            (token, b"0", 5, UploadConflict),
            (other, b"7", 5, UploadConflict),
            (other, b"x", 5, InvalidRequest),
            (other, b"0", SIZE + 1, InvalidRequest),
            ("x.y", b"0", 5, AuthenticationFailed),
            ("", b"0", 5, AuthenticationFailed),
        ):
            receiver = self.started(wrong, offset)
            receiver.take(b"x" * size)
            finished = receiver.finish()
            receiver.take(b"more")
            self.assertNoResult(finished)
            self.assertIsInstance(self.source.refusals.pop(), error)
        self.assertEqual(self.offset(other), 0)

    def test_unforeseen_failures(self) -> None:
        """A fault of the storage is told as such, and logged."""
        receiver = self.started(self.token())
        storage: Any = self.folders.storage
        storage._in_thread = lambda *_arguments: 1 / 0
        receiver.take(b"x" * BLOCK)
        self.assertIsInstance(self.source.refusals.pop(), Unavailable)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_a_full_folder(self) -> None:
        """A file for which there is no room any more when it is whole is refused, and what arrived is kept."""
        token = self.token()
        folder = self.do(self.folders.open(KEY, "data"))
        storage: Any = self.folders.storage
        (storage._root / folder.id.hex / "content" / "kernel").write_bytes(bytes(8 * BLOCK))
        receiver = self.started(token)
        receiver.take(b"x" * SIZE)
        self.assertIsInstance(self.source.refusals.pop(), QuotaExceeded)
        self.assertEqual(self.offset(token), SIZE)


def _after(waiting: Deferred[None], work: Any) -> Deferred[Any]:
    outcome: Deferred[Any] = Deferred()
    waiting.addCallback(lambda _result: work().chainDeferred(outcome))
    return outcome
