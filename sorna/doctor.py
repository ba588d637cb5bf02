"""The wiring of ``sorna doctor``: the audit over the databases that a manager with the same options would use.

It starts no server and changes nothing. What it prints is for people, or with ``as_json`` for programs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import attrs
from attrs import evolve
from twisted.application.service import Service
from twisted.internet.defer import maybeDeferred
from twisted.internet.threads import deferToThreadPool

from sorna.agent.sandbox.remains import Remnant, remains
from sorna.config import ServerConfig
from sorna.embedded.postgres import running_postgres
from sorna.embedded.redis import running_redis
from sorna.live.address import RedisAddress, parse_redis_address
from sorna.live.audit import RedisLiveAudit
from sorna.live.connection import RedisConnection
from sorna.live.instances import RedisAgentDirectory
from sorna.manager.audit import Audit, Finding, nothing_remains
from sorna.store.address import DatabaseAddress
from sorna.store.service import Store

_REMEDIES = {
    "process": "Kill it: its agent, which would have done that, is dead.",
    "group": "It goes when its agent starts again here; else kill what is in it and rmdir it.",
    "directory": "Remove it: no process works in it.",
    "mount": "Unmount it: kernels mount in namespaces of their own, so this was made by hand or by a bug.",
}
_MEANINGS = {
    "process": "A process of a kernel runs without an agent above it.",
    "group": "A kernel's control group is left, and no kernel of a live agent is in it.",
    "directory": "A kernel's directory is left.",
    "mount": "A kernel's mount is in the host's own view.",
}


async def examine(reactor: Any, config: ServerConfig, *, patience: float, host: bool = True) -> Sequence[Finding]:
    """Look, and give what is wrong.

    :param patience: seconds that something must stay wrong to count. :param host: look at this host's processes too.
    :raises EmbeddedError: no address was given and the state directory holds no embedded database.
    """
    store = Store(reactor, _database(config))
    kernels_db, instances_db = (RedisConnection(reactor, _redis(config), db) for db in (1, 2))
    services: tuple[Service, ...] = (store, kernels_db, instances_db)
    for service in services:
        service.startService()
    tables = store.tables
    audit = Audit(
        reactor,
        tables.kernels,
        tables.quotas,
        tables.agents,
        RedisAgentDirectory(instances_db),
        RedisLiveAudit(kernels_db),
        partial(_left_here, reactor) if host else nothing_remains,
    )
    try:
        return await audit.findings(patience)
    finally:
        for service in reversed(services):
            await maybeDeferred(service.stopService)


def _database(config: ServerConfig) -> DatabaseAddress:
    given = config.database
    if given is None:
        return running_postgres(config.state_dir / "postgres")
    return DatabaseAddress(given.host, given.port, given.name, given.user, given.password)


def _redis(config: ServerConfig) -> RedisAddress:
    given = config.redis
    if given is None:
        embedded = running_redis(config.state_dir / "redis")
        return RedisAddress(path=embedded.path, password=embedded.password)
    address = parse_redis_address(given.address)
    return evolve(address, password=given.password) if given.password else address


async def _left_here(reactor: Any, keys: Mapping[str, str], alive: frozenset[str]) -> Sequence[Finding]:
    left: list[Remnant] = await deferToThreadPool(reactor, reactor.getThreadPool(), remains, tuple(keys), alive)
    return [
        Finding(f"left-{one.kind}", one.what, f"{_MEANINGS[one.kind]} {one.agent}".strip(), _REMEDIES[one.kind])
        for one in left
    ]


async def report(reactor: Any, config: ServerConfig, *, patience: float, host: bool, as_json: bool) -> int:
    """Look, print, and give the exit status: 0 where all promises hold, else 1."""
    found = await examine(reactor, config, patience=patience, host=host)
    sys.stdout.write(as_document(found) if as_json else as_text(found))
    return int(bool(found))


def as_document(found: Sequence[Finding]) -> str:
    """Give findings as one JSON object."""
    return json.dumps({"healthy": not found, "findings": [attrs.asdict(one) for one in found]}) + "\n"


def as_text(found: Sequence[Finding]) -> str:
    """Give findings as lines to read."""
    if not found:
        return "All promises hold.\n"
    lines = [f"{one.check}  {one.subject}\n  {one.meaning}\n  To do: {one.remedy}\n" for one in found]
    return "\n".join([*lines, f"{len(found)} finding{'s' * (len(found) != 1)}.\n"])
