"""Turns SIGINT into a KeyboardInterrupt inside user code, and only there.

Standard library only. Knows signals and threads; may not know init or streams.

Note [Interrupts]
~~~~~~~~~~~~~~~~~
SIGINT can arrive at any moment, and Python raises KeyboardInterrupt between any two bytecodes of the main thread. Ours
must never be hit: an exception in the middle of a frame would lose the connection to init, and one that arrives when the
run is just over must not end the next. So the exception is only raised while :meth:`Interrupts.call` runs user code, is
put off while a frame is written or read, and a second signal within a few milliseconds counts as the same one, which
gives the ``finally`` of ``call`` the time to leave that state. A handler that user code installed is its own affair,
but only while its code runs.

A signal that arrives after Python last looked and before a system call waits does not end that wait, and waits of ours
are where one is likely: what we just sent is what makes the client interrupt. So they watch a descriptor besides, to
which Python writes the moment a signal arrives.
"""

import _signal  # type: ignore[import-not-found]  # typeshed leaves it out
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from sorna.agent.runners.processes import reserve

_T = TypeVar("_T")
_SAME = 0.005


def _poll_for(*descriptors: int) -> select.poll:
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return poll


class _HeldBack:
    """What :meth:`Interrupts.held_back` gives: a class, because a generator takes three times as long, twice in each run."""

    def __init__(self, interrupts: "Interrupts") -> None:
        self._interrupts = interrupts

    def __enter__(self) -> None:
        self._interrupts.hold()

    def __exit__(self, *_error: object) -> None:
        self._interrupts.release()


class Interrupts:
    """See Note [Interrupts]. ``struck`` counts the exceptions that were raised."""

    def __init__(self) -> None:
        self._armed = False
        self._held = 0
        self._pending = False
        self._last = 0.0
        self._users: Any = None
        self._woken, self._waker = (reserve(fd) for fd in os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC))
        self._held_back = _HeldBack(self)
        self._polls: dict[tuple[int, ...], select.poll] = {}
        self._main = threading.get_ident()
        self.struck = 0

    def install(self) -> None:
        """Take over SIGINT of this process."""
        signal.signal(signal.SIGINT, self._arrived)
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self._main = threading.get_ident()

    def enter_run(self) -> None:
        """Put the handler back that user code had installed, if any; a run begins."""
        self._pending = False
        # However soon after the last run's interrupt one comes now, it is another.
        self._last = 0.0
        if self._users is not None:
            users, self._users = self._users, None
            signal.signal(signal.SIGINT, users)

    def leave_run(self) -> None:
        """Take over again from a handler of the user; the run is over."""
        # Without the wrapper, which raises and catches an exception to find out that ours is no number.
        current = _signal.getsignal(signal.SIGINT)
        if current != self._arrived:
            self._users = current
            signal.signal(signal.SIGINT, self._arrived)

    def call(self, thunk: Callable[[], _T]) -> tuple[_T | None, BaseException | None]:
        """Run user code and give its result or what it raised."""
        try:
            try:
                self._armed = True
                return thunk(), None
            finally:
                self._armed = False
        except BaseException as error:  # noqa: BLE001 - whatever user code raises is a result here
            self._armed = False
            return None, error

    def held_back(self) -> _HeldBack:
        """Put an interrupt off until the end of the block; in other threads it never strikes anyway."""
        return self._held_back

    def hold(self) -> None:
        """Begin a block."""
        if threading.get_ident() == self._main:
            self._held += 1

    def release(self) -> None:
        """End a block; strike, if an interrupt came meanwhile."""
        if threading.get_ident() != self._main:
            return
        self._held -= 1
        if self._pending and not self._held:
            self._pending = False
            if self._armed:
                self.struck += 1
                raise KeyboardInterrupt

    def wait(self, *descriptors: int) -> list[int]:
        """Wait until some of these can be read, or, in the main thread, until a signal comes; then it may be none of them.

        Call it with interrupts held back.
        """
        if threading.get_ident() != self._main:
            return [ready for ready, _events in _poll_for(*descriptors).poll()]
        # Taken away meanwhile: a handler of the user's that is called while we wait may wait for the same.
        poll = self._polls.pop(descriptors, None) or _poll_for(*descriptors, self._woken)
        previous = signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        try:
            if self._pending:  # it came before the line above
                return []
            ready = [one for one, _events in poll.poll()]
        finally:
            signal.set_wakeup_fd(previous)
            self._polls[descriptors] = poll
        if self._woken in ready:
            ready.remove(self._woken)
            os.read(self._woken, 4096)
        return ready

    def _arrived(self, _number: int, _frame: Any) -> None:
        now = time.monotonic()
        if not self._armed or now - self._last < _SAME:
            return
        if self._held:
            self._pending = True
            return
        self._last = now
        self.struck += 1
        raise KeyboardInterrupt
