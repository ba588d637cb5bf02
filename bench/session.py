"""A server to measure, and what every part does with it: kernels made and ended in numbers, limits out of the way.

Knows the REST interface. The server is started here as ``make run`` starts it (:func:`started`), or is one that runs already.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import urlsplit

from attrs import frozen

from bench.client import Connection, Script, drive
from bench.figures import milliseconds
from bench.processes import agent_of, descendants, processor_time, workers_of
from bench.wire import Answer, Signer, create_body, printed, run_body
from sorna.client.signing import Credentials
from sorna.client.wire import host_header
from sorna.testing.server import RunningServer, running_server

#: More than any part holds at once, and more requests than any part makes.
MOST_KERNELS = 700
MOST_REQUESTS = 2_000_000_000
# So many small kernels that their limits together are far more than the memory of the host.
OPTIONS = (f"--max-kernels={MOST_KERNELS}", "--memory-overcommit=64")
AT_ONCE = 8
#: Seconds until all processes of a server must serve.
PATIENCE = 60.0

_MODIFY = """
mutation($access_key: String!, $props: ModifyKeyPairInput!) {
  modify_keypair(access_key: $access_key, props: $props) { ok msg }
}"""
_LIMITS = "query($access_key: String) { keypair(access_key: $access_key) { rate_limit concurrency_limit } }"


class Failed(Exception):
    """The server answered otherwise than it should; the figure would be of something else."""


@frozen
class Session:
    """A running server and the keypair that is used.

    :ivar signer: signs for it.
    :ivar workers: how many processes share its port, where it was started here.
    """

    server: RunningServer
    signer: Signer
    workers: int = 1

    @property
    def endpoint(self) -> str:
        """The server's URL."""
        return self.server.endpoint

    @property
    def processes(self) -> str:
        """Say for a figure how many processes of the server have part in it."""
        return "one manager process" if self.workers == 1 else f"{self.workers} manager processes on one port"

    @property
    def agent(self) -> int | None:
        """The process id of the local agent, where the server's is known."""
        return agent_of(self.server.pid) if self.server.pid else None

    def used(self) -> dict[str, float]:
        """Give the seconds of processor that the server, its agent and all other processes of theirs took until now.

        Differences of these are right as a sum; what ended meanwhile counts with its parent.
        """
        named: dict[int | None, str] = {self.agent: "agent", self.server.pid: "server"}
        named.update(dict.fromkeys(workers_of(self.server.pid), "server"))
        used = {"server": 0.0, "agent": 0.0, "kernels and databases": 0.0}
        for pid in descendants(self.server.pid) if self.server.pid else ():
            used[named.get(pid, "kernels and databases")] += processor_time([pid])
        return used

    def used_for_each(self, before: Mapping[str, float], count: int) -> list[str]:
        """Tell, as a note, what each of so many requests took of a processor since ``before``, where that can be known."""
        if not self.server.pid or not count:
            return []
        each = {name: (used - before[name]) / count for name, used in self.used().items()}
        told = ", ".join(f"{name} {milliseconds(max(0.0, seconds))}" for name, seconds in each.items())
        return [f"milliseconds of processor for each: {told}"]

    def creation(self) -> bytes:
        """Sign the creation of another kernel."""
        return self.signer.request("POST", "/kernel/create", create_body(f"bench-{secrets.token_hex(8)}"))

    def run(self, kernel: str, code: str) -> bytes:
        """Sign an execution."""
        return self.signer.request("POST", f"/kernel/{kernel}", run_body(code))

    def destruction(self, kernel: str) -> bytes:
        """Sign the end of a kernel."""
        return self.signer.request("DELETE", f"/kernel/{kernel}")

    @contextlib.contextmanager
    def kernels(self, count: int) -> Iterator[list[str]]:
        """Make kernels, each of which has run something, and destroy them in the end."""
        made: list[str] = []
        try:
            creations = [self.creation() for _ in range(count)]

            def make() -> Script:
                while creations:
                    kernel = created((yield creations.pop()))
                    made.append(kernel)
                    expect((yield self.run(kernel, "1+1")), "2")

            drive(self.endpoint, [make() for _ in range(min(count, AT_ONCE))])
            yield list(made)
        finally:
            self.destroy(made)

    def destroy(self, kernels: Sequence[str]) -> None:
        """End kernels."""
        requests = [self.destruction(kernel) for kernel in kernels]

        def end() -> Script:
            while requests:
                answer = yield requests.pop()
                if answer.status not in {200, 204, 404}:
                    raise Failed(f"destroy was answered with {answer.status}: {answer.body[:500]!r}")

        drive(self.endpoint, [end() for _ in range(min(len(requests), AT_ONCE))])

    def alive(self, kernels: Sequence[str]) -> int:
        """Count the kernels that run code rightly now."""
        requests = [self.run(kernel, "40+2") for kernel in kernels]
        right = []

        def look() -> Script:
            while requests:
                right.append(printed((yield requests.pop()), "42"))

        drive(self.endpoint, [look() for _ in range(min(len(requests), AT_ONCE))])
        return sum(right)

    def ask(self, query: str, variables: dict[str, object]) -> dict[str, object]:
        """Ask the administrators' interface.

        :raises Failed: the keypair is no administrator's.
        """
        body = json.dumps({"query": query, "variables": variables}).encode("ascii")
        with contextlib.closing(Connection(self.endpoint)) as connection:
            answer = connection.ask(self.signer.request("POST", "/admin/graphql", body))
        content = answer.json
        if answer.status != 200 or not isinstance(content, dict):
            raise Failed(f"the administrators' interface answered {answer.status}: {answer.body[:500]!r}")
        return content


