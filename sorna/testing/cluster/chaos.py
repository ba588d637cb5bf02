"""``python -m sorna.testing.cluster.chaos``: a load on a cluster whose parts break at random; what ``make chaos`` runs.

Prints what happened, and ends with status 0 only when nothing that was acknowledged was lost, nothing leaked, every quota is
right and every part's return was followed by new work within :data:`PROMISED` seconds.
"""

from __future__ import annotations

import argparse
import http.client
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.task import react
from twisted.internet.threads import deferToThreadPool

from sorna.client.signing import Credentials
from sorna.testing.cluster.__main__ import network_or_loopback, say
from sorna.testing.cluster.client import Client, RequestRefused
from sorna.testing.cluster.cluster import Cluster, make_cluster
from sorna.testing.cluster.faults import possible
from sorna.testing.cluster.load import Session, Tally
from sorna.testing.cluster.network import Loopback
from sorna.testing.doctor import findings

PROMISED = 5.0
PROBE_TIMEOUT = 3.0
PROBE_PATIENCE = 40.0
QUIET = (1.0, 4.0)  # seconds between two faults
SESSIONS = 4
_LEAKS = ("orphan", "not-held", "stale-", "left-", "dead-agent", "deadline", "no-agent")
_MAKE_KEYPAIR = """
mutation($user: String!, $props: KeyPairInput!) {
  done: create_keypair(user_id: $user, props: $props) { ok msg keypair { access_key secret_key } }
}"""


@define
class Recoveries:
    """How long new work took after each part's return, at the slower manager."""

    longest: float = 0.0
    after: str = ""
    late: list[str] = field(factory=list)

    def note(self, fault: str, seconds: float) -> None:
        """Write one down."""
        if seconds > self.longest:
            self.longest, self.after = seconds, fault
        if seconds > PROMISED:
            self.late.append(f"{seconds:.1f} s after: {fault}")


@define
class Chaos:
    """One run."""

    cluster: Cluster
    seconds: Callable[[], float]
    dice: random.Random
    stop: threading.Event
    tally: Tally = field(factory=Tally)
    recoveries: Recoveries = field(factory=Recoveries)
    faults: Counter[str] = field(factory=Counter)

    def run(self, duration: float) -> int:
        """Break things for so many seconds; give the exit status."""
        sessions = [self._session(number) for number in range(1, SESSIONS + 1)]
        probe = [self.cluster.client(one, self.seconds, self._keypair("probe")) for one in self.cluster.managers]
        threads = [threading.Thread(target=session.work, daemon=True) for session in sessions]
        for thread in threads:
            thread.start()
        begun = time.monotonic()
        while time.monotonic() - begun < duration and not self.stop.is_set():
            self.stop.wait(self.dice.uniform(*QUIET))
            fault = self.dice.choice(possible(self.cluster, self.dice))()
            say(f"{time.monotonic() - begun:6.1f}  {fault.name}")
            fault.happen()
            self.faults[fault.kind] += 1
            self._measure(fault.name, probe)
        self.stop.set()
        for thread in threads:
            thread.join(60)
        return self._report(sessions, any(thread.is_alive() for thread in threads))

    def _session(self, number: int) -> Session:
        name = f"session {number}"
        keypair = self._keypair(name)
        clients = [self.cluster.client(one, self.seconds, keypair) for one in self.cluster.managers]
        for client in clients:
            client.timeout = 8.0
        return Session(name, clients, self.tally, random.Random(self.dice.random()), self.stop)  # noqa: S311 - repeatable dice

    def _keypair(self, user: str) -> Credentials:
        """Make a keypair without bounds that a load would meet."""
        admin = self.cluster.client(self.cluster.managers[0], self.seconds)
        props = {"rate_limit": 1_000_000, "concurrency_limit": 30}
        question = {"query": _MAKE_KEYPAIR, "variables": {"user": user, "props": props}}
        made = admin.call("POST", "/v2/admin/graphql", question)["done"]
        return Credentials(made["keypair"]["access_key"], made["keypair"]["secret_key"])

    def _measure(self, fault: str, probe: Sequence[Client]) -> None:
        """Measure from a part's return until new work has succeeded at every manager."""
        back = time.monotonic()
        for client in probe:
            while (failed := _new_work(client)) is not None:
                if time.monotonic() - back > PROBE_PATIENCE:
                    say(f"        no new work at {client.address}: {failed}")
                    break
                time.sleep(0.05)
        took = time.monotonic() - back
        self.recoveries.note(fault, took)
        say(f"        new work after {took:.2f} s")

    def _report(self, sessions: Sequence[Session], hanging: bool) -> int:
        self.cluster.heal()
        leaked = sum(self._left_of(session) for session in sessions)
        found = findings("--config", str(self.cluster.options_file))
        leaked += sum(1 for one in found if one["check"].startswith(_LEAKS))
        drift = sum(1 for one in found if one["check"] == "quota")
        tally = self.tally
        say("")
        say(f"faults                     {sum(self.faults.values())}")
        for name, count in sorted(self.faults.items()):
            say(f"  {count:4}  {name}")
        _table("operations", tally.operations)
        _table("attempts that failed and were made again", tally.errors)
        _table("kernels that ended with a reason", tally.ended)
        bad = {
            "lost acknowledged outputs": tally.lost,
            "doubled outputs": tally.doubled,
            "clients without an answer": tally.unanswered,
            "answers that were wrong": tally.wrong,
            f"recoveries over {PROMISED:g} s": self.recoveries.late,
            "sessions that hang": ["one or more"] if hanging else [],
        }
        for name, cases in bad.items():
            say(f"{name:26} {len(cases)}")
            for one in cases[:10]:
                say(f"        {one}")
        say(f"{'leaked kernels':26} {leaked}")
        say(f"{'quota drift':26} {drift}")
        say(f"{'longest recovery':26} {self.recoveries.longest:.2f} s, after: {self.recoveries.after}")
        say(f"{'the doctor':26} {found or 'satisfied'}")
        return int(any(bad.values()) or bool(found) or leaked > 0)

    def _left_of(self, session: Session) -> int:
        """End every kernel that a session may have made, and count those that do not go."""
        left = 0
        for token in session.tokens:
            target = f"/v2/kernel/{token}"
            answer = session.clients[0].request("DELETE", target, timeout=30)
            if answer.status not in {200, 204, 404}:
                say(f"        {token} does not go: {answer.status} {answer.problem}")
                left += 1
        return left


