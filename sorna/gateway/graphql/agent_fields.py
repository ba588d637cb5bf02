"""The resolvers of agents and of what runtimes they offer; plain functions, each with its request's Asking."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sorna.errors import InvalidRequest
from sorna.gateway.graphql.bounds import INNER_LIMIT
from sorna.gateway.graphql.kernel_fields import statuses_of
from sorna.gateway.graphql.needs import Agents, KernelsOf, PlacementOf
from sorna.gateway.graphql.pages import (
    MEMORY_SLOT,
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
from sorna.manager.requests import AgentDescription
from sorna.model.agent import DEFAULT_GROUP, SCALING_GROUP, Agent, Capacity
from sorna.model.placement import load
from sorna.model.selection import AGENT_FIELDS, Value, select


def _status_of(agent: AgentDescription) -> str:
    """Give an agent's status; those that later clients know, and one for an agent that lives and gets no new kernels."""
    if agent.drain is not None:
        return "TERMINATED" if agent.alive is None else "DRAINING"
    return "LOST" if agent.alive is None else "ALIVE"


def _scaling_group(agent: AgentDescription) -> str:
    return DEFAULT_GROUP if agent.alive is None else agent.alive.labels.get(SCALING_GROUP, DEFAULT_GROUP)


def _of_alive(read: Callable[[Agent], Any]) -> Resolver:
    return lambda agent, _info: None if agent.alive is None else read(agent.alive)


def explain_placement(
    _root: None, info: Info, *, runtime: str, cpu_cores: float | None = None, memory: int | None = None,
    gpus: int | None = None, labels: Sequence[str] | None = None,
) -> Sequence[Mapping[str, Any]]:  # fmt: skip
    """Say how each agent is judged for a kernel."""
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


def agent(_root: None, info: Info, agent_id: str) -> AgentDescription | None:
    """Give an agent by its id."""
    return next((agent for agent in _some_agents(info, None) if agent.id == agent_id), None)


def agents(
    _root: None,
    info: Info,
    *,
    status: str | None = None,
    limit: int | None = None,
    offset: int | None = None,
) -> Sequence[AgentDescription]:
    """List agents as clients until 2019 ask for them."""
    first, most = bounds(limit, offset)
    return _some_agents(info, status)[first : first + most]


def agent_list(
    _root: None, info: Info, *, limit: int, offset: int, status: str | None = None,
    scaling_group: str | None = None, filter: str | None = None, order: str | None = None,  # noqa: A002 - the argument's name
) -> Page:  # fmt: skip
    """List agents by the page."""
    selection = read_selection(AGENT_FIELDS, filter, order)
    first, most = bounds(limit, offset)
    grouped = [agent for agent in _some_agents(info, status) if scaling_group in {None, _scaling_group(agent)}]
    found = select(grouped, selection, _value)
    return Page(lambda: found[first : first + most], lambda: len(found))


def _computations(agent: AgentDescription, info: Info, status: str | None = None, limit: int | None = None) -> Any:
    _offset, most = bounds(limit, 0, INNER_LIMIT)
    return info.context.get(KernelsOf(agent.id, statuses_of(status), most, of_agent=True), ())


def _capacity(agent: AgentDescription) -> Capacity:
    return Capacity() if agent.alive is None else agent.alive.capacity


def _value(agent: AgentDescription, field: str) -> Value:
    """Give what agents can be selected by."""
    used = None if agent.alive is None else agent.alive.load
    values: Mapping[str, Value] = {
        "id": agent.id,
        "status": _status_of(agent),
        "region": DEFAULT_GROUP,
        "scaling_group": _scaling_group(agent),
        "addr": None if agent.alive is None else agent.alive.address.endpoint,
        "isolation": None if agent.alive is None else agent.alive.isolation,
        "schedulable": agent.drain is None,
        "cpu_cur_pct": None if used is None else used.cpu_percent,
        "mem_cur_bytes": None if used is None else used.memory,
        "first_contact": agent.first_contact,
        "lost_at": agent.lost_at,
    }
    return values[field]


