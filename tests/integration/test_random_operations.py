"""Random operations and faults against real processes, for at most half a minute: what a client can see of the promises holds.

The long and thorough one is ``tests.manager.test_random_faults``, in memory. A private Redis cannot be restarted without its
server, so this is a cluster of one manager and one agent beside their databases, on loopback.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any, ClassVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from sorna.testing.cluster import Client, Cluster, RequestRefused, make_cluster
from sorna.testing.doctor import check_promises
from sorna.testing.unit import UnitTestCase

BOUND = 30.0  # seconds for everything after the start
PROMISED = 5.0
tokens = st.sampled_from(["random-1", "random-2", "random-3"])
COUNTED = "query($key: String!) { keypair(access_key: $key) { concurrency_used compute_sessions { status } } }"
FINAL = {"TERMINATED", "ERROR"}


class OneOfEach(RuleBasedStateMachine):
    """What a client does, and what happens to the agent and to Redis meanwhile.

    :cvar values: token -> what is remembered in its kernel, of kernels that must live.
    """

    cluster: ClassVar[Cluster]
    client: ClassVar[Client]
    until: ClassVar[float]
    steps: ClassVar[dict[str, int]]

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, int] = {}

    @classmethod
    def attempt(cls, what: str) -> bool:
        """Count a step, and tell whether there is time for it."""
        if time.monotonic() > cls.until:
            return False
        cls.steps[what] = cls.steps.get(what, 0) + 1
        return True

    @rule(token=tokens)
    def create(self, token: str) -> None:
        """Make a kernel or find it."""
        if self.attempt("create"):
            self.client.create(token)
            self.values.setdefault(token, 0)

    @rule(token=tokens)
    def execute(self, token: str) -> None:
        """Count in a kernel; it remembers, or there is none."""
        if not self.attempt("execute"):
            return
        if token not in self.values:
            self.gone(token)
            return
        code = f"assert globals().get('n', 0) == {self.values[token]}\nn = {self.values[token] + 1}\nprint(n)"
        self.values[token] += 1
        said = self.client.run(token, code)
        assert said == (0, f"{self.values[token]}\n"), said

    @rule(token=tokens)
    def destroy(self, token: str) -> None:
        """End a kernel; it is not found again."""
        if self.attempt("destroy"):
            with contextlib.suppress(RequestRefused) if token not in self.values else contextlib.nullcontext():
                self.client.destroy(token)
            self.values.pop(token, None)
            self.gone(token)

    @rule()
    def kill_agent(self) -> None:
        """Kill the agent and start it: its kernels have ended, and new ones can be made."""
        if self.attempt("kill the agent"):
            agent = self.cluster.agents[0]
            agent.kill()
            agent.start()
            back = time.monotonic()
            for token in self.values:
                self.within(back, lambda token=token: self.gone(token))  # type: ignore[misc]
            self.values.clear()
            self.within(back, self.client.create_and_destroy)

    @rule(emptied=st.booleans())
    def restart_redis(self, emptied: bool) -> None:
        """Restart Redis, with what it knew or without: no kernel is lost."""
        if self.attempt("restart Redis"):
            redis = self.cluster.redis
            redis.stop()
            if emptied:
                redis.empty()
            redis.start()
            self.within(time.monotonic(), self.client.create_and_destroy)
            for token in self.values:
                self.within(time.monotonic(), lambda token=token: self.client.info(token))  # type: ignore[misc]

    def within(self, since: float, what: Callable[[], Any]) -> None:
        """Require that something succeeds within the promised time."""
        while True:
            try:
                what()
            except (AssertionError, RequestRefused):
                if time.monotonic() - since > PROMISED:
                    raise
                time.sleep(0.05)
            else:
                return

    def gone(self, token: str) -> None:
        """Require that there is no such kernel."""
        answer = self.client.request("GET", f"/v2/kernel/{token}")
        assert answer.status == 404, (token, answer)

    @invariant()
    def quota(self) -> None:
        """Count what lives, and nothing else."""
        if time.monotonic() < self.until:
            key = self.client.credentials.access_key
            asked = {"query": COUNTED, "variables": {"key": key}}
            keypair = self.client.call("POST", "/v2/admin/graphql", asked)["keypair"]
            live = [one for one in keypair["compute_sessions"] if one["status"] not in FINAL]
            assert keypair["concurrency_used"] == len(live) == len(self.values), (keypair, self.values)

    def teardown(self) -> None:
        """End everything."""
        for token in self.values:
            self.client.destroy(token)


class RandomOperationTests(UnitTestCase):
    """The machine above."""

    def test_real_processes(self) -> None:
        """Whatever comes in whatever order, and the doctor in the end."""
        from twisted.internet import reactor  # noqa: PLC0415, TID251 - the servers go by the wall clock

        with make_cluster(1, 1) as cluster:
            OneOfEach.cluster, OneOfEach.steps = cluster, {}
            OneOfEach.client = cluster.client(cluster.managers[0], reactor.seconds)
            OneOfEach.until = time.monotonic() + BOUND
            bounds = settings(
                max_examples=12,
                stateful_step_count=12,
                deadline=None,
                database=None,
                phases=[Phase.generate],  # what fails is told as it was: the same again may take minutes
                suppress_health_check=list(HealthCheck),
            )
            run_state_machine_as_test(OneOfEach, settings=bounds)
            check_promises("--config", str(cluster.options_file))
        self.assertGreater(sum(OneOfEach.steps.values()), 10, OneOfEach.steps)
