"""A kernel in a real sandbox behind an agent, the link and a gateway, for tests of what goes all the way."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.trial.unittest import SkipTest

from sorna.agent.channel import Channel
from sorna.agent.detection import Detection, detect
from sorna.agent.devices import Devices
from sorna.agent.ended import EndedKernels
from sorna.agent.factory import KernelFactory
from sorna.agent.folder_watch import FolderWatch
from sorna.agent.interfaces import SandboxSettings
from sorna.agent.kernels import Kernels
from sorna.agent.pool import Pool
from sorna.agent.sandbox.tiers import NamespaceSandbox, ZygoteTier
from sorna.errors import IsolationUnavailable
from sorna.gateway.service import make_site
from sorna.model.kernel import KernelSpec, new_kernel_id, short_id
from sorna.model.limits import Limits, OutputBounds
from sorna.model.run import RunMode, RunRequest
from sorna.model.service import Service, Tunnel, TunnelUser, TunnelWish
from sorna.model.terminal import Terminal, TerminalViewer
from sorna.testing.administration import memory_world
from sorna.testing.folders import memory_folders
from sorna.testing.gateway import EXAMPLE, MemoryKeypairs, MemoryOperations, MemoryRateLimits, MemoryReadiness, Signer
from sorna.testing.kernels import MemoryKernels
from tests.cluster.real import LinkCase, reactor
from tests.integration.websocket_client import WebSocketClient, open_websocket


class LinkedKernels(MemoryKernels):
    """The door's view of one real kernel, over the real link; what is not here is in memory."""

    def __init__(self, case: LinkedKernelCase) -> None:
        super().__init__(reactor)
        self.case = case

    async def restart(self, access_key: str, reference: str) -> None:
        await self.case.link.restart_kernel(self.case.at, self.case.kernel_id)

    async def open_terminal(
        self, access_key: str, reference: str, viewer: TerminalViewer, rows: int = 24, columns: int = 80
    ) -> Terminal:
        return await self.case.link.open_terminal(self.case.at, self.case.kernel_id, viewer, rows, columns)

    async def services(self, access_key: str, reference: str) -> Sequence[Service]:
        return await self.case.link.services(self.case.at, self.case.kernel_id)

    async def open_tunnel(self, access_key: str, reference: str, user: TunnelUser, wish: TunnelWish) -> Tunnel:
        return await self.case.link.open_tunnel(self.case.at, self.case.kernel_id, user, wish)

    async def stop_service(self, access_key: str, reference: str, name: str) -> None:
        await self.case.link.stop_service(self.case.at, self.case.kernel_id, name)


class LinkedKernelCase(LinkCase):
    """One kernel of each test, and a gateway that leads to it."""

    timeout = 90
    detection: ClassVar[Detection | None] = None
    tier: ClassVar[type[ZygoteTier]] = NamespaceSandbox

    async def setUp(self) -> None:  # type: ignore[override]  # trial waits for it
        super().setUp()
        cls = type(self)
        if cls.detection is None:
            cls.detection = await detect(reactor, reactor, sys.executable, dict(os.environ))
        settings = SandboxSettings(python=sys.executable, read_only=cls.detection.read_only)
        sandbox = self.tier(reactor, settings, f"test-{secrets.token_hex(4)}")
        try:
            await sandbox.start()
        except IsolationUnavailable as error:
            raise SkipTest(f"no isolation here: {error.detail}") from error
        self.addCleanup(lambda: Deferred.fromCoroutine(sandbox.stop()))
        factory = KernelFactory(reactor, sandbox, cls.detection.runtimes, partial(Channel, reactor))
        watch = FolderWatch(reactor, Path("nowhere"), maybeDeferred)
        ended = EndedKernels(reactor, OutputBounds())
        self.kernels = Kernels(
            reactor,
            Pool(reactor, factory, 0),
            cls.detection.runtimes,
            8,
            watch,
            ended=ended,
            devices=Devices(Path("nowhere"), hidden=True),
        )
        self.addCleanup(lambda: Deferred.fromCoroutine(self.kernels.stop()))
        self.link = self.manager()
        self.at = self.address(self.agent(operations=self.kernels))
        self.kernel_id = new_kernel_id()
        await self.kernels.create_kernel(self.kernel_id, KernelSpec("AKIA", "t", "python3", "python3", Limits()))
        folders, transfers = memory_folders(self, reactor, EXAMPLE)
        world = memory_world(reactor, [EXAMPLE])
        site = make_site(
            reactor,
            kernels=LinkedKernels(self),
            folders=folders,
            transfers=transfers,
            administration=world.administration,
            enrolments=world.enrolments,
            keypairs=MemoryKeypairs(EXAMPLE),
            rate_limits=MemoryRateLimits(reactor),
            operations=MemoryOperations(),
            readiness=MemoryReadiness(),
        )
        port: Any = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(site)
        self.addCleanup(port.stopListening)
        self.port = port.getHost().port

    async def query(self, code: str) -> str:
        request = RunRequest(RunMode.QUERY, code, None, wait=None)
        reply = await self.link.execute(self.at, self.kernel_id, request)
        return "".join(text for kind, text in reply.console if kind == "stdout")

    async def dig(self, app: str, more: str = "") -> WebSocketClient:
        """Connect with an application in the kernel."""
        client = await self.ask(app, more)
        self.assertEqual(client.status, 101, client.refusal)
        return client

    async def ask(self, app: str, more: str = "") -> WebSocketClient:
        """Try to connect with an application, and give the answer."""
        signer = Signer(reactor, host=b"127.0.0.1:%d" % self.port)
        target = f"/v4/stream/session/{short_id(self.kernel_id)}/tcpproxy?app={app}{more}"
        client = await open_websocket(reactor, self.port, target, signer)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.drop(client)))
        return client

    async def drop(self, client: WebSocketClient) -> None:
        if not client.lost:
            client.transport.abortConnection()  # type: ignore[union-attr]  # connected, and TCP
            await client.until(lambda: client.lost)
