"""Bytes of HTTP and WebSockets as a load client needs them: requests signed in advance, and answers taken apart cheaply.

Pure; knows no socket. It is no general client: it reads what the servers under test send, and says so when they send
something else.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable, Mapping
from typing import Any

from attrs import frozen

from sorna.client.signing import Credentials, signed_headers

#: The dialect that is measured: its bodies are signed, as those of most published clients are.
PREFIX = "/v2"
VERSION = "v2.20170315"
JSON = "application/json"

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
_WITHOUT_BODY = frozenset((204, 304))
# What matters of a masking key is that a hostile page cannot choose the bytes on the wire. A bench needs no defence against
# itself, and with zeros masking costs nothing.
_MASK = b"\0\0\0\0"


class UnexpectedBytes(Exception):
    """The server sent what this client cannot read."""


@frozen
class Answer:
    """A status and a body."""

    status: int
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


@frozen
class Signer:
    """Builds requests as they go over the wire, for one server and one keypair.

    :ivar host: the value of the Host header.
    :ivar now: gives seconds since the epoch; a request may be sent until 15 minutes after it was signed.
    """

    host: str
    credentials: Credentials
    now: Callable[[], float]

    def request(self, method: str, path: str, body: bytes = b"", *, age: float = 0.0) -> bytes:
        """Sign a request.

        :param path: below the version prefix.
        :param age: seconds by which its date lies in the past, so that requests which are otherwise alike differ.
        """
        return _spell(method, PREFIX + path, self._headers(method, PREFIX + path, body, age), body)

    def requests(self, count: int, method: str, path: str, body: bytes = b"") -> list[bytes]:
        """Sign a request several times over, with a date of its own each time."""
        return [self.request(method, path, body, age=number / 1000) for number in range(count)]

    def handshake(self, path: str) -> bytes:
        """Sign a WebSocket's handshake; the path stands as it is."""
        headers = self._headers("GET", path, b"", 0.0)
        return _spell("GET", path, {**headers, **_UPGRADE}, None)

    def _headers(self, method: str, target: str, body: bytes, age: float) -> dict[str, str]:
        return signed_headers(
            self.credentials,
            method=method,
            target=target,
            host=self.host,
            content_type=JSON,
            body=body,
            version=VERSION,
            now=self.now() - age,
        )


_UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": base64.b64encode(b"sixteen bytes ok").decode("ascii"),
}


def plain_request(method: str, path: str, host: str, body: bytes = b"") -> bytes:
    """Build a request without a signature."""
    return _spell(method, path, {"Host": host, "Content-Type": JSON}, body)


def plain_handshake(path: str, host: str) -> bytes:
    """Build a WebSocket's handshake without a signature."""
    return _spell("GET", path, {"Host": host, **_UPGRADE}, None)


def _spell(method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


class Answers:
    """Takes answers apart as their bytes arrive."""

    def __init__(self) -> None:
        self._received = b""

    @property
    def rest(self) -> bytes:
        """What has arrived and is not part of an answer yet."""
        return self._received

    def feed(self, chunk: bytes) -> list[Answer]:
        """Add bytes and give the answers that are complete.

        :raises UnexpectedBytes: it is no HTTP, or an answer does not say how long it is.
        """
        self._received += chunk
        answers = []
        while (answer := self._first()) is not None:
            answers.append(answer)
        return answers

    def _first(self) -> Answer | None:
        received = self._received
        end = received.find(b"\r\n\r\n")
        if end < 0:
            return None
        head = received[:end].lower()
        if head[:7] != b"http/1." or not head[9:12].isdigit():
            raise UnexpectedBytes(f"no answer begins with {head[:40]!r}")
        status = int(head[9:12])
        begin = end + 4
        stop = begin + _length(head, status)
        if len(received) < stop:
            return None
        self._received = received[stop:]
        return Answer(status, received[begin:stop])


def _length(head: bytes, status: int) -> int:
    at = head.find(b"\r\ncontent-length:")
    if at >= 0:
        number = head[at + 17 :].partition(b"\r\n")[0].strip()
        if number.isdigit():
            return int(number)
    elif status < 200 or status in _WITHOUT_BODY:
        return 0
    raise UnexpectedBytes(f"an answer without a length: {head[:200]!r}")


def frame(payload: bytes, opcode: int = TEXT) -> bytes:
    """Build a client's frame."""
    length = len(payload)
    if length < 126:
        head = struct.pack("!BB", 0x80 | opcode, 0x80 | length)
    elif length < 1 << 16:
        head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, length)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, length)
    return head + _MASK + payload


class Frames:
    """Takes a server's frames apart as their bytes arrive. Pieces of a message that is sent in several are not joined."""

    def __init__(self, received: bytes = b"") -> None:
        self._received = bytearray(received)

    def feed(self, chunk: bytes = b"") -> list[tuple[int, bytes]]:
        """Add bytes and give the opcode (0 for what continues a message) and payload of each complete frame.

        :raises UnexpectedBytes: a frame is masked, which servers' never are.
        """
        received = self._received
        received += chunk
        frames, at = [], 0
        while len(received) - at >= 2:
            length, begin = received[at + 1], at + 2
            if length & 0x80:
                raise UnexpectedBytes("a masked frame from a server")
            extended = {126: 2, 127: 8}.get(length, 0)
            if extended:
                if len(received) < begin + extended:
                    break
                length = int.from_bytes(received[begin : begin + extended], "big")
                begin += extended
            if len(received) < begin + length:
                break
            frames.append((received[at] & 0x0F, bytes(memoryview(received)[begin : begin + length])))
            at = begin + length
        del received[:at]
        return frames


def create_body(token: str) -> bytes:
    """Give the body that creates a Python kernel."""
    return json.dumps({"lang": "python3", "clientSessionToken": token}).encode("ascii")


def run_body(code: str) -> bytes:
    """Give the body that runs code by POST."""
    return json.dumps({"mode": "query", "code": code, "runId": None}).encode("ascii")


def run_text(code: str) -> bytes:
    """Give the text that runs code over a WebSocket."""
    return json.dumps({"mode": "query", "code": code, "options": {}}).encode("ascii")


def printed(answer: Answer, text: str) -> bool:
    """Tell whether a run is finished and this is the whole of a line that it printed; cheap, because it is asked often."""
    body = answer.body
    return answer.status == 200 and b'"finished"' in body and b'"%s\\n"' % text.encode("ascii") in body
