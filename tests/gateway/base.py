"""A gateway over memory, and a client that signs what it sends; for the synchronous tests of this directory."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from attrs import evolve, frozen
from treq.testing import StubTreq
from twisted.internet.task import Clock

from sorna.gateway.service import make_application
from sorna.gateway.websockets import NORMAL
from sorna.model.keypair import Keypair
from sorna.testing.administration import memory_world
from sorna.testing.folders import memory_folders
from sorna.testing.gateway import (
    EXAMPLE,
    MemoryKeypairs,
    MemoryOperations,
    MemoryRateLimits,
    MemoryReadiness,
    Signer,
    encode,
)
from sorna.testing.kernels import MemoryKernels
from sorna.testing.unit import UnitTestCase

NOW = 1_500_000_000.0
OTHER = Keypair("AKIANABBDUSEREXAMPLE", "C8qnIo29EZvXkPK_MXcuAakYTy4NYrxwmCEyNPlf")
INACTIVE = Keypair("AKIAINACTIVEEXAMPLE0", "inactive-inactive-inactive-inactive-0000", is_active=False)
POOR = Keypair("AKIAPOOREXAMPLE00000", "poor-poor-poor-poor-poor-poor-poor-00000", rate_limit=3)
ADMINISTRATOR = Keypair("AKIAADMINEXAMPLE0000", "admin-admin-admin-admin-admin-admin-0000", is_admin=True)
TOKEN = "test-token-01"


@frozen
class Answer:
    """A response that was read to its end."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def slug(self) -> str:
        """The last part of the problem's type."""
        slug: str = self.json["type"].rpartition("/")[2]
        return slug


class TextSocket:
    """What a WebSocket is to a session that knows nothing of binary messages."""

    def send_bytes(self, data: bytes) -> None:
        raise AssertionError(f"binary messages are not wanted: {data!r}")

    def take_bytes(self, receive: Callable[[bytes], None]) -> None:
        raise AssertionError(f"binary messages are not wanted: {receive}")

    def read(self, wanted: bool) -> None:
        raise AssertionError(f"reading is not to be stopped or resumed: {wanted}")


class MemorySocket(TextSocket):
    """A WebSocket that keeps what was sent."""

    def __init__(self) -> None:
        self.is_writable = True
        self.sent: list[dict[str, Any]] = []
        self.closed_with: tuple[int, str] | None = None

    def send(self, text: str) -> None:
        if self.closed_with is None:
            self.sent.append(json.loads(text))

    def close(self, code: int = NORMAL, reason: str = "") -> None:
        if self.closed_with is None:
            self.closed_with = (code, reason)


class GatewayTestCase(UnitTestCase):
    """Makes requests to an application whose every dependency is in memory."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        self.kernels = MemoryKernels(self.clock)
        self.keypairs = MemoryKeypairs(EXAMPLE, OTHER, INACTIVE, POOR, ADMINISTRATOR)
        self.world = memory_world(self.clock, [EXAMPLE, OTHER, INACTIVE, POOR])
        self.rate_limits = MemoryRateLimits(self.clock)
        self.operations = MemoryOperations()
        self.readiness = MemoryReadiness()
        self.signer = Signer(self.clock)
        self.folders, self.transfers = memory_folders(self, self.clock, EXAMPLE, OTHER, INACTIVE, POOR, ADMINISTRATOR)
        self.rebuild(self.world.administration)

    def rebuild(self, administration: Any) -> None:
        """Make the application, with this administration."""
        self.application = make_application(
            self.clock,
            kernels=self.kernels,
            folders=self.folders,
            transfers=self.transfers,
            administration=administration,
            enrolments=self.world.enrolments,
            keypairs=self.keypairs,
            rate_limits=self.rate_limits,
            operations=self.operations,
            readiness=self.readiness,
        )
        # StubTreq copies treq's functions to itself when it is made, which no type checker sees.
        self.treq: Any = StubTreq(self.application)

    def send(self, method: str, target: str, headers: dict[bytes, bytes], body: bytes = b"") -> Answer:
        """Send exactly this and read the answer."""
        sending = self.treq.request(
            method,
            "http://127.0.0.1:8081" + target,
            headers={name: [value] for name, value in headers.items()},
            data=body,
        )
        self.treq.flush()
        response = self.successResultOf(sending)
        content = self.successResultOf(response.content())
        names = {
            name.decode().lower(): b", ".join(values).decode() for name, values in response.headers.getAllRawHeaders()
        }
        # Twisted's client keeps the length to itself; one that does not know it was answered in chunks.
        names["content-length"] = str(response.length)
        return Answer(response.code, names, content)

    def request(
        self, method: str, target: str, content: Any = None, *, body: bytes | None = None, **signing: Any
    ) -> Answer:
        """Send a signed request with a JSON body."""
        sent = body if body is not None else b"" if content is None else encode(content)
        content_type = signing.pop("content_type", b"application/json")
        signer = evolve(self.signer, **signing)
        return self.send(method, target, signer.headers(method.encode(), target.encode(), sent, content_type), sent)

    def create(self, **signing: Any) -> str:
        """Create a kernel and give its id."""
        answer = self.request("POST", "/v2/kernel/create", {"lang": "python3", "clientSessionToken": TOKEN}, **signing)
        self.assertEqual(answer.status, 201)
        kernel_id: str = answer.json["kernelId"]
        return kernel_id

    def assert_problem(self, answer: Answer, status: int, slug: str, title: str | None = None) -> None:
        """See that an answer is this problem in every respect clients look at."""
        self.assertEqual((answer.status, answer.body and answer.slug), (status, slug), answer)
        self.assertEqual(answer.headers["content-type"], "application/problem+json; charset=utf-8")
        self.assertEqual(answer.headers["content-length"], str(len(answer.body)))
        self.assertEqual(list(answer.json)[:2], ["type", "title"])
        if title is not None:
            self.assertEqual(answer.json["title"], title)
