"""The stores in memory, for tests of the rooms above; held to the same contract suite as the real ones.

Knows no time and does no I/O: every method is done when its coroutine is.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import attrs

from sorna.errors import InvalidRequest, QuotaExceeded
from sorna.manager.audit_interfaces import QuotaDrift
from sorna.manager.folder_interfaces import MountingKernel
from sorna.manager.interfaces import KernelFilter
from sorna.model.census import Alike, alike
from sorna.model.folder import Mount
from sorna.model.kernel import Kernel, KernelSpec, KernelStatus, Usage, may_change
from sorna.model.keypair import Keypair, KeypairChanges
from sorna.model.policy import ResourcePolicy, Slots, shortages, slots_of
from sorna.model.selectable import of_kernel, of_keypair
from sorna.model.selection import EVERYTHING, Selection, select
from sorna.model.usage import KeypairUsage, usage_of
from sorna.store import rows
from sorna.store.kernels import PAGE


class MemoryPolicies:
    """Resource policies in a dict, and who has them in ``users``."""

    def __init__(self) -> None:
        self.by_name: dict[str, ResourcePolicy] = {}
        self.users: Callable[[], Collection[str | None]] = list

    async def all(self) -> Sequence[ResourcePolicy]:
        """List the policies by name."""
        return sorted(self.by_name.values(), key=lambda policy: policy.name)

    async def put(self, policy: ResourcePolicy) -> None:
        """Store a policy, or replace the one of its name."""
        rows.require_storable((policy.name, *(policy.runtimes or ())))
        self.by_name[policy.name] = policy

    async def remove(self, name: str) -> bool | None:
        """Remove a policy; False while a keypair has it, None when there is no such policy."""
        if name not in self.by_name:
            return None
        if name in self.users():
            return False
        del self.by_name[name]
        return True


class MemoryKeypairs:
    """Keypairs in a dict; one that is removed stays in it without a use."""

    def __init__(self, keypairs: Iterable[Keypair] = (), policies: MemoryPolicies | None = None) -> None:
        self._keypairs = {keypair.access_key: keypair for keypair in keypairs}
        self._removed: set[str] = set()
        self.policies = policies if policies is not None else MemoryPolicies()
        self.policies.users = lambda: {keypair.resource_policy for keypair in self._keypairs.values()}

    async def by_access_key(self, access_key: str) -> Keypair | None:
        """Fetch one keypair, active or not."""
        keypair = self._keypairs.get(access_key)
        if keypair is None or access_key in self._removed:
            return None
        return attrs.evolve(keypair, policy=self.policies.by_name.get(keypair.resource_policy or ""))

    async def by_access_keys(self, access_keys: Collection[str]) -> Sequence[Keypair]:
        """Fetch those of these keypairs that exist."""
        found = [await self.by_access_key(access_key) for access_key in access_keys]
        return [keypair for keypair in found if keypair is not None]

    async def page(
        self, user_id: str | None, is_active: bool | None, offset: int, limit: int, selection: Selection = EVERYTHING
    ) -> Sequence[Keypair]:
        """List the keypairs of a user or of all, the newest first."""
        found = [
            keypair
            for keypair in await self.by_access_keys(list(self._keypairs))
            if user_id in {None, keypair.user_id} and is_active in {None, keypair.is_active}
        ]
        newest = sorted(found, key=lambda one: (-one.created_at, one.access_key))
        return select(newest, selection, of_keypair)[offset : offset + limit]

    async def count_of(self, user_id: str | None, is_active: bool | None, selection: Selection = EVERYTHING) -> int:
        """Tell how many :meth:`page` would list without a limit."""
        return len(await self.page(user_id, is_active, 0, len(self._keypairs), selection))

    async def add(self, keypair: Keypair) -> bool:
        """Store a keypair; give False, changing nothing, when its access key is already there."""
        rows.require_storable((keypair.access_key, keypair.secret_key, keypair.user_id, keypair.resource_policy))
        self._require_policy(keypair.resource_policy)
        if keypair.access_key in self._keypairs:
            return False
        at = rows.to_microseconds(keypair.created_at)
        self._keypairs[keypair.access_key] = attrs.evolve(keypair, created_at=at, policy=None)
        return True

    async def modify(self, access_key: str, changes: KeypairChanges) -> bool:
        """Change a keypair; give False when there is none."""
        rows.require_storable((access_key, changes.resource_policy))
        if await self.by_access_key(access_key) is None:
            return False
        given = {name: value for name, value in attrs.asdict(changes).items() if value is not None}
        if "resource_policy" in given:
            given["resource_policy"] = given["resource_policy"] or None
            self._require_policy(given["resource_policy"])
        self._keypairs[access_key] = attrs.evolve(self._keypairs[access_key], **given)
        return True

    async def remove(self, access_key: str, now: float) -> bool | None:  # noqa: ARG002 - kept for people only
        """Remove a keypair; False while it has live kernels, None when there is no such keypair."""
        keypair = await self.by_access_key(access_key)
        if keypair is None:
            return None
        if keypair.concurrency_used:
            return False
        self._removed.add(access_key)
        self._keypairs[access_key] = attrs.evolve(keypair, resource_policy=None)
        return True

    async def count(self) -> int:
        """Tell how many keypairs there are."""
        return len(self._keypairs) - len(self._removed)

    async def note_use(self, queries: Mapping[str, int], at: float) -> None:
        """Add to ``num_queries`` per access key and set ``last_used``."""
        for key, count in queries.items():
            if (keypair := self._keypairs.get(key)) is not None:
                last = max(rows.to_microseconds(at), keypair.last_used or 0.0)
                self._keypairs[key] = attrs.evolve(keypair, num_queries=keypair.num_queries + count, last_used=last)

    async def take(self, spec: KernelSpec) -> None:
        """Take a place of the quota.

        :raises QuotaExceeded: there is none.
        """
        owner = await self.by_access_key(spec.access_key)
        wanted = slots_of(spec.runtime, spec.limits)
        if owner is None or any(shortages(owner.taken, wanted, owner.concurrency_limit, owner.policy)):
            raise QuotaExceeded(rows.why_refused(owner, spec))
        self._keypairs[spec.access_key] = attrs.evolve(owner, taken=owner.taken + wanted)

    def give_back(self, kernel: Kernel) -> None:
        """Give a place of the quota back."""
        keypair = self._keypairs[kernel.access_key]
        assert keypair.taken.kernels > 0, "a place was given back twice"
        taken = keypair.taken - slots_of(kernel.runtime, kernel.limits)
        self._keypairs[kernel.access_key] = attrs.evolve(keypair, taken=taken)

    def user_of(self, access_key: str) -> str:
        """Tell whose a keypair is, or was."""
        return self._keypairs[access_key].user_id

    def _require_policy(self, name: str | None) -> None:
        if name is not None and name not in self.policies.by_name:
            raise InvalidRequest("there is no such resource policy")


class MemoryKernels:
    """Kernels in a dict; their owners' quota is in ``keypairs``."""

    def __init__(self, keypairs: MemoryKeypairs) -> None:
        self._keypairs = keypairs
        self._kernels: dict[uuid.UUID, Kernel] = {}
        self._mounts: dict[uuid.UUID, tuple[Mount, ...]] = {}

    async def reserve(self, kernel_id: uuid.UUID, spec: KernelSpec, now: float) -> tuple[Kernel, bool]:
        """Find the owner's live kernel of this token, or keep a PREPARING one and take a place of the quota."""
        rows.require_storable_spec(spec)
        existing = await self.live_by_token(spec.access_key, spec.session_token)
        if existing is not None:
            return existing, False
        await self._keypairs.take(spec)
        kernel = rows.new_kernel(kernel_id, spec, now)
        self._kernels[kernel_id] = kernel
        self._mounts[kernel_id] = tuple(spec.mounts)
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
        access_key: str | None = None,
    ) -> Kernel | None:
        """Change a status if that is allowed, else give None."""
        rows.require_storable((reason, agent_id, access_key))
        kernel = self._kernels.get(kernel_id)
        if kernel is None or not may_change(kernel.status, after) or access_key not in {None, kernel.access_key}:
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
            self._keypairs.give_back(kernel)
        return kernel

    def wait(self, kernel_id: uuid.UUID, now: float) -> Kernel | None:
        """Let a PREPARING kernel wait: what the queue in memory does to its row."""
        kernel = self._kernels.get(kernel_id)
        if kernel is None or kernel.status is not KernelStatus.PREPARING:
            return None
        at = rows.to_microseconds(now)
        kernel = attrs.evolve(kernel, status=KernelStatus.PENDING, status_reason="queued", status_changed_at=at)
        self._kernels[kernel_id] = kernel
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

    async def census(self, settled: float) -> Sequence[Alike]:
        """Give the names of all kernels in no final status, in groups."""
        live = (kernel for kernel in self._kernels.values() if not kernel.status.final)
        return alike(live, rows.to_microseconds(settled))

    async def changed(
        self,
        access_keys: Collection[str],
        since: float,
        *,
        after: tuple[float, uuid.UUID] | None = None,
        limit: int = PAGE,
    ) -> Sequence[Kernel]:
        """Page through kernels of these owners whose last change of status was at ``since`` or later."""
        found = [
            kernel
            for kernel in self._kernels.values()
            if kernel.access_key in access_keys
            and kernel.status_changed_at >= rows.to_microseconds(since)
            and (after is None or (kernel.status_changed_at, kernel.id) > after)
        ]
        found.sort(key=lambda kernel: (kernel.status_changed_at, kernel.id))
        return found[: min(limit, PAGE)]

    def all(self) -> Collection[Kernel]:
        """Give every kernel that ever was."""
        return self._kernels.values()

    def mounting(self) -> Sequence[MountingKernel]:
        """Give every kernel that ever saw a folder."""
        return [
            MountingKernel(
                self._kernels[kernel_id],
                frozenset(uuid.UUID(mount.folder_id) for mount in mounts),
                frozenset(uuid.UUID(mount.folder_id) for mount in mounts if not mount.read_only),
            )
            for kernel_id, mounts in self._mounts.items()
            if mounts
        ]

    def _of(self, access_key: str, session_token: str) -> list[Kernel]:
        return [
            kernel
            for kernel in self._kernels.values()
            if (kernel.access_key, kernel.session_token) == (access_key, session_token)
        ]


