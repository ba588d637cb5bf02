"""A port of several sockets: whose it is, and who gets connections."""

from __future__ import annotations

import os
import socket
from collections import Counter
from typing import Any, cast

from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory
from twisted.internet.ssl import CertificateOptions
from twisted.protocols.tls import TLSMemoryBIOFactory

from sorna.shared_port import SharedPorts
from sorna.testing.server import free_ports
from sorna.testing.unit import UnitTestCase


class Adopting:
    """Keeps what it is given to listen on, as a reactor does, and accepts when a test says so."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []
        self.factories: list[Any] = []

    def adoptStreamPort(self, fileno: int, family: int, factory: Any) -> socket.socket:
        self.sockets.append(socket.fromfd(fileno, family, socket.SOCK_STREAM))
        self.factories.append(factory)
        return self.sockets[-1]

    def accepted(self) -> list[int]:
        """Accept what waits, and tell how many did at each socket."""
        counts: Counter[int] = Counter()
        for number, listening in enumerate(self.sockets):
            while True:
                try:
                    listening.accept()[0].close()
                except BlockingIOError:
                    break
                counts[number] += 1
        return [counts[number] for number in range(len(self.sockets))]


class SharedPortTests(UnitTestCase):
    """On real sockets, without a reactor."""

    host = "127.0.0.1"

    def setUp(self) -> None:
        [self.port] = free_ports(1)
        self.reactor = Adopting()
        self.addCleanup(self.close)

    def close(self) -> None:
        """Close what is open."""
        for one in self.reactor.sockets:
            one.close()

    def listen(self, *, first: bool) -> socket.socket:
        """Listen as an endpoint does."""
        ports = SharedPorts(self.reactor, first)
        return cast("socket.socket", ports.listenTCP(self.port, Factory(), interface=self.host))

    def connect(self, count: int) -> None:
        """Open connections that wait to be accepted."""
        for _ in range(count):
            connection = socket.create_connection((self.host, self.port), timeout=20)
            self.addCleanup(connection.close)

    def test_all_sockets_get_connections(self) -> None:
        """Whoever listens gets a share; who has closed gets none."""
        for number in range(3):
            self.listen(first=number == 0)
        self.connect(45)
        shares = self.reactor.accepted()
        self.assertEqual(sum(shares), 45)
        self.assertTrue(all(shares), shares)
        self.reactor.sockets.pop(1).close()
        self.connect(30)
        self.assertEqual(sum(self.reactor.accepted()), 30)

    def test_the_first_wants_a_free_port(self) -> None:
        """It is refused where anybody listens: one that does not share, one that does, and one of the others of a server."""
        alone = socket.create_server((self.host, self.port), family=self.family)
        self.assertRaises(CannotListenError, self.listen, first=True)
        alone.close()
        self.listen(first=True)
        self.listen(first=False)
        error = self.assertRaises(CannotListenError, self.listen, first=True)
        self.assertEqual((error.interface, error.port), (self.host, self.port))
        self.reactor.sockets.pop(0).close()
        self.assertRaises(CannotListenError, self.listen, first=True)

    def test_a_foreign_server_that_shares(self) -> None:
        """Somebody else's port is not joined by the first of a server even if its owner would share it."""
        foreign = socket.create_server((self.host, self.port), family=self.family, reuse_port=True)
        self.addCleanup(foreign.close)
        self.assertRaises(CannotListenError, self.listen, first=True)

    def test_others_do_not_join_by_accident(self) -> None:
        """Whoever does not ask to share is refused."""
        self.listen(first=True)
        self.assertRaises(OSError, socket.create_server, (self.host, self.port), family=self.family)

    def test_the_others_join_none_that_does_not_share(self) -> None:
        """A worker is refused a port that is somebody's alone."""
        alone = socket.create_server((self.host, self.port), family=self.family)
        self.addCleanup(alone.close)
        self.assertRaises(CannotListenError, self.listen, first=False)

    def test_endpoints(self) -> None:
        """The endpoint of a description listens through it."""
        kind = "tcp6" if ":" in self.host else "tcp"
        host = self.host.replace(":", "\\:")
        endpoint = serverFromString(SharedPorts(self.reactor, first=True), f"{kind}:{self.port}:interface={host}")
        listening: Any = self.successResultOf(endpoint.listen(Factory()))
        self.assertEqual(listening.getsockname()[:2], (self.host, self.port))
        self.assertFalse(os.get_inheritable(listening.fileno()))

    def test_tls(self) -> None:
        """Connections over TLS go through the factory that Twisted's own ports put before ours."""
        factory = Factory()
        SharedPorts(self.reactor, first=True).listenSSL(self.port, factory, CertificateOptions(), interface=self.host)
        [wrapped] = self.reactor.factories
        self.assertIsInstance(wrapped, TLSMemoryBIOFactory)
        self.assertIs(wrapped.wrappedFactory, factory)

    @property
    def family(self) -> socket.AddressFamily:
        """The family of the host's address."""
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET


class SharedPort6Tests(SharedPortTests):
    """The same with IPv6."""

    host = "::1"
