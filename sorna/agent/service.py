"""The agent as a service: brings its parts up in order, and down in reverse, each within a bound.

Knows the parts only by what it asks of them. Detection comes first, because the isolation tier has to know which paths
outside the system kernels must read; then the tier, then the link, and only then heartbeats: an agent is announced when it
can serve. Losing the heartbeat store later ends nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from attrs import frozen
from twisted.application.service import IService, Service
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from sorna.agent.detection import Detection
from sorna.agent.heartbeat import Heart
from sorna.agent.interfaces import Sandbox
from sorna.agent.kernels import Kernels
from sorna.agent.pool import Pool
from sorna.agent.sharing import Shared
from sorna.errors import IsolationUnavailable

START_DEADLINE = 60.0
DRAIN_DEADLINE = 20.0
STEP_DEADLINE = 5.0
# Ready before the first request: of this runtime, so many.
FIRST_RUNTIME = "python3"
KEPT_READY = 4


@frozen
class AgentParts:
    """What an agent is made of.

    :ivar link: the server of the managers' link; it must raise from ``startService`` when it cannot listen.
    :ivar take_over: goes on with the sandbox and the kernels that the program before this one has left, in place of the
        sandbox's start; None where there was none.
    """

    sandbox: Sandbox
    pool: Pool
    kernels: Kernels
    link: IService
    heart: Heart
    take_over: Callable[[], Awaitable[None]] | None = None


class AgentService(Service):
    """The agent.

    :param detect: finds out what this host offers.
    :param assemble: makes the parts, once it is known what the host offers; wires, and starts nothing.
    :param on_failure: called when the agent cannot start, with the reason; everything is down again by then.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        detect: Callable[[], Awaitable[Detection]],
        assemble: Callable[[Detection], AgentParts],
        on_failure: Callable[[Exception], None],
    ) -> None:
        self._reactor = reactor
        self._detect = detect
        self._assemble = assemble
        self._on_failure = on_failure
        self._starting: Deferred[None] | None = None
        self._attempt: Deferred[None] | None = None
        self._ready: Shared[None] = Shared()
        self._undo: list[tuple[str, float, Callable[[], Deferred[object]]]] = []

    def startService(self) -> None:
        """Begin to start; :meth:`when_ready` tells when it is done."""
        super().startService()
        self._starting = Deferred.fromCoroutine(self._start_or_fail())

    def when_ready(self) -> Deferred[None]:
        """Give a Deferred that fires when managers know of this agent, or fails as the start does."""
        return self._ready.join()

    def stopService(self) -> Deferred[None]:
        """Take everything down in reverse order; what hangs is left after its bound, with a line in the log."""
        super().stopService()

        async def stop() -> None:
            if self._starting is not None:
                if self._attempt is not None:
                    self._attempt.cancel()
                await self._starting
            await self._take_down()

        return Deferred.fromCoroutine(stop())

    async def _start_or_fail(self) -> None:
        self._attempt = Deferred.fromCoroutine(self._start()).addTimeout(START_DEADLINE, self._reactor)
        try:
            await self._attempt
        except Exception as error:  # noqa: BLE001 - whatever went wrong, what was started is stopped and somebody is told
            await self._failed(error)
        self._attempt = None

    async def _start(self) -> None:
        parts = self._assemble(await self._detect())
        self._undo.append(("sandbox", STEP_DEADLINE, lambda: Deferred.fromCoroutine(parts.sandbox.stop())))
        await (parts.sandbox.start() if parts.take_over is None else parts.take_over())
        parts.pool.start(FIRST_RUNTIME, KEPT_READY)
        self._undo.append(("kernels kept ready", DRAIN_DEADLINE, lambda: Deferred.fromCoroutine(parts.pool.stop())))
        parts.link.startService()
        self._undo.append(("link", STEP_DEADLINE, lambda: maybeDeferred(parts.link.stopService)))
        # Ended before the link is, so that calls which wait on a run get their last answer.
        self._undo.append(("kernels", DRAIN_DEADLINE, lambda: Deferred.fromCoroutine(parts.kernels.stop())))
        parts.heart.start()
        self._undo.append(("heartbeats", STEP_DEADLINE, lambda: Deferred.fromCoroutine(parts.heart.stop())))
        self._log.info(
            "the agent serves {runtimes} runtimes, isolated by {isolation}",
            runtimes=len(parts.kernels.runtimes),
            isolation=parts.sandbox.name,
        )
        self._ready.succeed(None)

    async def _failed(self, error: Exception) -> None:
        await self._take_down()
        if isinstance(error, CancelledError):
            self._ready.fail(RuntimeError("the agent was stopped while it started"))
            return
        if isinstance(error, IsolationUnavailable):
            self._log.critical("the agent cannot isolate kernels: {detail}", detail=error.detail)
        else:
            self._log.critical("the agent cannot start: {error!r}", error=error)
        self._ready.fail(error)
        self._on_failure(error)

    async def _take_down(self) -> None:
        while self._undo:
            name, bound, undo = self._undo.pop()
            step = undo().addTimeout(bound, self._reactor)
            try:
                await step
            except DeferredTimeout:
                self._log.error("{part} did not stop within {bound:g} seconds", part=name, bound=bound)
            except Exception:  # noqa: BLE001 - the other parts still have to be stopped
                self._log.failure("{part} did not stop as it should", part=name)
