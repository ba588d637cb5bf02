"""Files written by init below a directory that user code owns."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from sorna.agent.runners import frames
from sorna.agent.runners.upload import write_upload
from sorna.beneath.paths import PathRefused, components
from sorna.testing.unit import UnitTestCase
from tests.agent.runners.driver import KernelTestCase


class UploadTests(UnitTestCase):
    def setUp(self) -> None:
        self.outside = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.outside)
        self.work = self.outside / "work"
        self.work.mkdir()
        self.root = os.open(self.work, os.O_RDONLY | os.O_DIRECTORY)
        self.addCleanup(os.close, self.root)

    def write(self, path: str, content: bytes = b"new", append: bool = False) -> None:
        write_upload(self.root, path, content, append)

    def refused(self, path: str, append: bool = False) -> str:
        before = sorted(str(entry) for entry in self.outside.rglob("*"))
        with self.assertRaises(PathRefused) as caught:
            self.write(path, append=append)
        self.assertEqual(sorted(str(entry) for entry in self.outside.rglob("*")), before)
        return str(caught.exception)

    def test_writes_files(self) -> None:
        """Files appear with the directories they need, and are replaced whole."""
        for path in ("a.txt", "sub/deeper/b.txt", "./c.txt", "한/ü.txt", ".hidden"):
            self.write(path, b"one")
            self.write(path, b"two")
            self.assertEqual((self.work / path).read_bytes(), b"two")
        self.assertEqual(list(self.work.rglob(".upload-*")), [])

    def test_appends(self) -> None:
        """A later piece is added to what is there."""
        self.write("a", b"one", append=True)
        self.write("a", b"two", append=True)
        self.assertEqual((self.work / "a").read_bytes(), b"onetwo")

    def test_bad_paths(self) -> None:
        """Paths that are not plainly below the directory are refused, and nothing changes."""
        for path in (
            "",
            "/etc/x",
            "../x",
            "a/../../x",
            "a//b",
            "a/",
            "/",
            "a\0b",
            ".",
            "..",
            "x/" * 70 + "x",
            "n" * 300,
        ):
            self.refused(path)

    def test_planted_links(self) -> None:
        """A link in the way is refused, a link in place of the file is replaced; nothing outside changes."""
        target = self.outside / "target"
        target.write_bytes(b"old")
        (self.work / "out").symlink_to(self.outside)
        (self.work / "inside").mkdir()
        (self.work / "alias").symlink_to("inside")
        for path in ("out/target", "out/new", "alias/x", "out/work/x", "inside/../out/x"):
            for append in (False, True):
                self.refused(path, append)
        self.assertIn("symbolic link", self.refused("out/target"))
        for append in (False, True):
            (self.work / "link").unlink(missing_ok=True)
            (self.work / "link").symlink_to(target)
            self.write("link", b"mine", append=append)
            self.assertFalse((self.work / "link").is_symlink())
            self.assertEqual((self.work / "link").read_bytes(), b"mine")
        self.assertEqual(target.read_bytes(), b"old")

    def test_things_that_are_no_files(self) -> None:
        """Directories, pipes and files in place of directories are refused without waiting for anybody."""
        (self.work / "directory").mkdir()
        os.mkfifo(self.work / "pipe")
        self.write("file")
        for path in ("directory", "pipe", "file/x"):
            for append in (False, True):
                self.refused(path, append)

    @settings(max_examples=150, deadline=None)
    @given(st.text(st.sampled_from("a./\0 é\ud800"), max_size=12))
    def test_any_path(self, path: str) -> None:
        """Whatever the path, the components are plain names or it is refused."""
        try:
            parts = components(path)
        except PathRefused:
            return
        self.assertTrue(parts)
        for part in parts:
            self.assertNotIn(part, {"", ".", ".."})
            self.assertNotIn("/", part)
            self.assertNotIn("\0", part)


class UploadFrameTests(KernelTestCase):
    def test_through_the_channel(self) -> None:
        """Uploads are answered one by one, with the reason of a refusal, also during a run."""
        kernel = self.kernel()
        kernel.begin("import time; time.sleep(.2)")

        def upload(path: str, content: bytes) -> object:
            header = json.dumps({"request": 3, "path": path, "append": False}).encode()
            kernel.send_raw(frames.UPLOAD, header + b"\0" + content)
            return kernel.wait(frames.REPLY)["error"]

        self.assertIsNone(upload("d/data.bin", bytes(range(256)) * 20_000))
        self.assertEqual(upload("../x", b""), {"kind": "refused", "detail": "The path climbs out of its directory."})
        kernel.wait(frames.FINISHED)
        kernel.run("import os; os.path.getsize('d/data.bin')")
        self.assertEqual(kernel.stream("stdout"), "5120000\n")

    def test_file_larger_than_allowed(self) -> None:
        """A file over the limit of the kernel is refused with a clear sentence, and no part of it stays."""
        kernel = self.kernel(file_size=100_000)
        for append in (False, True):
            Path(kernel.work, "grown").write_bytes(b"x" * 50_000)
            header = json.dumps({"request": 1, "path": "grown", "append": append}).encode()
            kernel.send_raw(frames.UPLOAD, header + b"\0" + b"y" * 200_000)
            error = kernel.wait(frames.REPLY)["error"]
            self.assertEqual(error["kind"], "refused")
            self.assertIn("larger than may be written", error["detail"])
            self.assertEqual([entry.name for entry in Path(kernel.work).iterdir()], ["grown"])
            self.assertEqual(Path(kernel.work, "grown").read_bytes(), b"x" * 50_000)
