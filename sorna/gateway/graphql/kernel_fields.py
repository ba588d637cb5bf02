"""The resolvers of kernels, which clients know as sessions; plain functions, each with its request's Asking."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from sorna.gateway.graphql.needs import FiguresOf, KernelNamed, KernelsWhere, QueuePlaceOf, Statuses
from sorna.gateway.graphql.pages import (
    NOTHING,
    Info,
    Page,
    Resolver,
    always,
    bounds,
    cpu_slots,
    memory_slots,
    text_of,
    text_of_slots,
)
from sorna.gateway.graphql.selecting import read_selection
from sorna.manager.interfaces import KernelFilter
from sorna.model.kernel import Kernel, KernelStatus, Usage, short_id
from sorna.model.policy import Slots, slots_of
from sorna.model.queue import QueuePlace
from sorna.model.selection import KERNEL_FIELDS, SAME_FOR_KERNELS

#: What a query gets for a session that is not there.
_NOBODY = object()


def statuses_of(text: str | None) -> Statuses:
    """Read a list of status names; those that Sorna does not have are no kernel's."""
    if not text:
        return None
    return frozenset(KernelStatus(name) for name in text.split(",") if name in KernelStatus.__members__)


def compute_sessions(
    _root: None, info: Info, *, access_key: str | None = None, status: str | None = None,
    limit: int | None = None, offset: int | None = None,
) -> Sequence[Kernel]:  # fmt: skip
    """List sessions as clients until 2019 ask for them."""
    asking = info.context
    wanted = KernelFilter(asking.owner or access_key, statuses=statuses_of(status))
    found: Sequence[Kernel] = asking.get(KernelsWhere(wanted, *bounds(limit, offset)), ())
    return found


def compute_session_list(
    _root: None, info: Info, *, limit: int, offset: int, status: str | None = None,
    access_key: str | None = None, filter: str | None = None, order: str | None = None,  # noqa: A002 - the argument's name
) -> Page:  # fmt: skip
    """List sessions by the page."""
    selection = read_selection(KERNEL_FIELDS, filter, order)
    asking = info.context
    if asking.owner is not None and access_key not in {None, asking.owner}:
        return NOTHING
    wanted = KernelFilter(asking.owner or access_key, statuses=statuses_of(status), selection=selection)
    need = KernelsWhere(wanted, *bounds(limit, offset))
    return Page(lambda: asking.get(need, ()), lambda: asking.get(KernelsWhere(wanted)))


def compute_session(_root: None, info: Info, sess_id: str | None = None) -> Any:
    """Give a session; clients look into the object although there is no such session, and print nothing for None."""
    asking = info.context
    return (asking.get(KernelNamed(asking.owner, sess_id)) if sess_id else None) or _NOBODY


def no_workers(*_args: Any, **_arguments: Any) -> Sequence[Any]:
    """Give the further containers of a session: a kernel of Sorna is one, and is its own master."""
    return ()


def _of_kernel(read: Callable[[Kernel], Any]) -> Callable[[Any, Info], Any]:
    return lambda kernel, _info: None if kernel is _NOBODY else read(kernel)


def _queued(read: Callable[[QueuePlace], Any]) -> Resolver:
    def resolve(kernel: Any, info: Info) -> Any:
        if kernel is _NOBODY or kernel.status is not KernelStatus.PENDING:
            return None
        place = info.context.get(QueuePlaceOf(kernel.id))
        return None if place is None else read(place)

    return resolve


def _the_same(value: str) -> Resolver:
    """Give a resolver for what is so of every session that there is."""
    return _of_kernel(lambda _kernel: value)


def _figure(read: Callable[[Kernel], float]) -> Callable[[Any, Info], Any]:
    def resolve(kernel: Any, info: Info) -> int | None:
        if kernel is _NOBODY:
            return None
        known = kernel if kernel.status.final else info.context.get(FiguresOf(kernel.id, kernel))
        # What a host cannot tell is -1.
        return None if known is None or read(known) < 0 else round(read(known))

    return resolve


def _usage_figure(name: str) -> Callable[[Any, Info], Any]:
    return _figure(lambda kernel: getattr(kernel.usage, name))


def _kernel_slots(kernel: Kernel) -> Slots:
    return slots_of(kernel.runtime, kernel.limits)


KERNEL: Mapping[str, Callable[..., Any]] = {
    "access_key": _of_kernel(lambda kernel: kernel.access_key),
    "sess_id": _of_kernel(lambda kernel: kernel.session_token),
    "name": _of_kernel(lambda kernel: kernel.session_token),
    "id": _of_kernel(lambda kernel: str(kernel.id)),
    "session_id": _of_kernel(lambda kernel: str(kernel.id)),
    "main_kernel_id": _of_kernel(lambda kernel: str(kernel.id)),
    "container_id": _of_kernel(lambda kernel: short_id(kernel.id)),
    "role": _of_kernel(lambda _kernel: "master"),
    "lang": _of_kernel(lambda kernel: kernel.requested_runtime),
    "image": _of_kernel(lambda kernel: kernel.requested_runtime),
    "tag": _of_kernel(lambda kernel: kernel.tag),
    "agent": _of_kernel(lambda kernel: kernel.agent_id),
    "status": _of_kernel(lambda kernel: kernel.status.value),
    "status_info": _of_kernel(lambda kernel: kernel.status_reason),
    "status_changed": _of_kernel(lambda kernel: text_of(kernel.status_changed_at)),
    "created_at": _of_kernel(lambda kernel: text_of(kernel.created_at)),
    "terminated_at": _of_kernel(lambda kernel: text_of(kernel.terminated_at)),
    "mem_slot": _of_kernel(lambda kernel: memory_slots(_kernel_slots(kernel).memory)),
    "cpu_slot": _of_kernel(lambda kernel: cpu_slots(_kernel_slots(kernel).cpu_millis)),
    **dict.fromkeys(
        ("occupied_slots", "occupying_slots"), _of_kernel(lambda kernel: text_of_slots(_kernel_slots(kernel)))
    ),
    "gpu_slot": _of_kernel(lambda kernel: 2 * _kernel_slots(kernel).gpus),
    "queue_position": _queued(lambda place: place.position),
    "queue_deadline": _queued(lambda place: text_of(place.deadline)),
    "num_queries": _figure(lambda kernel: kernel.num_queries),
    # What later servers know of a session and Sorna does not: nobody measures it, or there is only one of it.
    **dict.fromkeys(
        (
            *(
                "status_data",
                "cpu_using",
                "live_stat",
                "last_stat",
                "registry",
                "mounts",
                "abusing_reports",
                "idle_checks",
            ),
            *("user_email", "user_id", "created_user_email", "created_user_id", "group_id"),
            *("cluster_template", "starts_at", "scheduled_at", "startup_command"),
        ),
        always(None),
    ),
    **{name: _the_same(value) for name, value in SAME_FOR_KERNELS.items()},
    "cluster_mode": always("single-node"),
    "cluster_size": always(1),
    "cluster_role": always("main"),
    "cluster_idx": always(1),
    "cluster_hostname": always("main1"),
    **dict.fromkeys(("resource_opts", "resoucre_opts"), always("{}")),
    "service_ports": always("[]"),
    "preopen_ports": always(()),
    "dependencies": always(()),
    "agent_ids": _of_kernel(lambda kernel: [] if kernel.agent_id is None else [kernel.agent_id]),
    "containers": lambda kernel, _info: () if kernel is _NOBODY else (kernel,),
    "workers": no_workers,
    **{field.name: _usage_figure(field.name) for field in attrs.fields(Usage)},
}
