"""Two managers on one PostgreSQL and Redis: either answers for every kernel, and the death of one interrupts none."""

from __future__ import annotations

import atexit
import functools
import secrets
from collections.abc import Callable

from sorna.testing.cluster import Client, Cluster, make_cluster
from sorna.testing.unit import UnitTestCase


@functools.cache
def shared_cluster() -> Cluster:
    """Give one cluster for all the tests of a process; it ends with the process."""
    cluster = make_cluster(managers=2, agents=2)
    atexit.register(cluster.close)
    cluster.start()
    return cluster


class TwoManagersCase(UnitTestCase):
    """Has a client of each manager."""

    def setUp(self) -> None:
        """Find the cluster, and mend what an earlier test broke."""
        from twisted.internet import reactor  # noqa: PLC0415, TID251 - the servers go by the wall clock

        self.seconds: Callable[[], float] = reactor.seconds
        self.cluster = shared_cluster()
        self.addCleanup(self.cluster.heal)
        self.first, self.second = (self.cluster.client(one, self.seconds) for one in self.cluster.managers)

    def kernel(self, client: Client) -> str:
        """Make a kernel that is gone after the test."""
        kernel = client.create()
        self.addCleanup(self.second.request, "DELETE", f"/v2/kernel/{kernel}")
        return kernel


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

    def test_a_run_goes_on_at_the_other(self) -> None:
        """A manager killed while a call waits for output loses nothing of the run."""
        kernel = self.kernel(self.first)
        run = secrets.token_hex(8)
        code = "import time\nfor n in range(40):\n    print(n, flush=True)\n    time.sleep(.1)"
        said = self.first.execute(kernel, run, code).text
        self.cluster.managers[0].kill()
        progress = self.second.execute(kernel, run, mode="continue")
        said += progress.text
        while progress.status != "finished":
            progress = self.second.execute(kernel, run, mode="continue")
            said += progress.text
        self.assertEqual(said.split(), [str(number) for number in range(40)])
