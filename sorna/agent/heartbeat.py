"""What the agent says of itself every few seconds, and soon after something changed.

Knows the store of heartbeats only as a :class:`~sorna.agent.interfaces.HeartbeatStore`. A store that does not answer ends
nothing: kernels go on, the outage is logged once, and the next beat tries again. Field names of the statistics are those of
the historic layout of Redis db 1.

Note [Figures]
~~~~~~~~~~~~~~
A beat tells which kernels there are, and comes soon after each change. Reading one kernel's figures costs more than all the rest of
a beat, so they are told at their own pace: every ``FIGURES`` seconds, and every ``QUIET_FIGURES`` of a kernel that nobody has used for
``QUIET`` seconds. What is not told stays in the store as it was.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping

from attrs import field, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from sorna.agent.deadlines import cancel
from sorna.agent.interfaces import HeartbeatStore
from sorna.agent.kernel import Kernel
from sorna.agent.kernels import Kernels
from sorna.model.agent import Capacity, Heartbeat, HostLoad
from sorna.model.kernel import Usage, short_id

INTERVAL = 3.0
# Kernels that come and go together are told of together. The managers count each in between, so that this need not be sooner.
DEBOUNCE = 0.2
FIGURES = 3.0
QUIET = 9.0
QUIET_FIGURES = 15.0
# Reading the counters of one kernel takes a fraction of a millisecond: this many per turn of the reactor.
KERNELS_PER_TURN = 8


@frozen
class AgentIdentity:
    """Who this agent is to its managers; the fields of :class:`~sorna.agent.interfaces.Heartbeat` that do not change.

    :ivar storage: tells the id of the folders' storage, which is known when the tier has started.
    :ivar load: tells what the host uses now.
    """

    agent_id: str
    incarnation: str
    endpoint: str
    public_key: str
    isolation: str
    capacity: Capacity = field(factory=Capacity)
    storage: Callable[[], str] = str
    labels: Mapping[str, str] = field(factory=dict)
    load: Callable[[], HostLoad | None] = lambda: None


def stats_of(kernel: Kernel, usage: Usage) -> Mapping[str, str]:
    """Give the statistics of one kernel as strings; what the host cannot tell is left out."""
    counters = {
        "mem_max_bytes": usage.mem_max_bytes,
        "mem_cur_bytes": usage.mem_cur_bytes,
        "net_rx_bytes": usage.net_rx_bytes,
        "net_tx_bytes": usage.net_tx_bytes,
        "io_read_bytes": usage.io_read_bytes,
        "io_write_bytes": usage.io_write_bytes,
        "io_max_scratch_size": usage.io_max_scratch_size,
        "io_cur_scratch_size": usage.io_cur_scratch_size,
    }
    limits = kernel.limits
    return {
        "cpu_used": f"{usage.cpu_used:.6f}",
        **{name: str(value) for name, value in counters.items() if value >= 0},
        "exec_timeout": f"{limits.execution_timeout:.12g}",
        "idle_timeout": f"{limits.idle_timeout:.12g}",
        "mem_limit": str(limits.memory // 1024),
        "num_queries": str(kernel.num_queries),
        "idle": f"{kernel.idle_for * 1000:.2f}",
    }


class Heart:
    """Beats at once, every ``interval`` seconds, and shortly after :meth:`soon`."""

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        store: HeartbeatStore,
        kernels: Kernels,
        identity: AgentIdentity,
        interval: float = INTERVAL,
    ) -> None:
        self._reactor = reactor
        self._store = store
        self._kernels = kernels
        self._identity = identity
        self._interval = interval
        self._timer: IDelayedCall | None = None
        self._beating: Deferred[None] | None = None
        self._again = False
        self._running = False
        self._failing = False
        self._told_at: dict[uuid.UUID, float] = {}

    def start(self) -> None:
        """Beat now, and go on."""
        self._running = True
        self._kernels.watch(self.soon)
        self._beat()

    def soon(self) -> None:
        """Beat within the next moments; many calls make one beat."""
        if not self._running:
            return
        if self._beating is not None:
            self._again = True
            return
        timer = self._timer
        if timer is not None and timer.active() and timer.getTime() - self._reactor.seconds() > DEBOUNCE:
            timer.reset(DEBOUNCE)

    def go_on(self) -> None:
        """Beat on after :meth:`outlive`, because there is more to live for."""
        if not self._running:
            self._running = True
            self._beat()

    async def outlive(self, interval: float) -> None:
        """Beat a last time, so that the agent counts as alive for two such intervals (seconds), and no more.

        :raises SornaError: the store does not take it.
        """
        self._running = False
        cancel(self._timer)
        if self._beating is not None:
            self._beating.cancel()
        await Deferred.fromCoroutine(self._beat_once(interval)).addTimeout(self._interval, self._reactor)

    async def stop(self) -> None:
        """Beat no more, and say good-bye if the store answers."""
        self._running = False
        cancel(self._timer)
        if self._beating is not None:
            self._beating.cancel()
        leaving: Deferred[None] = Deferred.fromCoroutine(self._store.leave(self._identity.agent_id))
        leaving.addTimeout(self._interval, self._reactor)
        try:
            await leaving
        except Exception as error:  # noqa: BLE001 - stopping goes on whatever the store's trouble is
            self._log.warn("no good-bye to the heartbeat store: {error!r}", error=error)

    def _beat(self) -> None:
        self._timer = None
        self._again = False
        beating = self._beating = Deferred.fromCoroutine(self._beat_once())
        # A beat that hangs must not outlive the key it renews.
        beating.addTimeout(self._interval, self._reactor)
        beating.addBoth(self._beaten)

    def _beaten(self, result: object) -> None:
        self._beating = None
        error = getattr(result, "value", None)
        if error is not None and not isinstance(error, CancelledError):
            if not self._failing:
                kind = "no answer" if isinstance(error, DeferredTimeout) else repr(error)
                self._log.error("heartbeats fail from now on: {error}", error=kind)
            self._failing = True
        elif self._failing:
            self._failing = False
            self._log.info("heartbeats succeed again")
        if self._running:
            self._timer = self._reactor.callLater(DEBOUNCE if self._again else self._interval, self._beat)

    async def _beat_once(self, interval: float | None = None) -> None:
        stats: dict[str, Mapping[str, str]] = {}
        due = self._due()
        for number, (kernel_id, kernel) in enumerate(due):
            if number and number % KERNELS_PER_TURN == 0:
                await deferLater(self._reactor, 0)
            stats[short_id(kernel_id)] = stats_of(kernel, kernel.usage())
        identity = self._identity
        live = frozenset(short_id(kernel_id) for kernel_id in self._kernels.live())
        beat = Heartbeat(
            agent_id=identity.agent_id,
            incarnation=identity.incarnation,
            endpoint=identity.endpoint,
            public_key=identity.public_key,
            runtimes=frozenset(self._kernels.runtimes),
            kernels=live,
            max_kernels=self._kernels.max_kernels,
            isolation=identity.isolation,
            capacity=identity.capacity,
            storage=identity.storage(),
            load=identity.load(),
            stats={name: one for name, one in stats.items() if name in live},
            room=self._kernels.room,
            taken=self._kernels.taken,
            labels=identity.labels,
            refuses_kernels=self._kernels.draining,
        )
        await self._store.beat(beat, self._interval if interval is None else interval)
        now = self._reactor.seconds()
        told = {kernel_id for kernel_id, _kernel in due}
        self._told_at = {one: now if one in told else self._told_at.get(one, now) for one in self._kernels.live()}

    def _due(self) -> list[tuple[uuid.UUID, Kernel]]:
        """List the kernels whose figures are to be told; see Note [Figures]."""
        now = self._reactor.seconds()
        due = []
        for kernel_id, kernel in self._kernels.live().items():
            told_at = self._told_at.get(kernel_id)
            every = FIGURES if kernel.idle_for < QUIET else QUIET_FIGURES
            if told_at is None or now - told_at >= every:
                due.append((kernel_id, kernel))
        return due
