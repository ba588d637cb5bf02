"""What the resolvers ask of the administration, and how much of it is asked at once.

Note [Never a query per row]
    Rows of one level have needs of one kind that differ in whose they are. Those with the same conditions are one call,
    which is one statement; nothing here calls anything in a loop over rows.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import evolve, field, frozen

from sorna.gateway.graphql.asking import Need
from sorna.gateway.interfaces import Administration
from sorna.manager.interfaces import KernelFilter
from sorna.model.folder import Folder
from sorna.model.kernel import Kernel, KernelStatus
from sorna.model.selection import EVERYTHING, Selection

Statuses = frozenset[KernelStatus] | None


@frozen
class KeypairsOf(Need):
    """A page of the keypairs of a user or of all, or their number where ``limit`` is None."""

    user_id: str | None
    is_active: bool | None
    offset: int = 0
    limit: int | None = None
    selection: Selection = EVERYTHING

    @classmethod
    async def fetch(cls, needs: Sequence[KeypairsOf], administration: Administration) -> Mapping[Any, Any]:
        """Ask for each page: a query names as many as it has root fields."""
        return {
            need: await administration.count_keypairs(need.user_id, need.is_active, need.selection)
            if need.limit is None
            else await administration.keypairs(need.user_id, need.is_active, need.offset, need.limit, need.selection)
            for need in needs
        }


@frozen
class KeypairNamed(Need):
    """A keypair by its access key."""

    access_key: str

    @classmethod
    async def fetch(cls, needs: Sequence[KeypairNamed], administration: Administration) -> Mapping[Any, Any]:
        """Ask for all at once."""
        found = await administration.keypairs_named([need.access_key for need in needs])
        return {need: found.get(need.access_key) for need in needs}


@frozen
class KernelsWhere(Need):
    """A page of kernels, or their number where ``limit`` is None."""

    wanted: KernelFilter
    offset: int = 0
    limit: int | None = None

    @classmethod
    async def fetch(cls, needs: Sequence[KernelsWhere], administration: Administration) -> Mapping[Any, Any]:
        """Ask for each page: a query names as many as it has root fields."""
        return {
            need: await administration.count_kernels(need.wanted)
            if need.limit is None
            else await administration.kernels(need.wanted, need.offset, need.limit)
            for need in needs
        }


@frozen
class KernelNamed(Need):
    """One kernel by id or session token."""

    owner: str | None
    reference: str

    @classmethod
    async def fetch(cls, needs: Sequence[KernelNamed], administration: Administration) -> Mapping[Any, Any]:
        """Ask for each: a query names as many as it has root fields."""
        return {need: await administration.kernel(need.owner, need.reference) for need in needs}


@frozen
class KernelsOf(Need):
    """The newest kernels of one row of a list: of a keypair, or of an agent."""

    parent: str
    statuses: Statuses
    limit: int
    of_agent: bool = False

    @classmethod
    async def fetch(cls, needs: Sequence[KernelsOf], administration: Administration) -> Mapping[Any, Any]:
        """Ask once for all rows with the same conditions."""
        alike: dict[KernelsOf, list[str]] = defaultdict(list)
        for need in needs:
            alike[evolve(need, parent="")].append(need.parent)
        found: dict[KernelsOf, list[Kernel]] = {need: [] for need in needs}
        for conditions, parents in alike.items():
            ask = administration.kernels_of_agents if conditions.of_agent else administration.kernels_of_owners
            for kernel in await ask(parents, conditions.statuses, conditions.limit):
                parent = (kernel.agent_id or "") if conditions.of_agent else kernel.access_key
                found[evolve(conditions, parent=parent)].append(kernel)
        return found


@frozen
class FoldersWhere(Need):
    """A page of the virtual folders of an owner or of all, or their number where ``limit`` is None."""

    owner: str | None
    offset: int = 0
    limit: int | None = None
    selection: Selection = EVERYTHING

    @classmethod
    async def fetch(cls, needs: Sequence[FoldersWhere], administration: Administration) -> Mapping[Any, Any]:
        """Ask for each page: a query names as many as it has root fields."""
        return {
            need: await administration.count_folders(need.owner, need.selection)
            if need.limit is None
            else await administration.folders(need.owner, need.offset, need.limit, need.selection)
            for need in needs
        }


@frozen
class FoldersSharedWith(Need):
    """The folders that others share with an access key, in order of their names."""

    access_key: str

    @classmethod
    async def fetch(cls, needs: Sequence[FoldersSharedWith], administration: Administration) -> Mapping[Any, Any]:
        """Ask for each: a query is of one access key."""
        return {need: await administration.folders_shared_with(need.access_key) for need in needs}


@frozen
class FoldersOf(Need):
    """The newest virtual folders of one keypair of a list."""

    owner: str
    limit: int

    @classmethod
    async def fetch(cls, needs: Sequence[FoldersOf], administration: Administration) -> Mapping[Any, Any]:
        """Ask once for all keypairs: the limit is the same for all."""
        limit = max(need.limit for need in needs)
        found: dict[FoldersOf, list[Folder]] = {need: [] for need in needs}
        for folder in await administration.folders_of_owners([need.owner for need in needs], limit):
            found[FoldersOf(folder.owner, limit)].append(folder)
        return found


@frozen
class FiguresOf(Need):
    """A kernel with what it has used until now."""

    kernel_id: uuid.UUID
    kernel: Kernel = field(eq=False)

    @classmethod
    async def fetch(cls, needs: Sequence[FiguresOf], administration: Administration) -> Mapping[Any, Any]:
        """Ask for all at once."""
        found = await administration.figures([need.kernel for need in needs])
        return {need: found[need.kernel.id] for need in needs}


@frozen
class QueuePlaceOf(Need):
    """Where a kernel stands that waits for an agent."""

    kernel_id: uuid.UUID

    @classmethod
    async def fetch(cls, needs: Sequence[QueuePlaceOf], administration: Administration) -> Mapping[Any, Any]:
        """Ask for all at once."""
        found = await administration.queue_places([need.kernel_id for need in needs])
        return {need: found.get(need.kernel_id) for need in needs}


@frozen
class Agents(Need):
    """Every agent."""

    @classmethod
    async def fetch(cls, needs: Sequence[Agents], administration: Administration) -> Mapping[Any, Any]:
        """Ask."""
        return dict.fromkeys(needs, await administration.agents())


@frozen
class PlacementOf(Need):
    """What is thought of every agent for a kernel that somebody might ask for."""

    runtime: str
    cpu_cores: float
    memory: int
    gpus: int | None
    labels: tuple[str, ...]

    @classmethod
    async def fetch(cls, needs: Sequence[PlacementOf], administration: Administration) -> Mapping[Any, Any]:
        """Ask for each: a query names as many as it has root fields."""
        return {
            need: await administration.explain_placement(
                need.runtime, need.cpu_cores, need.memory, need.gpus, need.labels
            )
            for need in needs
        }


@frozen
class Policies(Need):
    """Every resource policy."""

    @classmethod
    async def fetch(cls, needs: Sequence[Policies], administration: Administration) -> Mapping[Any, Any]:
        """Ask."""
        return dict.fromkeys(needs, await administration.policies())


@frozen
class UsageOf(Need):
    """A page of the report of a period."""

    since: float
    until: float
    access_key: str | None
    offset: int
    limit: int

    @classmethod
    async def fetch(cls, needs: Sequence[UsageOf], administration: Administration) -> Mapping[Any, Any]:
        """Ask for each: a query names as many as it has root fields."""
        return {
            need: await administration.usage(need.since, need.until, need.access_key, need.offset, need.limit)
            for need in needs
        }
