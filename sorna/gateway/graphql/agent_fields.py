"""The resolvers of agents and of what runtimes they offer; plain functions, each with its request's Asking."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sorna.gateway.graphql.bounds import INNER_LIMIT
from sorna.gateway.graphql.kernel_fields import statuses_of
from sorna.gateway.graphql.needs import Agents, KernelsOf
from sorna.gateway.graphql.pages import (
    DEFAULT_GROUP,
    MEMORY_SLOT,
    NOTHING,
    Info,
    Page,
    always,
    bounds,
    cpu_slots,
    memory_slots,
    text_of,
    text_of_slots,
)
from sorna.gateway.graphql.selecting import read_selection
from sorna.manager.requests import AgentDescription
from sorna.model.agent import Capacity
from sorna.model.selection import AGENT_FIELDS, Value, select


def _status_of(agent: AgentDescription) -> str:
    return "LOST" if agent.alive is None else "ALIVE"


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
    if scaling_group not in {None, DEFAULT_GROUP}:
        return NOTHING
    first, most = bounds(limit, offset)
    found = select(_some_agents(info, status), selection, _value)
    return Page(lambda: found[first : first + most], lambda: len(found))


def _computations(agent: AgentDescription, info: Info, status: str | None = None, limit: int | None = None) -> Any:
    _offset, most = bounds(limit, 0, INNER_LIMIT)
    return info.context.get(KernelsOf(agent.id, statuses_of(status), most, of_agent=True), ())


def _capacity(agent: AgentDescription) -> Capacity:
    return Capacity() if agent.alive is None else agent.alive.capacity


def _value(agent: AgentDescription, field: str) -> Value:
    """Give what agents can be selected by."""
    load = None if agent.alive is None else agent.alive.load
    values: Mapping[str, Value] = {
        "id": agent.id,
        "status": _status_of(agent),
        "region": DEFAULT_GROUP,
        "scaling_group": DEFAULT_GROUP,
        "addr": None if agent.alive is None else agent.alive.address.endpoint,
        "isolation": None if agent.alive is None else agent.alive.isolation,
        "schedulable": agent.alive is not None,
        "cpu_cur_pct": None if load is None else load.cpu_percent,
        "mem_cur_bytes": None if load is None else load.memory,
        "first_contact": agent.first_contact,
        "lost_at": agent.lost_at,
    }
    return values[field]


def _live_stat(agent: AgentDescription) -> str | None:
    """Write what a host uses now as later clients read it."""
    if agent.alive is None or agent.alive.load is None:
        return None
    load, capacity = agent.alive.load, agent.alive.capacity
    node = {
        "cpu_util": {
            "current": f"{load.cpu_percent:g}",
            "capacity": "100",
            "pct": f"{load.cpu_percent:g}",
            "unit_hint": "pct",
        },
        "mem": {
            "current": str(load.memory),
            "capacity": str(capacity.memory),
            "pct": f"{100 * load.memory / max(1, capacity.memory):.2f}",
            "unit_hint": "bytes",
        },
    }
    # Clients count the processors by their entries here, and nobody measures them one by one.
    return json.dumps({"node": node, "devices": {"cpu_util": {}}})


AGENT: Mapping[str, Callable[..., Any]] = {
    "status": lambda agent, _info: _status_of(agent),
    "region": lambda _agent, _info: DEFAULT_GROUP,
    "scaling_group": lambda _agent, _info: DEFAULT_GROUP,
    "addr": lambda agent, _info: None if agent.alive is None else agent.alive.address.endpoint,
    "isolation": lambda agent, _info: None if agent.alive is None else agent.alive.isolation,
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
    "schedulable": lambda agent, _info: agent.alive is not None,
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
