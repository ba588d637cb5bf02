"""Envelopes, bounds and keys of a port, with clients of every kind."""

from __future__ import annotations

import contextlib
import json
import socket as plain
from pathlib import Path
from typing import Any

import zmq
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from sorna.curve_keys import AuthorisedKeys, generate
from sorna.legacy.service import Curve
from sorna.legacy.socket import TOO_MANY, TOO_MANY_OF_CLIENT, Bounds, unwrap
from sorna.model.run import RunReply, RunRequest, RunStatus
from sorna.testing.unit import UnitTestCase
from sorna.zeromq import Socket, present_curve
from tests.legacy.door import SESSION, Client, DoorTestCase, reactor

PING = b'{"action": 0, "body": 1}'
PONG = b'{"reply": 0, "body": 1}'
PART = st.binary(max_size=3)


class UnwrapTests(UnitTestCase):
    def split(self, *parts: bytes) -> tuple[list[bytes], bytes]:
        envelope, body = unwrap([zmq.Frame(part) for part in parts])
        return envelope, body.bytes

    def test_envelopes(self) -> None:
        """REQ, DEALER with ids of its own, proxies on the way, no empty frame at all, and frames too many."""
        self.assertEqual(self.split(b"i", b"", b"x"), ([b"i", b""], b"x"))
        self.assertEqual(self.split(b"i", b"", b"x", b"y", b"", b"z"), ([b"i", b""], b"x"))
        self.assertEqual(self.split(b"i", b"7", b"", b"x"), ([b"i", b"7", b""], b"x"))
        self.assertEqual(self.split(b"i", b"proxy", b"7", b"", b"x"), ([b"i", b"proxy", b"7", b""], b"x"))
        self.assertEqual(self.split(b"i", b"x"), ([b"i"], b"x"))
        self.assertEqual(self.split(b"i", b"x", b"y"), ([b"i"], b"x"))
        self.assertEqual(self.split(b"i", b"x", b""), ([b"i"], b"x"))
        self.assertEqual(self.split(b"i", b""), ([b"i"], b""))
        self.assertEqual(self.split(b"i", b"", b""), ([b"i", b""], b""))

    @given(st.lists(PART, min_size=1, max_size=6))
    def test_total(self, parts: list[bytes]) -> None:
        """Whatever comes behind an identity has an envelope that begins with it, and one of the frames as its body."""
        envelope, body = self.split(b"identity", *parts)
        self.assertEqual(envelope[0], b"identity")
        self.assertEqual([b"identity", *parts][: len(envelope) + 1], [*envelope, body])


