"""Serves both embedded databases below a directory until its standard input is closed; tests start and kill it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol
from twisted.internet.stdio import StandardIO
from twisted.internet.task import react
from twisted.python.failure import Failure

from sorna.embedded.postgres import EmbeddedPostgres
from sorna.embedded.redis import EmbeddedRedis


class UntilEnd(Protocol):
    """Tells when the input ends."""

    def __init__(self) -> None:
        self.ended: Deferred[None] = Deferred()

    def connectionLost(self, _reason: Failure | None = None) -> None:
        self.ended.callback(None)


async def serve(reactor: Any, directory: Path) -> None:
    """Start, tell the addresses, and stop at the end of the input."""
    postgres = EmbeddedPostgres(reactor, directory / "postgres")
    redis = EmbeddedRedis(reactor, directory / "redis")
    until_end = UntilEnd()
    StandardIO(until_end, reactor=reactor)
    address = await postgres.start()
    live = await redis.start()
    found = {"postgres": attrs.asdict(address), "redis": live.path, "password": live.password}
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
    await until_end.ended
    await redis.stop()
    await postgres.stop()


if __name__ == "__main__":
    react(lambda reactor: Deferred.fromCoroutine(serve(reactor, Path(sys.argv[1]))))
