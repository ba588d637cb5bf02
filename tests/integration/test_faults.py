"""What happens when parts die, freeze, or cannot be reached, one at a time, under load: the promises hold after each.

The parts are processes in network namespaces, really killed and really cut; see ``faults_case`` for what is checked afterwards.
"""

from __future__ import annotations

import os
import secrets
import signal
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import psycopg2

from sorna.testing.cluster import Agent, RequestRefused, until
from tests.integration import shifted_clock
from tests.integration.faults_case import PATIENCE, PROMISED, FaultsCase, clock_of
from tests.integration.small_disk import SmallDisk

# How long Redis cannot be reached, in seconds: the default passes an agent's lease, every call's deadline of ten seconds and
# the time in which nobody's absence is believed.
OUTAGE = float(os.environ.get("SORNA_TEST_REDIS_OUTAGE", "13"))
# Longer than an agent's lease and two looks of a reaper.
FROZEN = 6.0
HOUR = 3600.0


class DeathTests(FaultsCase):
    """Parts that are killed and started again, or that die inside of an agent."""

    def test_manager_killed(self) -> None:
        """Its kernels go on: the other manager finds the same memory in them, and so does the first when it is back."""
        kernel = self.kernel("a1")
        self.first.run(kernel, "x = 42")
        self.work_on("a1", "a2")
        self.cluster.managers[0].kill()
        self.assertEqual(self.second.run(kernel, "print(x)"), (0, "42\n"))
        self.works_again(time.monotonic(), managers=self.cluster.managers[1:])
        self.cluster.managers[0].start()
        self.works_again(time.monotonic())
        self.assertEqual(self.first.run(kernel, "print(x)"), (0, "42\n"))
        self.rest(silence=True)
        self.assertEqual([one for busy in self.busy for one in busy.heard if one.status == 404], [])

    def test_agent_killed(self) -> None:
        """Within five seconds its kernels have ended with a reason and count no more; the other agent's feel nothing."""
        kernels = [self.kernel("a1") for _ in range(5)]
        self.work_on("a1", "a2")
        self.cluster.agents[0].kill()
        died = time.monotonic()
        self.assertTrue(until(lambda: all(self.ended(one, "agent-lost") for one in kernels), PROMISED))
        self.assertTrue(until(lambda: self.used() <= 1, PROMISED - (time.monotonic() - died)))
        self.cluster.agents[0].start()
        self.works_again(time.monotonic())
        self.rest()
        self.assertEqual([one for one in self.busy[1].heard if one.status != 200], [])

    def test_agent_frozen(self) -> None:
        """One that stops in the middle of everything is taken for dead; thawed, it ends what is not its own any more."""
        kernel = self.kernel("a1")
        self.work_on("a1", "a2")
        self.cluster.agents[0].freeze()
        began = time.monotonic()
        self.assertTrue(until(lambda: self.ended(kernel, "agent-lost"), PROMISED))
        time.sleep(max(0.0, FROZEN - (time.monotonic() - began)))
        self.cluster.agents[0].thaw()
        self.works_again(time.monotonic())
        self.assertTrue(self.ended(kernel, "agent-lost"))
        self.rest()
        self.assertEqual([one for one in self.busy[1].heard if one.status != 200], [])

    def test_agent_frozen_for_a_moment(self) -> None:
        """A second is no death: every call waits, and nothing is lost."""
        self.work_on("a1")
        self.cluster.agents[0].freeze()
        time.sleep(1.0)
        self.cluster.agents[0].thaw()
        self.works_again(time.monotonic())
        self.rest()
        self.assertEqual([one for one in self.busy[0].heard if one.status != 200], [])

    def test_runner_killed(self) -> None:
        """The first process of a kernel, its interpreter, or both: the run is answered with a reason."""
        for victim in ("interpreter", "init"):
            kernel = self.kernel("a1")
            interpreter, init = self._processes(kernel)
            heard: list[str] = []
            waiting = threading.Thread(target=self._run_and_note, args=(kernel, heard), daemon=True)
            waiting.start()
            self.assertTrue(until(partial(self._asked_twice, kernel), PATIENCE))
            time.sleep(0.3)
            os.kill(interpreter if victim == "interpreter" else init, signal.SIGKILL)
            began = time.monotonic()
            waiting.join(PATIENCE)
            self.assertLess(time.monotonic() - began, PROMISED)
            self.assertEqual(len(heard), 1)
            self.assertIn("ended by signal 9" if victim == "interpreter" else "ended unexpectedly (signal 9)", heard[0])
            if victim == "interpreter":
                self.assertEqual(self.first.run(kernel, "print(6*7)"), (0, "42\n"))
            else:
                self.assertTrue(until(partial(self.ended, kernel, "terminated: crashed"), PROMISED))
        self.works_again(time.monotonic())

    def _asked_twice(self, kernel: str) -> bool:
        return bool(self.second.info(kernel)["numQueriesExecuted"] > 1)

    def _run_and_note(self, kernel: str, heard: list[str]) -> None:
        try:
            heard.append(str(self.first.run(kernel, "import time\nfor _ in range(600): time.sleep(0.1)")))
        except RequestRefused as error:
            heard.append(str(error))

    def _processes(self, kernel: str) -> tuple[int, int]:
        """Find a kernel's interpreter by a name that it gives itself, and its parent, as numbers of the host."""
        name = secrets.token_hex(6)
        self.first.run(kernel, f"import ctypes\nctypes.CDLL(None).prctl(15, b'{name}', 0, 0, 0)")
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if (entry / "comm").read_text().strip() == name:
                    return int(entry.name), int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
        raise AssertionError("the interpreter was not found")

    def test_out_of_memory(self) -> None:
        """The run is told so; other kernels of the agent feel nothing, and the kernel can be used again."""
        self.work_on("a1")
        kernel = self.kernel("a1", config={"labels": {"host": "a1"}, "instanceMemory": 128})
        status, said = self.first.run(kernel, "hog = []\nwhile True: hog.append(bytearray(b'x') * (8 << 20))")
        self.assertEqual(status, 137, said)
        self.assertIn("out of memory", said)
        self.assertEqual(self.first.run(kernel, "print(6*7)"), (0, "42\n"))
        self.works_again(time.monotonic())
        self.rest()
        self.assertEqual([one for one in self.busy[0].heard if one.status != 200], [])


