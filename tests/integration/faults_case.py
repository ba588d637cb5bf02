"""What every test of a fault stands on: a cluster in namespaces, clients that work all the time, and the promises afterwards.

Knows the published interface, parts and links. Each test breaks one thing with its own hands and says when it was back; what must
hold after every fault is checked here and nowhere else.
"""

from __future__ import annotations

import atexit
import functools
import http.client
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import SkipTest

from attrs import define, field, frozen

from sorna.client.signing import Credentials
from sorna.testing.cluster import (
    Answer,
    Client,
    Cluster,
    Manager,
    Namespaces,
    NamespacesUnavailable,
    RequestRefused,
    make_cluster,
    until,
)
from sorna.testing.cluster.pairs import Pairs
from sorna.testing.doctor import check_promises
from sorna.testing.unit import UnitTestCase
from tests.integration import shifted_clock
from tests.integration.small_disk import SmallDisk

PROMISED = 5.0  # seconds from a part's return to new work, and from an agent's death to the end of its kernels
PATIENCE = 60.0  # for what no promise bounds, on a machine that is busy
ANSWERED = 40.0  # seconds within which a call that was under way has an answer, whatever happens
MAKE_KEYPAIR = """
mutation($user: String!, $props: KeyPairInput!) {
  done: create_keypair(user_id: $user, props: $props) { ok msg keypair { access_key secret_key } }
}"""
USED = "query($key: String!) { keypair(access_key: $key) { concurrency_used } }"
KERNELS = (
    'query($key: String!) { keypair(access_key: $key) { compute_sessions(status: "RUNNING", limit: 200) { sess_id } } }'
)


@functools.cache
def shared_cluster() -> Cluster:
    """Give one cluster for all tests of faults in a process: two managers, and two agents that kernels can ask for by label.

    The second agent has a small disk of its own, and a clock that can be set.
    """
    try:
        network = Namespaces()
    except NamespacesUnavailable as error:
        raise SkipTest(str(error)) from error
    cluster = make_cluster(2, 2, network=network, agent_options=["--max-kernels=250", "--memory-overcommit=0"])
    atexit.register(cluster.close)
    for agent in cluster.agents:
        agent.command = [*agent.command, f"--agent-labels=host={agent.name}"]
    odd = cluster.agents[1]
    disk = SmallDisk.mount(odd.folder / "state")
    atexit.unregister(cluster.close)
    atexit.register(_close, cluster, disk)
    (disk.path / "tmp").mkdir()
    odd.environ = {"TMPDIR": str(disk.path / "tmp")}
    clock = clock_of(odd.folder)
    shifted_clock.write(clock, 0.0)
    python, _m, module, *words = odd.command
    odd.command = [python, "-m", "tests.integration.shifted_clock", str(clock), module, *words]
    cluster.start()
    return cluster


def _close(cluster: Cluster, disk: SmallDisk) -> None:
    """End the parts, then take the disk away, then remove the folder that it was in."""
    cluster.stop()
    disk.close()
    cluster.close()


def clock_of(folder: Path) -> Path:
    """Name the file that sets the clock of an agent."""
    return folder / "clock"


@frozen
class Heard:
    """One answer, or that there was none.

    :ivar status: 0 for no answer; :ivar seconds: that it took.
    """

    what: str
    status: int
    problem: str
    seconds: float


@define
class Busy:
    """A client behind a load balancer that works until it is told to stop: what fails at one manager is tried at the next.

    :ivar host: the agent that its kernels are on, by label.
    """

    clients: Sequence[Client]
    host: str
    heard: list[Heard] = field(factory=list)
    wrong: list[str] = field(factory=list)
    _stop: threading.Event = field(factory=threading.Event)
    _thread: threading.Thread | None = None
    _kernel: str = ""
    _turn: int = 0
    _value: int = 0

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def end(self) -> bool:
        """Stop, and tell whether every call had its answer."""
        self._stop.set()
        assert self._thread is not None
        self._thread.join(ANSWERED)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while not self._stop.is_set():
            if self._ask("execute" if self._kernel else "create") is None:
                self._turn += 1
                self._stop.wait(0.1)
            self._stop.wait(0.02)

    def _ask(self, what: str) -> str | None:
        client = self.clients[self._turn % len(self.clients)]
        began = time.monotonic()
        try:
            done = self._create(client) if what == "create" else self._count(client)
        except RequestRefused as error:
            self._note(what, error.answer, began)
            if error.answer.status == 404:
                self._kernel = ""
            return None
        except (OSError, http.client.HTTPException) as error:
            self.heard.append(Heard(what, 0, repr(error), time.monotonic() - began))
            return None
        self.heard.append(Heard(what, 200, "", time.monotonic() - began))
        return done

    def _create(self, client: Client) -> str:
        self._kernel, self._value = client.create(config={"labels": {"host": self.host}}), 0
        return self._kernel

    def _count(self, client: Client) -> str:
        """Count in the kernel itself: a kernel that lost its memory without saying so would say a wrong number."""
        self._value += 1
        code = f"n = {self._value}\nprint(n, n == 1 or 'before' in globals())\nbefore = n"
        status, said = client.run(self._kernel, code)
        if status == 0 and said != f"{self._value} True\n":
            self.wrong.append(f"wanted {self._value}, got {said!r}")
        if status:
            self.heard.append(Heard("run", status, said, 0.0))
        return said

    def _note(self, what: str, answer: Answer, began: float) -> None:
        self.heard.append(Heard(what, answer.status, answer.problem, time.monotonic() - began))
        if not answer.problem.partition(": ")[2]:
            self.wrong.append(f"{what}: {answer.status} without a reason")
        if answer.status == 503 and "retry-after" not in answer.headers:
            self.wrong.append(f"{what}: 503 without Retry-After")


