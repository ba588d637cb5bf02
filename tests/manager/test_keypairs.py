"""Keypairs from memory, never older than a second, and their use written in batches."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from sorna.errors import Unavailable
from sorna.live.memory import MemoryAnnouncements, MemoryRedis
from sorna.manager.keypairs import KEYPAIR_TOPIC, MAX_AGE, CachedKeypairs
from sorna.model.keypair import Keypair
from sorna.model.policy import Slots
from sorna.testing.unit import UnitTestCase

KEYPAIR = Keypair("AKIA" + "A" * 16, "s" * 40)


class ScriptedStore:
    """Answers when the test says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Deferred[Keypair | None]]] = []
        self.written: list[Mapping[str, int]] = []
        self.down = False
        self.there: dict[str, Keypair] = {}
        self.looks: list[Sequence[str]] = []

    async def by_access_key(self, access_key: str) -> Keypair | None:
        answer: Deferred[Keypair | None] = Deferred()
        self.asked.append((access_key, answer))
        return await answer

    async def by_access_keys(self, access_keys: Collection[str]) -> Sequence[Keypair]:
        if self.down:
            raise Unavailable("PostgreSQL is away")
        self.looks.append(list(access_keys))
        return [self.there[access_key] for access_key in access_keys if access_key in self.there]

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

    def test_an_announced_change_is_seen_at_once(self) -> None:
        """What is announced of a keypair is forgotten, whoever changed it, and others stay remembered."""
        announcements = MemoryAnnouncements(MemoryRedis(self.clock))
        self.keypairs.listen(announcements)
        first = self.find()
        self.store.asked[0][1].callback(KEYPAIR)
        self.successResultOf(first)
        self.successResultOf(Deferred.fromCoroutine(announcements.publish(KEYPAIR_TOPIC, "AKIAOTHER")))
        self.successResultOf(self.find())
        for number, text in enumerate((KEYPAIR.access_key, ""), 1):
            self.successResultOf(Deferred.fromCoroutine(announcements.publish(KEYPAIR_TOPIC, text)))
            again = self.find()
            self.store.asked[number][1].callback(evolve(KEYPAIR, rate_limit=number))
            self.assertEqual(self.successResultOf(again), evolve(KEYPAIR, rate_limit=number))

    def test_an_answer_from_before_a_change_is_not_remembered(self) -> None:
        """A change that is announced while the store is asked makes the next request ask again."""
        for text in (KEYPAIR.access_key, ""):
            before = self.find()
            self.keypairs.changed(text)
            self.store.asked[-1][1].callback(KEYPAIR)
            self.assertEqual(self.successResultOf(before), KEYPAIR)
            after = self.find()
            self.store.asked[-1][1].callback(evolve(KEYPAIR, is_active=False))
            self.assertFalse(getattr(self.successResultOf(after), "is_active", None))
            self.clock.advance(MAX_AGE)


class WatchTests(UnitTestCase):
    """Streams that are open in a keypair's name."""

    def setUp(self) -> None:
        self.store = ScriptedStore()
        self.store.there[KEYPAIR.access_key] = KEYPAIR
        self.keypairs = CachedKeypairs(Clock(), self.store)
        self.told: list[Keypair | None] = []

    def look(self) -> None:
        self.successResultOf(Deferred.fromCoroutine(self.keypairs.check_watched()))

    def test_told_of_the_beginning_and_of_changes(self) -> None:
        """A watcher learns what the keypair is now, and every change, but not that it was used."""
        end = self.keypairs.watch(KEYPAIR.access_key, self.told.append)
        self.look()
        self.store.there[KEYPAIR.access_key] = evolve(KEYPAIR, num_queries=5, last_used=1.0, taken=Slots(1))
        self.look()
        self.assertEqual(self.told, [KEYPAIR])
        inactive = self.store.there[KEYPAIR.access_key] = evolve(KEYPAIR, is_active=False)
        self.keypairs.changed(KEYPAIR.access_key)
        self.assertEqual(self.told, [KEYPAIR, inactive])
        del self.store.there[KEYPAIR.access_key]
        self.keypairs.changed()
        self.assertEqual(self.told, [KEYPAIR, inactive, None])
        end()
        end()
        self.store.there[KEYPAIR.access_key] = KEYPAIR
        self.look()
        self.assertEqual(len(self.told), 3)

    def test_one_query_for_all(self) -> None:
        """However many streams there are, one look is one query, and without any there is none."""
        self.look()
        for _ in range(3):
            self.keypairs.watch(KEYPAIR.access_key, self.told.append)
        self.keypairs.watch("AKIAGONE", self.told.append)
        self.look()
        self.keypairs.changed("AKIAUNWATCHED")
        self.assertEqual(self.store.looks, [[KEYPAIR.access_key, "AKIAGONE"]])
        self.assertEqual(self.told, [KEYPAIR, KEYPAIR, KEYPAIR, None])

    def test_a_late_watcher_is_told_too(self) -> None:
        """A change between authentication and the beginning of the watch is not missed."""
        self.keypairs.watch(KEYPAIR.access_key, self.told.append)
        self.look()
        late: list[Keypair | None] = []
        self.keypairs.watch(KEYPAIR.access_key, late.append)
        self.look()
        self.assertEqual(late, [KEYPAIR])

    def test_trouble_harms_nobody(self) -> None:
        """A store that is away is asked again; a watcher that fails does not keep others from being told."""

        def fail(_keypair: Keypair | None) -> None:
            raise ValueError

        self.keypairs.watch(KEYPAIR.access_key, fail)
        self.keypairs.watch(KEYPAIR.access_key, self.told.append)
        self.store.down = True
        self.look()
        self.assertEqual(self.told, [])
        self.store.down = False
        self.look()
        self.assertEqual(self.told, [KEYPAIR])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
