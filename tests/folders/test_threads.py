"""The threads in which work on files is done: few, with a bounded queue before them, and gone at the end."""

from __future__ import annotations

import threading

from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import TestCase

from sorna.errors import Unavailable
from sorna.folders import storage
from sorna.folders.storage import THREADS, Threads


class ThreadsTests(TestCase):
    def setUp(self) -> None:
        from twisted.internet import reactor  # noqa: PLC0415, TID251 - real threads need the real one

        self.threads = Threads(reactor)
        self.threads.startService()
        self.addCleanup(self.stop)

    def stop(self) -> None:
        if self.threads.running:
            self.threads.stopService()

    async def test_results_and_errors(self) -> None:
        """What a function gives or raises comes back, and it runs elsewhere."""
        self.assertEqual(await self.threads(divmod, 7, 2), (3, 1))
        with self.assertRaises(ZeroDivisionError):
            await self.threads(divmod, 1, 0)
        self.assertNotEqual(await self.threads(threading.get_ident), threading.get_ident())

    async def test_bounds(self) -> None:
        """So many run at once, so many wait, and the next one is refused."""
        self.patch(storage, "MOST_WAITING", 3)
        gate = threading.Event()
        running: list[Deferred[bool]] = [self.threads(gate.wait, 10) for _number in range(THREADS + 3)]
        self.assertRaises(Unavailable, self.threads, gate.wait)
        gate.set()
        self.assertEqual(await gatherResults(running), [True] * (THREADS + 3))

    async def test_after_the_end(self) -> None:
        """When the service has stopped nothing is run any more."""
        self.threads.stopService()
        self.assertRaises(Unavailable, self.threads, divmod, 1, 1)
