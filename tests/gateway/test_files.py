"""Tests of listing and downloading files of a kernel."""

from __future__ import annotations

import email
import io
import json
import stat
import tarfile

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from sorna.errors import AgentTimeout, KernelExecutionFailed
from sorna.gateway.archive import Member
from sorna.gateway.files import relative
from sorna.model.file import FileEntry, FilePiece
from sorna.testing.gateway import EXAMPLE, form
from sorna.testing.unit import UnitTestCase
from tests.gateway.base import TOKEN, Answer, GatewayTestCase

BIG = bytes(range(256)) * 4000


def unpacked(content: bytes) -> tarfile.TarFile:
    """Open an archive in memory."""
    return tarfile.TarFile(fileobj=io.BytesIO(content))


class FileTestCase(GatewayTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.create()
        content_type, body = form(("a.txt", b"hello\n"), ("d/e/big.bin", BIG), ("d/empty", b""))
        path = f"/v2/kernel/{TOKEN}/upload"
        self.assertEqual(self.request("POST", path, body=body, content_type=content_type).status, 204)

    def get(self, below: str, content: object) -> Answer:
        """Ask as clients of version 4 do: GET with a body that is not signed."""
        path = f"/kernel/{TOKEN}/{below}"
        body = json.dumps(content).encode()
        headers = self.signer.headers(b"GET", path.encode(), b"")
        return self.send("GET", path, headers, body)


class ListTests(FileTestCase):
    def test_listing(self) -> None:
        """The list is JSON within JSON, with the keys that every client prints."""
        for path in (".", "/home/work", "/home/work/", "./", ""):
            answer = self.get("files", {"path": path})
            self.assertEqual(answer.status, 200)
            self.assertEqual(
                {key: value for key, value in answer.json.items() if key != "files"},
                {"errors": "", "folder_path": "/home/work", "abspath": "/home/work"},
            )
            first, second = sorted(json.loads(answer.json["files"]), key=lambda row: str(row["filename"]))
            self.assertEqual(
                first,
                {
                    "mode": "-rw-r--r--",
                    "size": 6,
                    "ctime": 1_500_000_001.0,
                    "mtime": 1_500_000_000.5,
                    "atime": 1_500_000_002.0,
                    "filename": "a.txt",
                },
            )
            self.assertEqual((second["filename"], second["mode"]), ("d", "drwxr-xr-x"))
        self.assertEqual(self.request("GET", f"/session/{TOKEN}/files", {}).status, 200)

    def test_queries(self) -> None:
        """Clients that cannot give a body to a GET ask with a query, which is signed."""
        for query, names in (("path=d", {"e", "empty"}), ("path=.&x=%20", {"a.txt", "d"})):
            answer = self.request("GET", f"/kernel/{TOKEN}/files?{query}", version=b"v4.20181215")
            self.assertEqual({row["filename"] for row in json.loads(answer.json["files"])}, names)
        answer = self.request("GET", f"/kernel/{TOKEN}/download?files=a.txt&files=d%2Fempty", version=b"v4.20181215")
        self.assertEqual(answer.body.count(b"Content-Encoding: identity"), 2)
        for query in ("path=%ff", "&".join(f"a{number}=1" for number in range(100)), "path=.."):
            answer = self.request("GET", f"/kernel/{TOKEN}/files?{query}", version=b"v4.20181215")
            self.assert_problem(answer, 400, "invalid-api-params")

    def test_below(self) -> None:
        """A directory below is named in the answer, and a file is listed as itself."""
        answer = self.get("files", {"path": "/home/work/d"})
        self.assertEqual(answer.json["abspath"], "/home/work/d")
        self.assertEqual({row["filename"] for row in json.loads(answer.json["files"])}, {"e", "empty"})
        (row,) = json.loads(self.get("files", {"path": "d/empty"}).json["files"])
        self.assertEqual(row["filename"], "empty")

    def test_refusals(self) -> None:
        """Paths that lead out, are none or have another type are refused."""
        for path in ("..", "d/../..", "/etc", "/home/worker", "a\0b", "x" * 5000, 7, ["."], "nothing"):
            self.assert_problem(self.get("files", {"path": path}), 400, "invalid-api-params")

    def test_relative(self) -> None:
        """What clients write for a path becomes one below the working directory."""
        for asked, path in (
            ("/home/work//a/./b/", "a/b"),
            ("a b", "a b"),
            ("./.x", ".x"),
            ("/home/work/home/work", "home/work"),
        ):
            self.assertEqual(relative(asked), path)


class ArchiveTests(UnitTestCase):
    @given(
        st.text(st.characters(exclude_characters="\0/"), min_size=1, max_size=300),
        st.integers(0, 1 << 40),
        st.booleans(),
    )
    def test_lengths_that_are_promised(self, name: str, size: int, is_file: bool) -> None:
        """The length of a header is known before it is built, however long the name is and in whatever script."""
        entry = FileEntry(name, (stat.S_IFREG if is_file else stat.S_IFDIR) | 0o644, size, 1.5, 1.5, 1.5)
        member = Member(name, "x" if is_file else "", entry)
        content = size + -size % 512 if is_file else 0
        self.assertEqual(member.length, len(member.header()) + content)


class DownloadTests(FileTestCase):
    def archives(self, answer: Answer) -> list[tarfile.TarFile]:
        """Take a multipart answer apart."""
        self.assertEqual(answer.status, 200, answer)
        self.assertEqual(answer.headers["content-length"], str(len(answer.body)))
        head = b"Content-Type: " + answer.headers["content-type"].encode() + b"\r\n\r\n"
        found = []
        for part in email.message_from_bytes(head + answer.body).walk():
            if not part.is_multipart():
                self.assertEqual((part.get_content_type(), part["Content-Encoding"]), ("application/x-tar", "identity"))
        boundary = answer.headers["content-type"].partition('"')[2].strip('"').encode()
        for raw in answer.body.split(b"--" + boundary)[1:-1]:
            fields, _, content = raw.partition(b"\r\n\r\n")
            length = int(fields.rpartition(b"Content-Length: ")[2])
            self.assertEqual(len(content), length + 2)
            found.append(unpacked(content[:length]))
        return found

    def content(self, archive: tarfile.TarFile, name: str) -> bytes:
        file = archive.extractfile(name)
        assert file is not None
        return file.read()

    def test_several(self) -> None:
        """Each path is one archive, a directory with all that is in it, in the order of the request."""
        first, second = self.archives(self.get("download", {"files": ["/home/work/d", "a.txt"]}))
        self.assertEqual(second.getnames(), ["a.txt"])
        self.assertEqual(self.content(second, "a.txt"), b"hello\n")
        self.assertEqual(second.getmember("a.txt").mtime, 1_500_000_000)
        self.assertEqual(sorted(first.getnames()), ["d/e", "d/e/big.bin", "d/empty"])
        self.assertEqual(self.content(first, "d/e/big.bin"), BIG)

    def test_single(self) -> None:
        """One path alone is an archive without anything around it; the working directory is called work."""
        answer = self.get("download_single", {"file": "d/e/big.bin"})
        self.assertEqual(answer.headers["content-type"], "application/x-tar")
        self.assertEqual(answer.headers["content-length"], str(len(answer.body)))
        self.assertEqual(self.content(unpacked(answer.body), "big.bin"), BIG)
        whole = self.get("download_single", {"file": "."})
        self.assertIn("work/d/empty", unpacked(whole.body).getnames())

    def test_long_and_foreign_names(self) -> None:
        """Names of any length and script survive."""
        name = "ключ/" + "x" * 150 + ".txt"
        kernel = next(iter(self.kernels.live.values()))
        kernel.files[name] = b"1"
        (archive,) = self.archives(self.get("download", {"files": [name]}))
        self.assertEqual(archive.getnames(), ["x" * 150 + ".txt"])
        (archive,) = self.archives(self.get("download", {"files": ["ключ"]}))
        self.assertEqual(archive.getnames(), [name])

    def test_many_small_files(self) -> None:
        """However many there are, others get their turn in between."""
        kernel = next(iter(self.kernels.live.values()))
        kernel.files.update({f"many/{number}": b"" for number in range(300)})
        path = f"/kernel/{TOKEN}/download_single?file=many"
        headers = evolve(self.signer, version=b"v4.20181215").headers(b"GET", path.encode(), b"")
        sending = self.treq.request(
            "GET", "http://127.0.0.1:8081" + path, headers={name: [value] for name, value in headers.items()}
        )
        self.treq.flush()
        reading = self.successResultOf(sending).content()
        self.assertNoResult(reading)
        self.clock.advance(0)
        self.treq.flush()
        self.assertEqual(len(unpacked(self.successResultOf(reading)).getnames()), 300)

    def test_refusals(self) -> None:
        """No files, too many, paths that lead out and files that are not there are refused before anything is sent."""
        for files in ([], ["a.txt"] * 6, ["../x"], ["a.txt", "nothing"], "a.txt", [1], None):
            self.assert_problem(self.get("download", {"files": files}), 400, "invalid-api-params")
        self.assert_problem(self.get("download_single", {}), 400, "invalid-api-params")

    def test_a_kernel_that_fails_before(self) -> None:
        """An agent that does not answer is an error like everywhere."""
        error = KernelExecutionFailed()
        error.__cause__ = AgentTimeout("silent")
        self.kernels.errors["list_files"] = error
        self.assert_problem(self.get("download", {"files": ["a.txt"]}), 500, "kernel-execution-failed")

    def test_a_download_counts_once(self) -> None:
        """However many pieces it takes, a download is one query for each path."""
        self.archives(self.get("download", {"files": ["d/e/big.bin"]}))
        kernel = next(iter(self.kernels.live.values()))
        self.assertEqual(kernel.num_queries, 2)  # with the upload

    def test_a_file_that_shrinks(self) -> None:
        """What cannot be sent to its promised end ends with the connection, so that nobody takes it for whole."""
        kernels = self.kernels

        async def shrinking(*_arguments: object) -> FilePiece:
            return FilePiece(3, b"123")

        self.patch(kernels, "read_file", shrinking)
        path = f"/kernel/{TOKEN}/download"
        headers = self.signer.headers(b"GET", path.encode(), b"")
        sending = self.treq.request(
            "GET",
            "http://127.0.0.1:8081" + path,
            headers={name: [value] for name, value in headers.items()},
            data=b'{"files": ["a.txt"]}',
        )
        self.treq.flush()
        response = self.successResultOf(sending)
        reading = response.content()
        self.treq.flush()
        self.failureResultOf(reading)
        (logged,) = self.flushLoggedErrors()
        self.assertEqual(logged.type.__name__, "FileChanged")
        self.assertEqual(EXAMPLE.access_key, next(iter(kernels.live.values())).request.access_key)