class DatabaseTests(FaultsCase):
    """PostgreSQL and Redis."""

    def test_redis_restarted_empty(self) -> None:
        """No kernel is lost with what Redis knew of it."""
        kernel = self.kernel("a1")
        self.first.run(kernel, "x = 42")
        self.work_on("a1", "a2")
        self.cluster.redis.stop()
        self.cluster.redis.empty()
        time.sleep(1.0)
        self.cluster.redis.start()
        self.works_again(time.monotonic())
        for client in (self.first, self.second):
            self.assertEqual(client.run(kernel, "print(x)"), (0, "42\n"))
        self.rest()
        self.assertEqual([one for busy in self.busy for one in busy.heard if one.status == 404], [])

    def test_redis_out_of_reach(self) -> None:
        """Nobody hears from it for longer than every deadline: requests are refused with Retry-After, and no kernel is lost."""
        kernel = self.kernel("a1")
        self.first.run(kernel, "x = 42")
        self.work_on("a1", "a2")
        self.cluster.network.cut("redis", "both")
        began = time.monotonic()
        time.sleep(OUTAGE / 2)
        known = self.first.request("GET", f"/v2/kernel/{kernel}")
        self.assertEqual((known.status, "retry-after" in known.headers), (503, True))
        refused = self.second.request(
            "POST", "/v2/kernel/create", b'{"lang": "python3", "clientSessionToken": "outage"}'
        )
        self.assertEqual((refused.status, "retry-after" in refused.headers), (503, True))
        time.sleep(max(0.0, OUTAGE - (time.monotonic() - began)))
        self.cluster.network.mend("redis")
        self.works_again(time.monotonic())
        self.assertEqual(self.second.run(kernel, "print(x)"), (0, "42\n"))
        self.rest()
        self.assertEqual([one for busy in self.busy for one in busy.heard if one.status == 404], [])

    def test_postgresql_restarted(self) -> None:
        """What needs it is refused with Retry-After while it is away, and kernels live on."""
        kernel = self.kernel("a1")
        self.first.run(kernel, "x = 42")
        self.work_on("a1", "a2")
        self.cluster.postgres.stop()
        refused = self.second.request(
            "POST", "/v2/kernel/create", b'{"lang": "python3", "clientSessionToken": "outage"}'
        )
        self.assertEqual((refused.status, "retry-after" in refused.headers), (503, True))
        self.cluster.postgres.start()
        self.works_again(time.monotonic())
        self.assertEqual(self.second.run(kernel, "print(x)"), (0, "42\n"))
        self.rest()
        self.assertEqual([one for busy in self.busy for one in busy.heard if one.status == 404], [])

    def test_postgresql_backends_killed(self) -> None:
        """Every connection of the managers is ended, three times; each is made again."""
        self.work_on("a1", "a2")
        for _ in range(3):
            self.assertGreater(self._terminate_backends(), 1)
            time.sleep(0.5)
        self.works_again(time.monotonic())
        self.rest()
        self.assertEqual([one for busy in self.busy for one in busy.heard if one.status == 404], [])

    def _terminate_backends(self) -> int:
        postgres = self.cluster.postgres
        connection = psycopg2.connect(
            host=postgres.address, port=postgres.port, user="sorna", password=postgres.password, dbname="sorna"
        )
        try:
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                    " WHERE usename = 'sorna' AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
                )
                return int(cursor.fetchall()[0][0])
        finally:
            connection.close()


