"""Searches for patterns of strangers, in processes that can be killed."""

from __future__ import annotations

from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import TestCase

from sorna.legacy.search import MOST_AT_ONCE, MOST_PATTERN, MOST_WAITING, Searches, SearchFailed
from tests.legacy.door import reactor


class SearchTests(TestCase):
    def setUp(self) -> None:
        self.searches = Searches(reactor, reactor)

    async def fails(self, pattern: str, text: str, searches: Searches | None = None) -> SearchFailed:
        try:
            found = await (searches or self.searches).found(pattern, text)
        except SearchFailed as error:
            return error
        raise AssertionError(f"it was searched: {found}")

    async def test_search(self) -> None:
        """It is Python's own search, with everything that 2016 had."""
        for pattern, text, found in (
            (r"^a.c$", "abc", True),
            (r"(?<=x)(a)\1", "xaa", True),
            (r"한+\n", "한한\n", True),
            ("\ud800", "a\ud800", True),
            ("b", "", False),
            ("", "", True),
        ):
            self.assertIs(await self.searches.found(pattern, text), found, pattern)

    async def test_large_text(self) -> None:
        """A result of the largest size can be searched."""
        self.assertTrue(await self.searches.found("b$", "a" * 8_000_000 + "b"))

    async def test_patterns_that_are_none(self) -> None:
        """The message is Python's; patterns that blow up are refused."""
        error = await self.fails("(", "")
        self.assertEqual((error.name, "unterminated" in str(error)), ("error", True))
        self.assertEqual((await self.fails("(" * 20_000 + ")" * 20_000, "")).name, "error")
        self.assertEqual((await self.fails("x" * (MOST_PATTERN + 1), "")).name, "OverflowError")

    async def test_patterns_that_take_for_ever(self) -> None:
        """The process is killed, others go on meanwhile, and no process is left."""
        searches = Searches(reactor, reactor, seconds=0.5)
        slow = Deferred.fromCoroutine(self.fails("(a+)+b", "a" * 60, searches))
        self.assertTrue(await Searches(reactor, reactor).found("a", "a"))
        self.assertIn("too long", str(await slow))

    async def test_few_at_once(self) -> None:
        """Many searches wait for their turn, and all are answered."""
        found = await gatherResults(
            [Deferred.fromCoroutine(self.searches.found("a", "ab"[number % 2])) for number in range(6)]
        )
        self.assertEqual(found, [True, False] * 3)

    async def test_not_too_many_wait(self) -> None:
        """Who would wait for long is told so at once."""
        waiting = [Deferred.fromCoroutine(self.searches.found("a", "a")) for _ in range(MOST_AT_ONCE + MOST_WAITING)]
        self.assertIn("Too many", str(await self.fails("a", "a")))
        self.assertEqual(await gatherResults(waiting), [True] * len(waiting))

    async def test_cancelled(self) -> None:
        """A search that nobody waits for any more gives its turn back."""
        for _ in range(4):
            waiting = Deferred.fromCoroutine(self.searches.found("(a+)+b", "a" * 60))
            waiting.addErrback(lambda _failure: None)
            waiting.cancel()
        self.assertTrue(await self.searches.found("a", "a"))
