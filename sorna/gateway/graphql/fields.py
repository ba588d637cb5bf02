"""The resolvers: from the manager's values to the fields that clients know. Plain functions, each with its request's Asking.

What a field is called and counted in is that of section 2.12 of the REST interface's specification: memory in units of 256 MiB,
processors and GPUs in halves.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import attrs
from graphql import GraphQLResolveInfo

from sorna.errors import InvalidRequest
from sorna.gateway.graphql.asking import Asking
from sorna.gateway.graphql.bounds import DEFAULT_LIMIT, INNER_LIMIT, MAX_LIMIT
from sorna.gateway.graphql.mutations import MUTATIONS
from sorna.gateway.graphql.needs import (
    Agents,
    FiguresOf,
    FoldersOf,
    FoldersWhere,
    KernelNamed,
    KernelsOf,
    KernelsWhere,
    KeypairNamed,
    KeypairsOf,
    PlacementOf,
    Policies,
    QueuePlaceOf,
    Statuses,
    UsageOf,
)
from sorna.manager.interfaces import KernelFilter
from sorna.manager.requests import AgentDescription
from sorna.model.agent import DEFAULT_GROUP, SCALING_GROUP, Agent, Capacity
from sorna.model.folder import HOST as FOLDER_HOST
from sorna.model.kernel import Kernel, KernelStatus, Usage, short_id
from sorna.model.keypair import Keypair
from sorna.model.limits import KIB, MIB
from sorna.model.placement import load
from sorna.model.policy import ResourcePolicy, Slots, slots_of
from sorna.model.queue import QueuePlace

Info = GraphQLResolveInfo[Asking]

MAX_OFFSET = 100_000
_MEMORY_SLOT = 256 * MIB


def _bounds(limit: int | None, offset: int | None, default: int = DEFAULT_LIMIT) -> tuple[int, int]:
    limit, offset = default if limit is None else limit, offset or 0
    if not 0 <= limit <= MAX_LIMIT or not 0 <= offset <= MAX_OFFSET:
        raise InvalidRequest(f"limit must be 0 to {MAX_LIMIT}, offset 0 to {MAX_OFFSET}")
    return offset, limit


def _statuses(text: str | None) -> Statuses:
    """Read a list of status names; those that Sorna does not have are no kernel's."""
    if not text:
        return None
    return frozenset(KernelStatus(name) for name in text.split(",") if name in KernelStatus.__members__)


def _moment(value: Any) -> float:
    try:
        parsed = datetime.fromisoformat(value)
        return (parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed).timestamp()
    except (TypeError, ValueError, OverflowError):
        raise InvalidRequest("a time must be written as in 2026-01-31T12:00:00+00:00") from None


def _text(moment: float | None) -> str | None:
    return None if moment is None else datetime.fromtimestamp(moment, UTC).isoformat()


def _unsorted(filter_: str | None, order: str | None) -> None:
    if filter_ or order:
        raise InvalidRequest("filter and order are not supported")


# Kernels.


def _compute_sessions(
    _root: None, info: Info, *, access_key: str | None = None, status: str | None = None,
    limit: int | None = None, offset: int | None = None,
) -> Sequence[Kernel]:  # fmt: skip
    asking = info.context
    wanted = KernelFilter(asking.owner or access_key, statuses=_statuses(status))
    found: Sequence[Kernel] = asking.get(KernelsWhere(wanted, *_bounds(limit, offset)), ())
    return found


def _compute_session_list(
    _root: None, info: Info, *, limit: int, offset: int, status: str | None = None,
    access_key: str | None = None, filter: str | None = None, order: str | None = None,  # noqa: A002 - the argument's name
) -> _Page:  # fmt: skip
    _unsorted(filter, order)
    asking = info.context
    if asking.owner is not None and access_key not in {None, asking.owner}:
        return _NOTHING
    wanted = KernelFilter(asking.owner or access_key, statuses=_statuses(status))
    need = KernelsWhere(wanted, *_bounds(limit, offset))
    return _Page(lambda: asking.get(need, ()), lambda: asking.get(KernelsWhere(wanted)))


