"""Creations that fail while a database does: what is left of them in either database, and on their agents."""

from __future__ import annotations

import uuid
from functools import partial
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred

from sorna.errors import AgentTimeout, KernelCreationFailed, KernelNotFound, Unavailable
from sorna.live.memory import MemoryLiveKernels, MemoryRedis
from sorna.manager.creation import FAILURE_PAUSE
from sorna.manager.registry import Registry
from sorna.model.agent import AgentAddress
from sorna.model.kernel import Kernel, KernelStatus, Usage, short_id
from sorna.store.memory import MemoryKernels
from tests.manager.crashing import CrashingKernels
from tests.manager.world import ManagerTestCase


class LosingKernels(MemoryKernels):
    """A store that does not answer the next so many changes of a status."""

    lost = 0

    async def change_status(self, *arguments: Any, **more: Any) -> Kernel | None:
        if self.lost:
            self.lost -= 1
            raise Unavailable("away")
        return await super().change_status(*arguments, **more)


class CrashingLosingKernels(LosingKernels, CrashingKernels):
    """Likewise one that may crash."""


class DeafKernels(MemoryKernels):
    """A store whose answer to the first kernel that runs is lost."""

    deaf = True

    async def change_status(self, kernel_id: uuid.UUID, after: KernelStatus, *rest: Any, **more: Any) -> Kernel | None:
        changed = await super().change_status(kernel_id, after, *rest, **more)
        if after is KernelStatus.RUNNING and self.deaf:
            self.deaf = False
            raise Unavailable("the answer is lost")
        return changed


class SlowLiveKernels(MemoryLiveKernels):
    """A Redis that writes nothing until ``answer`` fires."""

    def __init__(self, redis: MemoryRedis) -> None:
        super().__init__(redis)
        self.answer: Deferred[None] = Deferred()

    async def add(self, kernel: Kernel, agent: AgentAddress) -> None:
        await self.answer
        await super().add(kernel, agent)


