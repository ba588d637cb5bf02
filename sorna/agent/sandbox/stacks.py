"""Keeps one warm zygote per stack: starts it, hands it out when it is ready, starts it again when it dies.

Knows lives of zygotes and time; may not know kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from sorna.agent.sandbox.confined import ConfinedProcess
from sorna.agent.sandbox.launcher import ZygoteProcess
from sorna.errors import AgentFailed

READY_PATIENCE = 10.0
WARM_PATIENCE = 120.0  # a library that hangs while it is imported
_FIRST_DELAY = 0.1
_LONGEST_DELAY = 30.0
_HEALTHY_AFTER = 10.0


class Stack:
    """One stack's zygotes, one after another.

    :param make: builds the next life, not yet launched.
    """

    _log = Logger()

    def __init__(self, reactor: Any, name: str, make: Callable[[], ZygoteProcess]) -> None:
        self._reactor = reactor
        self._name = name
        self._make = make
        self._current: ZygoteProcess | None = None
        self._ready = False
        self._waiting: list[Deferred[ZygoteProcess]] = []
        self._delay = _FIRST_DELAY
        self._began = 0.0
        self._restart: Any = None
        self._stopping = False

    async def start(self) -> None:
        """Start the first life; returns when it is ready.

        :raises IsolationUnavailable, AgentFailed: it did not come up, and will not be tried again.
        """
        try:
            await self._launch()
        except BaseException:
            self._stopping = True
            raise

    @property
    def settled(self) -> bool:
        """Whether its zygote is warm and nothing is on its way to it."""
        return self._ready and self._current is not None and self._current.settled

    def carry(self) -> dict[str, Any]:
        """Give what another program needs to go on with the zygote; it must be settled. Nothing here goes on."""
        if self._current is None:
            raise BrokenPipeError("the zygote is gone")
        self._stopping = True
        return self._current.carry()

    def take_over(self, state: Mapping[str, Any], kernels: Mapping[str, ConfinedProcess]) -> None:
        """Go on with a zygote that another program has started, instead of starting one."""
        self._began = self._reactor.seconds()
        process = self._make()
        process.take_over(state, kernels)
        self._current = process
        process.ended.addCallback(self._over)
        process.ready.addErrback(lambda _failure: None)
        self._ready = True

    async def _launch(self) -> None:
        self._restart = None
        self._began = self._reactor.seconds()
        process = self._make()
        try:
            process.launch()
        except BaseException:
            self._over(None)
            raise
        self._current = process
        process.ended.addCallback(self._over)
        patience = self._reactor.callLater(WARM_PATIENCE, process.put_down)
        try:
            notes = await process.ready
        finally:
            if patience.active():
                patience.cancel()
        for note in notes:
            self._log.warn("zygote {stack}: {note}", stack=self._name, note=note)
        self._ready = True
        self._log.info(
            "zygote {stack} is warm after {seconds:.2f} s",
            stack=self._name,
            seconds=self._reactor.seconds() - self._began,
        )
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.callback(process)

    def _over(self, _result: None) -> None:
        self._current = None
        self._ready = False
        if self._stopping:
            return
        lived = self._reactor.seconds() - self._began
        self._delay = _FIRST_DELAY if lived > _HEALTHY_AFTER else min(self._delay * 2, _LONGEST_DELAY)
        self._log.error(
            "zygote {stack} died after {lived:.1f} s; the next one starts in {delay:.1f} s",
            stack=self._name,
            lived=lived,
            delay=self._delay,
        )
        self._restart = self._reactor.callLater(self._delay, self._again)

    def _again(self) -> None:
        Deferred.fromCoroutine(self._launch()).addErrback(
            lambda failure: self._log.error(
                "zygote {stack} did not come up: {error}", stack=self._name, error=failure.getErrorMessage()
            )
        )

    async def process(self) -> ZygoteProcess:
        """Give the zygote that is warm now, or the next one when it is in time.

        :raises AgentFailed: there is none within ``READY_PATIENCE`` seconds.
        """
        if self._ready and self._current is not None:
            return self._current
        if self._stopping:
            raise AgentFailed(f"The {self._name} stack is stopped.")
        waiting: Deferred[ZygoteProcess] = Deferred(self._waiting_cancelled)
        self._waiting.append(waiting)
        timer = self._reactor.callLater(READY_PATIENCE, self._too_late, waiting)
        try:
            return await waiting
        finally:
            if timer.active():
                timer.cancel()

    def _waiting_cancelled(self, waiting: Deferred[ZygoteProcess]) -> None:
        if waiting in self._waiting:
            self._waiting.remove(waiting)

    def _too_late(self, waiting: Deferred[ZygoteProcess]) -> None:
        if waiting in self._waiting:
            self._waiting.remove(waiting)
            waiting.errback(Failure(AgentFailed(f"The {self._name} stack is being restarted.")))

    async def stop(self) -> None:
        """End the zygote and its kernels; nothing of them is left when this returns."""
        self._stopping = True
        self._ready = False
        if self._restart is not None and self._restart.active():
            self._restart.cancel()
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.errback(Failure(AgentFailed(f"The {self._name} stack is stopped.")))
        if self._current is not None:
            gone: Deferred[None] = Deferred()
            self._current.ended.addCallback(gone.callback)
            self._current.end()
            await gone
