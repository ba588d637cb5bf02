"""Timers of one kernel: how long a run has computed, and how long nobody wanted anything. Knows no kernel and no limit's name."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime


def cancel(call: IDelayedCall | None) -> None:
    """Cancel a timer if there is one and it has not fired."""
    if call is not None and call.active():
        call.cancel()


class Budget:
    """Seconds that may be spent, with pauses that do not count."""

    def __init__(self, clock: IReactorTime, seconds: float, spent: Callable[[], None]) -> None:
        self._clock = clock
        self._left = seconds
        self._spent = spent
        self._since = 0.0
        self._timer: IDelayedCall | None = None

    def go(self) -> None:
        """Let time count; harmless while it does."""
        if self._timer is None:
            self._since = self._clock.seconds()
            self._timer = self._clock.callLater(max(self._left, 0.0), self._fire)

    def pause(self) -> None:
        """Let time not count; harmless while it does not."""
        if self._timer is not None:
            cancel(self._timer)
            self._timer = None
            self._left -= self._clock.seconds() - self._since

    def _fire(self) -> None:
        self._timer = None
        self._left = 0.0
        self._spent()


class IdleWatch:
    """Calls ``idle`` when nothing was touched for a while and nothing goes on.

    A touch costs an assignment: the timer finds out when it fires, and sleeps for the rest.
    """

    def __init__(self, clock: IReactorTime, seconds: float, busy: Callable[[], bool], idle: Callable[[], None]) -> None:
        self._clock = clock
        self._seconds = seconds
        self._busy = busy
        self._idle = idle
        self._touched = clock.seconds()
        self._timer: IDelayedCall | None = clock.callLater(seconds, self._check)

    @property
    def idle_for(self) -> float:
        """Seconds since something was touched."""
        return 0.0 if self._busy() else self._clock.seconds() - self._touched

    def touch(self) -> None:
        """Note that something happened."""
        self._touched = self._clock.seconds()

    def stop(self) -> None:
        """Watch no more."""
        cancel(self._timer)
        self._timer = None

    def _check(self) -> None:
        self._timer = None
        if self._busy():
            self.touch()
        left = self._touched + self._seconds - self._clock.seconds()
        if left <= 0.0:
            self._idle()
        else:
            self._timer = self._clock.callLater(left, self._check)
