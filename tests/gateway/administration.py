"""What the tests of ``POST /admin/graphql`` share: a small world, and the texts that published clients send."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred

from sorna.model.agent import Capacity, Heartbeat, HostLoad
from sorna.model.kernel import Kernel, KernelSpec, KernelStatus, Usage, new_kernel_id, short_id
from sorna.model.limits import MIB, Limits
from sorna.testing.gateway import EXAMPLE
from tests.gateway.base import Answer, GatewayTestCase

ADMIN = evolve(EXAMPLE, is_admin=True)
PATH = "/v2/admin/graphql"
# As published clients of 2018 send them.
KEYPAIRS = (
    "query($user_id: Int!, $is_active: Boolean) {  keypairs(user_id: $user_id, is_active: $is_active) {    access_key"
    " secret_key is_active is_admin created_at last_used resource_policy rate_limit concurrency_limit  }}"
)
SESSIONS = (
    "query($status:String) { compute_sessions(status:$status) { sess_id lang created_at terminated_at status mem_slot"
    " cpu_slot gpu_slot } }"
)
AGENTS = (
    "query($status: String) {  agents(status: $status) {    id status first_contact mem_slots cpu_slots gpu_slots  }}"
)
CREATE = (
    "mutation($user_id: Int!, $input: KeyPairInput!) {  create_keypair(user_id: $user_id, props: $input) {    ok msg"
    " keypair { access_key secret_key }  }}"
)
MODIFY = (
    "mutation($access_key: String!, $input: ModifyKeyPairInput!) {  modify_keypair(access_key: $access_key, props: $input)"
    " {    ok msg  }}"
)


class AdministrationTestCase(GatewayTestCase):
    """A few keypairs, agents and kernels."""

    def setUp(self) -> None:
        super().setUp()
        self.keypairs.all[EXAMPLE.access_key] = ADMIN

    def ask(self, query: str, variables: Mapping[str, Any] | None = None, **signing: Any) -> Answer:
        """Send a query."""
        return self.request("POST", signing.pop("path", PATH), {"query": query, "variables": variables}, **signing)

    def data(self, query: str, variables: Mapping[str, Any] | None = None, **signing: Any) -> Any:
        """Send a query that is answered well."""
        answer = self.ask(query, variables, **signing)
        self.assertEqual(answer.status, 200, answer)
        return answer.json

    def done(self, work: Any) -> Any:
        """Do something that is done at once."""
        return self.successResultOf(Deferred.fromCoroutine(work))

    def kernel(
        self,
        token: str,
        owner: str = EXAMPLE.access_key,
        status: KernelStatus | None = KernelStatus.RUNNING,
        **more: Any,
    ) -> Kernel:
        """Make a kernel, a second later than the one before."""
        self.clock.advance(1)
        now = self.clock.seconds()
        spec = KernelSpec(owner, token, "python3", "python", Limits(memory=300 * MIB, **more))
        kernel: Kernel = self.done(self.world.kernels.reserve(new_kernel_id(), spec, now))[0]
        if status is not None:
            kernel = self.done(
                self.world.kernels.change_status(kernel.id, KernelStatus.RUNNING, "", now, agent_id="i-1")
            )
        if status is KernelStatus.TERMINATED:
            usage = Usage(1500.4, 2**40, net_rx_bytes=7)
            kernel = self.done(
                self.world.kernels.change_status(kernel.id, status, "asked", now + 9, usage=usage, num_queries=3)
            )
        return kernel

    def beat(self, *kernels: Kernel, stats: Mapping[str, Mapping[str, str]] | None = None) -> None:
        """Let the agent i-1 say that it lives."""
        names = frozenset(short_id(kernel.id) for kernel in kernels)
        heartbeat = Heartbeat(
            "i-1",
            "x",
            "tcp://127.0.0.1:1",
            "k" * 40,
            frozenset({"c"}),
            names,
            5,
            "none",
            stats or {},
            Capacity(4000, 2**30, 1),
            load=HostLoad(12.5, 2048),
        )
        self.done(self.world.heartbeats.beat(heartbeat, 3.0))
