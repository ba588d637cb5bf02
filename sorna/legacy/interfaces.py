"""What the ZeroMQ door needs from the manager, as Protocols; the same objects as the HTTP door is built on."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred

from sorna.manager.requests import Created, CreateRequest, KernelInfo
from sorna.model.kernel import Usage
from sorna.model.keypair import Keypair
from sorna.model.run import RunReply, RunRequest
from sorna.model.terminal import COLUMNS, ROWS, Terminal, TerminalViewer

T = TypeVar("T")


class Kernels(Protocol):
    """Kernels of one owner; :class:`sorna.manager.registry.Registry` says what each raises."""

    async def create(self, request: CreateRequest) -> Created:
        """Get or create."""
        ...

    async def info(self, access_key: str, reference: str) -> KernelInfo:
        """Describe a live kernel."""
        ...

    async def restart(self, access_key: str, reference: str) -> None:
        """Lose the in-memory state, keep the files."""
        ...

    async def destroy(self, access_key: str, reference: str, reason: str = "user-requested") -> Usage:
        """End a kernel; its processes are gone when this returns."""
        ...

    async def execute(self, access_key: str, reference: str, request: RunRequest) -> RunReply:
        """Start or continue a run."""
        ...

    async def lives(self, access_key: str, reference: str) -> bool:
        """Tell whether there is such a kernel, without counting a query."""
        ...

    async def open_terminal(
        self, access_key: str, reference: str, viewer: TerminalViewer, rows: int = ROWS, columns: int = COLUMNS
    ) -> Terminal:
        """Look at a kernel's terminal."""
        ...


class Keypairs(Protocol):
    """Keypairs, cached."""

    async def find(self, access_key: str) -> Keypair | None:
        """Give the keypair, active or not; changes are seen within a second."""
        ...

    def used(self, access_key: str) -> None:
        """Note one request."""
        ...


class Operations(Protocol):
    """Work that must finish although nobody waits for it."""

    def detach(self, work: Coroutine[Any, Any, T]) -> Deferred[T]:
        """Start ``work`` and give its result; Unavailable through the Deferred when the process is stopping."""
        ...
