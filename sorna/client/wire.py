"""What goes over the wire between the client and the REST API, as values and pure functions: calls, answers, problems, forms.

Knows no sockets, no clock and no terminal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn
from urllib.parse import urlsplit

from attrs import field, frozen


class ApiError(Exception):
    """A call did not succeed.

    :ivar status: the HTTP status, or 0 when no answer came.
    :ivar type: the last part of the problem's type URI, for instance ``kernel-not-found``; without an answer
        ``unreachable``, ``timeout`` or ``unreadable-answer``.
    :ivar title: a sentence for a human reader.
    """

    def __init__(self, status: int, type: str, title: str) -> None:  # noqa: A002 - the problem document's own word
        super().__init__(title)
        self.status = status
        self.type = type
        self.title = title

    def __str__(self) -> str:
        return f"{self.title} [{self.status or 'no answer'}, {self.type}]"


@frozen
class Session:
    """A kernel as create gives it.

    :ivar created: False when the token named a kernel that was already there.
    """

    kernel_id: str
    created: bool


@frozen
class App:
    """An application in a kernel. ``protocol`` is http, tcp, or preopen where only its user knows."""

    name: str
    protocol: str
    port: int


@frozen
class Output:
    """One item of a run's console.

    :ivar kind: stdout, stderr, html, log or media.
    :ivar data: text; for media a pair of MIME type and text or data URI.
    """

    kind: str
    data: Any


@frozen
class BuildFinished:
    """The build step of a batch run is over."""

    exit_code: int | None


@frozen
class Call:
    """One call to execute, as it is sent."""

    mode: str
    code: str = ""
    run_id: str | None = None
    options: Mapping[str, Any] | None = None

    def body(self) -> dict[str, Any]:
        """Give the JSON object of the request."""
        body: dict[str, Any] = {"mode": self.mode, "code": self.code, "runId": self.run_id}
        if self.options is not None:
            body["options"] = dict(self.options)
        return body


@frozen
class Answer:
    """One answer of execute."""

    status: str
    run_id: str | None
    console: tuple[Output, ...]
    exit_code: int | None
    is_password: bool


@frozen
class Reply:
    """An answer of the server as it came.

    :ivar headers: the last value of each, by its name in lower case; only for transfers.
    """

    status: int
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(factory=dict)


def host_header(endpoint: str) -> str:
    """Give the Host header for a URL: with the port unless it is the scheme's own.

    :raises ValueError: it is no http or https URL with a host.
    """
    parts = urlsplit(endpoint)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"the endpoint {endpoint!r} is not a URL like http://127.0.0.1:8080")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    own = {"http": 80, "https": 443}[parts.scheme]
    return host if parts.port in {None, own} else f"{host}:{parts.port}"


_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")


def multipart(files: Sequence[tuple[str, bytes]], boundary: str = "") -> tuple[str, bytes]:
    """Give the content type and the body of a form with these files.

    :param boundary: chosen so that no file holds it, unless given.
    :raises ValueError: a path holds control characters.
    """
    number = 0
    while not boundary or any(boundary.encode() in content for _, content in files):
        boundary = f"sorna-upload-{number:08}"
        number += 1
    chunks: list[bytes] = []
    for path, content in files:
        if _UNPRINTABLE.search(path):
            raise ValueError(f"the path {path!r} holds control characters")
        name = path.replace("\\", "\\\\").replace('"', '\\"')
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="src"; filename="{name}"\r\n'
            f"Content-Type: application/octet-stream\r\n\r\n"
        )
        chunks += [head.encode("utf-8"), content, b"\r\n"]
    chunks.append(f"--{boundary}--\r\n".encode())
    return f"multipart/form-data; boundary={boundary}", b"".join(chunks)


def json_object(reply: Reply) -> dict[str, Any]:
    """Read the JSON object of an answer."""
    try:
        value = json.loads(reply.body)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ApiError(reply.status, "unreadable-answer", "The answer is not a JSON object: is this a Sorna server?")
    return value


def text_of(value: Mapping[str, Any], key: str) -> str:
    """Give a text that an answer must hold."""
    found = value.get(key)
    if not isinstance(found, str):
        raise ApiError(200, "unreadable-answer", f"The answer holds no {key}.")
    return found


def answer_of(result: Any) -> Answer:
    """Read the ``result`` of execute."""
    if not isinstance(result, dict) or not isinstance(result.get("status"), str):
        raise ApiError(200, "unreadable-answer", "The answer to a run holds no status.")
    options = result.get("options")
    exit_code = result.get("exitCode")
    run_id = result.get("runId")
    return Answer(
        status=result["status"],
        run_id=run_id if isinstance(run_id, str) else None,
        console=_console(result.get("console")),
        exit_code=exit_code if isinstance(exit_code, int) else None,
        is_password=isinstance(options, dict) and bool(options.get("is_password")),
    )


def apps_of(reply: Reply) -> Sequence[App]:
    """Read a list of applications."""
    try:
        return [App(str(row["name"]), str(row["protocol"]), int(row["ports"][0])) for row in json.loads(reply.body)]
    except (ValueError, TypeError, LookupError):
        raise ApiError(reply.status, "unreadable-answer", "The answer is no list of applications.") from None


def _console(items: Any) -> tuple[Output, ...]:
    """Read a console; an item that is no pair of a type and its data is worth no failure."""
    if not isinstance(items, list):
        return ()
    return tuple(Output(str(item[0]), item[1]) for item in items if isinstance(item, list) and len(item) == 2)


def raise_problem(reply: Reply) -> NoReturn:
    """Raise what a problem document says, or what can be said of an answer that is none."""
    try:
        problem = json_object(reply)
    except ApiError:
        problem = {}
    kind = str(problem.get("type") or "unreadable-answer").rstrip("/").rpartition("/")[2]
    title = str(problem.get("title") or f"The server answered with status {reply.status} and no explanation.")
    details = problem.get("agent-details")
    exception = details.get("exception") if isinstance(details, dict) else None
    raise ApiError(reply.status, kind, f"{title} ({exception})" if exception else title)
