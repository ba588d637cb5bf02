"""The agent's end of the link: a ROUTER with CURVE that managers connect to.

Joins the socket, the list of authorised managers and the sessions to one service. It knows no method and no kernel.
"""

from __future__ import annotations

import os
import secrets
import uuid
from collections.abc import Mapping
from typing import Any, cast

import zmq
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from sorna.agent.interfaces import AgentOperations
from sorna.agent.link_sessions import RestartProgram, Sessions
from sorna.cluster.messages import MAX_MESSAGE
from sorna.curve_keys import AuthorisedKeys, CurveKeypair
from sorna.model.kernel import Usage
from sorna.zeromq import Doorkeeper, Sent, Socket, Sockets, serve_curve, tcp_endpoint

DOMAIN = b"sorna-agent"
# Few, so that a short answer overtakes long ones in our queue instead of waiting behind them in ZeroMQ's.
MOST_QUEUED = 16
HANDSHAKE_MS = 5_000
HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS = 5_000, 30_000
IO_THREADS = 2


class LinkServer(Service):
    """Serves ``operations`` to managers whose keys are ``authorised``; it is the agent's ``AgentNews``.

    News is kept also while the service does not run, and told to the managers that connect later.

    :param interface: an IP address; ``port`` 0 lets the system choose.
    :param incarnation: this life of the agent, as in its heartbeats.
    :ivar endpoint: where managers connect, known once the service runs.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        operations: AgentOperations,
        keypair: CurveKeypair,
        authorised: AuthorisedKeys,
        *,
        interface: str = "127.0.0.1",
        port: int = 6011,
        incarnation: str = "",
    ) -> None:
        self._reactor = reactor
        self._keypair = keypair
        self._authorised = authorised
        self._interface = interface
        self._port = port
        self._sessions = Sessions(
            reactor, operations, self._send, authorised.permits, incarnation or secrets.token_hex(8)
        )
        self._sockets: Sockets | None = None
        self._socket: Socket | None = None
        self.endpoint = ""

    @property
    def restart_program(self) -> RestartProgram | None:
        """What replaces the agent's program when a manager asks for it; None refuses."""
        return self._sessions.restart_program

    @restart_program.setter
    def restart_program(self, restart: RestartProgram | None) -> None:
        self._sessions.restart_program = restart

    def startService(self) -> None:
        """Bind the port.

        :raises CannotListenError: the port is taken or the address is not of this host.
        :raises ValueError: the interface is no IP address.
        """
        asked = tcp_endpoint(self._interface, self._port)
        self._sockets = Sockets(self._reactor, IO_THREADS)
        try:
            self._socket = self._bound(self._sockets, asked)
        except zmq.ZMQError as error:
            self._close()
            raise CannotListenError(
                self._interface, self._port, OSError(error.errno, os.strerror(error.errno or 0))
            ) from error
        self.endpoint = cast("bytes", self._socket.socket.get(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode("ascii")
        self._sessions.start()
        super().startService()
        self._log.info("managers connect to {endpoint}, key {key}", endpoint=self.endpoint, key=self._keypair.public)

    def _bound(self, sockets: Sockets, endpoint: str) -> Socket:
        Doorkeeper(sockets, self._authorised.permits, DOMAIN)
        router = Socket(sockets, zmq.ROUTER, self._receive, self._sessions.writable, MOST_QUEUED)
        serve_curve(router, self._keypair, DOMAIN)
        for option, value in (
            (zmq.ROUTER_MANDATORY, 1),
            (zmq.MAXMSGSIZE, MAX_MESSAGE),
            (zmq.HANDSHAKE_IVL, HANDSHAKE_MS),
            (zmq.HEARTBEAT_IVL, HEARTBEAT_MS),
            (zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS),
            (zmq.IPV6, int("[" in endpoint)),
            (zmq.BACKLOG, 1024),
        ):
            router.socket.set(option, value)
        router.watch(zmq.EVENT_DISCONNECTED, lambda _event, _value: self._sessions.somebody_left())
        router.socket.bind(endpoint)
        return router

    async def _stop(self) -> None:
        try:
            await self._sessions.stop()
        finally:
            self._close()

    def stopService(self) -> Deferred[None]:
        """Cancel what managers wait for, close the port and end the ZeroMQ context."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    @property
    def calls_in_flight(self) -> int:
        """How many calls are being worked on."""
        return self._sessions.calls_in_flight

    def pause(self) -> None:
        """Begin no call from now on; see :meth:`Sessions.pause`."""
        self._sessions.pause()

    def resume(self) -> None:
        """Begin calls again."""
        self._sessions.resume()

    def carry(self) -> Mapping[str, Any]:
        """Give the news that nobody has acknowledged as plain values."""
        return self._sessions.carry()

    def take_over(self, state: Mapping[str, Any]) -> None:
        """Go on telling what another program had to tell."""
        self._sessions.take_over(state)

    def _close(self) -> None:
        self._socket = None
        if self._sockets is not None:
            self._sockets.shutdown()
            self._sockets = None

    @property
    def untold(self) -> int:
        """How many news no manager has acknowledged yet."""
        return self._sessions.untold

    def kernel_ended(self, kernel_id: uuid.UUID, reason: str, usage: Usage) -> None:
        """Tell the managers that a kernel is gone, again and again until one of them has acknowledged it."""
        self._sessions.kernel_ended(kernel_id, reason, usage)

    def _receive(self, parts: list[zmq.Frame]) -> None:
        if len(parts) != 2:
            return  # not of this link, and there is no call to answer
        identity, content = parts
        key = content.get("User-Id")
        if isinstance(key, str):
            self._sessions.receive(identity.bytes, key, content.buffer)

    def _send(self, identity: bytes, raw: bytes) -> Sent:
        return Sent.GONE if self._socket is None else self._socket.send([identity, raw])
