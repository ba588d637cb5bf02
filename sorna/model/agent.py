"""An agent as the manager sees it, and the rule that chooses one for a new kernel."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from attrs import frozen


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
class Agent:
    """A live agent.

    :ivar incarnation: drawn anew at every start of the agent; kernels do not survive a change.
    :ivar runtimes: canonical names of the runtimes it can hold now.
    :ivar capacity: what its host has.
    :ivar storage: id of the folders' storage that its kernels can see; empty for none.
    :ivar load: what its host uses; None where that is not known.
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

    @property
    def id(self) -> str:
        """The agent's id, stable over restarts."""
        return self.address.agent_id


@frozen
class Heartbeat:
    """What an agent says of itself every few seconds (Redis db 2, field names of the historic layout).

    :ivar kernels: short ids of the kernels it holds now.
    :ivar stats: short id -> field -> value, live figures of each kernel for its hash in db 1.
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


def place(
    runtime: str, agents: Iterable[Agent], excluded: Collection[str] = (), gpu_instances: Collection[str] = ()
) -> Agent | None:
    """Choose the agent with the most free places among those that offer the runtime, or None.

    Where ``gpu_instances`` names agents, a runtime whose name ends in ``-gpu`` goes to one of them only. Ties go to the
    smaller id, so that the same input always gives the same answer.
    """
    needs_gpu_instance = runtime.endswith("-gpu") and bool(gpu_instances)
    fit = [
        agent
        for agent in agents
        if runtime in agent.runtimes
        and agent.num_kernels < agent.max_kernels
        and agent.id not in excluded
        and not (needs_gpu_instance and agent.id not in gpu_instances)
    ]
    return min(fit, key=lambda agent: (agent.num_kernels - agent.max_kernels, agent.id), default=None)
