"""Sends a body piece by piece, no faster than the client takes it; knows Twisted's requests, not what is sent."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from zope.interface import implementer

from sorna.gateway.call import Stream

PATIENCE = 120.0
MOST_AT_ONCE = 100

_log = Logger()


@implementer(IPushProducer)
class _Tap:
    """Waits while the connection is full."""

    def __init__(self) -> None:
        self._waiting: Deferred[None] | None = None
        self._full = False

    async def open(self, clock: IReactorTime) -> None:
        """Wait until the connection takes more. :raises twisted.internet.defer.TimeoutError: it does not for too long."""
        if self._full:
            self._waiting = Deferred()
            await self._waiting.addTimeout(PATIENCE, clock)

    def pauseProducing(self) -> None:
        """Note that the connection is full."""
        self._full = True

    def resumeProducing(self) -> None:
        """Note that it takes more."""
        self._full = False
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.called:
            waiting.callback(None)

    def stopProducing(self) -> None:
        """Hear that the client is gone; whoever waits is cancelled by the router."""


async def send(request: Any, stream: Stream, clock: IReactorTime) -> None:
    """Send a body whose head has been set. What was promised and cannot be sent ends with the connection.

    :param clock: a client that takes nothing for :data:`PATIENCE` seconds is dropped.

    :raises CancelledError: the client has gone.
    """
    tap = _Tap()
    request.registerProducer(tap, True)
    try:
        async with aclosing(stream.pieces) as pieces:
            at_once = 0
            async for piece in pieces:
                request.write(piece)
                await tap.open(clock)
                at_once += 1
                if at_once == MOST_AT_ONCE:
                    # Small pieces may all be there already, and others want their turn.
                    await deferLater(clock, 0, lambda: None)
                    at_once = 0
    except CancelledError:
        raise
    except DeferredTimeoutError:
        request.transport.abortConnection()
    except Exception:  # noqa: BLE001 - the status has been sent, so only the connection can tell
        _log.failure("a body could not be sent to its end")
        request.transport.abortConnection()
    finally:
        if request.channel is not None:
            request.unregisterProducer()
