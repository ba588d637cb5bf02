"""Uploads, listings and pieces of files of one kernel, on a tier without processes and a clock."""

from __future__ import annotations

import json
from typing import Any

from sorna.agent import kernel_files as module
from sorna.agent.runners import frames
from sorna.beneath.reading import MAX_ENTRIES, MAX_PIECE
from sorna.errors import AgentFailed, AgentRefused, AgentTimeout
from sorna.model.file import FileEntry, FilePiece
from tests.agent.fakes import KernelTestCase


class UploadTests(KernelTestCase):
    """What is written."""

    def test_upload(self) -> None:
        """A file goes as one frame, and is there when init says so."""
        init = self.create()
        content = bytes(range(256)) * 5000
        uploaded = self.start(self.kernels.upload(self.kernel_id, "a/b.bin", content))
        self.assertNoResult(uploaded)
        (payload,) = [payload for kind, payload in init.received if kind == frames.UPLOAD]
        header, _, received = payload.partition(b"\0")
        self.assertEqual(json.loads(header), {"request": 1, "path": "a/b.bin", "append": False})
        self.assertEqual(received, content)
        init.say(frames.REPLY, {"request": 1, "error": None, "result": None})
        self.flow()
        self.successResultOf(uploaded)

    def test_uploads_wait_for_each_other(self) -> None:
        """One file at a time is on the channel; an error belongs to its own file."""
        init = self.create()
        first = self.start(self.kernels.upload(self.kernel_id, "../x", b"1"))
        second = self.start(self.kernels.upload(self.kernel_id, "y", b"2"))
        self.assertEqual(len([1 for kind, _ in init.received if kind == frames.UPLOAD]), 1)
        init.say(frames.REPLY, {"request": 1, "error": {"kind": "refused", "detail": "climbs out"}, "result": None})
        self.flow()
        self.assertEqual(self.failureResultOf(first, AgentRefused).value.detail, "climbs out")
        init.say(frames.REPLY, {"request": 2, "error": {"kind": "failed", "detail": "disk"}, "result": None})
        self.flow()
        self.agent_failed(second)

    def test_upload_bounds(self) -> None:
        """Too large a file, an empty name and too long a name are refused at once."""
        self.create()
        for path, content in (("x", b"x" * (module.MAX_UPLOAD + 1)), ("", b""), ("x" * 5000, b"")):
            self.failureResultOf(self.start(self.kernels.upload(self.kernel_id, path, content)), AgentRefused)

    def test_upload_without_an_answer(self) -> None:
        """A kernel that does not answer is not waited for without end."""
        self.create()
        uploaded = self.start(self.kernels.upload(self.kernel_id, "x", b""))
        self.advance(module.UPLOAD_DEADLINE)
        self.failureResultOf(uploaded, AgentTimeout)


class ReadTests(KernelTestCase):
    """What is listed and read."""

    def test_listing(self) -> None:
        """A listing is one frame and one answer."""
        init = self.create()
        listed = self.start(self.kernels.list_files(self.kernel_id, "a", recursive=True))
        self.assertEqual(init.sent(frames.LIST), [{"request": 1, "path": "a", "recursive": True}])
        init.say(frames.REPLY, {"request": 1, "error": None, "result": [["b", 0o100644, 3, 1.5, 2, 3]]})
        self.flow()
        self.assertEqual(self.successResultOf(listed), [FileEntry("b", 0o100644, 3, 1.5, 2.0, 3.0)])

    def test_listings_that_are_none(self) -> None:
        """Whatever a broken init answers is an error, not a crash."""
        init = self.create()
        row = ["", 1, 1, 1, 1, 1]
        answers: list[Any] = [None, {}, [[]], [["b", "x", 3, 1.5, 2, 3]], [[*row, 1]], [row] * (MAX_ENTRIES + 1)]
        for number, result in enumerate(answers, 1):
            listed = self.start(self.kernels.list_files(self.kernel_id, ".", recursive=False))
            init.say(frames.REPLY, {"request": number, "error": None, "result": result})
            self.flow()
            self.failureResultOf(listed, AgentFailed)

    def test_piece(self) -> None:
        """A piece comes raw behind a header, and never more is asked for than one may have."""
        init = self.create()
        read = self.start(self.kernels.read_file(self.kernel_id, "a", 1 << 70, 1 << 30))
        self.assertEqual(
            init.sent(frames.READ), [{"request": 1, "path": "a", "offset": module.MAX_OFFSET, "size": MAX_PIECE}]
        )
        init.say(frames.CONTENT, json.dumps({"request": 1, "size": 9}).encode() + b"\0\0\0ab")
        self.flow()
        self.assertEqual(self.successResultOf(read), FilePiece(9, b"\0\0ab"))

    def test_one_piece_at_a_time(self) -> None:
        """However many ask, one piece is on its way; a refusal is its own question's."""
        init = self.create()
        first = self.start(self.kernels.read_file(self.kernel_id, "a", 0, 1))
        second = self.start(self.kernels.read_file(self.kernel_id, "b", 0, 1))
        self.assertEqual(len(init.sent(frames.READ)), 1)
        init.say(frames.REPLY, {"request": 1, "error": {"kind": "refused", "detail": "none"}, "result": None})
        self.flow()
        self.assertEqual(self.failureResultOf(first, AgentRefused).value.detail, "none")
        init.say(frames.CONTENT, b'{"request": 2, "size": 1}\0x')
        self.flow()
        self.assertEqual(self.successResultOf(second).content, b"x")

    def test_pieces_that_are_none(self) -> None:
        """More than was asked for, a size that is none and another answer are errors."""
        init = self.create()
        sizes: list[Any] = [9, "9", True, None]
        for number, size in enumerate(sizes, 1):
            read = self.start(self.kernels.read_file(self.kernel_id, "a", 0, 1))
            init.say(frames.CONTENT, json.dumps({"request": number, "size": size}).encode() + b"\0xx")
            self.flow()
            self.failureResultOf(read, AgentFailed)

    def test_bounds(self) -> None:
        """An empty path and too long a one are refused at once, and silence is not waited for without end."""
        self.create()
        for path in ("", "x" * 5000):
            self.failureResultOf(
                self.start(self.kernels.list_files(self.kernel_id, path, recursive=False)), AgentRefused
            )
            self.failureResultOf(self.start(self.kernels.read_file(self.kernel_id, path, 0, 1)), AgentRefused)
        read = self.start(self.kernels.read_file(self.kernel_id, "x", 0, 1))
        self.advance(module.READ_DEADLINE)
        self.failureResultOf(read, AgentTimeout)
