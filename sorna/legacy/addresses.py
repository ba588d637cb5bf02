"""Which host a client is told, so that it can reach what is bound here; knows addresses and routes, and no message."""

from __future__ import annotations

import socket
from ipaddress import ip_address

from attrs import frozen


@frozen
class Addresses:
    """The host that stands in every address of a reply.

    :ivar interface: the IP address that the ports are bound to; ``0.0.0.0`` and ``::`` stand for all of this host's.
    :ivar override: told instead, whatever was bound: for hosts behind address translation. None for no override.
    """

    interface: str
    override: str | None = None

    def endpoint(self, port: int, peer: str | None) -> str:
        """Spell ``tcp://HOST:PORT`` for a client.

        :param peer: the client's own address where ZeroMQ knows it.
        """
        host = ip_address(self.override or self._bound(peer))
        return f"tcp://[{host}]:{port}" if host.version == 6 else f"tcp://{host}:{port}"

    def _bound(self, peer: str | None) -> str:
        if not ip_address(self.interface).is_unspecified:
            return self.interface
        return (peer and local_address(peer)) or ("::1" if ":" in self.interface else "127.0.0.1")


def local_address(peer: str) -> str | None:
    """Give this host's address on the route to a peer, which is the one its connection came in on; None when there is none.

    Connecting a datagram socket asks the routing table only; nothing is sent and nothing waits.
    """
    try:
        address = ip_address(peer.partition("%")[0])
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    if mapped is not None:
        # Where an IPv6 socket takes IPv4 clients, they must be told an IPv4 address.
        address = mapped
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), 9))
            return str(probe.getsockname()[0]).partition("%")[0]
    except OSError:
        return None
