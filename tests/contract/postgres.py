"""A PostgreSQL for the tests of one process, in a child of its own.

Not in trial's reactor: trial wants it clean after every class, and one server for all classes is quicker by seconds.
Run as a program (``python -m tests.contract.postgres DIRECTORY``), it serves until its standard input is closed.
"""

from __future__ import annotations

import atexit
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Protocol
from twisted.internet.stdio import StandardIO
from twisted.internet.task import react
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from sorna.embedded.postgres import EmbeddedPostgres
from sorna.store.address import DatabaseAddress
from sorna.store.connection import Connector
from sorna.store.migrate import migrate
from sorna.store.pool import Pool, PoolSettings

_started: list[DatabaseAddress] = []


def address() -> DatabaseAddress:
    """Start the server at the first call, and give its address."""
    if not _started:
        directory = tempfile.mkdtemp(prefix="sorna-test-")
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.contract.postgres", directory],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        assert child.stdin is not None
        assert child.stdout is not None
        stdin, stdout = child.stdin, child.stdout

        def stop() -> None:
            stdin.close()
            child.wait(30)
            stdout.close()
            shutil.rmtree(directory, ignore_errors=True)

        atexit.register(stop)
        _started.append(DatabaseAddress(**json.loads(stdout.readline())))
    return _started[0]


async def fresh_pool(test: TestCase, reactor: IReactorTime, settings: PoolSettings | None = None) -> Pool:
    """Give a pool on an empty schema; the test closes it at its end."""
    where = address()
    await migrate(reactor, where)
    pool = Pool(reactor, Connector(reactor, where), settings or PoolSettings(size=6))
    pool.start()
    test.addCleanup(lambda: Deferred.fromCoroutine(pool.stop()))
    await pool.query(
        "TRUNCATE keypairs, kernels, agents, resource_policies, folders, folder_permissions, folder_invitations,"
        " agent_tickets, cluster_keys"
    )
    return pool


class _UntilEnd(Protocol):
    def __init__(self) -> None:
        self.ended: Deferred[None] = Deferred()

    def connectionLost(self, _reason: Failure | None = None) -> None:
        self.ended.callback(None)


async def _serve(reactor: Any, directory: str) -> None:
    postgres = EmbeddedPostgres(reactor, Path(directory, "postgres"))
    until_end = _UntilEnd()
    StandardIO(until_end, reactor=reactor)
    found = await postgres.start()
    sys.stdout.write(json.dumps(attrs.asdict(found)) + "\n")
    sys.stdout.flush()
    await until_end.ended
    await postgres.stop()


if __name__ == "__main__":
    react(lambda reactor: Deferred.fromCoroutine(_serve(reactor, sys.argv[1])))
