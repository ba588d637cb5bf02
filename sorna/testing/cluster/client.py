"""A client of one manager that blocks, for tests and loads: signed requests, and the few calls that a session is made of.

Knows the published interface and nothing of the cluster. Every call is bounded in time.
"""

from __future__ import annotations

import http.client
import json
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from attrs import define, frozen

from sorna.client.signing import Credentials, signed_headers

VERSION = "v2.20170315"
BOUNDARY = "0123456789abcdef"


@frozen
class Answer:
    """What a manager said.

    :ivar status: of the answer; 0 when there was none.
    :ivar body: the parsed JSON, or None.
    :ivar headers: with lower-case names.
    """

    status: int
    body: Any
    headers: Mapping[str, str]

    @property
    def problem(self) -> str:
        """The last part of the problem's type, and what it says; empty when it is none."""
        if isinstance(self.body, dict) and "type" in self.body:
            return f"{self.body['type'].rpartition('/')[2]}: {self.body.get('title', '')}"
        return ""


class RequestRefused(Exception):
    """The answer was not the one that was wanted; :ivar answer: it."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"{answer.status} {answer.problem}")
        self.answer = answer


@frozen
class Progress:
    """What one answer says of a run.

    :ivar status: ``continued``, ``waiting-input`` or ``finished``.
    :ivar text: what it printed since the last answer.
    """

    status: str
    text: str
    exit_code: int | None


@define
class Client:
    """Calls one manager with one keypair.

    :ivar seconds: gives the time since the epoch, for signatures; a reactor's ``seconds``.
    """

    address: str
    port: int
    credentials: Credentials
    seconds: Callable[[], float]
    timeout: float = 30.0

    def request(
        self,
        method: str,
        target: str,
        content: bytes = b"",
        kind: str = "application/json",
        timeout: float | None = None,
    ) -> Answer:
        """Send one request.

        :raises OSError, http.client.HTTPException: there was no answer.
        """
        connection = http.client.HTTPConnection(self.address, self.port, timeout=timeout or self.timeout)
        try:
            connection.request(method, target, content, self.headers(method, target, content, kind))
            response = connection.getresponse()
            said = response.read()
        finally:
            connection.close()
        names = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status, json.loads(said) if "json" in names.get("content-type", "") else None, names)

    def headers(self, method: str, target: str, content: bytes = b"", kind: str = "application/json") -> dict[str, str]:
        """Give the headers of a signed request."""
        return signed_headers(
            self.credentials,
            method=method,
            target=target,
            host=f"{self.address}:{self.port}",
            content_type=kind,
            body=content,
            version=VERSION,
            now=self.seconds(),
        )

    def call(self, method: str, target: str, content: Any = None, *, timeout: float | None = None) -> Any:
        """Send JSON and give the JSON of an answer that is a success.

        :raises RequestRefused: it is none.
        """
        raw = b"" if content is None else json.dumps(content).encode()
        answer = self.request(method, target, raw, timeout=timeout)
        if answer.status >= 400:
            raise RequestRefused(answer)
        return answer.body

    def create(self, token: str = "", runtime: str = "python3", **more: Any) -> str:
        """Make or find a kernel and give its id."""
        wanted = {"lang": runtime, "clientSessionToken": token or f"t-{secrets.token_hex(8)}", **more}
        return str(self.call("POST", "/v2/kernel/create", wanted)["kernelId"])

    def destroy(self, kernel: str) -> Any:
        """End a kernel."""
        return self.call("DELETE", f"/v2/kernel/{kernel}")

    def info(self, kernel: str) -> Any:
        """Describe a kernel."""
        return self.call("GET", f"/v2/kernel/{kernel}")

    def execute(self, kernel: str, run: str, code: str = "", mode: str = "query", **more: Any) -> Progress:
        """Start (``query``) or go on with (``continue``) a run, and give what one answer says."""
        wanted = {"mode": mode, "code": code, "runId": run, **more}
        result = self.call("POST", f"/v2/kernel/{kernel}", wanted)["result"]
        text = "".join(text for stream, text in result["console"] or () if stream in {"stdout", "stderr"})
        return Progress(result["status"], text, result.get("exitCode"))

    def run(self, kernel: str, code: str) -> tuple[int | None, str]:
        """Run code to its end; give the exit code and everything it printed."""
        run, said = secrets.token_hex(8), []
        progress = self.execute(kernel, run, code)
        said.append(progress.text)
        while progress.status != "finished":
            progress = self.execute(kernel, run, mode="continue")
            said.append(progress.text)
        return progress.exit_code, "".join(said)

    def create_and_destroy(self) -> None:
        """Do the least that shows that new work succeeds."""
        self.destroy(self.create())

    def upload(self, kernel: str, path: str, content: bytes) -> None:
        """Write one file into a kernel's working directory."""
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="src"; filename="{path}"\r\n\r\n'
        body = head.encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()
        kind = f"multipart/form-data; boundary={BOUNDARY}"
        answer = self.request("POST", f"/v2/kernel/{kernel}/upload", body, kind)
        if answer.status >= 400:
            raise RequestRefused(answer)
