"""Verified fakes of this room: the same contract suites as the real ones, in memory, on a clock that tests advance.

Know nothing of Redis. They share one :class:`MemoryRedis`, as the real ones share a server, because a kernel that is added
counts on its agent, and an agent's figures show up in its kernels.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress

from attrs import define, evolve, field, frozen
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from sorna.errors import InvalidRequest, Unavailable
from sorna.live.channels import encode_text
from sorna.live.instances import kernel_figures, valid_agent_id
from sorna.live.kernels import LONGEST_REFERENCE, NAMES_TOGETHER, kernel_fields, place_of, session_key
from sorna.live.rate_counters import WINDOW, exceeded
from sorna.manager.interfaces import KernelPlace, RateState
from sorna.model.agent import AGENT_TOPIC, Agent, AgentAddress, Heartbeat
from sorna.model.census import Traces
from sorna.model.kernel import Kernel, parse_kernel_id, short_id
from sorna.model.policy import Slots, slots_of


@frozen
class _Beaten:
    """The last heartbeat of an agent, and when its lease ends."""

    agent: Agent
    until: float

    def counting(self, taken: Slots) -> _Beaten:
        """Give the same with this much more (or less) taken."""
        agent = self.agent
        return evolve(
            self,
            agent=evolve(
                agent,
                memory_taken=agent.memory_taken + taken.memory,
                cpu_millis_taken=agent.cpu_millis_taken + taken.cpu_millis,
                gpus_taken=agent.gpus_taken + taken.gpus,
            ),
        )


@define
class MemoryRedis:
    """What a server would hold.

    :ivar available: set to False, and every call of every fake raises Unavailable.
    """

    clock: IReactorTime
    available: bool = True
    instances: dict[str, _Beaten] = field(factory=dict)
    members: dict[str, set[str]] = field(factory=dict)
    kernels: dict[str, dict[str, str]] = field(factory=dict)
    sessions: dict[str, str] = field(factory=dict)
    counters: dict[str, tuple[int, float]] = field(factory=dict)
    turns: dict[str, tuple[str, float]] = field(factory=dict)
    receivers: dict[str, list[Callable[[str], None]]] = field(factory=dict)

    def touch(self) -> None:
        """Fail as an unreachable server does.

        :raises Unavailable: ``available`` is False.
        """
        if not self.available:
            raise Unavailable("Redis cannot be reached.")


class MemoryHeartbeatStore:
    """Fake of ``RedisHeartbeatStore``."""

    def __init__(self, redis: MemoryRedis) -> None:
        self._redis = redis

    async def beat(self, heartbeat: Heartbeat, interval: float) -> None:
        """Write one heartbeat."""
        if not valid_agent_id(heartbeat.agent_id):
            raise InvalidRequest("The id of the agent must be of letters, digits, '_', '.' and '-'.")
        self._redis.touch()
        agent = Agent(
            address=AgentAddress(heartbeat.agent_id, heartbeat.endpoint, heartbeat.public_key),
            incarnation=heartbeat.incarnation,
            runtimes=heartbeat.runtimes,
            num_kernels=0,
            max_kernels=heartbeat.max_kernels,
            isolation=heartbeat.isolation,
            capacity=heartbeat.capacity,
            storage=heartbeat.storage,
            load=heartbeat.load,
            room=heartbeat.room,
            memory_taken=heartbeat.taken.memory,
            cpu_millis_taken=heartbeat.taken.cpu_millis,
            gpus_taken=heartbeat.taken.gpus,
            labels=heartbeat.labels,
            refuses_kernels=heartbeat.refuses_kernels,
        )
        before = self._redis.instances.get(heartbeat.agent_id)
        known = (
            before is not None and before.until > self._redis.clock.seconds() and _offer(before.agent) == _offer(agent)
        )
        until = self._redis.clock.seconds() + 2 * interval
        self._redis.instances[heartbeat.agent_id] = _Beaten(agent, until)
        self._redis.members[heartbeat.agent_id] = set(heartbeat.kernels)
        for kernel, stats in heartbeat.stats.items():
            fields = self._redis.kernels.get(kernel, {})
            if fields.get("instance") == heartbeat.agent_id:
                fields.update(kernel_figures(stats))
        if not known:
            for receive in tuple(self._redis.receivers.get(AGENT_TOPIC, ())):
                receive(heartbeat.agent_id)

    async def leave(self, agent_id: str) -> None:
        """Remove the agent."""
        self._redis.touch()
        self._redis.instances.pop(agent_id, None)
        self._redis.members.pop(agent_id, None)


def _offer(agent: Agent) -> Agent:
    """Give an agent without what changes with its kernels."""
    return evolve(agent, num_kernels=0, memory_taken=0, cpu_millis_taken=0, gpus_taken=0)


class MemoryAgentDirectory:
    """Fake of ``RedisAgentDirectory``."""

    def __init__(self, redis: MemoryRedis) -> None:
        self._redis = redis

    async def alive(self) -> Sequence[Agent]:
        """List the agents whose lease has not ended."""
        self._redis.touch()
        found = (self._living(agent_id) for agent_id in sorted(self._redis.instances))
        return [agent for agent in found if agent is not None]

    async def find(self, agent_id: str) -> Agent | None:
        """Give one live agent, or None."""
        self._redis.touch()
        return self._living(agent_id)

    async def kernels_of(self, agent_id: str) -> frozenset[str]:
        """Give the short ids of an agent's kernels."""
        self._redis.touch()
        return frozenset(self._redis.members.get(agent_id, ()))

    def _living(self, agent_id: str) -> Agent | None:
        beaten = self._redis.instances.get(agent_id)
        if beaten is None or beaten.until <= self._redis.clock.seconds():
            return None
        return evolve(beaten.agent, num_kernels=len(self._redis.members.get(agent_id, ())))


