"""Tests of clients that go away before they are answered: what changes something goes on, what only reads stops."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred

from sorna.manager.requests import CreateRequest
from sorna.model.run import RunReply, RunRequest
from tests.gateway.base import GatewayTestCase


class HangUpTests(GatewayTestCase):
    """What a client that goes away leaves behind."""

    def hang_up(self, method: str, target: str, body: bytes) -> None:
        """Send a request that is not answered, and close the connection under it."""
        headers = self.signer.headers(method.encode(), target.encode(), body)
        sending = self.treq.request(
            method,
            "http://127.0.0.1:8081" + target,
            headers={name: [value] for name, value in headers.items()},
            data=body,
        )
        self.assertNoResult(sending)
        sending.cancel()
        self.treq.flush()
        self.failureResultOf(sending)

    def test_creation_goes_on(self) -> None:
        """A create request whose client has gone is carried out all the same."""
        gate: Deferred[None] = Deferred()
        create = self.kernels.create

        async def slow(request: CreateRequest, gone: Deferred[None] | None = None) -> Any:
            await gate
            return await create(request, gone)

        self.kernels.create = slow  # type: ignore[method-assign]  # the fake answers at once
        self.hang_up("POST", "/v2/kernel/create", b'{"lang": "python3", "clientSessionToken": "test-token-01"}')
        self.assertEqual(len(self.operations.running), 1)
        gate.callback(None)
        self.assertEqual(len(self.kernels.live), 1)
        self.assertEqual(self.operations.running, [])

    def test_waiting_for_an_agent_ends(self) -> None:
        """A create request that waits for an agent is told that its client has gone, and waits no longer."""
        self.kernels.turn = Deferred()
        body = b'{"lang": "python3", "clientSessionToken": "test-token-01", "maxWaitSeconds": 60}'
        self.hang_up("POST", "/v2/kernel/create", body)
        self.assertEqual((self.kernels.live, self.operations.running), ({}, []))

    def test_execution_is_cancelled(self) -> None:
        """A poll whose client has gone is cancelled where it waits, so that the output can go back."""
        cancelled: list[str] = []

        async def wait(request: RunRequest) -> RunReply:
            try:
                await Deferred()
            except CancelledError:
                cancelled.append(request.code)
                raise
            raise AssertionError

        self.kernels.on_execute = wait
        kernel = self.create()
        self.hang_up("POST", f"/v2/kernel/{kernel}", b'{"mode": "query", "code": "loop"}')
        self.assertEqual(cancelled, ["loop"])

    def test_a_cancellation_of_our_own_is_an_error(self) -> None:
        """When something of ours is cancelled and the client is still there, it gets an answer."""
        self.kernels.errors["info"] = CancelledError()
        self.assert_problem(self.request("GET", f"/v2/kernel/{self.create()}"), 500, "internal-server-error")
        self.assertEqual(len(self.flushLoggedErrors(CancelledError)), 1)
