"""Searching for a regular expression of a client's, without trust in it.

Knows processes. Note [Patterns of strangers]: a pattern of twenty characters can keep Python's engine busy for years, and
that engine cannot be stopped from inside. Engines that cannot run away know neither back references nor look-ahead, which
clients of 2016 had. So the search happens in a process of its own (``search_child.py``), which is killed when it takes too
long; some 20 ms are the price, paid by those who use it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IReactorProcess, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

SECONDS = 2.0
MOST_AT_ONCE = 2
MOST_WAITING = 16
MOST_PATTERN = 64 * 1024
_CHILD = str(Path(__file__).with_name("search_child.py"))


class SearchFailed(Exception):
    """The text could not be searched; the message says why.

    :ivar name: what the historic server would have called it.
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


@define
class Searches:
    """Runs searches, a few at once; the others wait.

    :ivar spawner: the reactor, as what starts processes.
    """

    clock: IReactorTime
    spawner: IReactorProcess
    seconds: float = SECONDS
    _turns: DeferredSemaphore = field(factory=lambda: DeferredSemaphore(MOST_AT_ONCE))

    async def found(self, pattern: str, text: str) -> bool:
        """Tell whether ``re.search`` finds the pattern.

        :raises SearchFailed: the pattern is none, is too long, or takes too long; or too many wait already.
        """
        if len(pattern) > MOST_PATTERN:
            raise SearchFailed("OverflowError", f"The pattern has more than {MOST_PATTERN} characters.")
        if len(self._turns.waiting) >= MOST_WAITING:
            raise SearchFailed("RuntimeError", "Too many searches are waiting.")
        async with self._turns:
            answer = await self._ask(pattern.encode("utf-8", "surrogatepass"), text.encode("utf-8", "surrogatepass"))
        if isinstance(answer, bool):
            return answer
        raise SearchFailed("error", str(answer))

    async def _ask(self, pattern: bytes, text: bytes) -> Any:
        child = _Child()
        transport = self.spawner.spawnProcess(child, sys.executable, [sys.executable, "-I", "-S", _CHILD], env={})
        late = self.clock.callLater(self.seconds, child.give_up)
        try:
            for piece in (len(pattern).to_bytes(8, "big"), pattern, text):
                transport.write(piece)
            transport.closeStdin()
            return await child.answer
        except CancelledError:
            child.give_up()
            raise
        finally:
            if late.active():
                late.cancel()


class _Child(ProcessProtocol):
    """Collects what the process says; ``answer`` fires when it is gone."""

    def __init__(self) -> None:
        self.answer: Deferred[Any] = Deferred()
        self._said = bytearray()
        self._given_up = False

    def outReceived(self, data: bytes) -> None:
        """Keep what it says; its answer is short."""
        self._said += data[: 64 * 1024 - len(self._said)]

    def give_up(self) -> None:
        """Kill it."""
        self._given_up = True
        if self.transport is not None:
            try:
                self.transport.signalProcess("KILL")
            except ProcessExitedAlready:
                return

    def processEnded(self, _reason: Failure) -> None:
        """Hand over the answer."""
        if self.answer.called:  # its caller has gone
            return
        try:
            answer = json.loads(self._said)
        except ValueError:
            answer = None
        if answer is None or self._given_up:
            message = "The search took too long." if self._given_up else "The search needed too much memory or time."
            self.answer.errback(SearchFailed("RuntimeError" if self._given_up else "MemoryError", message))
        else:
            self.answer.callback(answer)
