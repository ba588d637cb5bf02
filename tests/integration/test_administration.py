"""The administration on a real PostgreSQL and a real Valkey: two managers learn of changes, and no row costs a statement."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall

from sorna.cluster.memory import MemoryAgentLink
from sorna.gateway.graphql.asking import Asking
from sorna.gateway.graphql.schema import read_query
from sorna.manager.administration import Administration
from sorna.manager.agents import AgentAdministration
from sorna.manager.ending import Ending
from sorna.manager.events import KernelEvents
from sorna.manager.keypairs import MAX_AGE, CachedKeypairs
from sorna.manager.placing import Placing
from sorna.model.kernel import KernelSpec, new_kernel_id
from sorna.model.keypair import Keypair, KeypairChanges
from sorna.model.limits import LimitPolicy, Limits
from sorna.store.agents import PostgresAgents
from sorna.store.folders import PostgresFolders
from sorna.store.kernels import PostgresKernels
from sorna.store.keypairs import PostgresKeypairs
from sorna.store.policies import PostgresPolicies
from sorna.store.queue import PostgresQueue
from sorna.store.reports import PostgresReports
from tests.contract.live_backends import REACTOR, ValkeyCase
from tests.contract.postgres import fresh_pool

KEY = "AKIAONE"
EVERYTHING = """{
  keypairs { access_key secret_key created_at last_used resource_policy
    all: compute_sessions { sess_id status cpu_used num_queries mem_slot } running: compute_sessions(status: "RUNNING") { id } }
  agents { id status used_mem_slots computations { sess_id } }
  compute_session_list(limit: 20, offset: 0) { items { name agent } total_count }
  resource_policies { name }
  usage(since: "2020-01-01", until: "2099-01-01") { access_key wall_time }
}"""


class AdministrationTestCase(ValkeyCase):
    """One administration, and the caches of two managers that listen."""

    def setUp(self) -> Deferred[None]:  # type: ignore[override]  # trial waits for it, unittest's type does not know
        super().setUp()
        return Deferred.fromCoroutine(self.prepare())

    async def prepare(self) -> None:
        self.pool = await fresh_pool(self, REACTOR)
        self.keypairs = PostgresKeypairs(self.pool)
        self.stored = PostgresKernels(self.pool)
        agents = PostgresAgents(self.pool)
        link = MemoryAgentLink(REACTOR, {}, lambda ended: ending.on_kernel_ended(ended))  # noqa: PLW0108 - made below
        events = KernelEvents(REACTOR, self.stored, self.announcements)
        ending = Ending(REACTOR, self.stored, self.kernels, self.directory, link, events)
        agent_administration = AgentAdministration(
            REACTOR,
            agents,
            self.directory,
            link,
            self.stored,
            ending,
            self.announcements,
            Placing(REACTOR, self.directory),
            LimitPolicy(),
        )
        self.administration = Administration(
            REACTOR,
            self.keypairs,
            PostgresPolicies(self.pool),
            self.stored,
            PostgresReports(self.pool),
            agents,
            self.directory,
            self.kernels,
            self.announcements,
            PostgresFolders(self.pool),
            PostgresFolders(self.pool).remove_forsaken,
            agent_administration,
            PostgresQueue(self.pool),
        )
        await self.keypairs.add(Keypair(KEY, "secret"))
        self.caches = [CachedKeypairs(REACTOR, self.keypairs) for _ in range(2)]
        for cache in self.caches:
            cache.listen(self.listen())
        await self.settle()

    async def known(self) -> list[bool]:
        """Tell whether the keypair works, as each manager sees it."""
        found = [await cache.find(KEY) for cache in self.caches]
        return [keypair is not None and keypair.is_active for keypair in found]


class ChangeTests(AdministrationTestCase):
    """Keypairs change."""

    async def test_every_manager_learns_of_a_change(self) -> None:
        """A change is seen by every manager, and by what watches the keypair, long before what is known grows too old."""
        self.assertEqual(await self.known(), [True, True])
        told: list[tuple[int, bool]] = []

        def tell(number: int, keypair: Keypair | None) -> None:
            told.append((number, keypair is not None and keypair.is_active))

        for number, cache in enumerate(self.caches):
            cache.watch(KEY, partial(tell, number))
            await cache.check_watched()
        self.assertEqual(told, [(0, True), (1, True)])
        await self.administration.modify_keypair(KEY, KeypairChanges(is_active=False))
        took = await self.eventually(lambda: len(told) == 4)
        self.assertLess(took, MAX_AGE / 2)
        self.assertEqual(sorted(told[2:]), [(0, False), (1, False)])
        self.assertEqual(await self.known(), [False, False])

    async def test_lost_announcements(self) -> None:
        """Without Redis a change is seen within a second all the same."""
        told: list[Keypair | None] = []
        self.caches[0].watch(KEY, told.append)
        looking = LoopingCall(lambda: Deferred.fromCoroutine(self.caches[0].check_watched()))
        looking.start(MAX_AGE)
        self.addCleanup(looking.stop)
        await self.known()
        self.server.kill()
        await self.keypairs.modify(KEY, KeypairChanges(is_active=False))
        took = await self.eventually(lambda: told[-1:] != [] and not getattr(told[-1], "is_active", True))
        self.assertLess(took, 1.0)
        await self.sleep(max(0.0, MAX_AGE - took))
        self.assertEqual(await self.known(), [False, False])


class QueryTests(AdministrationTestCase):
    """A query that asks for everything."""

    async def answer(self) -> tuple[Any, int, float]:
        """Give the data, the number of statements, and the longest time that the reactor could not turn."""
        statements, ask = 0, self.pool.query

        async def counting(*arguments: Any) -> Any:
            nonlocal statements
            statements += 1
            return await ask(*arguments)

        gaps = [0.0]
        last = time.perf_counter()

        def turn() -> None:
            nonlocal last
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

        turning = LoopingCall(turn)
        turning.start(0)
        self.patch(self.pool, "query", counting)
        query = read_query(EVERYTHING, is_admin=True)
        data = await Asking(self.administration, KEY, is_admin=True).execute(query.schema, query.document, {}, None)
        turning.stop()
        self.patch(self.pool, "query", ask)
        return data, statements, max(gaps)

    async def test_statements_do_not_grow_with_rows(self) -> None:
        """Twenty keypairs with three kernels each cost as many statements as one with none."""
        _data, few, _gap = await self.answer()
        for number in range(20):
            await self.keypairs.add(Keypair(f"AKIA{number}", "secret", concurrency_limit=3, created_at=number))
            for token in range(3):
                spec = KernelSpec(f"AKIA{number}", f"token-{token}", "c", "c", Limits())
                await self.stored.reserve(new_kernel_id(), spec, REACTOR.seconds())
        data, many, gap = await self.answer()
        self.assertEqual(len(data["keypairs"]), 21)
        self.assertEqual(sum(len(one["all"]) for one in data["keypairs"]), 60)
        self.assertEqual((len(data["usage"]), data["compute_session_list"]["total_count"]), (20, 60))
        self.assertEqual(few, many)
        self.assertLess(many, 12)
        # Generous, because the machine that runs this has other work: about 2 ms where it has none.
        self.assertLess(gap, 0.1)
