"""Applications without a kernel, for tests of the doors and of the link: they take what is sent and say what a test says."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define, field

from sorna.errors import InvalidRequest
from sorna.model.service import WINDOW, NotReachable, Service, TunnelUser, TunnelWish, choose

SERVICES = (
    Service("files", "http", 8009, ("--directory",), ("LANG",)),
    Service("git", "tcp", 9418),
)


@define(eq=False)
class MemoryUser:
    """A tunnel's user that keeps what it is told.

    :ivar told: ``finished`` and ``ended``, in order.
    """

    seen: bytearray = field(factory=bytearray)
    room: int = 0
    told: list[str] = field(factory=list)
    reasons: list[str] = field(factory=list)

    def tunnel_data(self, data: bytes) -> None:
        """Keep bytes."""
        self.seen += data

    def tunnel_room(self, size: int) -> None:
        """Count room."""
        self.room += size

    def tunnel_finished(self) -> None:
        """Note it."""
        self.told.append("finished")

    def tunnel_ended(self, reason: str) -> None:
        """Keep the reason."""
        self.told.append("ended")
        self.reasons.append(reason)


@define(eq=False)
class MemoryServices:
    """One kernel's applications.

    :ivar tunnels: those that are open.
    :ivar wishes: everything that was wished for and could be had.
    :ivar stopped: which were asked to end.
    """

    services: Sequence[Service] = SERVICES
    tunnels: list[MemoryTunnel] = field(factory=list)
    wishes: list[TunnelWish] = field(factory=list)
    stopped: list[str] = field(factory=list)

    def open(self, user: TunnelUser, wish: TunnelWish) -> MemoryTunnel:
        """Connect."""
        try:
            choose(self.services, wish)
        except NotReachable as error:
            raise InvalidRequest(str(error)) from error
        self.wishes.append(wish)
        tunnel = MemoryTunnel(self, user)
        self.tunnels.append(tunnel)
        return tunnel

    def stop(self, name: str) -> None:
        """End an application."""
        if name not in {service.name for service in self.services}:
            raise InvalidRequest(f"{name} is no app that is started here")
        self.stopped.append(name)

    def end(self, reason: str) -> None:
        """Let the kernel be gone."""
        for tunnel in list(self.tunnels):
            tunnel.end(reason)


@define(eq=False)
class MemoryTunnel:
    """An implementation of :class:`sorna.model.service.Tunnel`.

    :ivar reads: whether the application takes what is sent to it.
    :ivar taken: what it was sent.
    """

    services: MemoryServices
    user: TunnelUser
    reads: bool = True
    taken: bytearray = field(factory=bytearray)
    unread: int = 0
    unsent: bytearray = field(factory=bytearray)
    allowed: int = WINDOW
    client_finished: bool = False

    @property
    def is_open(self) -> bool:
        """Whether it is there."""
        return self in self.services.tunnels

    def write(self, data: bytes) -> None:
        """Take bytes."""
        if self.is_open:
            self.taken += data
            self.unread += len(data)
            if self.unread > WINDOW:
                self.end("More was written than there was room for.")
            elif self.reads:
                self.read()

    def read(self) -> None:
        """Let the application read everything."""
        size, self.unread = self.unread, 0
        if size:
            self.user.tunnel_room(size)

    def consumed(self, size: int) -> None:
        """Deliver more."""
        self.allowed += size
        self.deliver()

    def finish(self) -> None:
        """Note the client's end."""
        if self.is_open:
            self.client_finished = True

    def close(self) -> None:
        """Be gone."""
        if self.is_open:
            self.services.tunnels.remove(self)

    def say(self, data: bytes) -> None:
        """Let the application send."""
        self.unsent += data
        self.deliver()

    def deliver(self) -> None:
        """Give the user what it has room for."""
        piece = bytes(self.unsent[: max(self.allowed, 0)])
        if piece and self.is_open:
            del self.unsent[: len(piece)]
            self.allowed -= len(piece)
            self.user.tunnel_data(piece)

    def end(self, reason: str) -> None:
        """Let the connection be gone."""
        if self.is_open:
            self.close()
            self.user.tunnel_ended(reason)
