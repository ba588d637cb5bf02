"""An agent as it describes itself and as the manager sees it; which one gets a new kernel is decided in ``placement``."""

from __future__ import annotations

import re
from collections.abc import Mapping

from attrs import field, frozen

from sorna.model.policy import Slots

MAX_LABELS = 32
#: Told to the managers, with the agent's id, by a heartbeat that comes after none or that says that the agent offers or may
#: hold something else than before.
AGENT_TOPIC = "sorna.agent-changed"
#: The label that later clients call an agent's scaling group, and the group of agents without it.
SCALING_GROUP, DEFAULT_GROUP = "scaling-group", "default"
_LABEL = re.compile(
    r"([A-Za-z0-9](?:[A-Za-z0-9_./-]{0,61}[A-Za-z0-9])?)=([A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)"
)


@frozen
class AgentAddress:
    """How to reach an agent's link.

    :ivar endpoint: ZeroMQ address, for instance ``tcp://127.0.0.1:6011``.
    :ivar public_key: the agent's CURVE public key, 40 characters of Z85.
    """

    agent_id: str
    endpoint: str
    public_key: str


@frozen
class Capacity:
    """What a host has; nothing where that is not known. Thousandths of processors, bytes, devices."""

    cpu_millis: int = 0
    memory: int = 0
    gpus: int = 0


@frozen
class HostLoad:
    """What a host uses now, with everything that runs on it: percent of all its processors, and bytes of its memory."""

    cpu_percent: float
    memory: int


@frozen
class Room:
    """What all kernels of an agent may be promised together; None is no bound. Thousandths of processors, bytes, devices.

    It may be more than the host has: kernels seldom use what they may.
    """

    memory: int | None = None
    cpu_millis: int | None = None
    gpus: int | None = None


def room_of(capacity: Capacity, memory_overcommit: float, cpu_overcommit: float) -> Room:
    """Give the room of a host.

    :param memory_overcommit: how many times over memory is promised; 0 for no bound. Likewise ``cpu_overcommit``.
    """
    return Room(
        memory=round(capacity.memory * memory_overcommit) or None,
        cpu_millis=round(capacity.cpu_millis * cpu_overcommit) or None,
        gpus=capacity.gpus,
    )


def read_label(text: str) -> tuple[str, str] | None:
    """Read ``key=value``; None when it is no label: 1 to 63 of ``A-Za-z0-9_.-`` (in keys ``/`` too), alphanumeric at both ends."""
    match = _LABEL.fullmatch(text)
    return None if match is None else (match[1], match[2])


@frozen
class Drain:
    """That an agent gets no new kernels and stops when it has none. Seconds since the epoch.

    :ivar deadline: when the kernels that are left are ended; None for never.
    """

    since: float
    deadline: float | None = None


@frozen
class Agent:
    """A live agent.

    :ivar incarnation: drawn anew at every start of the agent; kernels do not survive a change.
    :ivar runtimes: canonical names of the runtimes it can hold now.
    :ivar capacity: what its host has.
    :ivar storage: id of the folders' storage that its kernels can see; empty for none.
    :ivar load: what its host uses; None where that is not known.
    :ivar room: what its kernels may be promised, and ``memory_taken``, ``cpu_millis_taken`` and ``gpus_taken`` what they are.
    :ivar draining: whether it is to get no new kernels; the manager's word. ``refuses_kernels`` is the agent's own.
    """

    address: AgentAddress
    incarnation: str
    runtimes: frozenset[str]
    num_kernels: int
    max_kernels: int
    isolation: str = ""
    capacity: Capacity = Capacity()
    storage: str = ""
    load: HostLoad | None = None
    room: Room = Room()
    memory_taken: int = 0
    cpu_millis_taken: int = 0
    gpus_taken: int = 0
    labels: Mapping[str, str] = field(factory=dict)
    draining: bool = False
    refuses_kernels: bool = False

    @property
    def id(self) -> str:
        """The agent's id, stable over restarts."""
        return self.address.agent_id

    @property
    def taken(self) -> Slots:
        """What its live kernels have been promised."""
        return Slots(self.num_kernels, self.memory_taken, self.cpu_millis_taken, self.gpus_taken)


@frozen
class Heartbeat:
    """What an agent says of itself every few seconds (Redis db 2, field names of the historic layout).

    :ivar kernels: short ids of the kernels it holds now.
    :ivar stats: short id -> field -> value, live figures of each kernel for its hash in db 1.
    :ivar taken: what these kernels have been promised.
    :ivar refuses_kernels: whether a manager has told it to take no new ones.
    """

    agent_id: str
    incarnation: str
    endpoint: str
    public_key: str
    runtimes: frozenset[str]
    kernels: frozenset[str]
    max_kernels: int
    isolation: str
    stats: Mapping[str, Mapping[str, str]]
    capacity: Capacity = Capacity()
    storage: str = ""
    load: HostLoad | None = None
    room: Room = Room()
    taken: Slots = field(factory=Slots)
    labels: Mapping[str, str] = field(factory=dict)
    refuses_kernels: bool = False
