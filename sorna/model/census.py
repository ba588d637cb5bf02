"""Live kernels by name only, those that are alike together: what may be looked at twice a second however many there are. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping

from attrs import frozen

from sorna.model.kernel import Kernel, KernelStatus, parse_kernel_id, short_id


@frozen
class Alike:
    """Live kernels of one status on one agent.

    :ivar changed_at: when their status changed last, all at the same moment; None for those that are settled: they have run
        since before a time that the asker chose.
    :ivar names: their short ids.
    """

    status: KernelStatus
    agent_id: str | None
    changed_at: float | None
    names: frozenset[str]

    @property
    def settled(self) -> bool:
        """Whether they have run for a while."""
        return self.changed_at is None


@frozen
class Traces:
    """A part of what Redis holds about kernels, by name only.

    :ivar names: short ids that have an entry.
    :ivar sessions: key of a session id -> the short id that it names, of those alone that name a kernel without an entry.
    :ivar rest: where the next part begins; empty when this was the last.
    """

    names: frozenset[str]
    sessions: Mapping[str, str]
    rest: str = ""

    def stale(self, groups: Iterable[Alike]) -> Traces:
        """Give those that are no kernel's of these groups."""
        live = [group.names for group in groups]
        unknown = set(self.sessions.values()).difference(*live)
        lone = {key: name for key, name in self.sessions.items() if name in unknown}
        return Traces(self.names.difference(*live), lone, self.rest)


def alike(kernels: Iterable[Kernel], settled: float) -> list[Alike]:
    """Put live kernels into groups.

    :param settled: a kernel that has run since before this time is settled.
    """
    groups: dict[tuple[KernelStatus, str | None, float | None], set[str]] = {}
    for kernel in kernels:
        runs = kernel.status is KernelStatus.RUNNING and kernel.status_changed_at < settled
        key = (kernel.status, kernel.agent_id, None if runs else kernel.status_changed_at)
        groups.setdefault(key, set()).add(short_id(kernel.id))
    return [Alike(*key, frozenset(names)) for key, names in groups.items()]


def id_of(name: str) -> uuid.UUID:
    """Give the id that a name of a group is."""
    kernel_id = parse_kernel_id(name)
    assert kernel_id is not None, "a group names kernels by their short ids"
    return kernel_id
