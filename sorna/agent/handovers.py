"""Answers to execute that are on their way through a manager: given for good once it has passed them on, else given back.

Knows runs and the clock, and no link: whoever carries an answer away says what became of it.

Note [An answer and its carrier]
    An answer is cut from a run's log when it is given to a manager, and the manager may die before it has written it to the
    client's connection. So the manager says when it has, and until then the run remembers how it stood before the answer.
    When the manager's connection is lost instead, the output is unread again, for the call that continues at another
    manager. Such a call may come sooner than the news of the loss, so a call waits, :data:`PATIENCE` seconds at the most,
    until it is known of every answer before it what became of it: in health that is one round trip within the host or
    network, which the client's own next call rarely outruns. A manager that says nothing for as long is frozen or cut
    off, and its answer is given back as well.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.interfaces import IReactorTime

from sorna.agent.run import Run

PATIENCE = 0.5


class Handovers:
    """The answers of one kernel's runs that are on their way.

    :param given_back: told of every run whose answer was given back.
    """

    def __init__(self, reactor: IReactorTime, given_back: Callable[[Run], None]) -> None:
        self._reactor = reactor
        self._given_back = given_back
        self._pending: set[Callable[[bool], None]] = set()
        self._waiting: list[Deferred[None]] = []

    @property
    def pending(self) -> bool:
        """Whether any answer is on its way."""
        return bool(self._pending)

    def begin(self, run: Run) -> Callable[[bool], None]:
        """Note that the run's last answer is on its way; call the result with whether it arrived, once or more."""
        before, after = run.before, run.log.cursor

        def settle(arrived: bool) -> None:
            if settle not in self._pending:
                return
            self._pending.remove(settle)
            # What somebody has read beyond the answer cannot be unread.
            if not arrived and before is not None and run.log.cursor == after:
                run.take_back(before)
                self._given_back(run)
            if not self._pending:
                waiting, self._waiting = self._waiting, []
                for one in waiting:
                    one.callback(None)

        self._pending.add(settle)
        return settle

    async def settled(self) -> None:
        """Wait until it is known of every answer what became of it; see Note [An answer and its carrier]."""
        if not self._pending:
            return
        news: Deferred[None] = Deferred(self._forget)
        self._waiting.append(news)
        try:
            await news.addTimeout(PATIENCE, self._reactor)
        except DeferredTimeoutError:
            for settle in list(self._pending):
                settle(False)

    def _forget(self, waiting: Deferred[None]) -> None:
        if waiting in self._waiting:
            self._waiting.remove(waiting)

    def forget(self) -> None:
        """Let go of every answer."""
        for settle in list(self._pending):
            settle(True)
