"""A store of kernels whose database may crash, for tests of what is built on it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

from sorna.model.kernel import Kernel, KernelSpec, KernelStatus
from sorna.store.kernels import UNDER_WAY
from sorna.store.memory import MemoryKernels, MemoryKeypairs


class CrashingKernels(MemoryKernels):
    """Undoes in a crash everything that may be; see Note [What a crash may undo] in ``sorna/store/kernels.py``."""

    def __init__(self, keypairs: MemoryKeypairs) -> None:
        super().__init__(keypairs)
        self._not_on_disk: list[Callable[[], object]] = []

    async def reserve(self, kernel_id: uuid.UUID, spec: KernelSpec, now: float) -> tuple[Kernel, bool]:
        """Reserve; a crash takes the row away and gives its place of the quota back."""
        kernel, made = await super().reserve(kernel_id, spec, now)
        if made:
            self._not_on_disk.append(partial(self._lose, kernel))
        return kernel, made

    async def change_status(self, kernel_id: uuid.UUID, after: KernelStatus, *rest: Any, **more: Any) -> Kernel | None:
        """Change a status; a lasting change takes along everything before it."""
        before = self._kernels.get(kernel_id)
        changed = await super().change_status(kernel_id, after, *rest, **more)
        if changed is not None and before is not None:
            if after in UNDER_WAY:
                self._not_on_disk.append(partial(self._kernels.__setitem__, kernel_id, before))
            else:
                self._not_on_disk.clear()
        return changed

    def wait(self, kernel_id: uuid.UUID, now: float) -> Kernel | None:
        """Let a kernel wait, which lasts."""
        kernel = super().wait(kernel_id, now)
        if kernel is not None:
            self._not_on_disk.clear()
        return kernel

    def crash(self) -> None:
        """Be as if everything since the last lasting change had not been."""
        while self._not_on_disk:
            self._not_on_disk.pop()()

    def _lose(self, kernel: Kernel) -> None:
        del self._kernels[kernel.id]
        self._mounts.pop(kernel.id, None)
        self._keypairs.give_back(kernel)
