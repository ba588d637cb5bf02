"""A real agent's end and a real manager's end on loopback, with keys of their own, for the tests of the link."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet import reactor as global_reactor  # noqa: TID251 -- tests against real sockets need a real one
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from sorna.agent.link_server import LinkServer
from sorna.cluster.link import ZmqAgentLink
from sorna.curve_keys import AuthorisedKeys, CurveKeypair, generate
from sorna.manager.interfaces import KernelEnded
from sorna.model.agent import AgentAddress
from tests.cluster.scripted import ScriptedOperations

reactor: Any = global_reactor


async def pause(seconds: float = 0.0) -> None:
    """Let the reactor turn for so long."""
    await deferLater(reactor, seconds, lambda: None)


class LinkCase(TestCase):
    """Makes agents and managers and stops them at the end of the test."""

    timeout = 20

    def setUp(self) -> None:
        self.agent_keys = generate()
        self.manager_keys = generate()
        self.authorised = Path(self.mktemp())
        self.authorised.mkdir()
        self.authorise(self.manager_keys)
        self.operations = ScriptedOperations()
        self.operations.terminal.clock = reactor
        self.news: list[KernelEnded] = []

    def authorise(self, keypair: CurveKeypair) -> None:
        (self.authorised / f"{len(list(self.authorised.iterdir()))}.public").write_text(keypair.public + "\n")

    async def take(self, news: KernelEnded) -> None:
        self.news.append(news)

    def agent(self, port: int = 0, **changes: Any) -> LinkServer:
        server = LinkServer(
            reactor,
            changes.get("operations", self.operations),
            changes.get("keypair", self.agent_keys),
            AuthorisedKeys(reactor, self.authorised),
            interface="127.0.0.1",
            port=port,
            incarnation=changes.get("incarnation", "first"),
        )
        server.startService()
        self.addCleanup(self.stop, server)
        return server

    def manager(self, **changes: Any) -> ZmqAgentLink:
        link = ZmqAgentLink(
            reactor,
            changes.get("keypair", self.manager_keys),
            changes.get("on_kernel_ended", self.take),
            permits=changes.get("permits"),
            idle=changes.get("idle", 300.0),
        )
        link.startService()
        self.addCleanup(self.stop, link)
        return link

    def stop(self, service: Any) -> Deferred[None] | None:
        return service.stopService() if service.running else None

    def address(self, server: LinkServer, keypair: CurveKeypair | None = None) -> AgentAddress:
        return AgentAddress("i-1", server.endpoint, (keypair or self.agent_keys).public)

    async def until(self, condition: Any, seconds: float = 5.0) -> None:
        """Wait until the condition holds, and fail when it does not in time."""
        end = reactor.seconds() + seconds
        while not condition():
            if reactor.seconds() > end:
                self.fail("it did not happen in time")
            await pause(0.005)
