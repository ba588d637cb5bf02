"""The other processes of a server with ``--workers``: what they are told, and how they are kept running.

Knows how they are started and nothing of what they do; see ``worker_tap`` for that.
"""

from __future__ import annotations

from typing import Any

from attrs import frozen
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorProcess, IReactorTime
from twisted.logger import Logger

from sorna.config import ServerConfig
from sorna.embedded.child import Child, write_options
from sorna.live.address import RedisAddress
from sorna.store.address import DatabaseAddress

# Those of the agent alone, and those whose names of files may be relative to where the first process was started.
_NOT_PASSED_ON = frozenset({"config", "kernel-python", "gpu-devices"})


@frozen
class Place:
    """Which of a server's processes one is.

    :ivar number: from 1.
    :ivar group: what all of them have in common, and no other server: whose turn it is to do something is told by it.
    """

    number: int
    group: str


def worker_options(config: ServerConfig, database: DatabaseAddress, redis: RedisAddress) -> dict[str, str]:
    """Give the options of a worker: the server's own, but databases that run already, and nothing that is done once."""
    options = {name: text for name, text in config.texts.items() if text and name not in _NOT_PASSED_ON}
    options |= {
        "service-ip": config.service_ip,
        "service-port": str(config.service_port),
        "state-dir": str(config.state_dir),
        "folder-root": str(config.folders.root),
        "local-agent": "no",
    }
    for name, path in (
        ("ssl-cert", config.ssl_cert),
        ("ssl-key", config.ssl_key),
        ("trace-stages", config.trace_stages),
    ):
        if path is not None:
            options[name] = str(path)
    if config.database is None:
        options |= {
            "db-addr": database.host,
            "db-name": database.name,
            "db-user": database.user,
            "db-password": database.password,
        }
    if config.redis is None:
        options |= {"redis-addr": f"unix://{redis.path}", "redis-password": redis.password or ""}
    return options


class Workers(MultiService):
    """Keeps all workers but the first one running, which is the process that this service is in."""

    _log = Logger()

    def __init__(
        self, reactor: Any, config: ServerConfig, group: str, database: DatabaseAddress, redis: RedisAddress
    ) -> None:
        super().__init__()
        self._path = config.state_dir / "workers.toml"
        self._options = worker_options(config, database, redis)
        for number in range(2, config.workers + 1):
            arguments = ["sorna.worker", "--config", str(self._path), "--worker", str(number), "--group", group]
            self.addService(self._child(reactor, reactor, number, arguments))

    def _child(self, reactor: IReactorProcess, clock: IReactorTime, number: int, arguments: list[str]) -> Child:
        def refused(why: str) -> None:
            self._log.error("worker {number} can never start: {why}", number=number, why=why)

        return Child(reactor, clock, f"worker {number}", arguments, refused)

    def startService(self) -> None:
        """Write what they are told, and start them."""
        write_options(self._path, self._options)
        super().startService()

    def stopService(self) -> Deferred[None]:
        """Stop all at once, and wait until they are gone."""
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        await super().stopService()
        self._path.unlink(missing_ok=True)
