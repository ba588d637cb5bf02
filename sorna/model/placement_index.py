"""The same choice as ``placement.place`` without looking at every agent each time: for clusters of thousands.

Pure, and no truth of its own: a property test holds it to :func:`sorna.model.placement.place`.

Note [Ranked lists by what is free]
    Requests repeat: they ask for a few runtimes and labels, with whatever limits. For each such kind of demand, the agents
    that have a place for a kernel and nothing but a lack of room against them are kept in order of rank: one list for
    each group and each *magnitude* of what is free, the number of binary digits of free memory, processors and devices.
    Lists of a smaller magnitude than the demand cannot hold it, in those of a larger one the head can, and only where the
    magnitude is the same some may have to be passed over. An agent that changes is moved in the lists of its kinds, with
    two binary searches each.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Collection, Iterable
from typing import Any

from attrs import define, evolve, field

from sorna.model.agent import Agent
from sorna.model.placement import Demand, PlacementRules, group_of, group_rank, has_room, is_eligible, rank
from sorna.model.policy import Slots

#: Kinds of demands whose lists are kept.
REMEMBERED = 64
_NO_BOUND = 1 << 10

_Rank = tuple[Any, ...]
_Magnitude = tuple[int, int, int]
# Where an agent stands in the lists of a kind: its group, the magnitude of what is free, its rank.
_Entry = tuple[str, _Magnitude, _Rank]


@define
class _Kind:
    """The agents for one kind of demand.

    :ivar demand: one of them, without its limits.
    :ivar members: ids of those that nothing but a lack of room keeps from holding it; ``entries`` of those with a place.
    """

    demand: Demand
    members: set[str] = field(factory=set)
    entries: dict[str, _Entry] = field(factory=dict)
    lists: dict[str, dict[_Magnitude, list[_Rank]]] = field(factory=dict)

    def take_out(self, agent_id: str) -> None:
        """Remove an agent from its list."""
        entry = self.entries.pop(agent_id, None)
        if entry is None:
            return
        group, magnitude, place = entry
        by_magnitude = self.lists[group]
        ranked = by_magnitude[magnitude]
        del ranked[bisect_left(ranked, place)]
        if not ranked:
            del by_magnitude[magnitude]
            if not by_magnitude:
                del self.lists[group]

    def put_in(self, agent_id: str, entry: _Entry) -> None:
        """Put a member with a place into its list."""
        group, magnitude, place = self.entries[agent_id] = entry
        insort(self.lists.setdefault(group, {}).setdefault(magnitude, []), place)


@define
class PlacementIndex:
    """The agents of a cluster, ranked for the kinds of demands that come."""

    rules: PlacementRules
    agents: dict[str, Agent] = field(factory=dict)
    _sums: dict[str, tuple[int, int]] = field(factory=dict)
    _kinds: OrderedDict[Demand, _Kind] = field(factory=OrderedDict)

    def put(self, agent: Agent) -> None:
        """Add an agent, or replace what was known of it."""
        known = self.agents.get(agent.id)
        if known == agent:
            return
        self._count(known, agent)
        self.agents[agent.id] = agent
        alike = known is not None and _alike(known, agent)
        # Kinds differ for a rank by no more than whether devices are asked for.
        entries: dict[int, _Entry] = {}
        has_place = agent.num_kernels < agent.max_kernels
        for kind in self._kinds.values():
            kind.take_out(agent.id)
            if not alike:
                self._judge(kind, agent)
            if has_place and agent.id in kind.members:
                devices = kind.demand.slots.gpus
                entry = entries.get(devices)
                if entry is None:
                    entry = entries[devices] = self._entry(kind, agent)
                kind.put_in(agent.id, entry)

    def remove(self, agent_id: str) -> None:
        """Forget an agent; harmless when it is not known."""
        known = self.agents.pop(agent_id, None)
        if known is not None:
            self._count(known, None)
            for kind in self._kinds.values():
                kind.take_out(agent_id)
                kind.members.discard(agent_id)

    def choose(self, demand: Demand, excluded: Collection[str] = ()) -> Agent | None:
        """Choose as :func:`sorna.model.placement.place` does."""
        kind = self._kind(demand)
        names: Iterable[str] = kind.lists
        if len(kind.lists) > 1:
            names = sorted(kind.lists, key=lambda name: group_rank(name, *self._sums[name]))
        least = _digits(demand.slots)
        for name in names:
            heads = []
            for magnitude, ranked in kind.lists[name].items():
                if magnitude[0] >= least[0] and magnitude[1] >= least[1] and magnitude[2] >= least[2]:
                    head = self._first(ranked, demand, excluded)
                    if head is not None:
                        heads.append(head)
            if heads:
                return self.agents[min(heads)[-1]]
        return None

    def _first(self, ranked: list[_Rank], demand: Demand, excluded: Collection[str]) -> _Rank | None:
        for one in ranked:
            if one[-1] not in excluded and has_room(self.agents[one[-1]], demand.slots):
                return one
        return None

    def _kind(self, demand: Demand) -> _Kind:
        # Whether devices are asked for changes the order; how many, and all other limits, do not.
        key = evolve(demand, slots=Slots(gpus=min(demand.slots.gpus, 1)))
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._kinds[key] = _Kind(key)
            for agent in self.agents.values():
                self._judge(kind, agent)
                if agent.id in kind.members and agent.num_kernels < agent.max_kernels:
                    kind.put_in(agent.id, self._entry(kind, agent))
            if len(self._kinds) > REMEMBERED:
                self._kinds.popitem(last=False)
        else:
            self._kinds.move_to_end(key)
        return kind

    def _entry(self, kind: _Kind, agent: Agent) -> _Entry:
        return group_of(agent, self.rules), _magnitude(agent), rank(agent, kind.demand, self.rules)

    def _judge(self, kind: _Kind, agent: Agent) -> None:
        if is_eligible(agent, kind.demand, self.rules):
            kind.members.add(agent.id)
        else:
            kind.members.discard(agent.id)

    def _count(self, before: Agent | None, after: Agent | None) -> None:
        for agent, sign in ((before, -1), (after, 1)):
            if agent is not None:
                name = group_of(agent, self.rules)
                taken, places = self._sums.get(name, (0, 0))
                self._sums[name] = (taken + sign * agent.num_kernels, places + sign * agent.max_kernels)


def _alike(one: Agent, other: Agent) -> bool:
    """Tell whether two states of an agent are eligible for the same demands."""
    return (
        one.draining == other.draining
        and one.storage == other.storage
        and (one.labels is other.labels or one.labels == other.labels)
        and (one.runtimes is other.runtimes or one.runtimes == other.runtimes)
    )


def _digits(slots: Slots) -> _Magnitude:
    return slots.memory.bit_length(), slots.cpu_millis.bit_length(), slots.gpus.bit_length()


def _magnitude(agent: Agent) -> _Magnitude:
    room = agent.room
    return (
        _NO_BOUND if room.memory is None else max(0, room.memory - agent.memory_taken).bit_length(),
        _NO_BOUND if room.cpu_millis is None else max(0, room.cpu_millis - agent.cpu_millis_taken).bit_length(),
        _NO_BOUND if room.gpus is None else max(0, room.gpus - agent.gpus_taken).bit_length(),
    )
