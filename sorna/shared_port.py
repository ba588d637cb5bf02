"""One TCP port that several processes of the same user listen on, each with a queue of its own that Linux fills in turn.

Stands in for the reactor where an endpoint listens, so that addresses, TLS and errors are those of any other endpoint, and
only the making of the socket differs. Knows no process and no service.

Note [A shared port belongs to one server]
    With ``SO_REUSEPORT`` set before ``bind``, a second server of the same user would get the port without an error, and a
    share of the connections. So the first socket of a server is bound and made to listen without it, as if it were to be the
    only one, which fails when anybody listens there. Only then is the flag set on it: Linux looks at the flags of the
    sockets that exist whenever another one is bound, so from now on those that have it set themselves may join. There is
    no moment in which two servers could both be first.
"""

from __future__ import annotations

import os
import socket
from contextlib import closing
from typing import Any

from attrs import field, frozen
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.protocols.tls import TLSMemoryBIOFactory


@frozen
class SharedPorts:
    """Listens for endpoints in place of ``reactor``.

    :param first: whether the port must be free now; the others share what the first one holds.
    :ivar user: who opens it. Linux lets nobody else's processes share it.
    """

    reactor: Any
    first: bool
    user: int = field(factory=os.geteuid)

    def listenTCP(self, port: int, factory: IProtocolFactory, backlog: int = 50, interface: str = "") -> IListeningPort:
        """Listen. :raises CannotListenError: the port is taken by somebody who does not share it with us."""
        family = socket.AF_INET6 if ":" in interface else socket.AF_INET
        with closing(socket.socket(family, socket.SOCK_STREAM)) as listening:
            try:
                self._listen(listening, interface, port, backlog)
            except OSError as error:
                raise CannotListenError(interface, port, error) from error
            adopted: IListeningPort = self.reactor.adoptStreamPort(listening.fileno(), family, factory)
        return adopted

    def listenSSL(
        self, port: int, factory: IProtocolFactory, contextFactory: Any, backlog: int = 50, interface: str = ""
    ) -> IListeningPort:
        """Listen, and speak TLS. :raises CannotListenError: as above."""
        return self.listenTCP(port, TLSMemoryBIOFactory(contextFactory, False, factory), backlog, interface)

    def _listen(self, listening: socket.socket, interface: str, port: int, backlog: int) -> None:
        """Make the socket listen; see Note [A shared port belongs to one server]."""
        numeric = socket.AI_NUMERICHOST | socket.AI_PASSIVE
        [found, *_] = socket.getaddrinfo(interface or None, port, listening.family, socket.SOCK_STREAM, 0, numeric)
        listening.setblocking(False)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if not self.first:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind(found[4])
        listening.listen(backlog)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
