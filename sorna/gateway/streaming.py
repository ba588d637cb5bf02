"""Sends a body piece by piece, no faster than the client takes it; knows Twisted's requests, not what is sent."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from zope.interface import implementer

from sorna.gateway.call import Stream

_log = Logger()


@implementer(IPushProducer)
class _Tap:
    """Waits while the connection is full."""

    def __init__(self) -> None:
        self._waiting: Deferred[None] | None = None
        self._full = False

    async def open(self) -> None:
        """Wait until the connection takes more."""
        if self._full:
            self._waiting = Deferred()
            await self._waiting

    def pauseProducing(self) -> None:
        """Note that the connection is full."""
        self._full = True

    def resumeProducing(self) -> None:
        """Note that it takes more."""
        self._full = False
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)

    def stopProducing(self) -> None:
        """Hear that the client is gone; whoever waits is cancelled by the router."""


async def send(request: Any, stream: Stream) -> None:
    """Send a body whose head has been set. What was promised and cannot be sent ends with the connection.

    :raises CancelledError: the client has gone.
    """
    tap = _Tap()
    request.registerProducer(tap, True)
    try:
        async with aclosing(stream.pieces) as pieces:
            async for piece in pieces:
                request.write(piece)
                await tap.open()
    except CancelledError:
        raise
    except Exception:  # noqa: BLE001 - the status has been sent, so only the connection can tell
        _log.failure("a body could not be sent to its end")
        request.transport.abortConnection()
    finally:
        if request.channel is not None:
            request.unregisterProducer()
