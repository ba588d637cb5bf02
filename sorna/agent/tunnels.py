"""One kernel's applications in this agent: what is offered, and every connection to one of them.

Knows the frames about connections, no kernel and no manager. Init connects and carries bytes; what may be connected to is
decided here, before a frame is sent. Nothing is kept here: bytes of an application pass on to the tunnel's user, who has
given the credit for them, and bytes for it pass on to init, which keeps no more than a window of each connection.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sorna.agent.detection import Offered
from sorna.agent.replies import Replies
from sorna.agent.run import read_object
from sorna.agent.runners import frames
from sorna.agent.runners.frames import FrameError
from sorna.errors import AgentFailed, InvalidRequest, Unavailable
from sorna.model.service import (
    MOST_TUNNELS,
    WINDOW,
    NotReachable,
    Service,
    Tunnel,
    TunnelUser,
    TunnelWish,
    choose,
    preopened,
    valid_port,
)

STOP_DEADLINE = 5.0
LIST_DEADLINE = 3.0


class Tunnels:
    """The connections to one kernel's applications.

    :param send: sends a frame to init: its kind, and a map for JSON or raw bytes.
    :param touch: is called whenever the other end does something, which counts as use of the kernel.
    :param reachable: whether the kernel's loopback is its own, and not its host's.
    """

    def __init__(
        self,
        send: Callable[[int, Mapping[str, Any] | bytes], None],
        replies: Replies,
        touch: Callable[[], None],
        *,
        reachable: bool,
    ) -> None:
        self._send = send
        self._replies = replies
        self._reachable = reachable
        self._runtime = ""
        self._offered: Mapping[str, Offered] = {}
        self._ports: Sequence[Service] = ()
        self._open: dict[int, _Tunnel] = {}
        self._last = 0
        self._over = False
        self.touch = touch

    def offer(self, runtime: str, offered: Sequence[Offered], ports: Sequence[int]) -> None:
        """Say which applications a kernel of this runtime has, and which ports were named for the user's own."""
        self._runtime = runtime
        if self._reachable:
            self._offered = {one.application.name: one for one in offered}
            self._ports = preopened(ports)

    @property
    def services(self) -> Sequence[Service]:
        """What clients are told that there is."""
        return (*(one.application.service for one in self._offered.values()), *self._ports)

    async def list(self) -> Sequence[Service]:
        """Give what clients are told that there is now: applications, and every port that something else listens on.

        :raises AgentTimeout, AgentFailed: the kernel does not tell.
        """
        if not self._reachable:
            return ()
        number, answer = self._replies.ask(LIST_DEADLINE)
        self._send(frames.SERVICE_LIST, {"request": number})
        ports = await answer
        if not isinstance(ports, list) or not all(isinstance(port, int) and valid_port(port) for port in ports):
            raise AgentFailed("The kernel listed ports that are none.")
        known = {service.port for service in self.services}
        return (*self.services, *preopened(port for port in ports if port not in known))

    @property
    def takers(self) -> Mapping[int, Callable[[bytes], None]]:
        """Who takes which of init's frames."""
        return {
            frames.SERVICE_OUTPUT: self.output_received,
            frames.SERVICE_ROOM: self.room_received,
            frames.SERVICE_FINISHED: self.finished_received,
            frames.SERVICE_CLOSED: self.closed_received,
        }

    @property
    def unsettled(self) -> str:
        """What goes on that no other program could go on with; empty when nothing does."""
        return "a connection into it is not closed yet" if self._open else ""

    @property
    def count(self) -> int:
        """How many connections there are, those that are being closed included."""
        return len(self._open)

    # What users do.

    def open(self, wish: TunnelWish, user: TunnelUser) -> Tunnel:
        """Connect with an application; whether that succeeds, the user learns later.

        :raises InvalidRequest: what is wished for may not be had here.
        :raises Unavailable: there are too many connections, or the kernel has ended.
        """
        if not self._reachable:
            raise InvalidRequest(
                "the kernels of this agent have no network of their own, so nothing in them can be reached"
            )
        try:
            service = choose(self.services, wish)
        except NotReachable as error:
            raise InvalidRequest(str(error)) from error
        if self._over or len(self._open) >= MOST_TUNNELS:
            raise Unavailable(f"{MOST_TUNNELS} connections into the kernel are open, or it has ended.")
        self.touch()
        self._last = self._last % 0xFFFFFFFF + 1
        tunnel = self._open[self._last] = _Tunnel(self, self._last, user)
        offered = self._offered.get(service.name)
        start = None if offered is None else _start(offered, wish)
        frame = {"connection": tunnel.number, "port": service.port, "credit": WINDOW, "start": start}
        self._send(frames.SERVICE_OPEN, frame)
        return tunnel

    async def stop(self, name: str) -> None:
        """End an application that was started for a connection; harmless when it does not run.

        :raises InvalidRequest: it is none that is started here.
        :raises AgentTimeout, AgentFailed: it may still run.
        """
        if name not in self._offered:
            known = ", ".join(self._offered) or "none"
            raise InvalidRequest(f"{name[:80]!r} is no app that is started here; there are: {known}")
        self.touch()
        number, gone = self._replies.ask(STOP_DEADLINE)
        self._send(frames.SERVICE_STOP, {"request": number, "name": name})
        await gone

    def tell(self, kind: int, tunnel: _Tunnel, content: bytes = b"") -> None:
        """Tell init something about a connection."""
        self._send(kind, tunnel.number.to_bytes(4, "big") + content)

    # What init tells.

    def output_received(self, payload: bytes) -> None:
        """Take bytes of an application. :raises FrameError: nobody allowed so many."""
        tunnel = self._tunnel(payload)
        tunnel.spend(len(payload) - 4)
        tunnel.user.tunnel_data(payload[4:])

    def room_received(self, payload: bytes) -> None:
        """Take it that an application has taken bytes. :raises FrameError: they are more than it was sent."""
        tunnel = self._tunnel(payload)
        size = int.from_bytes(payload[4:], "big")
        tunnel.taken(size)
        tunnel.user.tunnel_room(size)

    def finished_received(self, payload: bytes) -> None:
        """Take it that an application will send no more."""
        self._tunnel(payload).user.tunnel_finished()

    def closed_received(self, payload: bytes) -> None:
        """Take the last word about a connection."""
        frame = read_object(payload)
        number, error = frame.get("connection"), frame.get("error")
        tunnel = self._open.pop(number, None) if isinstance(number, int) else None
        if tunnel is None:
            raise FrameError("the end of a connection that is none")
        tunnel.end(error[:1000] if isinstance(error, str) else "")

    def carry(self) -> Mapping[str, Any]:
        """Give what another can go on with; connections are not carried, there are none any more."""
        return {"runtime": self._runtime, "ports": [service.port for service in self._ports], "last": self._last}

    def take_over(self, state: Mapping[str, Any]) -> None:
        """Go on where another has stopped, with the numbers of connections; what is offered is said again."""
        self._last = state["last"]

    def end(self, reason: str) -> None:
        """Tell everybody that the kernel is gone."""
        self._over = True
        gone, self._open = list(self._open.values()), {}
        for tunnel in gone:
            tunnel.end(reason)

    def _tunnel(self, payload: bytes) -> _Tunnel:
        tunnel = self._open.get(int.from_bytes(payload[:4], "big"))
        if tunnel is None or len(payload) < 4:
            raise FrameError("a frame about a connection that is none")
        return tunnel


