"""Where a database is and how to enter it; a value, which opens nothing."""

from __future__ import annotations

from attrs import field, frozen


@frozen
class DatabaseAddress:
    """A PostgreSQL database.

    :ivar host: a host name, an IP address, or the absolute path of the directory with its unix socket.
    """

    host: str
    port: int
    name: str
    user: str
    password: str = field(default="", repr=False)

    @property
    def local(self) -> bool:
        """Whether ``host`` is a socket directory."""
        return self.host.startswith("/")
