"""The services that a start is made of: binding a port, bringing parts up step by step, undoing a step, repeating work.

They know how to fail clearly, and no part of Sorna by name.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from twisted.application.internet import StreamServerEndpointService, TimerService
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from sorna.errors import SornaError, Unavailable

T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 1.0


class Listening(StreamServerEndpointService):
    """Binds a port when the process starts; a taken port ends the process at once, saying so, with status 1."""

    _raiseSynchronously = True

    def privilegedStartService(self) -> None:
        """Bind the port."""
        try:
            super().privilegedStartService()
        except CannotListenError as error:
            where = f"{error.interface or 'all addresses'} port {error.port}"
            raise SystemExit(f"sorna: cannot listen on {where}: {error.socketError}") from None


class Boot(Service):
    """Runs ``steps`` when it starts; stopping before they are done cancels them.

    :param failed: called with one sentence when a step raises; it ends the process.
    """

    _log = Logger()

    def __init__(self, steps: Callable[[], Awaitable[None]], failed: Callable[[str], None]) -> None:
        self._steps = steps
        self._failed = failed
        self._running: Deferred[None] | None = None

    def startService(self) -> None:
        """Begin."""
        super().startService()
        self._running = Deferred.fromCoroutine(self._run())
        self._running.addErrback(self._explain)

    def stopService(self) -> Deferred[None] | None:
        """Give up what is not done yet."""
        super().stopService()
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
        return running

    async def _run(self) -> None:
        await self._steps()

    def _explain(self, failure: Failure) -> None:
        if failure.check(CancelledError) and not self.running:
            return
        if not failure.check(SornaError, OSError):
            self._log.failure("the start failed", failure)
        self._failed(f"cannot start: {failure.getErrorMessage()}")


class Stopping(Service):
    """The service that does nothing until it is stopped, and then waits for ``stop``: the way to undo a step."""

    def __init__(self, stop: Callable[[], Awaitable[None]]) -> None:
        self._stop = stop

    def stopService(self) -> Deferred[None]:
        """Undo the step."""
        super().stopService()
        return Deferred.fromCoroutine(self._undo())

    async def _undo(self) -> None:
        await self._stop()


async def until_available(
    clock: IReactorTime, attempt: Callable[[], Awaitable[T]], note: Callable[[Unavailable | None], None]
) -> T:
    """Try something until what it needs is there, and give its result.

    :param note: told why nothing came of the first attempt, and None when one succeeds after that.
    """
    pause, waited = FIRST_PAUSE, False
    while True:
        try:
            result = await attempt()
        except Unavailable as error:
            if not waited:
                note(error)
            waited = True
            await deferLater(clock, pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        else:
            if waited:
                note(None)
            return result


def repeating(clock: IReactorTime, interval: float, work: Callable[[], Awaitable[object]], doing: str) -> TimerService:
    """Give a service that calls ``work`` every ``interval`` seconds, never twice at once, whatever it raises.

    That something it needs is away is said once per outage.
    """
    log = Logger(namespace="sorna.boot.repeating")
    away = False

    async def once() -> None:
        nonlocal away
        with log.failuresHandled("{doing}", doing=doing):
            try:
                await work()
            except Unavailable as error:
                if not away:
                    log.warn("{doing}: {error}", doing=doing, error=error)
                away = True
            else:
                away = False

    service = TimerService(interval, lambda: Deferred.fromCoroutine(once()))
    service.clock = clock
    return service
