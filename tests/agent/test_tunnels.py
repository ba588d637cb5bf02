"""A kernel's applications in the agent: what may be reached, and the accounts of each connection."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from sorna.agent.detection import Offered
from sorna.agent.languages import RUNTIMES, Application
from sorna.agent.replies import Replies
from sorna.agent.runners import frames
from sorna.agent.runners.frames import FrameError
from sorna.agent.tunnels import STOP_DEADLINE, Tunnels
from sorna.errors import AgentFailed, AgentTimeout, InvalidRequest, KernelNotFound, Unavailable
from sorna.model.service import MOST_TUNNELS, WINDOW, Tunnel, TunnelWish
from sorna.testing.services import MemoryUser
from sorna.testing.unit import UnitTestCase
from tests.agent.fakes import KernelTestCase, spec

FILES = Application("files", "http", 8009, "exec serve", arguments=("--directory",), environ=("LANG",), patience=9.0)
OFFERED = (Offered(FILES, {"SORNA_APP_TOOL": "/usr/bin/python3"}),)
ONE = b"\0\0\0\1"


class TunnelTestCase(UnitTestCase):
    """The tunnels of a kernel whose init is this test."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.sent: list[tuple[int, Any]] = []
        self.touches = 0
        self.replies = Replies(self.clock)
        self.tunnels = self.make(reachable=True)
        self.tunnels.offer("python3", OFFERED, [8000])

    def make(self, *, reachable: bool) -> Tunnels:
        return Tunnels(self.send, self.replies, self.touch, reachable=reachable)

    def send(self, kind: int, content: Mapping[str, Any] | bytes) -> None:
        self.sent.append((kind, content))

    def touch(self) -> None:
        self.touches += 1

    def open(self, app: str = "8000", **wish: Any) -> tuple[Tunnel, MemoryUser]:
        user = MemoryUser()
        tunnel = self.tunnels.open(TunnelWish(app, **wish), user)
        self.assertEqual(user.told, [])
        return tunnel, user

    def refused(self, error: type[Exception], app: str = "8000", **wish: Any) -> str:
        before = len(self.sent)
        with self.assertRaises(error) as caught:
            self.open(app, **wish)
        self.assertEqual(len(self.sent), before, "a refusal sends nothing")
        return str(caught.exception)


class OpenTests(TunnelTestCase):
    """What may be reached."""

    def test_ports(self) -> None:
        """A port is connected with, and nothing is started for it."""
        self.open()
        frame = {"connection": 1, "port": 8000, "credit": WINDOW, "start": None}
        self.assertEqual(self.sent, [(frames.SERVICE_OPEN, frame)])
        self.assertEqual(self.touches, 1)

    def test_applications(self) -> None:
        """An application is started as the table says, with what the client chose."""
        self.open("files", arguments={"--directory": ["d"]}, environ={"LANG": "C"})
        ((_, frame),) = self.sent
        self.assertEqual(
            frame["start"],
            {
                "name": "files",
                "script": "exec serve",
                "arguments": ["--directory", "d"],
                "environ": {"SORNA_APP_TOOL": "/usr/bin/python3", "LANG": "C"},
                "patience": 9.0,
            },
        )

    def test_refusals(self) -> None:
        """Unknown names, ports out of range and options that may not be chosen are refused before anything happens."""
        self.assertIn("files, 8000", self.refused(InvalidRequest, "jupyter"))
        self.refused(InvalidRequest, "80")
        self.refused(InvalidRequest, "files", port=22)
        self.refused(InvalidRequest, "files", environ={"SORNA_APP_TOOL": "/bin/sh"})

    def test_no_network_of_its_own(self) -> None:
        """In a kernel that shares its host's network nothing is listed and nothing can be reached."""
        self.tunnels = self.make(reachable=False)
        self.tunnels.offer("python3", OFFERED, [8000])
        self.assertEqual(self.tunnels.services, ())
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(self.tunnels.list())), ())
        self.assertIn("network", self.refused(InvalidRequest))

    def test_most_at_once(self) -> None:
        """So many connections and no more; one that is being closed counts until init has said its last word."""
        tunnels = [self.open()[0] for _ in range(MOST_TUNNELS)]
        self.refused(Unavailable)
        tunnels[0].close()
        self.refused(Unavailable)
        self.tunnels.closed_received(b'{"connection": 1, "error": null}')
        self.open()

    def test_lists(self) -> None:
        """Applications and named ports come first, then what else listens; nonsense of init's is a failure."""
        listing = Deferred.fromCoroutine(self.tunnels.list())
        self.assertEqual(self.sent, [(frames.SERVICE_LIST, {"request": 1})])
        self.replies.received({"request": 1, "error": None, "result": [5000, 8000, 8009]})
        self.assertEqual([one.name for one in self.successResultOf(listing)], ["files", "8000", "5000"])
        wrong: tuple[Any, ...] = (None, ["x"], [22], {})
        for nonsense in wrong:
            listing = Deferred.fromCoroutine(self.tunnels.list())
            self.replies.received({"request": self.sent[-1][1]["request"], "error": None, "result": nonsense})
            self.failureResultOf(listing, AgentFailed)

    def test_stopping(self) -> None:
        """An application that is started here can be asked to end; anything else cannot."""
        stopping = Deferred.fromCoroutine(self.tunnels.stop("files"))
        self.assertEqual(self.sent, [(frames.SERVICE_STOP, {"request": 1, "name": "files"})])
        self.replies.received({"request": 1, "error": None, "result": None})
        self.assertIsNone(self.successResultOf(stopping))
        self.failureResultOf(Deferred.fromCoroutine(self.tunnels.stop("8000")), InvalidRequest)
        stuck = Deferred.fromCoroutine(self.tunnels.stop("files"))
        self.clock.advance(STOP_DEADLINE)
        self.failureResultOf(stuck, AgentTimeout)


