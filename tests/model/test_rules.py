"""Runtime names, limits and keypairs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sorna.model.keypair import generate_keypair
from sorna.model.limits import LEAST_MEMORY, MIB, LimitPolicy
from sorna.model.runtime import ALIASES, resolve_runtime
from sorna.testing.unit import UnitTestCase


class RuntimeNameTests(UnitTestCase):
    """Names and aliases of the published interface."""

    def test_published_names_resolve(self) -> None:
        """Every name and alias of the interface leads to its runtime."""
        for name, canonical in {
            "python": "python3",
            "python35": "python3",
            "python27": "python2",
            "python3-deeplearning": "python3-tensorflow",
            "tensorflow-python3-gpu": "python3-tensorflow-gpu",
            "caffe-python3": "python3-caffe",
            "theano-python3": "python3-theano",
            "R": "r3",
            "Rscript": "r3",
            "php": "php7",
            "js": "nodejs6",
            "nodejs4": "nodejs6",
            "lua": "lua5",
            "shell": "git",
            "ocatve": "octave4",
            "python:latest": "python3",
            "c": "c",
        }.items():
            self.assertEqual(resolve_runtime(name), canonical, name)

    def test_unknown_names(self) -> None:
        """Nothing else does."""
        for name in ("cobol", "", "Python3", ":latest", "python3 "):
            self.assertIsNone(resolve_runtime(name))

    def test_no_name_means_two_runtimes(self) -> None:
        """Names and aliases are unique over the whole table."""
        names = [name for canonical, aliases in ALIASES.items() for name in (canonical, *aliases)]
        self.assertEqual(len(names), len(set(names)))


class LimitPolicyTests(UnitTestCase):
    """A client's wishes within what the operator allows."""

    def test_no_wish_gives_the_default(self) -> None:
        """Zero means the default, and heavy runtimes have a larger one."""
        policy = LimitPolicy()
        self.assertEqual(policy.limits_for("python3"), policy.default)
        self.assertGreater(policy.limits_for("java").memory, policy.default.memory)

    @given(st.integers(-1, 1 << 50), st.floats(-1, 1e9), st.floats(-1, 1e6))
    def test_wishes_stay_within(self, memory: int, timeout: float, cores: float) -> None:
        """Whatever is asked for, the limits lie between what works and what is allowed."""
        policy = LimitPolicy()
        limits = policy.limits_for("python3", memory, timeout, cores)
        self.assertTrue(LEAST_MEMORY <= limits.memory <= policy.most_memory)
        self.assertTrue(0 < limits.execution_timeout <= policy.most_execution_timeout)
        self.assertTrue(0 < limits.cpu_cores <= policy.most_cpu_cores)

    def test_a_wish_is_granted(self) -> None:
        """What lies within is given as asked."""
        limits = LimitPolicy().limits_for("java", 600 * MIB, 3.5, 1.5)
        self.assertEqual((limits.memory, limits.execution_timeout, limits.cpu_cores), (600 * MIB, 3.5, 1.5))


class KeypairTests(UnitTestCase):
    """Generated keypairs."""

    def test_shape(self) -> None:
        """20 characters beginning with AKIA, a secret of 40, and no secret in the repr."""
        keypair = generate_keypair()
        self.assertRegex(keypair.access_key, r"\AAKIA[A-Z2-7]{16}\Z")
        self.assertRegex(keypair.secret_key, r"\A[A-Za-z0-9_-]{40}\Z")
        self.assertNotIn(keypair.secret_key, repr(keypair))
