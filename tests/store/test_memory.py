"""The memory stores under random histories, against the rules themselves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from sorna.errors import QuotaExceeded
from sorna.model.kernel import Kernel, KernelSpec, KernelStatus, may_change, new_kernel_id
from sorna.model.keypair import Keypair
from sorna.model.limits import Limits
from sorna.store.memory import MemoryKernels, MemoryKeypairs
from sorna.testing.unit import UnitTestCase

OWNERS = ("AKIAONE", "AKIATWO")
STEPS = st.lists(
    st.tuples(st.sampled_from(OWNERS), st.integers(0, 3), st.none() | st.sampled_from(list(KernelStatus))), max_size=60
)


class QuotaTests(UnitTestCase):
    @given(STEPS)
    def test_quota_equals_live_kernels(self, steps: list[tuple[str, int, KernelStatus | None]]) -> None:
        """Whatever happens in whatever order, the quota is the number of live kernels and within its limit."""
        keypairs = MemoryKeypairs(Keypair(owner, "secret", concurrency_limit=2) for owner in OWNERS)
        kernels = MemoryKernels(keypairs)
        self.successResultOf(Deferred.fromCoroutine(self.history(keypairs, kernels, steps)))

    async def history(
        self, keypairs: MemoryKeypairs, kernels: MemoryKernels, steps: list[tuple[str, int, KernelStatus | None]]
    ) -> None:
        for now, (owner, token, after) in enumerate(steps):
            last = await kernels.last_by_token(owner, f"token-{token}")
            if after is None:
                await self.reserve(kernels, owner, f"token-{token}", float(now), last)
            elif last is not None:
                changed = await kernels.change_status(last.id, after, "random", float(now))
                self.assertEqual(changed is not None, may_change(last.status, after))
            live = await kernels.live()
            for one in OWNERS:
                keypair = await keypairs.by_access_key(one)
                assert keypair is not None
                self.assertEqual(keypair.concurrency_used, sum(kernel.access_key == one for kernel in live))
                self.assertLessEqual(keypair.concurrency_used, 2)

    async def reserve(self, kernels: MemoryKernels, owner: str, token: str, now: float, last: Kernel | None) -> None:
        try:
            kernel, made = await kernels.reserve(new_kernel_id(), KernelSpec(owner, token, "c", "c", Limits()), now)
        except QuotaExceeded:
            self.assertTrue(last is None or last.status.final)
        else:
            self.assertEqual(made, last is None or last.status.final)
            self.assertEqual(kernel.session_token, token)
