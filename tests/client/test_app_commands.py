"""``sorna app``: flags, lists, and connections that are carried."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError, ConnectionDone
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Event, Ping, RejectConnection, RejectData
from wsproto.events import Request as Handshaken

from sorna.client.signing import VERSION_HEADER
from sorna.client.tunnels import Tunnels
from sorna.testing.unit import UnitTestCase
from tests.client.scripted import KERNEL, Setting, problem
from tests.client.test_cli import CommandLineTestCase

APPS = (
    200,
    [
        {"name": "files", "protocol": "http", "ports": [8009], "url_template": "http://{host}:{port}/"},
        {"name": "5000", "protocol": "preopen", "ports": [5000]},
    ],
)


class CommandTests(CommandLineTestCase):
    """What is asked of the server before anything is carried."""

    def test_list(self) -> None:
        """Without an application, those that there are."""
        done = self.invoke(["app", "mine"], APPS)
        self.assertEqual(self.setting.server.calls, ["GET /v3/stream/kernel/mine/apps"])
        lines = [line.split() for line in done.stdout.splitlines()]
        self.assertEqual(lines, [["app", "protocol", "port"], ["files", "http", "8009"], ["5000", "preopen", "5000"]])

    def test_unknown(self) -> None:
        """An application that is not there is refused with what is; so is a kernel that is not."""
        done = self.invoke(["app", "mine", "jupyter"], APPS)
        self.assertEqual(self.codes, [125])
        self.assertIn("there is no app 'jupyter'; there are: files, 5000", done.stderr)
        gone = self.invoke(["app", "mine", "files"], problem(404, "kernel-not-found", "No such kernel."))
        self.assertIn("No such kernel.", str(gone.exception))
        strange = self.invoke(["app", "mine"], (200, [{"name": "files"}]))
        self.assertIn("no list of applications", str(strange.exception))

    def test_where_to_listen(self) -> None:
        """A port, or an address and a port; anything else is refused before the server is asked."""
        for bind in ("x", "1.2.3.4:", ":80", "127.0.0.1:70000", "127.0.0.1:-1"):
            done = self.invoke(["app", "mine", "files", "--bind", bind])
            self.assertEqual(done.exit_code, 125, bind)
            self.assertIn("--bind", done.stderr)


class Pair:
    """The two sockets of one connection, and the server's side of the WebSocket."""

    def __init__(self, reactor: MemoryReactorClock) -> None:
        factory: Any = reactor.tcpServers[0][1]
        self.local: Any = factory.buildProtocol(None)
        self.below = Wire()
        self.local.makeConnection(self.below)
        self.client_factory: Any = reactor.tcpClients[-1][2]
        self.above = Wire()
        self.server = WSConnection(ConnectionType.SERVER)
        self.events: list[Event] = []

    def connect(self) -> None:
        """Let the server be reached."""
        self.remote: Any = self.client_factory.buildProtocol(None)
        self.remote.makeConnection(self.above)
        self.hear()

    def hear(self) -> None:
        """Let the server read what was sent to it."""
        self.server.receive_data(self.above.value())
        self.above.clear()
        self.events += list(self.server.events())

    def say(self, event: Event) -> None:
        self.remote.dataReceived(self.server.send(event))


