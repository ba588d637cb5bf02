"""The ZeroMQ door as one service: both request ports, the terminals, and who may come in; owns its ZeroMQ context."""

from __future__ import annotations

import os
from collections.abc import Callable

import zmq
from attrs import frozen
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IReactorProcess, IReactorTime
from twisted.logger import Logger

from sorna.curve_keys import AuthorisedKeys, CurveKeypair
from sorna.legacy.access import Access
from sorna.legacy.actions import ManagerActions
from sorna.legacy.addresses import Addresses
from sorna.legacy.execution_actions import ExecutionActions
from sorna.legacy.interfaces import Kernels, Operations
from sorna.legacy.search import Searches
from sorna.legacy.socket import Desk, RequestSocket
from sorna.legacy.terminals import Terminals
from sorna.zeromq import Doorkeeper, Socket, Sockets, serve_curve, tcp_endpoint

DOMAIN = b"sorna-legacy"

# Calls what it is given with every change of a kernel; gives a callable that ends that.
Subscribe = Callable[[Callable[[str], None]], Callable[[], None]]


@frozen
class Curve:
    """The key of the door and the keys of those it lets in."""

    keypair: CurveKeypair
    authorised: AuthorisedKeys


@frozen
class Place:
    """Where the door is. ``interface`` is an IP address; port 0 lets the system choose."""

    interface: str
    manager_port: int
    execution_port: int
    override: str | None = None


class LegacyDoor(Service):
    """Serves ``kernels`` to ZeroMQ clients, all of them charged to the keypair of ``access``.

    :param spawner: the reactor, as what starts processes.
    :param changes: subscribes to the changes of kernels.
    :param curve: None for a door without keys.
    :ivar manager_port, execution_port: known once the service runs.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        spawner: IReactorProcess,
        place: Place,
        *,
        kernels: Kernels,
        access: Access,
        operations: Operations,
        changes: Subscribe,
        curve: Curve | None = None,
    ) -> None:
        self._reactor = reactor
        self._spawner = spawner
        self._place = place
        self._kernels = kernels
        self._access = access
        self._operations = operations
        self._changes = changes
        self._curve = curve
        self._sockets: Sockets | None = None
        self._ports: list[RequestSocket] = []
        self._terminals: Terminals | None = None
        self._unsubscribe: Callable[[], None] | None = None
        self.manager_port = self.execution_port = 0

    def startService(self) -> None:
        """Bind both ports.

        :raises CannotListenError: one is taken, or the address is not of this host.
        """
        self._sockets = Sockets(self._reactor)
        if self._curve is not None:
            Doorkeeper(self._sockets, self._curve.authorised.permits, DOMAIN)
        self._terminals = Terminals(self._sockets, self._kernels, self._access, self._place.interface, self._secure)
        try:
            self._open(self._sockets, self._terminals)
        except CannotListenError:
            self._close()
            raise
        self._unsubscribe = self._changes(self._terminals.kernel_changed)
        super().startService()
        self._log.info(
            "ZeroMQ clients reach {interface}, ports {manager} and {execution}; they are charged to {access_key}{keys}",
            interface=self._place.interface,
            manager=self.manager_port,
            execution=self.execution_port,
            access_key=self._access.access_key,
            keys="" if self._curve is None else f" and need the public key {self._curve.keypair.public}",
        )

    def _open(self, sockets: Sockets, terminals: Terminals) -> None:
        place = self._place
        searches = Searches(self._reactor, self._spawner)
        execution = ExecutionActions(self._kernels, self._operations, self._access, terminals, searches)
        self.execution_port = self._bind(sockets, execution, place.execution_port)
        manager = ManagerActions(
            self._kernels,
            self._operations,
            self._access,
            terminals,
            Addresses(place.interface, place.override),
            self.execution_port,
        )
        self.manager_port = self._bind(sockets, manager, place.manager_port)

    def _bind(self, sockets: Sockets, desk: Desk, port: int) -> int:
        permits = None if self._curve is None else self._curve.authorised.permits
        requests = RequestSocket(sockets, desk, permits=permits)
        self._secure(requests.socket)
        try:
            bound = requests.bind(tcp_endpoint(self._place.interface, port))
        except zmq.ZMQError as error:
            reason = OSError(error.errno, os.strerror(error.errno or 0))
            raise CannotListenError(self._place.interface, port, reason) from error
        self._ports.append(requests)
        return bound

    def _secure(self, socket: Socket) -> None:
        if self._curve is not None:
            serve_curve(socket, self._curve.keypair, DOMAIN)

    async def check_access(self) -> None:
        """Close every terminal while the keypair may not be used; to be called every half second."""
        if self._terminals and not await self._access.is_open():
            self._terminals.close_all()

    async def sweep(self) -> None:
        """Close the terminals of kernels whose end was announced and not heard; to be called now and then."""
        if self._terminals:
            await self._terminals.sweep()

    def stopService(self) -> Deferred[None]:
        """Tell those who wait that the server is stopping, and close everything."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        try:
            for requests in self._ports:
                await requests.stop()
        finally:
            self._close()

    def _close(self) -> None:
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        if self._terminals is not None:
            self._terminals.close_all()
            self._terminals = None
        self._ports.clear()
        if self._sockets is not None:
            self._sockets.shutdown()
            self._sockets = None
