"""What one of several processes does for all."""

from __future__ import annotations

from functools import partial

from sorna.errors import Unavailable
from sorna.live.memory import MemoryTurn
from sorna.manager.reaper import MISSING_FOR, SEEN_WITHIN
from sorna.manager.turns import Alone, SharedMending, in_turn
from sorna.model.kernel import KernelSpec, new_kernel_id, short_id
from sorna.model.limits import Limits
from tests.manager.world import OWNER, ManagerTestCase


class InTurnTests(ManagerTestCase):
    """Work that is done by whoever has the turn."""

    def setUp(self) -> None:
        super().setUp()
        self.did: list[str] = []
        self.turns: dict[str, MemoryTurn] = {}
        self.failing: set[str] = set()

    def tick(self, *holders: str) -> None:
        """Let each of these processes come to the work once."""
        for holder in holders:
            turn = self.turns.setdefault(holder, MemoryTurn(self.redis, "g", "w", holder, 1.5))
            trying = self.start(in_turn(turn, partial(self.work, holder))())
            trying.addErrback(lambda failure: failure.trap(Unavailable))
            self.successResultOf(trying)

    async def work(self, who: str) -> None:
        """Note who has worked."""
        if who in self.failing:
            raise Unavailable("not now")
        self.did.append(who)

    def test_one_works_and_the_next_takes_over(self) -> None:
        """The one that is there works, and when it is gone, the next one does within the lease."""
        for _ in range(4):
            self.tick("1", "2", "3")
            self.clock.advance(0.5)
        self.assertEqual(self.did, ["1"] * 4)
        for _ in range(4):
            self.tick("2", "3")
            self.clock.advance(0.5)
        self.assertEqual(set(self.did[4:]), {"2"})
        self.assertGreaterEqual(len(self.did), 5)

    def test_one_that_fails_is_relieved(self) -> None:
        """The others work at once, and while all fail each one is tried again."""
        self.failing = {"1"}
        self.tick("1", "2")
        self.assertEqual(self.did, ["2"])
        self.failing = {"1", "2"}
        for _ in range(3):
            self.clock.advance(0.5)
            self.tick("1", "2")
        self.failing = set()
        for _ in range(2):
            self.clock.advance(0.5)
            self.tick("1", "2")
        self.assertGreaterEqual(len(self.did), 2)

    def test_alone(self) -> None:
        """Who is alone works, whatever happens to Redis."""
        self.redis.available = False
        self.assertTrue(self.done(in_turn(Alone(), partial(self.work, "1"))()))
        self.done(Alone().pass_on())
        self.assertTrue(self.done(Alone().mine()))


class SharedMendingTests(ManagerTestCase):
    """What the reaper does in turn, and what every process does."""

    def setUp(self) -> None:
        super().setUp()
        self.other = MemoryTurn(self.redis, "g", "mending", "other", 1.5)
        turn = MemoryTurn(self.redis, "g", "mending", "this", 1.5)
        self.mending = SharedMending(turn, self.reaper, self.ending, self.queue)

    def status(self) -> str:
        """Tell how the only kernel is."""
        kernel = self.done(self.kernels.last_by_token(OWNER, "token-1"))
        assert kernel is not None
        return f"{kernel.status} {kernel.status_reason}".strip()

    def pass_time(self, seconds: float, *kernels: str, others: bool) -> None:
        """Let time pass with heartbeats, while this process mends or another one has the turn."""
        for _ in range(round(seconds * 2)):
            self.clock.advance(0.5)
            self.beat(*kernels)
            if others:
                self.assertTrue(self.done(self.other.mine()))
            self.done(self.mending.mend())

    def test_in_turn(self) -> None:
        """A lost kernel is ended by the process that has the turn, and by this one when that is gone."""
        self.make()
        self.pass_time(SEEN_WITHIN + MISSING_FOR + 2, others=True)
        self.assertEqual(self.status(), "RUNNING")
        self.pass_time(1.5 + MISSING_FOR + 1, others=False)
        self.assertEqual(self.status(), "TERMINATED lost")

    def test_suspicions_do_not_outlive_the_turn(self) -> None:
        """What looked lost once is not believed at the next look if others have looked in between."""
        kernel = short_id(self.make())
        self.pass_time(SEEN_WITHIN + 1, kernel, others=False)
        self.pass_time(0.5, others=False)  # missing for a moment
        self.clock.advance(1.5)
        self.pass_time(5, kernel, others=True)
        self.clock.advance(1.5)
        self.pass_time(0.5, others=False)  # and for another moment, much later
        self.assertEqual(self.status(), "RUNNING")

    def test_who_waits_is_seen_by_all(self) -> None:
        """A process without the turn knows of the line, which bounds its own requests, and gives up who waits in vain."""
        self.clock.advance(60)  # no agent is left
        spec = KernelSpec(OWNER, "token-1", "python3", "python", Limits())
        now = self.clock.seconds()
        kernel, _made = self.done(self.kernels.reserve(new_kernel_id(), spec, now))
        self.done(self.queue.store.put(kernel.id, spec, now + 10, now, self.queue.bounds))
        self.assertFalse(self.queue._waited)
        self.mend_without_the_turn()
        self.assertEqual((self.queue._waited, self.status()), (True, "PENDING queued"))
        self.clock.advance(11)
        self.mend_without_the_turn()
        self.assertEqual(self.status(), "ERROR queue-timeout")
        self.mend_without_the_turn()
        self.assertFalse(self.queue._waited)

    def mend_without_the_turn(self) -> None:
        """Mend once while another process has the turn."""
        self.assertTrue(self.done(self.other.mine()))
        self.done(self.mending.mend())
