"""Tests of events of kernels, over a WebSocket in memory and as server-sent events."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred

from sorna.gateway.events import MOST_WAITING, SIGN_OF_LIFE, EventSession
from sorna.gateway.websockets import NORMAL, POLICY
from sorna.manager.requests import KernelEvent
from sorna.model.kernel import KernelStatus, new_kernel_id, short_id
from sorna.testing.gateway import EXAMPLE
from tests.gateway.base import OTHER, TOKEN, GatewayTestCase, MemorySocket

KERNEL = new_kernel_id()


def event(status: KernelStatus, reason: str = "") -> KernelEvent:
    return KernelEvent(KERNEL, status, EXAMPLE.access_key, TOKEN, reason, 0.0)


class EventSessionTests(GatewayTestCase):
    def open(self, *, alone: bool) -> tuple[EventSession, MemorySocket]:
        session, socket = EventSession(alone=alone), MemorySocket()
        session.opened(socket)
        return session, socket

    def test_one_kernel(self) -> None:
        """A kernel's events are told until it has ended, and then the connection closes."""
        session, socket = self.open(alone=True)
        session.receive(event(KernelStatus.RUNNING, "restarted"))
        session.received("what ever")
        session.receive(event(KernelStatus.TERMINATED, "out-of-memory"))
        self.assertEqual(
            [(one["name"], one["reason"]) for one in socket.sent], [("restarted",) * 2, ("terminated", "out-of-memory")]
        )
        self.assertEqual(
            socket.sent[1],
            {
                "name": "terminated",
                "reason": "out-of-memory",
                "kernelId": short_id(KERNEL),
                "sessionId": str(KERNEL),
                "sessionName": TOKEN,
                "ownerAccessKey": EXAMPLE.access_key,
                "status": "TERMINATED",
            },
        )
        self.assertEqual(socket.closed_with, (NORMAL, ""))

    def test_all_kernels(self) -> None:
        """The end of one kernel is not the end of the others."""
        session, socket = self.open(alone=False)
        session.receive(event(KernelStatus.RUNNING))
        session.receive(event(KernelStatus.ERROR, "NoAgentAvailable"))
        self.assertEqual([one["name"] for one in socket.sent], ["started", "failed"])
        self.assertIsNone(socket.closed_with)

    def test_early_events(self) -> None:
        """What happens before the connection is open is told then."""
        session, socket = EventSession(alone=False), MemorySocket()
        session.receive(event(KernelStatus.RUNNING))
        session.opened(socket)
        self.assertEqual(len(socket.sent), 1)

    def test_slow_reader(self) -> None:
        """Events wait for a client that does not read, up to a bound."""
        session, socket = self.open(alone=False)
        socket.is_writable = False
        for _ in range(3):
            session.receive(event(KernelStatus.RUNNING))
        self.assertEqual(socket.sent, [])
        socket.is_writable = True
        session.resumed()
        self.assertEqual(len(socket.sent), 3)
        socket.is_writable = False
        for _ in range(MOST_WAITING + 1):
            session.receive(event(KernelStatus.RUNNING))
        assert socket.closed_with is not None
        self.assertEqual(socket.closed_with[0], POLICY)

    def test_closing(self) -> None:
        """Whoever goes away watches nothing any more, also when the connection never opened."""
        for opened in (True, False):
            ended: list[bool] = []
            session = EventSession(alone=False)
            session.unwatch = lambda ended=ended: ended.append(True)  # type: ignore[misc]  # bound for this turn
            if opened:
                session.opened(MemorySocket())
            session.closed()
            session.receive(event(KernelStatus.RUNNING))
            self.assertEqual(ended, [True])


class ServerSentTests(GatewayTestCase):
    def listen(self, target: str) -> tuple[Any, Deferred[bytes]]:
        """Open a stream of events, and give what closes it and its content."""
        headers = self.signer.headers(b"GET", target.encode(), b"", b"application/octet-stream")
        sending = self.treq.request(
            "GET", "http://127.0.0.1:8081" + target, headers={name: [value] for name, value in headers.items()}
        )
        self.treq.flush()
        response = self.successResultOf(sending)
        self.assertEqual(response.code, 200)
        self.assertEqual(response.headers.getRawHeaders("Content-Type"), ["text/event-stream; charset=utf-8"])
        return response, response.content()

    def events(self, content: bytes) -> list[tuple[str, Any]]:
        """Read a stream as clients do."""
        found = []
        for block in content.decode().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
            if fields:
                found.append((fields["event"], json.loads(fields["data"]) if fields["data"] else None))
        return found

    def test_one_kernel(self) -> None:
        """A kernel's events come with a sign of life between them, and the end says that there is no need to come back."""
        for target in (
            f"/stream/kernel/{TOKEN}/events",
            f"/stream/session/{TOKEN}/events",
            f"/stream/kernel/_/events?sessionId={TOKEN}",
            f"/events/session?name={TOKEN}&scope=session",
        ):
            self.create()
            _response, content = self.listen(target)
            self.clock.advance(SIGN_OF_LIFE)
            self.treq.flush()
            self.request("PATCH", f"/v2/kernel/{TOKEN}")
            self.assertEqual(self.request("DELETE", f"/v2/kernel/{TOKEN}").status, 200)
            self.treq.flush()
            body = self.successResultOf(content)
            self.assertIn(b": alive\n\n", body)
            told = self.events(body)
            self.assertEqual([name for name, _ in told], ["session_restarted", "session_terminated", "server_close"])
            self.assertEqual((told[1][1]["sessionName"], told[1][1]["reason"]), (TOKEN, "user-requested"))
            self.assertEqual(self.kernels.watchers, [])

    def test_refusals(self) -> None:
        """Kernels that are not there, or another's, are not found before anything is sent."""
        self.create(keypair=OTHER)
        for target in (
            "/stream/kernel/_/events?sessionId=x",
            f"/stream/kernel/{TOKEN}/events",
            "/events/session?name=a%2Fb",
        ):
            self.assert_problem(self.request("GET", target, version=b"v4.20181215"), 404, "kernel-not-found")
        self.assertEqual(self.kernels.watchers, [])
