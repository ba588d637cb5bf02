"""A terminal of a whole server: databases, manager, gateway and agent are processes of their own."""

from __future__ import annotations

import json
import secrets
import shutil
from typing import Any
from urllib.parse import urlsplit

import treq
from attrs import evolve
from treq.client import HTTPClient
from twisted.internet import reactor as global_reactor  # noqa: TID251 - a test of real sockets runs on the real one
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SkipTest, TestCase
from twisted.web.client import Agent, HTTPConnectionPool
from twisted.web.http_headers import Headers

from sorna.model.keypair import Keypair
from sorna.testing.gateway import Signer
from sorna.testing.server import shared_server
from tests.integration.websocket_client import open_websocket

reactor: Any = global_reactor


class TerminalServerTests(TestCase):
    """What a user does."""

    timeout = 120

    async def call(self, method: str, target: str, content: Any = None) -> Any:
        body = b"" if content is None else json.dumps(content).encode()
        headers = self.signer.headers(method.encode(), target.encode(), body)
        sent = Headers({name: [value] for name, value in headers.items()})
        response = await self.client.request(method, self.server.endpoint + target, headers=sent, data=body)
        text = await treq.content(response)
        self.assertLess(response.code, 300, text)
        return json.loads(text) if text else None

    async def reach(self) -> None:
        """Find the server, and sign in the name of its own keypair."""
        self.server = await deferToThread(shared_server)
        self.addCleanup(deferToThread, self.server.check)
        pool = HTTPConnectionPool(reactor, persistent=False)
        self.client = HTTPClient(Agent(reactor, pool=pool))
        parts = urlsplit(self.server.endpoint)
        assert parts.port is not None
        self.port = parts.port
        keypair = Keypair(self.server.access_key, self.server.secret_key)
        self.signer = Signer(reactor, keypair, host=parts.netloc.encode())

    async def test_whole_way(self) -> None:
        """Create a kernel of another language than Python, work in its terminal, run code beside it, and destroy it."""
        if shutil.which("gcc") is None:
            raise SkipTest("there is no C compiler here")
        await self.reach()
        wish = {"lang": "c", "clientSessionToken": f"terminal-{secrets.token_hex(8)}"}
        kernel = (await self.call("POST", "/v2/kernel/create", wish))["kernelId"]
        terminal = await open_websocket(reactor, self.port, f"/v2/stream/kernel/{kernel}/pty", self.signer)
        self.assertEqual(terminal.status, 101, terminal.refusal)
        terminal.send({"type": "resize", "rows": 31, "cols": 91})
        terminal.type("stty size; pwd; printf 'int main(){return 42;}' > a.c && gcc a.c && ./a.out; echo st''atus $?\n")
        await terminal.until(lambda: b"status 42" in terminal.screen, 60)
        self.assertIn(b"\r31 91\r\n/home/work\r\n", terminal.screen)
        info = await self.call("GET", f"/v2/kernel/{kernel}")
        self.assertEqual(info["numQueriesExecuted"], 2)
        await self.call("DELETE", f"/v2/kernel/{kernel}")
        await terminal.until(lambda: terminal.lost)
        self.assertEqual((terminal.code, terminal.reason), (1000, "The kernel has ended (user-requested)."))

    async def test_a_keypair_that_is_disabled(self) -> None:
        """A terminal ends within a second after its keypair was disabled, and nothing is typed into it any more."""
        await self.reach()
        administrator = self.signer
        make = 'mutation { done: create_keypair(user_id: "9", props: {}) { keypair { access_key secret_key } } }'
        made = (await self.call("POST", "/v2/admin/graphql", {"query": make}))["done"]["keypair"]
        self.signer = evolve(administrator, keypair=Keypair(made["access_key"], made["secret_key"]))
        wish = {"lang": "python3", "clientSessionToken": f"terminal-{secrets.token_hex(8)}"}
        kernel = (await self.call("POST", "/v2/kernel/create", wish))["kernelId"]
        terminal = await open_websocket(reactor, self.port, f"/v2/stream/kernel/{kernel}/pty", self.signer)
        self.assertEqual(terminal.status, 101, terminal.refusal)
        terminal.type("echo he''re\n")
        await terminal.until(lambda: b"here" in terminal.screen, 60)
        self.signer = administrator
        disable = (
            f'mutation {{ modify_keypair(access_key: "{made["access_key"]}", props: {{is_active: false}}) {{ ok }} }}'
        )
        started = reactor.seconds()
        await self.call("POST", "/v2/admin/graphql", {"query": disable})
        await terminal.until(lambda: terminal.code is not None)
        self.assertLess(reactor.seconds() - started, 1.0)
        self.assertEqual(terminal.code, 1008)
        await terminal.until(lambda: terminal.lost)
