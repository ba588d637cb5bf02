"""Terminals for ZeroMQ clients: two ports per kernel, what is typed comes in on one and the screen goes out on the other.

Knows sockets and the manager's terminals, and no request. A port takes and gives single frames of raw bytes, as in 2016:
clients connect a PUB to the first and a SUB to the second.

Note [When a terminal is looked at]
-----------------------------------
The reply to GET_OR_CREATE names the ports, so that they are bound by then; a terminal is opened only when somebody subscribes
or types, for most clients never do either, and given up with the last subscriber. Screen output waits (``XPUB_NODROP``) while
a subscriber's queue is full: the agent then holds it back, and cuts this door off when that lasts, instead of bytes being lost
in the middle. Ports are closed when the kernel's end is announced, and, as announcements may be lost, by a sweep.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable

import zmq
from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from sorna.errors import KernelNotFound, SornaError, Unavailable
from sorna.legacy.access import Access
from sorna.legacy.interfaces import Kernels
from sorna.legacy.socket import HANDSHAKE_MS, bind
from sorna.model.kernel import KernelStatus, short_id
from sorna.model.terminal import COLUMNS, ROWS, Terminal, within_bounds
from sorna.zeromq import Sent, Socket, Sockets, tcp_endpoint

MOST_TERMINALS = 500
MOST_TYPED_AT_ONCE = 256 * 1024
# Bytes typed before the terminal is open.
MOST_TYPED_AHEAD = 64 * 1024
MOST_QUEUED = 64

_SUBSCRIBED, _UNSUBSCRIBED = 1, 0

Secure = Callable[[Socket], None]


@define(eq=False)
class TerminalPorts:
    """The two ports of one kernel; a :class:`sorna.model.terminal.TerminalViewer`.

    :ivar rows, columns: the size of the screen, also for when the terminal is opened.
    :ivar folder: where ``%show`` looks, see ``control``; empty for the kernel's working directory.
    """

    kernels: Kernels
    access: Access
    kernel_id: uuid.UUID
    on_gone: Callable[[uuid.UUID], None]
    rows: int = ROWS
    columns: int = COLUMNS
    folder: str = ""
    stdin_port: int = 0
    stdout_port: int = 0
    _terminal: Terminal | None = None
    _opening: Deferred[None] | None = None
    _typed: bytearray = field(factory=bytearray)
    _unsent: list[bytes] = field(factory=list)
    _sockets: list[Socket] = field(factory=list)
    _is_watched: bool = False

    _log = Logger()

    def bind(self, sockets: Sockets, interface: str, secure: Secure) -> None:
        """Bind both ports. :raises zmq.ZMQError: there is none."""
        for kind, receive, options in (
            (zmq.SUB, self._typed_in, ((zmq.SUBSCRIBE, b""), (zmq.MAXMSGSIZE, MOST_TYPED_AT_ONCE))),
            (zmq.XPUB, self._subscription, ((zmq.XPUB_NODROP, 1), (zmq.MAXMSGSIZE, 1024))),
        ):
            socket = Socket(sockets, kind, receive, self._send_rest, MOST_QUEUED)
            self._sockets.append(socket)
            secure(socket)
            for option, value in ((zmq.HANDSHAKE_IVL, HANDSHAKE_MS), *options):
                socket.socket.set(option, value)
        self.stdin_port, self.stdout_port = (bind(socket, tcp_endpoint(interface, 0)) for socket in self._sockets)

    def resize(self, rows: int, columns: int) -> None:
        """Give the screen another size, now or once it is opened."""
        self.rows, self.columns = within_bounds(rows, columns)
        if self._terminal is not None:
            self._terminal.resize(self.rows, self.columns)

    def close(self) -> None:
        """Close both ports and look no more."""
        if self._opening is not None:
            self._opening.cancel()
        self._release()
        for socket in self._sockets:
            socket.shutdown()
        self._sockets.clear()

    def terminal_output(self, data: bytes) -> None:
        """Publish a piece of the screen, once what came before it is on its way."""
        self._unsent.append(data)
        self._send_rest()

    def terminal_ended(self, reason: str) -> None:
        """Note that the terminal is gone; it is opened again when somebody types."""
        self._log.debug("terminal of {kernel_id} ended: {reason}", kernel_id=short_id(self.kernel_id), reason=reason)
        self._terminal = None
        self._unsent.clear()

    def _typed_in(self, parts: list[zmq.Frame]) -> None:
        data = b"".join(part.bytes for part in parts)
        if self._terminal is not None:
            self._terminal.write(data)
        elif len(self._typed) + len(data) <= MOST_TYPED_AHEAD:
            self._typed += data
            self._open()

    def _subscription(self, parts: list[zmq.Frame]) -> None:
        """Learn that the first subscriber of everything came or the last one left."""
        what = parts[0].bytes
        if what[:1] == bytes([_SUBSCRIBED]):
            if not self._is_watched:
                # What a terminal printed that somebody typed into before is shown to who looks now: opened anew, it begins
                # with the recent past.
                self._release()
            self._is_watched = True
            self._open()
        elif what == bytes([_UNSUBSCRIBED]):
            self._is_watched = False
            self._release()

    def _release(self) -> None:
        terminal, self._terminal = self._terminal, None
        if terminal is not None:
            terminal.close()
        self._unsent.clear()

    def _send_rest(self) -> None:
        while self._unsent and self._sockets:
            if self._sockets[1].send([self._unsent[0]]) is Sent.FULL:
                return
            size = len(self._unsent.pop(0))
            if self._terminal is not None:
                self._terminal.consumed(size)

    def _open(self) -> None:
        if self._terminal is not None or self._opening is not None:
            return
        self._opening = Deferred.fromCoroutine(self._open_now())
        self._opening.addBoth(self._opened)

    def _opened(self, result: Failure | None) -> None:
        self._opening = None
        if result is None:
            return
        self._typed.clear()
        if result.check(KernelNotFound):
            self.on_gone(self.kernel_id)
        elif result.check(SornaError):
            reason = result.getErrorMessage()
            self._log.warn("no terminal of {kernel_id}: {reason}", kernel_id=short_id(self.kernel_id), reason=reason)
        elif not result.check(CancelledError):
            self._log.failure("no terminal of {kernel_id}", result, kernel_id=short_id(self.kernel_id))

    async def _open_now(self) -> None:
        access_key = await self.access.check()
        size = self.rows, self.columns
        terminal = await self.kernels.open_terminal(access_key, str(self.kernel_id), self, *size)
        self._terminal = terminal
        if (self.rows, self.columns) != size:
            terminal.resize(self.rows, self.columns)
        if self._typed:
            terminal.write(bytes(self._typed))
            self._typed.clear()


class Terminals:
    """The ports of every kernel that a client of this door was told of.

    :param secure: readies a socket before it is bound, for CURVE.
    """

    _log = Logger()

    def __init__(self, sockets: Sockets, kernels: Kernels, access: Access, interface: str, secure: Secure) -> None:
        self._sockets = sockets
        self._kernels = kernels
        self._access = access
        self._interface = interface
        self._secure = secure
        self._open: dict[uuid.UUID, TerminalPorts] = {}

    def __len__(self) -> int:
        return len(self._open)

    def of(self, kernel_id: uuid.UUID) -> TerminalPorts:
        """Give the ports of a live kernel, bound now if need be.

        :raises Unavailable: there are too many.
        """
        ports = self._open.get(kernel_id)
        if ports is not None:
            return ports
        if len(self._open) >= MOST_TERMINALS:
            raise Unavailable(f"There are {MOST_TERMINALS} terminals.")
        ports = TerminalPorts(self._kernels, self._access, kernel_id, self.close)
        try:
            ports.bind(self._sockets, self._interface, self._secure)
        except zmq.ZMQError as error:
            ports.close()
            raise Unavailable(f"No port for a terminal can be bound: {error}") from error
        self._open[kernel_id] = ports
        return ports

    def ports_of(self, kernel_id: uuid.UUID) -> tuple[int, int]:
        """Give the numbers of both ports, the one to type into first. :raises Unavailable: as for :meth:`of`."""
        ports = self.of(kernel_id)
        return ports.stdin_port, ports.stdout_port

    def kernel_changed(self, text: str) -> None:
        """Take an announcement, ``SHORT_ID STATUS`` and more, and close what belongs to a kernel that has ended."""
        name, status, *_rest = (*text.split(" ", 2), "")
        if status in {KernelStatus.TERMINATED, KernelStatus.ERROR}:
            for kernel_id in [one for one in self._open if short_id(one) == name]:
                self.close(kernel_id)

    async def sweep(self) -> None:
        """Close the ports of kernels that are gone."""
        for kernel_id in list(self._open):
            if not await self._kernels.lives(self._access.access_key, str(kernel_id)):
                self.close(kernel_id)

    def close(self, kernel_id: uuid.UUID) -> None:
        """Close the ports of a kernel; harmless when there are none."""
        ports = self._open.pop(kernel_id, None)
        if ports is not None:
            ports.close()

    def close_all(self) -> None:
        """Close everything."""
        for kernel_id in list(self._open):
            self.close(kernel_id)
