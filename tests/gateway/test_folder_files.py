"""Tests of what is done with the files in folders, small ones whole and large ones in pieces."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zlib
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from attrs import evolve

from sorna.gateway.folder_files import disposition
from sorna.gateway.transfers import DOWNLOAD, UPLOAD
from sorna.testing.folders import BOUNDS
from sorna.testing.gateway import EXAMPLE, form
from tests.gateway.base import OTHER, Answer
from tests.gateway.test_folders import FolderTestCase

BIG = bytes(range(256)) * 2500
PIECE_TYPE = b"application/offset+octet-stream"
WRONG_PATHS = ("/etc/passwd", "..", "a/../../b", "", ".", "./", "a\0b", "x" * 5000)


class FolderFileTestCase(FolderTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.folder_id = self.make()

    @property
    def content(self) -> Path:
        """Where the folder's content lies, as a kernel would change it."""
        storage: Any = self.folders.storage
        return Path(storage._root) / self.folder_id / "content"

    def put(self, *files: tuple[str, bytes], **signing: Any) -> Answer:
        content_type, body = form(*files)
        return self.request("POST", "/v2/folders/vf1/upload", body=body, content_type=content_type, **signing)

    def get(self, below: str, content: object, **signing: Any) -> Answer:
        return self.request("GET", f"/v2/folders/vf1/{below}", content, **signing)


