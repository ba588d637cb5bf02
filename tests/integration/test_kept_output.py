"""The output of kernels that have ended, read from a whole server over every way there is, and at the moment of the end."""

from __future__ import annotations

import json
import secrets
from typing import Any
from urllib.parse import urlsplit

import treq
from attrs import evolve
from treq.client import HTTPClient
from twisted.internet import reactor as global_reactor  # noqa: TID251 - a test of real sockets runs on the real one
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase
from twisted.web.client import Agent, HTTPConnectionPool
from twisted.web.http_headers import Headers

from sorna.model.keypair import Keypair
from sorna.testing.gateway import Signer
from sorna.testing.server import shared_server
from tests.integration.websocket_client import open_websocket

reactor: Any = global_reactor
#: More than one piece of an answer holds, so that reading goes on after the kernel's end.
MANY = 700_000


class KeptOutputTests(TestCase):
    timeout = 120

    async def setUp(self) -> None:  # type: ignore[override]  # trial waits for it
        self.server = await deferToThread(shared_server)
        self.client = HTTPClient(Agent(reactor, pool=HTTPConnectionPool(reactor, persistent=False)))
        parts = urlsplit(self.server.endpoint)
        assert parts.port is not None
        self.port = parts.port
        keypair = Keypair(self.server.access_key, self.server.secret_key)
        self.signer = Signer(reactor, keypair, host=parts.netloc.encode())
        self.token = f"kept-{secrets.token_hex(8)}"
        wish = {"lang": "python3", "clientSessionToken": self.token}
        self.kernel = (await self.call("POST", "/v2/kernel/create", wish))["kernelId"]

    async def send(self, method: str, target: str, content: Any = None, **headers: str) -> tuple[int, bytes]:
        body = b"" if content is None else json.dumps(content).encode()
        signed = self.signer.headers(method.encode(), target.encode(), body)
        sent = Headers({name: [value] for name, value in signed.items()})
        for name, value in headers.items():
            sent.setRawHeaders(name, [value])
        response = await self.client.request(method, self.server.endpoint + target, headers=sent, data=body)
        return response.code, await treq.content(response)

    async def call(self, method: str, target: str, content: Any = None) -> Any:
        status, text = await self.send(method, target, content)
        self.assertLess(status, 300, text)
        return json.loads(text) if text else None

    async def run_code(self, code: str) -> str:
        """Run to the end; give the run's id."""
        body = {"mode": "query", "code": code}
        result = (await self.call("POST", f"/v2/kernel/{self.kernel}", body))["result"]
        while result["status"] != "finished":
            body = {"mode": "continue", "code": "", "runId": result["runId"]}
            result = (await self.call("POST", f"/v2/kernel/{self.kernel}", body))["result"]
        return str(result["runId"])

    def path(self, run: str, query: str = "") -> str:
        return f"/v2/kernel/{self.kernel}/runs/{run}/output{query}"

    async def whole(self, run: str) -> str:
        """Read from the beginning to the end with plain requests."""
        text, first = "", 0
        while True:
            result = (await self.call("GET", self.path(run, f"?from={first}&wait=5")))["result"]
            self.assertEqual(result["missing"], 0)
            text += "".join(content for _stream, content in result["console"])
            first = result["next"]
            if result["end"]:
                return text

    async def test_every_way(self) -> None:
        """A destroyed kernel's output comes in plain answers, as server-sent events and over a WebSocket, with an end."""
        run = await self.run_code(f"print('x' * {MANY})")
        await self.call("DELETE", f"/v2/kernel/{self.kernel}")
        expected = "x" * MANY + "\n"
        self.assertEqual(await self.whole(run), expected)
        status, events = await self.send("GET", self.path(run), accept="text/event-stream")
        told = [json.loads(line[6:]) for line in events.decode().splitlines() if line.startswith("data: ")]
        self.assertEqual((status, "".join(one["console"][0][1] for one in told if one["console"])), (200, expected))
        self.assertEqual([one["end"] for one in told], [False] * (len(told) - 1) + [True])
        socket = await open_websocket(reactor, self.port, self.path(run), self.signer)
        await socket.until(lambda: socket.lost)
        self.assertEqual("".join(one["console"][0][1] for one in socket.messages if one["console"]), expected)
        self.assertEqual((socket.code, socket.messages[-1]["end"]), (1000, True))
        for target, problem in (
            (self.path("nobody-ran-this"), (404, "run-not-found")),
            (f"/v2/kernel/{'A' * 22}/runs/{run}/output", (404, "kernel-not-found")),
        ):
            status, text = await self.send("GET", target)
            self.assertEqual((status, json.loads(text)["type"].rpartition("/")[2]), problem)
        stranger = Keypair("AKIA" + "Z" * 16, self.server.secret_key)
        self.signer = evolve(self.signer, keypair=stranger)
        self.assertEqual((await self.send("GET", self.path(run)))[0], 401)

    async def test_at_the_moment_of_the_end(self) -> None:
        """Who reads while a kernel is destroyed, plainly, by events or by polling, gets what was printed and then the end."""
        first = await self.call(
            "POST", f"/v2/kernel/{self.kernel}", {"mode": "query", "code": "print('a', flush=True)\nwhile True: pass"}
        )
        run = first["result"]["runId"]
        self.assertEqual(first["result"]["console"], [["stdout", "a\n"]])
        socket = await open_websocket(reactor, self.port, self.path(run), self.signer)
        await socket.until(lambda: socket.messages)
        poll = {"mode": "continue", "code": "", "runId": run}
        waiting = [
            Deferred.fromCoroutine(self.call("GET", self.path(run, "?from=2&wait=30"))),
            Deferred.fromCoroutine(self.call("POST", f"/v2/kernel/{self.kernel}", poll)),
        ]
        await deferLater(reactor, 0.3, lambda: None)
        await self.call("DELETE", f"/v2/kernel/{self.kernel}")
        for one in waiting:
            result = (await one)["result"]
            self.assertEqual((result["status"], result["exitCode"]), ("finished", 130))
        await socket.until(lambda: socket.lost)
        self.assertTrue(socket.messages[-1]["end"])
        self.assertTrue((await self.whole(run)).startswith("a\n"))

    async def test_restart(self) -> None:
        """What was printed before a restart is read after it, and after the end, which the list of sessions tells of."""
        run = await self.run_code("print('b')")
        await self.call("PATCH", f"/v2/kernel/{self.kernel}")
        self.assertEqual(await self.whole(run), "b\n")
        await self.call("DELETE", f"/v2/kernel/{self.kernel}")
        self.assertEqual(await self.whole(run), "b\n")
        listed = await self.call("GET", "/v4/kernel?status=TERMINATED&limit=100")
        (found,) = [one for one in listed["sessions"] if one["kernelId"] == self.kernel]
        self.assertEqual((found["sessionName"], found["statusReason"]), (self.token, "user-requested"))
