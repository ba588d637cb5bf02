"""Whom a manager trusts, and how soon it learns that this changed."""

from __future__ import annotations

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from sorna.cluster.enrolment import KEYS_ARE_FRESH, Trust, TrustedDirectory
from sorna.curve_keys import generate
from sorna.errors import Unavailable
from sorna.live.memory import MemoryAgentDirectory, MemoryHeartbeatStore, MemoryRedis
from sorna.model.agent import AgentAddress, Heartbeat
from sorna.store.memory_agents import MemoryAgents
from sorna.testing.unit import UnitTestCase

KEY, OTHER = generate().public, generate().public
ADDRESS = AgentAddress("i-1", "tcp://192.0.2.1:6011", KEY)


class CountingAgents(MemoryAgents):
    """Counts readings, and may be unreachable."""

    readings = 0
    away = False

    async def public_keys(self) -> dict[str, str]:
        self.readings += 1
        if self.away:
            raise Unavailable("no database")
        return dict(await super().public_keys())


class TrustTests(UnitTestCase):
    """Claims against what was enrolled."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.store = CountingAgents()
        self.distrusted: list[str] = []
        self.trust = Trust(self.clock, self.store, self.distrusted.append)

    def permits(self, address: AgentAddress = ADDRESS) -> bool:
        return self.successResultOf(Deferred.fromCoroutine(self.trust.permits(address)))

    def enrol(self, key: str = KEY, agent_id: str = "i-1") -> None:
        self.successResultOf(Deferred.fromCoroutine(self.store.enrol(agent_id, key, 0)))

    def revoke(self) -> None:
        self.assertTrue(self.successResultOf(Deferred.fromCoroutine(self.store.revoke("i-1", 0))))

    def test_the_key_decides(self) -> None:
        """An agent is who holds the enrolled key, wherever it is; no other key, and no other name."""
        self.enrol()
        self.assertTrue(self.permits())
        self.assertTrue(self.permits(evolve(ADDRESS, endpoint="tcp://192.0.2.2:1")))
        self.assertFalse(self.permits(evolve(ADDRESS, public_key=OTHER)))
        self.assertFalse(self.permits(evolve(ADDRESS, agent_id="i-2")))
        self.assertFalse(self.permits(evolve(ADDRESS, public_key="short")))

    def test_a_new_agent_is_not_kept_waiting(self) -> None:
        """What is not trusted yet is looked up at once, one time; what is trusted costs no look."""
        self.assertFalse(self.permits())
        self.enrol(agent_id="i-2")
        self.assertTrue(self.permits(evolve(ADDRESS, agent_id="i-2")))
        readings = self.store.readings
        for _ in range(10):
            self.permits()
            self.permits(evolve(ADDRESS, agent_id="i-2"))
        self.assertEqual(self.store.readings, readings)

    def test_revoked_by_announcement(self) -> None:
        """After an announcement a revoked agent is distrusted at once, and who talks to it is told."""
        self.enrol()
        self.assertTrue(self.permits())
        self.revoke()
        self.trust.changed("i-1")
        self.assertEqual(self.distrusted, ["i-1"])
        self.assertFalse(self.permits())

    def test_revoked_without_an_announcement(self) -> None:
        """The regular look finds it out as well, and so does whoever asks when there is none."""
        self.enrol()
        self.assertTrue(self.permits())
        self.revoke()
        self.successResultOf(Deferred.fromCoroutine(self.trust.look()))
        self.assertEqual(self.distrusted, ["i-1"])
        self.enrol()
        self.trust.changed("i-1")
        self.revoke()
        self.clock.advance(KEYS_ARE_FRESH + 0.1)
        self.assertFalse(self.permits())
        self.assertEqual(self.distrusted, ["i-1", "i-1"])

    def test_another_key(self) -> None:
        """An agent that was enrolled with another key is distrusted with the old one."""
        self.enrol()
        self.assertTrue(self.permits())
        self.enrol(OTHER)
        self.trust.changed("i-1")
        self.assertEqual(self.distrusted, ["i-1"])
        self.assertTrue(self.permits(evolve(ADDRESS, public_key=OTHER)))

    def test_no_database(self) -> None:
        """While the database is away a look fails quietly, distrusts nobody, and whoever asks hears why it cannot be told."""
        self.enrol()
        self.assertTrue(self.permits())
        self.store.away = True
        self.trust.changed()
        self.assertEqual(self.distrusted, [])
        self.failureResultOf(Deferred.fromCoroutine(self.trust.permits(ADDRESS)), Unavailable)
        self.store.away = False
        self.assertTrue(self.permits())

    def test_the_directory_shows_trusted_agents_only(self) -> None:
        """An agent that claims another's name with a key of its own is not there, nor are its kernels."""
        redis = MemoryRedis(self.clock)
        directory = TrustedDirectory(self.trust, MemoryAgentDirectory(redis))
        beat = Heartbeat("i-1", "first", "tcp://192.0.2.1:1", OTHER, frozenset({"c"}), frozenset({"k"}), 5, "none", {})
        self.successResultOf(Deferred.fromCoroutine(MemoryHeartbeatStore(redis).beat(beat, 3.0)))
        self.enrol()
        for trusted, key in ((False, KEY), (True, OTHER)):
            self.enrol(key)
            self.trust.changed("i-1")
            alive = self.successResultOf(Deferred.fromCoroutine(directory.alive()))
            found = self.successResultOf(Deferred.fromCoroutine(directory.find("i-1")))
            kernels = self.successResultOf(Deferred.fromCoroutine(directory.kernels_of("i-1")))
            self.assertEqual((len(alive), found is not None, len(kernels)), (trusted, trusted, trusted))
