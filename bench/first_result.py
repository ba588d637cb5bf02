"""How long until code has run: create to first result, and one execution on a live kernel, through the signed REST API.

``make bench``, or this file as a script: it starts a server of its own, or measures the one that
``--endpoint`` names.  Beside them it measures, in the same run and with the same client, a resource of bare twisted.web that
answers a constant: what remains after that is Sorna's.  The client is a blocking socket with requests that were built and signed
before the clock starts, so that its own cost is small; every number is as seen by that client.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from attrs import frozen
from twisted.internet import task
from twisted.internet.defer import Deferred
from twisted.web.resource import Resource
from twisted.web.server import Site

from sorna.client.signing import Credentials, signed_headers
from sorna.client.wire import host_header
from sorna.testing.server import PROJECT, RunningServer, running_server

VERSION = "v3.20170615"
JSON = "application/json"
EXECUTE = json.dumps({"mode": "query", "code": "1+1", "runId": None}).encode()
TIMEOUT = 60.0
MOST = 240  # four requests for each, within the 1000 of a keypair's window


@frozen
class Answer:
    """A status and a body."""

    status: int
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class Connection:
    """One kept-alive connection that sends prepared requests."""

    def __init__(self, server: RunningServer) -> None:
        parts = urlsplit(server.endpoint)
        self._host = host_header(server.endpoint)
        self._credentials = Credentials(server.access_key, server.secret_key)
        self._socket = socket.create_connection((parts.hostname, parts.port or 80), timeout=TIMEOUT)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""

    def prepare(self, method: str, path: str, body: bytes = b"") -> bytes:
        """Give a signed request as it goes over the wire."""
        headers = signed_headers(
            self._credentials,
            method=method,
            target=f"/v3{path}",
            host=self._host,
            content_type=JSON,
            body=body,
            version=VERSION,
            now=time.clock_gettime(time.CLOCK_REALTIME),
        )
        lines = [f"{method} /v3{path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body

    def ask(self, request: bytes) -> Answer:
        """Send a request and read its answer."""
        self._socket.sendall(request)
        while (end := self._received.find(b"\r\n\r\n")) < 0:
            self._receive()
        head, rest = self._received[:end], self._received[end + 4 :]
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line[:15].lower() == b"content-length:")
        self._received = rest
        while len(self._received) < length:
            self._receive()
        body, self._received = self._received[:length], self._received[length:]
        return Answer(int(head[9:12]), body)

    def _receive(self) -> None:
        chunk = self._socket.recv(65536)
        if not chunk:
            raise ConnectionError("the server closed the connection")
        self._received += chunk

    def close(self) -> None:
        """Close it."""
        self._socket.close()


class Bench:
    """The measured loops."""

    def __init__(self, server: RunningServer) -> None:
        self.connection = Connection(server)

    def create(self, request: bytes) -> str:
        """Create a kernel and give its id."""
        answer = self.connection.ask(request)
        if answer.status != 201:
            raise SystemExit(f"create was answered with {answer.status}: {answer.body.decode()}")
        return str(answer.json["kernelId"])

    def create_request(self) -> bytes:
        """Prepare the creation of another kernel."""
        body = {"lang": "python3", "clientSessionToken": secrets.token_hex(16)}
        return self.connection.prepare("POST", "/kernel/create", json.dumps(body).encode())

    def destroy(self, kernel: str) -> None:
        """Destroy a kernel."""
        self.connection.ask(self.connection.prepare("DELETE", f"/kernel/{kernel}"))

    def execute(self, request: bytes) -> None:
        """Run 1+1 and see that it is 2."""
        answer = self.connection.ask(request)
        result = answer.json.get("result", {})
        if answer.status != 200 or result.get("status") != "finished" or "2" not in str(result.get("console")):
            raise SystemExit(f"execute was answered with {answer.status}: {answer.body.decode()}")

    def first_results(self, count: int) -> tuple[list[float], list[float]]:
        """Measure create alone, and create to first result; each kernel is destroyed outside of the clock."""
        created, first = [], []
        for request in [self.create_request() for _ in range(count)]:
            begin = time.perf_counter()
            kernel = self.create(request)
            created.append(time.perf_counter() - begin)
            execute = self.connection.prepare("POST", f"/kernel/{kernel}", EXECUTE)
            self.execute(execute)
            first.append(time.perf_counter() - begin)
            self.destroy(kernel)
        return created, first

    def round_trips(self, count: int) -> list[float]:
        """Measure execution on a live kernel, warmed up by five."""
        kernel = self.create(self.create_request())
        request = self.connection.prepare("POST", f"/kernel/{kernel}", EXECUTE)
        for _ in range(5):
            self.execute(request)
        measured = timed(lambda: self.execute(request), count)
        self.destroy(kernel)
        return measured


def timed(action: Callable[[], object], count: int) -> list[float]:
    """Measure an action again and again."""
    measured = []
    for _ in range(count):
        begin = time.perf_counter()
        action()
        measured.append(time.perf_counter() - begin)
    return measured


class Constant(Resource):
    """Answers every POST alike."""

    isLeaf = True

    def render_POST(self, request: Any) -> bytes:
        """Read the body and answer a constant."""
        request.content.read()
        return b'{"result": {"status": "finished", "console": [["stdout", "2\\n"]]}}'


def serve_constant(reactor: Any) -> Deferred[None]:
    """Serve :class:`Constant` on a free port until the input ends."""
    port = reactor.listenTCP(0, Site(Constant(), parsePOSTFormSubmission=False), interface="127.0.0.1")
    sys.stdout.write(f"{port.getHost().port}\n")
    sys.stdout.flush()
    return Deferred()


@contextlib.contextmanager
def reference_server() -> Iterator[RunningServer]:
    """Run :func:`serve_constant` in a process of its own."""
    command = [sys.executable, __file__, "--serve-constant"]
    environ = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield RunningServer(f"http://127.0.0.1:{int(process.stdout.readline())}", "reference", "reference")
        finally:
            process.terminate()


def row(name: str, measured: Sequence[float], reference: float | None = None) -> str:
    """Give a line of the table, in milliseconds."""
    ordered = sorted(measured)
    median = ordered[len(ordered) // 2]
    high = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    ratio = f"{median / reference:9.1f}" if reference else ""
    return f"{name:<32}{median * 1000:9.2f}{high * 1000:9.2f}{ordered[0] * 1000:9.2f}{ordered[-1] * 1000:9.2f}{ratio}"


def server_version(server: RunningServer) -> str:
    """Ask what is being measured."""
    parts = urlsplit(server.endpoint)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=TIMEOUT)
    with contextlib.closing(connection):
        connection.request("GET", "/v3")
        answer = connection.getresponse()
        return f"{answer.getheader('Server')}, interface {json.loads(answer.read()).get('version')}"


def measure(server: RunningServer, count: int) -> str:
    """Measure everything and give the table."""
    with reference_server() as reference:
        constant = Connection(reference)
        request = constant.prepare("POST", "/kernel/x", EXECUTE)
        timed(lambda: constant.ask(request), 20)
        floor = timed(lambda: constant.ask(request), count)
        constant.close()
    bench = Bench(server)
    for _ in range(3):
        bench.destroy(bench.create(bench.create_request()))
    # First, because an agent makes kernels in advance for a while after many were asked for.
    trips = bench.round_trips(count)
    created, first = bench.first_results(count)
    bench.connection.close()
    median = sorted(floor)[len(floor) // 2]
    lines = [
        f"{server_version(server)}; n = {count}",
        f"{'milliseconds':<32}{'median':>9}{'p99':>9}{'min':>9}{'max':>9}{'x floor':>9}",
        row("create", created, median),
        row("create -> first result", first, median),
        row("execute 1+1 on a live kernel", trips, median),
        row("floor: constant, twisted.web", floor),
    ]
    return "\n".join(lines)


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--endpoint", help="a running server; without it, one is started")
    parser.add_argument("--access-key", default="")
    parser.add_argument("--secret-key", default="")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--serve-constant", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not 1 <= options.count <= MOST:
        parser.error(f"--count must be 1 to {MOST}: a keypair may make 1000 requests in its window")
    if options.serve_constant:
        task.react(serve_constant)
    with contextlib.ExitStack() as stack:
        server = (
            RunningServer(options.endpoint, options.access_key, options.secret_key)
            if options.endpoint
            else stack.enter_context(running_server())
        )
        sys.stdout.write(measure(server, options.count) + "\n")


if __name__ == "__main__":
    main()
