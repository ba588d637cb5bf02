"""Whether the promises hold now: compares PostgreSQL, Redis and what agents say of themselves, and changes nothing.

Knows no door, no terminal and no host; what is left behind on a host is told by ``remains``. The rules are pure functions of
one look.

Note [Looking more than once]
    Between a row and its effect there is always a moment in which they differ, and no look at three places happens at one
    moment. A finding is therefore one that every look for ``patience`` seconds has shown, which is longer than anything may
    take to be mended by itself. Where the first look finds nothing there is no second.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

from attrs import frozen
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from sorna.errors import SornaError
from sorna.manager.audit_interfaces import LiveAudit, QuotaAudit, QuotaDrift
from sorna.manager.enrolment_interfaces import AgentStore
from sorna.manager.interfaces import AgentDirectory, KernelStore
from sorna.manager.reaper import DEADLINES
from sorna.model.agent import Agent
from sorna.model.kernel import Kernel, KernelStatus, short_id

PATIENCE = 6.0
INTERVAL = 1.0
# What the promises allow beyond a limit or a deadline, in seconds.
ALLOWANCE = 5.0


@frozen
class Finding:
    """A promise that does not hold.

    :ivar check: which one, as a short name; :ivar subject: of what.
    :ivar meaning: what that means, and :ivar remedy: what to do, as sentences for operators.
    """

    check: str
    subject: str
    meaning: str
    remedy: str


@frozen
class Sight:
    """What one look saw. Kernels are keyed by their short ids.

    :ivar rows: of kernels in no final status.
    :ivar held: agent id -> kernels that it said it holds, of live agents.
    :ivar entries, sessions: what is in Redis db 1 and db 3.
    :ivar keys: agent id -> enrolled public key.
    """

    now: float
    rows: Mapping[str, Kernel]
    drifted: Sequence[QuotaDrift]
    agents: Mapping[str, Agent]
    held: Mapping[str, frozenset[str]]
    entries: Mapping[str, Mapping[str, str]]
    sessions: Mapping[str, str]
    keys: Mapping[str, str]


Remains = Callable[[Mapping[str, str], frozenset[str]], Awaitable[Sequence[Finding]]]


async def nothing_remains(_keys: Mapping[str, str], _alive: frozenset[str]) -> Sequence[Finding]:
    """Look at no host."""
    return ()


@frozen
class Audit:
    """Looks.

    :ivar remains: finds what is left on this host; is given the enrolled agents and the ids of those that live.
    """

    clock: IReactorTime
    kernels: KernelStore
    quotas: QuotaAudit
    agents: AgentStore
    directory: AgentDirectory
    live: LiveAudit
    remains: Remains = nothing_remains

    async def findings(self, patience: float = PATIENCE) -> Sequence[Finding]:
        """Give what is wrong and stays wrong; see Note [Looking more than once]. Empty when all is well."""
        end = self.clock.seconds() + patience
        found = await self._look()
        while found and self.clock.seconds() < end:
            await deferLater(self.clock, min(INTERVAL, max(0.0, end - self.clock.seconds())))
            seen = {(one.check, one.subject) for one in found}
            found = [one for one in await self._look() if (one.check, one.subject) in seen]
        return found

    async def _look(self) -> Sequence[Finding]:
        try:
            sight = await self._sight()
        except SornaError as error:
            return [
                Finding(
                    "reachable",
                    "databases",
                    f"PostgreSQL or Redis cannot be read: {error}",
                    "Look whether both run and whether these options are those of the managers.",
                )
            ]
        return [*judge(sight), *await self.remains(sight.keys, frozenset(sight.agents))]

    async def _sight(self) -> Sight:
        """Read the effects before the rows: what was seen to be there without a row never had one."""
        keys = await self.agents.public_keys()
        alive = {agent.id: agent for agent in await self.directory.alive()}
        held = {agent_id: await self.directory.kernels_of(agent_id) for agent_id in alive}
        entries, sessions = await self.live.kernels(), await self.live.sessions()
        rows: dict[str, Kernel] = {}
        page = await self.kernels.live()
        while page:
            rows.update({short_id(kernel.id): kernel for kernel in page})
            page = await self.kernels.live(after=page[-1].id)
        drifted = await self.quotas.drifted()
        return Sight(self.clock.seconds(), rows, drifted, alive, held, entries, sessions, keys)


def judge(sight: Sight) -> list[Finding]:
    """Give everything in one look that contradicts a promise."""
    return [
        *_quotas(sight),
        *_agents(sight),
        *(finding for name, row in sight.rows.items() for finding in _row(sight, name, row)),
        *_held(sight),
        *_entries(sight),
        *_sessions(sight),
    ]


def _quotas(sight: Sight) -> Iterator[Finding]:
    for drift in sight.drifted:
        yield Finding(
            "quota",
            drift.access_key,
            f"The keypair's counters say {_slots(drift.counted)}, its live kernels take {_slots(drift.held)}.",
            "Both change in one transaction, so somebody changed a table by hand, or this is a bug: report it. Correct the"
            " four *_used columns of the keypair while no manager runs.",
        )


def _slots(slots: object) -> str:
    return str(slots).removeprefix("Slots")


def _agents(sight: Sight) -> Iterator[Finding]:
    for agent in sight.agents.values():
        if sight.keys.get(agent.id) != agent.address.public_key:
            known = "another key than it was enrolled with" if agent.id in sight.keys else "was never enrolled"
            yield Finding(
                "untrusted-agent",
                agent.id,
                f"An agent at {agent.address.endpoint} calls itself so and {'has ' * (agent.id in sight.keys)}{known}:"
                " it gets no kernels.",
                "Enrol it if it is yours; else find out who can write to Redis.",
            )


def _row(sight: Sight, name: str, row: Kernel) -> Iterator[Finding]:
    age = sight.now - row.status_changed_at
    if age > DEADLINES.get(row.status, age) + ALLOWANCE:
        yield Finding(
            "deadline",
            name,
            f"The kernel is {row.status} for {age:.0f} s, and may be for {DEADLINES[row.status]:.0f} s.",
            "No manager mends: start one, and look into its log for 'while mending'.",
        )
    if row.agent_id is not None and row.agent_id not in sight.agents:
        yield Finding(
            "dead-agent",
            name,
            f"The kernel is {row.status} on {row.agent_id}, which gives no sign of life.",
            "A manager ends such kernels within 5 s: start one, or look into its log for 'while mending'.",
        )
    if row.status is KernelStatus.RUNNING:
        yield from _running(sight, name, row)


def _running(sight: Sight, name: str, row: Kernel) -> Iterator[Finding]:
    if row.agent_id is None:
        yield Finding(
            "no-agent", name, "The kernel is RUNNING on no agent.", "This is a bug: report it, and destroy it."
        )
        return
    if row.agent_id in sight.held and name not in sight.held[row.agent_id]:
        yield Finding(
            "not-held",
            name,
            f"The kernel is RUNNING, and {row.agent_id} does not hold it.",
            "A manager ends it when it stays so: start one, or look into its log for 'while mending'.",
        )
    entry = sight.entries.get(name)
    if entry is None and row.agent_id in sight.agents:
        yield Finding(
            "no-live-entry",
            name,
            "The kernel is RUNNING and Redis db 1 knows nothing of it, so that its figures are not kept.",
            "A manager writes it again within seconds: start one, or look into its log for 'while mending'.",
        )
    token = sight.sessions.get(f"{row.access_key}:{row.session_token}")
    if entry is not None and token != name:
        yield Finding(
            "session",
            name,
            f"The session id {row.session_token!r} of its owner names {token or 'nothing'} in Redis db 3.",
            "It is written again with the kernel's entry: delete the hash in db 1, and a manager writes both.",
        )
    yield from _limits(sight, name, row, entry or {})


def _limits(sight: Sight, name: str, row: Kernel, entry: Mapping[str, str]) -> Iterator[Finding]:
    remedy = f"Destroy it, and look into the log of {row.agent_id}: the agent ends kernels that pass a limit."
    lived = sight.now - row.created_at
    if row.limits.lifetime and lived > row.limits.lifetime + ALLOWANCE:
        yield Finding(
            "lifetime", name, f"The kernel lives for {lived:.0f} s, and may for {row.limits.lifetime:g} s.", remedy
        )
    idle = _number(entry.get("idle")) / 1000
    if row.limits.idle_timeout and idle > row.limits.idle_timeout + ALLOWANCE:
        yield Finding(
            "idle", name, f"The kernel is idle for {idle:.0f} s, and may be for {row.limits.idle_timeout:g} s.", remedy
        )


def _number(text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0.0


def _held(sight: Sight) -> Iterator[Finding]:
    for agent_id, kernels in sight.held.items():
        for name in sorted(kernels):
            row = sight.rows.get(name)
            if row is None or (row.agent_id not in {None, agent_id}):
                whose = "has no row that lives" if row is None else f"belongs to {row.agent_id} by its row"
                yield Finding(
                    "orphan",
                    name,
                    f"The agent {agent_id} holds a kernel that {whose}.",
                    "A manager ends such kernels within seconds: start one, or look into its log for 'orphan'.",
                )


def _entries(sight: Sight) -> Iterator[Finding]:
    for name, entry in sight.entries.items():
        row = sight.rows.get(name)
        if row is None:
            meaning = "Redis db 1 has a kernel that no live row has."
        elif (entry.get("access_key"), entry.get("session_token")) != (row.access_key, row.session_token):
            meaning = "Redis db 1 says that the kernel is somebody else's than its row says."
        elif row.agent_id not in {None, entry.get("instance")}:
            meaning = f"Redis db 1 says that the kernel is on {entry.get('instance')}, its row {row.agent_id}."
        else:
            continue
        yield Finding("stale-entry", name, meaning, f"Delete it: redis-cli -n 1 DEL {name}")


def _sessions(sight: Sight) -> Iterator[Finding]:
    for key, name in sight.sessions.items():
        row = sight.rows.get(name)
        if row is None or key != f"{row.access_key}:{row.session_token}":
            yield Finding(
                "stale-session",
                key,
                f"Redis db 3 says that this session is kernel {name}, which is {'gone' if row is None else 'another'}.",
                f"Delete it: redis-cli -n 3 DEL {key}",
            )
