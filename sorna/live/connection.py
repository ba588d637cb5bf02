"""Ask one database of a Redis server: every call is answered or raises Unavailable within a bounded time.

Knows commands and scripts as such, not what they are for. Results are bytes, ints, None and lists of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import txredisapi
from attrs import field, frozen
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from sorna.errors import Unavailable
from sorna.live.address import RedisAddress
from sorna.live.reconnection import Reconnection
from sorna.live.wire import Wire, Word, without_values

# A refusal of the same kind is logged again after this many seconds at the earliest.
_REFUSAL_QUIET = 60.0
_REFUSAL_KINDS = 50


@frozen
class Script:
    """A Lua script, which Redis runs atomically.

    Scripts answer integers or one string: the driver needs a turn of the reactor for every string of a list, which makes
    a hash of twenty fields five times as slow as the same hash as one JSON text.

    :ivar db: the database that it runs in, whatever the connection's own is, so that all of a process's scripts may
        travel together; None for the connection's own.
    """

    source: str
    db: int | None = None
    sha: str = field(init=False)

    def __attrs_post_init__(self) -> None:
        if self.db is not None:
            # A script's SELECT lasts until its end.
            object.__setattr__(self, "source", f"redis.call('SELECT', {self.db})\n{self.source}")
        digest = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "sha", digest)


class RedisConnection(Service):
    """One connection to one database, shared by all that ask it; commands of one reactor turn travel together.

    While the connection is down, calls wait for it until ``grace`` seconds after its loss (or the start of the service),
    and fail at once after that.

    :param db: number of the database.
    :param timeout: seconds within which Redis must answer; see Note [One timer per connection] in ``wire``.
    :param on_up: called each time there is a connection again, and at the first one: what Redis had may be lost.
    :param limit: calls that may wait at once for an answer, and as many for the connection; more fail at once.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        address: RedisAddress,
        db: int,
        *,
        timeout: float = 2.0,
        grace: float = 1.0,
        limit: int = 20_000,
        on_up: Callable[[], None] | None = None,
    ) -> None:
        self._reactor = reactor
        self._db = db
        self._grace = grace
        self._limit = limit
        self._on_up = on_up
        self._wire: Wire | None = None
        self._down_since = 0.0
        self._waiting: dict[Deferred[Wire], None] = {}
        self._giving_up: IDelayedCall | None = None
        self._refusals: dict[str, float] = {}
        self._reconnection = Reconnection(
            reactor,
            address,
            purpose=f"db {db}",
            build=lambda: Wire(reactor, timeout),
            prepare=self._select,
            up=self._came_up,
            down=self._went_down,
            connect_timeout=timeout,
        )

    @property
    def reactor(self) -> IReactorTime:
        """The reactor it lives on."""
        reactor: IReactorTime = self._reactor
        return reactor

    @property
    def connected(self) -> bool:
        """Whether a call would be sent at once."""
        return self._wire is not None

    def startService(self) -> None:
        """Begin to connect; calls may come from now on."""
        super().startService()
        self._down_since = self._reactor.seconds()
        self._reconnection.startService()

    def stopService(self) -> Deferred[None]:
        """Refuse new calls, let Redis answer those it has, and close."""
        super().stopService()
        self._give_up()
        return Deferred.fromCoroutine(self._finish())

    async def _finish(self) -> None:
        if self._wire is not None:
            await self._wire.when_idle()
        await self._reconnection.stopService()

    async def command(self, *words: Word) -> Any:
        """Send one command.

        :raises Unavailable: no answer came in time (Redis may have done it all the same), or Redis refused it.
        """
        try:
            return await self._ask(words)
        except txredisapi.ResponseError as error:
            raise self._refused(error, str(words[0])) from error

    async def run(self, script: Script, keys: tuple[Word, ...] = (), arguments: tuple[Word, ...] = ()) -> Any:
        """Run a script by its digest, and send its text only to a server that does not know it yet.

        :raises Unavailable: as :meth:`command` does.
        """
        rest = (len(keys), *keys, *arguments)
        try:
            try:
                return await self._ask(("EVALSHA", script.sha, *rest))
            except txredisapi.ResponseError as error:
                if _kind(error) != "NOSCRIPT":
                    raise
            return await self._ask(("EVAL", script.source, *rest))
        except txredisapi.ResponseError as error:
            raise self._refused(error, f"script {script.sha[:8]}") from error

    async def _ask(self, words: tuple[Word, ...]) -> Any:
        wire = self._wire
        if wire is None or not self.running:
            wire = await self._connection()
        if wire.unanswered >= self._limit:
            raise Unavailable("Too many requests wait for Redis.")
        try:
            return await wire.send(*words)
        except txredisapi.ConnectionError as error:
            raise Unavailable("Redis did not answer.") from error

    def _connection(self) -> Deferred[Wire]:
        """Wait for the connection, within the grace that is left."""
        left = self._down_since + self._grace - self._reactor.seconds()
        if not self.running or left <= 0:
            raise Unavailable("Redis cannot be reached.")
        if len(self._waiting) >= self._limit:
            raise Unavailable("Too many requests wait for Redis.")
        waiting: Deferred[Wire] = Deferred(lambda cancelled: self._waiting.pop(cancelled, None))
        self._waiting[waiting] = None
        if self._giving_up is None:
            self._giving_up = self._reactor.callLater(left, self._give_up)
        return waiting

    def _give_up(self) -> None:
        """Fail all that wait for the connection."""
        for waiting in self._take_waiting():
            waiting.errback(Unavailable("Redis cannot be reached."))

    def _take_waiting(self) -> list[Deferred[Wire]]:
        if self._giving_up is not None and self._giving_up.active():
            self._giving_up.cancel()
        self._giving_up = None
        waiting, self._waiting = list(self._waiting), {}
        return waiting

    async def _select(self, wire: Wire) -> None:
        if self._db:
            await wire.send("SELECT", self._db)

    def _came_up(self, wire: Wire) -> None:
        self._wire = wire
        for waiting in self._take_waiting():
            waiting.callback(wire)
        if self._on_up is not None:
            with self._log.failuresHandled("while telling that Redis is there"):
                self._on_up()

    def _went_down(self) -> None:
        self._wire = None
        self._down_since = self._reactor.seconds()

    def _refused(self, error: Exception, what: str) -> Unavailable:
        """Turn an error that Redis answered with (read-only, out of memory, loading...) into ours, and log it once."""
        kind = _kind(error)
        now = self._reactor.seconds()
        if now - self._refusals.get(kind, now - _REFUSAL_QUIET) >= _REFUSAL_QUIET:
            if len(self._refusals) >= _REFUSAL_KINDS:
                self._refusals.clear()
            self._refusals[kind] = now
            self._log.error(
                "Redis db {db} refuses {what}: {reason}", db=self._db, what=what, reason=without_values(str(error))
            )
        return Unavailable(f"Redis refused a command: {kind}.")


def _kind(error: Exception) -> str:
    """Give the first word of an error that Redis answered with; by Redis' custom it names the kind."""
    words = str(error).split(maxsplit=1)
    return words[0][:32] if words else "ERR"
