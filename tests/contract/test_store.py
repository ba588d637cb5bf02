"""What every KeypairStore, KernelStore and AgentStore does; run for the memory stores and for PostgreSQL."""

from __future__ import annotations

import random
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import TestCase

from sorna.errors import InvalidRequest, QuotaExceeded
from sorna.manager.enrolment_interfaces import AgentStore
from sorna.manager.interfaces import KernelStore, KeypairStore
from sorna.model.census import Alike, id_of
from sorna.model.kernel import Kernel, KernelSpec, KernelStatus, Usage, may_change, new_kernel_id, short_id
from sorna.model.keypair import Keypair, generate_keypair
from sorna.model.limits import Limits
from sorna.store.agents import PostgresAgents
from sorna.store.kernels import PostgresKernels
from sorna.store.keypairs import PostgresKeypairs
from sorna.store.memory import MemoryKernels, MemoryKeypairs
from sorna.store.memory_agents import MemoryAgents
from tests.contract.postgres import fresh_pool

if TYPE_CHECKING:
    Base = TestCase
else:
    Base = object

T = TypeVar("T")

NOW = 1_700_000_000.123457
KEY = "AKIATESTTESTTESTTEST"
TOKEN = "session-1"


async def together(work: Sequence[Coroutine[Deferred[Any], Any, T]]) -> list[T]:
    """Run all at once and give every result."""
    return await gatherResults([Deferred.fromCoroutine(one) for one in work], consumeErrors=True)


async def or_quota(work: Awaitable[tuple[Kernel, bool]]) -> tuple[Kernel, bool] | None:
    """Give None where the quota is used up."""
    try:
        return await work
    except QuotaExceeded:
        return None


def spec(token: str = TOKEN, access_key: str = KEY, **more: Any) -> KernelSpec:
    return KernelSpec(access_key, token, "python3", "python", Limits(), **more)


def keypair(access_key: str = KEY, **more: Any) -> Keypair:
    return Keypair(access_key, "secret", **more)


class Stores:
    """The three stores of one implementation, empty."""

    keypairs: KeypairStore
    kernels: KernelStore
    agents: AgentStore


async def memory_stores(_test: TestCase) -> Stores:
    stores = Stores()
    keypairs = MemoryKeypairs()
    stores.keypairs, stores.kernels, stores.agents = keypairs, MemoryKernels(keypairs), MemoryAgents()
    return stores


async def postgres_stores(test: TestCase) -> Stores:
    from twisted.internet import reactor  # noqa: PLC0415, TID251 - a test against the real thing

    pool = await fresh_pool(test, reactor)
    stores = Stores()
    stores.keypairs, stores.kernels, stores.agents = PostgresKeypairs(pool), PostgresKernels(pool), PostgresAgents(pool)
    return stores


class Contract(Base):
    """What the suites share."""

    stores: Stores

    def use(self, make: Callable[[TestCase], Coroutine[Deferred[Any], Any, Stores]]) -> Deferred[None]:
        """Make the stores of one test."""

        async def prepare() -> None:
            self.stores = await make(self)

        return Deferred.fromCoroutine(prepare())


