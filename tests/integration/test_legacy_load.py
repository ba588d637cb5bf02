"""The ZeroMQ door of a whole server under bad conditions: an agent that hangs, garbage, keys, the other door beside it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sorna.client.signing import Credentials, signed_headers
from sorna.model.keypair import EXAMPLE_ACCESS_KEY
from sorna.testing.legacy import LegacyClient, Pings, ping_together, throw_garbage
from tests.integration import test_legacy_wire
from tests.legacy.door import reactor

SESSION = {"action": 2, "user_id": "test", "entry_id": "abcdef", "lang": "python3"}


def resident(pid: int) -> int:
    """Give the memory of a process in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def agent_of(server: int) -> int:
    """Find the process of a server's local agent."""
    for child in Path(f"/proc/{server}/task/{server}/children").read_text().split():
        if b"sorna.agent" in Path(f"/proc/{child}/cmdline").read_bytes():
            return int(child)
    raise AssertionError("the server has no agent")


class LegacyTestCase(test_legacy_wire.WireTestCase):
    """A server, its ZeroMQ door, and the other door beside it."""

    def rest(self, method: str, path: str, body: dict[str, Any]) -> str:
        """Ask the other door, signed."""
        host = self.server.endpoint.removeprefix("http://")
        payload = json.dumps(body).encode()
        headers = signed_headers(
            Credentials(self.server.access_key, self.server.secret_key),
            method=method,
            target=path,
            host=host,
            content_type="application/json",
            body=payload,
            version="v2.20170315",
            now=reactor.seconds(),
        )
        with contextlib.closing(http.client.HTTPConnection(host, timeout=20)) as connection:
            connection.request(method, path, payload, headers)
            answer = connection.getresponse()
            text = answer.read().decode()
        self.assertIn(answer.status, {200, 204}, text)
        return text


class LoadTests(LegacyTestCase):
    def clients(self, count: int) -> list[LegacyClient]:
        """Connect more clients."""
        clients = [LegacyClient(self.zmq, self.server.manager_port) for _ in range(count)]
        for client in clients:
            self.addCleanup(client.socket.close)
        return clients

    def quick(self, measure: Callable[[], Pings]) -> None:
        """See that PINGs take less than 20 ms.

        Other programs may take the processor away for a moment, but not from one PING in twenty in three attempts.
        """
        for _ in range(3):
            pings = measure()
            if pings.part(0.95) < 20.0:
                return
        self.fail(f"median {pings.part(0.5):.1f} ms, longest {pings.part(1.0):.1f} ms")

    def test_fifty_clients_while_one_creates_slowly(self) -> None:
        """While an agent hangs and a client waits for its kernel, the PINGs of 49 others are answered as ever."""
        others = self.clients(49)
        ping_together(others, 3)
        agent = agent_of(self.server.pid)
        os.kill(agent, signal.SIGSTOP)
        self.addCleanup(os.kill, agent, signal.SIGCONT)
        self.manager.socket.send_json(SESSION)
        self.quick(lambda: ping_together(others, 30))
        self.assertEqual(self.manager.socket.poll(0), 0, "the kernel was created all the same")
        os.kill(agent, signal.SIGCONT)
        self.assertIn(self.manager.socket.recv_json()["reply"], {200, 500})  # type: ignore[call-overload, index]

    def test_garbage(self) -> None:
        """Each of 20,000 frames is answered, on either port, nothing grows, and the door works as before."""
        ports = (self.server.manager_port, self.server.execution_port)
        for port in ports:
            self.assertEqual(throw_garbage(self.zmq, port, 3_000, seed=1), 3_000)
        before = resident(self.server.pid)
        for port in ports:
            self.assertEqual(throw_garbage(self.zmq, port, 7_000, seed=2), 7_000)
        self.assertLess(resident(self.server.pid) - before, 8 * 1024 * 1024)
        self.assertEqual(self.manager.ask(SESSION)["reply"], 200)
        self.assertNotIn("Traceback", self.server.log)

    def test_garbage_below_frames(self) -> None:
        """Connections that do not even speak ZeroMQ come and go without a trace."""
        generator = random.Random(3)
        for number in range(200):
            with socket.create_connection(("127.0.0.1", self.server.manager_port)) as raw:
                greeting = b"\xff" + bytes(8) + b"\x7f\x03" if number % 2 else b"GET / HTTP/1.1\r\n\r\n"
                raw.sendall(greeting + generator.randbytes(generator.randrange(300)))
        self.assertEqual(self.manager.ask({"action": 0, "body": 1}), {"reply": 0, "body": 1})
        self.assertNotIn("Traceback", self.server.log)

    def test_large_result_delays_nobody(self) -> None:
        """A result of eight mebibytes is written while others have their turns."""
        kernel_id = self.manager.ask(SESSION)["kernel_id"]
        request = {
            "action": 1,
            "entry_id": "e",
            "kernel_id": kernel_id,
            "cell_id": "1",
            "code": "print('x' * 8_000_000)",
        }
        others = self.clients(5)

        def ping_meanwhile() -> Pings:
            self.execution.socket.send_json(request)
            pings = ping_together(others, 60, pause=0.002)
            reply = json.loads(self.execution.socket.recv())
            self.assertEqual(len(reply["result"]["stdout"]), 8_000_001)
            return pings

        self.quick(ping_meanwhile)


