"""What administrators need of the stores, policies and reports; run for the memory stores and for PostgreSQL."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from sorna.errors import InvalidRequest, QuotaExceeded
from sorna.manager.enrolment_interfaces import AgentStore
from sorna.manager.folder_interfaces import MountingKernel
from sorna.manager.interfaces import KernelFilter, KernelReports, KernelStore, KeypairLists, PolicyStore
from sorna.model.agent import Drain
from sorna.model.folder import Mount
from sorna.model.kernel import Kernel, KernelSpec, KernelStatus, Usage, new_kernel_id
from sorna.model.keypair import Keypair, KeypairChanges
from sorna.model.limits import MIB, Limits
from sorna.model.policy import ResourcePolicy, Slots
from sorna.model.usage import KeypairUsage
from sorna.store.agents import PostgresAgents
from sorna.store.kernels import PostgresKernels
from sorna.store.keypairs import PostgresKeypairs
from sorna.store.memory import MemoryKernels, MemoryKeypairs, MemoryPolicies, MemoryReports
from sorna.store.memory_agents import MemoryAgents
from sorna.store.policies import PostgresPolicies
from sorna.store.reports import PostgresReports
from tests.contract.postgres import fresh_pool
from tests.contract.test_store import KEY, NOW, or_quota, together

if TYPE_CHECKING:
    Base = TestCase
else:
    Base = object

OTHER = "AKIAOTHEROTHEROTHERO"
RUNNING, TERMINATED = frozenset({KernelStatus.RUNNING}), frozenset({KernelStatus.TERMINATED})
POLICY = ResourcePolicy(
    "course", 3, 2.5, 1024 * MIB, 1, 5, 2**40, frozenset({"python3", "c"}), lifetime=3600.0, idle_timeout=60.5
)
USAGE = Usage(1500.0, 2**40, 2, net_rx_bytes=3, net_tx_bytes=40, io_read_bytes=50, io_write_bytes=-1)


class Stores:
    """All stores of one implementation, empty."""

    keypairs: KeypairLists
    kernels: KernelStore
    agents: AgentStore
    policies: PolicyStore
    reports: KernelReports


async def memory_stores(_test: TestCase) -> Stores:
    stores = Stores()
    policies = MemoryPolicies()
    keypairs = MemoryKeypairs(policies=policies)
    kernels = MemoryKernels(keypairs)
    stores.keypairs, stores.kernels, stores.policies, stores.agents = keypairs, kernels, policies, MemoryAgents()
    stores.reports = MemoryReports(kernels, keypairs)
    return stores


async def postgres_stores(test: TestCase) -> Stores:
    from twisted.internet import reactor  # noqa: PLC0415, TID251 - a test against the real thing

    pool = await fresh_pool(test, reactor)
    stores = Stores()
    stores.keypairs, stores.kernels, stores.agents = PostgresKeypairs(pool), PostgresKernels(pool), PostgresAgents(pool)
    stores.policies, stores.reports = PostgresPolicies(pool), PostgresReports(pool)
    return stores


class AdministrationContract(Base):
    stores: Stores

    def use(self, make: Callable[[TestCase], Coroutine[Deferred[Any], Any, Stores]]) -> Deferred[None]:
        """Make the stores of one test."""

        async def prepare() -> None:
            self.stores = await make(self)

        return Deferred.fromCoroutine(prepare())

    async def owner(self, access_key: str = KEY, **more: Any) -> None:
        await self.stores.keypairs.add(Keypair(access_key, "secret", **more))

    async def found(self, access_key: str = KEY) -> Keypair:
        found = await self.stores.keypairs.by_access_key(access_key)
        assert found is not None
        return found

    async def reserve(
        self, token: str = "session-1", now: float = NOW, access_key: str = KEY, runtime: str = "c", **limits: Any
    ) -> Kernel:
        spec = KernelSpec(access_key, token, runtime, runtime, Limits(**limits))
        return (await self.stores.kernels.reserve(new_kernel_id(), spec, now))[0]

    async def end(self, kernel: Kernel, now: float, usage: Usage | None = None) -> None:
        await self.stores.kernels.change_status(kernel.id, KernelStatus.TERMINATED, "asked", now, usage=usage)

    async def refused(self, work: Coroutine[Any, Any, Kernel], *words: str) -> None:
        with self.assertRaises(QuotaExceeded) as caught:
            await work
        for word in words:
            self.assertIn(word, caught.exception.detail)


class KeypairAdministrationContract(AdministrationContract):
    async def test_pages(self) -> None:
        """Keypairs come the newest first, of one user or of all, in pages, with their number."""
        for number in range(5):
            await self.owner(f"AKIA{number}", user_id=str(number % 2), created_at=NOW + number, is_active=number != 4)
        await self.owner("AKIA5", user_id="0", created_at=NOW + 3)
        pages = self.stores.keypairs
        listed = [one.access_key for one in await pages.page(None, None, 0, 10)]
        self.assertEqual(listed, ["AKIA4", "AKIA3", "AKIA5", "AKIA2", "AKIA1", "AKIA0"])
        self.assertEqual([one.access_key for one in await pages.page(None, None, 1, 2)], ["AKIA3", "AKIA5"])
        self.assertEqual(
            [one.access_key for one in await pages.page("0", None, 0, 9)], ["AKIA4", "AKIA5", "AKIA2", "AKIA0"]
        )
        self.assertEqual([one.access_key for one in await pages.page("0", False, 0, 9)], ["AKIA4"])
        self.assertEqual(await pages.page("\0", None, 0, 9), [])
        counts = [
            await pages.count_of(*one) for one in ((None, None), ("0", None), ("0", True), ("x", None), ("\0", None))
        ]
        self.assertEqual(counts, [6, 4, 3, 0, 0])

    async def test_several(self) -> None:
        """Several keypairs are fetched at once; those that are not there are left out."""
        await self.owner()
        await self.owner(OTHER)
        found = await self.stores.keypairs.by_access_keys([KEY, "AKIANOBODY", OTHER, "\0"])
        self.assertEqual(sorted(one.access_key for one in found), sorted([KEY, OTHER]))
        self.assertEqual(await self.stores.keypairs.by_access_keys([]), [])

    async def test_modify(self) -> None:
        """What is given changes, and nothing else does."""
        await self.owner(rate_limit=7)
        before = await self.found()
        self.assertTrue(await self.stores.keypairs.modify(KEY, KeypairChanges(is_active=False, is_admin=True)))
        self.assertEqual(await self.found(), attrs.evolve(before, is_active=False, is_admin=True))
        self.assertTrue(await self.stores.keypairs.modify(KEY, KeypairChanges(concurrency_limit=0, rate_limit=0)))
        changed = await self.found()
        self.assertEqual((changed.concurrency_limit, changed.rate_limit, changed.is_active), (0, 0, False))
        self.assertFalse(await self.stores.keypairs.modify("AKIANOBODY", KeypairChanges(is_active=True)))

    async def test_policy_of_a_keypair(self) -> None:
        """A keypair comes with what its policy says now; a policy in use stays, one that is not there is refused."""
        await self.stores.policies.put(ResourcePolicy("course"))
        await self.owner(resource_policy="course")
        await self.stores.policies.put(POLICY)
        self.assertEqual((await self.found()).policy, POLICY)
        self.assertIs(await self.stores.policies.remove("course"), False)
        for work in (
            self.stores.keypairs.modify(KEY, KeypairChanges(resource_policy="nothing")),
            self.stores.keypairs.add(Keypair(OTHER, "s", resource_policy="nothing")),
        ):
            with self.assertRaises(InvalidRequest):
                await work
        await self.stores.keypairs.modify(KEY, KeypairChanges(resource_policy=""))
        self.assertEqual(((await self.found()).policy, (await self.found()).resource_policy), (None, None))
        self.assertIs(await self.stores.policies.remove("course"), True)
        self.assertIsNone(await self.stores.policies.remove("course"))

    async def test_policies(self) -> None:
        """Policies come back as they were, in order of name."""
        await self.stores.policies.put(POLICY)
        await self.stores.policies.put(ResourcePolicy("a", runtimes=frozenset()))
        self.assertEqual(await self.stores.policies.all(), [ResourcePolicy("a", runtimes=frozenset()), POLICY])
        self.assertIsNone(await self.stores.policies.remove("\0"))
        with self.assertRaises(InvalidRequest):
            await self.stores.policies.put(ResourcePolicy("\0"))

    async def test_remove(self) -> None:
        """A removed keypair is nowhere and its name is not given again; one with live kernels is not removed."""
        await self.stores.policies.put(POLICY)
        await self.owner(resource_policy="course")
        kernel = await self.reserve()
        self.assertIs(await self.stores.keypairs.remove(KEY, NOW), False)
        await self.end(kernel, NOW)
        self.assertIs(await self.stores.keypairs.remove(KEY, NOW), True)
        for gone in (KEY, "AKIANOBODY", "\0"):
            self.assertIsNone(await self.stores.keypairs.remove(gone, NOW))
        self.assertIsNone(await self.stores.keypairs.by_access_key(KEY))
        self.assertEqual(await self.stores.keypairs.page(None, None, 0, 10), [])
        self.assertEqual((await self.stores.keypairs.count(), await self.stores.keypairs.count_of(None, None)), (0, 0))
        self.assertFalse(await self.stores.keypairs.modify(KEY, KeypairChanges(is_active=True)))
        self.assertFalse(await self.stores.keypairs.add(Keypair(KEY, "again")))
        await self.refused(self.reserve("session-2"), "no such keypair")
        self.assertIs(await self.stores.policies.remove("course"), True)


class PolicyContract(AdministrationContract):
    async def with_policy(self, **bounds: Any) -> None:
        await self.stores.policies.put(ResourcePolicy("course", **bounds))
        await self.owner(resource_policy="course")

    async def test_each_bound(self) -> None:
        """Each bound refuses what is over it by name, and what is given back can be taken again."""
        for number, (bounds, limits, words) in enumerate(
            (
                ({"max_kernels": 1}, {}, ("concurrent kernels: 1 of 1",)),
                ({"memory": 150 * MIB}, {"memory": 100 * MIB}, ("memory: 100 of 150 MiB in use, 100 MiB more",)),
                ({"cpu_cores": 1.3}, {"cpu_cores": 0.7}, ("processors: 0.7 of 1.3 in use, 0.7 more",)),
                ({"gpus": 1}, {"runtime": "python3-torch-gpu"}, ("GPUs: 1 of 1 in use, 1 more asked for",)),
                ({"gpus": 3}, {"gpus": 2}, ("GPUs: 2 of 3 in use, 2 more asked for",)),
            )
        ):
            access_key = f"AKIA{number}"
            await self.stores.policies.put(ResourcePolicy(access_key, **bounds))  # type: ignore[arg-type]
            await self.owner(access_key, resource_policy=access_key)
            first = await self.reserve("session-1", access_key=access_key, **limits)  # type: ignore[arg-type]
            await self.refused(self.reserve("session-2", access_key=access_key, **limits), *words)  # type: ignore[arg-type]
            again = await self.reserve("session-1", access_key=access_key, **limits)  # type: ignore[arg-type]
            self.assertEqual(again.id, first.id)
            await self.end(first, NOW)
            self.assertEqual((await self.found(access_key)).taken, Slots())
            await self.reserve("session-2", access_key=access_key, **limits)  # type: ignore[arg-type]

    async def test_own_limit_holds_beside_the_policy(self) -> None:
        """The smaller of the keypair's and the policy's number of kernels counts."""
        await self.stores.policies.put(ResourcePolicy("course", max_kernels=5))
        await self.owner(resource_policy="course", concurrency_limit=1)
        await self.reserve()
        await self.refused(self.reserve("session-2"), "1 of 1")

    async def test_concurrent_reserves(self) -> None:
        """Of 40 at once, of several sizes, what gets a place never takes more than there is, and it is counted exactly."""
        await self.with_policy(memory=1000 * MIB, cpu_cores=2.0)
        sizes = [(100, 0.1), (200, 0.3), (300, 0.2), (50, 0.7)]
        results = await together(
            [
                or_quota(
                    self.stores.kernels.reserve(
                        new_kernel_id(),
                        KernelSpec(KEY, f"token-{n}", "c", "c", Limits(memory=size * MIB, cpu_cores=cores)),
                        NOW,
                    )
                )
                for n, (size, cores) in enumerate(sizes * 10)
            ]
        )
        made = [one[0] for one in results if one is not None]
        taken = (await self.found()).taken
        self.assertEqual(taken.memory, sum(one.limits.memory for one in made))
        self.assertEqual(taken.cpu_millis, sum(round(one.limits.cpu_cores * 1000) for one in made))
        self.assertLessEqual(taken.memory, 1000 * MIB)
        self.assertLessEqual(taken.cpu_millis, 2000)
        # Nothing of the smallest size would fit any more, or something that fitted was refused.
        self.assertTrue(taken.memory + 100 * MIB > 1000 * MIB or taken.cpu_millis + 100 > 2000)
        await together([self.end(one, NOW) for one in made])
        self.assertEqual((await self.found()).taken, Slots())


class ReportContract(AdministrationContract):
    async def five(self) -> Sequence[Kernel]:
        """Make kernels 0 to 4, one second after another: 0 and 1 of another owner, 3 and 4 on agents, 4 ended."""
        await self.owner()
        await self.owner(OTHER)
        kernels = [
            await self.reserve(f"session-{n}", NOW + n, OTHER if n < 2 else KEY, memory=100 * MIB) for n in range(5)
        ]
        for kernel, agent in ((kernels[3], "i-1"), (kernels[4], "i-2")):
            await self.stores.kernels.change_status(kernel.id, KernelStatus.RUNNING, "", NOW + 5, agent_id=agent)
        await self.end(kernels[4], NOW + 6)
        return kernels

    async def tokens(self, found: Coroutine[Any, Any, Sequence[Kernel]]) -> str:
        return "".join(kernel.session_token[-1] for kernel in await found)

    async def test_pages(self) -> None:
        """Kernels come the newest first, of one owner or all, of some statuses or all, in pages, with their number."""
        await self.five()
        for wanted, tokens in (
            (KernelFilter(), "43210"),
            (KernelFilter(KEY), "432"),
            (KernelFilter(KEY, "session-3"), "3"),
            (KernelFilter(KEY, "session-0"), ""),
            (KernelFilter(statuses=RUNNING | TERMINATED), "43"),
            (KernelFilter(KEY, statuses=RUNNING), "3"),
            (KernelFilter(statuses=frozenset()), ""),
            (KernelFilter("\0"), ""),
            (KernelFilter(session_token="\ud800"), ""),
        ):
            self.assertEqual(await self.tokens(self.stores.reports.page(wanted, 0, 10)), tokens, wanted)
            self.assertEqual(await self.tokens(self.stores.reports.page(wanted, 1, 1)), tokens[1:2], wanted)
            self.assertEqual(await self.stores.reports.count(wanted), len(tokens), wanted)

    async def test_pages_by_place(self) -> None:
        """A page that begins behind a place neither repeats nor leaves out a kernel, whatever came and ended meanwhile."""
        await self.five()
        await self.reserve("session-5", NOW + 4)  # as old as session-4
        whole = list(await self.stores.reports.page(KernelFilter(KEY), 0, 10))
        seen: list[Kernel] = []
        place: tuple[float, uuid.UUID] | None = None
        while page := await self.stores.reports.page(KernelFilter(KEY, before=place), 0, 1):
            seen += page
            place = (page[-1].created_at, page[-1].id)
            await self.reserve(f"later-{len(seen)}", NOW + 100 + len(seen))
        self.assertEqual([one.id for one in seen], [one.id for one in whole])
        self.assertEqual(await self.stores.reports.count(KernelFilter(KEY, before=place)), 0)
        self.assertEqual(await self.stores.reports.count(KernelFilter(KEY, before=(NOW + 3, uuid.UUID(int=0)))), 1)

    async def test_newest_of_several(self) -> None:
        """The newest of each of several owners or agents."""
        await self.five()
        reports = self.stores.reports
        self.assertEqual(await self.tokens(reports.newest_of_owners([KEY, OTHER, "AKIANOBODY", "\0"], None, 2)), "4310")
        self.assertEqual(await self.tokens(reports.newest_of_owners([KEY], RUNNING, 2)), "3")
        self.assertEqual(await self.tokens(reports.newest_of_owners([], None, 2)), "")
        self.assertEqual(await self.tokens(reports.newest_of_agents(["i-1", "i-2", "i-3"], None, 1)), "43")
        self.assertEqual(await self.tokens(reports.newest_of_agents(["i-1", "i-2"], TERMINATED, 1)), "4")

    async def test_occupied(self) -> None:
        """What live kernels take is known per agent."""
        await self.five()
        self.assertEqual(await self.stores.reports.occupied(), {"i-1": Slots(1, 100 * MIB, 1000, 0)})

    async def test_usage(self) -> None:
        """A period has the counters of kernels that ended in it and every kernel's time within it."""
        await self.owner(user_id="me")
        await self.owner(OTHER)
        ended = await self.reserve("session-1", NOW)
        await self.end(ended, NOW + 100, USAGE)
        await self.end(await self.reserve("session-1", NOW + 100), NOW + 130, attrs.evolve(USAGE, mem_max_bytes=-1))
        await self.reserve("session-2", NOW + 120)
        await self.end(await self.reserve("session-1", NOW + 190, OTHER), NOW + 200, USAGE)
        usage = self.stores.reports.usage
        first = KeypairUsage(KEY, "me", 1, 60.0, 1500.0, 2**40, 3, 40, 50, 0)
        self.assertEqual(self.rounded(await usage(NOW + 50, NOW + 110, None, 0, 10)), [first])
        second = KeypairUsage(KEY, "me", 1, 20.0 + 70.0, 1500.0, 0, 3, 40, 50, 0)
        other = KeypairUsage(OTHER, "2", 0, 0.0, 0.0, 0, 0, 0, 0, 0)
        both = await usage(NOW + 110, NOW + 190, None, 0, 10)
        self.assertEqual(self.rounded(both), [second])
        later = await usage(NOW + 190, NOW + 200, None, 0, 10)
        self.assertEqual(self.rounded(later)[0].access_key, OTHER)
        self.assertEqual(self.rounded(later)[0], attrs.evolve(other, wall_time=10.0))
        self.assertEqual([one.access_key for one in await usage(NOW, NOW + 300, None, 0, 10)], [OTHER, KEY])
        self.assertEqual([one.access_key for one in await usage(NOW, NOW + 300, None, 1, 1)], [KEY])
        self.assertEqual([one.access_key for one in await usage(NOW, NOW + 300, OTHER, 0, 10)], [OTHER])
        self.assertEqual(await usage(NOW, NOW + 300, "\0", 0, 10), [])
        self.assertEqual(await usage(NOW - 9, NOW, None, 0, 10), [])

    def rounded(self, found: Sequence[KeypairUsage]) -> list[KeypairUsage]:
        return [attrs.evolve(one, wall_time=round(one.wall_time, 3)) for one in found]

    async def test_first_contact(self) -> None:
        """An agent's first enrolment is remembered, whatever key it comes with later."""
        await self.stores.agents.enrol("i-1", "a" * 40, NOW)
        await self.stores.agents.enrol("i-1", "b" * 40, NOW + 5)
        await self.stores.agents.enrol("i-2", "c" * 40, NOW + 6)
        self.assertEqual(await self.stores.agents.enrolled(), {"i-1": NOW, "i-2": NOW + 6})

    async def test_lost_agents(self) -> None:
        """Since when an agent is lost is kept until it lives again; one that nobody enrolled is none."""
        agents = self.stores.agents
        for name in ("i-1", "i-2"):
            await agents.enrol(name, "a" * 40, NOW)
        self.assertEqual(await agents.lost(), {})
        await agents.note_alive(["i-1", "\0", "i-nobody"], NOW + 1)
        await agents.note_alive(["i-1"], NOW + 2)
        self.assertEqual(await agents.lost(), {"i-2": NOW + 1})
        await agents.note_alive(["i-2"], NOW + 3)
        self.assertEqual(await agents.lost(), {"i-1": NOW + 3})
        await agents.note_alive([], NOW + 4)
        self.assertEqual(await agents.lost(), {"i-1": NOW + 3, "i-2": NOW + 4})

    async def test_mounting(self) -> None:
        """Live kernels are found by the folders that they see, with those that they can write to."""
        await self.owner(concurrency_limit=9)
        first, second, third = (uuid.UUID(int=number) for number in (1, 2, 3))

        async def made(*mounts: Mount) -> Kernel:
            spec = KernelSpec(KEY, f"session-{len(mounts)}", "c", "c", Limits(), mounts=mounts)
            return (await self.stores.kernels.reserve(new_kernel_id(), spec, NOW))[0]

        await made()
        one = await made(Mount(first.hex, "a", True, 1, 1))
        two = await made(Mount(first.hex, "a", False, 1, 1), Mount(second.hex, "b", True, 1, 1))
        both = [
            MountingKernel(one, frozenset({first}), frozenset()),
            MountingKernel(two, frozenset({first, second}), frozenset({first})),
        ]
        both.sort(key=lambda found: found.kernel.id)
        mounting = self.stores.reports.mounting
        self.assertEqual(await mounting([first]), both)
        self.assertEqual(await mounting(None), both)
        self.assertEqual([found.kernel for found in await mounting([third, second])], [two])
        self.assertEqual([await mounting([third]), await mounting([])], [[], []])
        await self.end(two, NOW + 1)
        self.assertEqual([found.kernel for found in await mounting(None)], [one])

    async def test_drains(self) -> None:
        """An agent is drained until that is undone, since when it was the first time, with the last deadline."""
        agents = self.stores.agents
        self.assertFalse(await agents.drain("i-1", Drain(NOW)))
        self.assertFalse(await agents.drain("i-\0", Drain(NOW)))
        for agent_id in ("i-1", "i-2", "i-3"):
            await agents.enrol(agent_id, "a" * 40, NOW)
        self.assertEqual(await agents.drains(), {})
        self.assertTrue(await agents.drain("i-1", Drain(NOW, NOW + 60)))
        self.assertTrue(await agents.drain("i-2", Drain(NOW + 1)))
        self.assertTrue(await agents.drain("i-1", Drain(NOW + 2)))
        self.assertEqual(await agents.drains(), {"i-1": Drain(NOW), "i-2": Drain(NOW + 1)})
        self.assertTrue(await agents.drain("i-2", Drain(NOW + 3, NOW + 4)))
        self.assertTrue(await agents.drain("i-1", None))
        self.assertTrue(await agents.drain("i-3", None))
        await agents.enrol("i-2", "b" * 40, NOW + 9)
        self.assertEqual(await agents.drains(), {"i-2": Drain(NOW + 1, NOW + 4)})


class MemoryKeypairAdministrationTests(KeypairAdministrationContract, TestCase):
    def setUp(self) -> Deferred[None]:  # type: ignore[override]
        return self.use(memory_stores)


class PostgresKeypairAdministrationTests(KeypairAdministrationContract, TestCase):
    def setUp(self) -> Deferred[None]:  # type: ignore[override]
        return self.use(postgres_stores)


class MemoryPolicyTests(PolicyContract, TestCase):
    def setUp(self) -> Deferred[None]:  # type: ignore[override]
        return self.use(memory_stores)


class PostgresPolicyTests(PolicyContract, TestCase):
    def setUp(self) -> Deferred[None]:  # type: ignore[override]
        return self.use(postgres_stores)


class MemoryReportTests(ReportContract, TestCase):
    def setUp(self) -> Deferred[None]:  # type: ignore[override]
        return self.use(memory_stores)


class PostgresReportTests(ReportContract, TestCase):
    def setUp(self) -> Deferred[None]:  # type: ignore[override]
        return self.use(postgres_stores)