class KeypairStoreContract(Contract):
    async def test_added_is_found(self) -> None:
        """A stored keypair comes back with every field."""
        one = attrs.evolve(
            generate_keypair(is_admin=True, rate_limit=7, concurrency_limit=3),
            is_active=False,
            user_id="me@example.com",
            created_at=NOW,
        )
        self.assertTrue(await self.stores.keypairs.add(one))
        self.assertEqual(await self.stores.keypairs.by_access_key(one.access_key), one)

    async def test_unknown_is_none(self) -> None:
        """An access key that nobody has, or that no database can hold, is simply not there."""
        for access_key in ("AKIANOBODY", "", "AKIA\0", "\ud800", "' OR 1=1 --", "%s"):
            self.assertIsNone(await self.stores.keypairs.by_access_key(access_key))

    async def test_second_add_changes_nothing(self) -> None:
        """Adding an access key again gives False and keeps the first one."""
        await self.stores.keypairs.add(keypair(user_id="1"))
        self.assertFalse(await self.stores.keypairs.add(keypair(user_id="2")))
        self.assertEqual(await self.stores.keypairs.by_access_key(KEY), keypair(user_id="1"))
        self.assertEqual(await self.stores.keypairs.count(), 1)

    async def test_unstorable_is_refused(self) -> None:
        """A NUL is the caller's mistake, not a failure."""
        with self.assertRaises(InvalidRequest):
            await self.stores.keypairs.add(keypair("AKIA\0"))

    async def test_note_use_adds(self) -> None:
        """Counts add up per access key, and unknown keys are passed over."""
        await self.stores.keypairs.add(keypair())
        await self.stores.keypairs.add(keypair("AKIAOTHER"))
        await self.stores.keypairs.note_use({KEY: 2, "AKIAGONE": 5, "AKIA\0": 1}, NOW)
        await self.stores.keypairs.note_use({KEY: 3, "AKIAOTHER": 1}, NOW + 1)
        await self.stores.keypairs.note_use({}, NOW)
        self.assertEqual(await self.stores.keypairs.by_access_key(KEY), keypair(num_queries=5, last_used=NOW + 1))
        self.assertEqual(
            await self.stores.keypairs.by_access_key("AKIAOTHER"),
            keypair("AKIAOTHER", num_queries=1, last_used=NOW + 1),
        )

    async def test_concurrent_note_use(self) -> None:
        """Batches that name the same keys in another order, at once, lose nothing."""
        names = [f"AKIA{number}" for number in range(10)]
        for name in names:
            await self.stores.keypairs.add(keypair(name))
        orders = [random.Random(seed).sample(names, len(names)) for seed in range(12)]
        await together([self._note(dict.fromkeys(order, 1)) for order in orders])
        for name in names:
            self.assertEqual(
                await self.stores.keypairs.by_access_key(name), keypair(name, num_queries=12, last_used=NOW)
            )

    async def _note(self, queries: dict[str, int]) -> None:
        await self.stores.keypairs.note_use(queries, NOW)


