"""One piece of work whose result any number of callers wait for; knows nothing of what the work is."""

from __future__ import annotations

from typing import Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

T = TypeVar("T")


class Shared(Generic[T]):
    """A result that comes once. A caller that is cancelled leaves the work and the other callers alone."""

    def __init__(self) -> None:
        self._waiting: list[Deferred[T]] = []
        self._results: list[T] = []
        self._error: Exception | None = None

    @property
    def done(self) -> bool:
        """Whether the result is there."""
        return bool(self._results) or self._error is not None

    def join(self) -> Deferred[T]:
        """Give a Deferred of one's own for the result."""
        deferred: Deferred[T] = Deferred(self._leave)
        if self._error is not None:
            deferred.errback(Failure(self._error))
        elif self._results:
            deferred.callback(self._results[0])
        else:
            self._waiting.append(deferred)
        return deferred

    def _leave(self, deferred: Deferred[T]) -> None:
        if deferred in self._waiting:
            self._waiting.remove(deferred)

    def succeed(self, result: T) -> None:
        """Give everyone the result; later calls change nothing."""
        if not self.done:
            self._results.append(result)
            waiting, self._waiting = self._waiting, []
            for deferred in waiting:
                deferred.callback(result)

    def fail(self, error: Exception) -> None:
        """Give everyone an error; later calls change nothing."""
        if not self.done:
            self._error = error
            waiting, self._waiting = self._waiting, []
            for deferred in waiting:
                deferred.errback(Failure(error))
