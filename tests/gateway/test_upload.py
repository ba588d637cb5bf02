"""Tests of multipart bodies: how clients of each time spell a path, and that no bytes break anything."""

from __future__ import annotations

import contextlib

from hypothesis import example, given
from hypothesis import strategies as st

from sorna.errors import InvalidRequest
from sorna.gateway.upload import MAX_FILE_SIZE, destination, read_files
from sorna.manager.interfaces import UploadFile
from sorna.testing.gateway import form
from sorna.testing.unit import UnitTestCase

TYPE = b"multipart/form-data; boundary=b"


class DestinationTests(UnitTestCase):
    def test_spellings(self) -> None:
        """Every way in which an HTTP library of the time escapes a path gives the path."""
        for parameters, path in (
            ('name="src"; filename="a/b.txt"', "a/b.txt"),
            ('name="src"; filename=a/b.txt', "a/b.txt"),
            ("filename=../x; name=src", "../x"),
            ('name="src"; filename="a%2Fb.txt"; filename*=utf-8\'\'a%2Fb%C3%A9.txt', "a/bé.txt"),
            ("filename*=UTF-8'en'a%20b; filename=\"other\"", "a b"),
            ("filename*=iso-8859-1''%E9", "é"),
            ('filename="C:\\\\a\\b.txt"', "C:\\\\a\\b.txt"),
            ('filename="a;b=c.txt"', "a;b=c.txt"),
            ('filename="say %22hi%22.txt"', 'say "hi".txt'),
            ('filename="say \\"hi\\".txt"', 'say "hi".txt'),
            ('filename="日本.txt"', "日本.txt"),
            ('Name="src";FILENAME = "x" ;', "x"),
        ):
            self.assertEqual(destination("form-data; " + parameters), path, parameters)

    def test_refusals(self) -> None:
        """A path that cannot be read is refused rather than guessed or cut short."""
        for parameters in (
            "",
            "; name=src",
            "; filename=",
            '; filename=""',
            '; filename="a',
            "; filename=a b",
            "; filename*=utf-8''",
            "; filename*=utf-8''%FF",
            "; filename*=utf-16''a",
            "; filename*=a",
            "; filename=" + "x" * 5000,
        ):
            self.assertRaises(InvalidRequest, destination, "form-data" + parameters)

    @given(st.text(max_size=200))
    @example('; filename="' + "\\" * 101)
    def test_any_text(self, text: str) -> None:
        """No header raises anything but the refusal."""
        for header in (text, "form-data;" + text, "form-data; filename=" + text, "form-data; filename*=utf-8''" + text):
            with contextlib.suppress(InvalidRequest):
                self.assertTrue(destination(header))


class BodyTests(UnitTestCase):
    def test_round_trip(self) -> None:
        """Contents come out byte for byte, in order, whatever lines they hold."""
        contents = (b"", b"\r\n", b"--0123456789", b"\r\n--0123456788\r\n", bytes(range(256)) * 10)
        files = [(f"d/{number}", content) for number, content in enumerate(contents)]
        expected = [UploadFile(path, content) for path, content in files]
        self.assertEqual(read_files(*form(*files)), expected)

    @given(st.lists(st.binary(max_size=300), min_size=1, max_size=20))
    def test_any_contents(self, contents: list[bytes]) -> None:
        """Any contents survive the way."""
        files = [(f"{number}", content) for number, content in enumerate(contents)]
        boundary = "never-in-the-contents-7f3a"
        self.assertEqual([file.content for file in read_files(*form(*files, boundary=boundary))], contents)

    def test_parts_with_headers_of_newer_clients(self) -> None:
        """Types and lengths of parts are accepted, and a wrong length is not."""
        head = b'--b\r\nContent-Disposition: form-data; name="src"; filename="x"\r\nContent-Type: application/octet-stream\r\n'
        body = head + b"Content-Length: 3\r\n\r\nabc\r\n--b--\r\n"
        self.assertEqual(read_files(TYPE, body), [UploadFile("x", b"abc")])
        self.assertRaises(InvalidRequest, read_files, TYPE, body.replace(b"Length: 3", b"Length: 4"))

    def test_boundaries(self) -> None:
        """The boundary is found quoted or not, before or after other parameters, in any case of the type."""
        _, body = form(("x", b"1"), boundary="a=b")
        for content_type in (
            b'multipart/form-data; boundary="a=b"',
            b"multipart/form-data;charset=utf-8;boundary=a=b",
            b"Multipart/Form-Data; BOUNDARY=a=b; charset=utf-8",
        ):
            self.assertEqual(read_files(content_type, body), [UploadFile("x", b"1")])

    def test_refusals(self) -> None:
        """What is no form with files is refused."""
        _, body = form(("x", b"1"))
        for content_type, content in (
            (b"", body),
            (b"application/json", b"{}"),
            (b"multipart/form-data", body),
            (b"multipart/form-data; boundary=", body),
            (b"multipart/form-data; boundary=" + b"x" * 300, body),
            (b"multipart/mixed; boundary=0123456789", body),
            (b"multipart/form-data; boundary=other", body),
            (TYPE, b""),
            (TYPE, b"--b--\r\n"),
            (TYPE, b"--b\r\n\r\nx\r\n--b--\r\n"),
            (b"multipart/form-data; boundary=0123456789", body[:-5]),
        ):
            self.assertRaises(InvalidRequest, read_files, content_type, content)

    def test_size_limit_counts_single_files(self) -> None:
        """The limit is on each file, not on all together."""
        files = [(f"{number}", bytes(MAX_FILE_SIZE)) for number in range(3)]
        self.assertEqual(len(read_files(*form(*files))), 3)

    @given(st.binary(max_size=400), st.binary(max_size=60))
    @example(b"--b\r\nContent-Disposition: form-data; filename=x\r\n\r\n", b"")
    @example(b"--b\r\nContent-Disposition\r\n: form-data; filename=x\r\n\r\n\r\n--b--", b"")
    @example(b"--b\r\n\xff: x\r\n\r\n\r\n--b--", b"")
    def test_any_bytes(self, body: bytes, content_type: bytes) -> None:
        """No body raises anything but the refusal."""
        for given_type in (content_type, TYPE, b"multipart/form-data; boundary=" + content_type):
            with contextlib.suppress(InvalidRequest):
                read_files(given_type, body)
            with contextlib.suppress(InvalidRequest):
                read_files(given_type, b'--b\r\nContent-Disposition: form-data; filename="x"\r\n' + body)
