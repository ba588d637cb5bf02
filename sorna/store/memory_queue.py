"""The queue of kernels in memory, for tests of the rooms above; held to the same contract suite as the real one."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence

from attrs import evolve

from sorna.model.kernel import Kernel, KernelSpec, KernelStatus
from sorna.model.queue import QueueBounds, QueuePlace, Waiting, next_turn
from sorna.store import rows
from sorna.store.memory import MemoryKernels
from sorna.store.queue import require_room


class MemoryQueue:
    """What is kept of kernels that wait, or have waited, beside their rows in ``kernels``."""

    def __init__(self, kernels: MemoryKernels) -> None:
        self._kernels = kernels
        self._wishes: dict[uuid.UUID, Waiting] = {}

    async def put(
        self, kernel_id: uuid.UUID, spec: KernelSpec, deadline: float, now: float, bounds: QueueBounds
    ) -> Kernel | None:
        """Let a PREPARING kernel wait."""
        rows.require_storable((*spec.labels, *spec.labels.values()))
        waiting = self._waiting()
        mine = [one for one in waiting if one.kernel.access_key == spec.access_key]
        require_room(len(waiting), len(mine), bounds)
        had = [one.turn for one in self._wishes.values() if one.kernel.access_key == spec.access_key]
        turn = next_turn(min((one.turn for one in waiting), default=None), max(had, default=None), now)
        kernel = self._kernels.wait(kernel_id, now)
        if kernel is not None:
            self._wishes[kernel_id] = Waiting(kernel, spec, turn, rows.to_microseconds(deadline))
        return kernel

    async def put_back(self, kernel_id: uuid.UUID, now: float) -> Kernel | None:
        """Let a kernel that has waited before wait on."""
        known = self._wishes.get(kernel_id)
        return None if known is None or known.deadline <= now else self._kernels.wait(kernel_id, now)

    async def waiting(self, limit: int) -> Sequence[Waiting]:
        """List kernels that wait, in order."""
        return self._waiting()[:limit]

    async def overdue(self, now: float, limit: int) -> Sequence[uuid.UUID]:
        """List kernels that wait although their time is over."""
        return sorted(one.kernel.id for one in self._waiting() if one.deadline <= now)[:limit]

    async def places(self, kernel_ids: Collection[uuid.UUID]) -> Mapping[uuid.UUID, QueuePlace]:
        """Tell where kernels stand."""
        return {
            one.kernel.id: QueuePlace(position, one.deadline)
            for position, one in enumerate(self._waiting(), 1)
            if one.kernel.id in kernel_ids
        }

    def _waiting(self) -> list[Waiting]:
        now = {kernel.id: kernel for kernel in self._kernels.all() if kernel.status is KernelStatus.PENDING}
        found = [evolve(one, kernel=now[one.kernel.id]) for one in self._wishes.values() if one.kernel.id in now]
        return sorted(found, key=lambda one: (one.turn, one.kernel.created_at, one.kernel.id))
