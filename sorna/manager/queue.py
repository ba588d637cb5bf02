"""Kernels wait for an agent: put into a line that all managers share, served in order, given up at their deadline.

Knows no door. The order lives in PostgreSQL; whoever is woken first serves, and claims each kernel by a change of its status,
so that two managers never make the same one. Nothing is polled: a manager serves when a kernel has ended anywhere or an agent
tells that it can hold more; the reaper's look at all live kernels is the net below.

Note [Who may pass whom]
    Kernels are served in the order of the line. One that cannot be placed keeps to itself every agent that could hold it if it
    were empty, so that a large wish is not starved by small ones; those behind it may pass only to other agents. The
    same agents are closed to requests that do not wait: ``reserved``.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Coroutine, Mapping
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from sorna.errors import KernelCreationFailed, NoAgentAvailable, Unavailable
from sorna.manager.ending import Ending
from sorna.manager.events import KERNEL_TOPIC, read_announcement
from sorna.manager.interfaces import Announcements, KernelStore
from sorna.manager.placing import Placing
from sorna.manager.queue_interfaces import KernelQueue
from sorna.model.agent import AGENT_TOPIC, Agent
from sorna.model.kernel import Kernel, KernelSpec, KernelStatus, short_id
from sorna.model.placement import Demand
from sorna.model.queue import QueueBounds, QueuePlace

TIMEOUT = "queue-timeout"
# Kernels that are looked at in one round; the next round begins as soon as some of them are placed.
AT_ONCE = 200
# Seconds after its deadline until a kernel has surely been given up by the reaper of some manager.
MARGIN = 3.0

_WAITS = frozenset({KernelStatus.PENDING, KernelStatus.PREPARING})


@define(eq=False)
class Queue:
    """The line, as this manager serves it.

    :param demand: says what a specification needs of an agent.
    :param make: makes a claimed kernel on an agent, and puts it back into the line where that one is full.
    :ivar reserved: ids of agents that somebody who waits could use; see Note [Who may pass whom].
    """

    clock: IReactorTime
    kernels: KernelStore
    store: KernelQueue
    placing: Placing
    ending: Ending
    announcements: Announcements
    demand: Callable[[KernelSpec], Demand]
    make: Callable[[Kernel, KernelSpec, Agent], Coroutine[Any, Any, None]]
    bounds: QueueBounds = field(factory=QueueBounds)
    reserved: Collection[str] = ()
    _serving: Deferred[None] | None = None
    _again: bool = False
    _waited: bool = False
    _idle: list[Deferred[None]] = field(factory=list)
    _stopped: bool = False
    _making: set[Deferred[None]] = field(factory=set)
    _waiters: set[Deferred[None]] = field(factory=set)

    _log = Logger()

    def listen(self) -> None:
        """Serve whenever something is announced that may help, for as long as the process lives."""
        self.announcements.subscribe(KERNEL_TOPIC, self._heard)
        self.announcements.subscribe(AGENT_TOPIC, lambda _agent_id: self._wake_if_waited())

    def _heard(self, text: str) -> None:
        event = read_announcement(text)
        if event is not None and event.status.final:
            self._wake_if_waited()

    def _wake_if_waited(self) -> None:
        # Where nobody is known to wait there is nothing to do; who waits at another manager is that one's to serve.
        if self._waited or self._waiters:
            self.wake()

    async def put(self, kernel: Kernel, spec: KernelSpec, wait: float) -> Kernel:
        """Let a PREPARING kernel wait for at most ``wait`` seconds, and give it as it is then.

        :raises QueueFull: as many wait as may. :raises KernelCreationFailed: it was ended meanwhile.
        """
        now = self.clock.seconds()
        pending = await self.store.put(kernel.id, spec, now + min(wait, self.bounds.longest), now, self.bounds)
        if pending is None:
            raise KernelCreationFailed("The kernel was destroyed while it was being made.")
        self._log.info("kernel {kernel_id} waits for an agent", kernel_id=short_id(kernel.id))
        self.wake()
        return pending

    async def place_of(self, kernel_id: uuid.UUID) -> QueuePlace | None:
        """Tell where a kernel stands; None when it does not wait."""
        return (await self.places([kernel_id])).get(kernel_id)

    async def places(self, kernel_ids: Collection[uuid.UUID]) -> Mapping[uuid.UUID, QueuePlace]:
        """Tell where those of these kernels stand that wait."""
        return await self.store.places(kernel_ids)

    async def turn(self, kernel: Kernel, gone: Deferred[None] | None, *, mine: bool) -> Kernel:
        """Wait until a kernel runs.

        :param gone: fires when whoever waits has gone away; then a kernel that is ``mine`` waits no longer either.
        :raises NoAgentAvailable: its time is over. :raises KernelCreationFailed: it was ended, or could not be made.
        :raises Unavailable: this manager stops; the kernel waits on.
        """
        place = await self.place_of(kernel.id)
        until = MARGIN + (self.clock.seconds() if place is None else place.deadline)
        news: list[Deferred[None]] = [Deferred()]
        if gone is not None:
            gone.addCallback(lambda _gone: self._wake_waiter(news[0]))
        while True:
            news[0] = Deferred()
            self._waiters.add(news[0])
            unsubscribe = self.announcements.subscribe(KERNEL_TOPIC, lambda text: self._told(text, kernel.id, news[0]))
            try:
                # Looked at after subscribing: a change in between is seen by one or the other.
                now = await self.kernels.by_id(kernel.id)
                if now is None or now.status not in _WAITS:
                    return _outcome(now)
                if gone is not None and gone.called:
                    if mine and now.status is KernelStatus.PENDING:
                        await self.ending.destroy(now, "client-gone")
                    raise KernelCreationFailed("Whoever asked for the kernel has gone.")
                if self._stopped:
                    raise Unavailable("The server is stopping; the kernel waits on.")
                left = until - self.clock.seconds()
                if left <= 0:
                    raise Unavailable("Nobody knows what has become of the kernel.")
                news[0].addTimeout(left, self.clock)
                try:
                    await news[0]
                except DeferredTimeout:
                    continue
            finally:
                self._waiters.discard(news[0])
                unsubscribe()

    def _told(self, text: str, kernel_id: uuid.UUID, news: Deferred[None]) -> None:
        if text.startswith(short_id(kernel_id)):
            self._wake_waiter(news)

    @staticmethod
    def _wake_waiter(news: Deferred[None]) -> None:
        if not news.called:
            news.callback(None)

    # -- serving

    def wake(self) -> None:
        """Serve soon; while that goes on, once more afterwards."""
        if self._stopped:
            return
        if self._serving is not None:
            self._again = True
            return
        serving = self._serving = Deferred.fromCoroutine(self._serve())
        serving.addErrback(Failure.trap, Unavailable)  # the reaper wakes it again
        serving.addErrback(lambda failure: self._log.failure("serving those who wait", failure))
        serving.addCallback(self._served)

    def _served(self, _result: object) -> None:
        self._serving = None
        if self._again:
            self._again = False
            self.wake()
        else:
            idle, self._idle = self._idle, []
            for one in idle:
                self._wake_waiter(one)

    async def look(self) -> None:
        """Learn who waits now, and serve them; done when that is."""
        self.wake()
        if self._serving is not None:
            done: Deferred[None] = Deferred()
            self._idle.append(done)
            await done

    async def _serve(self) -> None:
        waiting = await self.store.waiting(AT_ONCE)
        now = self.clock.seconds()
        closed: set[str] = set()
        hopeless: set[Demand] = set()
        placed = 0
        for one in waiting:
            demand = self.demand(one.spec)
            if one.deadline <= now or demand in hopeless:
                continue
            try:
                agent = await self.placing.choose(one.kernel.id, demand, closed)
            except NoAgentAvailable:
                hopeless.add(demand)
                closed |= self.placing.could_hold(demand)
                continue
            placed += await self._claim(one.kernel, one.spec, agent)
        self._waited = len(waiting) > placed
        self.reserved = frozenset(closed)
        if placed and len(waiting) == AT_ONCE:
            self._again = True

    async def _claim(self, kernel: Kernel, spec: KernelSpec, agent: Agent) -> bool:
        claimed = None
        try:
            claimed = await self.kernels.change_status(
                kernel.id, KernelStatus.PREPARING, "placed", self.clock.seconds()
            )
        finally:
            if claimed is None:  # another manager has it, or it was destroyed
                self.placing.over(kernel.id, live=False)
        if claimed is not None:
            making = Deferred.fromCoroutine(self.make(claimed, spec, agent))
            self._making.add(making)
            making.addErrback(lambda failure: self._log.failure("making a kernel that has waited", failure))
            making.addCallback(lambda _result: self._making.discard(making))
        return claimed is not None

    # -- mending and stopping

    async def mend(self, *, waited: bool) -> None:
        """Give up those whose time is over, and serve the others; the reaper calls it again and again.

        :param waited: whether it has seen anybody who waits.
        """
        self._waited = waited
        if not waited:
            self.reserved = ()
            return
        now = self.clock.seconds()
        for kernel_id in await self.store.overdue(now, AT_ONCE):
            ended = await self.kernels.change_status(kernel_id, KernelStatus.ERROR, TIMEOUT, now)
            if ended is not None:
                self._log.info("kernel {kernel_id} has waited in vain", kernel_id=short_id(kernel_id))
                # A manager that died while it made the kernel, before it waited on, may have written an entry already.
                await self.ending.forget(ended)
                await self.ending.announce(ended)
        self.wake()

    async def anybody_waits(self) -> bool:
        """Tell whether there is a line at all. :raises Unavailable:."""
        return bool(await self.store.waiting(1))

    async def put_back(self, kernel_id: uuid.UUID) -> bool:
        """Let a kernel wait on whose maker is lost, or whose agent is full; False when it never waited or its time is over."""
        return await self.store.put_back(kernel_id, self.clock.seconds()) is not None

    async def stop(self) -> None:
        """Serve no more, let what is being made be finished, and send away who waits here: the kernels wait on."""
        self._stopped = True
        for news in tuple(self._waiters):
            self._wake_waiter(news)
        pending = [*self._making]
        if self._serving is not None:
            pending.append(self._serving)
        await DeferredList(pending)


def _outcome(kernel: Kernel | None) -> Kernel:
    """Give a kernel that runs, or say why it does not."""
    if kernel is None:
        raise KernelCreationFailed("The kernel is gone.")
    if not kernel.status.final and kernel.status is not KernelStatus.TERMINATING:
        return kernel
    if kernel.status_reason == TIMEOUT:
        raise NoAgentAvailable(f"No agent had room in time ({TIMEOUT}).")
    raise KernelCreationFailed(f"The kernel has ended while it waited: {kernel.status_reason}.")