def _table(title: str, counts: Counter[str]) -> None:
    say(f"{title:26} {sum(counts.values())}")
    for name, count in sorted(counts.items()):
        say(f"  {count:4}  {name}")


def _new_work(client: Client) -> str | None:
    """Make a kernel, run code in it and end it; give why that failed."""
    client.timeout = PROBE_TIMEOUT
    try:
        kernel = client.create()
        answer = client.run(kernel, "print(6*7)")
        client.destroy(kernel)
    except (OSError, http.client.HTTPException, RequestRefused) as error:
        return f"{type(error).__name__}: {error}"
    return None if answer == (0, "42\n") else f"it printed {answer}"


def run(wanted: argparse.Namespace, seconds: Callable[[], float], stop: threading.Event) -> int:
    """Start a cluster, let chaos happen, and end the cluster."""
    seed = wanted.seed if wanted.seed is not None else random.SystemRandom().randrange(10**6)
    network = Loopback() if wanted.loopback else network_or_loopback()
    say(f"Two managers and three agents for {wanted.seconds:g} s, seed {seed}.")
    cluster = make_cluster(2, 3, network=network)
    try:
        cluster.start()
        return Chaos(cluster, seconds, random.Random(seed), stop).run(wanted.seconds)  # noqa: S311 - repeatable dice
    finally:
        if wanted.keep_logs:
            cluster.save_logs(wanted.keep_logs)
        cluster.close()


def main() -> None:
    """Read the options and run; Ctrl-C ends the chaos, not the report."""
    parser = argparse.ArgumentParser(prog="python -m sorna.testing.cluster.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="how long parts break")
    parser.add_argument("--seed", type=int, help="draws the same faults again")
    parser.add_argument("--loopback", action="store_true", help="make no network namespaces, cut no links")
    parser.add_argument("--keep-logs", metavar="FOLDER", help="copy the logs of all parts there at the end")
    wanted = parser.parse_args()
    stop = threading.Event()

    async def go(reactor: Any) -> None:
        reactor.addSystemEventTrigger("before", "shutdown", stop.set)
        status = await deferToThreadPool(reactor, reactor.getThreadPool(), run, wanted, reactor.seconds, stop)
        raise SystemExit(status)

    react(lambda reactor: Deferred.fromCoroutine(go(reactor)))


if __name__ == "__main__":
    main()