class LinkTests(FaultsCase):
    """The link between one manager and one agent; everything else talks as before."""

    def test_cut_towards_the_agent(self) -> None:
        """What the manager says does not arrive: it says so, and the agent's kernels live on for the other manager."""
        self._cut("m1", "a1")

    def test_cut_towards_the_manager(self) -> None:
        """What the agent says does not arrive."""
        self._cut("a1", "m1")

    def _cut(self, sender: str, receiver: str) -> None:
        kernel = self.kernel("a1")
        self.first.run(kernel, "x = 42")
        self.work_on("a1", "a2")
        self.pairs.cut(sender, receiver)
        began = time.monotonic()
        with self.assertRaises(RequestRefused) as refused:
            self.first.run(kernel, "y = 1")
        self.assertIn(refused.exception.answer.status, {500, 503})
        self.assertLess(time.monotonic() - began, 12.0)
        self.assertEqual(self.second.run(kernel, "print(x)"), (0, "42\n"))
        self._quick("a2")
        self.pairs.mend()
        self.works_again(time.monotonic())
        self.assertEqual(self.first.run(kernel, "print(x)"), (0, "42\n"))
        self.rest()
        self.assertEqual([one for busy in self.busy for one in busy.heard if one.status == 404], [])

    def _quick(self, host: str) -> None:
        """Require that the other agent's kernels are not delayed."""
        began = time.monotonic()
        kernel = self.kernel(host)
        self.assertEqual(self.first.run(kernel, "print(6*7)"), (0, "42\n"))
        self.assertLess(time.monotonic() - began, PROMISED)

    def test_messages_delayed(self) -> None:
        """What the manager says arrives five seconds late: that link is given up, no other, and nothing is done twice."""
        kernel = self.kernel("a1")
        self.first.run(kernel, "done = []")
        self.work_on("a1", "a2")
        self.pairs.delay("m1", "a1", 5.0)
        began = time.monotonic()
        with self.assertRaises(RequestRefused) as refused:
            self.first.run(kernel, "done.append(1)")
        self.assertIn(refused.exception.answer.status, {500, 503})
        self.assertLess(time.monotonic() - began, 12.0)
        self.assertEqual(self.second.run(kernel, "x = 42"), (0, ""))
        self._quick("a2")
        time.sleep(max(0.0, 6.0 - (time.monotonic() - began)))  # what was late is there by now
        self.pairs.mend()
        self.works_again(time.monotonic())
        status, said = self.first.run(kernel, "print(x, len(done) <= 1)")
        self.assertEqual((status, said), (0, "42 True\n"))
        self.rest()
        self.assertEqual([one for busy in self.busy for one in busy.heard if one.status == 404], [])


