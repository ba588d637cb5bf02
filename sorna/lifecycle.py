"""How the parts of a process start in order, say when they are ready, and stop in reverse; knows no part by name."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from twisted.application.service import MultiService, Service
from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred
from twisted.internet.error import ReactorNotRunning
from twisted.internet.interfaces import IReactorCore, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from sorna.errors import Unavailable

T = TypeVar("T")


class OrderedServices(MultiService):
    """Services that start in the order they were added and stop one after another in reverse.

    :param stop_timeout: seconds that one child may take to stop; then its stop is given up, loudly, and the next one's turn
        comes, because ``twistd`` itself waits without a limit.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, stop_timeout: float = 20.0) -> None:
        super().__init__()
        self._clock = clock
        self._stop_timeout = stop_timeout

    def stopService(self) -> Deferred[None]:
        """Stop the children; an error of one is logged and keeps none of the others running."""
        Service.stopService(self)
        return Deferred.fromCoroutine(self._stop_in_reverse())

    async def _stop_in_reverse(self) -> None:
        for child in reversed(list(self)):
            stopping = maybeDeferred(child.stopService)
            stopping.addTimeout(self._stop_timeout, self._clock)
            with self._log.failuresHandled("while stopping {child}", child=type(child).__name__):
                await stopping


class Readiness:
    """Whether the process can serve, and if not, why; every part that must come up first is registered by name."""

    def __init__(self) -> None:
        self._waiting: dict[str, str] = {}

    def expect(self, part: str, why: str) -> None:
        """Note that ``part`` is not up yet (or is down again), with a short reason that holds no secret."""
        self._waiting[part] = why

    def arrived(self, part: str) -> None:
        """Note that ``part`` is up."""
        self._waiting.pop(part, None)

    @property
    def is_ready(self) -> bool:
        """Whether nothing is waited for."""
        return not self._waiting

    @property
    def reason(self) -> str:
        """What is waited for, as one line; empty when ready."""
        return "; ".join(f"{part}: {why}" for part, why in sorted(self._waiting.items()))


class OperationsStopped(Unavailable):
    """The process is stopping and takes on no new work."""


class Operations:
    """Work that must finish although the request that asked for it is gone; drained at stop."""

    _log = Logger()

    def __init__(self) -> None:
        self._running: set[Deferred[Any]] = set()
        self._idle: list[Deferred[None]] = []
        self._stopped = False

    def detach(self, work: Coroutine[Any, Any, T]) -> Deferred[T]:
        """Start ``work`` and give a new Deferred with its result.

        Cancelling the new Deferred gives up waiting and leaves the work alone; an error that nobody waits for any more is
        logged. Once draining has begun, new work fails with :class:`OperationsStopped`.
        """
        if self._stopped:
            work.close()
            return fail(OperationsStopped("The server is stopping."))
        running = Deferred.fromCoroutine(work)
        waiting: Deferred[T] = Deferred()
        self._running.add(running)

        def done(result: T | Failure) -> None:
            self._running.discard(running)
            if not waiting.called:
                waiting.callback(result)
            elif isinstance(result, Failure) and not result.check(CancelledError):
                self._log.failure("detached work failed after its caller had gone", result)
            if not self._running:
                idle, self._idle = self._idle, []
                for one in idle:
                    one.callback(None)

        running.addBoth(done)
        return waiting

    def drain(self) -> Deferred[None]:
        """Refuse new work and give a Deferred that fires when nothing runs any more."""
        self._stopped = True
        drained: Deferred[None] = Deferred()
        if self._running:
            self._idle.append(drained)
        else:
            drained.callback(None)
        return drained


def settle_memory() -> None:
    """Keep what a start has made (code, routes, schemas) out of every later garbage collection.

    A full collection goes through all objects that may be part of a cycle and stops the reactor meanwhile: with all that is
    imported by then, for about 80 milliseconds.
    """
    gc.collect()
    gc.freeze()


def fail_process(reactor: IReactorCore, message: str, status: int = 1) -> None:
    """Say why the process cannot go on, stop it in order, and let it end with ``status``.

    Only the first reason counts: what fails after it fails because of it. ``twistd`` itself ends with 0 whenever the reactor
    stopped without a signal, also after a failed start; so the status is set by the very last thing the interpreter does.
    """
    if getattr(fail_process, "called", False):
        return
    fail_process.called = True  # type: ignore[attr-defined]  # one process, one end
    stderr = sys.__stderr__
    if stderr is not None:
        stderr.write(f"sorna: {message}\n")
        stderr.flush()
    atexit.register(_end_with, status)
    if reactor.running:
        with suppress(ReactorNotRunning):  # it is stopping already
            reactor.stop()
    else:
        reactor.callWhenRunning(reactor.stop)


def stop_process(reactor: IReactorCore) -> None:
    """Stop the process in order, because its work is done; it ends with status 0."""
    with suppress(ReactorNotRunning):  # it is stopping already
        reactor.stop()


def _end_with(status: int) -> None:
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None:
            stream.flush()
    os._exit(status)


class Draining(Service):
    """The service that waits for detached work at stop."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    def stopService(self) -> Deferred[None]:
        """Wait for all detached work."""
        super().stopService()
        return self._operations.drain()
