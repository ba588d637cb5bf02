"""Sees to it that kernels do not write more into a folder than it may hold.

A kernel writes to the disk itself, and Linux has no quota for a directory that would work on every file system. So what
kernels of this agent can write to is counted every :data:`INTERVAL` seconds, in a thread; when a folder holds too much,
every kernel that can write to it ends, with a reason. One file is bounded at once, by the kernel's own limit of file sizes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from sorna.agent.kernel import Kernel
from sorna.beneath.measuring import measure
from sorna.beneath.paths import DIRECTORY
from sorna.model.folder import FolderBounds, FolderUse, Mount

INTERVAL = 2.0
FULL = "folder-full"


class FolderWatch:
    """The folders that kernels of this agent can write to.

    :param in_thread: runs a function with its arguments outside of the reactor's thread.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, root: Path, in_thread: Callable[..., Deferred[Any]]) -> None:
        self._clock = clock
        self._root = root
        self._in_thread = in_thread
        self._writers: dict[str, list[Kernel]] = {}
        self._bounds: dict[str, FolderBounds] = {}
        self._timer: IDelayedCall | None = None

    def watch(self, kernel: Kernel, mounts: Sequence[Mount]) -> None:
        """Count what a kernel can write to, until it ends."""
        writable = [mount for mount in mounts if not mount.read_only]
        for mount in writable:
            self._writers.setdefault(mount.folder_id, []).append(kernel)
            self._bounds[mount.folder_id] = FolderBounds(mount.max_files, mount.max_size)
        if writable:
            kernel.when_ended().addBoth(lambda _ended: self._forget(kernel))
            if self._timer is None:
                self._timer = self._clock.callLater(INTERVAL, self._look)

    def carry(self, kernel: Kernel) -> Sequence[Sequence[Any]]:
        """Give what :meth:`watch` was told of a kernel, as plain values."""
        return [
            [folder_id, self._bounds[folder_id].files, self._bounds[folder_id].size]
            for folder_id, writers in self._writers.items()
            if kernel in writers
        ]

    def take_over(self, kernel: Kernel, state: Sequence[Sequence[Any]]) -> None:
        """Watch a kernel as another program did."""
        self.watch(kernel, [Mount(folder_id, folder_id, False, files, size) for folder_id, files, size in state])

    def _forget(self, kernel: Kernel) -> None:
        for folder_id, writers in list(self._writers.items()):
            if kernel in writers:
                writers.remove(kernel)
            if not writers:
                del self._writers[folder_id], self._bounds[folder_id]
        if not self._writers and self._timer is not None and self._timer.active():
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        looking = Deferred.fromCoroutine(self._look_once())
        looking.addErrback(lambda failure: self._log.failure("while counting what folders hold", failure))
        looking.addCallback(self._again)

    def _again(self, _result: object) -> None:
        self._timer = self._clock.callLater(INTERVAL, self._look) if self._writers else None

    async def _look_once(self) -> None:
        for folder_id, bounds in list(self._bounds.items()):
            use: FolderUse | None = await self._in_thread(_count, self._root / folder_id / "content", bounds)
            if use is not None and use.exceeds(bounds):
                for kernel in tuple(self._writers.get(folder_id, ())):
                    self._log.info(
                        "{kernel_id} ends: folder {folder_id} is full", kernel_id=kernel.id, folder_id=folder_id
                    )
                    kernel.end(FULL)


def _count(content: Path, bounds: FolderBounds) -> FolderUse | None:
    """Count a folder; None when it is gone."""
    try:
        directory = os.open(content, DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        return FolderUse(*measure(directory, bounds.files, bounds.size))
    finally:
        os.close(directory)
