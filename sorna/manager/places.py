"""Where the kernels are: found together with the access key, in this one place, and remembered for the next request.

Knows no door. A kernel never changes its agent or its owner, so that what was found once stays right until the kernel ends;
its agent knows best when that is, and answers a call for a kernel that it does not hold with KernelNotFound. Announcements
only keep the memory small. Queries of remembered kernels are counted in memory and written a moment later.
"""

from __future__ import annotations

import uuid
from collections import OrderedDict

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from sorna.errors import KernelNotFound, SornaError, Unavailable
from sorna.manager.events import KERNEL_TOPIC, read_announcement
from sorna.manager.interfaces import AgentDirectory, Announcements, KernelPlace, KernelStore, LiveKernels
from sorna.model.kernel import Kernel, parse_kernel_id

MAX_REMEMBERED = 20_000
# Seconds until counted queries are written, those of many requests together: soon enough for a statistic, and so late that
# a kernel in use is written about a few times a second and not with every query.
COUNT_DELAY = 0.25


@define(eq=False)
class Places:
    """Finds live kernels of an owner; no method ever finds another owner's.

    :ivar most: references that are remembered.
    """

    clock: IReactorTime
    kernels: KernelStore
    live: LiveKernels
    directory: AgentDirectory
    most: int = MAX_REMEMBERED
    _known: OrderedDict[tuple[str, str], KernelPlace] = field(factory=OrderedDict)
    _references: dict[uuid.UUID, set[tuple[str, str]]] = field(factory=dict)
    _queries: dict[uuid.UUID, int] = field(factory=dict)

    _log = Logger()

    async def find(self, access_key: str, reference: str, *, count: bool = True) -> KernelPlace:
        """Find a kernel and count the query; its figures may be old.

        :raises KernelNotFound: the owner has no such live kernel; says what is known of its end.
        :raises Unavailable: its agent gives no sign of life, and it is not known yet whether the kernel has ended.
        """
        known = self._known.get((access_key, reference))
        if known is None:
            return await self.look(access_key, reference, count=count)
        if count:
            if not self._queries:
                self.clock.callLater(COUNT_DELAY, self._write_later)
            self._queries[known.kernel_id] = self._queries.get(known.kernel_id, 0) + 1
        return known

    async def look(self, access_key: str, reference: str, *, count: bool = True) -> KernelPlace:
        """Find a kernel as it is now, with the figures of its agent's last heartbeat; fails as :meth:`find` does."""
        await self.write_queries()
        place = await self.live.use(access_key, reference, count=count)
        if place is None:
            place = await self._written_again(access_key, reference, count=count)
        self._remember(access_key, reference, place)
        return place

    async def row(self, access_key: str, reference: str) -> Kernel | None:
        """Find the row of a kernel of an owner, whether it lives or not."""
        kernel_id = parse_kernel_id(reference)
        if kernel_id is not None:
            kernel = await self.kernels.by_id(kernel_id)
            if kernel is not None and kernel.access_key == access_key:
                return kernel
        return await self.kernels.last_by_token(access_key, reference)

    def forget(self, kernel_id: uuid.UUID) -> bool:
        """Forget where a kernel was; tell whether that was known."""
        references = self._references.pop(kernel_id, set())
        for reference in references:
            del self._known[reference]
        return bool(references)

    def forget_all(self) -> None:
        """Forget everything, because announcements may have been missed."""
        self._known.clear()
        self._references.clear()

    def listen(self, announcements: Announcements) -> None:
        """Forget kernels when it is announced that they end, for as long as the process lives."""
        announcements.subscribe(KERNEL_TOPIC, self._heard)

    async def write_queries(self) -> None:
        """Write the queries that were counted; a statistic that cannot be written is given up, for nothing depends on it."""
        queries, self._queries = self._queries, {}
        if not queries:
            return
        try:
            await self.live.count(queries)
        except SornaError as error:
            self._log.debug("queries of {count} kernels were not counted: {error}", count=len(queries), error=error)

    def _write_later(self) -> None:
        Deferred.fromCoroutine(self.write_queries()).addErrback(
            lambda failure: self._log.failure("queries could not be counted", failure)
        )

    def _heard(self, text: str) -> None:
        event = read_announcement(text)
        if event is not None and event.status.final:
            self.forget(event.kernel_id)

    def _remember(self, access_key: str, reference: str, place: KernelPlace) -> None:
        key = (access_key, reference)
        before = self._known.pop(key, None)
        if before is not None and before.kernel_id != place.kernel_id:
            self._drop(key, before)
        self._known[key] = place
        self._references.setdefault(place.kernel_id, set()).add(key)
        if len(self._known) > self.most:
            self._drop(*self._known.popitem(last=False))

    def _drop(self, key: tuple[str, str], place: KernelPlace) -> None:
        references = self._references[place.kernel_id]
        references.discard(key)
        if not references:
            del self._references[place.kernel_id]

    async def _written_again(self, access_key: str, reference: str, *, count: bool) -> KernelPlace:
        """Write what Redis lost (it may lose everything) again from the truth, if the kernel's agent still lives."""
        kernel = await self.row(access_key, reference)
        if kernel is None:
            raise KernelNotFound
        if not kernel.status.final and kernel.agent_id is not None:
            agent = await self.directory.find(kernel.agent_id)
            if agent is None:
                # Either it lives and says so in a moment, or the reaper writes down why the kernel has ended.
                raise Unavailable("The agent of this kernel gives no sign of life.")
            await self.live.add(kernel, agent.address)
            place = await self.live.use(access_key, reference, count=count)
            if place is not None:
                return place
        raise KernelNotFound(end_of(kernel))


def end_of(kernel: Kernel) -> str:
    """Say why a kernel that cannot be used cannot be used."""
    return f"{kernel.status.lower()}: {kernel.status_reason}" if kernel.status_reason else ""
