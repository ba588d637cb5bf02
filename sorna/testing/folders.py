"""Virtual folders for tests: rows in memory, content in a directory that goes with the test, and no threads."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime

from sorna.beneath.storage_root import prepare_root
from sorna.folders.storage import DiskFolders
from sorna.manager.entitlements import Entitlements
from sorna.manager.folders import Folders
from sorna.manager.transfers import Transfers
from sorna.model.folder import FolderBounds
from sorna.model.kernel import Kernel
from sorna.model.keypair import Keypair
from sorna.store.memory import MemoryKernels, MemoryKeypairs, MemoryReports
from sorna.store.memory_folders import MemoryFolders
from sorna.testing import gateway

T = TypeVar("T")

BOUNDS = FolderBounds(files=50, size=2 * 1024 * 1024)
MOST = 3


class Cleaned(Protocol):
    """What tidies up at its end, as every test does."""

    def addCleanup(self, function: Callable[..., Any], /) -> object:
        """Call this at the end."""
        ...


def at_once(function: Callable[..., T], *arguments: Any) -> Deferred[T]:
    """Stand in for a thread."""
    return maybeDeferred(function, *arguments)


async def _never(kernel: Kernel, reason: str) -> None:
    message = f"{kernel.id} is to end: {reason}"
    raise AssertionError(message)


def memory_folders(
    test: Cleaned,
    clock: IReactorTime,
    *keypairs: Keypair,
    bounds: FolderBounds = BOUNDS,
    kernels: MemoryKernels | None = None,
    end: Callable[[Kernel, str], Awaitable[object]] = _never,
) -> tuple[Folders, Transfers]:
    """Give what answers about folders, for a few keypairs.

    :param kernels: those that see folders; none where it is not given.
    :param end: ends one of them.
    """
    directory = tempfile.TemporaryDirectory(prefix="sorna-folders-")
    test.addCleanup(directory.cleanup)
    root = Path(directory.name)
    storage = DiskFolders(root, prepare_root(root), at_once)
    known = gateway.MemoryKeypairs(*keypairs)
    stored = MemoryKeypairs(keypairs)
    kernels = MemoryKernels(stored) if kernels is None else kernels
    store = MemoryFolders(stored, kernels)
    entitlements = Entitlements(store, MemoryReports(kernels, stored), end)
    folders = Folders(clock, store, storage, known, entitlements, bounds, MOST)
    return folders, Transfers(clock, known, folders)
