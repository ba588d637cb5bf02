"""The tunnels that one manager has open over one connection; knows messages and tunnels, no socket and no kernel.

What an application sends waits here for room on the connection, in one piece for each tunnel, and goes out after answers. It
cannot grow: a tunnel is given no more than the window of ``sorna/model/service.py`` without having been read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sorna.agent.interfaces import AgentOperations
from sorna.agent.link_turns import Turns
from sorna.cluster.messages import (
    Ended,
    Finished,
    MalformedMessage,
    Message,
    Output,
    Room,
    Steer,
    unpack_kernel_id,
    unpack_tunnel_wish,
)
from sorna.errors import InvalidRequest, Unavailable
from sorna.model.service import Tunnel
from sorna.zeromq import Sent

MAX_TUNNELS = 1000
PIECE = 64 * 1024


class PeerTunnels:
    """Every tunnel of one connection.

    :param send: hands one message to the connection if that has room now.
    """

    def __init__(self, send: Callable[[bytes], Sent]) -> None:
        self._turns = Turns(send)
        self._users: dict[int, _RemoteUser] = {}
        self._over = False

    def __len__(self) -> int:
        return len(self._users)

    async def open(self, operations: AgentOperations, id_: int, parameters: Mapping[str, Any]) -> None:
        """Open a tunnel, as the call with this id asks.

        :raises InvalidRequest: a parameter is wrong, or there is nothing to be reached.
        :raises KernelNotFound, Unavailable: nothing was opened.
        """
        if len(self._users) >= MAX_TUNNELS:
            raise Unavailable("too many tunnels are open")
        try:
            if parameters.keys() != {"kernel_id", "wish"}:
                raise MalformedMessage("kernel_id and wish are wanted")
            kernel_id, wish = unpack_kernel_id(parameters["kernel_id"]), unpack_tunnel_wish(parameters["wish"])
        except MalformedMessage as error:
            raise InvalidRequest(f"open_tunnel: {error}") from error
        user = _RemoteUser(self, id_, self._turns)
        user.tunnel = await operations.open_tunnel(kernel_id, user, wish)
        if self._over:
            user.tunnel.close()
        else:
            self._users[id_] = user

    def has(self, id_: int) -> bool:
        """Whether the call with this id opened a tunnel that is still there."""
        return id_ in self._users

    def steer(self, message: Steer) -> None:
        """Do what a user does; about a tunnel that has just ended a manager may still say something."""
        user = self._users.get(message.id)
        if user is None or user.tunnel is None:
            return
        match message.action:
            case "write":
                user.tunnel.write(message.value)
            case "consumed":
                user.tunnel.consumed(message.value)
            case "finish":
                user.tunnel.finish()
            case "close":
                self.close(message.id)

    def close(self, id_: int) -> None:
        """Let one tunnel go; harmless when it is not there."""
        user = self._users.pop(id_, None)
        if user is not None and user.tunnel is not None:
            user.forget()
            user.tunnel.close()

    def close_all(self) -> None:
        """Let the manager be gone."""
        self._over = True
        self._turns.stop()
        for id_ in list(self._users):
            self.close(id_)

    def ended(self, id_: int) -> None:
        """Note that a tunnel has ended; its user may still have something to be told."""
        self._users.pop(id_, None)

    def writable(self) -> None:
        """Send what waits, for as long as there is room."""
        self._turns.writable()


class _RemoteUser:
    """One user at the manager; implements ``TunnelUser``."""

    def __init__(self, tunnels: PeerTunnels, id_: int, turns: Turns) -> None:
        self._tunnels = tunnels
        self._turns = turns
        self._unsent = bytearray()
        self._room = 0
        self._finished = False
        self._reason: str | None = None
        self.id = id_
        self.tunnel: Tunnel | None = None

    def tunnel_data(self, data: bytes) -> None:
        """Send bytes on."""
        self._unsent += data
        self._turns.post(self)

    def tunnel_room(self, size: int) -> None:
        """Tell of room."""
        self._room += size
        self._turns.post(self)

    def tunnel_finished(self) -> None:
        """Tell of the application's end, behind its bytes."""
        self._finished = True
        self._turns.post(self)

    def tunnel_ended(self, reason: str) -> None:
        """Send the last word, behind everything."""
        self._reason = reason[:1000]
        self._tunnels.ended(self.id)
        self._turns.post(self)

    def first_message(self) -> Message | None:
        """See ``Speaker``: room first, because a client waits for it."""
        if self._room:
            return Room(self.id, self._room)
        if self._unsent:
            return Output(self.id, bytes(self._unsent[:PIECE]))
        if self._finished:
            return Finished(self.id)
        return None if self._reason is None else Ended(self.id, self._reason)

    def forget_message(self) -> None:
        """See ``Speaker``."""
        if self._room:
            self._room = 0
        elif self._unsent:
            del self._unsent[:PIECE]
        elif self._finished:
            self._finished = False
        else:
            self._reason = None

    def forget(self) -> None:
        """Want to send nothing more."""
        self._unsent.clear()
        self._room = 0
        self._finished = False
        self._reason = None