def _start(offered: Offered, wish: TunnelWish) -> Mapping[str, Any]:
    application = offered.application
    arguments = [text for name, values in wish.arguments.items() for text in (name, *values)]
    return {
        "name": application.name,
        "script": application.script,
        "arguments": arguments,
        "environ": {**offered.environ, **wish.environ},
        "patience": application.patience,
    }


class _Nobody:
    """Takes the place of a user who has gone, until init says its last word."""

    def tunnel_data(self, data: bytes) -> None:
        """Drop it."""

    def tunnel_room(self, size: int) -> None:
        """Have no use for it."""

    def tunnel_finished(self) -> None:
        """Have nothing to wait for."""

    def tunnel_ended(self, reason: str) -> None:
        """Know it."""


class _Tunnel:
    """One connection; implements :class:`~sorna.model.service.Tunnel`."""

    def __init__(self, tunnels: Tunnels, number: int, user: TunnelUser) -> None:
        self._tunnels = tunnels
        self._closed = False
        self._finished = False
        self._credit = WINDOW
        self._room = WINDOW
        self.number = number
        self.user = user

    def write(self, data: bytes) -> None:
        """See ``Tunnel``; who writes more than there is room for has lost count, and the tunnel with it."""
        if self._closed or self._finished or not data:
            return
        self._tunnels.touch()
        if len(data) > self._room:
            user = self.user
            self.close()
            user.tunnel_ended("More was written than there was room for.")
            return
        self._room -= len(data)
        self._tunnels.tell(frames.SERVICE_INPUT, self, data)

    def consumed(self, size: int) -> None:
        """See ``Tunnel``; more than was given is not believed."""
        size = min(size, WINDOW - self._credit)
        if not self._closed and size > 0:
            self._tunnels.touch()
            self._credit += size
            self._tunnels.tell(frames.SERVICE_CREDIT, self, size.to_bytes(4, "big"))

    def finish(self) -> None:
        """See ``Tunnel``."""
        if not self._closed and not self._finished:
            self._finished = True
            self._tunnels.tell(frames.SERVICE_FINISH, self)

    def close(self) -> None:
        """See ``Tunnel``."""
        if not self._closed:
            self._closed = True
            self.user = _Nobody()
            self._tunnels.tell(frames.SERVICE_CLOSE, self)

    def spend(self, size: int) -> None:
        """Note what came. :raises FrameError: nobody allowed so much."""
        if size > self._credit:
            raise FrameError("an application's bytes without credit")
        self._credit -= size

    def taken(self, size: int) -> None:
        """Note what the application took. :raises FrameError: it cannot have taken so much."""
        if size > WINDOW - self._room:
            raise FrameError("room for bytes that were not sent")
        self._room += size

    def end(self, reason: str) -> None:
        """Say the last word."""
        user, self.user = self.user, _Nobody()
        self._closed = True
        user.tunnel_ended(reason)
