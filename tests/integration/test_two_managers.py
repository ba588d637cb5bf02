"""Two managers on one PostgreSQL and Redis: either answers for every kernel, and the death of one interrupts none."""

from __future__ import annotations

import atexit
import base64
import functools
import http.client
import json
import secrets
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from sorna.client.signing import Credentials
from sorna.testing.cluster import Client, Cluster, Progress, RequestRefused, make_cluster, until
from sorna.testing.cluster.websocket import WebSocket
from sorna.testing.doctor import check_promises
from sorna.testing.unit import UnitTestCase

PATIENCE = 30.0
MAKE_KEYPAIR = """
mutation($user: String!, $props: KeyPairInput!) {
  done: create_keypair(user_id: $user, props: $props) { ok msg keypair { access_key secret_key } }
}"""
MODIFY_KEYPAIR = """
mutation($access_key: String!, $props: ModifyKeyPairInput!) {
  done: modify_keypair(access_key: $access_key, props: $props) { ok msg }
}"""
USED = "query($key: String!) { keypair(access_key: $key) { concurrency_used } }"


def counting(lines: int, pause: float = 0.1) -> str:
    """Give code that prints numbers slowly."""
    return f"import time\nfor n in range({lines}):\n    print(n, flush=True)\n    time.sleep({pause})"


@functools.cache
def shared_cluster() -> Cluster:
    """Give one cluster for all the tests of a process; it ends with the process."""
    cluster = make_cluster(managers=2, agents=2)
    atexit.register(cluster.close)
    cluster.start()
    return cluster


class TwoManagersCase(UnitTestCase):
    """Has a client of each manager; what a test breaks is mended after it, and then all promises must hold."""

    def setUp(self) -> None:
        """Find the cluster, and make a keypair that no other test uses up."""
        from twisted.internet import reactor  # noqa: PLC0415, TID251 - the servers go by the wall clock

        self.seconds: Callable[[], float] = reactor.seconds
        self.cluster = shared_cluster()
        self.addCleanup(check_promises, "--config", str(self.cluster.options_file))
        self.addCleanup(self.cluster.heal)
        self.admin = self.cluster.client(self.cluster.managers[0], self.seconds)
        self.credentials = self.keypair()
        self.first, self.second = self.clients(self.credentials)

    def keypair(self, **props: Any) -> Credentials:
        """Make a keypair."""
        question = {"query": MAKE_KEYPAIR, "variables": {"user": "2", "props": props}}
        made = self.admin.call("POST", "/v2/admin/graphql", question)["done"]["keypair"]
        return Credentials(made["access_key"], made["secret_key"])

    def clients(self, credentials: Credentials) -> list[Client]:
        """Give a client of each manager."""
        return [self.cluster.client(one, self.seconds, credentials) for one in self.cluster.managers]

    def kernel(self, client: Client, **more: Any) -> str:
        """Make a kernel that is gone after the test."""
        kernel = client.create(**more)
        self.addCleanup(self.second.request, "DELETE", f"/v2/kernel/{kernel}")
        return kernel

    def rest_of(self, client: Client, kernel: str, run: str) -> str:
        """Continue a run to its end, and give what it printed on the way."""
        said, progress = "", Progress("continued", "", None)
        while progress.status != "finished":
            progress = client.execute(kernel, run, mode="continue")
            said += progress.text
        self.assertEqual(progress.exit_code, 0, said)
        return said

    def output(self, client: Client, kernel: str, run: str, seq: int = 0) -> str:
        """Read a run's output from a number on to its end."""
        said, over = "", False
        while not over:
            target = f"/v2/kernel/{kernel}/runs/{run}/output?from={seq}&wait=5"
            result = client.call("GET", target)["result"]
            self.assertEqual(result["missing"], 0)
            said += "".join(text for _stream, text in result["console"])
            seq, over = result["next"], result["end"]
        return said