def _live_stat(agent: AgentDescription) -> str | None:
    """Write what a host uses now as later clients read it."""
    if agent.alive is None or agent.alive.load is None:
        return None
    used, capacity = agent.alive.load, agent.alive.capacity
    node = {
        "cpu_util": {
            "current": f"{used.cpu_percent:g}",
            "capacity": "100",
            "pct": f"{used.cpu_percent:g}",
            "unit_hint": "pct",
        },
        "mem": {
            "current": str(used.memory),
            "capacity": str(capacity.memory),
            "pct": f"{100 * used.memory / max(1, capacity.memory):.2f}",
            "unit_hint": "bytes",
        },
    }
    # Clients count the processors by their entries here, and nobody measures them one by one.
    return json.dumps({"node": node, "devices": {"cpu_util": {}}})


AGENT: Mapping[str, Callable[..., Any]] = {
    "status": lambda agent, _info: _status_of(agent),
    "region": always(DEFAULT_GROUP),
    "scaling_group": lambda agent, _info: _scaling_group(agent),
    "addr": _of_alive(lambda alive: alive.address.endpoint),
    "isolation": _of_alive(lambda alive: alive.isolation),
    "kernels": _of_alive(lambda alive: alive.num_kernels),
    "max_kernels": _of_alive(lambda alive: alive.max_kernels),
    "load": _of_alive(lambda alive: round(load(alive), 3)),
    "labels": _of_alive(lambda alive: [f"{key}={value}" for key, value in sorted(alive.labels.items())]),
    "schedulable": lambda agent, _info: agent.drain is None,
    "drained_since": lambda agent, _info: None if agent.drain is None else text_of(agent.drain.since),
    "drain_deadline": lambda agent, _info: None if agent.drain is None else text_of(agent.drain.deadline),
    "mem_slots": lambda agent, _info: _capacity(agent).memory // MEMORY_SLOT,
    "cpu_slots": lambda agent, _info: _capacity(agent).cpu_millis // 500,
    "gpu_slots": lambda agent, _info: 2 * _capacity(agent).gpus,
    "used_mem_slots": lambda agent, _info: memory_slots(agent.taken.memory),
    "used_cpu_slots": lambda agent, _info: cpu_slots(agent.taken.cpu_millis),
    "used_gpu_slots": lambda agent, _info: 2 * agent.taken.gpus,
    "available_slots": lambda agent, _info: text_of_slots(_capacity(agent)),
    "occupied_slots": lambda agent, _info: text_of_slots(agent.taken),
    "cpu_cur_pct": lambda agent, _info: _value(agent, "cpu_cur_pct"),
    "mem_cur_bytes": lambda agent, _info: _value(agent, "mem_cur_bytes"),
    "live_stat": lambda agent, _info: _live_stat(agent),
    "lost_at": lambda agent, _info: text_of(agent.lost_at),
    "status_changed": lambda agent, _info: text_of(agent.lost_at),
    "compute_containers": lambda agent, info: _computations(agent, info, "RUNNING"),
    # Nobody tells.
    **dict.fromkeys(("architecture", "version"), always(None)),
    **dict.fromkeys(("hardware_metadata", "compute_plugins", "local_config"), always("{}")),
    "first_contact": lambda agent, _info: text_of(agent.first_contact),
    "computations": _computations,
}


def images(_root: None, info: Info, *, is_operation: bool | None = None) -> Sequence[Mapping[str, Any]]:
    """List the runtimes that a live agent offers; none of them is for the operation of Sorna itself."""
    if is_operation:
        return ()
    alive = [agent.alive for agent in info.context.get(Agents(), ()) if agent.alive is not None]
    return [{"name": name, "tag": "latest"} for name in sorted(set().union(*(agent.runtimes for agent in alive)))]