def _compute_session(_root: None, info: Info, sess_id: str | None = None) -> Any:
    """Give a session; clients look into the object although there is no such session, and print nothing for None."""
    asking = info.context
    return (asking.get(KernelNamed(asking.owner, sess_id)) if sess_id else None) or _NOBODY


def _no_workers(*_args: Any, **_arguments: Any) -> Sequence[Any]:
    """Give the further containers of a session: a kernel of Sorna is one, and is its own master."""
    return ()


def _of_kernel(read: Callable[[Kernel], Any]) -> Callable[[Any, Info], Any]:
    return lambda kernel, _info: None if kernel is _NOBODY else read(kernel)


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


def _queued(read: Callable[[QueuePlace], Any]) -> Callable[[Any, Info], Any]:
    def resolve(kernel: Any, info: Info) -> Any:
        if kernel is _NOBODY or kernel.status is not KernelStatus.PENDING:
            return None
        place = info.context.get(QueuePlaceOf(kernel.id))
        return None if place is None else read(place)

    return resolve


def _kernel_slots(kernel: Kernel) -> Slots:
    return slots_of(kernel.runtime, kernel.limits)


_KERNEL: Mapping[str, Callable[..., Any]] = {
    "access_key": _of_kernel(lambda kernel: kernel.access_key),
    "sess_id": _of_kernel(lambda kernel: kernel.session_token),
    "name": _of_kernel(lambda kernel: kernel.session_token),
    "id": _of_kernel(lambda kernel: str(kernel.id)),
    "session_id": _of_kernel(lambda kernel: str(kernel.id)),
    "main_kernel_id": _of_kernel(lambda kernel: str(kernel.id)),
    "container_id": _of_kernel(lambda kernel: short_id(kernel.id)),
    "role": _of_kernel(lambda _kernel: "master"),
    "type": _of_kernel(lambda _kernel: "INTERACTIVE"),
    "sess_type": _of_kernel(lambda _kernel: "INTERACTIVE"),
    "group_name": _of_kernel(lambda _kernel: DEFAULT_GROUP),
    "result": _of_kernel(lambda _kernel: "UNDEFINED"),
    "lang": _of_kernel(lambda kernel: kernel.requested_runtime),
    "image": _of_kernel(lambda kernel: kernel.requested_runtime),
    "tag": _of_kernel(lambda kernel: kernel.tag),
    "agent": _of_kernel(lambda kernel: kernel.agent_id),
    "status": _of_kernel(lambda kernel: kernel.status.value),
    "status_info": _of_kernel(lambda kernel: kernel.status_reason),
    "status_changed": _of_kernel(lambda kernel: _text(kernel.status_changed_at)),
    "created_at": _of_kernel(lambda kernel: _text(kernel.created_at)),
    "terminated_at": _of_kernel(lambda kernel: _text(kernel.terminated_at)),
    "mem_slot": _of_kernel(lambda kernel: _memory_slots(_kernel_slots(kernel).memory)),
    "cpu_slot": _of_kernel(lambda kernel: _cpu_slots(_kernel_slots(kernel).cpu_millis)),
    "occupied_slots": _of_kernel(lambda kernel: _text_of_slots(_kernel_slots(kernel))),
    "gpu_slot": _of_kernel(lambda kernel: 2 * _kernel_slots(kernel).gpus),
    "num_queries": _figure(lambda kernel: kernel.num_queries),
    "queue_position": _queued(lambda place: place.position),
    "queue_deadline": _queued(lambda place: _text(place.deadline)),
    "status_data": lambda _kernel, _info: None,
    "cpu_using": lambda _kernel, _info: None,  # nobody measures it
    "workers": _no_workers,
    **{field.name: _usage_figure(field.name) for field in attrs.fields(Usage)},
}


def _text_of_slots(slots: Slots | Capacity) -> str:
    texts = {"cpu": f"{slots.cpu_millis / 1000:g}", "mem": str(slots.memory), "cuda.device": str(slots.gpus)}
    return json.dumps(texts)