class Wire(StringTransport):
    """A socket that notes what becomes of it."""

    aborted = False
    half_closed = False

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Have no delay."""

    def abortConnection(self) -> None:
        self.aborted = True

    def loseWriteConnection(self) -> None:
        self.half_closed = True


class TunnelTests(UnitTestCase):
    """One connection without a network."""

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.reactor.rightNow = 1504746123.5
        self.api = Setting().api
        self.complaints: list[str] = []
        self.tunnels = Tunnels(self.reactor, lambda: self.api.tunnel_handshake(KERNEL, "a b/c"), self.complaints.append)
        self.tunnels.listen("127.0.0.1", 8080)

    def pair(self, act: Callable[[Pair], None] = Pair.connect) -> Pair:
        pair = Pair(self.reactor)
        act(pair)
        return pair

    def accepted(self) -> Pair:
        pair = self.pair()
        pair.say(AcceptConnection())
        return pair

    def test_the_handshake(self) -> None:
        """It names the application, escaped, is signed, and nothing is read from below before it is answered."""
        pair = self.pair()
        (request,) = pair.events
        assert isinstance(request, Handshaken)
        self.assertEqual(request.target, f"/v3/stream/kernel/{KERNEL}/tcpproxy?app=a%20b%2Fc&half-close=1")
        headers = {name.lower(): value for name, value in request.extra_headers}
        self.assertIn(b"BackendAI signMethod=HMAC-SHA256", headers[b"authorization"])
        self.assertIn(VERSION_HEADER.lower().encode(), headers)
        self.assertEqual(pair.below.producerState, "paused")
        pair.say(AcceptConnection())
        self.assertEqual(pair.below.producerState, "producing")
        self.assertIs(pair.above.producer, pair.below)
        self.assertIs(pair.below.producer, pair.above)

    def test_bytes_and_ends(self) -> None:
        """Bytes go both ways; each side's end is an empty message, and the application's close closes."""
        pair = self.accepted()
        pair.local.dataReceived(b"question")
        pair.local.readConnectionLost()
        pair.hear()
        self.assertEqual(
            [bytes(one.data) for one in pair.events[1:] if isinstance(one, BytesMessage)], [b"question", b""]
        )
        pair.say(BytesMessage(b"ans", message_finished=False))
        pair.say(BytesMessage(b"wer"))
        self.assertEqual((pair.below.value(), pair.below.half_closed), (b"answer", False))
        pair.say(BytesMessage(b""))
        self.assertTrue(pair.below.half_closed)
        pair.say(CloseConnection(1000))
        pair.remote.connectionLost(Failure(ConnectionDone()))
        self.assertTrue(pair.below.disconnecting)
        self.assertEqual(self.complaints, [])

    def test_refusals(self) -> None:
        """A refusal and a failure are told in the server's words."""
        pair = self.pair()
        body = b'{"type": "x", "title": "No such kernel."}'
        pair.say(RejectConnection(status_code=404, headers=[(b"content-length", b"41")], has_body=True))
        pair.say(RejectData(body))
        self.assertTrue(pair.above.aborted)
        pair = self.accepted()
        pair.say(CloseConnection(1011, "Nothing listens on port 5000."))
        pair = self.accepted()
        pair.remote.connectionLost(Failure(ConnectionDone()))
        self.assertEqual(
            self.complaints,
            [
                "The server refused the connection: No such kernel. [404]",
                "Nothing listens on port 5000.",
                "The connection to the server was lost.",
            ],
        )

    def test_pings_and_nonsense(self) -> None:
        """A ping is answered; what is no WebSocket ends the connection."""
        pair = self.accepted()
        pair.say(Ping(b"1"))
        pair.hear()
        self.assertEqual(type(pair.events[-1]).__name__, "Pong")
        pair.remote.dataReceived(b"\xff" * 20)
        self.assertTrue(pair.above.disconnecting)
        self.assertIn("opcode", self.complaints[0])
        pair = self.pair()
        pair.remote.dataReceived(b"SSH-2.0-OpenSSH\r\n\r\n")
        self.assertTrue(pair.above.aborted)
        self.assertIn("does not speak WebSocket", self.complaints[1])

    def test_who_leaves(self) -> None:
        """The end of a connection below says goodbye above, also when that was not answered yet."""
        pair = self.accepted()
        pair.local.connectionLost(Failure(ConnectionDone()))
        pair.hear()
        self.assertIsInstance(pair.events[-1], CloseConnection)
        self.assertTrue(pair.above.disconnecting)
        pair = self.pair()
        pair.local.connectionLost(Failure(ConnectionDone()))
        pair.say(AcceptConnection())
        self.assertTrue(pair.above.disconnecting)
        self.assertEqual(self.complaints, [])

    def test_no_server(self) -> None:
        """A server that cannot be reached is said, and the connection below dropped."""
        pair = self.pair(lambda one: one.client_factory.clientConnectionFailed(None, Failure(ConnectError())))
        self.reactor.advance(1)
        self.assertTrue(pair.below.aborted)
        self.assertIn("The server cannot be reached: ", self.complaints[0])

    def test_the_end(self) -> None:
        """At the end nothing listens and every connection is dropped."""
        pair = self.accepted()
        self.successResultOf(Deferred.fromCoroutine(self.tunnels.close()))
        self.assertTrue(pair.below.aborted)
