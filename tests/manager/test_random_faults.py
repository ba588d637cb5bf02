"""Random operations and faults, one after the other, against two managers in memory: the promises hold after every step."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any, cast

from attrs import define
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.python.failure import Failure

from sorna.errors import KernelNotFound, SornaError, Unavailable
from sorna.live.memory import MemoryAgentDirectory, MemoryHeartbeatStore, MemoryLiveAudit, MemoryRedis
from sorna.manager.audit import Audit
from sorna.manager.reaper import DEADLINES, SWEEP_AGAIN
from sorna.manager.requests import CreateRequest
from sorna.model.kernel import ALLOWED_CHANGES, Kernel, KernelStatus, short_id
from sorna.model.keypair import Keypair
from sorna.model.run import RunMode, RunRequest
from sorna.store.memory import MemoryKeypairs, MemoryQuotaAudit
from sorna.store.memory_agents import MemoryAgents
from sorna.store.memory_queue import MemoryQueue
from sorna.testing.folders import memory_folders
from sorna.testing.unit import UnitTestCase
from tests.cluster.scripted import USAGE
from tests.manager.crashing import CrashingKernels
from tests.manager.pair import KEY, Database, SimulatedAgent, SimulatedManager, Surroundings, make_manager
from tests.manager.world import INTERVAL

OWNERS = ("AKIA" + "O" * 16, "AKIA" + "S" * 16)
QUOTA = 4
STEP = 0.25  # seconds: the resolution of time
REAPED_EVERY = 0.5
# From an agent's last sign of life to the end of its kernels, with lease, second look and the resolution above.
LOST_WITHIN = 5.0
SEEN_AGAIN = 4.0
FORGOTTEN_WITHIN = SWEEP_AGAIN + 2 * REAPED_EVERY  # from the end of a kernel that nobody could write down in Redis
ANSWERED_WITHIN = 40.0
# What is asked of an agent may take this long until it is given up.
CALL = 10.0
SETTLED_AFTER = 90.0
AWAY_LATELY = 120.0  # an agent that was away may be found to have been so when databases and managers are back

RUN = RunRequest(RunMode.QUERY, "1+1", "run-1", wait=2.0)

managers = st.sampled_from([0, 1])
agents = st.sampled_from(["i-1", "i-2"])
owners = st.sampled_from(OWNERS)
tokens = st.sampled_from(["token-1", "token-2", "token-3", "token-4", "token-5"])
# Which of those that there are. Nothing that is drawn depends on the state: ids are random, and what is drawn must repeat.
choices = st.integers(0, 7)


def reachable(before: KernelStatus) -> set[KernelStatus]:
    """Give every status that may follow, by any number of changes."""
    found, todo = {before}, [before]
    while todo:
        for after in ALLOWED_CHANGES[todo.pop()] - found:
            found.add(after)
            todo.append(after)
    if before in {KernelStatus.PREPARING, KernelStatus.PENDING}:  # the queue takes back what it gave
        found |= {KernelStatus.PREPARING, KernelStatus.PENDING}
        found |= {one for status in (KernelStatus.PREPARING, KernelStatus.PENDING) for one in ALLOWED_CHANGES[status]}
    return found


FOLLOWING: Mapping[KernelStatus, set[KernelStatus]] = {status: reachable(status) for status in KernelStatus}


@define(eq=False)
class Asked:
    """A call that somebody waits for."""

    what: str
    manager: SimulatedManager
    since: float
    answer: Deferred[Any]
    done: bool = False
    failure: Failure | None = None


class TwoManagers(RuleBasedStateMachine):
    """What clients do, and what happens to parts."""

    @initialize()
    def begin(self) -> None:
        """Start everything."""
        self.clock = Clock()
        self.clock.advance(1_000_000)
        self.cleanups: list[Callable[[], Any]] = []
        self.redis = MemoryRedis(self.clock)
        keypairs = [Keypair(owner, "s" * 40, concurrency_limit=QUOTA) for owner in OWNERS]
        self.keypairs = MemoryKeypairs(keypairs)
        kernels = self.kernels = CrashingKernels(self.keypairs)
        self.database = Database(kernels, MemoryQueue(kernels), MemoryAgents())
        self.folders = memory_folders(self, self.clock, *keypairs)[0]
        heartbeats = MemoryHeartbeatStore(self.redis)
        self.agents = {name: SimulatedAgent(name, self.clock, heartbeats) for name in ("i-1", "i-2")}
        for name in self.agents:
            self.done(self.database.agents.enrol(name, KEY, 0.0))
        self.managers = [self.make("m1"), self.make("m2")]
        self.asked: list[Asked] = []
        self.destroyed: set[tuple[str, uuid.UUID]] = set()
        self.seen: dict[uuid.UUID, tuple[KernelStatus, str]] = {}
        self.calm_since = self.clock.seconds()
        self.redis_since = self.clock.seconds()
        self.wrong: list[str] = []
        self.stale_since: dict[str, float] = {}
        observer = cast("ILogObserver", self.observe)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(lambda: globalLogPublisher.removeObserver(observer))
        self.pass_time(2.0)

    def addCleanup(self, function: Callable[..., Any], /) -> None:
        """Call this at the end."""
        self.cleanups.append(function)

    def teardown(self) -> None:
        """Let everything settle, whatever was done, and look once more."""
        try:
            if hasattr(self, "managers"):
                self.settle()
        finally:
            for function in reversed(getattr(self, "cleanups", [])):
                function()

    def observe(self, event: LogEvent) -> None:
        """Take down what went wrong where nobody was asking: only what the domain knows may."""
        failure = event.get("log_failure")
        if failure is not None and not failure.check(SornaError):
            self.wrong.append(failure.getTraceback())

    def make(self, name: str) -> SimulatedManager:
        """Start a manager."""
        around = Surroundings(self.clock, self.redis, self.database, self.keypairs, self.agents, self.folders)
        return make_manager(name, around)

    def done(self, work: Any) -> Any:
        """Do what is done at once."""
        result: list[Any] = []
        Deferred.fromCoroutine(work).addBoth(result.append)
        assert result, "it is not done at once"
        if isinstance(result[0], Failure):
            result[0].raiseException()
        return result[0]

    def ask(self, what: str, manager: SimulatedManager, work: Any, then: Callable[[Any], object] = id) -> None:
        """Start what a client wants, and remember that it waits."""
        asked = Asked(what, manager, self.clock.seconds(), Deferred.fromCoroutine(work))
        self.asked.append(asked)

        def succeeded(result: Any) -> None:
            asked.done = True
            then(result)

        def failed(failure: Failure) -> None:
            asked.done = True
            if not failure.check(SornaError):
                self.wrong.append(f"{what}: {failure.getTraceback()}")

        asked.answer.addCallback(succeeded).addErrback(failed)

    @property
    def living(self) -> list[Kernel]:
        """Give the kernels that have not ended, in an order that repeats."""
        rows = [kernel for kernel in self.database.kernels.all() if not kernel.status.final]
        return sorted(rows, key=lambda one: (one.access_key, one.session_token))

    def chosen(self, choice: int) -> Kernel | None:
        """Choose one of those."""
        living = self.living
        return living[choice % len(living)] if living else None

    @property
    def calm(self) -> bool:
        """Whether nothing is broken now."""
        return (
            self.database.trouble == "none"
            and self.redis.available
            and not any(manager.dead for manager in self.managers)
            and not any(agent.operations.dawdles for agent in self.agents.values())
        )

    # What clients do

    @rule(manager=managers, owner=owners, token=tokens, wait=st.sampled_from([None, None, 20.0]))
    def create(self, manager: int, owner: str, token: str, wait: float | None) -> None:
        """Make a kernel or find it."""
        one = self.managers[manager]
        self.ask("create", one, one.registry.create(CreateRequest(owner, token, "python3", wait=wait)))

    @rule(manager=managers, choice=choices)
    def execute(self, manager: int, choice: int) -> None:
        """Run code."""
        one, kernel = self.managers[manager], self.chosen(choice)
        if kernel is None:
            return
        work = one.registry.execute(kernel.access_key, kernel.session_token, RUN)
        self.ask("execute", one, work)

    @rule(manager=managers, choice=choices)
    def restart(self, manager: int, choice: int) -> None:
        """Restart a kernel."""
        one, kernel = self.managers[manager], self.chosen(choice)
        if kernel is None:
            return
        self.ask("restart", one, one.registry.restart(kernel.access_key, kernel.session_token))

    @rule(manager=managers, choice=choices)
    def destroy(self, manager: int, choice: int) -> None:
        """End a kernel; once that is answered nobody finds it again."""
        one, kernel = self.managers[manager], self.chosen(choice)
        if kernel is None:
            return
        ended = (kernel.access_key, kernel.id)
        work = one.registry.destroy(kernel.access_key, short_id(kernel.id))
        self.ask("destroy", one, work, lambda _usage: self.destroyed.add(ended))

    @rule(
        what=st.sampled_from(["create", "create", "restart", "destroy"]),
        trouble=st.sampled_from(
            ["none", "manager", "kill", "freeze", "redis", "emptied", "away", "deaf", "crashed", "crashed away"]
        ),
        manager=managers,
        choice=choices,
        seconds=st.sampled_from([0.5, 3.0, 12.0]),
    )
    def interrupted(self, what: str, trouble: str, manager: int, choice: int, seconds: float) -> None:
        """Let something happen while agents are in the middle of what they were asked for; then they do it after all."""
        for agent in self.agents.values():
            agent.operations.dawdles = True
        if what == "create":
            self.create(manager, OWNERS[choice % 2], f"token-{choice % 5 + 1}", None)
        elif what == "restart":
            self.restart(manager, choice)
        else:
            self.destroy(manager, choice)
        self._happen(trouble, manager, ("i-1", "i-2")[choice % 2])
        self.pass_time(seconds)
        for agent in self.agents.values():
            agent.operations.hurry()

    def _happen(self, trouble: str, manager: int, name: str) -> None:
        match trouble:
            case "manager":
                self.kill_manager(manager)
            case "kill" | "freeze":
                self.break_agent(name, trouble)
            case "redis" | "emptied":
                self.lose_redis(trouble == "emptied")
            case "away" | "deaf":
                self.trouble_postgresql(trouble)
            case "crashed" | "crashed away":
                self.crash_postgresql(trouble == "crashed away")

    # What happens to parts: one thing at a time, but what was broken stays so until it is mended.

    @rule(name=agents, way=st.sampled_from(["kill", "freeze", "dawdle"]))
    def break_agent(self, name: str, way: str) -> None:
        """Kill an agent, freeze it, or let it take its time."""
        agent = self.agents[name]
        if way == "kill":
            agent.kill()
        elif way == "freeze":
            agent.frozen = agent.running
        else:
            agent.operations.dawdles = True
        self.calm_since = self.clock.seconds()

    @rule(name=agents)
    def mend_agent(self, name: str) -> None:
        """Start it, thaw it, and let it do what it has not done yet."""
        agent = self.agents[name]
        agent.frozen = False
        agent.start()
        agent.operations.hurry()
        self.calm_since = self.clock.seconds()

    @rule(name=agents, manager=managers, choice=choices)
    def crash(self, name: str, manager: int, choice: int) -> None:
        """End a kernel from inside: its agent tells a manager."""
        agent, one = self.agents[name], self.managers[manager]
        held = [kernel.id for kernel in self.database.kernels.all() if kernel.id in agent.operations.kernels]
        if agent.reachable and held and not one.dead:
            kernel = held[choice % len(held)]
            agent.operations.kernels.discard(kernel)
            one.link.kernel_ended(name, kernel, "crashed", USAGE)

    @rule(emptied=st.booleans())
    def lose_redis(self, emptied: bool) -> None:
        """Let Redis be out of reach, and lose what it knows."""
        if not self.redis.available:
            return
        self.redis.available = False
        if emptied:
            for kept in (self.redis.instances, self.redis.members, self.redis.kernels, self.redis.sessions):
                kept.clear()
        for manager in self.managers:
            if not manager.dead:
                manager.announcements.go_deaf()

    @rule(late=st.sampled_from([0.0, 1.0, 3.0]))
    def find_redis(self, late: float) -> None:
        """Let it be back; agents find it at once or some seconds later."""
        if self.redis.available:
            return
        self.redis.available = True
        for agent in self.agents.values():
            agent.beaten_at = self.clock.seconds() + late - INTERVAL
        for manager in self.managers:
            if not manager.dead:
                manager.announcements.hear_again()
        self.calm_since = self.redis_since = self.clock.seconds()

    @rule(trouble=st.sampled_from(["none", "away", "deaf"]))
    def trouble_postgresql(self, trouble: str) -> None:
        """Let PostgreSQL be out of reach, or its answers be lost, or all be well again."""
        self.database.trouble = trouble
        self.calm_since = self.clock.seconds()

    @rule(away=st.booleans())
    def crash_postgresql(self, away: bool) -> None:
        """Let it lose what was not on the disk yet, and be back at once or out of reach."""
        self.kernels.crash()
        self.seen = {one.id: (one.status, one.status_reason) for one in self.kernels.all()}
        self.trouble_postgresql("away" if away else "none")

    @rule(manager=managers)
    def kill_manager(self, manager: int) -> None:
        """Kill a manager in the middle of whatever it does."""
        self.managers[manager].kill()

    @rule(manager=managers)
    def start_manager(self, manager: int) -> None:
        """Start another in its place."""
        if self.managers[manager].dead:
            self.managers[manager] = self.make(f"m{manager + 1}")
            if not self.redis.available:
                self.managers[manager].announcements.go_deaf()
            self.calm_since = self.redis_since = self.clock.seconds()

    @rule(seconds=st.sampled_from([0.5, 1.5, 3.0, 6.0, 12.0]))
    def pass_time(self, seconds: float) -> None:
        """Let time pass, with heartbeats and the passes of the reapers."""
        for number in range(int(seconds / STEP)):
            self.clock.advance(STEP)
            for agent in self.agents.values():
                if not agent.reachable:
                    agent.away_at = self.clock.seconds()
                try:
                    self.done(agent.beat())
                except Unavailable:
                    continue
            if number % int(REAPED_EVERY / STEP) == 0:
                for manager in self.managers:
                    manager.mend()
            if not self.calm:
                self.calm_since = self.clock.seconds()
            self.reaped()
            self.remembered()

    @rule()
    def mend(self) -> None:
        """Mend everything that is broken."""
        self.trouble_postgresql("none")
        self.find_redis(3.0)
        for name in self.agents:
            self.mend_agent(name)
        for number in (0, 1):
            self.start_manager(number)
        self.pass_time(4.0)

    @rule()
    def settle(self) -> None:
        """Mend everything: then nothing waits, nothing is left over, and every promise holds."""
        self.mend()
        self.pass_time(SETTLED_AFTER)
        kernels = self.living
        assert all(kernel.status is KernelStatus.RUNNING for kernel in kernels), kernels
        for name, agent in self.agents.items():
            rows = {kernel.id for kernel in kernels if kernel.agent_id == name}
            assert agent.operations.kernels == rows, (agent, rows)
        waiting = [one.what for one in self.asked if not one.done and not one.manager.dead]
        assert not waiting, waiting
        audit = Audit(
            self.clock,
            self.database.kernels,
            MemoryQuotaAudit(self.database.kernels, self.keypairs),
            self.database.agents,
            MemoryAgentDirectory(self.redis),
            MemoryLiveAudit(self.redis),
        )
        found = self.done(audit.findings(0.0))
        assert not found, found

    def reaped(self) -> None:
        """Check what the reapers promise, at every moment in which they could keep it."""
        now = self.clock.seconds()
        calm = now - self.calm_since
        for kernel in self.database.kernels.all():
            if kernel.status.final:
                continue
            over = now - kernel.status_changed_at - DEADLINES.get(kernel.status, now)
            assert min(calm, over) <= CALL + 1.0, f"{kernel} past its deadline by {over} s"
            agent = self.agents.get(kernel.agent_id or "")
            if agent is not None and not agent.reachable:
                silent = now - max(agent.beaten_at, self.redis_since + SEEN_AGAIN)
                assert min(calm, silent) <= LOST_WITHIN, f"{kernel} on an agent that is silent for {silent} s"

    def remembered(self) -> None:
        """Check that Redis knows of no kernel that nobody has, at every moment in which that could be so."""
        now = self.clock.seconds()
        live = {short_id(kernel.id) for kernel in self.living}
        stale = (self.redis.kernels.keys() | set(self.redis.sessions.values())) - live
        self.stale_since = {name: self.stale_since.get(name, now) for name in stale}
        for name, since in self.stale_since.items():
            assert now - max(since, self.calm_since) <= FORGOTTEN_WITHIN, f"{name} is not forgotten"

    # What holds after every step

    @invariant()
    def nothing_went_wrong(self) -> None:
        """Nothing failed but in the ways that the domain knows."""
        assert not getattr(self, "wrong", []), self.wrong[0]

    @invariant()
    def quota(self) -> None:
        """Every keypair's counters are the sums of its live rows, and within its quota."""
        if hasattr(self, "managers"):
            drifted = self.done(MemoryQuotaAudit(self.database.kernels, self.keypairs).drifted())
            assert not drifted, drifted
            for owner in OWNERS:
                keypair = self.done(self.keypairs.by_access_key(owner))
                assert 0 <= keypair.concurrency_used <= QUOTA, keypair

    @invariant()
    def statuses(self) -> None:
        """Every status follows from the one before, a final one stays with its reason, and a token names one live kernel."""
        if hasattr(self, "managers"):
            live: list[tuple[str, str]] = []
            for kernel in self.database.kernels.all():
                before = self.seen.get(kernel.id)
                if before is not None:
                    assert kernel.status in FOLLOWING[before[0]], (before, kernel)
                    assert kernel.status is before[0] or not kernel.status.final or self.believable(kernel), kernel
                    assert not before[0].final or before == (kernel.status, kernel.status_reason), (before, kernel)
                assert not kernel.status.final or kernel.status_reason, kernel
                self.seen[kernel.id] = (kernel.status, kernel.status_reason)
                if not kernel.status.final:
                    live.append((kernel.access_key, kernel.session_token))
            assert len(live) == len(set(live)), live

    def believable(self, kernel: Kernel) -> bool:
        """Tell whether a kernel that ended because it was lost, was: no outage of a database is taken for its agent's death."""
        agent = self.agents.get(kernel.agent_id or "")
        if agent is None or kernel.status_reason not in {"lost", "agent-lost"}:
            return True
        was_away = self.clock.seconds() - agent.away_at < AWAY_LATELY
        return was_away or (kernel.status_reason == "lost" and kernel.id not in agent.operations.kernels)

    @invariant()
    def destroyed_is_gone(self) -> None:
        """Whoever was told that a kernel is destroyed never finds it again, at any manager."""
        for owner, kernel in getattr(self, "destroyed", ()):
            row = self.done(self.database.kernels.by_id(kernel))
            assert row is None or row.status.final, row  # None: a crash has undone its making
            for manager in self.managers:
                if not manager.dead:
                    try:
                        self.done(manager.registry.info(owner, short_id(kernel)))
                    except (KernelNotFound, Unavailable):
                        continue
                    raise AssertionError(f"{manager.name} finds {row}")

    @invariant()
    def answered(self) -> None:
        """No client waits for ever, whatever is broken; those of a dead manager have lost their connection."""
        now = self.clock.seconds() if hasattr(self, "clock") else 0.0
        asked = getattr(self, "asked", [])
        asked[:] = [one for one in asked if not one.done and not one.manager.dead]
        for one in asked:
            assert now - one.since <= ANSWERED_WITHIN, f"{one.what} waits for {now - one.since} s"


class RandomFaultTests(UnitTestCase):
    """The machine above."""

    def test_two_managers(self) -> None:
        """Some hundred steps of everything that may happen."""
        bounds = settings(max_examples=60, stateful_step_count=40, deadline=None, print_blob=True)
        run_state_machine_as_test(TwoManagers, settings=bounds)
        # What the domain knows may be logged; everything else has failed the machine.
        self.flushLoggedErrors(SornaError)
