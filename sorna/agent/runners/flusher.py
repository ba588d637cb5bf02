"""The thread that looks after text which a stream holds back for a moment.

Standard library only. Knows a thread, how it is woken and how it is ended; may not know streams.
"""

import _thread
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress

#: Seconds for which text may be held back.
PATIENCE = 0.004


class Flusher:
    """A thread that sends the beginning of a line when its end does not come.

    :param flush: gives the seconds after which it wants to be called again, 0 when it does not.
    """

    def __init__(self, flush: Callable[[], float]) -> None:
        self._flush = flush
        self._reset()

    def _reset(self) -> None:
        self._gate = _thread.allocate_lock()
        self._gate.acquire()
        self._stop = _thread.allocate_lock()
        self._stop.acquire()
        self._gone = _thread.allocate_lock()
        self._running = False
        self._asleep = False
        self.armed = False

    def arm(self) -> bool:
        """Take note that the beginning of a line waits; cheap, because it happens on most prints.

        :returns: False when there can be no thread, because the kernel is full: then nobody will send it later.
        """
        if self.armed:
            return True
        self.armed = True
        if not self._running:
            self._running = True
            self._gone.acquire()
            try:
                _thread.start_new_thread(self._work, ())
            except RuntimeError:
                self._reset()
                return False
        elif self._asleep:
            self._asleep = False
            self._open_gate()
        return True

    def stop(self) -> None:
        """End the thread and wait for it, because a process with two threads is not well forked."""
        if not self._running:
            return
        self._stop.release()
        self._open_gate()
        self._gone.acquire()
        # The thread's last instructions are still to be done, and Linux counts it until then.
        deadline = time.monotonic() + 0.002
        while len(os.listdir("/proc/self/task")) > threading.active_count() and time.monotonic() < deadline:  # noqa: PTH208
            time.sleep(0)
        self._reset()

    def forget(self) -> None:
        """In a forked child: the thread was left behind."""
        self._reset()

    def _open_gate(self) -> None:
        with suppress(RuntimeError):
            self._gate.release()

    def _work(self) -> None:
        pause = 0.0
        try:
            while True:
                self._asleep = True
                if not self.armed:
                    self._gate.acquire()
                self._asleep = False
                if self._stop.acquire(timeout=pause or PATIENCE):
                    return
                self.armed, pause = False, 0.0
                with suppress(Exception):
                    pause = self._flush()
                    if pause:
                        self.armed = True
        finally:
            self._gone.release()