class HostTests(FaultsCase):
    """What is wrong with an agent's host."""

    def test_disk_full(self) -> None:
        """Without a byte left for its state and its temporary files an agent serves on; it is even killed and started again on that disk."""
        agent = self.cluster.agents[1]
        disk = SmallDisk(agent.folder / "state")
        self.addCleanup(disk.free)
        kernel = self.kernel("a2")
        self.first.run(kernel, "x = 42")
        self.work_on("a1", "a2")
        disk.fill()
        self.assertEqual(self.first.run(kernel, "print(x)"), (0, "42\n"))
        self.first.upload(kernel, "file", b"content")
        self.works_again(time.monotonic())
        agent.kill()
        self.assertTrue(until(lambda: self.ended(kernel, "agent-lost"), PROMISED))
        before = len(agent.log)
        agent.start(wait=False)
        self.assertTrue(until(lambda: agent.ready() or not agent.running, PATIENCE))
        self.assertTrue(agent.running, agent.log[before:])
        self.works_again(time.monotonic())
        disk.free()
        self.works_again(time.monotonic())
        self.rest()
        self.assertEqual([one for one in self.busy[0].heard if one.status != 200], [])

    def test_clock_off_by_an_hour(self) -> None:
        """An agent that lives an hour before or after everybody else is as good as any other."""
        agent = self.cluster.agents[1]
        self.addCleanup(self._restart_with_clock, agent, 0.0)
        for offset in (HOUR, -HOUR):
            self._restart_with_clock(agent, offset)
            self.works_again(time.monotonic())
            kernel = self.kernel("a2")
            self.assertEqual(self.first.run(kernel, "import time; time.sleep(0.5); print(6*7)"), (0, "42\n"))
            self.assertLess(self.second.info(kernel)["idle"], 60_000)
            self.second.destroy(kernel)

    def test_clock_set(self) -> None:
        """Set by an hour while kernels run, forth and back: no kernel is ended, no run is timed out, and no heartbeat is late."""
        clock = clock_of(self.cluster.agents[1].folder)
        self.addCleanup(shifted_clock.write, clock, 0.0)
        kernel = self.kernel("a2")
        self.first.run(kernel, "x = 42")
        self.work_on("a1", "a2")
        for offset in (HOUR, 0.0, -HOUR, 0.0):
            shifted_clock.write(clock, offset)
            time.sleep(4.0)  # longer than an agent's lease and two looks of a reaper
            self.assertEqual(self.first.run(kernel, "print(x)"), (0, "42\n"))
        self.works_again(time.monotonic())
        self.rest()
        self.assertEqual([one for busy in self.busy for one in busy.heard if one.status != 200], [])

    def _restart_with_clock(self, agent: Agent, offset: float) -> None:
        agent.stop()
        shifted_clock.write(clock_of(agent.folder), offset)
        agent.start()


class ManyKernelsTests(FaultsCase):
    """An agent that dies with all it has."""

    KERNELS = int(os.environ.get("SORNA_TEST_KERNELS", "200"))

    def test_their_agent_dies(self) -> None:
        """Within five seconds every one of them has ended with a reason, and none counts any more."""
        kernels = self._make(self.KERNELS)
        self.assertEqual(self.used(), self.KERNELS)
        self.cluster.agents[0].kill()
        died = time.monotonic()
        self.assertTrue(until(lambda: self.used() == 0, PROMISED))
        self.assertLess(time.monotonic() - died, PROMISED)
        self.assertEqual([one for one in kernels if not self.ended(one, "agent-lost")], [])
        self.cluster.agents[0].start()
        self.works_again(time.monotonic())

    def _make(self, count: int) -> Sequence[str]:
        kernels: list[str] = []
        failed: list[Exception] = []
        numbers = iter(range(count))

        def make() -> None:
            try:
                kernels.extend(self.kernel("a1") for _ in numbers)
            except Exception as error:  # noqa: BLE001 - told below, in the test's own thread
                failed.append(error)

        threads = [threading.Thread(target=make, daemon=True) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE * 2)
        self.assertEqual(failed, [])
        self.assertEqual(len(set(kernels)), count)
        return kernels