class AccountTests(TunnelTestCase):
    """Credit and room of a connection."""

    def test_towards_the_client(self) -> None:
        """Bytes pass on as far as there is credit; what was consumed comes back to init, and no more than that."""
        tunnel, user = self.open()
        self.tunnels.output_received(ONE + bytes(WINDOW))
        self.assertEqual(len(user.seen), WINDOW)
        with self.assertRaises(FrameError):
            self.tunnels.output_received(ONE + b"x")
        tunnel.consumed(1000)
        tunnel.consumed(2 * WINDOW)
        tunnel.consumed(5)
        credit = [int.from_bytes(content[4:], "big") for kind, content in self.sent if kind == frames.SERVICE_CREDIT]
        self.assertEqual(credit, [1000, WINDOW - 1000])

    def test_towards_the_application(self) -> None:
        """Bytes pass on as far as there is room; who writes more loses the tunnel, and is told."""
        tunnel, user = self.open()
        tunnel.write(bytes(WINDOW))
        self.tunnels.room_received(ONE + (100).to_bytes(4, "big"))
        self.assertEqual(user.room, 100)
        tunnel.write(bytes(100))
        tunnel.write(b"")
        self.assertEqual(user.told, [])
        tunnel.write(b"x")
        self.assertEqual(user.reasons, ["More was written than there was room for."])
        self.assertEqual(
            [len(content) - 4 for kind, content in self.sent if kind == frames.SERVICE_INPUT], [WINDOW, 100]
        )
        self.assertEqual(self.sent[-1], (frames.SERVICE_CLOSE, ONE))

    def test_room_that_cannot_be(self) -> None:
        """Init cannot give back more than was sent."""
        tunnel, _ = self.open()
        tunnel.write(b"abc")
        with self.assertRaises(FrameError):
            self.tunnels.room_received(ONE + (4).to_bytes(4, "big"))

    def test_ends(self) -> None:
        """Each end is told once, in order, and afterwards nothing does anything."""
        tunnel, user = self.open()
        tunnel.finish()
        tunnel.finish()
        tunnel.write(b"late")
        self.tunnels.finished_received(ONE)
        self.tunnels.closed_received(b'{"connection": 1, "error": null}')
        sent = len(self.sent)
        tunnel.write(b"x")
        tunnel.consumed(1)
        tunnel.close()
        self.assertEqual((user.told, user.reasons, len(self.sent)), (["finished", "ended"], [""], sent))
        self.assertEqual([kind for kind, _ in self.sent[1:]], [frames.SERVICE_FINISH])

    def test_closed(self) -> None:
        """Who has closed is told nothing more, while init winds up."""
        tunnel, user = self.open()
        tunnel.close()
        tunnel.close()
        self.tunnels.output_received(ONE + b"late")
        self.tunnels.room_received(ONE + bytes(4))
        self.tunnels.finished_received(ONE)
        self.tunnels.closed_received(b'{"connection": 1, "error": "late"}')
        self.assertEqual((user.seen, user.room, user.told), (b"", 0, []))
        self.assertEqual([kind for kind, _ in self.sent[1:]], [frames.SERVICE_CLOSE])

    def test_nonsense(self) -> None:
        """Frames about connections that are none break the protocol."""
        for receive, payload in (
            (self.tunnels.output_received, ONE + b"x"),
            (self.tunnels.room_received, ONE + bytes(4)),
            (self.tunnels.finished_received, b""),
            (self.tunnels.closed_received, b'{"connection": 1, "error": null}'),
            (self.tunnels.closed_received, b'{"connection": "1"}'),
        ):
            with self.assertRaises(FrameError):
                receive(payload)


