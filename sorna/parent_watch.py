"""How a child process learns that the one that started it is gone, however it went: its end of a pipe closes.

Knows no program by name. Standard input is that pipe, so it must be watched by nobody else.
"""

from __future__ import annotations

import signal
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol
from twisted.internet.stdio import StandardIO
from twisted.logger import Logger
from twisted.python.failure import Failure

from sorna.lifecycle import stop_process


class _EndOfInput(Protocol):
    """Fires when standard input ends."""

    def __init__(self) -> None:
        self.ended: Deferred[None] = Deferred()

    def connectionLost(self, _reason: Failure | None = None) -> None:
        """Tell."""
        if not self.ended.called:
            self.ended.callback(None)


class ParentWatch(Service):
    """Stops this process in order when its parent is gone.

    :param within: seconds after which it is ended by force, whatever it does then; None for no such bound.
    """

    _log = Logger()

    def __init__(self, reactor: Any, *, within: int | None = None) -> None:
        self._reactor = reactor
        self._within = within

    def startService(self) -> None:
        """Watch standard input."""
        super().startService()
        protocol = _EndOfInput()
        protocol.ended.addCallback(self._orphaned)
        StandardIO(protocol, reactor=self._reactor)

    def _orphaned(self, _ended: None) -> None:
        if not self.running:
            return
        self._log.warn("the process that started this one is gone; stopping")
        if self._within is not None:
            # By the system and not by the reactor, which something may keep busy. Nobody handles this signal.
            signal.alarm(self._within)
        stop_process(self._reactor)
