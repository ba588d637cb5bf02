"""Bytes that the load client sends and takes apart."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bench.wire import CLOSE, PING, TEXT, Answer, Answers, Frames, Signer, UnexpectedBytes, frame, printed
from sorna.client.signing import Credentials
from sorna.gateway.authentication import SignedRequest, parse_authorization, verify
from sorna.testing.unit import UnitTestCase

NOW = 1_764_000_000.0
SIGNER = Signer("127.0.0.1:8080", Credentials("AKIA", "secret"), lambda: NOW)


def served(status: int, body: bytes, extra: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d X\r\n%sContent-Length: %d\r\n\r\n%s" % (status, extra, len(body), body)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[begin:end] for begin, end in zip([0, *places], [*places, len(data)], strict=True)]


def server_frame(opcode: int, payload: bytes) -> bytes:
    length = len(payload)
    if length < 126:
        return bytes((0x80 | opcode, length)) + payload
    if length < 65536:
        return bytes((0x80 | opcode, 126)) + length.to_bytes(2, "big") + payload
    return bytes((0x80 | opcode, 127)) + length.to_bytes(8, "big") + payload


class SigningTests(UnitTestCase):
    """Requests that were signed in advance."""

    def test_server_accepts_them(self) -> None:
        """The server's own verification finds every one of a series right, and no two are alike."""
        requests = SIGNER.requests(5, "POST", "/kernel/abc", b"{}")
        self.assertEqual(len(set(requests)), 5)
        for request in requests:
            head, _, body = request.partition(b"\r\n\r\n")
            line, *lines = head.split(b"\r\n")
            headers = dict(one.split(b": ", 1) for one in lines)
            method, target, _http = line.split(b" ")
            signed = SignedRequest(
                method=method,
                target=target,
                date=headers[b"Date"],
                host=headers[b"Host"],
                content_type=headers[b"Content-Type"],
                version_header=b"x-backendai-version",
                version=headers[b"X-BackendAI-Version"],
                body=body,
            )
            signature = parse_authorization(headers[b"Authorization"].decode("ascii")).signature
            day = headers[b"Date"][:10].replace(b"-", b"").decode("ascii")
            self.assertTrue(verify(signed, "secret", "sha256", day, signature))
            self.assertEqual(headers[b"Content-Length"], b"2")

    def test_handshake_has_no_body(self) -> None:
        """A WebSocket's handshake asks for the upgrade and announces no body."""
        handshake = SIGNER.handshake("/stream/kernel/x/execute")
        self.assertIn(b"\r\nUpgrade: websocket\r\n", handshake)
        self.assertNotIn(b"Content-Length", handshake)


class AnswerTests(UnitTestCase):
    """Answers as they arrive."""

    @given(st.lists(st.binary(max_size=300), min_size=1, max_size=5), st.lists(st.integers(0, 2000), max_size=8))
    def test_any_pieces(self, bodies: list[bytes], cuts: list[int]) -> None:
        """Several answers on one connection are told apart, wherever their bytes are cut."""
        data = b"".join(served(200 + number, body) for number, body in enumerate(bodies))
        answers, parser = list[Answer](), Answers()
        for piece in pieces(data, cuts):
            answers += parser.feed(piece)
        self.assertEqual([answer.body for answer in answers], bodies)
        self.assertEqual([answer.status for answer in answers], list(range(200, 200 + len(bodies))))
        self.assertEqual(parser.rest, b"")

    def test_name_of_header_in_any_case(self) -> None:
        """The header with the length counts in any spelling, and not where it is part of another's value."""
        data = b"HTTP/1.1 200 OK\r\nX-Note: content-length: 99\r\ncontent-length:  3\r\n\r\nabc"
        self.assertEqual(Answers().feed(data), [Answer(200, b"abc")])

    def test_without_body(self) -> None:
        """An answer whose status allows no body has none."""
        self.assertEqual(Answers().feed(b"HTTP/1.1 204 No Content\r\n\r\n"), [Answer(204, b"")])

    def test_without_length(self) -> None:
        """An answer that does not say how long it is is an error and not a short answer."""
        for head in (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", b"HTTP/1.1 200 OK\r\nContent-Length: x"):
            with self.assertRaises(UnexpectedBytes):
                Answers().feed(head + b"\r\n\r\n")

    def test_no_http(self) -> None:
        """Something else than HTTP is an error."""
        with self.assertRaises(UnexpectedBytes):
            Answers().feed(b"SSH-2.0\r\n\r\n")

    def test_printed(self) -> None:
        """A run counts only when it is finished, printed exactly this line, and was answered with 200."""
        body = b'{"result":{"status":"finished","console":[["stdout","12\\n"]]}}'
        self.assertTrue(printed(Answer(200, body), "12"))
        self.assertFalse(printed(Answer(200, body), "2"))
        self.assertFalse(printed(Answer(503, body), "12"))
        self.assertFalse(printed(Answer(200, body.replace(b"finished", b"continued")), "12"))


class FrameTests(UnitTestCase):
    """Frames as they arrive."""

    @given(
        st.lists(st.tuples(st.sampled_from((TEXT, PING, CLOSE)), st.sampled_from((0, 1, 125, 126, 65535, 65536)))),
        st.lists(st.integers(0, 300_000), max_size=8),
    )
    def test_any_pieces(self, frames: list[tuple[int, int]], cuts: list[int]) -> None:
        """Frames of every form of length are told apart, wherever their bytes are cut."""
        whole = [(opcode, bytes([number % 256]) * size) for number, (opcode, size) in enumerate(frames)]
        data = b"".join(server_frame(opcode, payload) for opcode, payload in whole)
        parser, found = Frames(), list[tuple[int, bytes]]()
        for piece in pieces(data, cuts):
            found += parser.feed(piece)
        self.assertEqual(found, whole)

    def test_rest_of_the_handshake(self) -> None:
        """What came behind the handshake's answer belongs to the first frame."""
        data = server_frame(TEXT, b"hello")
        self.assertEqual(Frames(data[:3]).feed(data[3:]), [(TEXT, b"hello")])

    def test_masked(self) -> None:
        """A server that masks its frames breaks the protocol."""
        with self.assertRaises(UnexpectedBytes):
            Frames().feed(frame(b"x"))

    def test_own_frames_are_masked(self) -> None:
        """A client's frames have the bit and the key, in every form of length."""
        for size, head in ((5, 2), (200, 4), (70_000, 10)):
            built = frame(b"x" * size)
            self.assertEqual(len(built), head + 4 + size)
            self.assertTrue(built[1] & 0x80)