class ClientsTests(DoorTestCase):
    def raw(self, kind: int, got: list[list[bytes]]) -> Socket:
        """Connect a socket that keeps what it gets."""
        client = Socket(self.sockets, kind, lambda parts: got.append([part.bytes for part in parts]))
        client.socket.connect(f"tcp://127.0.0.1:{self.door.manager_port}")
        return client

    async def test_replies_are_single_frames_in_their_envelope(self) -> None:
        """Every kind of client gets its envelope back and one frame behind it."""
        got: list[list[bytes]] = []
        dealer = self.raw(zmq.DEALER, got)
        for sent, received in (
            ([b"", PING, b"extra", b""], [b"", PONG]),
            ([b"id", b"", PING], [b"id", b"", PONG]),
            ([PING], [PONG]),
            ([b""], [b'{"reply": 400, "cause": "Malformed API request."}']),
        ):
            got.clear()
            dealer.send(sent)
            await self.eventually(lambda: bool(got))
            self.assertEqual(got, [received])

    async def test_plain_req_sockets(self) -> None:
        """Blocking REQ sockets of other threads are served one after another, whatever they sent before."""

        def converse(port: int) -> list[Any]:
            with zmq.Context() as context, context.socket(zmq.REQ) as client:
                client.setsockopt(zmq.LINGER, 0)
                client.setsockopt(zmq.RCVTIMEO, 5000)
                client.connect(f"tcp://127.0.0.1:{port}")
                replies = []
                for raw in (b"not json", PING, b'{"action": 0.0, "body": []}'):
                    client.send_multipart([raw, b"extra"])
                    replies.append(client.recv_multipart())
                return replies

        replies = await deferToThread(converse, self.door.manager_port)
        self.assertEqual(
            replies, [[b'{"reply": 400, "cause": "Malformed API request."}'], [PONG], [b'{"reply": 0, "body": []}']]
        )

    async def test_bound_per_client_and_of_all(self) -> None:
        """Requests beyond the bounds are answered at once, saying so; PING always is; room that is free again is used."""
        gates: list[Deferred[RunReply]] = []
        kernel_id = (await self.manager().ask(SESSION))["kernel_id"]

        def wait(_request: RunRequest) -> Deferred[RunReply]:
            gates.append(Deferred())
            return gates[-1]

        self.kernels.on_execute = wait
        execute = {"action": 1, "entry_id": "e", "kernel_id": kernel_id, "cell_id": "1", "code": "1"}
        port = self.door._ports[0]
        port._bounds = Bounds(of_client=3, of_all=5)
        greedy, other, third = self.execution(), self.execution(), self.execution()
        waiting = [greedy.ask(execute) for _ in range(3)]
        self.assertEqual(await greedy.ask(execute), {"reply": 500, "cause": TOO_MANY_OF_CLIENT})
        waiting += [other.ask(execute) for _ in range(2)]
        await self.eventually(lambda: port.in_flight == 5)
        self.assertEqual(await third.ask(execute), {"reply": 500, "cause": TOO_MANY})
        self.assertEqual(await greedy.ask({"action": 0, "body": 1}), {"reply": 0, "body": 1})
        for gate in gates:
            gate.callback(RunReply("r", RunStatus.FINISHED))
        self.assertEqual({reply["reply"] for reply in await gatherResults(waiting)}, {200})
        self.assertEqual((port.in_flight, len(port._of_client)), (0, 0))

    async def test_huge_frames(self) -> None:
        """A client with a frame beyond the bound is disconnected; everybody else is served."""
        got: list[list[bytes]] = []
        large = self.raw(zmq.DEALER, got)
        large.send([b"", b'{"action": 0, "body": "' + b"x" * (4 * 1024 * 1024) + b'"}'])
        client = self.manager()
        self.assertEqual((await client.ask({"action": 0, "body": "x" * (3 * 1024 * 1024)}))["reply"], 0)
        self.assertEqual(got, [])

    async def test_peer_that_does_not_read(self) -> None:
        """Replies to who never reads are dropped beyond its queue, and hold up nobody."""
        deaf = plain.create_connection(("127.0.0.1", self.door.manager_port))
        self.addCleanup(deaf.close)
        deaf.setsockopt(plain.SOL_SOCKET, plain.SO_RCVBUF, 4096)
        deaf.sendall(b"\xff" + b"\0" * 8 + b"\x7f\x03\x00NULL" + b"\0" * 16 + b"\0" * 32)
        ready = b"\x05READY\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER"
        deaf.sendall(b"\x04" + bytes([len(ready)]) + ready)
        # Messages may follow only when the other side has said that it is ready too; its threads do that without us.
        answer = b""
        deaf.settimeout(10)
        while len(answer) < 66 or len(answer) < 66 + answer[65]:
            answer += deaf.recv(1)
        body = b'{"action": 0, "body": "' + b"x" * 30_000 + b'"}'
        frame = b"\x01\x00" + b"\x02" + len(body).to_bytes(8, "big") + body
        deaf.setblocking(False)
        client = self.manager()
        sent = 0
        for _ in range(200):
            with contextlib.suppress(BlockingIOError):
                sent += deaf.send(frame[sent % len(frame) :])
            started = reactor.seconds()
            self.assertEqual((await client.ask({"action": 0, "body": 1}))["reply"], 0)
            self.assertLess(reactor.seconds() - started, 0.5)
        self.assertGreater(sent, 20 * len(frame))

    async def test_replies_that_nobody_reads_are_bounded(self) -> None:
        """Who asks for large replies and reads none is told so instead of being sent more; memory stays bounded."""
        body = json.dumps({"action": 0, "body": "x" * 3_000_000}).encode()
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.addCleanup(context.destroy, 0)
        deaf = context.socket(zmq.DEALER)
        deaf.setsockopt(zmq.RCVHWM, 1)
        deaf.setsockopt(zmq.RCVBUF, 4096)
        deaf.connect(f"tcp://127.0.0.1:{self.door.manager_port}")
        port = self.door._ports[1]
        for _ in range(60):
            await deferToThread(deaf.send_multipart, [b"", body])
            await deferLater(reactor, 0.01)
        self.assertGreater(len(port._backlog), 0)
        self.assertLessEqual(len(port._backlog), 16 * 1024 * 1024)
        deaf.close(0)
        await self.eventually(lambda: len(port._backlog) == 0, "forgotten")

    async def test_flood(self) -> None:
        """One client's flood leaves the reactor and others their turns."""
        flood = self.raw(zmq.DEALER, [])
        client = self.manager()
        await client.ask({"action": 0, "body": 1})
        worst = 0.0
        for _ in range(20):
            for _ in range(200):
                flood.send([b"", b"garbage"])
            started = reactor.seconds()
            await client.ask({"action": 0, "body": 1})
            worst = max(worst, reactor.seconds() - started)
            await deferLater(reactor, 0)
        self.assertLess(worst, 0.5)


class CurveTests(DoorTestCase):
    def setUp(self) -> None:
        self.mine, self.stranger = generate(), generate()
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        (self.folder / "me.public").write_text(self.mine.public)
        self.curve = Curve(generate(), AuthorisedKeys(reactor, self.folder))
        super().setUp()

    def client(self, keys: Any) -> Client:
        """Connect with a key."""
        curve = self.curve
        assert curve is not None
        return self.manager(ready=lambda socket: present_curve(socket, keys, curve.keypair.public))

    async def test_keys(self) -> None:
        """Only authorised keys are served, and one that is removed no longer is, on its old connection either."""
        mine = self.client(self.mine)
        self.assertEqual((await mine.ask({"action": 0, "body": 1}))["reply"], 0)
        strangers = [
            self.client(self.stranger).ask({"action": 0, "body": 1}),
            self.manager().ask({"action": 0, "body": 1}),
        ]
        await deferLater(reactor, 0.3)
        (self.folder / "me.public").unlink()
        await deferLater(reactor, AuthorisedKeys.INTERVAL + 0.1)
        late = mine.ask({"action": 0, "body": 1})
        await deferLater(reactor, 0.2)
        for one in (*strangers, late):
            self.assertFalse(one.called)
            one.addErrback(lambda _failure: None)
            one.cancel()


class JsonTests(DoorTestCase):
    async def test_order_of_keys(self) -> None:
        """The bytes of a reply are in the order of 2016."""
        got: list[bytes] = []
        client = Socket(self.sockets, zmq.DEALER, lambda parts: got.append(parts[-1].bytes))
        client.socket.connect(f"tcp://127.0.0.1:{self.door.manager_port}")
        client.send([b"", json.dumps(SESSION).encode()])
        await self.eventually(lambda: bool(got))
        self.assertTrue(got[0].startswith(b'{"reply": 200, "kernel_id": "'), got)
