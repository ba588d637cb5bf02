"""Keypairs from memory, never older than a second, and their use written in batches."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from sorna.errors import Unavailable
from sorna.manager.keypairs import MAX_AGE, CachedKeypairs
from sorna.model.keypair import Keypair
from sorna.testing.unit import UnitTestCase

KEYPAIR = Keypair("AKIA" + "A" * 16, "s" * 40)


class ScriptedStore:
    """Answers when the test says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Deferred[Keypair | None]]] = []
        self.written: list[Mapping[str, int]] = []
        self.down = False

    async def by_access_key(self, access_key: str) -> Keypair | None:
        answer: Deferred[Keypair | None] = Deferred()
        self.asked.append((access_key, answer))
        return await answer

    async def add(self, keypair: Keypair) -> bool:
        raise AssertionError(keypair)

    async def count(self) -> int:
        raise AssertionError

    async def note_use(self, queries: Mapping[str, int], at: float) -> None:
        if self.down:
            raise Unavailable("PostgreSQL is away")
        self.written.append(queries)


class CachedKeypairsTests(UnitTestCase):
    """Authentication's view of the keypairs."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.store = ScriptedStore()
        self.keypairs = CachedKeypairs(self.clock, self.store)

    def find(self) -> Deferred[Keypair | None]:
        return Deferred.fromCoroutine(self.keypairs.find(KEYPAIR.access_key))

    def test_concurrent_requests_share_one_query(self) -> None:
        """Ten requests at once ask the store once and all get the answer."""
        finding = [self.find() for _ in range(10)]
        self.assertEqual(len(self.store.asked), 1)
        self.store.asked[0][1].callback(KEYPAIR)
        self.assertEqual([self.successResultOf(one) for one in finding], [KEYPAIR] * 10)
        self.assertEqual(self.successResultOf(self.find()), KEYPAIR)

    def test_a_disabled_key_is_seen_within_a_second(self) -> None:
        """What is remembered is believed for less than a second, counted from when it was asked for."""
        first = self.find()
        self.clock.advance(0.5)
        self.store.asked[0][1].callback(KEYPAIR)
        self.successResultOf(first)
        self.clock.advance(MAX_AGE - 0.5)
        second = self.find()
        self.store.asked[1][1].callback(evolve(KEYPAIR, is_active=False))
        keypair = self.successResultOf(second)
        assert keypair is not None
        self.assertFalse(keypair.is_active)
        self.assertLess(MAX_AGE, 1.0)

    def test_absence_is_remembered_too(self) -> None:
        """A flood of requests with an unknown key is not a flood of queries."""
        first = self.find()
        self.store.asked[0][1].callback(None)
        self.assertIsNone(self.successResultOf(first))
        self.assertIsNone(self.successResultOf(self.find()))
        self.assertEqual(len(self.store.asked), 1)

    def test_an_error_reaches_everybody_and_is_not_remembered(self) -> None:
        """When the store is away all waiting requests learn it, and the next asks again."""
        finding = [self.find() for _ in range(3)]
        self.store.asked[0][1].errback(Unavailable("away"))
        for one in finding:
            self.failureResultOf(one, Unavailable)
        self.assertNoResult(self.find())
        self.assertEqual(len(self.store.asked), 2)

    def test_use_is_written_in_batches_and_never_lost(self) -> None:
        """What could not be written is added to the next batch."""
        for _ in range(3):
            self.keypairs.used("A")
        self.store.down = True
        self.successResultOf(Deferred.fromCoroutine(self.keypairs.write_use()))
        self.keypairs.used("A")
        self.keypairs.used("B")
        self.store.down = False
        self.successResultOf(Deferred.fromCoroutine(self.keypairs.write_use()))
        self.successResultOf(Deferred.fromCoroutine(self.keypairs.write_use()))
        self.assertEqual(self.store.written, [{"A": 4, "B": 1}])
