"""Applications over HTTP, and a tunnel's session without a wire."""

from __future__ import annotations

import json
from collections.abc import Callable
from urllib.parse import quote

from attrs import define, field
from twisted.internet.defer import Deferred

from sorna.errors import InvalidRequest, KernelNotFound
from sorna.gateway.call import Call
from sorna.gateway.parameters import Parameters
from sorna.gateway.tunnels import BROKEN, LINGER, TunnelRoutes, TunnelSession, read_wish
from sorna.gateway.websockets import NORMAL, UNSUPPORTED
from sorna.model.kernel import parse_kernel_id
from sorna.model.service import WINDOW, TunnelWish
from sorna.testing.gateway import EXAMPLE
from sorna.testing.services import MemoryTunnel
from sorna.testing.unit import UnitTestCase
from tests.gateway.base import OTHER, TOKEN, GatewayTestCase


@define(eq=False)
class FakeSocket:
    """A WebSocket whose client reads when the test says so."""

    is_writable: bool = True
    reading: bool = True
    sent: list[bytes] = field(factory=list)
    closed_with: list[tuple[int, str]] = field(factory=list)
    say: Callable[[bytes], None] = field(default=lambda _data: None)

    def send(self, text: str) -> None:
        raise AssertionError(text)

    def send_bytes(self, data: bytes) -> None:
        self.sent.append(data)

    def take_bytes(self, receive: Callable[[bytes], None]) -> None:
        self.say = receive

    def read(self, wanted: bool) -> None:
        self.reading = wanted

    def close(self, code: int = NORMAL, reason: str = "") -> None:
        self.closed_with.append((code, reason))


