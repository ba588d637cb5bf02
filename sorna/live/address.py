"""Where a Redis server is and how to log in to it: one value, read from what the operator wrote.

Knows how to make an endpoint for it; connects to nothing itself. The password never appears in a ``repr`` or ``str``.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote, urlsplit

from attrs import field, frozen
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint
from twisted.internet.interfaces import IStreamClientEndpoint

DEFAULT_PORT = 6379
# A unix path that the kernel refuses would only show up as a failed connection, again and again.
_LONGEST_UNIX_PATH = 107


@frozen
class RedisAddress:
    """A server and the login for it; ``path`` is set for a unix socket, ``host`` and ``port`` otherwise.

    :ivar username: for servers with access control lists; None logs in with the password alone.
    """

    host: str = ""
    port: int = DEFAULT_PORT
    path: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        """Name the server for a log line, without the login."""
        if self.path is not None:
            return f"unix://{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def endpoint(self, reactor: Any, timeout: float) -> IStreamClientEndpoint:
        """Make an endpoint; connecting fails after ``timeout`` seconds."""
        if self.path is not None:
            return UNIXClientEndpoint(reactor, self.path, timeout=timeout)
        return HostnameEndpoint(reactor, self.host, self.port, timeout=timeout)


def parse_redis_address(text: str) -> RedisAddress:
    """Read ``host``, ``host:port``, ``redis://[[user]:password@]host[:port]`` or ``unix://[[user]:password@]/path``.

    Reserved characters in user and password are percent-encoded.

    :raises ValueError: it is none of these; the message does not repeat the text, which may hold a password.
    """
    url = text if "://" in text else f"redis://{text}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError("the Redis address has a malformed host or port") from error
    if parts.query or parts.fragment:
        raise ValueError("a Redis address takes no ? or #; write %3F or %23 in a password")
    username = unquote(parts.username) if parts.username else None
    password = unquote(parts.password) if parts.password else None
    if username is not None and password is None:
        raise ValueError("the Redis address has a user without a password; write redis://:password@host for no user")
    if parts.scheme == "unix":
        return _unix(parts.hostname, unquote(parts.path), username, password)
    if parts.scheme != "redis":
        raise ValueError("the Redis address must be host:port, redis://... or unix://...")
    if parts.path not in {"", "/"}:
        raise ValueError("a Redis address names no database: Sorna uses numbers 1 to 4 of the server")
    if not parts.hostname:
        raise ValueError("the Redis address has no host")
    return RedisAddress(host=parts.hostname, port=port or DEFAULT_PORT, username=username, password=password)


def _unix(host: str | None, path: str, username: str | None, password: str | None) -> RedisAddress:
    if host or not path.startswith("/") or "\0" in path:
        raise ValueError("a unix Redis address needs an absolute path: unix:///run/redis.sock")
    if len(path.encode()) > _LONGEST_UNIX_PATH:
        raise ValueError(f"the path of the Redis socket is longer than {_LONGEST_UNIX_PATH} bytes")
    return RedisAddress(path=path, username=username, password=password)
