"""One connection to PostgreSQL, over txpostgres; the only file that knows that driver. Knows no tables.

Note [What txpostgres does not do]
    * An idle connection that the server closes raises out of ``doRead`` and fills the log. We poll without raising, look
      whether the connection is closed, and tell the pool.
    * Its cursors wait for their answer as a second reader of the same descriptor, which takes the first one out of the
      reactor and puts it in again, and give the answer a turn later, for fear of what whoever gets it does at once. Statements
      are run here by :class:`_Link` itself, which stays the only reader and is ready for the next statement before it gives
      the answer; only connecting, which may change the descriptor, is left to the driver. libpq closes its descriptor as soon
      as it finds the connection broken, so what the reactor watches is a duplicate, which is there until it is watched no more.
    * Nobody cancels what runs here (libpq's cancel blocks the reactor), so a statement that the server has cancelled has taken
      longer than its ``statement_timeout``.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, TypeVar

import psycopg2
import psycopg2.extensions
from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionClosed
from twisted.internet.interfaces import IReactorFromThreads, IReactorTime
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool
from txpostgres import txpostgres

from sorna.errors import Unavailable
from sorna.store.address import DatabaseAddress

Parameters = Mapping[str, Any] | Sequence[Any]
Row = tuple[Any, ...]
T = TypeVar("T")

# Classes 08 and 53, 57P0x, read-only and statement timeout: the server cannot now, and may later.
_AWAY = ("08", "53", "57", "25006", "55P03")
_CONFLICTS = frozenset({"23505", "40001", "40P01"})


class Prepared(str):
    """A statement that each connection prepares once and only executes from then on, for those that are run all the time.

    PostgreSQL parses and plans a statement anew each time it gets it as text, which takes as long as running it where that
    touches a few rows. The value of the text is the command that executes; a transaction may put something before it.

    :ivar name: of the prepared statement.
    :ivar preparation: the command that prepares it.
    """

    __slots__ = ("name", "preparation")
    name: str
    preparation: str

    def __new__(cls, name: str, sql: str) -> Self:
        """Make one of a statement whose parameters are ``%(name)s``; they get the types that their places have."""
        names = list(dict.fromkeys(_PARAMETER.findall(sql)))
        one = super().__new__(cls, f"EXECUTE {name} ({', '.join(f'%({parameter})s' for parameter in names)})")
        one.name = name
        body = _PARAMETER.sub(lambda found: f"${names.index(found[1]) + 1}", sql)
        one.preparation = f"PREPARE {name} AS {body}"
        return one


_PARAMETER = re.compile(r"%\((\w+)\)s")


class Conflict(Exception):
    """Another transaction was quicker (unique violation, serialization failure, deadlock); the same one may be tried again."""


class StatementFailed(Exception):
    """PostgreSQL refuses a statement: a fault of ours. Carries no values, which may be secret."""

    def __init__(self, sqlstate: str, message: str) -> None:
        super().__init__(f"{sqlstate}: {message}")
        self.sqlstate = sqlstate


def translate(error: psycopg2.Error) -> Exception:
    """Say in our words what the driver reports."""
    state = error.pgcode
    if state is None or state.startswith(_AWAY):
        return Unavailable("the database does not answer")
    if state in _CONFLICTS:
        return Conflict(state)
    return StatementFailed(state, error.diag.message_primary or type(error).__name__)


class _Link(txpostgres.Connection):
    """A txpostgres connection that notices its end; see Note [What txpostgres does not do]."""

    def __init__(self, reactor: IReactorTime, lost: Callable[[], None]) -> None:
        super().__init__(reactor)
        self._lost = lost
        self._running: tuple[psycopg2.extensions.cursor, Deferred[list[Row]]] | None = None
        self._descriptor = -1

    async def open(self, parameters: Mapping[str, Any]) -> None:
        """Connect."""
        await self.connect(**parameters)
        assert self._connection is not None
        self.reactor.removeReader(self)
        self._descriptor = os.dup(self._connection.fileno())
        self.reactor.addReader(self)

    def fileno(self) -> int:
        return super().fileno() if self._descriptor < 0 else self._descriptor

    @property
    def gone(self) -> bool:
        """Whether the connection is closed, by whomever."""
        return self._connection is None or self._connection.closed != 0

    @property
    def between_transactions(self) -> bool:
        """Whether the server waits for something new."""
        connection = self._connection
        if connection is None or connection.closed != 0:
            return False
        return connection.get_transaction_status() == psycopg2.extensions.TRANSACTION_STATUS_IDLE

    def run(self, sql: str, parameters: Parameters | None) -> Deferred[list[Row]]:
        """Run one statement and give its rows; none may be under way.

        :raises psycopg2.Error: at once or later. :raises ConnectionClosed: the connection was closed meanwhile.
        """
        assert self._connection is not None
        cursor = self._connection.cursor()
        cursor.execute(sql, parameters)
        answer: Deferred[list[Row]] = Deferred()
        self._running = cursor, answer
        # Most often all of it was sent, and this only finds that no answer is there yet.
        self._go_on()
        return answer

    def _go_on(self) -> None:
        """See how far the statement is that runs."""
        if self._connection is None or self._running is None:
            return
        cursor, answer = self._running
        try:
            state = self._connection.poll()
            if state == psycopg2.extensions.POLL_WRITE:
                self.reactor.addWriter(self)
                return
            if state != psycopg2.extensions.POLL_OK:
                self.reactor.addReader(self)  # which it is, unless the reactor has just seen the other end go
                return
            rows = cursor.fetchall() if cursor.description is not None else []
        except psycopg2.Error:
            self._running = None
            answer.errback()
        else:
            self._running = None
            answer.callback(rows)

    def doRead(self) -> None:
        if self._running is not None:
            self._go_on()
        else:
            # A step of connecting, or the end of a connection that nobody uses.
            self.reactor.removeReader(self)
            if not self.gone:
                self.continuePolling(swallowErrors=True)
            if not self.gone:
                self.reactor.addReader(self)
        if self.gone:
            self.reactor.removeReader(self)
            self._lost()

    def doWrite(self) -> None:
        if self._running is None:
            super().doWrite()
            return
        self.reactor.removeWriter(self)
        if not self.gone:
            self._go_on()

    def connectionLost(self, reason: Failure) -> None:
        if self._running is None:
            super().connectionLost(reason)
        elif self.gone:
            (_cursor, answer), self._running = self._running, None
            answer.errback(reason)
        else:
            # The driver is to say why itself, and what had still arrived is read.
            self._go_on()
        self._lost()

    def close(self) -> None:
        # One whose very first step failed, a bad parameter for instance, has nothing to close.
        if self._connection is not None:
            super().close()
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


def _nothing() -> None:
    return


class Connection:
    """One statement after another on one connection.

    :ivar lost: called once or more when the connection is gone.
    """

    def __init__(self, reactor: IReactorTime) -> None:
        self.lost: Callable[[], None] = _nothing
        self._reactor = reactor
        self._link = _Link(reactor, self._tell)
        self._prepared: set[str] = set()

    def _tell(self) -> None:
        self.lost()

    async def open(self, seconds: float, parameters: Mapping[str, Any]) -> None:
        """Connect.

        :raises Unavailable: it did not work in time.
        """
        await self._within(seconds, lambda: Deferred.fromCoroutine(self._link.open(parameters)))

    async def execute(self, sql: str, parameters: Parameters, seconds: float) -> list[Row]:
        """Run one statement and give its rows; one that is :class:`Prepared` is prepared first if need be. Never cancel this; after ``seconds`` it closes the connection.

        :raises Unavailable, Conflict, StatementFailed: see :func:`translate`.
        """
        if self._link.gone:
            raise Unavailable("the database does not answer")
        if isinstance(sql, Prepared) and sql.name not in self._prepared:
            await self._within(seconds, lambda: self._link.run(sql.preparation, None))
            self._prepared.add(sql.name)
        # Without parameters, a percent sign is itself.
        return await self._within(seconds, lambda: self._link.run(sql, parameters or None))

    async def _within(self, seconds: float, begin: Callable[[], Deferred[T]]) -> T:
        deadline = self._reactor.callLater(seconds, self.close)
        try:
            return await begin()
        except psycopg2.Error as error:
            # "from None": the driver's text quotes the statement with its values.
            raise translate(error) from None
        except ConnectionClosed:
            raise Unavailable("the database does not answer in time") from None
        finally:
            if deadline.active():
                deadline.cancel()

    @property
    def usable(self) -> bool:
        """Whether the connection is open and in no transaction."""
        return self._link.between_transactions

    def close(self) -> None:
        """Close; a statement that runs fails with Unavailable."""
        self._link.close()


@frozen
class Connector:
    """Opens connections to one database.

    :ivar statement_timeout: after how many seconds the server itself gives a statement up.
    """

    reactor: IReactorTime
    address: DatabaseAddress
    statement_timeout: float = 5.0
    connect_timeout: float = 5.0
    schema: str = "sorna"

    async def __call__(self) -> Connection:
        """Open one connection.

        :raises Unavailable: the database does not answer, or refuses us.
        """
        parameters = {**plain_parameters(self.address), **await self._resolved()}
        milliseconds = round(self.statement_timeout * 1000)
        parameters["options"] = (
            f"-c search_path={self.schema} -c statement_timeout={milliseconds} "
            f"-c idle_in_transaction_session_timeout={4 * milliseconds}"
        )
        connection = Connection(self.reactor)
        try:
            await connection.open(self.connect_timeout, parameters)
        except BaseException:
            connection.close()
            raise
        return connection

    async def _resolved(self) -> dict[str, str]:
        """Look the host up in a thread: libpq would do it on the reactor's."""
        if self.address.local:
            return {}
        threads = IReactorFromThreads(self.reactor)
        pool: ThreadPool = threads.getThreadPool()  # type: ignore[attr-defined]  # missing from Twisted's interface
        try:
            found = await deferToThreadPool(
                threads, pool, socket.getaddrinfo, self.address.host, self.address.port, 0, socket.SOCK_STREAM
            )
        except OSError as error:
            raise Unavailable(f"the database's host name {self.address.host} does not resolve: {error}") from error
        return {"hostaddr": str(found[0][4][0])}


def plain_parameters(address: DatabaseAddress) -> dict[str, Any]:
    """Give the keyword arguments for libpq, without a resolved address."""
    return {
        "host": address.host,
        "port": address.port,
        "dbname": address.name,
        "user": address.user,
        "password": address.password,
        "application_name": "sorna",
        "client_encoding": "UTF8",
    }
