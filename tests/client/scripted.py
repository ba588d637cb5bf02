"""A server of the REST API that gives prepared answers and checks every signature, for tests of the client."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

from attrs import frozen
from treq.client import HTTPClient
from treq.testing import StubTreq
from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from sorna.client.api import ApiClient
from sorna.client.signing import Credentials, SignedParts, authorization
from sorna.model.keypair import EXAMPLE_ACCESS_KEY, EXAMPLE_SECRET_KEY

ENDPOINT = "http://127.0.0.1:8080"
KERNEL = "HHUaCVyvKnLzMKr__wv6_Q"
CREATED = (201, {"kernelId": KERNEL, "created": True})


Prepared = tuple[int, Any] | Deferred[Any] | None


@frozen
class Seen:
    """A request as the server saw it."""

    method: str
    path: str
    content_type: str
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


def result(status: str, *console: list[Any], run_id: str = "0123456789abcdef", **more: Any) -> tuple[int, Any]:
    """Prepare an answer of execute."""
    base: dict[str, Any] = {
        "status": status,
        "runId": run_id,
        "exitCode": None,
        "options": {},
        "files": [],
        "completions": None,
    }
    return 200, {"result": {**base, "console": list(console), **more}}


def problem(status: int, kind: str, title: str, **more: Any) -> tuple[int, Any]:
    """Prepare a problem document."""
    return status, {"type": f"https://api.sorna.io/probs/{kind}", "title": title, **more}


class ScriptedServer(Resource):
    """Gives the prepared answers in order; a Deferred answers later, and None never."""

    isLeaf = True

    def __init__(self, answers: list[Prepared]) -> None:
        super().__init__()
        self.answers = answers
        self.seen: list[Seen] = []
        self.on_request: Callable[[Seen], None] = lambda _: None

    def render(self, request: Request) -> Any:
        """Check the signature, note the request and give the next answer."""
        seen = self._checked(request)
        self.seen.append(seen)
        self.on_request(seen)
        answer = self.answers.pop(0)
        if answer is None:
            return NOT_DONE_YET
        if isinstance(answer, Deferred):
            answer.addCallback(lambda later: (request.write(self._encoded(request, later)), request.finish()))
            return NOT_DONE_YET
        return self._encoded(request, answer)

    @staticmethod
    def _encoded(request: Request, answer: tuple[int, Any]) -> bytes:
        status, body = answer
        request.setResponseCode(status)
        encoded = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
        request.setHeader(b"content-length", str(len(encoded)).encode())
        return encoded

    def _checked(self, request: Request) -> Seen:
        body = request.content.read()  # type: ignore[union-attr]  # there is one as soon as a request is rendered
        content_type = request.getHeader("Content-Type") or ""
        date = request.getHeader("Date") or ""
        parts = SignedParts(
            method=request.method.decode(),
            target=request.uri.decode(),
            date=date,
            day=date[:10].replace("-", ""),
            host=request.getHeader("Host") or "",
            content_type=content_type,
            version=request.getHeader("X-BackendAI-Version") or "",
            body=body,
        )
        expected = authorization(Credentials(EXAMPLE_ACCESS_KEY, EXAMPLE_SECRET_KEY), parts)
        if request.getHeader("Authorization") != expected:
            raise AssertionError(f"the signature of {parts.method} {parts.target} is wrong")
        return Seen(parts.method, parts.target, content_type, body)

    @property
    def calls(self) -> list[str]:
        """What was asked, in short."""
        return [f"{seen.method} {seen.path}" for seen in self.seen]


class Setting:
    """A scripted server, a clock that stands still, and a client between them."""

    def __init__(self, *answers: Prepared, largest_answer: int = 4096) -> None:
        self.server = ScriptedServer(list(answers))
        self.reactor = MemoryReactorClock()
        self.reactor.rightNow = 1504746123.5
        self.treq = StubTreq(self.server)
        http = cast("HTTPClient", self.treq)
        keys = (EXAMPLE_ACCESS_KEY, EXAMPLE_SECRET_KEY)
        self.api = ApiClient(http, ENDPOINT, *keys, self.reactor, largest_answer=largest_answer)

    def type_line(self) -> None:
        """Let the reactor's readers read what is there."""
        for reader in list(self.reactor.readers):
            reader.doRead()
        self.treq.flush()
