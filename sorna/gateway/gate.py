"""What every request passes on its way to a route and back: readiness, authentication, rate limit, errors.

Knows Twisted's headers, not Klein and not how requests are matched to routes.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from attrs import evolve, field, frozen
from twisted.internet.defer import CancelledError
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers

from sorna.errors import RateLimitExceeded, SornaError, Unavailable
from sorna.gateway.authentication import Authentication
from sorna.gateway.call import Access, Call, Reply, encode_json, problem_reply
from sorna.gateway.interfaces import RateLimits, Readiness
from sorna.gateway.problems import CONTENT_TYPE, INTERNAL, Era, problem_body
from sorna.gateway.rate_limit import ANONYMOUS, count, exhausted, rate_headers
from sorna.manager.interfaces import RateState
from sorna.model.keypair import Keypair

Answer = Callable[[Call], Coroutine[Any, Any, Reply]]


@frozen
class Incoming:
    """One request as it was received, matched to a route.

    :ivar method: the one that counts, after ``X-Method-Override``.
    :ivar target: path and query, not decoded.
    :ivar gone: tells whether the client has hung up.
    """

    method: str
    target: bytes
    version: int
    values: Mapping[str, str]
    headers: Headers
    body: bytes = field(repr=False)
    gone: Callable[[], bool]
    stored_to: int | None = None


class Gate:
    """Lets requests through to routes, and turns whatever comes out into a reply."""

    _log = Logger()

    def __init__(self, authentication: Authentication, rate_limits: RateLimits, readiness: Readiness) -> None:
        self._authentication = authentication
        self._rate_limits = rate_limits
        self._readiness = readiness
        # Unique over restarts and processes, and much cheaper than drawing sixteen random bytes for each request.
        self._prefix = secrets.token_hex(4)
        self._numbers = itertools.count(1)

    def new_request_id(self) -> str:
        """Give an id that no other request has."""
        return f"{self._prefix}-{next(self._numbers):x}"

    async def pass_through(self, incoming: Incoming, answer: Answer, access: Access, *, needs_ready: bool) -> Reply:
        """Answer one request; raises nothing but the cancellation that follows a client's hanging up."""
        request_id = self._new_request_id()
        era = era_of(incoming.version, incoming.headers)
        state = ANONYMOUS
        try:
            if needs_ready and not self._readiness.is_ready:
                raise Unavailable("Server not ready.")
            keypair = None
            if access is Access.KEYPAIR:
                keypair = await self._authenticate(incoming)
                state = await self._count(keypair)
            reply = await answer(
                Call(
                    request_id=request_id,
                    method=incoming.method,
                    version=incoming.version,
                    values=incoming.values,
                    content_type=(incoming.headers.getRawHeaders(b"Content-Type") or (b"",))[0],
                    body=incoming.body,
                    keypair=keypair,
                    target=incoming.target,
                    headers=incoming.headers,
                    stored_to=incoming.stored_to,
                )
            )
            if keypair is not None and reply.stream is not None:
                reply = evolve(reply, owner=keypair.access_key)
        except CancelledError:
            if incoming.gone():
                raise
            # Nobody hung up, so something of ours was cancelled that should not have been.
            reply = self._internal_error(request_id, Failure(), era)
        except _Refused as refused:
            state, reply = refused.state, self._problem(refused.error, request_id, era)
        except SornaError as error:
            reply = self._problem(error, request_id, era)
        except Exception:  # noqa: BLE001 - the one place that must survive whatever a route raises
            reply = self._internal_error(request_id, Failure(), era)
        return _complete(reply, request_id, state)

    def refuse(self, error: SornaError, era: Era) -> Reply:
        """Answer a request that never reached a route."""
        request_id = self._new_request_id()
        return _complete(self._problem(error, request_id, era), request_id, ANONYMOUS)

    def break_down(self, failure: Failure, era: Era) -> Reply:
        """Answer a request that met a fault of ours outside of every route."""
        request_id = self._new_request_id()
        return _complete(self._internal_error(request_id, failure, era), request_id, ANONYMOUS)

    async def _authenticate(self, incoming: Incoming) -> Keypair:
        return await self._authentication.authenticate(
            incoming.method.encode("ascii"), incoming.target, incoming.headers, incoming.body
        )

    async def _count(self, keypair: Keypair) -> RateState:
        try:
            return await count(self._rate_limits, keypair)
        except RateLimitExceeded as error:
            raise _Refused(error, exhausted(keypair, error)) from None

    def _new_request_id(self) -> str:
        return f"{self._prefix}-{next(self._numbers):x}"

    def _problem(self, error: SornaError, request_id: str, era: Era) -> Reply:
        reply = problem_reply(error, era)
        if reply.status >= 500:
            self._log.warn(
                "request {request_id} failed: {error}: {detail} (because of {cause})",
                request_id=request_id,
                error=type(error).__name__,
                detail=error.detail,
                cause=repr(error.__cause__),
            )
        return reply

    def _internal_error(self, request_id: str, failure: Failure, era: Era) -> Reply:
        # The client is told nothing but the id by which the operator finds the traceback.
        self._log.failure("request {request_id} met an error that nobody expected", failure, request_id=request_id)
        body = encode_json(problem_body(INTERNAL, f"request {request_id}", era))
        return Reply(INTERNAL.status, body, CONTENT_TYPE)


def era_of(version: int, headers: Headers) -> Era:
    """Tell which generation of servers a request was written for: by its path, or else by its version header."""
    if version in {1, 2} or (version == 0 and headers.hasHeader(b"X-Sorna-Version")):
        return Era.SORNA
    return Era.BACKEND


def _complete(reply: Reply, request_id: str, state: RateState) -> Reply:
    headers = {b"X-Request-Id": request_id.encode("ascii"), **rate_headers(state), **reply.headers}
    # Spelled out, because every request comes by here and ``evolve`` looks at the class each time.
    return Reply(reply.status, reply.body, reply.content_type, headers, reply.stream, reply.session, reply.owner)


class _Refused(Exception):
    """The rate limit refused a request, and this is where its keypair stands."""

    def __init__(self, error: RateLimitExceeded, state: RateState) -> None:
        super().__init__()
        self.error = error
        self.state = state
