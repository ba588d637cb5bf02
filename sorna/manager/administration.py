"""What administrators, and users for themselves, may ask of keypairs, kernels, agents, policies and usage.

Knows no HTTP and no query language. Every question takes many things at once, so that no door has a reason to ask once per
row. Whoever changes a keypair here announces it: every manager forgets what it knew, and open streams are told.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

import attrs
from attrs import frozen
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from sorna.errors import InvalidRequest, NotFound
from sorna.manager.agents import AgentAdministration
from sorna.manager.enrolment_interfaces import AgentStore
from sorna.manager.folder_interfaces import FolderStore
from sorna.manager.interfaces import (
    AgentDirectory,
    Announcements,
    KernelFilter,
    KernelPlace,
    KernelReports,
    KernelStore,
    KeypairLists,
    LiveKernels,
    PolicyStore,
)
from sorna.manager.keypairs import KEYPAIR_TOPIC
from sorna.manager.queue_interfaces import KernelQueue
from sorna.manager.requests import AgentDescription
from sorna.model.folder import Folder, FolderAccess
from sorna.model.kernel import Kernel, KernelStatus, Usage, parse_kernel_id
from sorna.model.keypair import Keypair, KeypairChanges, generate_keypair
from sorna.model.placement import Judgement
from sorna.model.policy import ResourcePolicy, Slots
from sorna.model.queue import QueuePlace
from sorna.model.runtime import resolve_runtime
from sorna.model.selection import EVERYTHING, Selection
from sorna.model.usage import KeypairUsage

LONGEST_NAME = 64
LONGEST_USER = 256
# The largest number that PostgreSQL's integer columns hold, and that its bigint columns do.
MOST, MOST_BYTES = 2**31 - 1, 2**63 - 1
# What agents say of live kernels under the names that the record has too, in the same units.
_FIGURES: Mapping[str, Callable[[str], float]] = {
    field.name: float if field.name == "cpu_used" else int for field in attrs.fields(Usage)
}


@frozen
class Administration:
    """Implements :class:`sorna.gateway.interfaces.Administration`."""

    clock: IReactorTime
    keypair_store: KeypairLists
    policy_store: PolicyStore
    kernel_store: KernelStore
    reports: KernelReports
    agent_store: AgentStore
    directory: AgentDirectory
    live: LiveKernels
    announcements: Announcements
    folder_store: FolderStore
    #: Removes the folders of keypairs that are not there any more.
    remove_forsaken: Callable[[], Awaitable[object]]
    agent_administration: AgentAdministration
    queue: KernelQueue

    _log = Logger()

    async def keypairs(
        self, user_id: str | None, is_active: bool | None, offset: int, limit: int, selection: Selection = EVERYTHING
    ) -> Sequence[Keypair]:
        """List keypairs, the newest first."""
        return await self.keypair_store.page(user_id, is_active, offset, limit, selection)

    async def count_keypairs(
        self, user_id: str | None, is_active: bool | None, selection: Selection = EVERYTHING
    ) -> int:
        """Tell how many keypairs there are."""
        return await self.keypair_store.count_of(user_id, is_active, selection)

    async def keypairs_named(self, access_keys: Collection[str]) -> Mapping[str, Keypair]:
        """Give access key -> keypair for those that exist."""
        return {found.access_key: found for found in await self.keypair_store.by_access_keys(access_keys)}

    async def create_keypair(self, user_id: str, wishes: KeypairChanges) -> Keypair:
        """Make a keypair; what is not wished for gets the defaults.

        :raises InvalidRequest: a number is out of range, or there is no such resource policy.
        """
        if not user_id or len(user_id) > LONGEST_USER:
            raise InvalidRequest(f"a user id has 1 to {LONGEST_USER} characters")
        _check(wishes)
        given = {name: value for name, value in attrs.asdict(wishes).items() if value not in {None, ""}}
        keypair = generate_keypair(user_id=user_id, created_at=self.clock.seconds(), **given)
        await self.keypair_store.add(keypair)
        await self._announce(keypair.access_key)
        self._log.info("keypair {access_key} was made for {user_id}", access_key=keypair.access_key, user_id=user_id)
        return keypair

    async def modify_keypair(self, access_key: str, changes: KeypairChanges) -> None:
        """Change a keypair; seen everywhere at once, and within a second where the announcement is lost.

        :raises InvalidRequest: a number is out of range, or there is no such resource policy.
        :raises NotFound: there is no such keypair.
        """
        _check(changes)
        if not await self.keypair_store.modify(access_key, changes):
            raise NotFound("there is no such keypair")
        await self._announce(access_key)
        self._log.info("keypair {access_key} was changed: {changes}", access_key=access_key, changes=changes)

    async def remove_keypair(self, access_key: str) -> None:
        """Remove a keypair for good, with its folders and what is in them; the record of its kernels and their use stays.

        :raises InvalidRequest: it has live kernels.
        :raises NotFound: there is no such keypair.
        """
        removed = await self.keypair_store.remove(access_key, self.clock.seconds())
        if removed is None:
            raise NotFound("there is no such keypair")
        if not removed:
            raise InvalidRequest("the keypair has live kernels: deactivate it, end them, and try again")
        await self._announce(access_key)
        self._log.info("keypair {access_key} was removed", access_key=access_key)
        # The keypair is gone whatever becomes of this; what is left then goes when folders are tidied.
        with self._log.failuresHandled("while removing the folders of {access_key}", access_key=access_key):
            await self.remove_forsaken()

    async def policies(self) -> Sequence[ResourcePolicy]:
        """List the resource policies by name."""
        return await self.policy_store.all()

    async def put_policy(self, policy: ResourcePolicy) -> None:
        """Store a policy, or replace the one of its name; it holds for the next kernel of each of its keypairs.

        :raises InvalidRequest: a value is out of range, or a runtime has no such name.
        """
        await self.policy_store.put(_checked(policy))
        await self._announce("")
        self._log.info("policy {policy} was stored", policy=policy)

    async def remove_policy(self, name: str) -> None:
        """Remove a policy.

        :raises InvalidRequest: a keypair has it.
        :raises NotFound: there is no such policy.
        """
        removed = await self.policy_store.remove(name)
        if removed is None:
            raise NotFound("there is no such resource policy")
        if not removed:
            raise InvalidRequest("keypairs have this policy: give them another one first")

    async def kernels(self, wanted: KernelFilter, offset: int, limit: int) -> Sequence[Kernel]:
        """List kernels, the newest first."""
        return await self.reports.page(wanted, offset, limit)

    async def count_kernels(self, wanted: KernelFilter) -> int:
        """Tell how many kernels there are."""
        return await self.reports.count(wanted)

    async def kernel(self, access_key: str | None, reference: str) -> Kernel | None:
        """Give the kernel of an id, or the newest of a session token; of this owner, or of any when that is None."""
        found = await self.reports.page(KernelFilter(access_key, reference), 0, 1)
        if found:
            return found[0]
        kernel_id = parse_kernel_id(reference)
        kernel = None if kernel_id is None else await self.kernel_store.by_id(kernel_id)
        return kernel if kernel is not None and access_key in {None, kernel.access_key} else None

    async def kernels_of_owners(
        self, access_keys: Collection[str], statuses: Collection[KernelStatus] | None, limit: int
    ) -> Sequence[Kernel]:
        """List the newest kernels of each of these owners, at most ``limit`` each."""
        return await self.reports.newest_of_owners(access_keys, statuses, limit)

    async def kernels_of_agents(
        self, agent_ids: Collection[str], statuses: Collection[KernelStatus] | None, limit: int
    ) -> Sequence[Kernel]:
        """List the newest kernels of each of these agents, at most ``limit`` each."""
        return await self.reports.newest_of_agents(agent_ids, statuses, limit)

    async def folders(
        self, owner: str | None, offset: int, limit: int, selection: Selection = EVERYTHING
    ) -> Sequence[Folder]:
        """List virtual folders of an owner or of all, the newest first."""
        return await self.folder_store.page(owner, offset, limit, selection)

    async def count_folders(self, owner: str | None, selection: Selection = EVERYTHING) -> int:
        """Tell how many virtual folders there are."""
        return await self.folder_store.count_of(owner, selection)

    async def folders_shared_with(self, access_key: str) -> Sequence[FolderAccess]:
        """List the virtual folders that others share with an access key, in order of their names."""
        return [seen for seen in await self.folder_store.seen_by(access_key) if not seen.is_owner]

    async def folders_of_owners(self, access_keys: Collection[str], limit: int) -> Sequence[Folder]:
        """List the newest virtual folders of each of these owners, at most ``limit`` each."""
        return await self.folder_store.newest_of_owners(access_keys, limit)

    async def figures(self, kernels: Collection[Kernel]) -> Mapping[uuid.UUID, Kernel]:
        """Give each kernel with what it has used until now: of a live one, what its agent said last."""
        live = await self.live.places([kernel.id for kernel in kernels if not kernel.status.final])
        return {kernel.id: _with_figures(kernel, live.get(kernel.id)) for kernel in kernels}

    async def queue_places(self, kernel_ids: Collection[uuid.UUID]) -> Mapping[uuid.UUID, QueuePlace]:
        """Tell where those of these kernels stand that wait for an agent."""
        return await self.queue.places(kernel_ids)

    async def agents(self) -> Sequence[AgentDescription]:
        """Describe every agent that was ever enrolled, in order of id."""
        alive = {agent.id: agent for agent in await self.directory.alive()}
        taken, drains = await self.reports.occupied(), await self.agent_store.drains()
        lost = await self.agent_store.lost()
        return [
            AgentDescription(
                agent_id,
                first_contact,
                taken.get(agent_id, Slots()),
                alive.get(agent_id),
                drains.get(agent_id),
                None if agent_id in alive else lost.get(agent_id),
            )
            for agent_id, first_contact in sorted((await self.agent_store.enrolled()).items())
        ]

    async def explain_placement(
        self, runtime: str, cpu_cores: float, memory: int, gpus: int | None, labels: Collection[str]
    ) -> Sequence[Judgement]:
        """Judge every live agent for a kernel; see :meth:`sorna.manager.agents.AgentAdministration.explain`."""
        return await self.agent_administration.explain(runtime, cpu_cores, memory, gpus, labels)

    async def drain_agent(self, agent_id: str, wait: float | None) -> None:
        """Take an agent out of service; see :meth:`sorna.manager.agents.AgentAdministration.drain`."""
        await self.agent_administration.drain(agent_id, wait)

    async def undrain_agent(self, agent_id: str) -> None:
        """Bring an agent back into service; see :meth:`sorna.manager.agents.AgentAdministration.undo`."""
        await self.agent_administration.undo(agent_id)

    async def usage(
        self, since: float, until: float, access_key: str | None, offset: int, limit: int
    ) -> Sequence[KeypairUsage]:
        """Sum up what keypairs used from ``since`` until before ``until``, and not beyond now, in order of access key.

        :raises InvalidRequest: the period ends before it begins.
        """
        if until < since:
            raise InvalidRequest("the period ends before it begins")
        past = min(until, self.clock.seconds())
        # What has not begun yet has no kernels, and those that live now have no time in it.
        return await self.reports.usage(since, past, access_key, offset, limit) if since < past else []

    async def _announce(self, access_key: str) -> None:
        """Tell every manager; when that fails they learn it within a second, because they believe nothing for longer."""
        with self._log.failuresHandled("announcing a change of keypairs"):
            await self.announcements.publish(KEYPAIR_TOPIC, access_key)


def _check(changes: KeypairChanges) -> None:
    for name in ("concurrency_limit", "rate_limit"):
        value = getattr(changes, name)
        if value is not None and not 0 <= value <= MOST:
            raise InvalidRequest(f"{name} must be a number from 0 to {MOST}")


def _checked(policy: ResourcePolicy) -> ResourcePolicy:
    if not policy.name or len(policy.name) > LONGEST_NAME:
        raise InvalidRequest(f"a policy's name has 1 to {LONGEST_NAME} characters")
    for name, most in (
        ("max_kernels", MOST), ("gpus", MOST), ("max_folders", MOST), ("memory", MOST_BYTES), ("max_folder_size", MOST_BYTES)
    ):  # fmt: skip
        value = getattr(policy, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most):
            raise InvalidRequest(f"{name} must be a whole number from 0 to {most}")
    for name, least in (("cpu_cores", 0.0), ("lifetime", 1.0), ("idle_timeout", 1.0)):
        value = getattr(policy, name)
        if value is not None and not (math.isfinite(value) and least <= value <= MOST):
            raise InvalidRequest(f"{name} must be a number from {least:g} to {MOST}")
    if policy.runtimes is None:
        return policy
    resolved = {given: resolve_runtime(given) for given in policy.runtimes}
    unknown = sorted(given for given, name in resolved.items() if name is None)
    if unknown:
        raise InvalidRequest(f"no runtime has the name {unknown[0][:80]}")
    return attrs.evolve(policy, runtimes=frozenset(name for name in resolved.values() if name is not None))


def _with_figures(kernel: Kernel, place: KernelPlace | None) -> Kernel:
    """Give a live kernel with its agent's last figures; one that is missing or unreadable stays unknown."""
    if place is None:
        return kernel
    figures: dict[str, Any] = {}
    for name in place.stats.keys() & _FIGURES.keys():
        try:
            figures[name] = _FIGURES[name](place.stats[name])
        except ValueError:
            continue
    return attrs.evolve(kernel, usage=attrs.evolve(kernel.usage, **figures), num_queries=place.num_queries)