def created(answer: Answer) -> str:
    """Read the id of a kernel that was made.

    :raises Failed: none was.
    """
    if answer.status != 201:
        raise Failed(f"create was answered with {answer.status}: {answer.body[:500]!r}")
    return str(answer.json["kernelId"])


def expect(answer: Answer, text: str) -> None:
    """See that a run printed what it should.

    :raises Failed: it did not.
    """
    if not printed(answer, text):
        raise Failed(f"execute was answered with {answer.status}: {answer.body[:500]!r} instead of {text!r}")


@contextlib.contextmanager
def opened(server: RunningServer, workers: int = 1) -> Iterator[Session]:
    """Use a server with the keypair's limits raised, and put them back in the end.

    :raises Failed: the keypair is no administrator's.
    """
    if urlsplit(server.endpoint).scheme != "http":
        raise Failed("the bench speaks plain HTTP only")
    signer = Signer(
        host_header(server.endpoint),
        Credentials(server.access_key, server.secret_key),
        lambda: time.clock_gettime(time.CLOCK_REALTIME),
    )
    session = Session(server, signer, workers)
    limits = session.ask(_LIMITS, {"access_key": server.access_key})["keypair"]
    _set_limits(session, {"rate_limit": MOST_REQUESTS, "concurrency_limit": MOST_KERNELS})
    try:
        yield session
    finally:
        _set_limits(session, limits)


def _set_limits(session: Session, limits: object) -> None:
    done = session.ask(_MODIFY, {"access_key": session.server.access_key, "props": limits})["modify_keypair"]
    if not isinstance(done, dict) or not done.get("ok"):
        raise Failed(f"the keypair's limits cannot be changed: {done}")


@contextlib.contextmanager
def started(*options: str, workers: int = 1) -> Iterator[Session]:
    """Start a server with private databases and isolation, and use it as soon as all its processes serve."""
    with running_server(*OPTIONS, f"--workers={workers}", *options) as server:
        _await_workers(server, workers)
        with opened(server, workers) as session:
            yield session


def _await_workers(server: RunningServer, workers: int) -> None:
    """Wait until each of a server's processes has answered. :raises Failed: one does not come."""
    request = f"GET /health HTTP/1.1\r\nHost: {host_header(server.endpoint)}\r\n\r\n".encode("ascii")
    found: set[object] = set()
    deadline = time.perf_counter() + PATIENCE
    while len(found) < workers:
        if time.perf_counter() > deadline:
            raise Failed(f"of {workers} workers only {len(found)} serve")
        with contextlib.closing(Connection(server.endpoint)) as connection:
            found.add(connection.ask(request).json["worker"])
        time.sleep(0.01)
