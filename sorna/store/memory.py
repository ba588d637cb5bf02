"""The stores in memory, for tests of the rooms above; held to the same contract suite as the real ones.

Knows no time and does no I/O: every method is done when its coroutine is.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence

import attrs

from sorna.errors import QuotaExceeded
from sorna.model.kernel import Kernel, KernelSpec, KernelStatus, Usage, may_change
from sorna.model.keypair import Keypair
from sorna.store import rows
from sorna.store.agents import require_agent
from sorna.store.kernels import PAGE


class MemoryKeypairs:
    """Keypairs in a dict.

    :ivar last_used: access key -> when, for tests.
    """

    def __init__(self, keypairs: Iterable[Keypair] = ()) -> None:
        self._keypairs = {keypair.access_key: keypair for keypair in keypairs}
        self.last_used: dict[str, float] = {}

    async def by_access_key(self, access_key: str) -> Keypair | None:
        """Fetch one keypair, active or not."""
        return self._keypairs.get(access_key)

    async def add(self, keypair: Keypair) -> bool:
        """Store a keypair; give False, changing nothing, when its access key is already there."""
        rows.require_storable((keypair.access_key, keypair.secret_key))
        if keypair.access_key in self._keypairs:
            return False
        self._keypairs[keypair.access_key] = keypair
        return True

    async def count(self) -> int:
        """Tell how many keypairs there are."""
        return len(self._keypairs)

    async def note_use(self, queries: Mapping[str, int], at: float) -> None:
        """Add to ``num_queries`` per access key."""
        for key, count in queries.items():
            if (keypair := self._keypairs.get(key)) is not None:
                self._keypairs[key] = attrs.evolve(keypair, num_queries=keypair.num_queries + count)
                self.last_used[key] = max(at, self.last_used.get(key, at))

    def take_place(self, access_key: str) -> bool:
        """Take a place of the quota if there is one."""
        keypair = self._keypairs.get(access_key)
        if keypair is None or keypair.concurrency_used >= keypair.concurrency_limit:
            return False
        self._keypairs[access_key] = attrs.evolve(keypair, concurrency_used=keypair.concurrency_used + 1)
        return True

    def give_place_back(self, access_key: str) -> None:
        """Give a place of the quota back."""
        keypair = self._keypairs[access_key]
        assert keypair.concurrency_used > 0, "a place was given back twice"
        self._keypairs[access_key] = attrs.evolve(keypair, concurrency_used=keypair.concurrency_used - 1)


class MemoryKernels:
    """Kernels in a dict; their owners' quota is in ``keypairs``."""

    def __init__(self, keypairs: MemoryKeypairs) -> None:
        self._keypairs = keypairs
        self._kernels: dict[uuid.UUID, Kernel] = {}

    async def reserve(self, kernel_id: uuid.UUID, spec: KernelSpec, now: float) -> tuple[Kernel, bool]:
        """Find the owner's live kernel of this token, or keep a PREPARING one and take a place of the quota."""
        rows.require_storable_spec(spec)
        existing = await self.live_by_token(spec.access_key, spec.session_token)
        if existing is not None:
            return existing, False
        if not self._keypairs.take_place(spec.access_key):
            raise QuotaExceeded("You have reached your resource limit.")
        kernel = rows.new_kernel(kernel_id, spec, now)
        self._kernels[kernel_id] = kernel
        return kernel, True

    async def change_status(
        self,
        kernel_id: uuid.UUID,
        after: KernelStatus,
        reason: str,
        now: float,
        *,
        agent_id: str | None = None,
        usage: Usage | None = None,
        num_queries: int | None = None,
    ) -> Kernel | None:
        """Change a status if that is allowed, else give None."""
        rows.require_storable((reason, agent_id))
        kernel = self._kernels.get(kernel_id)
        if kernel is None or not may_change(kernel.status, after):
            return None
        at = rows.to_microseconds(now)
        kernel = attrs.evolve(
            kernel,
            status=after,
            status_reason=reason,
            status_changed_at=at,
            terminated_at=at if after.final else None,
            agent_id=kernel.agent_id if agent_id is None else agent_id,
            usage=kernel.usage if usage is None else usage,
            num_queries=kernel.num_queries if num_queries is None else num_queries,
        )
        self._kernels[kernel_id] = kernel
        if after.final:
            self._keypairs.give_place_back(kernel.access_key)
        return kernel

    async def by_id(self, kernel_id: uuid.UUID) -> Kernel | None:
        """Fetch a kernel of any status."""
        return self._kernels.get(kernel_id)

    async def live_by_token(self, access_key: str, session_token: str) -> Kernel | None:
        """Fetch the owner's kernel of this token that is in no final status."""
        return next((one for one in self._of(access_key, session_token) if not one.status.final), None)

    async def last_by_token(self, access_key: str, session_token: str) -> Kernel | None:
        """Fetch the owner's most recent kernel of this token, of any status."""
        mine = self._of(access_key, session_token)
        return max(mine, key=lambda kernel: (kernel.created_at, kernel.id), default=None)

    async def live(
        self, *, agent_id: str | None = None, after: uuid.UUID | None = None, limit: int = PAGE
    ) -> Sequence[Kernel]:
        """Page through kernels in no final status in order of id."""
        page = [
            kernel
            for kernel in sorted(self._kernels.values(), key=lambda one: one.id)
            if not kernel.status.final
            and (agent_id is None or kernel.agent_id == agent_id)
            and (after is None or kernel.id > after)
        ]
        return page[: min(limit, PAGE)]

    def _of(self, access_key: str, session_token: str) -> list[Kernel]:
        return [
            kernel
            for kernel in self._kernels.values()
            if (kernel.access_key, kernel.session_token) == (access_key, session_token)
        ]


class MemoryAgents:
    """Enrolled agents in a dict."""

    def __init__(self) -> None:
        self._public_keys: dict[str, str] = {}

    async def enrol(self, agent_id: str, public_key: str, now: float) -> None:  # noqa: ARG002 - kept for people only
        """Trust this public key for this agent from now on."""
        require_agent(agent_id, public_key)
        self._public_keys[agent_id] = public_key

    async def public_keys(self) -> Mapping[str, str]:
        """Give agent id -> public key of every enrolled agent."""
        return dict(self._public_keys)