class KernelTests(KernelTestCase):
    """Tunnels as a part of their kernel."""

    def open(self, user: MemoryUser, app: str = "8000") -> Tunnel:
        return self.successResultOf(self.start(self.kernels.open_tunnel(self.kernel_id, user, TunnelWish(app))))

    def test_whole_way(self) -> None:
        """Frames go both ways, and are in no run and no log."""
        init = self.create()
        user = MemoryUser()
        tunnel = self.open(user)
        tunnel.write(b"GET /")
        init.say(frames.SERVICE_OUTPUT, ONE + b"page")
        self.flow()
        self.assertEqual(user.seen, b"page")
        self.assertIn((frames.SERVICE_INPUT, ONE + b"GET /"), init.received)
        self.assertEqual(self.successResultOf(self.start(self.kernels.logs(self.kernel_id))), "")

    def test_creation_tells(self) -> None:
        """A kernel's creation lists the ports that were named; ports that may not be refuse it."""
        wish = evolve(spec(), ports=(8000, 9000))
        made = self.start(self.kernels.create_kernel(uuid.UUID(int=77), wish))
        self.assertEqual([one.port for one in self.successResultOf(made)], [8000, 9000])
        again = self.start(self.kernels.create_kernel(uuid.UUID(int=77), wish))
        self.assertEqual([one.port for one in self.successResultOf(again)], [8000, 9000])
        for ports in ((80,), (8000, 8000)):
            refused = self.kernels.create_kernel(uuid.UUID(int=78), evolve(spec(), ports=ports))
            self.failureResultOf(self.start(refused), InvalidRequest)

    def test_use(self) -> None:
        """A kernel whose application is talked to or listened to is not idle; one whose tunnels are silent is."""
        init = self.create(idle_timeout=10.0)
        user = MemoryUser()
        tunnel = self.open(user)
        for number in range(4):
            self.advance(9)
            if number % 2:
                tunnel.write(b"x")
            else:
                init.say(frames.SERVICE_OUTPUT, ONE + b"x")
                self.flow()
                tunnel.consumed(1)
        self.assertEqual(user.told, [])
        self.advance(10.5)
        self.assertEqual(user.reasons, ["The kernel has ended (idle-timeout)."])

    def test_destroyed(self) -> None:
        """Users of a destroyed kernel's tunnels are told why, and nobody may open another."""
        self.create()
        user = MemoryUser()
        self.open(user)
        self.successResultOf(self.start(self.kernels.destroy_kernel(self.kernel_id, "user-requested")))
        self.assertEqual(user.reasons, ["The kernel has ended (user-requested)."])
        for call in (
            self.kernels.open_tunnel(self.kernel_id, user, TunnelWish("8000")),
            self.kernels.services(self.kernel_id),
            self.kernels.stop_service(self.kernel_id, "files"),
        ):
            self.failureResultOf(self.start(call), KernelNotFound)

    def test_an_init_that_breaks_the_rules(self) -> None:
        """Bytes that nobody allowed end the kernel."""
        init = self.create()
        user = MemoryUser()
        self.open(user)
        init.say(frames.SERVICE_FINISHED, b"\0\0\0\7")
        self.flow()
        self.assertEqual(user.reasons, ["The kernel has ended (protocol-error)."])


class TableTests(UnitTestCase):
    """The applications of the language table."""

    def test_rows(self) -> None:
        """Names and ports are unique per runtime, ports need no privileges, and every runtime can show its files."""
        for row in RUNTIMES.values():
            names = [one.name for one in row.applications]
            ports = [one.port for one in row.applications]
            self.assertEqual((len(set(names)), len(set(ports))), (len(names), len(ports)), row.name)
            self.assertTrue(all(1024 <= port <= 65535 for port in ports))
            self.assertTrue(all("$SORNA_PORT" in one.script for one in row.applications))
            self.assertIn("files", names)