class MemoryReports:
    """Lists and sums over the kernels of a :class:`MemoryKernels`."""

    def __init__(self, kernels: MemoryKernels, keypairs: MemoryKeypairs) -> None:
        self._kernels = kernels
        self._keypairs = keypairs

    async def page(self, wanted: KernelFilter, offset: int, limit: int) -> Sequence[Kernel]:
        """List kernels, the newest first."""
        return self._wanted(wanted)[offset : offset + limit]

    async def count(self, wanted: KernelFilter) -> int:
        """Tell how many kernels :meth:`page` would list without a limit."""
        return len(self._wanted(wanted))

    async def newest_of_owners(
        self, access_keys: Collection[str], statuses: Collection[KernelStatus] | None, limit: int
    ) -> Sequence[Kernel]:
        """List the newest kernels of each of these owners."""
        return self._newest(
            [[one for one in self._all() if one.access_key == key] for key in access_keys], statuses, limit
        )

    async def newest_of_agents(
        self, agent_ids: Collection[str], statuses: Collection[KernelStatus] | None, limit: int
    ) -> Sequence[Kernel]:
        """List the newest kernels of each of these agents."""
        return self._newest([[one for one in self._all() if one.agent_id == key] for key in agent_ids], statuses, limit)

    async def occupied(self) -> Mapping[str, Slots]:
        """Give agent id -> what its live kernels take."""
        taken: dict[str, Slots] = {}
        for kernel in self._all():
            if not kernel.status.final and kernel.agent_id is not None:
                slots = slots_of(kernel.runtime, kernel.limits)
                taken[kernel.agent_id] = taken.get(kernel.agent_id, Slots()) + slots
        return taken

    async def mounting(self, folder_ids: Collection[uuid.UUID] | None) -> Sequence[MountingKernel]:
        """List the live kernels that see one of these folders, or any folder where that is None."""
        found = [one for one in self._kernels.mounting() if not one.kernel.status.final]
        wanted = [one for one in found if folder_ids is None or one.folders & set(folder_ids)]
        return sorted(wanted, key=lambda one: one.kernel.id)

    async def usage(
        self, since: float, until: float, access_key: str | None, offset: int, limit: int
    ) -> Sequence[KeypairUsage]:
        """Sum up what keypairs used in a period, in order of access key."""
        owners = sorted({kernel.access_key for kernel in self._all()} if access_key is None else {access_key})
        found = (
            usage_of(owner, self._keypairs.user_of(owner), mine, since, until)
            for owner in owners
            if (mine := [kernel for kernel in self._all() if kernel.access_key == owner])
        )
        return [one for one in found if one is not None][offset : offset + limit]

    def _all(self) -> list[Kernel]:
        return sorted(self._kernels.all(), key=lambda one: (one.created_at, one.id), reverse=True)

    def _wanted(self, wanted: KernelFilter) -> Sequence[Kernel]:
        found = [
            kernel
            for kernel in self._all()
            if wanted.access_key in {None, kernel.access_key}
            and wanted.session_token in {None, kernel.session_token}
            and (wanted.statuses is None or kernel.status in wanted.statuses)
            and (wanted.before is None or (kernel.created_at, kernel.id) < wanted.before)
        ]
        return select(found, wanted.selection, of_kernel)

    @staticmethod
    def _newest(
        groups: Iterable[list[Kernel]], statuses: Collection[KernelStatus] | None, limit: int
    ) -> Sequence[Kernel]:
        found = [
            kernel
            for group in groups
            for kernel in [one for one in group if statuses is None or one.status in statuses][:limit]
        ]
        return sorted(found, key=lambda one: (one.created_at, one.id), reverse=True)


class MemoryQuotaAudit:
    """Compares what a :class:`MemoryKeypairs` counts with the kernels of a :class:`MemoryKernels`."""

    def __init__(self, kernels: MemoryKernels, keypairs: MemoryKeypairs) -> None:
        self._kernels = kernels
        self._keypairs = keypairs

    async def drifted(self) -> Sequence[QuotaDrift]:
        """List the keypairs whose counters are wrong."""
        held: dict[str, Slots] = {}
        for kernel in self._kernels.all():
            if not kernel.status.final:
                slots = slots_of(kernel.runtime, kernel.limits)
                held[kernel.access_key] = held.get(kernel.access_key, Slots()) + slots
        found = (
            QuotaDrift(one.access_key, one.taken, held.get(one.access_key, Slots()))
            for one in await self._keypairs.page(None, None, 0, 1 << 30)
        )
        return sorted((one for one in found if one.counted != one.held), key=lambda one: one.access_key)
