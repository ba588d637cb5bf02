"""How a kernel ends, whoever ends it: the truth first, then the effect, then every trace of it removed.

Knows no door. Ending is idempotent from every status, and quota and usage are settled exactly once, by the store.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Mapping

from attrs import field, fields, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from sorna.errors import KernelNotFound, Unavailable
from sorna.manager.events import KernelEvents
from sorna.manager.interfaces import (
    AgentDirectory,
    AgentLink,
    KernelEnded,
    KernelPlace,
    KernelStore,
    LiveKernels,
)
from sorna.model.kernel import Kernel, KernelStatus, Usage, short_id

MOST_UNFORGOTTEN = 1000


@frozen
class Ending:
    """Ends kernels."""

    clock: IReactorTime
    kernels: KernelStore
    live: LiveKernels
    directory: AgentDirectory
    link: AgentLink
    events: KernelEvents
    # What is lost of this by its bound, or with the process, the reaper finds: see Note [What nobody remembers] there.
    _unforgotten: deque[Kernel] = field(factory=lambda: deque(maxlen=MOST_UNFORGOTTEN), init=False)

    _log = Logger()

    async def destroy(self, kernel: Kernel, reason: str) -> Usage:
        """End a kernel and give what it used.

        :raises AgentError: the agent did not do it; the kernel stays TERMINATING and the reaper tries again.
        :raises KernelNotFound: it has ended meanwhile and nothing is known of its usage.
        """
        now = self.clock.seconds()
        changed = await self.kernels.change_status(kernel.id, KernelStatus.TERMINATING, reason, now)
        if changed is None:
            changed = await self.kernels.by_id(kernel.id)
            if changed is None:
                await self.forget(kernel)
                raise KernelNotFound
            if changed.status.final:
                return changed.usage
        return await self._end(changed)

    async def destroy_of(self, access_key: str, kernel_id: uuid.UUID, reason: str) -> Usage | None:
        """End a kernel of an owner without looking at it first; None when the owner has none of this id that can be ended.

        :raises AgentError: as :meth:`destroy` does.
        """
        changed = await self.kernels.change_status(
            kernel_id, KernelStatus.TERMINATING, reason, self.clock.seconds(), access_key=access_key
        )
        return None if changed is None else await self._end(changed)

    async def _end(self, kernel: Kernel) -> Usage:
        """End a TERMINATING kernel."""
        seen = Deferred.fromCoroutine(self._last_seen(kernel))
        usage = await self._effect(kernel)
        ended = await self._write_end(kernel, kernel.status_reason, usage, await seen)
        return ended.usage if ended is not None else Usage()

    async def finish(self, kernel_id: uuid.UUID, reason: str, usage: Usage | None) -> Kernel | None:
        """Write the final status with the usage and remove every live trace; harmless when that was done already.

        Redis is not needed for the truth: what it cannot be told to forget now it is told later.
        """
        kernel = await self.kernels.by_id(kernel_id)
        if kernel is None:
            return None
        if kernel.status.final:
            await self.forget(kernel)
            return kernel
        return await self._write_end(kernel, reason, usage, await self._last_seen(kernel))

    async def _write_end(
        self, before: Kernel, reason: str, usage: Usage | None, place: KernelPlace | None
    ) -> Kernel | None:
        """Do what :meth:`finish` does.

        :param before: its row as it was; a crash of PostgreSQL may have undone it since. :param place: the live entry that it had.
        """
        if place is not None and usage is None:
            usage = usage_of_figures(place.stats)  # its agent cannot tell any more, but has told until shortly before
        queries = None if place is None else place.num_queries
        now = self.clock.seconds()
        ended = await self.kernels.change_status(
            before.id, KernelStatus.TERMINATED, reason, now, usage=usage, num_queries=queries
        )
        kernel = ended or await self.kernels.by_id(before.id)
        if kernel is not None and not kernel.status.final:
            return kernel
        # Redis is asked for both at once, in this order. Whoever waits for the end waits until the live traces are gone, too: what
        # asks next may come to another process, and find none of them.
        forgotten = Deferred.fromCoroutine(self.forget(kernel or before))
        if ended is not None:
            self._log.info("kernel {kernel_id} ended: {reason}", kernel_id=short_id(ended.id), reason=reason)
            await self.announce(ended)
        await forgotten
        return kernel

    async def forget(self, kernel: Kernel) -> None:
        """Remove every live trace of a kernel that has ended; later, if Redis is away: its row will lead nobody back here."""
        try:
            await self.live.forget(kernel)
        except Unavailable as error:
            self._log.warn(
                "traces of {kernel_id} are removed later: {error}", kernel_id=short_id(kernel.id), error=error
            )
            self._unforgotten.append(kernel)

    async def forget_rest(self) -> None:
        """Have Redis forget what it could not be told to forget before; called regularly.

        :raises Unavailable: it still cannot.
        """
        while self._unforgotten:
            kernel = self._unforgotten[0]
            await self.live.forget(kernel)
            if self._unforgotten and self._unforgotten[0] is kernel:
                self._unforgotten.popleft()

    async def lost(self, kernel_id: uuid.UUID, reason: str) -> None:
        """Write the end of a kernel that its agent does not hold (any more)."""
        await self.finish(kernel_id, reason, None)

    async def on_kernel_ended(self, ended: KernelEnded) -> None:
        """Take an agent's news; the agent repeats it until this returns.

        What an agent holds of a kernel that was made on another one since, or is to be, says nothing of that one.
        """
        kernel = await self.kernels.by_id(ended.kernel_id)
        if kernel is not None and (
            kernel.status is KernelStatus.PENDING or kernel.agent_id not in {None, ended.agent_id}
        ):
            self._log.info(
                "agent {agent_id} has ended a double of {kernel_id}",
                agent_id=ended.agent_id,
                kernel_id=short_id(kernel.id),
            )
            return
        await self.finish(ended.kernel_id, ended.reason, ended.usage)

    async def announce(self, kernel: Kernel) -> None:
        """Tell whoever waits, in any manager."""
        with self._log.failuresHandled("while announcing a change of {kernel_id}", kernel_id=short_id(kernel.id)):
            await self.events.announce(kernel)

    def announce_later(self, kernel: Kernel) -> None:
        """Tell whoever waits, without letting anybody wait for that."""
        # What it logs is all that can go wrong with it.
        Deferred.fromCoroutine(self.announce(kernel))

    async def _effect(self, kernel: Kernel) -> Usage | None:
        if kernel.agent_id is None:
            return None
        agent = await self.directory.find(kernel.agent_id)
        if agent is None:
            # A dead agent has no kernels: nothing is left to destroy.
            return None
        try:
            return await self.link.destroy_kernel(agent.address, kernel.id, kernel.status_reason)
        except KernelNotFound:
            return None

    async def _last_seen(self, kernel: Kernel) -> KernelPlace | None:
        """Give the live entry of a kernel, with the figures of its agent's last heartbeats."""
        try:
            return await self.live.use(kernel.access_key, short_id(kernel.id), count=False)
        except Unavailable:
            return None  # a statistic; nothing depends on it


def usage_of_figures(figures: Mapping[str, str]) -> Usage | None:
    """Read the figures of a heartbeat; None where there are none yet, or something is no number."""
    try:
        sizes = {field.name: int(figures[field.name]) for field in fields(Usage)[1:] if field.name in figures}
        return Usage(cpu_used=float(figures["cpu_used"]), **sizes)
    except (KeyError, ValueError):
        return None
