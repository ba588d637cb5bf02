"""Timers of one kernel: how long a run has computed, and how long nobody wanted anything. Knows no kernel."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime


def cancel(call: IDelayedCall | None) -> None:
    """Cancel a timer if there is one and it has not fired."""
    if call is not None and call.active():
        call.cancel()


# Seconds between two looks at whether somebody who says that he waits really does.
LOOK = 5.0


class Budget:
    """Seconds that may be spent: of wall time while it goes, and of processor time while it pauses.

    A run that waits for a line costs nothing; one of whose threads waits while the others compute pays for that.

    :param computed: processor time used so far, in seconds.
    """

    def __init__(
        self, clock: IReactorTime, seconds: float, computed: Callable[[], float], spent: Callable[[], None]
    ) -> None:
        self._clock = clock
        self._left = seconds
        self._computed = computed
        self._spent = spent
        self._since = 0.0
        self._timer: IDelayedCall | None = None
        self._paused = True

    def go(self) -> None:
        """Let wall time count; harmless while it does."""
        if self._paused:
            if self._timer is not None:
                self._charge(self._computed())
            self._paused = False
            self._since = self._clock.seconds()
            self._restart(max(self._left, 0.0))

    def pause(self) -> None:
        """Let processor time count instead; harmless while it does."""
        if not self._paused:
            self._charge(self._clock.seconds())
            self._paused = True
            self._since = self._computed()
            self._restart(LOOK)

    def carry(self) -> tuple[float, bool]:
        """Give what is left, in seconds, and whether it pauses; and count no more."""
        self._charge(self._computed() if self._paused else self._clock.seconds())
        self.stop()
        return self._left, self._paused

    def go_on(self, *, paused: bool) -> None:
        """Begin where another has stopped."""
        if paused:
            self._since = self._computed()
            self._restart(LOOK)
        else:
            self.go()

    def stop(self) -> None:
        """Count no more."""
        cancel(self._timer)
        self._timer = None

    def _charge(self, now: float) -> None:
        self._left -= max(0.0, now - self._since)
        self._since = now

    def _restart(self, delay: float) -> None:
        cancel(self._timer)
        self._timer = self._clock.callLater(delay, self._look)

    def _look(self) -> None:
        self._timer = None
        self._charge(self._computed() if self._paused else self._clock.seconds())
        if self._left > 0.0 and self._paused:
            self._restart(LOOK)
        else:
            self._spent()


class RunTime:
    """What the current run may spend, if that has a bound; see :class:`Budget`."""

    def __init__(self, clock: IReactorTime, computed: Callable[[], float], spent: Callable[[], None]) -> None:
        self._clock = clock
        self._computed = computed
        self._spent = spent
        self._budget: Budget | None = None

    def begin(self, seconds: float) -> None:
        """Let a run's time count; 0 is for ever."""
        if seconds > 0:
            self._budget = Budget(self._clock, seconds, self._computed, self._spent)
            self._budget.go()

    def go(self) -> None:
        """Let wall time count."""
        if self._budget is not None:
            self._budget.go()

    def pause(self) -> None:
        """Let processor time count instead."""
        if self._budget is not None:
            self._budget.pause()

    def stop(self) -> None:
        """Let nothing count."""
        if self._budget is not None:
            self._budget.stop()
            self._budget = None

    def carry(self) -> tuple[float, bool] | None:
        """Give what is left, and whether it pauses; None without a bound. Nothing counts any more."""
        return None if self._budget is None else self._budget.carry()

    def go_on(self, state: tuple[float, bool] | None) -> None:
        """Begin where another has stopped."""
        if state is not None:
            self._budget = Budget(self._clock, state[0], self._computed, self._spent)
            self._budget.go_on(paused=state[1])


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

    def touched_before(self, seconds: float) -> None:
        """Take it that something was touched so long ago, and nothing since."""
        self._touched = self._clock.seconds() - seconds
        cancel(self._timer)
        self._timer = self._clock.callLater(max(self._seconds - seconds, 0.0), self._check)

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


class Life:
    """How long a kernel may live, and how long be idle.

    :param over: is given the reason, once one of the times has passed.
    """

    def __init__(self, clock: IReactorTime, busy: Callable[[], bool], over: Callable[[str], None]) -> None:
        self._clock = clock
        self._busy = busy
        self._over = over
        self._idle: IdleWatch | None = None
        self._end: IDelayedCall | None = None

    def begin(self, lifetime: float, idle_timeout: float) -> None:
        """Let both count, in seconds; 0 is for ever."""
        if lifetime > 0:
            self._end = self._clock.callLater(lifetime, self._over, "lifetime-exceeded")
        if idle_timeout > 0:
            self._idle = self._watch(idle_timeout)

    def _watch(self, seconds: float) -> IdleWatch:
        return IdleWatch(self._clock, seconds, self._busy, lambda: self._over("idle-timeout"))

    @property
    def idle_for(self) -> float:
        """Seconds since anybody wanted anything; 0 when nobody counts them."""
        return 0.0 if self._idle is None else self._idle.idle_for

    def touch(self) -> None:
        """Note that somebody wants something."""
        if self._idle is not None:
            self._idle.touch()

    def stop(self) -> None:
        """Let nothing count any more."""
        cancel(self._end)
        self._end = None
        if self._idle is not None:
            self._idle.stop()

    def carry(self) -> tuple[float | None, float | None]:
        """Give what is left of the lifetime, and for how long nobody wanted anything; nothing counts any more."""
        left = None if self._end is None else self._end.getTime() - self._clock.seconds()
        idle = None if self._idle is None else self._idle.idle_for
        self.stop()
        return left, idle

    def go_on(self, left: float | None, idle: float | None, idle_timeout: float) -> None:
        """Begin where another has stopped."""
        if idle is not None:
            self._idle = self._watch(idle_timeout)
            self._idle.touched_before(idle)
        if left is not None:
            self._end = self._clock.callLater(max(left, 0.0), self._over, "lifetime-exceeded")