class FailedCreationTests(ManagerTestCase):
    """Neither a row, nor an entry, nor a place of the quota stays."""

    def test_a_failure_that_cannot_be_written_at_once(self) -> None:
        """PostgreSQL goes away while the agent works: when it is back, the row is final, the place free, no entry left."""
        kernels = LosingKernels(self.keypairs)
        registry = evolve(self.registry, creation=evolve(self.creation, kernels=kernels))
        kernels.lost = 3
        self.fails(registry.create(self.wish()), Unavailable)
        self.assertEqual((self.used(), kernels.lost), (1, 1))
        for _ in range(2):
            self.clock.advance(FAILURE_PAUSE)
        self.assertEqual((self.used(), list(self.done(kernels.live())), kernels.lost), (0, [], 0))
        self.assertEqual((self.redis.kernels, self.redis.sessions), ({}, {}))

    def _crashing(self, away: int, answers: Exception | None = None) -> Registry:
        """Give a registry on a PostgreSQL that crashes while the agent makes a kernel, and then is away for some statements.

        :param answers: what the agent answers when it shall end the kernel.
        """
        kernels = CrashingLosingKernels(self.keypairs)
        ending = evolve(self.ending, kernels=kernels)
        creation = evolve(self.creation, kernels=kernels, ending=ending)

        def crash() -> None:
            kernels.crash()
            kernels.lost = away

        self.agent.script["create_kernel"] = crash
        if answers is not None:
            self.agent.script["destroy_kernel"] = partial(self._raise, answers)
        return evolve(self.registry, creation=creation, ending=ending, kernels=kernels)

    def test_postgresql_loses_the_row_and_is_away(self) -> None:
        """It crashed before the reservation was on the disk: the kernel is taken back, and no entry of it stays."""
        for away in (1, 2):
            self.fails(self._crashing(away).create(self.wish()), Unavailable)
            self.clock.advance(FAILURE_PAUSE)
            self.assertEqual((self.used(), self.agent.kernels), (0, set()))
            self.assertEqual((self.redis.kernels, self.redis.sessions), ({}, {}))
            self.assertEqual(self.redis.members["i-1"], set())

    def test_postgresql_loses_the_row_and_is_back(self) -> None:
        """Likewise where the next statement finds no row, whatever the agent answers to its end."""
        for answers in (None, AgentTimeout("silent"), KernelNotFound()):
            self.fails(self._crashing(0, answers).create(self.wish()), KernelCreationFailed)
            self.assertEqual((self.used(), self.redis.kernels, self.redis.sessions), (0, {}, {}))

    def test_a_late_entry_of_a_failed_creation(self) -> None:
        """Redis takes its time with the entry: it is removed when it is there, not before."""
        live = SlowLiveKernels(self.redis)
        registry = self._crashing(1)
        creation = evolve(registry.creation, live=live)
        asked = self.start(evolve(registry, creation=creation).create(self.wish()))
        self.assertNoResult(asked)
        live.answer.callback(None)
        self.failureResultOf(asked, Unavailable)
        self.assertEqual((self.redis.kernels, self.redis.sessions), ({}, {}))

    def test_an_end_of_a_row_that_is_lost(self) -> None:
        """A kernel that PostgreSQL has lost while somebody ended it leaves no entry, whenever it was lost."""
        for before in (True, False):
            kernel = self.done(self.kernels.by_id(self.make()))
            assert kernel is not None
            kernels = CrashingLosingKernels(self.keypairs)
            ending = evolve(self.ending, kernels=kernels)
            if before:
                self.fails(ending.destroy(kernel, "user-requested"), KernelNotFound)
            else:
                terminating = evolve(kernel, status=KernelStatus.TERMINATING)
                self.assertEqual(self.done(ending._end(terminating)), Usage())
            self.assertEqual((self.redis.kernels, self.redis.sessions), ({}, {}))
            self.agent.kernels.clear()
            self.done(self.ending.lost(kernel.id, "lost"))

    def _deaf(self) -> tuple[Registry, MemoryKernels]:
        """Give a registry on a PostgreSQL that takes the first kernel's status while its answer is lost."""
        kernels = DeafKernels(self.keypairs)
        ending = evolve(self.ending, kernels=kernels)
        creation = evolve(self.creation, kernels=kernels, ending=ending)
        return evolve(self.registry, creation=creation, ending=ending, kernels=kernels), kernels

    def test_an_answer_that_is_lost(self) -> None:
        """The row says that a kernel runs which was taken back: it is ended at once, and the token's next kernel is another."""
        registry, kernels = self._deaf()
        self.fails(registry.create(self.wish()), Unavailable)
        self.assertEqual((self.agent.kernels, self.redis.kernels, self.redis.sessions), (set(), {}, {}))
        (row,) = kernels.all()
        self.assertEqual((row.status, row.status_reason), (KernelStatus.TERMINATED, "Unavailable"))
        self.assertEqual(self.used(), 0)
        self.assertTrue(self.done(registry.create(self.wish())).created)

    def test_an_answer_that_is_lost_and_an_agent_that_is_silent(self) -> None:
        """The kernel runs on, as its row says: its entry is written again, and who asks again is given it."""
        registry, kernels = self._deaf()
        self.agent.script["destroy_kernel"] = partial(self._raise, AgentTimeout("silent"))
        self.fails(registry.create(self.wish()), Unavailable)
        (row,) = kernels.all()
        self.assertEqual((row.status, self.redis.kernels), (KernelStatus.RUNNING, {}))
        reaper = evolve(self.reaper, kernels=kernels, ending=registry.ending)
        self.beat(short_id(row.id))
        self.done(reaper.mend())
        self.assertEqual(set(self.redis.kernels), {short_id(row.id)})
        self.assertEqual(self.done(registry.create(self.wish())).kernel_id, row.id)

    def _raise(self, error: Exception) -> None:
        raise error