def _memory_slots(size: int) -> int:
    return math.ceil(size / _MEMORY_SLOT)


def _cpu_slots(millis: int) -> int:
    return math.ceil(millis / 500)


# Keypairs.


def _keypair(_root: None, info: Info, access_key: str | None = None) -> Any:
    asking = info.context
    return asking.get(KeypairNamed(asking.owner or access_key or asking.access_key))


def _keypairs(
    _root: None, info: Info, *, user_id: int | str | None = None, is_active: bool | None = None,
    limit: int | None = None, offset: int | None = None,
) -> Sequence[Keypair]:  # fmt: skip
    # Clients of 2018 send 0 for "of everybody".
    user = None if user_id in {None, 0, "0"} else str(user_id)
    found: Sequence[Keypair] = info.context.get(KeypairsOf(user, is_active, *_bounds(limit, offset)), ())
    return found


def _keypair_list(
    _root: None, info: Info, *, limit: int, offset: int, is_active: bool | None = None,
    domain_name: str | None = None, filter: str | None = None, order: str | None = None,  # noqa: A002 - the argument's name
) -> _Page:  # fmt: skip
    _unsorted(filter, order)
    if domain_name not in {None, DEFAULT_GROUP}:
        return _NOTHING
    asking = info.context
    need = KeypairsOf(None, is_active, *_bounds(limit, offset))
    return _Page(lambda: asking.get(need, ()), lambda: asking.get(KeypairsOf(None, is_active)))


def _sessions_of_keypair(keypair: Keypair, info: Info, status: str | None = None, limit: int | None = None) -> Any:
    _offset, most = _bounds(limit, 0, INNER_LIMIT)
    return info.context.get(KernelsOf(keypair.access_key, _statuses(status), most), ())


_KEYPAIR: Mapping[str, Callable[..., Any]] = {
    "user_info": lambda keypair, _info: {"full_name": keypair.user_id},
    "created_at": lambda keypair, _info: _text(keypair.created_at),
    "last_used": lambda keypair, _info: _text(keypair.last_used),
    "memory_used": lambda keypair, _info: keypair.taken.memory,
    "cpu_used": lambda keypair, _info: keypair.taken.cpu_millis / 1000,
    "gpus_used": lambda keypair, _info: keypair.taken.gpus,
    "vfolders": lambda keypair, info: info.context.get(FoldersOf(keypair.access_key, INNER_LIMIT), ()),
    "compute_sessions": _sessions_of_keypair,
}


# Agents.


def _status_of(agent: AgentDescription) -> str:
    """Give an agent's status; those that later clients know, and one for an agent that lives and gets no new kernels."""
    if agent.drain is not None:
        return "TERMINATED" if agent.alive is None else "DRAINING"
    return "LOST" if agent.alive is None else "ALIVE"


def _scaling_group(agent: AgentDescription) -> str:
    return DEFAULT_GROUP if agent.alive is None else agent.alive.labels.get(SCALING_GROUP, DEFAULT_GROUP)


def _of_alive(read: Callable[[Agent], Any]) -> Callable[[AgentDescription, Info], Any]:
    return lambda agent, _info: None if agent.alive is None else read(agent.alive)


def _explain_placement(
    _root: None, info: Info, *, runtime: str, cpu_cores: float | None = None, memory: int | None = None,
    gpus: int | None = None, labels: Sequence[str] | None = None,
) -> Sequence[Mapping[str, Any]]:  # fmt: skip
    if memory is not None and not isinstance(memory, int):
        raise InvalidRequest("memory must be a number of bytes")
    need = PlacementOf(runtime, cpu_cores or 0.0, memory or 0, gpus, tuple(labels or ()))
    return [
        {
            "agent": judged.agent_id,
            "place": judged.place,
            "load": round(judged.load, 3),
            "reasons": [sentence for _obstacle, sentence in judged.obstacles],
        }
        for judged in info.context.get(need, ())
    ]


def _some_agents(info: Info, status: str | None) -> Sequence[AgentDescription]:
    wanted = set(status.split(",")) if status else None
    return [agent for agent in info.context.get(Agents(), ()) if wanted is None or _status_of(agent) in wanted]


