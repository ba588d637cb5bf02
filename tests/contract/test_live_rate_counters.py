"""The contract of RateCounters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, DeferredList
from twisted.python.failure import Failure

from sorna.errors import RateLimitExceeded
from sorna.live.rate_counters import RedisRateCounters
from sorna.manager.interfaces import RateState
from tests.contract.live_backends import MemoryCase, ValkeyCase

if TYPE_CHECKING:
    from tests.contract.live_backends import LiveCase as _Case
else:
    _Case = object


class RateCountersContract(_Case):
    async def test_three_then_no_more(self) -> None:
        """With a limit of 3, three requests report 3, 2 and 1, and all further ones of the window fail."""
        states = [await self.counters.hit("AKIAONE", 3) for _ in range(3)]
        self.assertEqual([(state.limit, state.remaining) for state in states], [(3, 3), (3, 2), (3, 1)])
        for _ in range(3):
            with self.assertRaises(RateLimitExceeded):
                await self.counters.hit("AKIAONE", 3)

    async def test_window_starts_with_the_first(self) -> None:
        """The time left shrinks from the first request on, whatever follows it, and the window ends once."""
        first = await self.counters.hit("AKIAONE", 2)
        self.assertTrue(0 < first.reset <= self.window * 1000)
        await self.pass_time(self.window / 2)
        second = await self.counters.hit("AKIAONE", 2)
        self.assertTrue(0 < second.reset <= self.window * 500 + 1, second)
        with self.assertRaises(RateLimitExceeded):
            await self.counters.hit("AKIAONE", 2)
        await self.pass_time(self.window / 2 + 0.05)
        self.assertEqual((await self.counters.hit("AKIAONE", 2)).remaining, 2)

    async def test_each_keypair_for_itself(self) -> None:
        """One keypair's requests do not count for another."""
        await self.counters.hit("AKIAONE", 1)
        with self.assertRaises(RateLimitExceeded):
            await self.counters.hit("AKIAONE", 1)
        self.assertEqual((await self.counters.hit("AKIATWO", 1)).remaining, 1)

    async def test_no_requests_at_all(self) -> None:
        """A limit of 0 or less allows none."""
        for limit in (0, -1):
            with self.assertRaises(RateLimitExceeded):
                await self.counters.hit("AKIAONE", limit)

    async def test_changed_limit(self) -> None:
        """A limit that is changed within a window counts what was used, and not what was refused."""
        for _ in range(2):
            await self.counters.hit("AKIAONE", 2)
        for _ in range(5):
            with self.assertRaises(RateLimitExceeded):
                await self.counters.hit("AKIAONE", 2)
        self.assertEqual((await self.counters.hit("AKIAONE", 4)).remaining, 2)
        with self.assertRaises(RateLimitExceeded):
            await self.counters.hit("AKIAONE", 1)


class MemoryRateCountersTests(RateCountersContract, MemoryCase):
    """The fakes."""


class ValkeyRateCountersTests(RateCountersContract, ValkeyCase):
    """A real server."""

    async def test_exactly_the_limit_of_many_at_once(self) -> None:
        """Of 5,000 requests at once over two connections exactly as many succeed as the limit says, each with its own number."""
        window, limit = 30.0, 1_000
        both = [RedisRateCounters(self.connect(4), window) for _ in range(2)]
        for counters in both:  # on a busy machine, connecting may take longer than a request waits
            await counters.hit("AKIAOTHER", limit)
        outcomes = await DeferredList(
            [Deferred.fromCoroutine(both[number % 2].hit("AKIAONE", limit)) for number in range(5_000)],
            consumeErrors=True,
        )
        states = [state for success, state in outcomes if success and isinstance(state, RateState)]
        self.assertEqual(sorted(state.remaining for state in states), list(range(1, limit + 1)))
        refused = [failure for success, failure in outcomes if not success and isinstance(failure, Failure)]
        self.assertEqual({failure.type for failure in refused}, {RateLimitExceeded})
        self.assertEqual(len(refused), 4_000)
        self.assertEqual(await self.db[4].command("GET", "AKIAONE"), b"1000")

    async def test_key_expires_by_itself(self) -> None:
        """Nothing is left when the window is over, and a key without an end gets one."""
        await self.counters.hit("AKIAONE", 5)
        await self.pass_time(self.window + 0.05)
        self.assertEqual(await self.db[4].command("EXISTS", "AKIAONE"), 0)
        await self.db[4].command("SET", "AKIAONE", "1")
        state = await self.counters.hit("AKIAONE", 5)
        self.assertEqual((state.remaining, state.reset), (4, self.window * 1000))
        self.assertTrue(0 < await self.db[4].command("PTTL", "AKIAONE") <= self.window * 1000)