class FaultsCase(UnitTestCase):
    """Clients that work through the fault; what a test breaks is mended after it, and then all promises must hold."""

    def setUp(self) -> None:
        """Find the cluster, and make a keypair that no other test uses up."""
        from twisted.internet import reactor  # noqa: PLC0415, TID251 - the servers go by the wall clock

        self.seconds: Callable[[], float] = reactor.seconds
        self.cluster = shared_cluster()
        self.cluster.heal()
        assert isinstance(self.cluster.network, Namespaces)
        self.pairs = Pairs(self.cluster.network)
        self.credentials = self._keypair()
        self.first, self.second = (self.client(one) for one in self.cluster.managers)
        self.busy: list[Busy] = []
        self.addCleanup(self._check)
        self.addCleanup(self.cluster.heal)
        self.addCleanup(self.pairs.mend)

    def client(self, manager: Manager) -> Client:
        """Give a client of one manager with the test's keypair."""
        return self.cluster.client(manager, self.seconds, self.credentials)

    def kernel(self, host: str, **more: Any) -> str:
        """Make a kernel on one agent."""
        return self.second.create(config={"labels": {"host": host}, **more})

    def work_on(self, *hosts: str) -> None:
        """Let a client work on each of these agents from now on, and wait until each has had its first answers."""
        for host in hosts:
            busy = Busy([self.client(one) for one in self.cluster.managers], host)
            busy.start()
            self.busy.append(busy)
        self.assertTrue(until(lambda: all(len(one.heard) > 2 for one in self.busy), PATIENCE))

    def works_again(self, since: float, *hosts: str, managers: Sequence[Manager] = ()) -> float:
        """Require that new work succeeds at every manager within the promised time, and give how long it took.

        :param since: when the part was back, on the monotonic clock. :param hosts: agents to work on, both by default.
        """
        for manager in managers or self.cluster.managers:
            client = self.client(manager)
            client.timeout = PROMISED
            for host in hosts or ("a1", "a2"):
                failed = self._until_it_works(client, host, since)
                self.assertEqual(failed, "", f"no new work on {host} through {manager.name}")
        took = time.monotonic() - since
        self.assertLess(took, PROMISED)
        return took

    def _until_it_works(self, client: Client, host: str, since: float) -> str:
        while True:
            try:
                kernel = client.create(config={"labels": {"host": host}})
                said = client.run(kernel, "print(6*7)")
                client.destroy(kernel)
            except (OSError, http.client.HTTPException, RequestRefused) as error:
                if time.monotonic() - since > PROMISED:
                    return repr(error)
                time.sleep(0.05)
            else:
                return "" if said == (0, "42\n") else f"it said {said}"

    def ended(self, kernel: str, reason: str) -> bool:
        """Tell whether a kernel is said to have ended for a reason."""
        answer = self.second.request("GET", f"/v2/kernel/{kernel}")
        return answer.status == 404 and reason in answer.problem

    def rest(self, *, silence: bool = False) -> None:
        """End the clients' work: every call had an answer, and the answers were right.

        :param silence: whether a call may have been cut off, because the manager that was asked died or could not be reached.
        """
        for busy in self.busy:
            self.assertTrue(busy.end(), "a call has no answer")
            self.assertEqual(busy.wrong, [])
            if not silence:
                self.assertEqual([one for one in busy.heard if one.status == 0], [])
            self.assertTrue(any(one.status == 200 for one in busy.heard))

    def used(self) -> int:
        """Tell how many kernels count against the test's quota."""
        admin = self.cluster.client(self.cluster.managers[1], self.seconds)
        question = {"query": USED, "variables": {"key": self.credentials.access_key}}
        return int(admin.call("POST", "/v2/admin/graphql", question)["keypair"]["concurrency_used"])

    def _keypair(self) -> Credentials:
        props = {"concurrency_limit": 300, "rate_limit": 1_000_000}
        question = {"query": MAKE_KEYPAIR, "variables": {"user": f"u-{secrets.token_hex(4)}", "props": props}}
        admin = self.cluster.client(self.cluster.managers[0], self.seconds)
        made = admin.call("POST", "/v2/admin/graphql", question)["done"]["keypair"]
        return Credentials(made["access_key"], made["secret_key"])

    def _check(self) -> None:
        """End every kernel that is left, and let the doctor look: at statuses, quotas, orphans, and what is left on this host."""
        for busy in self.busy:
            busy.end()
        check_promises("--config", str(self.cluster.options_file))
        self.end_all()
        self.assertEqual(self.used(), 0)
        check_promises("--config", str(self.cluster.options_file))

    def end_all(self) -> None:
        """Destroy every kernel of the test's keypair."""
        question = {"query": KERNELS, "variables": {"key": self.credentials.access_key}}
        admin = self.cluster.client(self.cluster.managers[1], self.seconds)
        for one in admin.call("POST", "/v2/admin/graphql", question)["keypair"]["compute_sessions"]:
            self.second.request("DELETE", f"/v2/kernel/{one['sess_id']}")
