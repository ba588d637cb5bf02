"""The pure parts of the layout: fields and keys."""

from __future__ import annotations

import uuid

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from sorna.live.instances import MANAGER_FIELDS, instance_fields, kernel_figures, valid_agent_id
from sorna.live.kernels import kernel_fields, place_of
from sorna.model.agent import AgentAddress, Heartbeat
from sorna.model.kernel import Kernel, KernelStatus
from sorna.model.limits import Limits
from sorna.testing.unit import UnitTestCase

AGENT = AgentAddress("i-one", "tcp://[::1]:6011", "k" * 40)
KERNEL = Kernel(
    id=uuid.UUID(int=1),
    access_key="AKIAONE",
    session_token="token",
    runtime="python3",
    requested_runtime="python",
    status=KernelStatus.RUNNING,
    status_reason="",
    status_changed_at=0.0,
    created_at=0.0,
    limits=Limits(execution_timeout=0.5, idle_timeout=86400),
)


class KernelFieldsTests(UnitTestCase):
    @given(st.uuids(), st.text(), st.text(), st.integers(0, 4_102_444_800_000_000).map(lambda micro: micro / 1e6))
    def test_round_trip(self, kernel_id: uuid.UUID, access_key: str, lang: str, created_at: float) -> None:
        """What is written is what is read."""
        kernel = evolve(KERNEL, id=kernel_id, access_key=access_key, requested_runtime=lang, created_at=created_at)
        place = place_of({**kernel_fields(kernel, AGENT), "num_queries": "3", "idle": "12"})
        assert place is not None
        self.assertEqual((place.kernel_id, place.access_key, place.requested_runtime), (kernel_id, access_key, lang))
        self.assertAlmostEqual(place.created_at, created_at, places=5)
        self.assertEqual((place.agent, place.num_queries, place.stats["idle"]), (AGENT, 3, "12"))

    def test_figures(self) -> None:
        """Times are plain numbers and memory is in KiB, as operators of 2016 know them; ports are empty."""
        fields = kernel_fields(KERNEL, AGENT)
        self.assertEqual(
            (fields["exec_timeout"], fields["idle_timeout"], fields["mem_limit"]), ("0.5", "86400", "524288")
        )
        self.assertEqual((fields["stdin_port"], fields["stdout_port"]), ("", ""))
        self.assertEqual(fields["created_at"], "1970-01-01T00:00:00.000000+00:00")

    def test_missing_or_spoilt(self) -> None:
        """A hash without one of the fields, or with one that cannot be read, is no kernel."""
        whole = {**kernel_fields(KERNEL, AGENT), "num_queries": "0"}
        assert place_of(whole) is not None
        for name in (
            "id",
            "access_key",
            "runtime",
            "lang",
            "instance",
            "addr",
            "public_key",
            "created_at",
            "num_queries",
        ):
            self.assertIsNone(place_of({field: value for field, value in whole.items() if field != name}), name)
        for name in ("id", "created_at", "num_queries"):
            self.assertIsNone(place_of({**whole, name: "x"}), name)

    def test_the_manager_owns_what_it_writes(self) -> None:
        """Everything that says whose kernel it is and where it is cannot be overwritten by figures."""
        limits = {"exec_timeout", "idle_timeout", "mem_limit"}
        self.assertLessEqual(set(kernel_fields(KERNEL, AGENT)) - limits, MANAGER_FIELDS)
        self.assertEqual(kernel_figures({"cpu_used": "1", "access_key": "x", "id": "y"}), {"cpu_used": "1"})


class InstanceFieldsTests(UnitTestCase):
    def test_hosts(self) -> None:
        """The address of the host is what stands in the endpoint, of either family."""
        for endpoint, host in (
            ("tcp://10.0.0.1:6011", "10.0.0.1"),
            ("tcp://[::1]:6011", "::1"),
            ("tcp://node-1.local:6011", "node-1.local"),
        ):
            heartbeat = Heartbeat("i", "1", endpoint, "k", frozenset(), frozenset({"a"}), 3, "", {})
            self.assertEqual(instance_fields(heartbeat)["ip"], host)

    def test_agent_ids(self) -> None:
        """Ids of hosts and clouds are fine; what collides with another key of the layout is not."""
        for good in ("i-vm", "i-0123456789abcdef0", "node.example.org", "a", "A_1", "kernels", "instances2", "x" * 128):
            self.assertTrue(valid_agent_id(good), good)
        for bad in ("", "instances", "a.kernels", "shadow:a", "a b", "é", ".a", "a\n", "x" * 129, "a/b"):
            self.assertFalse(valid_agent_id(bad), bad)