class SessionTests(GatewayTestCase):
    """One session, opened by its owner."""

    def setUp(self) -> None:
        super().setUp()
        kernel_id = parse_kernel_id(self.create())
        assert kernel_id is not None
        self.inside = self.kernels.live[kernel_id].services
        self.routes = TunnelRoutes(self.kernels, self.operations, self.clock)

    def dig(self, query: str = "?app=files", reference: str = TOKEN) -> Deferred[TunnelSession]:
        target = f"/stream/session/{reference}/tcpproxy{query}".encode()
        call = Call("1", "GET", 4, {"reference": reference}, b"", b"", EXAMPLE, target)

        async def session() -> TunnelSession:
            found = (await self.routes.dig(call)).session
            assert isinstance(found, TunnelSession)
            return found

        return Deferred.fromCoroutine(session())

    def open(self, query: str = "?app=files") -> tuple[TunnelSession, FakeSocket, MemoryTunnel]:
        session, socket = self.successResultOf(self.dig(query)), FakeSocket()
        session.opened(socket)
        return session, socket, self.inside.tunnels[-1]

    def test_both_ways(self) -> None:
        """Bytes go as they come; credit comes back at once while the client reads, and later when it reads again."""
        session, socket, app = self.open()
        socket.say(b"GET")
        app.say(b"x" * 1000)
        self.assertEqual((app.taken, app.allowed), (b"GET", WINDOW))
        socket.is_writable = False
        app.say(b"y" * 2 * WINDOW)
        self.assertEqual(app.allowed, 0)
        socket.is_writable = True
        session.resumed()
        self.assertEqual(app.allowed, WINDOW)
        self.assertEqual(b"".join(socket.sent), b"x" * 1000 + b"y" * 2 * WINDOW)

    def test_an_application_that_does_not_read(self) -> None:
        """Beyond a window the client is not read from, until there is room for everything it has sent."""
        _, socket, app = self.open()
        app.reads = False
        socket.say(bytes(WINDOW))
        self.assertTrue(socket.reading)
        socket.say(bytes(2 * WINDOW))
        self.assertEqual((len(app.taken), socket.reading), (WINDOW, False))
        app.read()
        self.assertEqual((len(app.taken), socket.reading), (2 * WINDOW, False))
        app.read()
        self.assertEqual((len(app.taken), socket.reading), (3 * WINDOW, True))

    def test_an_application_that_speaks_first(self) -> None:
        """What comes before the WebSocket is open waits for it, in order, the end included."""
        session = self.successResultOf(self.dig())
        (app,) = self.inside.tunnels
        app.say(b"220 ")
        app.say(b"ready")
        app.user.tunnel_finished()
        app.end("")
        socket = FakeSocket()
        session.opened(socket)
        self.assertEqual((socket.sent, socket.closed_with[0]), ([b"220 ", b"ready"], (NORMAL, "")))

    def test_the_application_ends(self) -> None:
        """The end of what it sends closes the WebSocket, and a failure says what it was."""
        session, socket, app = self.open()
        app.user.tunnel_finished()
        self.assertEqual(socket.closed_with, [(NORMAL, "")])
        session.closed()
        self.assertEqual(self.inside.tunnels, [])
        _, socket, app = self.open()
        app.end("Nothing listens on port 8009.")
        self.assertEqual(socket.closed_with, [(BROKEN, "Nothing listens on port 8009.")])

    def test_half_closed(self) -> None:
        """Who asks for it is told of each end by an empty message, and tells so itself, once."""
        _, socket, app = self.open("?app=files&half-close=1")
        app.reads = False
        socket.say(bytes(2 * WINDOW))
        socket.say(b"")
        socket.say(b"late")
        self.assertFalse(app.client_finished)
        app.read()
        self.assertTrue(app.client_finished)
        app.say(b"answer")
        app.user.tunnel_finished()
        self.assertEqual((socket.sent, socket.closed_with), ([b"answer", b""], []))
        app.end("")
        self.assertEqual((socket.closed_with, len(app.taken)), ([(NORMAL, "")], 2 * WINDOW))
        _, socket, app = self.open()
        socket.say(b"")
        self.assertFalse(app.client_finished)

    def test_a_client_that_leaves(self) -> None:
        """Its tunnel goes with it, after what it has sent was written, or after a while."""
        session, socket, app = self.open()
        session.closed()
        self.assertEqual(self.inside.tunnels, [])
        session, socket, app = self.open()
        app.reads = False
        socket.say(bytes(2 * WINDOW))
        session.closed()
        app.say(bytes(3 * WINDOW))  # nobody's any more, and must not hold the application up
        self.assertEqual((len(self.inside.tunnels), app.unsent), (1, b""))
        app.read()
        self.assertEqual((self.inside.tunnels, len(app.taken)), ([], 2 * WINDOW))
        session, socket, app = self.open()
        app.reads = False
        socket.say(bytes(2 * WINDOW))
        session.closed()
        self.clock.advance(LINGER)
        self.assertEqual((self.inside.tunnels, self.clock.getDelayedCalls()), ([], []))

    def test_text_is_refused(self) -> None:
        """Text is nothing that could be passed on."""
        session, socket, _ = self.open()
        session.received("hello")
        self.assertEqual(socket.closed_with[0][0], UNSUPPORTED)

    def test_refused_before_the_handshake(self) -> None:
        """What cannot be is the answer to the handshake."""
        self.failureResultOf(self.dig(reference="nobody-has-this"), KernelNotFound)
        for query in ("", "?app=", "?app=nothing", "?app=files&port=x", "?app=files&port=22", "?app=80"):
            self.failureResultOf(self.dig(query), InvalidRequest)
        self.assertEqual(self.inside.tunnels, [])