def _agent(_root: None, info: Info, agent_id: str) -> AgentDescription | None:
    return next((agent for agent in _some_agents(info, None) if agent.id == agent_id), None)


def _agents(
    _root: None,
    info: Info,
    *,
    status: str | None = None,
    limit: int | None = None,
    offset: int | None = None,
) -> Sequence[AgentDescription]:
    first, most = _bounds(limit, offset)
    return _some_agents(info, status)[first : first + most]


def _agent_list(
    _root: None, info: Info, *, limit: int, offset: int, status: str | None = None,
    scaling_group: str | None = None, filter: str | None = None, order: str | None = None,  # noqa: A002 - the argument's name
) -> _Page:  # fmt: skip
    _unsorted(filter, order)
    first, most = _bounds(limit, offset)
    found = [agent for agent in _some_agents(info, status) if scaling_group in {None, _scaling_group(agent)}]
    return _Page(lambda: found[first : first + most], lambda: len(found))


def _computations(agent: AgentDescription, info: Info, status: str | None = None, limit: int | None = None) -> Any:
    _offset, most = _bounds(limit, 0, INNER_LIMIT)
    return info.context.get(KernelsOf(agent.id, _statuses(status), most, of_agent=True), ())


def _capacity(agent: AgentDescription) -> Capacity:
    return Capacity() if agent.alive is None else agent.alive.capacity


_AGENT: Mapping[str, Callable[..., Any]] = {
    "status": lambda agent, _info: _status_of(agent),
    "region": lambda _agent, _info: DEFAULT_GROUP,
    "scaling_group": lambda agent, _info: _scaling_group(agent),
    "addr": _of_alive(lambda alive: alive.address.endpoint),
    "isolation": _of_alive(lambda alive: alive.isolation),
    "kernels": _of_alive(lambda alive: alive.num_kernels),
    "max_kernels": _of_alive(lambda alive: alive.max_kernels),
    "load": _of_alive(lambda alive: round(load(alive), 3)),
    "labels": _of_alive(lambda alive: [f"{key}={value}" for key, value in sorted(alive.labels.items())]),
    "schedulable": lambda agent, _info: agent.drain is None,
    "drained_since": lambda agent, _info: None if agent.drain is None else _text(agent.drain.since),
    "drain_deadline": lambda agent, _info: None if agent.drain is None else _text(agent.drain.deadline),
    "mem_slots": lambda agent, _info: _capacity(agent).memory // _MEMORY_SLOT,
    "cpu_slots": lambda agent, _info: _capacity(agent).cpu_millis // 500,
    "gpu_slots": lambda agent, _info: 2 * _capacity(agent).gpus,
    "used_mem_slots": lambda agent, _info: _memory_slots(agent.taken.memory),
    "used_cpu_slots": lambda agent, _info: _cpu_slots(agent.taken.cpu_millis),
    "used_gpu_slots": lambda agent, _info: 2 * agent.taken.gpus,
    "available_slots": lambda agent, _info: _text_of_slots(_capacity(agent)),
    "occupied_slots": lambda agent, _info: _text_of_slots(agent.taken),
    # No agent says what its whole host uses, and when one was lost is not kept.
    "cpu_cur_pct": lambda _agent, _info: None,
    "mem_cur_bytes": lambda _agent, _info: None,
    "hardware_metadata": lambda _agent, _info: None,
    "live_stat": lambda _agent, _info: None,
    "lost_at": lambda _agent, _info: None,
    "first_contact": lambda agent, _info: _text(agent.first_contact),
    "computations": _computations,
}


def _images(_root: None, info: Info, *, is_operation: bool | None = None) -> Sequence[Mapping[str, Any]]:
    """List the runtimes that a live agent offers; none of them is for the operation of Sorna itself."""
    if is_operation:
        return ()
    alive = [agent.alive for agent in info.context.get(Agents(), ()) if agent.alive is not None]
    return [{"name": name, "tag": "latest"} for name in sorted(set().union(*(agent.runtimes for agent in alive)))]


