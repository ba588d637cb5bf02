"""A small pool of database connections; knows neither the driver nor any table.

Note [A pool that never waits for a dead database]
    One coroutine fills the pool, for as long as it runs, and pauses longer after every failure. While it fails and no
    connection is left, whoever asks gets :class:`~sorna.errors.Unavailable` at once instead of a place in a queue. What
    was begun runs to its end although its caller is cancelled: libpq can only be cancelled by blocking the reactor, and a
    change that a client has asked for shall not depend on whether that client stays.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

from attrs import frozen
from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from sorna.errors import SornaError, Unavailable
from sorna.store.connection import Conflict, Parameters, Row

T = TypeVar("T")

_log = Logger()


class PooledConnection(Protocol):
    """What the pool needs of a connection."""

    lost: Callable[[], None]

    @property
    def usable(self) -> bool:
        """Whether it is open and in no transaction."""
        ...

    async def execute(self, sql: str, parameters: Parameters, seconds: float) -> list[Row]:
        """Run one statement, for at most so many seconds."""
        ...

    def close(self) -> None:
        """Close it; harmless when it is closed."""
        ...


@frozen
class PoolSettings:
    """Bounds of the pool; times in seconds.

    :ivar waiting: how many may wait for a connection at once, each for at most ``acquire_timeout``.
    :ivar query_timeout: for one statement; the server gives up a little earlier by itself.
    """

    size: int = 8
    waiting: int = 512
    acquire_timeout: float = 3.0
    query_timeout: float = 6.0
    first_pause: float = 0.05
    longest_pause: float = 0.5
    stop_timeout: float = 5.0


def uncancelled(work: Coroutine[Deferred[Any], Any, T]) -> Deferred[T]:
    """Start a coroutine that goes on although its caller is cancelled; an error that nobody hears any more is logged."""
    outer: Deferred[T] = Deferred()

    def deliver(result: T) -> None:
        if not outer.called:
            outer.callback(result)

    def fail(failure: Failure) -> None:
        if not outer.called:
            outer.errback(failure)
        elif not failure.check(SornaError, Conflict):
            _log.failure("a statement failed after its caller was gone", failure)

    Deferred.fromCoroutine(work).addCallbacks(deliver, fail)
    return outer


class Transaction:
    """One transaction on one connection; made by :meth:`Pool.transaction`."""

    def __init__(self, connection: PooledConnection, timeout: float) -> None:
        self._connection = connection
        self._timeout = timeout
        self._begun = False
        self.running = False

    async def query(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """Run one statement and give its rows. The first one carries the BEGIN with it, in one round trip."""
        if not self._begun:
            self._begun = True
            sql = "BEGIN; " + sql
        return await uncancelled(self._run(sql, parameters))

    async def _run(self, sql: str, parameters: Parameters) -> list[Row]:
        self.running = True
        try:
            return await self._connection.execute(sql, parameters, self._timeout)
        finally:
            self.running = False

    async def end(self, how: str) -> None:
        """Run COMMIT or ROLLBACK."""
        if self._begun:
            await self._run(how, ())


class Pool:
    """At most ``settings.size`` connections, made by ``connect`` and replaced when they break."""

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        connect: Callable[[], Awaitable[PooledConnection]],
        settings: PoolSettings = PoolSettings(),
    ) -> None:
        self._reactor = reactor
        self._connect = connect
        self._settings = settings
        self._open: set[PooledConnection] = set()
        self._idle: list[PooledConnection] = []
        self._waiting: deque[Deferred[PooledConnection]] = deque()
        self._away = False
        self._running = False
        self._wanted: Deferred[None] | None = None
        self._pause: Deferred[None] | None = None
        self._drained: Deferred[None] | None = None
        self._filling: Deferred[None] | None = None

    @property
    def connected(self) -> bool:
        """Whether there is any connection now."""
        return bool(self._open)

    def start(self) -> None:
        """Begin to connect, and keep at it until :meth:`stop`."""
        if not self._running:
            self._running = True
            self._filling = Deferred.fromCoroutine(self._fill())

    async def stop(self) -> None:
        """Refuse new work, let what runs end (bounded), and close every connection."""
        self._running = False
        self._refuse_waiting("the server is stopping")
        for connection in list(self._idle):
            self._discard(connection)
        if self._open:
            self._drained = Deferred()
            try:
                await self._drained.addTimeout(self._settings.stop_timeout, self._reactor)
            except defer.TimeoutError:
                self._log.warn("closing {count} connections in use", count=len(self._open))
            for connection in list(self._open):
                self._discard(connection)
        if self._pause is not None:
            self._pause.cancel()
        self._wake()
        filling, self._filling = self._filling, None
        if filling is not None:
            await filling

    async def query(self, sql: str, parameters: Parameters = ()) -> list[Row]:
        """Run one statement in a transaction of its own and give its rows; one round trip.

        :raises Unavailable: no connection, or no answer in time. :raises Conflict: another transaction was quicker.
        """
        return await uncancelled(self._query(sql, parameters))

    async def _query(self, sql: str, parameters: Parameters) -> list[Row]:
        connection = await self._acquire()
        try:
            return await connection.execute(sql, parameters, self._settings.query_timeout)
        finally:
            self._release(connection)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Run several statements in one transaction: committed at the end of the block, rolled back by any error."""
        connection = await self._acquire()
        transaction = Transaction(connection, self._settings.query_timeout)
        try:
            yield transaction
        except GeneratorExit:
            self._discard(connection)
            raise
        except BaseException:
            await uncancelled(self._finish(connection, transaction, "ROLLBACK"))
            raise
        await uncancelled(self._finish(connection, transaction, "COMMIT"))

    async def _finish(self, connection: PooledConnection, transaction: Transaction, how: str) -> None:
        if transaction.running:
            # Its caller was cancelled in the middle of a statement; closing makes the server roll back.
            self._discard(connection)
            return
        try:
            await transaction.end(how)
        except (SornaError, Conflict):
            self._discard(connection)
            if how == "COMMIT":
                raise
        else:
            self._release(connection)

    async def _acquire(self) -> PooledConnection:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
            self._discard(connection)
        if not self._running or (self._away and not self._open):
            raise Unavailable("the database does not answer")
        if len(self._waiting) >= self._settings.waiting:
            raise Unavailable("too many requests wait for the database")
        place: Deferred[PooledConnection] = Deferred()
        self._waiting.append(place)
        try:
            return await place.addTimeout(self._settings.acquire_timeout, self._reactor)
        except defer.TimeoutError:
            raise Unavailable("no database connection became free in time") from None
        finally:
            if place in self._waiting:
                self._waiting.remove(place)

    def _release(self, connection: PooledConnection) -> None:
        if connection not in self._open:
            return
        if not self._running or not connection.usable:
            self._discard(connection)
        elif self._waiting:
            self._waiting.popleft().callback(connection)
        else:
            self._idle.append(connection)

    def _discard(self, connection: PooledConnection) -> None:
        if connection not in self._open:
            return
        self._open.remove(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        connection.lost = _nothing
        connection.close()
        self._wake()
        if not self._open and self._drained is not None and not self._drained.called:
            self._drained.callback(None)

    def _lost(self, connection: PooledConnection) -> None:
        """Replace an idle connection that broke; one in use is looked at when it comes back."""
        if connection in self._idle:
            self._discard(connection)

    def _refuse_waiting(self, why: str) -> None:
        waiting, self._waiting = self._waiting, deque()
        for place in waiting:
            place.errback(Unavailable(why))

    def _wake(self) -> None:
        if self._wanted is not None:
            wanted, self._wanted = self._wanted, None
            wanted.callback(None)

    async def _fill(self) -> None:
        """Keep the pool full; see Note [A pool that never waits for a dead database]."""
        pause = self._settings.first_pause
        while self._running:
            if len(self._open) >= self._settings.size:
                self._wanted = Deferred()
                await self._wanted
                continue
            if await self._add_one():
                pause = self._settings.first_pause
                continue
            await self._wait(pause)
            pause = min(2 * pause, self._settings.longest_pause)

    async def _add_one(self) -> bool:
        try:
            connection = await self._connect()
        except Exception as error:  # noqa: BLE001 - the pool must go on trying whatever happens
            if not self._away:
                self._log.warn("no connection to the database: {error}", error=str(error))
            self._away = True
            if not self._open:
                self._refuse_waiting("the database does not answer")
            return False
        if self._away:
            self._log.info("connected to the database again")
        self._away = False
        self._open.add(connection)
        connection.lost = lambda: self._lost(connection)
        self._release(connection)
        return True

    async def _wait(self, seconds: float) -> None:
        if not self._running:
            return
        self._pause = deferLater(self._reactor, seconds)
        try:
            await self._pause
        except defer.CancelledError:
            return
        finally:
            self._pause = None


def _nothing() -> None:
    return
