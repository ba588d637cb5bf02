"""Keep one connection to Redis up: connect, log in, prepare, and start over for as long as the service runs.

Knows nothing of commands and of who uses the connection; it tells its user when there is one and when it is gone.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar, cast

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.interfaces import ITCPTransport
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from sorna.live.address import RedisAddress
from sorna.live.wire import Wire, without_values

W = TypeVar("W", bound=Wire)

FIRST_DELAY = 0.05
# An outage ends within this and a round trip after the server is back.
LONGEST_DELAY = 0.5

# Note [Our own reconnection]
#
# The driver's factory gives up for ever when AUTH or SELECT fails for any reason, a connection dropped at that moment
# included, and runs on the global reactor. Twisted's ClientService does not give up, but its state machine knows no
# connection that is lost while an asynchronous prepareConnection is under way, and it logs every attempt. The
# loop below is all that is needed of either: the coroutine's position is the state.


class Reconnection(Service, Generic[W]):
    """A connection that comes back.

    :param purpose: what the log calls it.
    :param build: makes the protocol of one connection.
    :param prepare: makes a fresh, logged in connection ready; when it fails the connection is thrown away.
    :param up: called with each connection that is ready.
    :param down: called when that connection is gone; ``up`` follows sooner or later, except at the end.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        address: RedisAddress,
        *,
        purpose: str,
        build: Callable[[], W],
        prepare: Callable[[W], Awaitable[None]],
        up: Callable[[W], None],
        down: Callable[[], None],
        connect_timeout: float = 2.0,
    ) -> None:
        self._reactor = reactor
        self._address = address
        self._purpose = purpose
        self._prepare = prepare
        self._up = up
        self._down = down
        self._connect_timeout = connect_timeout
        self._factory = Factory.forProtocol(build)
        self._factory.noisy = False
        self._wire: W | None = None
        self._loop: Deferred[None] | None = None
        self._failures = 0
        self._out_since: float | None = None

    def startService(self) -> None:
        """Begin to connect."""
        super().startService()
        self._failures = 0
        self._loop = Deferred.fromCoroutine(self._keep_connected()).addErrback(self._ended)

    def stopService(self) -> Deferred[None]:
        """Stop connecting and close the connection; fires when it is closed."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        wire = self._wire
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.cancel()
            await loop
        if wire is not None:
            await self._close(wire)

    async def _close(self, wire: W) -> None:
        """Close politely, and by force when the other end does not take what is still to be sent."""
        assert wire.transport is not None
        gone = wire.whenDisconnected()
        force = self._reactor.callLater(self._connect_timeout, wire.abort)
        wire.transport.loseConnection()
        await gone
        if force.active():
            force.cancel()

    async def _keep_connected(self) -> None:
        while True:
            wire = await Deferred.fromCoroutine(self._connect()).addErrback(self._failed)
            if wire is not None:
                await self._hold(wire)
            await deferLater(self._reactor, self._delay())

    async def _connect(self) -> W | None:
        endpoint = self._address.endpoint(self._reactor, self._connect_timeout)
        wire = cast("W", await endpoint.connect(self._factory))
        ready = False
        try:
            if ITCPTransport.providedBy(wire.transport):
                wire.transport.setTcpNoDelay(True)
                wire.transport.setTcpKeepAlive(True)
            await self._log_in(wire)
            await self._prepare(wire)
            ready = True
        finally:
            if not ready:
                wire.abort()
        return wire

    async def _log_in(self, wire: W) -> None:
        if self._address.password is None:
            return
        login = [word for word in (self._address.username, self._address.password) if word is not None]
        await wire.send("AUTH", *login)

    async def _hold(self, wire: W) -> None:
        """Stay here for as long as the connection lives."""
        self._failures = 0
        self._wire = wire
        gone = wire.whenDisconnected()
        if self._out_since is not None:
            self._log.info(
                "Redis at {address} ({purpose}) answers again after {seconds:.1f} s",
                address=str(self._address),
                purpose=self._purpose,
                seconds=self._reactor.seconds() - self._out_since,
            )
            self._out_since = None
        self._up(wire)
        try:
            await gone
        finally:
            self._wire = None
            self._down()
        self._note_outage("it did not answer in time" if wire.silent else "the connection was lost")

    def _failed(self, failure: Failure) -> W | None:
        """Remember one failed attempt; at the end of the service, which cancels the attempt, end the loop."""
        if not self.running:
            failure.raiseException()
        self._note_outage(f"{type(failure.value).__name__}: {without_values(failure.getErrorMessage())}")
        return None

    def _note_outage(self, reason: str) -> None:
        self._failures += 1
        if self._out_since is None:
            self._out_since = self._reactor.seconds()
            self._log.warn(
                "Redis at {address} ({purpose}) is out of reach, trying again until it answers: {reason}",
                address=str(self._address),
                purpose=self._purpose,
                reason=reason,
            )

    def _delay(self) -> float:
        """Wait longer each time up to a bound; the randomness spreads the connections of one outage."""
        delay: float = min(FIRST_DELAY * 2.0 ** min(self._failures - 1, 10), LONGEST_DELAY)
        return delay * random.uniform(0.8, 1.2)  # noqa: S311 - a delay is no secret

    def _ended(self, failure: Failure) -> None:
        if self.running or not failure.check(CancelledError, ConnectingCancelledError):
            self._log.failure("the upkeep of the connection to Redis ({purpose}) broke", failure, purpose=self._purpose)
