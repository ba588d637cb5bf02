"""What an audit reads of the stores and of Redis; run for the memory ones and the real ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from sorna.live.audit import RedisLiveAudit
from sorna.live.memory import MemoryLiveAudit
from sorna.manager.audit_interfaces import LiveAudit, QuotaAudit, QuotaDrift
from sorna.model.kernel import KernelSpec, KernelStatus, new_kernel_id, short_id
from sorna.model.keypair import Keypair
from sorna.model.limits import MIB, Limits
from sorna.model.policy import Slots
from sorna.store.audit import PostgresQuotaAudit
from sorna.store.kernels import PostgresKernels
from sorna.store.keypairs import PostgresKeypairs
from sorna.store.memory import MemoryKernels, MemoryKeypairs, MemoryQuotaAudit
from tests.contract.live_backends import MemoryCase, ValkeyCase, address_of, kernel_of
from tests.contract.postgres import fresh_pool
from tests.contract.test_store import KEY, NOW

if TYPE_CHECKING:
    from sorna.manager.interfaces import KernelStore, KeypairStore
    from tests.contract.live_backends import LiveCase as _LiveCase

    _StoreCase = TestCase
else:
    _LiveCase = _StoreCase = object

OTHER = "AKIAOTHEROTHEROTHERO"


class QuotaAuditContract(_StoreCase):
    keypairs: KeypairStore
    kernels: KernelStore
    quotas: QuotaAudit

    async def miscount(self, access_key: str, **counters: int) -> None:
        """Change counters of a keypair by hand."""
        raise NotImplementedError

    async def test_counters_of_living_and_dead(self) -> None:
        """Whatever comes and goes, there is no drift."""
        for key in (KEY, OTHER):
            await self.keypairs.add(Keypair(key, "secret"))
        specs = [KernelSpec(KEY, f"token-{number}", "c", "c", Limits(memory=64 * MIB)) for number in range(3)]
        made = [(await self.kernels.reserve(new_kernel_id(), spec, NOW))[0] for spec in specs]
        self.assertEqual(await self.quotas.drifted(), [])
        await self.kernels.change_status(made[0].id, KernelStatus.ERROR, "failed", NOW)
        self.assertEqual(await self.quotas.drifted(), [])

    async def test_drift(self) -> None:
        """Every counter is compared, of keypairs with and without kernels."""
        for key in (OTHER, KEY):
            await self.keypairs.add(Keypair(key, "secret"))
        spec = KernelSpec(KEY, "token-1", "python3-gpu", "python3-gpu", Limits(memory=64 * MIB, cpu_cores=0.5))
        await self.kernels.reserve(new_kernel_id(), spec, NOW)
        held = Slots(1, 64 * MIB, 500, 1)
        for name, counted in (
            ("concurrency_used", Slots(9, 64 * MIB, 500, 1)),
            ("memory_used", Slots(1, 9, 500, 1)),
            ("cpu_millis_used", Slots(1, 64 * MIB, 9, 1)),
            ("gpus_used", Slots(1, 64 * MIB, 500, 9)),
        ):
            right = {"concurrency_used": 1, "memory_used": 64 * MIB, "cpu_millis_used": 500, "gpus_used": 1}
            await self.miscount(KEY, **{**right, name: 9})
            self.assertEqual(await self.quotas.drifted(), [QuotaDrift(KEY, counted, held)])
        await self.miscount(OTHER, concurrency_used=2)
        self.assertEqual([one.access_key for one in await self.quotas.drifted()], sorted((KEY, OTHER)))


class MemoryQuotaAuditTests(QuotaAuditContract, TestCase):
    def setUp(self) -> None:
        self.keypairs = keypairs = MemoryKeypairs()
        self.kernels = kernels = MemoryKernels(keypairs)
        self.quotas = MemoryQuotaAudit(kernels, keypairs)
        self.rows = keypairs

    async def miscount(self, access_key: str, **counters: int) -> None:
        from attrs import evolve  # noqa: PLC0415

        names = {
            "concurrency_used": "kernels",
            "memory_used": "memory",
            "cpu_millis_used": "cpu_millis",
            "gpus_used": "gpus",
        }
        row = self.rows._keypairs[access_key]
        taken = evolve(row.taken, **{names[name]: value for name, value in counters.items()})
        self.rows._keypairs[access_key] = evolve(row, taken=taken)


class PostgresQuotaAuditTests(QuotaAuditContract, TestCase):
    def setUp(self) -> Deferred[None]:  # type: ignore[override]
        return Deferred.fromCoroutine(self.prepare())

    async def prepare(self) -> None:
        from twisted.internet import reactor  # noqa: PLC0415, TID251 - a test against the real thing

        self.pool = await fresh_pool(self, reactor)
        self.keypairs, self.kernels = PostgresKeypairs(self.pool), PostgresKernels(self.pool)
        self.quotas = PostgresQuotaAudit(self.pool)

    async def miscount(self, access_key: str, **counters: int) -> None:
        settings = ", ".join(f"{name} = %s" for name in counters)
        await self.pool.query(f"UPDATE keypairs SET {settings} WHERE access_key = %s", (*counters.values(), access_key))  # noqa: S608


class LiveAuditContract(_LiveCase):
    audit: LiveAudit

    async def test_everything_and_nothing(self) -> None:
        """All entries and sessions are given, however many, and none when there are none."""
        self.assertEqual((await self.audit.kernels(), await self.audit.sessions()), ({}, {}))
        kernels = [kernel_of(session=f"token-{number}") for number in range(500)]
        for kernel in kernels:
            await self.kernels.add(kernel, address_of())
        entries, sessions = await self.audit.kernels(), await self.audit.sessions()
        self.assertEqual(set(entries), {short_id(kernel.id) for kernel in kernels})
        self.assertEqual(sessions, {f"AKIAONE:{one.session_token}": short_id(one.id) for one in kernels})
        entry = entries[short_id(kernels[7].id)]
        self.assertEqual(
            (entry["access_key"], entry["session_token"], entry["instance"]), ("AKIAONE", "token-7", "i-one")
        )
        for kernel in kernels:
            await self.kernels.forget(kernel)
        self.assertEqual((await self.audit.kernels(), await self.audit.sessions()), ({}, {}))


class MemoryLiveAuditTests(LiveAuditContract, MemoryCase):
    def setUp(self) -> None:
        super().setUp()
        self.audit = MemoryLiveAudit(self.redis)


class ValkeyLiveAuditTests(LiveAuditContract, ValkeyCase):
    def setUp(self) -> None:
        super().setUp()
        self.audit = RedisLiveAudit(self.db[1])

    async def test_what_is_none_of_ours(self) -> None:
        """Keys of another kind are left out, an empty text is a text, and the walk leaves every connection where it was."""
        await self.db[1].command("SET", "text", "x")
        await self.db[1].command("RPUSH", "list", "x")
        await self.db[3].command("SET", "AKIA:empty", "")
        await self.db[3].command("HSET", "hash", "a", "b")
        self.assertEqual(await self.audit.kernels(), {})
        self.assertEqual(await self.audit.sessions(), {"AKIA:empty": ""})
        self.assertEqual(await self.db[1].command("GET", "text"), b"x")
