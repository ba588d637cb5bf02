"""The whole store as one service: the pool, and the tables that stand on it."""

from __future__ import annotations

from attrs import frozen
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from sorna.store.address import DatabaseAddress
from sorna.store.agents import PostgresAgents, PostgresClusterKeys, PostgresTickets
from sorna.store.audit import PostgresQuotaAudit
from sorna.store.connection import Connector
from sorna.store.folders import PostgresFolders
from sorna.store.kernels import PostgresKernels
from sorna.store.keypairs import PostgresKeypairs
from sorna.store.migrate import migrate
from sorna.store.policies import PostgresPolicies
from sorna.store.pool import Pool
from sorna.store.queue import PostgresQueue
from sorna.store.reports import PostgresReports


@frozen
class Tables:
    """Everything that is kept in PostgreSQL."""

    keypairs: PostgresKeypairs
    kernels: PostgresKernels
    agents: PostgresAgents
    policies: PostgresPolicies
    reports: PostgresReports
    folders: PostgresFolders
    quotas: PostgresQuotaAudit
    tickets: PostgresTickets
    cluster_keys: PostgresClusterKeys
    queue: PostgresQueue


class Store(Service):
    """Keeps the pool open while it runs.

    :ivar tables: usable while the service runs.
    """

    def __init__(self, reactor: IReactorTime, address: DatabaseAddress) -> None:
        self._pool = Pool(reactor, Connector(reactor, address))
        self.tables = Tables(
            PostgresKeypairs(self._pool),
            PostgresKernels(self._pool),
            PostgresAgents(self._pool),
            PostgresPolicies(self._pool),
            PostgresReports(self._pool),
            PostgresFolders(self._pool),
            PostgresQuotaAudit(self._pool),
            PostgresTickets(self._pool),
            PostgresClusterKeys(self._pool),
            PostgresQueue(self._pool),
        )

    def startService(self) -> None:
        """Begin to connect."""
        super().startService()
        self._pool.start()

    def stopService(self) -> Deferred[None]:
        """Close every connection, those in use when what runs on them has ended."""
        super().stopService()
        return Deferred.fromCoroutine(self._pool.stop())


async def open_store(reactor: IReactorTime, address: DatabaseAddress) -> Store:
    """Bring the schema up to date and give the store, not started yet.

    :raises SchemaError: the schema is newer than this code, or was changed by hand.
    :raises Unavailable: the database does not answer.
    """
    await migrate(reactor, address)
    return Store(reactor, address)
