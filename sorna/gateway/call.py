"""What a route is called with and what it gives back; knows JSON and headers, neither Klein nor Twisted's request."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import parse_qs

from attrs import field, frozen
from twisted.web.http_headers import Headers

from sorna.errors import InvalidRequest, KernelNotFound, RateLimitExceeded, SornaError
from sorna.gateway.problems import CONTENT_TYPE as PROBLEM_TYPE
from sorna.gateway.problems import Era, MethodNotAllowed, error_body, problem_of
from sorna.model.kernel import parse_kernel_id, valid_session_token
from sorna.model.keypair import Keypair

if TYPE_CHECKING:
    from sorna.gateway.websockets import Session

JSON_TYPE = b"application/json; charset=utf-8"
_EMPTY_TYPE = b"application/octet-stream"


class Access(Enum):
    """Who may call a route."""

    PUBLIC = "public"
    KEYPAIR = "keypair"
    #: Whoever brings a token, which the route itself believes or not.
    TOKEN = "token"  # noqa: S105 - a word


def _refuse_constant(name: str) -> NoReturn:
    message = f"{name} is not JSON"
    raise ValueError(message)


#: A mebibyte of ``[],[],`` makes the decoder build objects for 90 ms, on the reactor; this many values take 5 at the most.
MAX_VALUES = 20_000
MAX_FIELDS = 64

_decode = json.JSONDecoder(parse_constant=_refuse_constant).decode
# The separators of Python's default are the historic server's.
_encode = json.JSONEncoder(allow_nan=False).encode


@frozen
class Call:
    """One request to one route.

    :ivar version: major version of the path, 0 for a path without one, which clients of version 4 and later use.
    :ivar values: the variable parts of the path, decoded.
    :ivar target: path and query, not decoded.
    :ivar content_type: the whole header; empty when there is none.
    :ivar handshake: whether it wants to become a WebSocket.
    :ivar keypair: who asks; None on a public route.
    :ivar stored_to: where an upload is after this body, if that was stored while it arrived.
    """

    request_id: str
    method: str
    version: int
    values: Mapping[str, str]
    content_type: bytes
    body: bytes = field(repr=False)
    keypair: Keypair | None
    target: bytes = b""
    handshake: bool = False
    headers: Headers = field(factory=Headers, repr=False)
    stored_to: int | None = None

    @property
    def caller(self) -> Keypair:
        """The keypair of who asks.

        :raises RuntimeError: the route is public; a fault of ours.
        """
        if self.keypair is None:
            raise RuntimeError("a public route has no access key")
        return self.keypair

    @property
    def access_key(self) -> str:
        """The access key of who asks; see :attr:`caller`."""
        return self.caller.access_key

    @property
    def kernel_reference(self) -> str:
        """The kernel id or session token of the path. :raises KernelNotFound: it can name no kernel."""
        return checked_reference(self.values["reference"])

    @property
    def query(self) -> Mapping[str, list[str]]:
        """The fields of the query, each with its values in order.

        :raises InvalidRequest: there are too many, or they are no text.
        """
        try:
            return parse_qs(self.target.partition(b"?")[2].decode("ascii"), errors="strict", max_num_fields=MAX_FIELDS)
        except ValueError:
            raise InvalidRequest("Malformed query") from None

    def header(self, name: bytes) -> bytes | None:
        """Give the last value of a header, None where there is none."""
        return (self.headers.getRawHeaders(name) or (None,))[-1]

    def json_object(self) -> dict[str, Any]:
        """Read the body as a JSON object, whatever the method and the content type.

        :raises InvalidRequest: it is none.
        """
        return read_json_object(self.body)


@frozen
class Stream:
    """A body that is made while it is sent.

    :ivar length: bytes; None when nobody knows, and then it is sent in chunks.
    :ivar pieces: is asked for the next piece when the client has taken the one before, and closed when it goes away.
    """

    length: int | None
    pieces: AsyncGenerator[bytes, None]


@frozen
class Reply:
    """What a client gets, but for the headers that every answer has.

    :ivar body: the whole body; a 204 has none.
    :ivar stream: the body instead, where it is long or never ends.
    :ivar owner: the access key in whose name a stream is open; the gate fills it in.
    :ivar session: what a route for WebSockets answers, instead of everything else.
    """

    status: int
    body: bytes = b""
    content_type: bytes = _EMPTY_TYPE
    headers: Mapping[bytes, bytes] = field(factory=dict)
    stream: Stream | None = None
    session: Session | None = None
    owner: str | None = None

    def below(self, headers: Mapping[bytes, bytes]) -> Reply:
        """Give the same reply with these headers where it has none of the name."""
        # Each reply goes through this; evolve takes several times as long.
        together = {**headers, **self.headers}
        return Reply(self.status, self.body, self.content_type, together, self.stream, self.session, self.owner)


def checked_reference(reference: str) -> str:
    """Give a reference to a kernel back.

    :raises KernelNotFound: it can name no kernel, and may hold what Redis keys and PostgreSQL texts may not.
    """
    if parse_kernel_id(reference) is None and not valid_session_token(reference):
        raise KernelNotFound
    return reference


def read_json_object(body: bytes) -> dict[str, Any]:
    """Read a JSON object within bounds.

    :raises InvalidRequest: it is none.
    """
    if _too_many_values(body):
        raise InvalidRequest(f"Malformed body: more than {MAX_VALUES} values")
    try:
        content = _decode(body.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise InvalidRequest("Malformed body") from None
    if not isinstance(content, dict):
        raise InvalidRequest("Malformed body: not a JSON object")
    return content


def _too_many_values(body: bytes) -> bool:
    if _separators(body) <= MAX_VALUES:
        return False
    # Code is full of such bytes, so a second look leaves the texts out: without the escapes, every other piece between
    # quotes is one. A regular expression would take several times as long.
    unescaped = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    if unescaped.count(b'"') > 4 * MAX_VALUES:
        return True
    return _separators(b"".join(unescaped.split(b'"')[::2])) > MAX_VALUES


def _separators(body: bytes) -> int:
    return body.count(b",") + body.count(b"[") + body.count(b"{")


def json_reply(content: Any, status: int = 200) -> Reply:
    """Answer with a JSON value."""
    return Reply(status, encode_json(content), JSON_TYPE)


def no_content() -> Reply:
    """Answer 204; its explicit content type and length are what old clients index without asking."""
    return Reply(204)


def problem_reply(error: SornaError, era: Era = Era.SORNA) -> Reply:
    """Answer with the problem that an error of the domain is."""
    problem = problem_of(error)
    headers = {} if problem.retry_after is None else {b"Retry-After": b"%d" % problem.retry_after}
    if isinstance(error, MethodNotAllowed):
        headers[b"Allow"] = ", ".join(sorted(error.allowed)).encode("ascii")
    if isinstance(error, RateLimitExceeded) and error.reset is not None:
        headers[b"Retry-After"] = b"%d" % -(-max(error.reset, 0) // 1000)
    return Reply(problem.status, encode_json(error_body(error, era)), PROBLEM_TYPE, headers)


def encode_json(content: Any) -> bytes:
    """Encode a value as the historic server did, in ASCII; numbers that JSON does not have become null.

    :raises InvalidRequest: it is nested too deeply; only what a client sent can be.
    """
    try:
        try:
            return _encode(content).encode("ascii")
        except ValueError:
            return _encode(_finite(content)).encode("ascii")
    except RecursionError:
        raise InvalidRequest("nested too deeply") from None


def _finite(content: Any) -> Any:
    if isinstance(content, float) and not -float("inf") < content < float("inf"):
        return None
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content
