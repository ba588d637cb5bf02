"""How a kernel ends, whoever ends it: the truth first, then the effect, then every trace of it removed.

Knows no door. Ending is idempotent from every status, and quota and usage are settled exactly once, by the store.
"""

from __future__ import annotations

import uuid

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from sorna.errors import KernelNotFound
from sorna.manager.events import KERNEL_TOPIC, announcement_of
from sorna.manager.interfaces import (
    AgentDirectory,
    AgentLink,
    Announcements,
    KernelEnded,
    KernelStore,
    LiveKernels,
)
from sorna.model.kernel import Kernel, KernelStatus, Usage, short_id


@frozen
class Ending:
    """Ends kernels."""

    clock: IReactorTime
    kernels: KernelStore
    live: LiveKernels
    directory: AgentDirectory
    link: AgentLink
    announcements: Announcements

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
                raise KernelNotFound
            if changed.status.final:
                return changed.usage
        usage = await self._effect(changed)
        ended = await self.finish(kernel.id, changed.status_reason, usage)
        return ended.usage if ended is not None else Usage()

    async def finish(self, kernel_id: uuid.UUID, reason: str, usage: Usage | None) -> Kernel | None:
        """Write the final status with the usage and remove every live trace; harmless when that was done already."""
        place_queries = await self._queries(kernel_id)
        now = self.clock.seconds()
        ended = await self.kernels.change_status(
            kernel_id, KernelStatus.TERMINATED, reason, now, usage=usage, num_queries=place_queries
        )
        kernel = ended or await self.kernels.by_id(kernel_id)
        if kernel is not None and kernel.status.final:
            await self.live.forget(kernel)
        if ended is not None:
            self._log.info("kernel {kernel_id} ended: {reason}", kernel_id=short_id(kernel_id), reason=reason)
            await self.announce(ended)
        return kernel

    async def lost(self, kernel_id: uuid.UUID, reason: str) -> None:
        """Write the end of a kernel that its agent does not hold (any more)."""
        await self.finish(kernel_id, reason, None)

    async def on_kernel_ended(self, ended: KernelEnded) -> None:
        """Take an agent's news; the agent repeats it until this returns."""
        await self.finish(ended.kernel_id, ended.reason, ended.usage)

    async def announce(self, kernel: Kernel) -> None:
        """Tell whoever waits, in any manager; an announcement that fails is only logged, because waiting has a deadline."""
        with self._log.failuresHandled("while announcing a change of {kernel_id}", kernel_id=short_id(kernel.id)):
            await self.announcements.publish(KERNEL_TOPIC, announcement_of(kernel))

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

    async def _queries(self, kernel_id: uuid.UUID) -> int | None:
        kernel = await self.kernels.by_id(kernel_id)
        if kernel is None or kernel.status.final:
            return None
        place = await self.live.use(kernel.access_key, short_id(kernel_id), count=False)
        return place.num_queries if place is not None else None
