"""The agent's end of a zygote's control socket: packets and descriptors through the reactor, never waiting.

Knows sockets and the reactor; may not know what the packets are about.
"""

from __future__ import annotations

import os
import select
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.interfaces import IReadDescriptor, IWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from sorna.agent.sandbox import wire

MAX_WAITING = 1024
_PACKETS_PER_TURN = 64  # a busy zygote must not keep the reactor from the others


class ControlBusy(Exception):
    """So many packets wait to be sent that the zygote must be stuck."""


@implementer(IReadDescriptor, IWriteDescriptor)
class ControlChannel:
    """One connected ``SOCK_SEQPACKET`` socket.

    :param reactor: something that can add readers and writers.
    :param received: called with each packet and its descriptors, which are then the callee's to close.
    :param lost: called once, when the other end is gone or speaks nonsense, with a sentence.
    """

    def __init__(
        self,
        reactor: Any,
        sock: socket.socket,
        received: Callable[[bytes, list[int]], None],
        lost: Callable[[str], None],
    ) -> None:
        self._reactor = reactor
        self._socket = sock
        self._received = received
        self._lost = lost
        self._waiting: deque[tuple[bytes, list[int]]] = deque()
        self._open = True
        sock.setblocking(False)
        reactor.addReader(self)

    def send(self, packet: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send a packet now or as soon as there is room; copies of the descriptors are kept until then.

        :raises ControlBusy: too much waits already.
        :raises BrokenPipeError: the other end is gone.
        """
        if not self._open:
            raise BrokenPipeError("the control socket is closed")
        if not self._waiting:
            try:
                wire.send(self._socket, packet, descriptors)
            except BlockingIOError:
                pass
            else:
                return
        if len(self._waiting) >= MAX_WAITING:
            raise ControlBusy(f"{MAX_WAITING} messages wait for the zygote")
        self._waiting.append((packet, [os.dup(descriptor) for descriptor in descriptors]))
        self._reactor.addWriter(self)

    @property
    def idle(self) -> bool:
        """Whether nothing waits to be sent."""
        return not self._waiting

    def give_away(self) -> int:
        """Stop here, and give the descriptor to somebody else; nothing may wait to be sent."""
        self._open = False
        self._reactor.removeReader(self)
        self._reactor.removeWriter(self)
        return self._socket.detach()

    def close(self) -> None:
        """Close the socket, which tells a zygote to end; ``lost`` is not called any more."""
        if not self._open:
            return
        self._open = False
        self._reactor.removeReader(self)
        self._reactor.removeWriter(self)
        for _packet, descriptors in self._waiting:
            wire.close_all(descriptors)
        self._waiting.clear()
        self._socket.close()

    def doRead(self) -> None:
        """Take what has come, within bounds."""
        for _turn in range(_PACKETS_PER_TURN):
            if not self._open:
                return
            try:
                packet, descriptors = wire.receive(self._socket)
            except BlockingIOError:
                return
            except (OSError, wire.WireError) as error:
                self._end(f"{type(error).__name__}: {error}")
                return
            if not packet:
                self._end("the zygote has closed its control socket")
                return
            self._received(packet, descriptors)

    def drain(self) -> None:
        """Take everything that a dead peer has left, then close."""
        self.doRead()
        while self._open and select.select([self._socket], [], [], 0)[0]:
            self.doRead()
        self.close()

    def doWrite(self) -> None:
        """Send what waits."""
        while self._waiting:
            packet, descriptors = self._waiting[0]
            try:
                wire.send(self._socket, packet, descriptors)
            except BlockingIOError:
                return
            except OSError as error:
                self._end(f"{type(error).__name__}: {error}")
                return
            self._waiting.popleft()
            wire.close_all(descriptors)
        self._reactor.removeWriter(self)

    def _end(self, why: str) -> None:
        self.close()
        self._lost(why)

    def fileno(self) -> int:
        """Give the descriptor to watch; -1 once closed."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """Name this for the reactor's log."""
        return "zygote control"

    def connectionLost(self, reason: Failure) -> None:
        """Take the reactor's word that the socket is gone, or that it stops."""
        if self._open:
            self._end(reason.getErrorMessage())
