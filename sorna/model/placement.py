"""Which agent gets a new kernel, and why: pure functions over agents as they describe themselves.

Knows no store and no clock. What is decided here can always be asked for its reasons, because the sentence that a refused
client gets, an administrator's explanation and the choice itself come from the same judgements. ``placement_index`` gives
the same answers faster where there are many agents.

Note [What the strategies mean]
    An agent's *load* is the largest share that is taken of anything it has a bound for: kernels, memory, processors,
    devices. Among the agents that can hold a kernel

    * ``spread`` takes the one with the lowest load;
    * ``pack`` takes the one with the highest, so that others stay empty and can be drained;
    * ``label:KEY`` first takes the value of that label (a zone, a rack) whose agents hold the smallest share of the kernels
      they could, those without the label counting as one more value, and spreads within it;
    * ``device`` keeps devices for those who need them: a kernel without goes where there are fewest, one with to where just
      enough are free; ties are spread.

    Where all that is equal the smaller id wins: the same input always gives the same answer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from enum import Enum, StrEnum
from typing import Any

from attrs import frozen

from sorna.model.agent import Agent, Room
from sorna.model.limits import MIB
from sorna.model.policy import Slots


class Strategy(StrEnum):
    """See Note [What the strategies mean]."""

    SPREAD = "spread"
    PACK = "pack"
    LABEL = "label"
    DEVICE = "device"


@frozen
class PlacementRules:
    """What the operator has decided.

    :ivar label: the label over whose values ``label`` spreads.
    :ivar gpu_instances: agents that alone get runtimes whose names end in ``-gpu``; empty for any.
    """

    strategy: Strategy = Strategy.SPREAD
    label: str = ""
    gpu_instances: frozenset[str] = frozenset()


@frozen
class Demand:
    """What a new kernel needs of its agent.

    :ivar labels: pairs of key and value that the agent must have.
    :ivar storage: the folders' storage that it must see; None for any or none.
    """

    runtime: str
    slots: Slots
    labels: frozenset[tuple[str, str]] = frozenset()
    storage: str | None = None


class Obstacle(Enum):
    """Why an agent cannot hold a kernel, in the order in which it is looked at; only the last one passes by itself."""

    RUNTIME = "runtime"
    STORAGE = "storage"
    LABEL = "label"
    GPU_INSTANCE = "gpu-instance"
    DRAINING = "draining"
    ROOM = "room"


@frozen
class Judgement:
    """What is thought of one agent for one demand.

    :ivar obstacles: empty when it can hold the kernel; each with a sentence.
    :ivar load: from 0 to 1, before the kernel comes.
    :ivar place: 1 for the one that is chosen, 2 for the next; None for those that cannot.
    """

    agent_id: str
    obstacles: Sequence[tuple[Obstacle, str]]
    load: float
    place: int | None

    @property
    def would_fit_if_empty(self) -> bool:
        """Whether nothing but a lack of room is in the way."""
        return all(obstacle is Obstacle.ROOM for obstacle, _sentence in self.obstacles)


def read_rules(text: str, gpu_instances: Collection[str] = ()) -> PlacementRules | None:
    """Read ``spread``, ``pack``, ``device`` or ``label:KEY``; None for anything else."""
    name, _colon, label = text.partition(":")
    if name not in set(Strategy) or bool(label) != (name == Strategy.LABEL):
        return None
    return PlacementRules(Strategy(name), label, frozenset(gpu_instances))


def shortages(taken: Slots, max_kernels: int, room: Room, wanted: Slots) -> Iterator[str]:
    """Say of everything on an agent that has no room for ``wanted`` how much of it is taken; nothing when it fits."""
    if taken.kernels + wanted.kernels > max_kernels:
        yield f"kernels: {taken.kernels} of {max_kernels} taken"
    if room.memory is not None and taken.memory + wanted.memory > room.memory:
        yield f"memory: {taken.memory // MIB} of {room.memory // MIB} MiB taken, {wanted.memory // MIB} MiB asked for"
    if room.cpu_millis is not None and taken.cpu_millis + wanted.cpu_millis > room.cpu_millis:
        yield (
            f"processors: {taken.cpu_millis / 1000:g} of {room.cpu_millis / 1000:g} taken,"
            f" {wanted.cpu_millis / 1000:g} asked for"
        )
    if wanted.gpus and room.gpus is not None and taken.gpus + wanted.gpus > room.gpus:
        yield f"GPUs: {taken.gpus} of {room.gpus} taken, {wanted.gpus} asked for"


def obstacles(agent: Agent, demand: Demand, rules: PlacementRules) -> Iterator[Obstacle]:
    """Tell what is in the way of a kernel on this agent; nothing when it can hold it."""
    if demand.runtime not in agent.runtimes:
        yield Obstacle.RUNTIME
    if demand.storage is not None and agent.storage != demand.storage:
        yield Obstacle.STORAGE
    if demand.labels and any(agent.labels.get(key) != value for key, value in demand.labels):
        yield Obstacle.LABEL
    if rules.gpu_instances and demand.runtime.endswith("-gpu") and agent.id not in rules.gpu_instances:
        yield Obstacle.GPU_INSTANCE
    if agent.draining:
        yield Obstacle.DRAINING
    if not has_room(agent, demand.slots):
        yield Obstacle.ROOM


def is_eligible(agent: Agent, demand: Demand, rules: PlacementRules) -> bool:
    """Tell whether nothing but a lack of room keeps this agent from holding such a kernel."""
    return next(obstacles(agent, demand, rules), Obstacle.ROOM) is Obstacle.ROOM


def has_room(agent: Agent, wanted: Slots) -> bool:
    """Tell whether an agent has room, eligible or not."""
    return next(shortages(agent.taken, agent.max_kernels, agent.room, wanted), None) is None


def fits(agent: Agent, demand: Demand, rules: PlacementRules) -> bool:
    """Tell whether this agent can hold such a kernel now."""
    return next(obstacles(agent, demand, rules), None) is None


def fits_when_empty(agent: Agent, demand: Demand, rules: PlacementRules) -> bool:
    """Tell whether this agent could hold such a kernel if it held nothing else."""
    return (
        is_eligible(agent, demand, rules)
        and next(shortages(Slots(), agent.max_kernels, agent.room, demand.slots), None) is None
    )


def load(agent: Agent) -> float:
    """Give the largest share that is taken of anything the agent has a bound for."""
    room = agent.room
    most = agent.num_kernels / agent.max_kernels if agent.max_kernels > 0 else 1.0
    if room.memory:
        most = max(most, agent.memory_taken / room.memory)
    if room.cpu_millis:
        most = max(most, agent.cpu_millis_taken / room.cpu_millis)
    if room.gpus:
        most = max(most, agent.gpus_taken / room.gpus)
    return most


def rank(agent: Agent, demand: Demand, rules: PlacementRules) -> tuple[Any, ...]:
    """Give what agents of one group are ordered by, the best first; ends with the id, so that no two are equal."""
    match rules.strategy:
        case Strategy.PACK:
            return (-load(agent), agent.id)
        case Strategy.DEVICE:
            devices = agent.room.gpus or 0
            return (devices - agent.gpus_taken if demand.slots.gpus else devices, load(agent), agent.id)
        case _:
            return (load(agent), agent.id)


def group_of(agent: Agent, rules: PlacementRules) -> str:
    """Give the group within which agents are ranked; all are in one unless a label is to be spread over."""
    return agent.labels.get(rules.label, "") if rules.strategy is Strategy.LABEL else ""


def group_rank(name: str, taken: int, places: int) -> tuple[float, str]:
    """Give what groups are ordered by, the best first. :param taken: of ``places`` for kernels, in the whole group."""
    return (taken / places if places else 1.0, name)


def place(
    demand: Demand, agents: Collection[Agent], rules: PlacementRules, excluded: Collection[str] = ()
) -> Agent | None:
    """Choose the agent for a kernel, or None when no one can hold it.

    :param excluded: ids of agents that are passed over, although they count for their groups.
    """
    fit = [agent for agent in agents if agent.id not in excluded and fits(agent, demand, rules)]
    return next(iter(_best_first(demand, fit, agents, rules)), None)


def _best_first(
    demand: Demand, fit: Iterable[Agent], agents: Iterable[Agent], rules: PlacementRules
) -> Sequence[Agent]:
    sums: dict[str, tuple[int, int]] = {}
    for agent in agents:
        group = group_of(agent, rules)
        taken, places = sums.get(group, (0, 0))
        sums[group] = (taken + agent.num_kernels, places + agent.max_kernels)
    ranks = {name: group_rank(name, *of_group) for name, of_group in sums.items()}
    return sorted(fit, key=lambda agent: (ranks[group_of(agent, rules)], rank(agent, demand, rules)))


def explain(demand: Demand, agents: Collection[Agent], rules: PlacementRules) -> Sequence[Judgement]:
    """Judge every agent: those that can hold the kernel first, in the order of choice, then the others by id."""
    best = _best_first(demand, [agent for agent in agents if fits(agent, demand, rules)], agents, rules)
    places = {agent.id: number for number, agent in enumerate(best, 1)}
    judged = [
        Judgement(
            agent.id,
            tuple((one, _sentence(one, agent, demand)) for one in obstacles(agent, demand, rules)),
            load(agent),
            places.get(agent.id),
        )
        for agent in agents
    ]
    return sorted(judged, key=lambda one: (one.place is None, one.place or 0, one.agent_id))


def _sentence(obstacle: Obstacle, agent: Agent, demand: Demand) -> str:
    match obstacle:
        case Obstacle.RUNTIME:
            return f"does not offer {demand.runtime}"
        case Obstacle.STORAGE:
            return "does not see the storage of the folders that are to be mounted"
        case Obstacle.LABEL:
            missing = sorted((key, value) for key, value in demand.labels if agent.labels.get(key) != value)
            return f"lacks the label {', '.join(f'{key}={value}' for key, value in missing)}"
        case Obstacle.GPU_INSTANCE:
            return "is not one of the GPU instances"
        case Obstacle.DRAINING:
            return "is being drained"
        case Obstacle.ROOM:
            return "; ".join(shortages(agent.taken, agent.max_kernels, agent.room, demand.slots))


def why_nobody(demand: Demand, judgements: Collection[Judgement]) -> str:
    """Say in one sentence for the client why no agent holds its kernel: what stops those that come closest."""
    if not judgements:
        return "No agent is alive."
    order = list(Obstacle)
    last = max((order.index(one.obstacles[0][0]) for one in judgements if one.obstacles), default=len(order))
    labels = ", ".join(f"{key}={value}" for key, value in sorted(demand.labels))
    if demand.slots.gpus and last == order.index(Obstacle.ROOM):
        least = min(one.obstacles[0][1] for one in judgements if one.obstacles and one.obstacles[0][0] is Obstacle.ROOM)
        return f"No agent has what is asked for: {least}."
    sentences = {
        Obstacle.RUNTIME: f"No agent offers {demand.runtime}.",
        Obstacle.STORAGE: "No agent has the storage of the folders that are to be mounted.",
        Obstacle.LABEL: f"No agent that offers {demand.runtime} has the label {labels}.",
        Obstacle.GPU_INSTANCE: f"No GPU instance offers {demand.runtime}.",
        Obstacle.DRAINING: f"Every agent that could hold {demand.runtime} is being drained.",
        Obstacle.ROOM: f"Every agent that offers {demand.runtime} is full.",
    }
    return sentences[order[last]] if last < len(order) else f"Every agent that offers {demand.runtime} is full."