class MemoryLiveKernels:
    """Fake of ``RedisLiveKernels``."""

    def __init__(self, redis: MemoryRedis) -> None:
        self._redis = redis

    async def add(self, kernel: Kernel, agent: AgentAddress) -> None:
        """Write a kernel."""
        self._redis.touch()
        short = short_id(kernel.id)
        fields = self._redis.kernels.setdefault(short, {"num_queries": str(kernel.num_queries)})
        takes = slots_of(kernel.runtime, kernel.limits)
        fields.update(kernel_fields(kernel, agent), takes=f"{takes.memory} {takes.cpu_millis} {takes.gpus}")
        members = self._redis.members.setdefault(agent.agent_id, set())
        if short not in members:
            members.add(short)
            self._count(agent.agent_id, takes)
        self._redis.sessions[session_key(kernel.access_key, kernel.session_token)] = short

    async def use(self, access_key: str, reference: str, *, count: bool = True) -> KernelPlace | None:
        """Find a kernel of the owner and count the query."""
        self._redis.touch()
        if len(reference) > LONGEST_REFERENCE:
            return None
        kernel_id = parse_kernel_id(reference)
        fields = self._owned(access_key, short_id(kernel_id)) if kernel_id is not None else None
        if fields is None:
            fields = self._owned(access_key, self._redis.sessions.get(session_key(access_key, reference), ""))
        if fields is None:
            return None
        if count:
            fields["num_queries"] = str(int(fields["num_queries"]) + 1)
        return place_of(dict(fields))

    async def count(self, queries: Mapping[uuid.UUID, int]) -> None:
        """Count queries of kernels that are there."""
        self._redis.touch()
        for kernel_id, number in queries.items():
            fields = self._redis.kernels.get(short_id(kernel_id))
            if fields is not None:
                fields["num_queries"] = str(int(fields["num_queries"]) + number)

    async def forget(self, kernel: Kernel) -> None:
        """Remove every trace of a kernel."""
        self._redis.touch()
        short = short_id(kernel.id)
        fields: Mapping[str, str] = self._redis.kernels.pop(short, {})
        agent_id = fields.get("instance", kernel.agent_id or "")
        key = session_key(kernel.access_key, kernel.session_token)
        self._remove(short, agent_id, key, slots_of(kernel.runtime, kernel.limits))

    async def places(self, kernel_ids: Collection[uuid.UUID]) -> Mapping[uuid.UUID, KernelPlace]:
        """Find several kernels of any owner and count nothing."""
        self._redis.touch()
        places = (place_of(dict(self._redis.kernels.get(short_id(one), {}))) for one in kernel_ids)
        return {place.kernel_id: place for place in places if place is not None}

    async def absent(self, names: Collection[str]) -> Collection[str]:
        """Give those that have no entry."""
        self._redis.touch()
        return [name for name in names if name not in self._redis.kernels]

    async def traces(self, begin: str = "") -> Traces:
        """Give a part of what there is, entries before sessions; what goes meanwhile makes nobody miss another."""
        self._redis.touch()
        lone = {key: name for key, name in self._redis.sessions.items() if name not in self._redis.kernels}
        there = sorted([*(f"1{name}" for name in self._redis.kernels), *(f"3{key}" for key in lone)])
        after = [one for one in there if one > begin]
        part = after[:NAMES_TOGETHER]
        return Traces(
            frozenset(one[1:] for one in part if one[0] == "1"),
            {one[1:]: lone[one[1:]] for one in part if one[0] == "3"},
            part[-1] if len(after) > len(part) else "",
        )

    async def forget_traces(self, stale: Traces) -> int:
        """Remove every trace of kernels of which only names are known."""
        self._redis.touch()
        names = [name for name in stale.names if name in self._redis.kernels]
        for name in names:
            fields = self._redis.kernels.pop(name)
            taken = Slots(1, *map(int, fields["takes"].split()))
            self._remove(name, fields["instance"], session_key(fields["access_key"], fields["session_token"]), taken)
        keys = [key for key, name in stale.sessions.items() if self._redis.sessions.get(key) == name]
        for key in keys:
            del self._redis.sessions[key]
        return len(names) + len(keys)

    def _remove(self, name: str, agent_id: str, key: str, taken: Slots) -> None:
        """Remove what is left of a kernel when its hash is gone."""
        members = self._redis.members.get(agent_id, set())
        if name in members:
            members.discard(name)
            self._count(agent_id, Slots() - taken)
        if self._redis.sessions.get(key) == name:
            del self._redis.sessions[key]

    def _count(self, agent_id: str, taken: Slots) -> None:
        beaten = self._redis.instances.get(agent_id)
        if beaten is not None:
            self._redis.instances[agent_id] = beaten.counting(taken)

    def _owned(self, access_key: str, short: str) -> dict[str, str] | None:
        fields = self._redis.kernels.get(short)
        return fields if fields is not None and fields["access_key"] == access_key else None


