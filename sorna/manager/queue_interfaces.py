"""What the manager needs for kernels that wait for an agent, as a Protocol; ``store`` implements it."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from sorna.model.kernel import Kernel, KernelSpec
from sorna.model.queue import QueueBounds, QueuePlace, Waiting


class KernelQueue(Protocol):
    """Kernels that wait for an agent, in the order of :mod:`sorna.model.queue`, one line for all managers."""

    async def put(
        self, kernel_id: uuid.UUID, spec: KernelSpec, deadline: float, now: float, bounds: QueueBounds
    ) -> Kernel | None:
        """Let a PREPARING kernel wait, in status PENDING; None when it is not PREPARING any more.

        :raises QueueFull: as many wait as may; nothing is changed.
        """
        ...

    async def put_back(self, kernel_id: uuid.UUID, now: float) -> Kernel | None:
        """Let a PREPARING kernel that has waited before wait on in its old place; None when it has not, or its time is over."""
        ...

    async def waiting(self, limit: int) -> Sequence[Waiting]:
        """List kernels that wait, in order."""
        ...

    async def overdue(self, now: float, limit: int) -> Sequence[uuid.UUID]:
        """List kernels that wait although their time is over."""
        ...

    async def places(self, kernel_ids: Collection[uuid.UUID]) -> Mapping[uuid.UUID, QueuePlace]:
        """Tell where those of these kernels stand that wait; one statement."""
        ...