class KernelStoreContract(Contract):
    async def _owner(self, limit: int = 30, access_key: str = KEY) -> None:
        await self.stores.keypairs.add(keypair(access_key, concurrency_limit=limit))

    async def _used(self, access_key: str = KEY) -> int:
        found = await self.stores.keypairs.by_access_key(access_key)
        assert found is not None
        return found.concurrency_used

    async def _reserve(self, token: str = TOKEN) -> Kernel:
        kernel, _made = await self.stores.kernels.reserve(new_kernel_id(), spec(token), NOW)
        return kernel

    async def test_reserved_is_found(self) -> None:
        """A new kernel is PREPARING, holds a place of the quota and comes back with every field."""
        await self._owner()
        kernel_id = new_kernel_id()
        wanted = spec(environ={"A": "ü %s"}, tag="t")
        kernel, made = await self.stores.kernels.reserve(kernel_id, wanted, NOW)
        self.assertTrue(made)
        self.assertEqual(
            kernel,
            Kernel(
                kernel_id, KEY, TOKEN, "python3", "python", KernelStatus.PREPARING, "requested",
                NOW, NOW, Limits(), environ={"A": "ü %s"}, tag="t",
            ),
        )  # fmt: skip
        self.assertEqual(await self.stores.kernels.by_id(kernel_id), kernel)
        self.assertEqual(await self.stores.kernels.live_by_token(KEY, TOKEN), kernel)
        self.assertEqual(await self._used(), 1)

    async def test_same_token_finds_it(self) -> None:
        """A second reservation of a token finds the kernel, although the quota is used up."""
        await self._owner(limit=1)
        first = await self._reserve()
        again, made = await self.stores.kernels.reserve(new_kernel_id(), spec(), NOW + 1)
        self.assertEqual((again, made), (first, False))
        self.assertEqual(await self._used(), 1)

    async def test_quota(self) -> None:
        """Beyond the limit nothing is written; a place given back can be taken again."""
        await self._owner(limit=1)
        first = await self._reserve()
        with self.assertRaises(QuotaExceeded):
            await self._reserve("session-2")
        self.assertIsNone(await self.stores.kernels.last_by_token(KEY, "session-2"))
        await self.stores.kernels.change_status(first.id, KernelStatus.TERMINATED, "user-requested", NOW)
        await self._reserve("session-2")
        self.assertEqual(await self._used(), 1)

    async def test_unknown_owner(self) -> None:
        """Who has no keypair has no place."""
        with self.assertRaises(QuotaExceeded):
            await self._reserve()

    async def test_owners_do_not_share_tokens(self) -> None:
        """The same token of two owners is two kernels."""
        await self._owner()
        await self._owner(access_key="AKIAOTHER")
        mine = await self._reserve()
        theirs, made = await self.stores.kernels.reserve(new_kernel_id(), spec(access_key="AKIAOTHER"), NOW)
        self.assertTrue(made)
        self.assertNotEqual(mine.id, theirs.id)

    async def test_unstorable_is_refused(self) -> None:
        """Text that no database can hold is refused before anything changes."""
        await self._owner()
        for bad in (spec(tag="\0"), spec(environ={"A": "\0"}), spec(environ={"\ud800": ""})):
            with self.assertRaises(InvalidRequest):
                await self.stores.kernels.reserve(new_kernel_id(), bad, NOW)
        self.assertIsNone(await self.stores.kernels.live_by_token(KEY, "\0"))
        self.assertIsNone(await self.stores.kernels.last_by_token("\0", "x"))
        self.assertEqual(await self._used(), 0)

    async def test_allowed_changes_only(self) -> None:
        """From every status, exactly the allowed changes happen."""
        await self._owner(limit=100)
        paths = {
            KernelStatus.PREPARING: (),
            KernelStatus.RUNNING: (KernelStatus.RUNNING,),
            KernelStatus.RESTARTING: (KernelStatus.RUNNING, KernelStatus.RESTARTING),
            KernelStatus.TERMINATING: (KernelStatus.TERMINATING,),
            KernelStatus.TERMINATED: (KernelStatus.TERMINATED,),
            KernelStatus.ERROR: (KernelStatus.ERROR,),
        }
        for before, path in paths.items():
            for after in KernelStatus:
                kernel = await self._reserve(f"{before}-{after}")
                for step in path:
                    await self.stores.kernels.change_status(kernel.id, step, "on the way", NOW)
                changed = await self.stores.kernels.change_status(kernel.id, after, "asked", NOW)
                self.assertEqual(changed is not None, may_change(before, after), (before, after))

    async def test_final_change_is_complete(self) -> None:
        """A final status comes with its reason, times, usage and count, and the quota is free."""
        await self._owner()
        kernel = await self._reserve()
        running = await self.stores.kernels.change_status(
            kernel.id, KernelStatus.RUNNING, "ready", NOW + 1, agent_id="agent-1"
        )
        self.assertEqual(
            running,
            attrs.evolve(
                kernel,
                status=KernelStatus.RUNNING,
                status_reason="ready",
                status_changed_at=NOW + 1,
                agent_id="agent-1",
            ),
        )
        usage = Usage(1.5, 2**40, 3, 4, 5, 6, 7, 8, 9)
        ended = await self.stores.kernels.change_status(
            kernel.id, KernelStatus.TERMINATED, "idle-timeout", NOW + 2, usage=usage, num_queries=12
        )
        assert running is not None
        wanted = attrs.evolve(
            running, status=KernelStatus.TERMINATED, status_reason="idle-timeout", status_changed_at=NOW + 2,
            terminated_at=NOW + 2, usage=usage, num_queries=12,
        )  # fmt: skip
        self.assertEqual(ended, wanted)
        self.assertEqual(await self.stores.kernels.by_id(kernel.id), wanted)
        self.assertIsNone(await self.stores.kernels.live_by_token(KEY, TOKEN))
        self.assertEqual(await self.stores.kernels.last_by_token(KEY, TOKEN), wanted)
        self.assertEqual(await self._used(), 0)

    async def test_unknown_kernel(self) -> None:
        """A kernel that never was can neither be found nor changed."""
        self.assertIsNone(await self.stores.kernels.by_id(uuid.UUID(int=1)))
        changed = await self.stores.kernels.change_status(uuid.UUID(int=1), KernelStatus.TERMINATED, "x", NOW)
        self.assertIsNone(changed)

    async def test_only_its_owner(self) -> None:
        """A change that names an owner is one of a kernel of that owner."""
        await self._owner()
        kernel = await self._reserve()
        change = self.stores.kernels.change_status
        self.assertIsNone(await change(kernel.id, KernelStatus.TERMINATING, "x", NOW, access_key="AKIAOTHER"))
        self.assertEqual(await self.stores.kernels.by_id(kernel.id), kernel)
        changed = await change(kernel.id, KernelStatus.TERMINATING, "x", NOW, access_key=KEY)
        assert changed is not None
        self.assertEqual(changed.status, KernelStatus.TERMINATING)

    async def test_last_by_token(self) -> None:
        """The most recent of several kernels of one token is found."""
        await self._owner()
        for number in range(3):
            kernel, _made = await self.stores.kernels.reserve(new_kernel_id(), spec(), NOW + number)
            await self.stores.kernels.change_status(kernel.id, KernelStatus.TERMINATED, str(number), NOW + number)
        last = await self.stores.kernels.last_by_token(KEY, TOKEN)
        assert last is not None
        self.assertEqual(last.status_reason, "2")

    async def test_live_pages(self) -> None:
        """Live kernels come in pages, in order of id, of all agents or of one."""
        await self._owner()
        kernels = [await self._reserve(f"session-{number}") for number in range(7)]
        for kernel in kernels[:3]:
            await self.stores.kernels.change_status(kernel.id, KernelStatus.RUNNING, "ready", NOW, agent_id="a")
        await self.stores.kernels.change_status(kernels[6].id, KernelStatus.ERROR, "x", NOW)
        seen: list[uuid.UUID] = []
        while page := await self.stores.kernels.live(after=seen[-1] if seen else None, limit=2):
            self.assertLessEqual(len(page), 2)
            seen += [kernel.id for kernel in page]
        self.assertEqual(seen, sorted(kernel.id for kernel in kernels[:6]))
        mine = await self.stores.kernels.live(agent_id="a")
        self.assertEqual([kernel.id for kernel in mine], sorted(kernel.id for kernel in kernels[:3]))
        self.assertEqual(await self.stores.kernels.live(agent_id="b"), [])

    async def test_census(self) -> None:
        """Live kernels are named in groups of those that are alike; those that have run for a while are one group each agent."""
        await self._owner()
        kernels = [await self._reserve(f"session-{number}") for number in range(7)]
        change = self.stores.kernels.change_status
        for number, (agent, at) in enumerate((("a", 1), ("a", 2), ("b", 1), ("a", 3))):
            await change(kernels[number].id, KernelStatus.RUNNING, "", NOW + at, agent_id=agent)
        await change(kernels[4].id, KernelStatus.RUNNING, "", NOW + 1, agent_id="a")
        await change(kernels[4].id, KernelStatus.TERMINATING, "x", NOW + 1.25)
        await change(kernels[5].id, KernelStatus.ERROR, "x", NOW + 1)

        def of(status: KernelStatus, agent: str | None, at: float | None, *numbers: int) -> Alike:
            return Alike(status, agent, at, frozenset(short_id(kernels[number].id) for number in numbers))

        running = KernelStatus.RUNNING
        self.assertCountEqual(
            await self.stores.kernels.census(NOW + 3),
            [
                of(running, "a", None, 0, 1),
                of(running, "b", None, 2),
                of(running, "a", NOW + 3, 3),
                of(KernelStatus.TERMINATING, "a", NOW + 1.25, 4),
                of(KernelStatus.PREPARING, None, NOW, 6),
            ],
        )
        self.assertEqual({id_of(short_id(kernel.id)) for kernel in kernels}, {kernel.id for kernel in kernels})

    async def test_changed_pages(self) -> None:
        """Kernels of some owners that changed since a time come in pages, in order of the change, ended ones among them."""
        await self._owner()
        await self._owner(access_key="AKIAOTHER")
        kernels = [await self._reserve(f"session-{number}") for number in range(5)]
        foreign = (await self.stores.kernels.reserve(new_kernel_id(), spec(access_key="AKIAOTHER"), NOW))[0]
        change = self.stores.kernels.change_status
        for number in (3, 1, 4):
            await change(kernels[number].id, KernelStatus.RUNNING, "", NOW + 10 - number)
        await change(kernels[0].id, KernelStatus.TERMINATED, "x", NOW + 6)
        await change(kernels[1].id, KernelStatus.TERMINATED, "x", NOW + 20)
        await change(foreign.id, KernelStatus.RUNNING, "", NOW + 7.5)

        async def since(at: float, *owners: str) -> list[uuid.UUID]:
            seen: list[uuid.UUID] = []
            after: tuple[float, uuid.UUID] | None = None
            while page := await self.stores.kernels.changed(owners, at, after=after, limit=2):
                self.assertLessEqual(len(page), 2)
                seen += [kernel.id for kernel in page]
                after = (page[-1].status_changed_at, page[-1].id)
            return seen

        wanted = [kernels[number].id for number in (0, 4, 3, 1)]
        self.assertCountEqual(wanted[:2], (await since(NOW + 1, KEY))[:2])
        self.assertEqual((await since(NOW + 1, KEY))[2:], wanted[2:])
        both = await since(NOW + 7, KEY, "AKIAOTHER", "nobody", "\0")
        self.assertEqual(both, [kernels[3].id, foreign.id, kernels[1].id])
        self.assertEqual(await since(NOW + 20, KEY), [kernels[1].id])
        self.assertEqual(await since(NOW + 20.000001, KEY), [])
        self.assertEqual(await since(NOW, "nobody"), [])
        self.assertEqual(len(await since(NOW - 1, KEY)), 5)

    async def test_concurrent_reserves_of_one_token(self) -> None:
        """Of 50 at once, one makes the kernel and the others find it."""
        await self._owner(limit=1)
        results = await together([self.stores.kernels.reserve(new_kernel_id(), spec(), NOW) for _ in range(50)])
        self.assertEqual(sum(made for _kernel, made in results), 1)
        self.assertEqual(len({kernel.id for kernel, _made in results}), 1)
        self.assertEqual(await self._used(), 1)

    async def test_concurrent_reserves_of_a_quota(self) -> None:
        """Of 50 tokens at once with a limit of 5, five get a kernel."""
        await self._owner(limit=5)
        results = await together(
            [or_quota(self.stores.kernels.reserve(new_kernel_id(), spec(f"t-{n}"), NOW)) for n in range(50)]
        )
        self.assertEqual(len([one for one in results if one is not None]), 5)
        self.assertEqual(await self._used(), 5)
        self.assertEqual(len(await self.stores.kernels.live()), 5)

    async def test_concurrent_final_changes(self) -> None:
        """Of many final changes of one kernel at once, one happens and gives one place back."""
        await self._owner()
        kernel = await self._reserve()
        await self._reserve("session-2")
        results = await together(
            [self._end(kernel.id, status) for status in (KernelStatus.TERMINATED, KernelStatus.ERROR) * 12]
        )
        self.assertEqual(len([one for one in results if one is not None]), 1)
        self.assertEqual(await self._used(), 1)

    async def _end(self, kernel_id: uuid.UUID, status: KernelStatus) -> Kernel | None:
        return await self.stores.kernels.change_status(kernel_id, status, "end", NOW, usage=Usage())

    async def test_quota_equals_live_kernels(self) -> None:
        """After random changes at once, by several owners, each quota is the number of live kernels."""
        owners = ["AKIAONE", "AKIATWO"]
        for owner in owners:
            await self._owner(4, owner)
        chance = random.Random(20260101)
        for _round in range(15):
            await together([self._something(chance, owners) for _ in range(8)])
            live = await self.stores.kernels.live()
            for owner in owners:
                mine = sum(kernel.access_key == owner for kernel in live)
                self.assertEqual(await self._used(owner), mine)
                self.assertLessEqual(mine, 4)

    async def _something(self, chance: random.Random, owners: Sequence[str]) -> None:
        owner, token = chance.choice(owners), f"token-{chance.randrange(6)}"
        after = chance.choice(list(KernelStatus))
        if chance.random() < 0.5:
            await or_quota(self.stores.kernels.reserve(new_kernel_id(), spec(token, owner), NOW))
            return
        kernel = await self.stores.kernels.last_by_token(owner, token)
        if kernel is not None:
            await self.stores.kernels.change_status(kernel.id, after, "random", NOW)


