"""An agent whose program is replaced while its kernels live on: a whole server, and SIGUSR2 for the agent."""

from __future__ import annotations

import json
import os
import secrets
import signal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import treq
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
from sorna.testing.server import running_server
from tests.integration.test_sudden_death import alive, command_line, family
from tests.integration.websocket_client import open_websocket

reactor: Any = global_reactor

COUNTER = "import time\nfor i in range({}):\n    print(i, flush=True)\n    time.sleep(0.05)\n"
SLOW = 60.0
GONE = 8.0  # seconds; five are promised, and the machine may be busy


def parent(pid: int) -> int:
    """Give the process that a process descends from."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


class RestartTests(TestCase):
    """What users notice of it."""

    timeout = 300

    async def begin(self, *arguments: str) -> None:
        """Start a server of our own."""
        running = running_server("--kernel-preload=", *arguments)
        self.server = await deferToThread(running.__enter__)
        self.addCleanup(lambda: deferToThread(running.__exit__, None, None, None))
        pool = HTTPConnectionPool(reactor, persistent=False)
        self.client = HTTPClient(Agent(reactor, pool=pool))
        parts = urlsplit(self.server.endpoint)
        assert parts.port is not None
        self.port = parts.port
        keypair = Keypair(self.server.access_key, self.server.secret_key)
        self.signer = Signer(reactor, keypair, host=parts.netloc.encode())

    async def call(self, method: str, target: str, content: Any = None, *, patience: float = 0.0) -> Any:
        """Make a signed call that must go well, if need be after a while in which it was answered 503."""
        body = b"" if content is None else json.dumps(content).encode()
        headers = self.signer.headers(method.encode(), target.encode(), body)
        sent = Headers({name: [value] for name, value in headers.items()})
        response = await self.client.request(method, self.server.endpoint + target, headers=sent, data=body)
        text = await treq.content(response)
        if response.code == 503 and patience > 0:
            await self.pause(0.5)
            return await self.call(method, target, content, patience=patience - 0.5)
        self.assertLess(response.code, 300, (method, target, text))
        return json.loads(text) if text else None

    async def create(self, **limits: int) -> str:
        wish = {"lang": "python3", "clientSessionToken": f"restart-{secrets.token_hex(8)}", "limits": limits}
        kernel: str = (await self.call("POST", "/v2/kernel/create", wish, patience=SLOW))["kernelId"]
        return kernel

    async def run_code(self, kernel: str, code: str) -> tuple[str, str, int]:
        """Run code to its end as clients do; gives what it printed to each stream, and the exit code."""
        run = secrets.token_hex(8)
        printed = {"stdout": "", "stderr": ""}
        body = {"mode": "query", "code": code, "runId": run}
        while True:
            result = (await self.call("POST", f"/v2/kernel/{kernel}", body))["result"]
            for kind, text in result["console"]:
                printed[kind] += text
            if result["status"] == "finished":
                return printed["stdout"], printed["stderr"], result["exitCode"]
            self.assertEqual(result["status"], "continued")
            body = {"mode": "continue", "code": "", "runId": run}

    @property
    def agent(self) -> int:
        """The agent's process."""
        [pid] = [one[0] for one in family(self.server.pid) if b"\0sorna.agent\0" in command_line(one)]
        return pid

    async def pause(self, seconds: float) -> None:
        await deferLater(reactor, seconds)

    async def until(self, what: Any, seconds: float, failing: Any = str) -> None:
        """Wait until something is so."""
        end = reactor.seconds() + seconds
        while not what():
            if reactor.seconds() > end:
                self.fail(f"after {seconds} s there is {failing()}; the server says\n{self.server.log[-3000:]}")
            await self.pause(0.05)

    async def restart(self, *, over_the_wire: bool = False) -> None:
        """Replace the agent's program, and wait until the next one serves."""
        before = self.server.log.count("the agent serves")
        if over_the_wire:
            query = {"query": "{ agents { id } }"}
            [agent] = (await self.call("POST", "/v3/admin/graphql", query))["agents"]
            await self.call("POST", f"/v3/admin/agents/{agent['id']}/restart")
        else:
            os.kill(self.agent, signal.SIGUSR2)
        await self.until(lambda: self.server.log.count("the agent serves") > before, SLOW)

    async def test_kernels_outlive_the_program(self) -> None:
        """Through three restarts no line is lost or doubled, memory, limits and the terminal stay; a kill leaves nothing."""
        await self.begin()
        agent = self.agent
        kernel = await self.create()
        limited = await self.create(maxMem=128 * 1024, execTimeout=6000)
        await self.run_code(kernel, "seen = 41")
        terminal = await self.look(kernel)
        terminal.type("export SEEN=before; echo st''arted\n")
        await terminal.until(lambda: b"started" in terminal.screen, SLOW)

        lines = 300
        counting = Deferred.fromCoroutine(self.run_code(kernel, COUNTER.format(lines)))
        early = await self.call(
            "POST", f"/v2/kernel/{limited}", {"mode": "query", "code": "while True: pass", "runId": "long"}
        )
        self.assertEqual(early["result"]["status"], "continued")
        for number in range(3):
            await self.pause(0.5)
            await self.restart(over_the_wire=number == 1)
            self.assertEqual(self.agent, agent)
        out, err, code = await counting
        self.assertEqual((out.split(), err, code), ([str(number) for number in range(lines)], "", 0))
        self.assertEqual((await self.run_code(kernel, "print(seen + 1)"))[0], "42\n")

        # The time that a run has spent counts on, and what may not be exceeded still may not.
        while early["result"]["status"] == "continued":
            early = await self.call("POST", f"/v2/kernel/{limited}", {"mode": "continue", "code": "", "runId": "long"})
        self.assertEqual(early["result"]["exitCode"], 124)
        await self.exceeds_memory(limited)

        again = await self.look(kernel)
        again.type("echo $SEEN $((40 + 2))\n")
        await again.until(lambda: b"before 42" in again.screen, SLOW)

        doomed = family(agent)
        self.assertGreater(len(doomed), 4)
        os.kill(agent, signal.SIGKILL)
        await self.until(lambda: not alive(doomed), GONE, lambda: [command_line(one) for one in alive(doomed)])

    async def look(self, kernel: str) -> Any:
        """Open the kernel's terminal."""
        terminal = await open_websocket(reactor, self.port, f"/v2/stream/kernel/{kernel}/pty", self.signer)
        self.assertEqual(terminal.status, 101, terminal.refusal)

        async def close() -> None:
            if not terminal.lost:
                terminal.transport.abortConnection()  # type: ignore[union-attr]  # connected, and TCP
                await terminal.until(lambda: terminal.lost, SLOW)

        self.addCleanup(lambda: Deferred.fromCoroutine(close()))
        return terminal

    async def exceeds_memory(self, kernel: str) -> None:
        """See that a kernel still cannot have more memory than it may."""
        out, err, code = await self.run_code(kernel, "x = bytearray(512 * 1024 * 1024); print(len(x))")
        self.assertNotEqual(code, 0, (out, err))
        self.assertEqual(out, "")

    async def test_a_zygote_that_was_taken_over(self) -> None:
        """When it dies, its kernels end, and another one takes its place, as if this program had started it."""
        await self.begin()
        kernel = await self.create()
        await self.run_code(kernel, "seen = 41")
        await self.restart()
        [zygote] = [one for one in family(self.agent) if self.is_busy_zygote(one[0])]
        died = self.server.log.count("died after")
        os.kill(zygote[0], signal.SIGKILL)
        await self.until(lambda: self.server.log.count("died after") > died, SLOW)
        await self.until(lambda: "has ended: crashed" in self.server.log, SLOW)
        self.assertEqual((await self.run_code(await self.create(), "print(6 * 7)"))[0], "42\n")

    def is_busy_zygote(self, pid: int) -> bool:
        """Tell whether a process is the zygote that has kernels beside its template; there is one, and those that are kept ready."""
        children = [one for one in family(pid) if one[0] != pid]
        return (
            len(children) > 1 and b"sorna.agent.sandbox.zygote" in command_line((pid, "")) and parent(pid) == self.agent
        )

    async def test_a_program_that_does_not_start(self) -> None:
        """When the next program ends at once, its kernels end with it, and nothing is left of them."""
        await self.begin()
        kernel = await self.create()
        await self.run_code(kernel, "seen = 41")
        agent = self.agent
        doomed = {one for one in family(agent) if one[0] != agent}
        self.assertGreater(len(doomed), 3)
        assert self.server.folder is not None
        options = self.server.folder / "state" / "agent.toml"
        good = options.read_text()
        options.write_text("agent-port = 'none'\n")
        os.kill(agent, signal.SIGUSR2)
        await self.until(lambda: not alive(doomed), SLOW, lambda: [command_line(one) for one in alive(doomed)])
        options.write_text(good)
        # Whoever supervises the agent starts it again, and code runs in new kernels.
        await self.until(lambda: self.server.log.count("the agent serves") > 1, SLOW)
        self.assertEqual((await self.run_code(await self.create(), "print(6 * 7)"))[0], "42\n")