class WithdrawnTests(LegacyTestCase):
    def test_keypair_that_an_administrator_deactivates(self) -> None:
        """Within a second the door serves nothing but PING, and its terminals are gone."""
        assert self.server.folder is not None
        [access_key] = re.findall(r'access_key = "(\w+)"', (self.server.folder / "state" / "client.toml").read_text())
        created = self.manager.ask(SESSION)
        query = "mutation($k: String!) {modify_keypair(access_key: $k, props: {is_active: false}) {ok msg}}"
        said = self.rest("POST", "/v3/admin/graphql", {"query": query, "variables": {"k": access_key}})
        self.assertIn('"ok": true', said)
        time.sleep(1.0)
        refused = {"reply": 500, "cause": "The access key of this service is not active."}
        self.assertEqual(self.manager.ask(SESSION), refused)
        self.assertEqual(self.manager.ask({"action": 3, "kernel_id": created["kernel_id"]}), refused)
        self.assertEqual(self.manager.ask({"action": 0, "body": 1}), {"reply": 0, "body": 1})
        port = int(created["stdout_addr"].rpartition(":")[2])
        with self.assertRaises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()


class KeypairTests(LegacyTestCase):
    options = (f"--legacy-keypair={EXAMPLE_ACCESS_KEY}",)

    def test_the_other_door(self) -> None:
        """A kernel that was created here is the keypair's own over REST, with its state, its count and its end."""
        created = self.manager.ask(SESSION)
        kernel_id = created["kernel_id"]
        execute = {"action": 1, "entry_id": "e", "kernel_id": kernel_id, "cell_id": "1", "code": "x = 41"}
        self.assertEqual(self.execution.ask(execute)["reply"], 200)
        self.assertIn("42", self.rest("POST", f"/v2/kernel/{kernel_id}", {"mode": "query", "code": "print(x + 1)"}))
        self.assertIn('"python3"', self.rest("GET", f"/v2/kernel/{kernel_id}", {}))
        self.rest("DELETE", f"/v2/kernel/{kernel_id}", {})
        self.assertEqual(self.execution.ask(execute), {"reply": 400, "cause": "Could not find such kernel."})
        again = self.manager.ask(SESSION)
        self.assertNotEqual(again["kernel_id"], kernel_id)
        self.assertNotEqual(again["stdin_addr"], created["stdin_addr"])

    def test_kernel_that_died(self) -> None:
        """The next GET_OR_CREATE after a kernel's death makes another."""
        first = self.manager.ask(SESSION)["kernel_id"]
        execute = {"action": 1, "entry_id": "e", "kernel_id": first, "cell_id": "1"}
        for _ in range(3):
            # Its first process is beyond its reach, but not its memory.
            self.execution.ask({**execute, "code": "import os; os.kill(os.getppid(), 9)"})
        self.assertEqual(self.manager.ask(SESSION)["reply"], 200)
        agent = agent_of(self.server.pid)
        os.kill(agent, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            reply: Any = self.manager.ask(SESSION)
            if reply["reply"] == 200 and reply["kernel_id"] != first:
                break
            time.sleep(0.2)
        else:
            self.fail(f"no other kernel: {reply}")