class SmallFileTests(FolderFileTestCase):
    def test_round_trip(self) -> None:
        """What was uploaded is listed and comes back, each file as one part that says how it is packed."""
        self.assertEqual(self.put(("a.txt", b"hello\n"), ("d/big.bin", BIG)).status, 201)
        listed = self.get("files", {"path": "."}).json
        self.assertEqual(
            {row["filename"]: row["mode"] for row in json.loads(listed["files"])},
            {"a.txt": "-rw-r--r--", "d": "drwxr-xr-x"},
        )
        (row,) = json.loads(self.get("files", {"path": "d"}).json["files"])
        self.assertEqual((row["filename"], row["size"]), ("big.bin", len(BIG)))
        answer = self.get("download", {"files": ["a.txt", "d/big.bin"]})
        self.assertEqual(answer.headers["x-total-payloads-length"], str(6 + len(BIG)))
        boundary = answer.headers["content-type"].partition('"')[2].strip('"').encode()
        parts = answer.body.split(b"--" + boundary)
        self.assertEqual((parts[0], parts[-1], len(parts)), (b"", b"--\r\n", 4))
        for part, name, content in zip(parts[1:3], (b"a.txt", b"big.bin"), (b"hello\n", BIG), strict=True):
            head, _, packed = part.partition(b"\r\n\r\n")
            self.assertIn(b'Content-Disposition: attachment; filename="' + name + b'"', head)
            self.assertIn(b"Content-Encoding: gzip", head)
            self.assertEqual(zlib.decompress(packed[:-2], wbits=16 + zlib.MAX_WBITS), content)

    def test_moving(self) -> None:
        """A file moves into a directory, and to the top of the folder."""
        self.put(("a", b"1"), ("d/b", b"2"))
        for source, target in (("a", "d"), ("d/b", ".")):
            answer = self.request("POST", "/v2/folders/vf1/move-file", {"src": source, "dst": target})
            self.assertEqual((answer.status, answer.json), (201, {}))
        self.assertEqual(sorted(path.name for path in self.content.rglob("*")), ["a", "b", "d"])
        answer = self.request("POST", "/v2/folders/vf1/move-file", {"src": ".", "dst": "d"})
        self.assert_problem(answer, 400, "invalid-api-params")

    def test_downloads_of_each_generation(self) -> None:
        """Clients until 19.03 unpack each part, those of 19.09 and later take it as it is; who is unknown gets the former."""
        self.put(("a", b"content"))
        for name, plain in (
            (b"Backend.AI Client for Python 1.4.2", False),
            (b"Backend.AI Client for Python 19.3.2", False),
            (b"Backend.AI Client for Python 19.09.10", True),
            (b"Backend.AI Client for Python 20.03.10", True),
            (b"Backend.AI Client for Python 23.9", True),
            (b"curl/8", False),
            (b"", False),
        ):
            answer = self.get("download", {"files": ["a"]}, changes={b"User-Agent": name})
            self.assertEqual(b"\r\n\r\ncontent\r\n--" in answer.body, plain, name)
            self.assertEqual(b"Content-Encoding: gzip" in answer.body, not plain, name)

    def test_making_renaming_removing(self) -> None:
        """Directories are made, files renamed and removed."""
        self.assertEqual(self.request("POST", "/v2/folders/vf1/mkdir", {"path": "a/b"}).status, 201)
        self.put(("a/b/c", b"1"))
        rename = {"target_path": "a/b/c", "new_name": "d"}
        self.assertEqual(self.request("POST", "/v2/folders/vf1/rename_file", rename).status, 201)
        remove = {"files": ["a"], "recursive": False}
        self.assert_problem(self.request("DELETE", "/v2/folders/vf1/delete_files", remove), 400, "invalid-api-params")
        answer = self.request("DELETE", "/v2/folders/vf1/delete_files", {"files": ["a/b/d"]})
        self.assertEqual((answer.status, answer.json), (200, {}))
        answer = self.request("DELETE", "/v2/folders/vf1/delete_files", {"files": ["a"], "recursive": True})
        self.assertEqual(answer.status, 200)
        self.assertEqual(self.request("GET", "/v2/folders/vf1").json["numFiles"], 0)

    def test_paths_that_lead_out(self) -> None:
        """No route takes a path that leads out of the folder, or none at all."""
        for path in WRONG_PATHS:
            for method, below, body in (
                ("POST", "mkdir", {"path": path}),
                ("POST", "rename_file", {"target_path": path, "new_name": "x"}),
                ("DELETE", "delete_files", {"files": [path], "recursive": True}),
                ("GET", "download", {"files": [path]}),
                ("POST", "request-upload", {"path": path, "size": 1}),
            ):
                answer = self.request(method, f"/v2/folders/vf1/{below}", body)
                self.assert_problem(answer, 400, "invalid-api-params")
        for path in ("/etc/passwd", "../x"):
            self.assert_problem(self.put((path, b"x")), 400, "invalid-api-params")
        self.assertEqual(list(self.content.iterdir()), [])

    def test_planted_links(self) -> None:
        """A link that a kernel planted is neither read through nor followed into another place, by any route."""
        outside = self.content.parent / "secret"
        outside.write_text("secret")
        (self.content / "file").symlink_to("../secret")
        (self.content / "dir").symlink_to("..")
        (self.content / "root").symlink_to("/")
        for path in ("file", "dir/secret", "root/etc/passwd"):
            self.assert_problem(self.get("download", {"files": [path]}), 400, "invalid-api-params")
        for path in ("dir/secret", "root/tmp/x"):
            self.assert_problem(self.put((path, b"x")), 400, "invalid-api-params")
            answer = self.request("POST", "/v2/folders/vf1/mkdir", {"path": f"{path}/y"})
            self.assert_problem(answer, 400, "invalid-api-params")
            answer = self.request("DELETE", "/v2/folders/vf1/delete_files", {"files": [path], "recursive": True})
            self.assert_problem(answer, 400, "invalid-api-params")
        self.assertEqual(self.put(("file", b"mine")).status, 201)
        self.assertEqual((outside.read_text(), (self.content / "file").read_text()), ("secret", "mine"))
        token = self.request("POST", "/v2/folders/vf1/request-download", {"path": "."}).json["token"]
        answer = self.send("GET", f"{DOWNLOAD}?token={token}", {})
        names = tarfile.TarFile(fileobj=io.BytesIO(answer.body)).getnames()
        self.assertEqual(names, ["work/file"])

    def test_names_of_kernels_are_harmless(self) -> None:
        """A name with a newline or a quote, or one that is no text, breaks neither headers nor lists."""
        odd = 'a"\r\nX-Evil: 1\\'
        (self.content / odd).write_bytes(b"1")
        (self.content / os.fsdecode(b"\xff\xfe")).write_bytes(b"2")
        listed = json.loads(self.get("files", {"path": "."}).json["files"])
        self.assertEqual({row["filename"] for row in listed}, {odd, "\ufffd\ufffd"})
        answer = self.get("download", {"files": [odd]})
        self.assertNotIn(b"\nX-Evil", answer.body)
        self.assertEqual(answer.status, 200)
        self.assertEqual(disposition('d/ä"\n'), b"attachment; filename=\"___\"; filename*=utf-8''%C3%A4%22%0A")

    def test_room(self) -> None:
        """What does not fit is refused, with how much room there is."""
        answer = self.put(*((f"f{number}", bytes(700_000)) for number in range(4)))
        self.assert_problem(answer, 412, "quota-exceeded")
        self.assertEqual(list(self.content.iterdir()), [])

    def test_reading_only(self) -> None:
        """Who may only read can list and download, and change nothing."""
        self.put(("a.txt", b"hello\n"))
        self.share("ro")
        self.assertEqual(self.get("files", {"path": "."}, keypair=OTHER).status, 200)
        self.assertEqual(self.get("download", {"files": ["a.txt"]}, keypair=OTHER).status, 200)
        self.assert_problem(self.put(("b", b""), keypair=OTHER), 403, "generic-forbidden")
        for method, below, body in (
            ("POST", "mkdir", {"path": "d"}),
            ("POST", "rename_file", {"target_path": "a.txt", "new_name": "x"}),
            ("DELETE", "delete_files", {"files": ["a.txt"]}),
            ("POST", "request-upload", {"path": "x", "size": 1}),
        ):
            answer = self.request(method, f"/v2/folders/vf1/{below}", body, keypair=OTHER)
            self.assert_problem(answer, 403, "generic-forbidden")
        self.assertEqual([path.name for path in self.content.iterdir()], ["a.txt"])

    def test_writing_where_it_is_shared(self) -> None:
        """Who may write can."""
        self.share("rw")
        self.assertEqual(self.put(("b", b"1"), keypair=OTHER).status, 201)
        self.assertEqual((self.content / "b").read_bytes(), b"1")


