"""What tests of the HTTP door need besides kernels: keypairs, counters and readiness in memory, and a signing client."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

from attrs import define, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from sorna.errors import RateLimitExceeded
from sorna.gateway.authentication import SignedRequest, sign, string_to_sign
from sorna.manager.interfaces import RateState
from sorna.model.keypair import EXAMPLE_ACCESS_KEY, EXAMPLE_SECRET_KEY, Keypair

T = TypeVar("T")

EXAMPLE = Keypair(EXAMPLE_ACCESS_KEY, EXAMPLE_SECRET_KEY)


class MemoryKeypairs:
    """An implementation of :class:`sorna.gateway.interfaces.Keypairs`."""

    def __init__(self, *keypairs: Keypair) -> None:
        self.all = {keypair.access_key: keypair for keypair in keypairs}
        self.uses: list[str] = []
        self.searches: list[str] = []
        self.watchers: dict[str, list[Callable[[Keypair | None], None]]] = {}

    async def find(self, access_key: str) -> Keypair | None:
        """Give a keypair."""
        self.searches.append(access_key)
        return self.all.get(access_key)

    def watch(self, access_key: str, on_change: Callable[[Keypair | None], None]) -> Callable[[], None]:
        """Keep a watcher until its watch is ended."""
        watchers = self.watchers.setdefault(access_key, [])
        watchers.append(on_change)
        return lambda: watchers.remove(on_change)

    def change(self, access_key: str, keypair: Keypair | None) -> None:
        """Replace or remove a keypair and tell who watches it."""
        self.all.pop(access_key, None)
        if keypair is not None:
            self.all[access_key] = keypair
        for on_change in tuple(self.watchers.get(access_key, ())):
            on_change(keypair)

    def used(self, access_key: str) -> None:
        """Remember a use."""
        self.uses.append(access_key)


class MemoryRateLimits:
    """An implementation of :class:`sorna.gateway.interfaces.RateLimits`, whose windows end on the clock."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._windows: dict[str, tuple[int, float]] = {}

    async def hit(self, access_key: str, limit: int) -> RateState:
        """Count one request."""
        now = self._clock.seconds()
        remaining, end = self._windows.get(access_key, (limit + 1, now + 900))
        if now >= end:
            remaining, end = limit + 1, now + 900
        remaining -= 1
        reset = round((end - now) * 1000)
        if remaining <= 0:
            raise RateLimitExceeded(reset=reset)
        self._windows[access_key] = (remaining, end)
        return RateState(limit, remaining, reset)

    def forget(self) -> None:
        """Let everybody's window begin anew."""
        self._windows.clear()

    @property
    def counted(self) -> frozenset[str]:
        """The access keys that were ever counted."""
        return frozenset(self._windows)


class MemoryOperations:
    """An implementation of :class:`sorna.gateway.interfaces.Operations`."""

    def __init__(self) -> None:
        self.running: list[Deferred[Any]] = []

    def detach(self, work: Coroutine[Any, Any, T]) -> Deferred[T]:
        """Start work that a cancellation of the result leaves alone."""
        running, waiting = Deferred.fromCoroutine(work), Deferred[T]()
        self.running.append(running)

        def done(result: T | Failure) -> None:
            self.running.remove(running)
            if not waiting.called:
                waiting.callback(result)

        running.addBoth(done)
        return waiting


@define
class MemoryReadiness:
    """An implementation of :class:`sorna.gateway.interfaces.Readiness`, ready unless it has a reason not to be."""

    reason: str = ""

    @property
    def is_ready(self) -> bool:
        """Whether there is no reason against it."""
        return not self.reason


@frozen
class Signer:
    """A client of the time: builds the headers of a signed request."""

    clock: IReactorTime
    keypair: Keypair = EXAMPLE
    host: bytes = b"127.0.0.1:8081"
    scheme: bytes = b"BackendAI"
    version: bytes = b"v2.20170315"
    version_header: bytes = b"X-BackendAI-Version"
    hash_algorithm: str = "sha256"
    changes: Mapping[bytes, bytes] = field(factory=dict)

    def date(self) -> datetime:
        """Give the time of signing."""
        return datetime.fromtimestamp(self.clock.seconds(), UTC)

    def headers(
        self, method: bytes, target: bytes, body: bytes = b"", content_type: bytes = b"application/json"
    ) -> dict[bytes, bytes]:
        """Give all headers of a request; ``changes`` are made after signing."""
        now = self.date()
        request = SignedRequest(
            method=method,
            target=target,
            date=now.isoformat().encode("ascii"),
            host=self.host,
            content_type=content_type,
            version_header=self.version_header.lower(),
            version=self.version,
            body=body,
        )
        text = string_to_sign(request, self.hash_algorithm, target, self.host)
        day = now.strftime("%Y%m%d")
        signature = sign(self.keypair.secret_key, self.hash_algorithm, day, self.host, text)
        authorization = (
            f"signMethod=HMAC-{self.hash_algorithm.upper()}, credential={self.keypair.access_key}:{signature}"
        )
        return {
            b"Host": self.host,
            b"Date": request.date,
            b"Content-Type": content_type,
            self.version_header: self.version,
            b"Authorization": self.scheme + b" " + authorization.encode("ascii"),
            **self.changes,
        }


def encode(content: Any) -> bytes:
    """Encode a body as clients do."""
    return json.dumps(content).encode("ascii")


def form(*files: tuple[str, bytes], boundary: str = "0123456789") -> tuple[bytes, bytes]:
    """Build a multipart body: its content type, and itself."""
    lines = []
    for path, content in files:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="src"; filename="{path}"\r\n\r\n'
        lines.append(head.encode() + content + b"\r\n")
    body = b"".join(lines) + f"--{boundary}--\r\n".encode()
    return f"multipart/form-data; boundary={boundary}".encode(), body
