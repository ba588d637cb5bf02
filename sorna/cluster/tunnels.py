"""The tunnels that this manager has open over one connection to an agent; knows messages, no socket and no door.

An application's bytes come with credit that each user gives back itself, and bytes for it are bounded by the room that the
application gives back (see ``sorna/model/service.py``), so what waits here for the connection is bounded, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from sorna.cluster.messages import Ended, Finished, Output, Room, Steer, encode
from sorna.cluster.outgoing import Outgoing
from sorna.model.service import WINDOW, Tunnel, TunnelUser
from sorna.zeromq import Sent

MAX_TUNNELS = 1000


class Tunnels:
    """Every tunnel of one connection."""

    def __init__(self, send: Callable[[bytes], Sent]) -> None:
        self._outgoing = Outgoing(send)
        self._open: dict[int, _RemoteTunnel] = {}

    def __len__(self) -> int:
        return len(self._open)

    def opened_by(self, id_: int, answer: Deferred[Any], user: TunnelUser) -> Deferred[Tunnel]:
        """Give the tunnel that a call with this id opens, once it is answered."""

        def opened(_result: Any) -> Tunnel:
            tunnel = self._open[id_] = _RemoteTunnel(self, id_, user)
            return tunnel

        return answer.addCallback(opened)

    def is_open(self, id_: int) -> bool:
        """Whether a tunnel is still there."""
        return id_ in self._open

    def received(self, message: Output | Room | Finished | Ended) -> None:
        """Pass on what an agent says; about a tunnel that was just closed it may still say something."""
        tunnel = self._open.get(message.id)
        if tunnel is None:
            return
        match message:
            case Output():
                tunnel.user.tunnel_data(message.data)
            case Room():
                tunnel.user.tunnel_room(message.size)
            case Finished():
                tunnel.user.tunnel_finished()
            case Ended():
                self._end(message.id, message.reason)

    def end_all(self, reason: str) -> None:
        """Tell every user that the agent cannot be reached any more."""
        self._outgoing.clear()
        for id_ in list(self._open):
            self._end(id_, reason)

    def steer(self, id_: int, action: str, value: Any = None) -> None:
        """Tell the agent what a user does."""
        raw = encode(Steer(id_, action, value))
        if not self._outgoing.try_to_send(raw):
            self._outgoing.keep(raw)

    def close(self, id_: int) -> None:
        """Let one tunnel go."""
        del self._open[id_]
        self.steer(id_, "close")

    def writable(self) -> None:
        """Send what waits, for as long as there is room."""
        self._outgoing.writable()

    def _end(self, id_: int, reason: str) -> None:
        self._open.pop(id_).user.tunnel_ended(reason)


class _RemoteTunnel:
    """One tunnel; implements :class:`~sorna.model.service.Tunnel`."""

    def __init__(self, tunnels: Tunnels, id_: int, user: TunnelUser) -> None:
        self._tunnels = tunnels
        self._id = id_
        self._consumed = 0
        self.user = user

    def write(self, data: bytes) -> None:
        """See ``Tunnel``."""
        if data:
            self._steer("write", data)

    def consumed(self, size: int) -> None:
        """Give credit back, a good piece at a time."""
        self._consumed += size
        if self._consumed >= WINDOW // 4:
            size, self._consumed = self._consumed, 0
            self._steer("consumed", size)

    def finish(self) -> None:
        """See ``Tunnel``."""
        self._steer("finish")

    def close(self) -> None:
        """See ``Tunnel``."""
        if self._tunnels.is_open(self._id):
            self._tunnels.close(self._id)

    def _steer(self, action: str, value: Any = None) -> None:
        if self._tunnels.is_open(self._id):
            self._tunnels.steer(self._id, action, value)
