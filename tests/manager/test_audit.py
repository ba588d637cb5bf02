"""What an audit finds, and what it forgives."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence

from attrs import evolve
from twisted.internet.defer import Deferred

from sorna.live.memory import MemoryLiveAudit
from sorna.manager.audit import ALLOWANCE, PATIENCE, Audit, Finding
from sorna.manager.reaper import DEADLINES
from sorna.model.kernel import KernelSpec, KernelStatus, new_kernel_id, short_id
from sorna.model.limits import Limits
from sorna.model.policy import Slots
from sorna.store.memory import MemoryQuotaAudit
from sorna.store.memory_agents import MemoryAgents
from tests.manager.world import HEARTBEAT, OWNER, ManagerTestCase


class AuditTests(ManagerTestCase):
    """Every promise, broken by hand."""

    def setUp(self) -> None:
        super().setUp()
        self.enrolled = MemoryAgents()
        self.done(self.enrolled.enrol("i-1", HEARTBEAT.public_key, 0.0))
        self.remnants: list[Finding] = []
        self.asked: list[tuple[Mapping[str, str], frozenset[str]]] = []
        self.audit = Audit(
            self.clock,
            self.kernels,
            MemoryQuotaAudit(self.kernels, self.keypairs),
            self.enrolled,
            self.directory,
            MemoryLiveAudit(self.redis),
            self.remains,
        )

    async def remains(self, keys: Mapping[str, str], alive: frozenset[str]) -> Sequence[Finding]:
        self.asked.append((keys, alive))
        return self.remnants

    def found(self, *held: str, beats: bool = True) -> dict[str, str]:
        """Look with all patience, and give check -> subject."""
        if beats:
            self.beat(*held)
        looking: Deferred[Sequence[Finding]] = self.start(self.audit.findings())
        for _ in range(round(PATIENCE * 2) + 4):
            if looking.called:
                break
            self.clock.advance(0.5)
            if beats:
                self.beat(*held)
        return {one.check: one.subject for one in self.successResultOf(looking)}

    def running(self) -> tuple[uuid.UUID, str]:
        """Make a kernel that is as it should be."""
        kernel_id = self.make()
        self.beat(short_id(kernel_id))
        return kernel_id, short_id(kernel_id)

    def test_health_takes_one_look(self) -> None:
        """Nothing is found, at once, and this host is asked about the agents that live."""
        _, name = self.running()
        self.assertEqual(self.successResultOf(self.start(self.audit.findings())), [])
        self.assertEqual(self.asked, [({"i-1": HEARTBEAT.public_key}, frozenset({"i-1"}))])
        self.assertEqual(self.found(name), {})

    def test_what_mends_itself_is_forgiven(self) -> None:
        """Wrong at the first looks and right at a later one."""
        _, name = self.running()
        self.beat()
        looking = self.start(self.audit.findings())
        self.clock.advance(0.5)
        self.beat(name)
        self.clock.advance(1.0)
        self.assertEqual(self.successResultOf(looking), [])

    def test_quota(self) -> None:
        """Counters that are not what live kernels take."""
        _, name = self.running()
        keypairs = self.keypairs._keypairs
        keypairs[OWNER] = evolve(keypairs[OWNER], taken=Slots(7))
        self.assertEqual(self.found(name), {"quota": OWNER})

    def test_deadline(self) -> None:
        """A status that should be over, and not a moment before that."""
        spec = KernelSpec(OWNER, "token-1", "python3", "python3", Limits())
        kernel, _ = self.done(self.kernels.reserve(new_kernel_id(), spec, self.clock.seconds()))
        self.clock.advance(DEADLINES[KernelStatus.PREPARING])
        self.beat()
        self.assertEqual(self.successResultOf(self.start(self.audit.findings())), [])
        self.clock.advance(ALLOWANCE + 1)
        self.beat()
        self.assertEqual(self.found(), {"deadline": short_id(kernel.id)})

    def test_dead_agent(self) -> None:
        """A kernel whose agent gives no sign of life."""
        _, name = self.running()
        self.clock.advance(10)
        self.assertEqual(self.found(beats=False), {"dead-agent": name})

    def test_not_held(self) -> None:
        """A row that runs, on an agent that says that it does not."""
        _, name = self.running()
        self.assertEqual(self.found(), {"not-held": name})

    def test_orphan(self) -> None:
        """A kernel that an agent holds without a row."""
        orphan = short_id(new_kernel_id())
        self.assertEqual(self.found(orphan), {"orphan": orphan})

    def test_live_entries(self) -> None:
        """A kernel that Redis does not know, a session that names another, and what it knows of kernels that are gone."""
        _, name = self.running()
        entry = self.redis.kernels.pop(name)
        self.assertEqual(self.found(name), {"no-live-entry": name})
        self.redis.kernels[name] = entry
        del self.redis.sessions[f"{OWNER}:token-1"]
        self.assertEqual(self.found(name), {"session": name})
        self.redis.sessions[f"{OWNER}:token-1"] = name
        gone = short_id(new_kernel_id())
        self.redis.kernels[gone] = {**entry, "id": gone}
        self.redis.sessions[f"{OWNER}:other"] = gone
        self.assertEqual(self.found(name), {"stale-entry": gone, "stale-session": f"{OWNER}:other"})

    def test_an_entry_of_somebody_else(self) -> None:
        """An entry that gives a kernel to another owner, or to another agent."""
        _, name = self.running()
        for field, wrong in (("access_key", "AKIASOMEBODYELSE0000"), ("instance", "i-2")):
            right = self.redis.kernels[name][field]
            self.redis.kernels[name][field] = wrong
            self.assertEqual(self.found(name), {"stale-entry": name}, field)
            self.redis.kernels[name][field] = right

    def test_limits(self) -> None:
        """Kernels that should have been ended."""
        kernel_id, name = self.running()
        kernel = self.kernels._kernels[kernel_id]
        self.kernels._kernels[kernel_id] = evolve(kernel, limits=evolve(kernel.limits, lifetime=1.0, idle_timeout=60.0))
        self.redis.kernels[name]["idle"] = "70000"
        self.clock.advance(1.0 + ALLOWANCE + 0.5)
        self.beat(name)
        self.assertEqual(self.found(name), {"lifetime": name, "idle": name})

    def test_untrusted_agent(self) -> None:
        """One that was never enrolled, or has another key."""
        self.done(self.enrolled.enrol("i-1", "x" * 40, 0.0))
        self.assertEqual(self.found(), {"untrusted-agent": "i-1"})

    def test_this_host(self) -> None:
        """What is left here is a finding when it stays."""
        self.remnants.append(Finding("left-group", "/sys/fs/cgroup/x", "left", "remove it"))
        self.assertEqual(self.found(), {"left-group": "/sys/fs/cgroup/x"})

    def test_databases_away(self) -> None:
        """That nothing can be read is a finding as well."""
        self.redis.available = False
        self.assertEqual(self.found(beats=False), {"reachable": "databases"})