# Folders.


def _folders(_root: None, info: Info, access_key: str | None = None) -> Any:
    asking = info.context
    return asking.get(FoldersWhere(asking.owner or access_key, *_bounds(None, None)), ())


def _folder_list(
    _root: None, info: Info, *, limit: int, offset: int, group_id: str | None = None, access_key: str | None = None,
    filter: str | None = None, order: str | None = None,  # noqa: A002 - the argument's name
) -> _Page:  # fmt: skip
    _unsorted(filter, order)
    asking = info.context
    if group_id is not None or (asking.owner is not None and access_key not in {None, asking.owner}):
        return _NOTHING
    owner = asking.owner or access_key
    need = FoldersWhere(owner, *_bounds(limit, offset))
    return _Page(lambda: asking.get(need, ()), lambda: asking.get(FoldersWhere(owner)))


_FOLDER: Mapping[str, Callable[..., Any]] = {
    "id": lambda folder, _info: str(folder.id),
    "host": lambda _folder, _info: FOLDER_HOST,
    "max_files": lambda folder, _info: folder.bounds.files,
    # In KiB, as it always was.
    "max_size": lambda folder, _info: folder.bounds.size // KIB,
    "created_at": lambda folder, _info: _text(folder.created_at),
    "last_used": lambda folder, _info: _text(folder.last_used),
    # Nobody keeps what a folder holds; the folder's own description counts it.
    "num_files": lambda _folder, _info: None,
    "cur_size": lambda _folder, _info: None,
    "creator": lambda folder, _info: folder.owner,
    "group": lambda _folder, _info: None,
    "permission": lambda _folder, _info: "rw",
    "ownership_type": lambda _folder, _info: "user",
}


# Policies and usage.


def _policy(_root: None, info: Info, name: str) -> ResourcePolicy | None:
    return next((policy for policy in info.context.get(Policies(), ()) if policy.name == name), None)


def _policies(_root: None, info: Info, limit: int | None = None, offset: int | None = None) -> Any:
    first, most = _bounds(limit, offset)
    return info.context.get(Policies(), ())[first : first + most]


def _usage(
    _root: None, info: Info, *, since: Any, until: Any, access_key: str | None = None,
    limit: int | None = None, offset: int | None = None,
) -> Any:  # fmt: skip
    asking = info.context
    if asking.owner is not None and access_key not in {None, asking.owner}:
        return ()
    need = UsageOf(_moment(since), _moment(until), asking.owner or access_key, *_bounds(limit, offset))
    return asking.get(need, ())


@attrs.frozen
class _Page:
    """A page whose number of entries is only asked for where a query wants it."""

    items: Callable[[], Any]
    total_count: Callable[[], Any]


_NOTHING = _Page(lambda: (), lambda: 0)
_NOBODY = object()
_PAGE: Mapping[str, Callable[..., Any]] = {
    "items": lambda page, _info: page.items(),
    "total_count": lambda page, _info: page.total_count(),
}

RESOLVERS: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "Query": {
        "agent": _agent,
        "agents": _agents,
        "agent_list": _agent_list,
        "explain_placement": _explain_placement,
        "keypair": _keypair,
        "keypairs": _keypairs,
        "keypair_list": _keypair_list,
        "vfolders": _folders,
        "vfolder_list": _folder_list,
        "images": _images,
        "compute_session": _compute_session,
        "compute_sessions": _compute_sessions,
        "compute_session_list": _compute_session_list,
        "compute_workers": _no_workers,
        "resource_policy": _policy,
        "resource_policies": _policies,
        "usage": _usage,
    },
    "Mutation": MUTATIONS,
    "ComputeSession": _KERNEL,
    "ComputeWorker": _KERNEL,
    "KeyPair": _KEYPAIR,
    "Agent": _AGENT,
    "VirtualFolder": _FOLDER,
    "ComputeSessionList": _PAGE,
    "VirtualFolderList": _PAGE,
    "KeyPairList": _PAGE,
    "AgentList": _PAGE,
}