class WishTests(UnitTestCase):
    """What a client's query says."""

    def read(self, **query: str) -> TunnelWish:
        return read_wish(Parameters(query))

    def test_as_clients_write_it(self) -> None:
        """Options with no value, one or several, and variables; the port may be said besides."""
        arguments = json.dumps({"--no-browser": None, "--directory": "d", "--paths": ["a", "b"]})
        wish = self.read(app="files", port="8009", arguments=arguments, envs='{"LANG": "C"}')
        options = {"--no-browser": [], "--directory": ["d"], "--paths": ["a", "b"]}
        self.assertEqual(wish, TunnelWish("files", 8009, options, {"LANG": "C"}))
        self.assertEqual(self.read(app="8000"), TunnelWish("8000"))

    def test_refusals(self) -> None:
        """Each names the field that is wrong."""
        for query, word in (
            ({}, "app"),
            ({"app": "a" * 65}, "app"),
            ({"app": "x", "port": "-1"}, "port"),
            ({"app": "x", "port": "1e3"}, "port"),
            ({"app": "x", "arguments": "["}, "body"),
            ({"app": "x", "arguments": '{"--a": 1}'}, "arguments.--a"),
            ({"app": "x", "arguments": '{"--a": ["b", null]}'}, "arguments.--a"),
            ({"app": "x", "envs": '{"A": null}'}, "envs.A"),
            ({"app": "x", "envs": '{"A": "b\\u0000"}'}, "envs.A"),
            ({"app": "x", "envs": json.dumps({f"A{one}": "" for one in range(40)})}, "envs"),
        ):
            with self.assertRaises(InvalidRequest) as caught:
                read_wish(Parameters(query))
            self.assertIn(word, str(caught.exception))


class RouteTests(GatewayTestCase):
    """Lists, and ending an application."""

    def test_listed_at_creation_and_later(self) -> None:
        """The answer to create and the list of apps say the same, as clients of each generation read it."""
        wish = {"image": "python3", "name": TOKEN, "config": {"preopen_ports": [8000, "9000"]}}
        made = self.request("POST", "/session", wish)
        rows = made.json["servicePorts"]
        self.assertEqual([row["name"] for row in rows], ["files", "git", "8000", "9000"])
        self.assertEqual(
            rows[0],
            {
                "name": "files",
                "protocol": "http",
                "ports": [8009],
                "url_template": "http://{host}:{port}/",
                "allowed_arguments": ["--directory"],
                "allowed_envs": ["LANG"],
            },
        )
        self.assertEqual(rows[2], {"name": "8000", "protocol": "preopen", "ports": [8000]})
        for collection in ("kernel", "session"):
            self.assertEqual(self.request("GET", f"/stream/{collection}/{TOKEN}/apps").json, rows)

    def test_ports_that_may_not_be(self) -> None:
        """A port that is out of range, named twice or no number is refused by its field, and nothing is made."""
        for ports in ([80], [8000, 8000], ["x"], "8000", [8000.5], [True], [65536], list(range(2000, 2100))):
            wish = {"image": "python3", "name": TOKEN, "config": {"preopenPorts": ports}}
            answer = self.request("POST", "/session", wish)
            self.assert_problem(answer, 400, "invalid-api-params")
            self.assertIn("config.preopenPorts", answer.json["title"])
        self.assertEqual(self.kernels.live, {})
        none = {"image": "python3", "name": TOKEN, "config": {"preopen_ports": None}}
        self.assertEqual(self.request("POST", "/session", none).status, 201)

    def test_ending_one(self) -> None:
        """It is named in the body or, as the client in JavaScript does, in the query."""
        self.create()
        path = f"/session/{TOKEN}/shutdown-service"
        self.assertEqual(self.request("POST", path, {"service_name": "files"}).status, 204)
        self.assertEqual(self.request("POST", f"{path}?service_name={quote('git')}", body=b"").status, 204)
        (kernel,) = self.kernels.live.values()
        self.assertEqual(kernel.services.stopped, ["files", "git"])
        self.assert_problem(self.request("POST", path, {"service_name": "x"}), 400, "invalid-api-params")
        stranger = self.request("POST", path, {"service_name": "files"}, keypair=OTHER)
        self.assert_problem(stranger, 404, "kernel-not-found")
