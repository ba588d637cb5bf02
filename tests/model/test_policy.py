"""Resource policies: what fits, what does not and why, and what they make of a kernel's limits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sorna.model.limits import LEAST_MEMORY, MIB, Limits
from sorna.model.policy import ResourcePolicy, Slots, shortages, slots_of, within
from sorna.testing.unit import UnitTestCase

SLOTS = st.builds(Slots, st.integers(0, 9), st.integers(0, 2**40), st.integers(0, 10**5), st.integers(0, 9))
POLICIES = st.builds(
    ResourcePolicy,
    st.just("p"),
    max_kernels=st.none() | st.integers(0, 9),
    cpu_cores=st.none() | st.floats(0, 100),
    memory=st.none() | st.integers(0, 2**40),
    gpus=st.none() | st.integers(0, 9),
)


class ShortageTests(UnitTestCase):
    @given(SLOTS, SLOTS, st.integers(0, 20), POLICIES)
    def test_no_reason_means_that_it_fits(
        self, taken: Slots, wanted: Slots, limit: int, policy: ResourcePolicy
    ) -> None:
        """There is a reason exactly when one of the bounds would be passed."""
        after = taken + wanted
        fits = (
            after.kernels <= min(limit, limit if policy.max_kernels is None else policy.max_kernels)
            and (policy.memory is None or after.memory <= policy.memory)
            and (policy.cpu_cores is None or after.cpu_millis <= round(policy.cpu_cores * 1000))
            and (policy.gpus is None or after.gpus <= policy.gpus)
        )
        self.assertEqual(not list(shortages(taken, wanted, limit, policy)), fits)

    @given(SLOTS, SLOTS)
    def test_what_is_given_back_is_what_was_taken(self, first: Slots, second: Slots) -> None:
        """Adding and taking off again leaves nothing, whatever the fractions."""
        self.assertEqual(first + second - second, first)

    def test_slots_of_a_kernel(self) -> None:
        """A kernel takes its limits, and a GPU where its runtime is made for one."""
        self.assertEqual(slots_of("c", Limits(memory=5, cpu_cores=0.0015)), Slots(1, 5, 2, 0))
        self.assertEqual(slots_of("python3-torch-gpu", Limits(memory=5)).gpus, 1)


class WithinTests(UnitTestCase):
    def test_no_policy(self) -> None:
        """Without a policy, or with one that says nothing, limits stay."""
        self.assertEqual(within(Limits(), None), Limits())
        self.assertEqual(within(Limits(), ResourcePolicy("p")), Limits())

    def test_bounds(self) -> None:
        """Sizes are brought below the policy's, times are replaced by them."""
        policy = ResourcePolicy("p", cpu_cores=0.5, memory=100 * MIB, lifetime=7200.0, idle_timeout=900.0)
        limits = within(Limits(), policy)
        self.assertEqual(
            (limits.cpu_cores, limits.memory, limits.lifetime, limits.idle_timeout), (0.5, 100 * MIB, 7200.0, 900.0)
        )
        small = Limits(memory=LEAST_MEMORY, cpu_cores=0.1)
        self.assertEqual((within(small, policy).memory, within(small, policy).cpu_cores), (LEAST_MEMORY, 0.1))

    def test_too_small_for_any_kernel(self) -> None:
        """A bound below what a kernel needs is left for the quota to refuse."""
        limits = within(Limits(), ResourcePolicy("p", cpu_cores=0.0, memory=1))
        self.assertEqual((limits.cpu_cores, limits.memory), (Limits().cpu_cores, LEAST_MEMORY))

    def test_runtimes(self) -> None:
        """A policy without a list allows every runtime, with one only those on it."""
        self.assertTrue(ResourcePolicy("p").allows("c"))
        self.assertTrue(ResourcePolicy("p", runtimes=frozenset({"c"})).allows("c"))
        self.assertFalse(ResourcePolicy("p", runtimes=frozenset()).allows("c"))
