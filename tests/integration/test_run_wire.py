"""A run's WebSocket over loopback, with a real client and kernels in memory."""

from __future__ import annotations

from attrs import evolve
from twisted.internet.defer import Deferred

from sorna.model.run import RunMode, RunReply, RunRequest, RunStatus
from tests.integration.test_gateway_wire import WireTestCase, reactor
from tests.integration.websocket_client import WebSocketClient, open_websocket


class RunWireTests(WireTestCase):
    """Clients of 18.12 to 23.03, with their handshakes."""

    async def open(self, target: str, version: bytes = b"v4.20181215") -> WebSocketClient:
        signer = evolve(self.signer, version=version)
        client = await open_websocket(reactor, self.number, target, signer)

        async def close() -> None:
            if not client.lost:
                client.transport.abortConnection()  # type: ignore[union-attr]  # connected, and TCP
                await client.until(lambda: client.lost)

        self.addCleanup(lambda: Deferred.fromCoroutine(close()))
        return client

    async def kernel(self) -> str:
        client = await self.connect()
        return (await self.create(client)).decode()

    async def test_a_run(self) -> None:
        """Code goes in, pieces of output come out, a line is asked for and given, and the server closes."""
        pieces = iter((RunStatus.CONTINUED, RunStatus.WAITING_INPUT, RunStatus.FINISHED))
        requests: list[RunRequest] = []

        async def execute(request: RunRequest) -> RunReply:
            requests.append(request)
            return RunReply("run", next(pieces), (("stdout", str(len(requests))),))

        self.kernels.on_execute = execute
        kernel = await self.kernel()
        for kind in ("kernel", "session"):
            pieces = iter((RunStatus.CONTINUED, RunStatus.WAITING_INPUT, RunStatus.FINISHED))
            requests.clear()
            client = await self.open(f"/stream/{kind}/{kernel}/execute")
            client.send({"code": "1", "mode": "query", "options": {}})
            await client.until(lambda client=client: len(client.messages) == 2)
            client.send({"typed": "as it is"})
            await client.until(lambda client=client: client.lost)
            self.assertEqual([one["status"] for one in client.messages], ["continued", "waiting-input", "finished"])
            self.assertEqual(client.code, 1000)
            self.assertEqual(requests[2].mode, RunMode.INPUT)
            self.assertEqual(requests[2].code, '{"typed": "as it is"}')

    async def test_unknown_kernel(self) -> None:
        """A kernel that is not there is a problem before the connection is a WebSocket."""
        client = await self.open("/stream/kernel/nobody-has-this/execute")
        self.assertEqual(client.status, 404)
        self.assertIn(b"kernel-not-found", client.refusal)
