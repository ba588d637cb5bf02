"""Two managers on one PostgreSQL and one Valkey: one line for both, whoever of them serves, and nobody in it twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred, DeferredList

from sorna.cluster.memory import MemoryAgentLink
from sorna.errors import NoAgentAvailable
from sorna.manager.absence import Absence
from sorna.manager.agents import AgentAdministration
from sorna.manager.creation import Creation
from sorna.manager.ending import Ending
from sorna.manager.events import KernelEvents
from sorna.manager.keypairs import CachedKeypairs
from sorna.manager.placing import Placing
from sorna.manager.queue import Queue
from sorna.manager.reaper import Reaper
from sorna.manager.requests import Created, CreateRequest
from sorna.model.kernel import KernelStatus, short_id
from sorna.model.keypair import Keypair
from sorna.model.limits import LimitPolicy
from sorna.store.agents import PostgresAgents
from sorna.store.kernels import PostgresKernels
from sorna.store.keypairs import PostgresKeypairs
from sorna.store.queue import PostgresQueue
from sorna.testing.folders import memory_folders
from tests.cluster.scripted import ScriptedOperations
from tests.contract.live_backends import REACTOR, ValkeyCase, beat_of
from tests.contract.postgres import fresh_pool

KEY, OTHER = "AKIAONE", "AKIATWO"
PLACES = 2


class Manager:
    """All of a manager that a kernel's creation needs, on the databases of a test."""

    def __init__(self, test: TwoQueuesTests) -> None:
        link = MemoryAgentLink(REACTOR, {"i-one": test.agent}, lambda ended: self.ending.on_kernel_ended(ended))  # noqa: PLW0108 - made below
        announcements = test.listen()
        self.events = KernelEvents(REACTOR, test.stored, announcements)
        self.ending = Ending(REACTOR, test.stored, test.kernels, test.directory, link, self.events)
        placing = Placing(REACTOR, test.directory)
        folders, _transfers = memory_folders(test, REACTOR)
        self.queue = Queue(
            REACTOR,
            test.stored,
            PostgresQueue(test.pool),
            placing,
            self.ending,
            announcements,
            lambda spec: self.creation.demand(spec),  # noqa: PLW0108 - made below
            lambda *chosen: self.creation.make_waiting(*chosen),  # noqa: PLW0108 - made below
        )
        self.queue.listen()
        absence = Absence(REACTOR)
        self.creation = Creation(
            REACTOR,
            test.stored,
            test.kernels,
            test.directory,
            link,
            announcements,
            self.ending,
            absence,
            CachedKeypairs(REACTOR, test.keypairs),
            folders,
            LimitPolicy(),
            placing,
            self.queue,
        )
        agents = AgentAdministration(
            REACTOR,
            PostgresAgents(test.pool),
            test.directory,
            link,
            test.stored,
            self.ending,
            announcements,
            placing,
            LimitPolicy(),
        )
        self.reaper = Reaper(
            REACTOR, test.stored, test.kernels, test.directory, link, self.ending, absence, agents, self.queue
        )
        test.addCleanup(lambda: Deferred.fromCoroutine(self.queue.stop()))

    def ask(self, token: str, owner: str = KEY, wait: float = 60.0) -> Deferred[Created]:
        """Ask for a kernel that may wait."""
        return Deferred.fromCoroutine(self.creation.create(CreateRequest(owner, token, "python", wait=wait)))


class TwoQueuesTests(ValkeyCase):
    """One agent with two places, held in this process."""

    timeout = 60

    def setUp(self) -> Deferred[None]:  # type: ignore[override]  # trial waits for it, unittest's type does not know
        super().setUp()
        return Deferred.fromCoroutine(self.prepare())

    async def prepare(self) -> None:
        self.pool = await fresh_pool(self, REACTOR)
        self.keypairs, self.stored = PostgresKeypairs(self.pool), PostgresKernels(self.pool)
        for key in (KEY, OTHER):
            await self.keypairs.add(Keypair(key, "secret", concurrency_limit=50))
        self.agent = ScriptedOperations()
        self.agent.kernels.clear()
        self.agent.script["create_kernel"] = self.require_room
        self.managers = [Manager(self), Manager(self)]
        await self.settle()
        await self.beat()

    def require_room(self) -> None:
        """Refuse as a full agent does."""
        if len(self.agent.kernels) >= PLACES:
            raise NoAgentAvailable("full")

    async def beat(self) -> None:
        """Let the agent tell what it holds."""
        held = frozenset(map(short_id, self.agent.kernels))
        await self.heartbeats.beat(beat_of(kernels=held, max_kernels=PLACES), 30)

    async def end_one(self, manager: Manager) -> None:
        """End a kernel, whichever."""
        kernel = await self.stored.by_id(next(iter(self.agent.kernels)))
        assert kernel is not None
        await manager.ending.destroy(kernel, "user-requested")

    async def test_everybody_is_served_once(self) -> None:
        """Twenty requests at two managers for two places: each is answered, and no kernel is made twice."""
        asked = [
            self.managers[number % 2].ask(f"token-{number:02}", KEY if number % 4 else OTHER) for number in range(20)
        ]
        answered: list[Created] = []
        for one in asked:
            one.addCallback(answered.append)
        for round_ in range(18):
            await self.eventually(lambda wanted=round_ + PLACES: len(answered) >= wanted, 20)  # type: ignore[misc]
            self.assertLessEqual(len(self.agent.kernels), PLACES)
            await self.end_one(self.managers[round_ % 2])
        await DeferredList(asked)
        self.assertEqual(len({one.kernel_id for one in answered}), 20)
        made = [call[1] for call in self.agent.calls if call[0] == "create_kernel"]
        self.assertGreaterEqual(len(made), 20)
        self.assertEqual(await self.used(), [len(self.agent.kernels)])

    async def used(self) -> Sequence[int]:
        """Give the sum of both owners' quotas."""
        found = await self.keypairs.by_access_keys([KEY, OTHER])
        return [sum(keypair.concurrency_used for keypair in found)]

    async def test_another_manager_serves(self) -> None:
        """What waits at a manager that stops is served by the other, from the line in the database."""
        first, second = self.managers
        for number in range(PLACES):
            await first.ask(f"token-{number}")
        request = CreateRequest(KEY, "token-9", "python", wait=60.0, enqueue_only=True)
        waiting = await first.creation.create(request)
        self.assertIs(waiting.status, KernelStatus.PENDING)
        await first.queue.stop()
        found = second.ask("token-9")
        await self.end_one(second)
        self.assertEqual((await found).kernel_id, waiting.kernel_id)
        again = await second.creation.create(evolve(request, wait=None, enqueue_only=False))
        self.assertEqual((again.kernel_id, again.created), (waiting.kernel_id, False))

    async def test_deadline(self) -> None:
        """The reapers of two managers give up the same kernel once, and its quota is free."""
        for number in range(PLACES):
            await self.managers[0].ask(f"token-{number}")
        asked = self.managers[0].ask("token-9", wait=0.2)
        refused: Deferred[Any] = self.assertFailure(asked, NoAgentAvailable)
        await self.sleep(0.3)
        await DeferredList([Deferred.fromCoroutine(manager.reaper.mend()) for manager in self.managers])
        self.assertIn("queue-timeout", (await refused).detail)
        self.assertEqual(await self.used(), [PLACES])