class EitherManagerTests(TwoManagersCase):
    """What one has made the other knows at once."""

    def test_a_kernel_of_one_is_a_kernel_of_the_other(self) -> None:
        """Made here, used there, described by both, destroyed there, gone here."""
        kernel = self.kernel(self.first)
        self.assertEqual(self.second.run(kernel, "x = 6"), (0, ""))
        self.assertEqual(self.first.run(kernel, "print(x * 7)"), (0, "42\n"))
        self.assertEqual(self.first.info(kernel)["lang"], self.second.info(kernel)["lang"])
        self.second.destroy(kernel)
        self.assertEqual(self.first.request("GET", f"/v2/kernel/{kernel}").status, 404)

    def test_files(self) -> None:
        """What is uploaded through one is downloaded through the other."""
        kernel = self.kernel(self.first)
        self.first.upload(kernel, "shared.txt", b"from the first")
        self.assertEqual(self.second.run(kernel, "print(open('shared.txt').read())"), (0, "from the first\n"))

    def test_one_terminal(self) -> None:
        """Viewers at both managers look at the same shell."""
        kernel = self.kernel(self.first)
        target = f"/v2/stream/kernel/{kernel}/pty"
        viewers = [
            WebSocket(one.address, one.port, target, one.headers("GET", target)) for one in (self.first, self.second)
        ]
        for viewer in viewers:
            self.addCleanup(viewer.close)
        line = base64.b64encode(b"echo shared-$((6*7))\n").decode()
        viewers[0].send(json.dumps({"type": "stdin", "chars": line}))
        for viewer in viewers:
            said = b""
            while b"shared-42" not in said:
                message = json.loads(viewer.receive())
                if message["type"] == "out":
                    said += base64.b64decode(message["data"])

    def test_events(self) -> None:
        """A listener at one hears of what is done at the other."""
        kernel = self.kernel(self.first)
        target = f"/v2/stream/kernel/{kernel}/events"
        connection = http.client.HTTPConnection(self.second.address, self.second.port, timeout=PATIENCE)
        self.addCleanup(connection.close)
        connection.request("GET", target, headers=self.second.headers("GET", target))
        response = connection.getresponse()
        self.assertEqual(response.status, 200)
        ending = threading.Timer(0.5, self.first.destroy, [kernel])
        ending.start()
        self.addCleanup(ending.join)
        said = b""
        while b"session_terminated" not in said:
            piece = response.readline()
            self.assertTrue(piece, said)
            said += piece

    def test_a_keypair_that_is_changed(self) -> None:
        """Deactivated at one, it is refused by the other within a second."""
        self.second.create_and_destroy()
        change = {"access_key": self.credentials.access_key, "props": {"is_active": False}}
        self.admin.call("POST", "/v2/admin/graphql", {"query": MODIFY_KEYPAIR, "variables": change})
        refused = until(lambda: self.second.request("GET", "/v2/kernel/whatever").status == 401, 1.5)
        self.assertTrue(refused)

    def test_one_rate_limit(self) -> None:
        """Requests at both count together."""
        clients = self.clients(self.keypair(rate_limit=6))
        statuses = [clients[number % 2].request("GET", "/v2/kernel/whatever").status for number in range(8)]
        self.assertEqual(statuses, [404] * 6 + [429] * 2)

    def test_one_quota(self) -> None:
        """Both create at once, and no more kernels come of it than the keypair may have."""
        clients = self.clients(self.keypair(concurrency_limit=3))
        made: list[str] = []
        refused: list[int] = []

        def create(number: int) -> None:
            try:
                made.append(clients[number % 2].create())
            except RequestRefused as error:
                refused.append(error.answer.status)

        threads = [threading.Thread(target=create, args=[number]) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for kernel in made:
            clients[0].destroy(kernel)
        self.assertEqual((len(made), refused), (3, [412] * 5))

    def test_one_session_however_many_ask(self) -> None:
        """The same session token at both makes one kernel."""
        token, made = f"t-{secrets.token_hex(8)}", []
        threads = [
            threading.Thread(target=lambda c=client: made.append(c.create(token)))
            for client in (self.first, self.second)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.first.destroy(made[0])
        self.assertEqual(len(set(made)), 1)


class DeathTests(TwoManagersCase):
    """Parts that die."""

    def test_a_run_goes_on_at_the_other(self) -> None:
        """A manager killed after it has answered loses nothing of the run, and nothing comes twice."""
        kernel = self.kernel(self.first)
        run = secrets.token_hex(8)
        said = self.first.execute(kernel, run, counting(40)).text
        # Its word that the answer has been passed on follows the answer; see "When a manager dies" in the architecture.
        threading.Event().wait(1.0)
        self.cluster.managers[0].kill()
        said += self.rest_of(self.second, kernel, run)
        self.assertEqual(said.split(), [str(number) for number in range(40)])

    def test_a_manager_killed_while_a_call_waits(self) -> None:
        """What the call was waiting for, the other manager gives."""
        kernel = self.kernel(self.first)
        run = secrets.token_hex(8)
        failed: list[BaseException] = []

        def wait() -> None:
            try:
                self.first.execute(
                    kernel,
                    run,
                    "open('begun', 'w').close(); print('before', flush=True)\nimport time; time.sleep(3)\nprint('after')",
                )
            except (OSError, http.client.HTTPException) as error:
                failed.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        self.assertTrue(until(lambda: "begun" in self._listing(kernel), PATIENCE))
        threading.Event().wait(0.5)
        self.cluster.managers[0].kill()
        waiting.join()
        self.assertEqual(len(failed), 1)
        self.assertEqual(self.rest_of(self.second, kernel, run), "before\nafter\n")

    def test_an_answer_that_dies_with_its_manager_is_given_back(self) -> None:
        """A frozen manager has been sent the end of a run and never passes it on: it is not lost, and not doubled."""
        kernel = self.kernel(self.first)
        run = secrets.token_hex(8)
        waiting = threading.Thread(target=self._fail_to_execute, args=(kernel, run))
        waiting.start()
        # The files say when the run has begun, and when its end is on its way to the frozen manager.
        self.assertTrue(until(lambda: "begun" in self._listing(kernel), PATIENCE))
        self.cluster.managers[0].freeze()
        self.assertTrue(until(lambda: "done" in self._listing(kernel), PATIENCE))
        threading.Event().wait(0.5)
        self.cluster.managers[0].kill()
        waiting.join()
        self.assertEqual(self.rest_of(self.second, kernel, run), "only once\n")
        self.assertEqual(self.output(self.second, kernel, run), "only once\n")

    def _fail_to_execute(self, kernel: str, run: str) -> None:
        code = "import time\nopen('begun', 'w').close(); time.sleep(1.5)\nprint('only once', flush=True)\nopen('done', 'w').close()"
        try:
            self.first.execute(kernel, run, code)
        except (OSError, http.client.HTTPException):
            return
        raise AssertionError("a frozen manager answered")

    def _listing(self, kernel: str) -> str:
        return json.dumps(self.second.call("GET", f"/v2/kernel/{kernel}/files?path=."))

    def test_output_from_the_last_number(self) -> None:
        """A stream over a WebSocket that dies with its manager is read on at the other from the number it told last."""
        kernel = self.kernel(self.first)
        target = f"/v2/stream/kernel/{kernel}/execute"
        stream = WebSocket(self.first.address, self.first.port, target, self.first.headers("GET", target))
        self.addCleanup(stream.close)
        stream.send(json.dumps({"mode": "query", "code": counting(30)}))
        said, message = "", {}
        while "5\n" not in said:
            message = json.loads(stream.receive())
            said += "".join(text for _stream, text in message["console"])
        self.cluster.managers[0].kill()
        said += self.output(self.second, kernel, message["runId"], message["next"])
        self.assertEqual(said.split(), [str(number) for number in range(30)])

    def test_a_dead_agent_ends_its_kernels_once(self) -> None:
        """With two reapers, within five seconds its kernels have ended with a reason and their quota is free."""
        kernels = [self.first.create() for _ in range(6)]
        self.cluster.agents[0].kill()
        self.assertTrue(until(lambda: self._ended(kernels) > 0, 5.5))
        ended = self._ended(kernels)
        self.assertTrue(until(lambda: self._used() == 6 - ended, PATIENCE))
        for client in (self.first, self.second):
            client.create_and_destroy()
        for kernel in kernels:
            self.second.request("DELETE", f"/v2/kernel/{kernel}")
        self.assertTrue(until(lambda: self._used() == 0, PATIENCE))

    def _ended(self, kernels: list[str]) -> int:
        answers = [self.second.request("GET", f"/v2/kernel/{kernel}") for kernel in kernels]
        return sum(answer.status == 404 and "agent-lost" in answer.problem for answer in answers)

    def _used(self) -> int:
        question = {"query": USED, "variables": {"key": self.credentials.access_key}}
        return int(self.admin.call("POST", "/v2/admin/graphql", question)["keypair"]["concurrency_used"])

    def test_redis_restarted_empty(self) -> None:
        """Kernels live on, both managers find them again, and new work succeeds within five seconds."""
        kernel = self.kernel(self.first)
        self.first.run(kernel, "x = 42")
        self.cluster.redis.stop()
        self.cluster.redis.empty()
        refused = self.second.request("GET", f"/v2/kernel/{kernel}")
        self.assertEqual((refused.status, "retry-after" in refused.headers), (503, True))
        self.cluster.redis.start()
        for client in (self.first, self.second):
            self.assertTrue(until(partial(self._works, client), 5.0))
            self.assertTrue(until(partial(self._answers, client, kernel), 5.0))
            self.assertEqual(client.run(kernel, "print(x)"), (0, "42\n"))

    def test_postgresql_restarted(self) -> None:
        """Answers of 503 with Retry-After while it is away, and new work within five seconds after."""
        kernel = self.kernel(self.first)
        self.cluster.postgres.stop()
        refused = self.second.request("GET", f"/v2/kernel/{kernel}")
        self.assertEqual((refused.status, "retry-after" in refused.headers), (503, True))
        self.cluster.postgres.start()
        for client in (self.first, self.second):
            self.assertTrue(until(partial(self._works, client), 5.0))

    def _answers(self, client: Client, kernel: str) -> bool:
        return client.request("GET", f"/v2/kernel/{kernel}").status == 200

    def _works(self, client: Client) -> bool:
        try:
            client.create_and_destroy()
        except RequestRefused:
            return False
        return True

    def test_a_manager_started_before_its_databases(self) -> None:
        """It waits, says so once, answers 503 with Retry-After, and serves when they are there."""
        manager = self.cluster.managers[1]
        for part in (manager, self.cluster.redis, self.cluster.postgres):
            part.stop()
        before = len(manager.log)
        manager.start(wait=False)
        self.assertTrue(until(lambda: "waiting for the database" in manager.log[before:], PATIENCE))
        refused = self.second.request("GET", "/v2/kernel/whatever")
        self.assertEqual((refused.status, "retry-after" in refused.headers), (503, True))
        self.cluster.redis.start()
        self.cluster.postgres.start()
        manager.wait_until_ready()
        self.assertTrue(until(lambda: self._works(self.second), 5.0))
        self.assertEqual(manager.log[before:].count("waiting for the database"), 1)
