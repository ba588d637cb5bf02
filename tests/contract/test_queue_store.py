"""What every KernelQueue does; run for the memory store and for PostgreSQL."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from attrs import evolve
from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import TestCase

from sorna.errors import InvalidRequest, QueueFull
from sorna.manager.interfaces import KernelStore, KeypairStore
from sorna.manager.queue_interfaces import KernelQueue
from sorna.model.folder import Mount
from sorna.model.kernel import Kernel, KernelSpec, KernelStatus, new_kernel_id
from sorna.model.keypair import Keypair
from sorna.model.limits import Limits
from sorna.model.queue import QueueBounds, QueuePlace
from sorna.store.kernels import PostgresKernels
from sorna.store.keypairs import PostgresKeypairs
from sorna.store.memory import MemoryKernels, MemoryKeypairs
from sorna.store.memory_queue import MemoryQueue
from sorna.store.queue import PostgresQueue
from tests.contract.postgres import fresh_pool

if TYPE_CHECKING:
    Base = TestCase
else:
    Base = object

NOW = 1_700_000_000.5
BOUNDS = QueueBounds(5, 3)
A, B = "AKIAA", "AKIAB"


class QueueContract(Base):
    keypairs: KeypairStore
    kernels: KernelStore
    queue: KernelQueue

    def prepare(self, make: Callable[[], Coroutine[Deferred[Any], Any, None]]) -> Deferred[None]:
        async def prepared() -> None:
            await make()
            for key in (A, B):
                await self.keypairs.add(Keypair(key, "secret", concurrency_limit=30))

        return Deferred.fromCoroutine(prepared())

    def spec(self, token: str, owner: str, **more: Any) -> KernelSpec:
        return KernelSpec(owner, token, "python3", "python", Limits(memory=1 << 28), {"LANG": "C"}, "tag", **more)

    async def reserve(self, token: str, owner: str = A, now: float = NOW, **more: Any) -> tuple[Kernel, KernelSpec]:
        spec = self.spec(token, owner, **more)
        return (await self.kernels.reserve(new_kernel_id(), spec, now))[0], spec

    async def put(self, token: str, owner: str = A, now: float = NOW, deadline: float = NOW + 60) -> Kernel:
        kernel, spec = await self.reserve(token, owner, now)
        pending = await self.queue.put(kernel.id, spec, deadline, now, BOUNDS)
        assert pending is not None
        return pending

    async def order(self) -> list[str]:
        return [one.kernel.session_token for one in await self.queue.waiting(100)]

    async def used(self, owner: str = A) -> int:
        keypair = await self.keypairs.by_access_key(owner)
        assert keypair is not None
        return keypair.concurrency_used

    async def test_one_waits(self) -> None:
        """A kernel that waits is a live row with a reason, keeps its quota, and knows all that was asked for."""
        mounts = (Mount("f" * 32, "data", read_only=True, max_files=5, max_size=9),)
        kernel, spec = await self.reserve("token-1", mounts=mounts, labels={"zone": "a"}, ports=(8000,))
        pending = await self.queue.put(kernel.id, spec, NOW + 60, NOW + 1, BOUNDS)
        self.assertEqual(
            pending,
            evolve(kernel, status=KernelStatus.PENDING, status_reason="queued", status_changed_at=NOW + 1),
        )
        (one,) = await self.queue.waiting(9)
        self.assertEqual((one.kernel, one.spec, one.deadline), (pending, spec, NOW + 60))
        self.assertEqual(await self.kernels.live_by_token(A, "token-1"), pending)
        self.assertEqual(await self.used(), 1)
        self.assertEqual(await self.queue.places([kernel.id, uuid.uuid4()]), {kernel.id: QueuePlace(1, NOW + 60)})
        self.assertEqual(await self.queue.places([]), {})

    async def test_only_what_is_prepared_waits(self) -> None:
        """A kernel that runs, waits already, has ended, or never was, is not put into the line."""
        kernel, spec = await self.reserve("token-1")
        self.assertIsNone(await self.queue.put_back(kernel.id, NOW))
        await self.queue.put(kernel.id, spec, NOW + 60, NOW, BOUNDS)
        self.assertIsNone(await self.queue.put(kernel.id, spec, NOW + 60, NOW, BOUNDS))
        await self.kernels.change_status(kernel.id, KernelStatus.TERMINATED, "asked", NOW)
        self.assertIsNone(await self.queue.put(kernel.id, spec, NOW + 60, NOW, BOUNDS))
        self.assertIsNone(await self.queue.put_back(kernel.id, NOW))
        self.assertIsNone(await self.queue.put(uuid.uuid4(), spec, NOW + 60, NOW, BOUNDS))
        running, spec = await self.reserve("token-2")
        await self.kernels.change_status(running.id, KernelStatus.RUNNING, "", NOW, agent_id="i-1")
        self.assertIsNone(await self.queue.put(running.id, spec, NOW + 60, NOW, BOUNDS))
        self.assertEqual((await self.order(), await self.used()), ([], 1))

    async def test_fair_order(self) -> None:
        """Owners take turns, and the older comes first among equal turns."""
        for number, (token, owner) in enumerate([("a-11", A), ("a-22", A), ("a-33", A), ("b-11", B), ("b-22", B)]):
            await self.put(token, owner, NOW + number)
        self.assertEqual(await self.order(), ["a-11", "b-11", "a-22", "b-22", "a-33"])
        self.assertEqual([one.kernel.session_token for one in await self.queue.waiting(2)], ["a-11", "b-11"])

    async def test_served_and_asked_again(self) -> None:
        """An owner's last turn counts when that kernel waits no longer: who asks again when served passes nobody twice."""
        await self.keypairs.add(Keypair("AKIAC", "secret"))
        for number, (token, owner) in enumerate([("b-11", B), ("b-22", B), ("a-11", A), ("c-11", "AKIAC")]):
            await self.put(token, owner, NOW + number)
        served = []
        for number in range(5, 9):
            first = (await self.queue.waiting(1))[0].kernel
            served.append(first.session_token)
            await self.kernels.change_status(first.id, KernelStatus.PREPARING, "placed", NOW + number)
            await self.kernels.change_status(first.id, KernelStatus.ERROR, "failed", NOW + number)
            if first.access_key != B:
                await self.put(f"again-{number}", first.access_key, NOW + number)
        self.assertEqual(served, ["b-11", "a-11", "c-11", "b-22"])

    async def test_a_line_of_before(self) -> None:
        """Turns begin anew where nobody waits: who had many has no later ones than others."""
        many = [await self.put(f"a-{number}00", A) for number in range(1, 4)]
        for kernel in many:
            await self.kernels.change_status(kernel.id, KernelStatus.TERMINATED, "asked", NOW + 1)
        for token, owner in (("a-11", A), ("a-22", A), ("b-11", B)):
            await self.put(token, owner, NOW + 2)
        self.assertEqual((await self.order())[2], "a-22")

    async def test_claimed_and_put_back(self) -> None:
        """One that is claimed leaves the line, one claim wins, and put back it has its old place."""
        first, second = await self.put("token-1"), await self.put("token-2")
        claims = [self.kernels.change_status(first.id, KernelStatus.PREPARING, "placed", NOW + 1) for _ in range(3)]
        won = await gatherResults([Deferred.fromCoroutine(claim) for claim in claims])
        self.assertEqual(len([one for one in won if one is not None]), 1)
        self.assertEqual(await self.order(), ["token-2"])
        self.assertEqual(await self.queue.places([first.id, second.id]), {second.id: QueuePlace(1, NOW + 60)})
        back = await self.queue.put_back(first.id, NOW + 2)
        assert back is not None
        self.assertEqual((back.status, back.status_changed_at), (KernelStatus.PENDING, NOW + 2))
        self.assertEqual((await self.order(), await self.used()), (["token-1", "token-2"], 2))
        await self.kernels.change_status(first.id, KernelStatus.PREPARING, "placed", NOW + 3)
        self.assertIsNone(await self.queue.put_back(first.id, NOW + 60))

    async def test_overdue(self) -> None:
        """Those whose time is over are told of; ended, they give their quota back."""
        late, soon = await self.put("token-1", deadline=NOW + 5), await self.put("token-2", deadline=NOW + 6)
        self.assertEqual(list(await self.queue.overdue(NOW + 4.9, 9)), [])
        self.assertEqual(list(await self.queue.overdue(NOW + 5, 9)), [late.id])
        self.assertEqual(sorted(await self.queue.overdue(NOW + 9, 9)), sorted([late.id, soon.id]))
        self.assertEqual(len(await self.queue.overdue(NOW + 9, 1)), 1)
        ended = await self.kernels.change_status(late.id, KernelStatus.ERROR, "queue-timeout", NOW + 5)
        self.assertIsNotNone(ended)
        self.assertEqual((await self.order(), await self.used()), (["token-2"], 1))

    async def test_bounds(self) -> None:
        """No more wait than may, of one owner and in all, however many ask at once."""
        for number in range(3):
            await self.put(f"a-{number}0")
        fourth, spec = await self.reserve("a-40")
        with self.assertRaises(QueueFull) as caught:
            await self.queue.put(fourth.id, spec, NOW + 60, NOW, BOUNDS)
        self.assertIn("3 of your kernels", caught.exception.detail)
        rows = [await self.reserve(f"b-{number}0", B) for number in range(6)]

        async def try_one(kernel: Kernel, spec: KernelSpec) -> bool:
            try:
                return await self.queue.put(kernel.id, spec, NOW + 60, NOW, BOUNDS) is not None
            except QueueFull:
                return False

        took = await gatherResults([Deferred.fromCoroutine(try_one(*row)) for row in rows])
        self.assertEqual(took.count(True), 2)
        self.assertEqual(len(await self.order()), 5)
        after = await self.kernels.by_id(fourth.id)
        assert after is not None
        self.assertIs(after.status, KernelStatus.PREPARING)

    async def test_what_no_database_can_keep(self) -> None:
        """Labels are text that a database can keep."""
        kernel, _spec = await self.reserve("token-1")
        spec = self.spec("token-1", A, labels={"zone": "\0"})
        with self.assertRaises(InvalidRequest):
            await self.queue.put(kernel.id, spec, NOW + 60, NOW, BOUNDS)


class MemoryQueueTests(QueueContract, TestCase):
    """In memory."""

    def setUp(self) -> Deferred[None]:  # type: ignore[override]  # trial waits for it, unittest's type does not know
        async def make() -> None:
            keypairs = MemoryKeypairs()
            kernels = MemoryKernels(keypairs)
            self.keypairs, self.kernels, self.queue = keypairs, kernels, MemoryQueue(kernels)

        return self.prepare(make)


class PostgresQueueTests(QueueContract, TestCase):
    """In PostgreSQL."""

    def setUp(self) -> Deferred[None]:  # type: ignore[override]  # trial waits for it, unittest's type does not know
        async def make() -> None:
            from twisted.internet import reactor  # noqa: PLC0415, TID251 - a test against the real thing

            pool = await fresh_pool(self, reactor)
            self.keypairs, self.kernels, self.queue = PostgresKeypairs(pool), PostgresKernels(pool), PostgresQueue(pool)

        return self.prepare(make)