class MemoryLiveAudit:
    """Fake of ``RedisLiveAudit``."""

    def __init__(self, redis: MemoryRedis) -> None:
        self._redis = redis

    async def kernels(self) -> Mapping[str, Mapping[str, str]]:
        """Give every kernel's fields."""
        self._redis.touch()
        return {key: dict(fields) for key, fields in self._redis.kernels.items()}

    async def sessions(self) -> Mapping[str, str]:
        """Give every session id."""
        self._redis.touch()
        return dict(self._redis.sessions)


class MemoryRateCounters:
    """Fake of ``RedisRateCounters``."""

    def __init__(self, redis: MemoryRedis, window: float = WINDOW) -> None:
        self._redis = redis
        self._window = window

    async def hit(self, access_key: str, limit: int) -> RateState:
        """Count one request."""
        self._redis.touch()
        now = self._redis.clock.seconds()
        used, until = self._redis.counters.get(access_key, (0, 0.0))
        if until <= now:
            used, until = 0, now + self._window
        if used >= limit:
            raise exceeded()
        self._redis.counters[access_key] = (used + 1, until)
        return RateState(limit=limit, remaining=limit - used, reset=round((until - now) * 1000))


class MemoryTurn:
    """Fake of ``RedisTurn``."""

    def __init__(self, redis: MemoryRedis, group: str, work: str, holder: str, lease: float) -> None:
        self._redis = redis
        self._key = f"turn:{group}:{work}"
        self._holder = holder
        self._lease = lease
        self._passing = False

    async def mine(self) -> bool:
        """Take the turn if nobody has it, keep it if it is mine, and tell which."""
        if self._passing:
            self._passing = False
            return False
        self._redis.touch()
        now = self._redis.clock.seconds()
        holder, until = self._redis.turns.get(self._key, ("", 0.0))
        if until > now and holder != self._holder:
            return False
        self._redis.turns[self._key] = (self._holder, now + self._lease)
        return True

    async def pass_on(self) -> None:
        """Let another one have it; where Redis does not hear that, it expires."""
        self._passing = True
        with suppress(Unavailable):
            self._redis.touch()
            if self._redis.turns.get(self._key, ("", 0.0))[0] == self._holder:
                del self._redis.turns[self._key]


class MemoryAnnouncements:
    """Fake of ``RedisAnnouncements``; a message arrives before ``publish`` returns. Several may share one MemoryRedis."""

    _log = Logger()

    def __init__(
        self,
        redis: MemoryRedis,
        on_resync: Callable[[], None] | None = None,
        on_loss: Callable[[], None] | None = None,
    ) -> None:
        self._redis = redis
        self._on_resync = on_resync
        self._on_loss = on_loss
        self._deaf = False

    def lose_messages(self) -> None:
        """Behave as after a gap."""
        self.go_deaf()
        self.hear_again()

    def go_deaf(self) -> None:
        """Behave as when the connection for listening is lost: subscribers of this object hear nothing."""
        self._deaf = True
        if self._on_loss is not None:
            self._on_loss()

    def hear_again(self) -> None:
        """Behave as when that connection is back."""
        self._deaf = False
        if self._on_resync is not None:
            self._on_resync()

    async def publish(self, topic: str, text: str) -> None:
        """Send to every subscriber of the topic."""
        encode_text(text)
        self._redis.touch()
        for receive in tuple(self._redis.receivers.get(topic, ())):
            with self._log.failuresHandled("receiving an announcement on {topic}", topic=topic):
                receive(text)

    def subscribe(self, topic: str, receive: Callable[[str], None]) -> Callable[[], None]:
        """Call ``receive`` for every message."""

        def deliver(text: str) -> None:
            if not self._deaf:
                receive(text)

        receivers = self._redis.receivers.setdefault(topic, [])
        receivers.append(deliver)

        def end() -> None:
            if deliver in receivers:
                receivers.remove(deliver)

        return end
