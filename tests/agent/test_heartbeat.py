"""Heartbeats: when they beat, what they say, and that no trouble of the store stops them."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from sorna.agent.heartbeat import DEBOUNCE, AgentIdentity, Heart
from sorna.model.agent import Heartbeat, Room
from sorna.model.kernel import short_id
from sorna.model.limits import Limits
from sorna.model.policy import Slots, slots_of
from tests.agent.fakes import KernelTestCase, query


class Store:
    """Remembers heartbeats, fails or hangs on request."""

    def __init__(self) -> None:
        self.beats: list[Heartbeat] = []
        self.left: list[str] = []
        self.error: Exception | None = None
        self.hangs = False

    async def beat(self, heartbeat: Heartbeat, interval: float) -> None:
        if self.hangs:
            await Deferred()
        if self.error is not None:
            raise self.error
        self.beats.append(heartbeat)

    async def leave(self, agent_id: str) -> None:
        if self.hangs:
            await Deferred()
        if self.error is not None:
            raise self.error
        self.left.append(agent_id)


class HeartTests(KernelTestCase):
    max_kernels = 20

    def setUp(self) -> None:
        super().setUp()
        self.store = Store()
        identity = AgentIdentity("i-1", "inc", "tcp://127.0.0.1:6011", "key", "fake")
        self.heart = Heart(self.clock, self.store, self.kernels, identity, interval=3.0)
        self.addCleanup(self.stop)

    def stop(self) -> None:
        self.store.hangs, self.store.error = False, None
        self.successResultOf(Deferred.fromCoroutine(self.heart.stop()))

    def test_beats_at_once_and_again(self) -> None:
        """The first beat comes at the start, the others every interval."""
        self.heart.start()
        self.assertEqual(len(self.store.beats), 1)
        for expected in (2, 3):
            self.advance(3.0)
            self.assertEqual(len(self.store.beats), expected)
        beat = self.store.beats[0]
        self.assertEqual((beat.agent_id, beat.incarnation, beat.endpoint), ("i-1", "inc", "tcp://127.0.0.1:6011"))
        self.assertEqual((beat.public_key, beat.isolation, beat.max_kernels), ("key", "fake", 20))
        self.assertEqual((beat.runtimes, beat.kernels), (frozenset({"python3", "c", "java"}), frozenset()))

    def test_beats_soon_after_a_change(self) -> None:
        """Kernels that come together are told of together, soon."""
        self.heart.start()
        for _ in range(3):
            self.create()
        self.assertEqual(len(self.store.beats), 1)
        self.advance(DEBOUNCE)
        self.assertEqual(len(self.store.beats), 2)
        self.assertEqual(len(self.store.beats[1].kernels), 3)
        self.advance(2.9)
        self.assertEqual(len(self.store.beats), 2)

    def test_figures_at_their_own_pace(self) -> None:
        """Beats that tell of changes leave out figures that were told a moment ago; a kernel nobody uses is told of rarely."""
        self.heart.start()
        self.create()
        first = short_id(self.kernel_id)
        self.advance(DEBOUNCE)
        self.create()
        (second,) = {short_id(one) for one in self.kernels.live()} - {first}
        self.advance(DEBOUNCE)
        self.assertEqual([sorted(beat.stats) for beat in self.store.beats], [[], [first], [second]])
        self.assertEqual(self.store.beats[-1].kernels, {first, second})
        for _ in range(30):
            self.advance(3.0)
        told = [first in beat.stats for beat in self.store.beats]
        self.assertGreaterEqual(sum(told[3:6]), 1)
        self.assertEqual(sum(told[-10:]), 2)

    def test_room_and_what_is_taken(self) -> None:
        """A beat tells what may be promised, what is, and whether new kernels are refused."""
        self.kernels.room = Room(memory=1 << 40, gpus=0)
        self.create()
        self.heart.start()
        beat = self.store.beats[-1]
        self.assertEqual((beat.room, beat.taken), (Room(memory=1 << 40, gpus=0), slots_of("python3", Limits())))
        self.assertEqual((beat.refuses_kernels, beat.labels), (False, {}))
        self.successResultOf(self.start(self.kernels.destroy_kernel(self.kernel_id, "user-requested")))
        self.successResultOf(self.start(self.kernels.drain(draining=True)))
        self.advance(DEBOUNCE)
        beat = self.store.beats[-1]
        self.assertEqual((beat.taken, beat.refuses_kernels), (Slots(), True))

    def test_statistics(self) -> None:
        """Figures have the historic names; what the host cannot tell is left out."""
        init = self.create(execution_timeout=10.0, idle_timeout=1800.0)
        self.execute(query())
        init.finish()
        self.flow()
        self.advance(4)
        self.heart.start()
        self.assertEqual(
            self.store.beats[0].stats,
            {
                short_id(self.kernel_id): {
                    "cpu_used": "12.500000",
                    "mem_max_bytes": "4096",
                    "exec_timeout": "10",
                    "idle_timeout": "1800",
                    "mem_limit": "524288",
                    "num_queries": "1",
                    "idle": "4000.00",
                }
            },
        )

    def test_many_kernels_are_read_in_turns(self) -> None:
        """The counters of many kernels are read over several turns of the reactor."""
        for _ in range(20):
            self.create()
        self.heart.start()
        self.assertEqual(self.store.beats, [])
        self.advance(0)
        self.advance(0)
        self.assertEqual(len(self.store.beats[0].stats), 20)

    def test_outage_is_logged_once(self) -> None:
        """A store that fails is tried again at every interval, and one line says so."""
        self.store.error = OSError("down")
        self.heart.start()
        for _ in range(5):
            self.advance(3.0)
        self.store.error = None
        self.advance(3.0)
        self.assertEqual(len(self.store.beats), 1)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_store_that_hangs(self) -> None:
        """A beat without an answer is given up after an interval; the kernels are untouched."""
        self.create()
        self.store.hangs = True
        self.heart.start()
        self.advance(3.0)
        self.store.hangs = False
        self.advance(3.0)
        self.assertEqual(len(self.store.beats), 1)
        self.assertEqual(self.news.ended, [])

    def test_change_during_a_beat(self) -> None:
        """A change during a slow beat is told right after it."""
        self.store.hangs = True
        self.heart.start()
        self.create()
        self.store.hangs = False
        self.advance(3.0)
        self.advance(DEBOUNCE)
        self.assertEqual(len(self.store.beats), 1)

    def test_says_good_bye(self) -> None:
        """An orderly stop removes the agent, also when the store then fails or hangs."""
        self.heart.start()
        self.successResultOf(Deferred.fromCoroutine(self.heart.stop()))
        self.assertEqual(self.store.left, ["i-1"])
        self.advance(10)
        self.assertEqual(len(self.store.beats), 1)
        self.store.error = OSError("down")
        self.successResultOf(Deferred.fromCoroutine(self.heart.stop()))
        self.store.hangs = True
        stopping = Deferred.fromCoroutine(self.heart.stop())
        self.assertNoResult(stopping)
        self.advance(3.0)
        self.successResultOf(stopping)
