"""The applications that can be reached inside a kernel, and one connection to one of them; knows no transport and no process.

A kernel has a network of its own with nothing but a loopback. What listens there is reached through a *tunnel*: a stream of
bytes in each direction, like a TCP connection. What may be reached is decided here: an application that the runtime
offers, a port that was named when the kernel was created, or a port that the client names itself.

Note [Tunnels and credit]
=========================
Each direction of a tunnel has ``WINDOW`` bytes on their way at the most. Towards the client, an end gives back what it has
passed on (:meth:`Tunnel.consumed`); towards the application, what was written to its socket comes back as
:meth:`TunnelUser.tunnel_room`. So a reader that stops, on either side, stops the writer on the other, nothing between them
grows, and no other tunnel waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from attrs import field, frozen

WINDOW = 256 * 1024
#: How many connections into one kernel may be open at once.
MOST_TUNNELS = 64
LOWEST_PORT, HIGHEST_PORT = 1024, 65535
#: How many ports may be named when a kernel is created.
MOST_PORTS = 16
LONGEST_NAME = 64
#: For what a client says about how an application is to be started: how many values, and how long each.
MOST_OPTIONS, LONGEST_VALUE = 32, 4096

Arguments = Mapping[str, Sequence[str]]


class NotReachable(ValueError):
    """What is wished for may not be had; the text says why."""


def _texts(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(values)


@frozen
class Service:
    """An application as clients see it.

    :ivar protocol: ``http`` or ``tcp``; ``preopen`` where only its user knows.
    :ivar arguments: names of the command-line options that may be given for its start.
    :ivar environ: names of the variables that may be given for its start.
    """

    name: str
    protocol: str
    port: int
    arguments: Sequence[str] = field(default=(), converter=_texts)
    environ: Sequence[str] = field(default=(), converter=_texts)


@frozen
class TunnelWish:
    """What a client wants to be connected with.

    :ivar app: the name of an application, or a port written as a number.
    :ivar port: the application's port; None where the name says it.
    :ivar arguments: option -> its values, none or several; they count when this connection starts the application.
    """

    app: str
    port: int | None = None
    arguments: Arguments = field(factory=dict)
    environ: Mapping[str, str] = field(factory=dict)


class TunnelUser(Protocol):
    """Whoever has opened a tunnel. Nothing is called before the coroutine that opened it has returned."""

    def tunnel_data(self, data: bytes) -> None:
        """Take bytes of the application, in order."""
        ...

    def tunnel_room(self, size: int) -> None:
        """Learn that so many bytes have been taken by the application: as many more may be written."""
        ...

    def tunnel_finished(self) -> None:
        """Learn, once, that the application will send no more; it may still read."""
        ...

    def tunnel_ended(self, reason: str) -> None:
        """Learn, once and last, that the tunnel is gone; the reason is empty when the application closed it in order."""
        ...


class Tunnel(Protocol):
    """One connection with an application. Once it has ended or is closed, every method does nothing."""

    def write(self, data: bytes) -> None:
        """Send bytes to the application, never more than ``WINDOW`` beyond what :meth:`TunnelUser.tunnel_room` gave back."""
        ...

    def consumed(self, size: int) -> None:
        """Note that so many bytes of the application were passed on; without it delivery stops after ``WINDOW`` bytes."""
        ...

    def finish(self) -> None:
        """Send no more; the application reads the end behind what was written."""
        ...

    def close(self) -> None:
        """Want nothing more; the user is told nothing further. What was written still arrives, for a while."""
        ...


def valid_port(port: int) -> bool:
    """Tell whether a port may be reached in a kernel at all: those that need privileges may not."""
    return LOWEST_PORT <= port <= HIGHEST_PORT


def preopened(ports: Iterable[int]) -> Sequence[Service]:
    """Give the ports that were named when a kernel was created, as applications whose name is the number."""
    return tuple(Service(str(port), "preopen", port) for port in ports)


def check_ports(ports: Sequence[int]) -> None:
    """Judge the ports that are named when a kernel is created.

    :raises NotReachable: there are too many, one is out of range, or one is named twice.
    """
    if len(ports) > MOST_PORTS:
        raise NotReachable(f"at most {MOST_PORTS} ports can be named for a kernel")
    for port in ports:
        if not valid_port(port):
            raise NotReachable(f"port {port} is not within {LOWEST_PORT} and {HIGHEST_PORT}")
    if len(set(ports)) < len(ports):
        raise NotReachable("a port is named twice")


def choose(services: Iterable[Service], wish: TunnelWish) -> Service:
    """Find what a client wants to be connected with.

    A name that no application has, with a port or being one, means what the user's own program listens on.

    :raises NotReachable: there is nothing of that name, the port is not the application's or out of range, or the
        application takes no such option or variable.
    """
    known = {service.name: service for service in services}
    found = known.get(wish.app)
    if found is None:
        found = _own(wish, known)
    elif wish.port not in {None, found.port}:
        raise NotReachable(f"the app {found.name} has the port {found.port}")
    for kind, given, allowed in (
        ("argument", wish.arguments, found.arguments),
        ("variable", wish.environ, found.environ),
    ):
        for name in given:
            if name not in allowed:
                choice = ", ".join(allowed) or "none"
                raise NotReachable(f"the app {found.name} takes no {kind} {name[:LONGEST_NAME]!r}, but {choice}")
    return found


def _own(wish: TunnelWish, known: Mapping[str, Service]) -> Service:
    named = int(wish.app) if wish.app.isascii() and wish.app.isdecimal() and len(wish.app) <= 5 else None
    port = wish.port if named is None else named
    if port is None or not wish.app:
        names = ", ".join(known) or "none"
        raise NotReachable(
            f"there is no app {wish.app[:LONGEST_NAME]!r}; there are: {names}, and any port by its number"
        )
    if named is not None and wish.port not in {None, named}:
        raise NotReachable(f"app is the port {named}, and port another one")
    if not valid_port(port):
        raise NotReachable(f"port {port} is not within {LOWEST_PORT} and {HIGHEST_PORT}")
    return Service(wish.app, "preopen", port)
