"""``python -m sorna.testing.cluster.database postgres|redis DIRECTORY ADDRESS PORT``: one database of a test cluster.

The embedded servers, but listening on a TCP port. It prints one line of JSON when the database answers, and serves until
SIGTERM or the end of its standard input, so that nothing is left when whoever started it dies. Knows nothing of Sorna's data.
"""

from __future__ import annotations

import json
import signal
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


class _Input(Protocol):
    """Tells when the input ends."""

    def __init__(self, end: Deferred[None]) -> None:
        self._end = end

    def connectionLost(self, _reason: Failure | None = None) -> None:
        if not self._end.called:
            self._end.callback(None)


async def serve(reactor: Any, kind: str, directory: Path, listen: tuple[str, int]) -> None:
    """Start the database, say so, and stop it in order at the end.

    :raises SystemExit: with status 1, when the database ends on its own.
    """
    server: EmbeddedPostgres | EmbeddedRedis = (
        EmbeddedPostgres(reactor, directory, listen)
        if kind == "postgres"
        else EmbeddedRedis(reactor, directory, listen)
    )
    end: Deferred[None] = Deferred()
    StandardIO(_Input(end), reactor=reactor)

    def terminate(_number: int, _frame: object) -> None:
        reactor.callFromThread(lambda: None if end.called else end.callback(None))

    # Before anything is started: react's own end of a SIGTERM would not wait for the database.
    signal.signal(signal.SIGTERM, terminate)
    address = await server.start()
    lost: list[str] = []

    def note(why: str) -> None:
        lost.append(why)
        if not end.called:
            end.callback(None)

    server.when_lost().addCallback(note)
    sys.stdout.write(json.dumps(attrs.asdict(address)) + "\n")
    sys.stdout.flush()
    await end
    await server.stop()
    if lost:
        raise SystemExit(1)


if __name__ == "__main__":
    _, what, where, host, port = sys.argv
    react(lambda reactor: Deferred.fromCoroutine(serve(reactor, what, Path(where), (host, int(port)))))