class TransferTests(FolderFileTestCase):
    def upload(self, path: str = "d/big.bin", size: int = len(BIG), **signing: Any) -> str:
        """Ask for an upload and give the target of its requests."""
        answer = self.request("POST", "/folders/vf1/request-upload", {"path": path, "size": size}, **signing)
        self.assertEqual(answer.status, 200, answer)
        self.assertEqual(answer.json["url"], f"http://127.0.0.1:8081{UPLOAD}")
        return f"{UPLOAD}?{urlencode({'token': answer.json['token']})}"

    def tus(self, method: str, target: str, body: bytes = b"", **headers: bytes) -> Answer:
        """Send a request as clients of the protocol do, without signing."""
        sent = {b"Tus-Resumable": b"1.0.0"} | {
            name.replace("_", "-").encode(): value for name, value in headers.items()
        }
        return self.send(method, target, sent, body)

    def patch_at(self, target: str, offset: int, body: bytes) -> Answer:
        return self.tus("PATCH", target, body, Upload_Offset=b"%d" % offset, Content_Type=PIECE_TYPE)

    def test_upload_in_pieces(self) -> None:
        """A file arrives in pieces; after an interruption the server knows how much it has."""
        target = self.upload()
        answer = self.patch_at(target, 0, BIG[:300_000])
        self.assertEqual((answer.status, answer.headers["upload-offset"]), (204, "300000"))
        self.assertEqual(answer.headers["tus-resumable"], "1.0.0")
        answer = self.tus("HEAD", target)
        self.assertEqual((answer.status, answer.headers["upload-offset"]), (200, "300000"))
        self.assertEqual(
            (answer.headers["upload-length"], answer.headers["cache-control"]), (str(len(BIG)), "no-store")
        )
        self.assertEqual(list(self.content.iterdir()), [])
        self.assertEqual(self.patch_at(target, 300_000, BIG[300_000:]).status, 204)
        self.assertEqual((self.content / "d/big.bin").read_bytes(), BIG)
        self.assertEqual(self.tus("HEAD", target).status, 409)

    def test_abilities(self) -> None:
        """The server tells which version of the protocol it speaks."""
        answer = self.tus("OPTIONS", UPLOAD)
        self.assertEqual((answer.status, answer.headers["tus-version"]), (200, "1.0.0"))
        self.assertEqual(answer.headers["tus-extension"], "termination")

    def test_wrong_pieces(self) -> None:
        """A piece for another offset, of another type, too long or of another protocol is refused and changes nothing."""
        target = self.upload(size=10)
        self.assert_problem(self.patch_at(target, 5, b"x"), 409, "upload-conflict")
        self.assert_problem(self.patch_at(target, 0, b"x" * 11), 400, "invalid-api-params")
        answer = self.tus("PATCH", target, b"x", Upload_Offset=b"0", Content_Type=b"text/plain")
        self.assert_problem(answer, 415, "unsupported-media-type")
        for offset in (b"-1", b"x", b"", b"9" * 30):
            answer = self.tus("PATCH", target, b"x", Upload_Offset=offset, Content_Type=PIECE_TYPE)
            self.assert_problem(answer, 400, "invalid-api-params")
        self.assert_problem(self.send("PATCH", target, {}, b"x"), 412, "precondition-failed")
        self.assertEqual(self.tus("HEAD", target).headers["upload-offset"], "0")

    def test_giving_up(self) -> None:
        """An upload that is given up, or begun again, is over."""
        target = self.upload()
        self.assertEqual(self.tus("DELETE", target).status, 204)
        self.assertEqual(self.tus("HEAD", target).status, 409)
        first, second = self.upload(), self.upload()
        self.assertEqual(self.tus("HEAD", first).status, 409)
        self.assertEqual(self.tus("HEAD", second).status, 200)

    def test_room(self) -> None:
        """A file for which there is no room is refused before a byte of it is sent."""
        for size in (BOUNDS.size + 1, 2**53):
            answer = self.request("POST", "/folders/vf1/request-upload", {"path": "x", "size": size})
            self.assert_problem(answer, 412, "quota-exceeded")
        for wrong in (-1, 1.5, "1", None):
            answer = self.request("POST", "/folders/vf1/request-upload", {"path": "x", "size": wrong})
            self.assert_problem(answer, 400, "invalid-api-params")

    def test_tokens(self) -> None:
        """A token that is none, was changed, is for something else or out of date lets nobody in."""
        self.put(("a", b"1"))
        target = self.upload()
        token = target.partition("=")[2]
        download = self.request("POST", "/folders/vf1/request-download", {"path": "a"}).json["token"]
        content, _, signature = token.partition(".")
        for wrong in (
            "",
            "x",
            "x.y",
            "é",
            content,
            f"{content}.",
            f"{content}.{'0' * 64}",
            f"{content[:-2]}.{signature}",
            download,
            "a" * 13_000,
        ):
            answer = self.tus("PATCH", f"{UPLOAD}?{urlencode({'token': wrong})}", b"x")
            self.assert_problem(answer, 401, "auth-failed")
        self.assertEqual(self.tus("PATCH", UPLOAD).status, 401)
        self.assertEqual(self.send("GET", f"{DOWNLOAD}?token={token}", {}).status, 401)
        self.clock.advance(24 * 3600 + 1)
        self.assert_problem(self.patch_at(target, 0, b"x"), 401, "auth-failed")

    def test_tokens_die_with_what_they_are_for(self) -> None:
        """A token is of no use when its keypair is disabled, its folder gone, or no longer shared."""
        self.share("rw")
        target = self.upload(keypair=OTHER)
        self.request("POST", "/v2/folders/vf1/leave", {}, keypair=OTHER)
        self.assert_problem(self.patch_at(target, 0, b"x"), 404, "folder-not-found")
        target = self.upload()
        known: Any = self.transfers.keypairs
        known.all[EXAMPLE.access_key] = evolve(EXAMPLE, is_active=False)
        self.assert_problem(self.patch_at(target, 0, b"x"), 401, "auth-failed")

    def test_permission_is_looked_at_again(self) -> None:
        """An upload does not go on when its sender may only read meanwhile."""
        self.share("rw")
        target = self.upload(keypair=OTHER)
        self.share("ro")
        self.assert_problem(self.patch_at(target, 0, b"x"), 403, "generic-forbidden")

    def fetch(self, body: object, **headers: str) -> Answer:
        answer = self.request("POST", "/folders/vf1/request-download", body)
        self.assertEqual(answer.status, 200, answer)
        self.assertEqual(answer.json["url"], f"http://127.0.0.1:8081{DOWNLOAD}")
        sent = {name.encode(): value.encode() for name, value in headers.items()}
        return self.send("GET", f"{DOWNLOAD}?{urlencode({'token': answer.json['token']})}", sent)

    def test_download(self) -> None:
        """A file comes with its length and its name, and from an offset on if the client has the rest."""
        self.put(("d/big.bin", BIG))
        answer = self.fetch({"path": "d/big.bin"})
        self.assertEqual((answer.status, answer.body), (200, BIG))
        self.assertEqual(answer.headers["content-length"], str(len(BIG)))
        self.assertEqual(answer.headers["content-disposition"], 'attachment; filename="big.bin"')
        answer = self.fetch({"path": "d/big.bin"}, Range="bytes=600000-")
        self.assertEqual((answer.status, answer.body), (206, BIG[600_000:]))
        self.assertEqual(answer.headers["content-range"], f"bytes 600000-{len(BIG) - 1}/{len(BIG)}")
        self.assertEqual(self.fetch({"path": "d/big.bin"}, Range=f"bytes={len(BIG)}-").status, 416)
        self.assertEqual(self.fetch({"path": "d/big.bin"}, Range="bytes=x-y").status, 200)

    def test_archives(self) -> None:
        """A directory comes as a tar archive, and a file if that is asked for."""
        self.put(("d/big.bin", BIG), ("a", b"1"))
        for body, names in (
            ({"path": "d"}, ["d/big.bin"]),
            ({"path": "."}, ["work/a", "work/d", "work/d/big.bin"]),
            ({"file": "a", "archive": True}, ["a"]),
        ):
            answer = self.fetch(body)
            self.assertEqual(answer.headers["content-type"], "application/x-tar")
            self.assertEqual(answer.headers["content-length"], str(len(answer.body)))
            archive = tarfile.TarFile(fileobj=io.BytesIO(answer.body))
            self.assertEqual(sorted(archive.getnames()), names)
        self.assert_problem(
            self.request("POST", "/folders/vf1/request-download", {"path": "nothing"}), 400, "invalid-api-params"
        )

    def test_addresses(self) -> None:
        """Behind a proxy that ends TLS, clients are sent back through it; a host that is none is refused."""
        body = {"path": "x", "size": 1}
        answer = self.request("POST", "/folders/vf1/request-upload", body, changes={b"X-Forwarded-Proto": b"https"})
        self.assertEqual(answer.json["url"], f"https://127.0.0.1:8081{UPLOAD}")
