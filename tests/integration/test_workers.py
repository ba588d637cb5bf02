"""Several processes on one port: whoever takes a connection serves it, one that dies is replaced, and nothing outlives the server."""

from __future__ import annotations

import atexit
import base64
import contextlib
import functools
import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from attrs import define, field
from twisted.internet import reactor  # noqa: TID251 - the server goes by the wall clock

from sorna.client.signing import Credentials
from sorna.client.wire import host_header
from sorna.model.keypair import EXAMPLE_ACCESS_KEY, EXAMPLE_SECRET_KEY
from sorna.testing.cluster.client import Client
from sorna.testing.cluster.websocket import WebSocket
from sorna.testing.server import RunningServer, running_server, server_command
from sorna.testing.unit import UnitTestCase
from tests.integration.test_sudden_death import PROMISED, Process, SuddenDeathTests, alive, command_line, family

WORKERS = 3
PATIENCE = 40.0
MODIFY = (
    "mutation($key: String!, $props: ModifyKeyPairInput!) { modify_keypair(access_key: $key, props: $props) { ok } }"
)
MAKE = "mutation($props: KeyPairInput!) { create_keypair(user_id: 2, props: $props) { keypair { access_key secret_key } } }"


@define(eq=False)
class KeptOpen(Client):
    """A client whose one connection stays open, and with it at the same worker.

    :ivar text: the body of the last answer.
    """

    connection: http.client.HTTPConnection = field(init=False)
    text: bytes = b""

    def __attrs_post_init__(self) -> None:
        self.connection = http.client.HTTPConnection(self.address, self.port, timeout=PATIENCE)

    def ask(
        self, method: str, target: str, content: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> http.client.HTTPResponse:
        """Send a request and read its whole answer."""
        sent = {**self.headers(method, target, content), **(headers or {})}
        self.connection.request(method, target, content, sent)
        response = self.connection.getresponse()
        self.text = response.read()
        return response

    def json(self, method: str, target: str, content: Any = None) -> Any:
        """Send JSON and give that of the answer."""
        response = self.ask(method, target, b"" if content is None else json.dumps(content).encode())
        if response.status >= 400:
            raise AssertionError(f"{method} {target}: {response.status} {self.text!r}")
        return json.loads(self.text) if self.text else None

    @property
    def worker(self) -> int:
        """Which worker has the connection."""
        return int(self.json("GET", "/health")["worker"])


def until(what: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    """Wait until something is so; tell whether it is."""
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def workers_of(pid: int) -> dict[int, int]:
    """Give the process ids of a server's other processes by their numbers."""
    found = {}
    for process in family(pid):
        words = command_line(process).split(b"\0")
        if b"sorna.worker" in words:
            found[int(words[words.index(b"--worker") + 1])] = process[0]
    return found


def connect(test: UnitTestCase, port: int, credentials: Credentials) -> KeptOpen:
    """Connect to whichever worker takes the connection."""
    client = KeptOpen("127.0.0.1", port, credentials, reactor.seconds)
    test.addCleanup(client.connection.close)
    return client


def one_at_each(test: UnitTestCase, port: int, credentials: Credentials) -> dict[int, KeptOpen]:
    """Connect until every worker has a connection of ours."""
    found: dict[int, KeptOpen] = {}
    deadline = time.monotonic() + PATIENCE
    while len(found) < WORKERS:
        test.assertLess(time.monotonic(), deadline, f"only {[*found]} serve")
        client = connect(test, port, credentials)
        if found.setdefault(client.worker, client) is not client:
            client.connection.close()
            time.sleep(0.01)
    return found


@functools.cache
def server_of_workers() -> RunningServer:
    """Give one server for all the tests of a process; it ends with the process."""
    stack = contextlib.ExitStack()
    server = stack.enter_context(running_server(f"--workers={WORKERS}", checked=False))
    atexit.register(stack.close)
    return server


class WorkersTests(UnitTestCase):
    """One server with three processes for all of these."""

    def setUp(self) -> None:
        """Wait until all serve, and have a client at each."""
        self.server = server_of_workers()
        self.port = int(host_header(self.server.endpoint).rpartition(":")[2])
        self.credentials = Credentials(self.server.access_key, self.server.secret_key)
        self.clients = self.one_at_each()
        self.first, self.second, self.third = (self.clients[number] for number in (1, 2, 3))

    def client(self, credentials: Credentials | None = None) -> KeptOpen:
        """Connect to whichever worker takes the connection."""
        return connect(self, self.port, credentials or self.credentials)

    def one_at_each(self, credentials: Credentials | None = None) -> dict[int, KeptOpen]:
        """Connect until every worker has a connection of ours."""
        return one_at_each(self, self.port, credentials or self.credentials)

    def kernel(self, client: KeptOpen) -> str:
        """Make a kernel that is gone after the test."""
        made = client.json("POST", "/v2/kernel/create", {"lang": "python3", "clientSessionToken": secrets.token_hex(8)})
        kernel = str(made["kernelId"])
        self.addCleanup(self.client().ask, "DELETE", f"/v2/kernel/{kernel}")
        return kernel

    def keypair(self, **props: Any) -> Credentials:
        """Make a keypair."""
        made = self.first.json("POST", "/v2/admin/graphql", {"query": MAKE, "variables": {"props": props}})
        keys = made["create_keypair"]["keypair"]
        return Credentials(keys["access_key"], keys["secret_key"])

    def modify(self, client: KeptOpen, keypair: Credentials, **props: Any) -> None:
        """Change a keypair at a worker."""
        variables = {"key": keypair.access_key, "props": props}
        changed = client.json("POST", "/v2/admin/graphql", {"query": MODIFY, "variables": variables})
        self.assertTrue(changed["modify_keypair"]["ok"])

    def test_connections_reach_all(self) -> None:
        """Sixty connections are shared out, and a connection stays where it is."""
        clients = [self.client() for _ in range(60)]
        shares = Counter(client.worker for client in clients)
        self.assertEqual(sorted(shares), [1, 2, 3])
        self.assertGreater(min(shares.values()), 5, shares)
        self.assertEqual(Counter(client.worker for client in clients), shares)
        self.assertEqual(self.second.json("GET", "/ready"), {"status": "ready", "worker": 2})

    def test_one_that_is_killed(self) -> None:
        """Only its own connections are lost, others are served meanwhile, and it is back within seconds."""
        victim = workers_of(self.server.pid)[2]
        kernel = self.kernel(self.first)
        os.kill(victim, signal.SIGKILL)
        self.assertRaises((OSError, http.client.HTTPException), self.second.ask, "GET", "/health")
        # Until it is gone altogether, a new connection may still be given to it.
        self.assertTrue(until(lambda: victim not in workers_of(self.server.pid).values()))
        for _ in range(20):
            self.assertIn(self.client().worker, {1, 3})
        for client in (self.first, self.third):
            client.json("GET", f"/v2/kernel/{kernel}")
        self.assertTrue(until(lambda: workers_of(self.server.pid).get(2, victim) != victim))
        self.assertEqual(len(self.one_at_each()), WORKERS)
        self.server.check()

    def test_a_run_goes_on_at_another(self) -> None:
        """Started at one, fed at the second, polled to its end at the third."""
        kernel, run = self.kernel(self.first), secrets.token_hex(8)
        code = "name = input('who? ')\nprint('hello', name)"
        target = f"/v2/kernel/{kernel}"
        asked = self.first.json("POST", target, {"mode": "query", "code": code, "runId": run})["result"]
        while asked["status"] != "waiting-input":
            asked = self.second.json("POST", target, {"mode": "continue", "code": "", "runId": run})["result"]
        told = self.second.json("POST", target, {"mode": "input", "code": "you", "runId": run})["result"]
        said = "".join(text for _kind, text in told["console"])
        while told["status"] != "finished":
            told = self.third.json("POST", target, {"mode": "continue", "code": "", "runId": run})["result"]
            said += "".join(text for _kind, text in told["console"])
        self.assertIn("hello you", said)

    def test_rate_limit(self) -> None:
        """Requests at all of them count together, to the last one."""
        clients = self.one_at_each(self.keypair(rate_limit=9))
        answers = [clients[number % 3 + 1].ask("GET", "/v2/kernel/none") for number in range(12)]
        self.assertEqual([answer.status for answer in answers], [404] * 9 + [429] * 3)
        left = [int(answer.headers["X-RateLimit-Remaining"]) for answer in answers[:9]]
        self.assertEqual(left, list(range(9, 0, -1)))

    def test_a_keypair_that_is_changed(self) -> None:
        """Deactivated at one, it is refused by all within a second."""
        keypair = self.keypair()
        clients = self.one_at_each(keypair)
        for client in clients.values():
            self.assertEqual(client.ask("GET", "/v2/kernel/none").status, 404)
        self.modify(self.second, keypair, is_active=False)
        began = time.monotonic()
        for client in clients.values():
            self.assertTrue(until(lambda one=client: one.ask("GET", "/v2/kernel/none").status == 401, 1.0))  # type: ignore[misc]
        self.assertLess(time.monotonic() - began, 1.5)

    def test_events(self) -> None:
        """Who listens at one hears of what another does."""
        kernel = self.kernel(self.first)
        target = f"/v2/stream/kernel/{kernel}/events"
        self.second.connection.request("GET", target, headers=self.second.headers("GET", target))
        stream = self.second.connection.getresponse()
        self.assertEqual(stream.status, 200)
        ending = threading.Timer(0.5, self.third.ask, ["DELETE", f"/v2/kernel/{kernel}"])
        ending.start()
        self.addCleanup(ending.join)
        said = b""
        while b"session_terminated" not in said:
            line = stream.readline()
            self.assertTrue(line, said)
            said += line

    def test_one_terminal(self) -> None:
        """Viewers on many connections, at whichever worker, look at the same shell."""
        kernel = self.kernel(self.first)
        target = f"/v2/stream/kernel/{kernel}/pty"
        viewers = []
        for _ in range(6):
            client = self.client()
            headers = client.headers("GET", target)
            viewers.append(WebSocket(client.address, client.port, target, headers, PATIENCE))
            self.addCleanup(viewers[-1].close)
        typed = base64.b64encode(b"echo shared-$((6*7))\n").decode()
        viewers[0].send(json.dumps({"type": "stdin", "chars": typed}))
        for viewer in viewers:
            said = b""
            while b"shared-42" not in said:
                message = json.loads(viewer.receive())
                said += base64.b64decode(message["data"]) if message["type"] == "out" else b""

    def test_an_upload_goes_on_at_another(self) -> None:
        """A file that is begun at one, is asked for at the second and ended at the third, is whole."""
        name, content = f"f{secrets.token_hex(4)}", os.urandom(300_000)
        self.first.json("POST", "/v2/folders", {"name": name})
        self.addCleanup(self.client().ask, "DELETE", f"/v2/folders/{name}")
        wish = {"path": "big.bin", "size": len(content)}
        told = self.second.json("POST", f"/v2/folders/{name}/request-upload", wish)
        target = f"{urlsplit(told['url']).path}?token={told['token']}"
        offset = 0
        for client in (self.first, self.second, self.third):
            found = client.ask("HEAD", target, headers={"Tus-Resumable": "1.0.0"})
            self.assertEqual((found.status, found.headers["Upload-Offset"]), (200, str(offset)))
            sent = {
                "Tus-Resumable": "1.0.0",
                "Upload-Offset": str(offset),
                "Content-Type": "application/offset+octet-stream",
            }
            done = client.ask("PATCH", target, content[offset : offset + 100_000], sent)
            self.assertEqual(done.status, 204, client.text)
            offset += 100_000
        [entry] = json.loads(self.first.json("GET", f"/v2/folders/{name}/files?path=.", {"path": "."})["files"])
        self.assertEqual((entry["filename"], entry["size"]), ("big.bin", len(content)))

    def test_a_second_server(self) -> None:
        """A server that would share the port, too, is refused at its start, and says so."""
        port = str(self.port)
        assert self.server.folder is not None
        options = [f"--service-port={port}", "--state-dir", str(self.server.folder / "other"), "--workers=2"]
        done = subprocess.run(
            server_command(options), stdin=-3, stdout=-1, stderr=-2, timeout=60, check=False, env=environ()
        )
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertIn(f"port {port}".encode(), done.stdout)
        self.assertEqual(len(self.one_at_each()), WORKERS)


def environ() -> dict[str, str]:
    """Give the environment of a server that is started by hand."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


class EndTests(SuddenDeathTests):
    """Stops and sudden deaths of a server with three processes."""

    options = (f"--workers={WORKERS}",)

    def all_serve(self, server: subprocess.Popen[bytes]) -> bool:
        """Tell whether every worker has opened the port."""
        text = (self.folder / "log").read_text("utf-8", "replace")
        return len(workers_of(server.pid)) == WORKERS - 1 and text.count(" too\n") >= WORKERS - 1

    def started(self) -> subprocess.Popen[bytes]:
        """Start the server and wait until all its processes serve."""
        (self.folder / "log").write_bytes(b"")
        server = super().started()
        self.until(lambda: self.all_serve(server), PATIENCE, lambda: workers_of(server.pid))
        return server

    def test_orderly_stop(self) -> None:
        """What is under way at each worker is done and answered; no process, no open port and no secrets are left."""
        server = self.started()
        processes = family(server.pid)
        clients = one_at_each(self, self.port, Credentials(EXAMPLE_ACCESS_KEY, EXAMPLE_SECRET_KEY)).values()
        answers: list[int] = []
        ends = []
        for client in clients:
            wish = {"lang": "python3", "clientSessionToken": secrets.token_hex(8)}
            kernel = client.json("POST", "/v2/kernel/create", wish)["kernelId"]
            end = partial(lambda one, target: answers.append(one.ask("DELETE", target).status), client)
            ends.append(threading.Thread(target=end, args=[f"/v2/kernel/{kernel}"]))
        [agent] = self.agents(server)
        os.kill(agent, signal.SIGSTOP)  # so that no end is done before the stop has begun
        for thread in ends:
            thread.start()
        time.sleep(0.5)
        server.terminate()
        time.sleep(1.0)
        self.assertEqual((answers, server.poll()), ([], None))
        self.assertRaises(ConnectionRefusedError, socket.create_connection, ("127.0.0.1", self.port), 5)
        os.kill(agent, signal.SIGCONT)
        for thread in ends:
            thread.join()
        self.assertEqual(answers, [200] * WORKERS)
        server.wait(PATIENCE)
        self.nothing_is_left(processes, self.agent_id)
        self.assertFalse((self.folder / "state" / "workers.toml").exists())

    def test_a_stop_of_all_at_once(self) -> None:
        """A service manager's signal to every process stops them, and none is started again."""
        server = self.started()
        processes = family(server.pid)
        for pid in (*workers_of(server.pid).values(), server.pid):
            os.kill(pid, signal.SIGTERM)
        server.wait(PATIENCE)
        self.nothing_is_left(processes, self.agent_id)
        self.assertEqual((self.folder / "log").read_text("utf-8", "replace").count(" too\n"), WORKERS - 1)

    def test_one_that_hangs_when_the_server_dies(self) -> None:
        """A frozen worker cannot notice, and is gone all the same when it goes on."""
        server = self.started()
        frozen: Process = next(one for one in family(server.pid) if b"sorna.worker" in command_line(one))
        os.kill(frozen[0], signal.SIGSTOP)
        doomed = family(server.pid) - {frozen}
        server.kill()
        server.wait()
        self.nothing_is_left(doomed, self.agent_id)
        os.kill(frozen[0], signal.SIGCONT)
        self.until(lambda: not alive({frozen}), PROMISED + 5, lambda: command_line(frozen))