class AgentStoreContract(Contract):
    async def test_enrolled_is_trusted(self) -> None:
        """An agent's key is the last one it was enrolled with."""
        self.assertEqual(await self.stores.agents.public_keys(), {})
        await self.stores.agents.enrol("agent-1", "a" * 40, NOW)
        await self.stores.agents.enrol("agent-2", "b" * 40, NOW)
        await self.stores.agents.enrol("agent-1", "c" * 40, NOW + 1)
        self.assertEqual(await self.stores.agents.public_keys(), {"agent-1": "c" * 40, "agent-2": "b" * 40})

    async def test_nonsense_is_refused(self) -> None:
        """An agent without an id or with a short key is not enrolled."""
        for agent_id, key in (("", "a" * 40), ("agent", "short"), ("a\0", "a" * 40)):
            with self.assertRaises(InvalidRequest):
                await self.stores.agents.enrol(agent_id, key, NOW)
        self.assertEqual(await self.stores.agents.public_keys(), {})


class MemoryKeypairStoreTests(KeypairStoreContract, TestCase):
    def setUp(self) -> Any:
        return self.use(memory_stores)


class PostgresKeypairStoreTests(KeypairStoreContract, TestCase):
    def setUp(self) -> Any:
        return self.use(postgres_stores)


class MemoryKernelStoreTests(KernelStoreContract, TestCase):
    def setUp(self) -> Any:
        return self.use(memory_stores)


class PostgresKernelStoreTests(KernelStoreContract, TestCase):
    def setUp(self) -> Any:
        return self.use(postgres_stores)


class MemoryAgentStoreTests(AgentStoreContract, TestCase):
    def setUp(self) -> Any:
        return self.use(memory_stores)


class PostgresAgentStoreTests(AgentStoreContract, TestCase):
    def setUp(self) -> Any:
        return self.use(postgres_stores)
