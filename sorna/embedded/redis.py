"""A private Redis (Valkey) on a unix socket below the state directory; knows nothing of what is kept in it."""

from __future__ import annotations

import signal
from pathlib import Path

from attrs import field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from sorna.embedded import binaries
from sorna.embedded.process import Command
from sorna.embedded.server import Server, ask
from sorna.embedded.state import ServerDirectory

_SOCKET = "redis.sock"
# The password is in a file, since every user of the host can read a command line.
_CONFIGURATION = """\
{listening}
unixsocket ../run/redis.sock
unixsocketperm 700
requirepass {password}
databases 16
maxclients 256
maxmemory 256mb
maxmemory-policy noeviction
appendonly yes
appendfsync everysec
save ""
daemonize no
logfile ""
"""
_STOP = ((signal.SIGTERM, 10.0),)
_GOOD = b"+OK\r\n+PONG\r\n"


@frozen
class RedisAddress:
    """Where a Redis is.

    :ivar path: its unix socket.
    :ivar listen: the address and port it listens on besides; None where it does not.
    """

    path: str
    password: str = field(repr=False)
    listen: tuple[str, int] | None = None

    @property
    def url(self) -> str:
        """The address as a URL, without the password."""
        if self.listen is not None:
            return f"redis://{self.listen[0]}:{self.listen[1]}"
        return f"unix://{self.path}"


def running_redis(directory: Path) -> RedisAddress:
    """Give the address of the server that another process runs in a directory.

    :raises EmbeddedError: there never was one, or this user may not know its password.
    """
    server = ServerDirectory(directory)
    return RedisAddress(f"{server.reach(server.run, _SOCKET)}/{_SOCKET}", server.kept_password())


class EmbeddedRedis:
    """A Redis server of our own.

    :param directory: its directory, made at the first start; nothing outside is changed.
    :param listen: IPv4 address and port to listen on besides its unix socket, for clients on other hosts; none by default.
    """

    def __init__(self, reactor: IReactorTime, directory: Path, listen: tuple[str, int] | None = None) -> None:
        self._listen = listen
        self._server = Server(reactor, "Redis", directory)
        self._directory = self._server.directory

    async def start(self) -> RedisAddress:
        """Start the server; it has loaded what it kept and answers when this returns.

        :raises DirectoryTaken: another server uses the directory.
        :raises EmbeddedError: it cannot run here; the detail says why.
        """
        await self._server.open()
        try:
            return await self._start()
        except BaseException:
            await self._server.stop(_STOP)
            raise

    async def _start(self) -> RedisAddress:
        found = binaries.valkey()
        password = self._directory.password()
        self._directory.subdirectory(self._directory.data)
        listening = "port 0" if self._listen is None else f"bind {self._listen[0]}\nport {self._listen[1]}"
        self._directory.write(
            self._directory.data / "redis.conf", _CONFIGURATION.format(password=password, listening=listening)
        )
        command = Command(
            argv=[found.programs["valkey-server"], "redis.conf"],
            cwd="{state}/data",
            reach={**found.reach, "state": str(self._directory.path)},
            death_signal=signal.SIGTERM,
        )
        path = self._directory.reach(self._directory.run, _SOCKET) + "/" + _SOCKET
        await self._server.serve(command, lambda: Deferred.fromCoroutine(self._answers(path, password)))
        return RedisAddress(path, password, self._listen)

    async def _answers(self, path: str, password: str) -> bool:
        # Any other answer is "-LOADING ...": it reads what it kept.
        request = f"AUTH {password}\r\nPING\r\n".encode("ascii")
        return await ask(self._server.reactor, path, request, len(_GOOD)) == _GOOD

    def when_lost(self) -> Deferred[str]:
        """Give a new Deferred that fires with a sentence if the server ends without :meth:`stop`."""
        return self._server.when_lost()

    async def stop(self) -> None:
        """Stop the server; everything is on the disk, and the directory is free, when this returns. Harmless twice."""
        await self._server.stop(_STOP)
