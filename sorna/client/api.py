"""A small asynchronous client of Sorna's REST API: one method per call, signed, bounded and with a deadline of its own.

Knows the wire and nothing of terminals, files or configuration.  The HTTP client and the clock are handed in, so that the
same code runs over a socket and, in tests, over a resource in memory.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar, cast
from urllib.parse import quote

from treq.client import HTTPClient
from treq.content import collect
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeadlinePassed
from twisted.internet.error import ConnectError, ConnectionClosed, DNSLookupError
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from twisted.web._newclient import RequestTransmissionFailed  # defined there only, and raised out of Agent
from twisted.web.client import ResponseFailed
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from sorna.client.signing import Credentials, signed_headers
from sorna.client.tunnels import Handshake
from sorna.client.wire import (
    Answer,
    ApiError,
    App,
    BuildFinished,
    Call,
    Output,
    Reply,
    Session,
    answer_of,
    apps_of,
    host_header,
    json_object,
    multipart,
    raise_problem,
    text_of,
)

API_VERSION = "v3.20170615"
PREFIX = "/v3"
JSON = "application/json"
NO_BODY = "application/octet-stream"

MOST_FILES = 20  # per upload, and
LARGEST_FILE = 1024 * 1024  # bytes each: the published limits of the interface
LARGEST_ANSWER = 64 * 1024 * 1024

# Seconds.  A call to execute is answered after two at the latest; the others may have to wait for an agent.
QUICK, SLOW = 15.0, 60.0
# For one piece of an upload, or for a whole download, which goes on where it stopped when that was too short.
TRANSFER = 600.0

_UNREACHABLE = (
    ConnectError,
    ConnectionClosed,
    DNSLookupError,
    RequestTransmissionFailed,
    ResponseFailed,
)


T = TypeVar("T")

# Is asked with True for input that must not be shown; gives the typed line, or None to interrupt the run instead.
ReadInput = Callable[[bool], Awaitable[str | None]]


class ApiClient:
    """The calls of the REST API, in the name of one keypair.

    :param endpoint: for instance ``http://127.0.0.1:8080``; a path in it is put before every path and not signed, as the
        published clients do for servers behind a proxy that strips it.
    :param clock: gives deadlines and, by ``seconds()``, the wall time for the Date header.
    :param largest_answer: bytes of an answer's body.
    :raises ValueError: the endpoint is no http or https URL.
    """

    def __init__(
        self,
        http: HTTPClient,
        endpoint: str,
        access_key: str,
        secret_key: str,
        clock: IReactorTime,
        *,
        largest_answer: int = LARGEST_ANSWER,
    ) -> None:
        self._http = http
        self._endpoint = self.endpoint = endpoint.rstrip("/")
        self._host = host_header(endpoint)
        self._credentials = Credentials(access_key, secret_key)
        self._clock = clock
        self._largest_answer = largest_answer

    async def version(self) -> str:
        """Ask which version of the interface the server speaks at the most; needs no valid keypair."""
        return text_of(await self._json("GET", "", QUICK), "version")

    async def create(
        self,
        runtime: str,
        token: str,
        *,
        environ: Mapping[str, str] | None = None,
        mounts: Sequence[str] = (),
        memory: int = 0,
        execution_timeout: float = 0.0,
        labels: Mapping[str, str] | None = None,
        wait: float = 0.0,
    ) -> Session:
        """Get the kernel of this session token, or create it.

        :param mounts: names of folders, with a colon and an alias where wanted.
        :param memory: bytes, 0 for the default.
        :param execution_timeout: seconds, 0 for the default.
        :param labels: that its agent must have.
        :param wait: seconds that it may wait for an agent where none is free.
        """
        body: dict[str, Any] = {
            "lang": runtime,
            "clientSessionToken": token,
            "limits": {"maxMem": memory // 1024, "execTimeout": int(execution_timeout * 1000)},
            "config": {"environ": dict(environ or {}), **({"mounts": list(mounts)} if mounts else {})},
        }
        if labels:
            body["config"]["labels"] = dict(labels)
        if wait:
            body["maxWaitSeconds"] = wait
        answer = await self._json("POST", "/kernel/create", SLOW + wait, body)
        return Session(text_of(answer, "kernelId"), bool(answer.get("created", True)))

    async def info(self, kernel_id: str) -> dict[str, Any]:
        """Describe a kernel: its age and limits, in the interface's own names and units."""
        return await self._json("GET", _kernel(kernel_id), QUICK)

    async def restart(self, kernel_id: str) -> None:
        """Throw the kernel's memory away and keep its files."""
        await self.call("PATCH", _kernel(kernel_id), SLOW)

    async def destroy(self, kernel_id: str) -> dict[str, Any] | None:
        """End a kernel; gives what it used, where the server tells."""
        reply = await self.call("DELETE", _kernel(kernel_id), SLOW)
        if reply.status != 200:
            return None
        stats = json_object(reply).get("stats")
        return stats if isinstance(stats, dict) else None

    async def interrupt(self, kernel_id: str) -> None:
        """Interrupt what runs now."""
        await self.call("POST", _kernel(kernel_id, "/interrupt"), QUICK)

    async def complete(self, kernel_id: str, code: str, options: Mapping[str, Any]) -> list[str]:
        """Complete code at ``options``: row, col, line, post."""
        body = {"code": code, "options": dict(options)}
        answer = await self._json("POST", _kernel(kernel_id, "/complete"), QUICK, body)
        result = answer.get("result")
        found = result.get("completions") if isinstance(result, dict) else None
        return [str(item) for item in found] if isinstance(found, list) else []

    async def logs(self, kernel_id: str) -> str:
        """Give the kernel's recent console output."""
        answer = await self._json("GET", _kernel(kernel_id, "/logs"), QUICK)
        result = answer.get("result")
        return text_of(result if isinstance(result, dict) else {}, "logs")

    async def upload(self, kernel_id: str, files: Sequence[tuple[str, bytes]]) -> None:
        """Write files, each given by its path below the working directory and its content.

        More than the interface takes at once go in several calls.

        :raises ValueError: a path cannot be a file name of a form.
        """
        for start in range(0, len(files), MOST_FILES):
            content_type, body = multipart(files[start : start + MOST_FILES])
            await self.call("POST", _kernel(kernel_id, "/upload"), SLOW, body, content_type)

    async def execute(self, kernel_id: str, call: Call) -> Answer:
        """Make one call to execute and give its one answer; :meth:`run` makes as many as a run needs."""
        answer = await self._json("POST", _kernel(kernel_id), SLOW, call.body())
        return answer_of(answer.get("result"))

    def run(self, kernel_id: str, code: str, read_input: ReadInput) -> Run:
        """Run code as if typed at the kernel's prompt."""
        return Run(self, kernel_id, Call("query", code), read_input)

    def run_batch(self, kernel_id: str, build: str | None, execute: str | None, read_input: ReadInput) -> Run:
        """Build and run what was uploaded; ``*`` is the runtime's own command, None leaves the step out."""
        options = {"build": build, "exec": execute, "buildLog": False}
        return Run(self, kernel_id, Call("batch", options=options), read_input)

    async def ask(self, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Ask the administration a GraphQL query, or tell it a mutation, and give the data of the answer."""
        return await self._json("POST", "/admin/graphql", SLOW, {"query": query, "variables": dict(variables)})

    async def apps(self, kernel_id: str) -> Sequence[App]:
        """List the applications in a kernel that can be reached."""
        return apps_of(await self.call("GET", f"/stream{_kernel(kernel_id, '/apps')}", SLOW))

    def tunnel_handshake(self, kernel_id: str, app: str) -> Handshake:
        """Give what opens a connection with an application."""
        target = f"{PREFIX}/stream{_kernel(kernel_id, '/tcpproxy')}?app={quote(app, safe='')}&half-close=1"
        return Handshake(self._endpoint, target, self._signed("GET", target, b"", NO_BODY))

    def _signed(self, method: str, target: str, body: bytes, content_type: str) -> dict[str, str]:
        return signed_headers(
            self._credentials,
            method=method,
            target=target,
            host=self._host,
            content_type=content_type,
            body=body,
            version=API_VERSION,
            now=self._clock.seconds(),
        )

    async def make_ticket(self, agent_id: str | None, minutes: int) -> dict[str, Any]:
        """Have a ticket made with which one agent can enrol itself; for administrators."""
        return await self._json("POST", "/admin/agents/ticket", SLOW, {"agent_id": agent_id, "minutes": minutes})

    async def restart_agent(self, agent_id: str) -> None:
        """Have an agent replace its program; for administrators."""
        await self.call("POST", f"/admin/agents/{quote(agent_id, safe='')}/restart", SLOW)

    async def revoke_agent(self, agent_id: str) -> dict[str, Any]:
        """Take an agent back and end its kernels; for administrators."""
        return json_object(await self.call("DELETE", f"/admin/agents/{quote(agent_id, safe='')}", SLOW))

    async def _json(
        self, method: str, path: str, deadline: float, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Make a call with a JSON object, and give the JSON object of its answer."""
        sent = None if body is None else json.dumps(body).encode("utf-8")
        return json_object(await self.call(method, path, deadline, sent, JSON))

    async def call(
        self, method: str, path: str, deadline: float, body: bytes | None = None, content_type: str = NO_BODY
    ) -> Reply:
        """Make a signed call and give its answer if it is a good one, else raise what it says.

        :param path: without the version's prefix.
        :param deadline: seconds.
        """
        reply = await self._within(deadline, self._exchange(method, PREFIX + path, body, content_type))
        if not 200 <= reply.status < 300:
            raise_problem(reply)
        return reply

    async def transfer(
        self,
        method: str,
        url: str,
        headers: Mapping[bytes, bytes],
        body: bytes | None = None,
        keep: Callable[[bytes], None] | None = None,
        *,
        deadline: float = TRANSFER,
    ) -> Reply:
        """Make a call without a signature, and give its answer whatever that is.

        :param keep: is given the pieces of the body, if the answer is the whole of what was asked for or the rest of it; any
            other body is bounded and comes with the reply.
        """
        return await self._within(deadline, self._send(method, url, headers, body, keep))

    async def _send(
        self,
        method: str,
        url: str,
        headers: Mapping[bytes, bytes],
        body: bytes | None,
        keep: Callable[[bytes], None] | None,
    ) -> Reply:
        sent = Headers({name: [value] for name, value in headers.items()})
        response = await self._http.request(
            method, url, headers=sent, data=body, allow_redirects=False, unbuffered=True
        )
        got = {
            name.decode("latin-1").lower(): values[-1].decode("latin-1")
            for name, values in response.headers.getAllRawHeaders()
        }
        if keep is not None and response.code == (206 if b"Range" in headers else 200):
            await collect(response, keep)
            return Reply(response.code, b"", got)
        return Reply(response.code, await _read(response, self._largest_answer), got)

    async def _within(self, deadline: float, work: Coroutine[Any, Any, Reply]) -> Reply:
        exchange = abandonable(Deferred.fromCoroutine(work))
        try:
            return await exchange.addTimeout(deadline, self._clock)
        except DeadlinePassed as error:
            raise ApiError(0, "timeout", f"No answer from {self._endpoint} within {deadline:.0f} s.") from error
        except _UNREACHABLE as error:
            raise ApiError(0, "unreachable", f"Cannot reach {self._endpoint}: {_reason(error)}") from error

    async def _exchange(self, method: str, target: str, body: bytes | None, content_type: str) -> Reply:
        signed = self._signed(method, target, body or b"", content_type)
        headers = Headers({name: [value] for name, value in signed.items()})
        response = await self._http.request(
            method, self._endpoint + target, headers=headers, data=body, allow_redirects=False, unbuffered=True
        )
        return Reply(response.code, await _read(response, self._largest_answer))


class Run:
    """A run as an asynchronous iterator over its :class:`Output` and :class:`BuildFinished`.

    It makes the next call only when everything of the last answer was taken, so a slow reader slows the run down.

    :ivar exit_code: known after the end; None where the runtime has none.
    """

    def __init__(self, client: ApiClient, kernel_id: str, call: Call, read_input: ReadInput) -> None:
        self._client = client
        self._kernel_id = kernel_id
        self._read_input = read_input
        self._next: Call | None = call
        self._asked: Answer | None = None
        self._items: list[Output | BuildFinished] = []  # in reverse, so that the next one is at the end
        self.exit_code: int | None = None

    def __aiter__(self) -> Run:
        return self

    async def __anext__(self) -> Output | BuildFinished:
        while not self._items:
            if self._asked is not None:
                await self._feed(self._asked)
            if self._next is None:
                raise StopAsyncIteration
            self._take(await self._client.execute(self._kernel_id, self._next))
        return self._items.pop()

    async def _feed(self, asked: Answer) -> None:
        """Get the line that the run waits for; nothing typed means to interrupt it."""
        self._asked = None
        line = await self._read_input(asked.is_password)
        if line is None:
            await self._client.interrupt(self._kernel_id)
            self._next = Call("continue", "", asked.run_id)
        else:
            self._next = Call("input", line, asked.run_id)

    def _take(self, answer: Answer) -> None:
        """Keep what the answer brings and decide what to ask next."""
        self._items = list(reversed(answer.console))
        self._next = Call("continue", "", answer.run_id)
        if answer.status == "waiting-input":
            self._asked = answer
        elif answer.status == "build-finished":
            self._items.insert(0, BuildFinished(answer.exit_code))
        elif answer.status != "continued":
            # "finished", and whatever an older or newer server may say at the end: never ask for ever.
            self.exit_code = answer.exit_code
            self._next = None


def abandonable(work: Deferred[T]) -> Deferred[T]:
    """Give what ``work`` gives, but CancelledError when cancelled: an HTTP request that is cut off reports a broken answer."""
    given_up = False

    def give_up(_: Deferred[T]) -> None:
        nonlocal given_up
        given_up = True
        work.cancel()

    outcome: Deferred[T] = Deferred(give_up)

    def hand_on(result: T | Failure) -> None:
        if not given_up:
            outcome.callback(cast("T", result))  # a Failure goes down the other path by itself

    work.addBoth(hand_on)
    return outcome


def _kernel(kernel_id: str, rest: str = "") -> str:
    return f"/kernel/{quote(kernel_id, safe='')}{rest}"


async def _read(response: IResponse, most: int) -> bytes:
    """Read a body of bounded size."""
    chunks: list[bytes] = []
    size = 0

    def keep(chunk: bytes) -> None:
        nonlocal size
        size += len(chunk)
        if size > most:
            raise ApiError(response.code, "unreadable-answer", "The answer is larger than this client takes.")
        chunks.append(chunk)

    await collect(response, keep)
    return b"".join(chunks)


def _reason(error: Exception) -> str:
    """Say in one line why a connection failed."""
    if isinstance(error, ResponseFailed | RequestTransmissionFailed) and error.reasons:
        return str(error.reasons[0].value)
    return str(error) or type(error).__name__
