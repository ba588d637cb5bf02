"""Where kernels are: remembered for their owners alone, and never past what their agents know."""

from __future__ import annotations

from sorna.errors import KernelNotFound
from sorna.manager.places import COUNT_DELAY
from sorna.model.kernel import short_id
from sorna.model.run import RunMode, RunRequest
from tests.manager.world import OWNER, STRANGER, ManagerTestCase

QUERY = RunRequest(RunMode.QUERY, "1+1")


class PlacesTests(ManagerTestCase):
    """A registry over memory, whose Redis can be taken away."""

    def queries(self, token: str = "token-1") -> int:
        place = self.done(self.live.use(OWNER, token, count=False))
        assert place is not None
        return place.num_queries

    def test_remembered(self) -> None:
        """A kernel that was found once is used without Redis, by each reference that found it."""
        kernel_id = self.make()
        for reference in ("token-1", short_id(kernel_id), str(kernel_id)):
            self.done(self.registry.execute(OWNER, reference, QUERY))
        self.redis.available = False
        for reference in ("token-1", short_id(kernel_id), str(kernel_id)):
            self.done(self.registry.execute(OWNER, reference, QUERY))

    def test_is_there(self) -> None:
        """That a kernel is there is believed where it was found before, without Redis and without a query being counted."""
        self.make()
        self.done(self.registry.check(OWNER, "token-1"))
        self.assertEqual(self.queries(), 0)
        self.redis.available = False
        self.done(self.registry.check(OWNER, "token-1"))
        self.redis.available = True
        self.done(self.registry.destroy(OWNER, "token-1"))
        self.fails(self.registry.check(OWNER, "token-1"), KernelNotFound)

    def test_never_anothers(self) -> None:
        """What was remembered for its owner is not found by anybody else."""
        kernel_id = self.make()
        self.done(self.registry.execute(OWNER, "token-1", QUERY))
        for reference in ("token-1", short_id(kernel_id), str(kernel_id)):
            self.fails(self.registry.execute(STRANGER, reference, QUERY), KernelNotFound)

    def test_queries_are_counted_later(self) -> None:
        """Queries of a remembered kernel are written together a moment later, and before anybody is told their number."""
        self.make()
        self.done(self.registry.execute(OWNER, "token-1", QUERY))
        for _ in range(3):
            self.done(self.registry.execute(OWNER, "token-1", QUERY))
        self.assertEqual(self.queries(), 1)
        self.clock.advance(COUNT_DELAY)
        self.assertEqual(self.queries(), 4)
        self.done(self.registry.execute(OWNER, "token-1", QUERY))
        self.assertEqual(self.done(self.registry.info(OWNER, "token-1")).num_queries, 6)
        self.clock.advance(COUNT_DELAY)
        self.assertEqual(self.queries(), 6)

    def test_counts_are_given_up(self) -> None:
        """An outage of Redis costs queries their count, and nobody waits for it."""
        self.make()
        for _ in range(2):
            self.done(self.registry.execute(OWNER, "token-1", QUERY))
        self.redis.available = False
        self.clock.advance(COUNT_DELAY)
        self.redis.available = True
        self.assertEqual(self.queries(), 1)

    def test_forgotten_with_its_end(self) -> None:
        """An end that is announced, by whichever manager, takes the kernel out of memory."""
        kernel_id = self.make()
        self.done(self.registry.execute(OWNER, "token-1", QUERY))
        self.done(self.registry.destroy(OWNER, "token-1"))
        self.assertFalse(self.places.forget(kernel_id))

    def test_an_end_that_was_not_announced(self) -> None:
        """A token that names the owner's next kernel finds it, although this manager was told of nothing."""
        self.make()
        self.done(self.registry.execute(OWNER, "token-1", QUERY))
        receivers, self.redis.receivers = self.redis.receivers, {}
        self.done(self.registry.destroy(OWNER, "token-1"))
        following = self.make()
        self.redis.receivers = receivers
        self.done(self.registry.execute(OWNER, "token-1", QUERY))
        self.assertTrue(self.places.forget(following))

    def test_vanished_without_a_successor(self) -> None:
        """A remembered kernel that its agent does not hold is reported with the reason, and its row ends."""
        kernel_id = self.make()
        self.done(self.registry.execute(OWNER, "token-1", QUERY))
        self.agent.kernels.clear()
        error = self.fails(self.registry.execute(OWNER, "token-1", QUERY), KernelNotFound)
        self.assertEqual(error.detail, "terminated: lost")
        self.assertFalse(self.places.forget(kernel_id))

    def test_bounded(self) -> None:
        """The references used longest ago are forgotten first, and with its last one the kernel is."""
        self.places.most = 2
        first, second = self.make("token-1"), self.make("token-2")
        for reference in ("token-1", "token-2", short_id(second)):
            self.done(self.registry.execute(OWNER, reference, QUERY))
        self.assertFalse(self.places.forget(first))
        self.assertTrue(self.places.forget(second))

    def test_missed_announcements(self) -> None:
        """After a gap in the announcements everything is looked up again."""
        kernel_id = self.make()
        self.done(self.registry.execute(OWNER, "token-1", QUERY))
        self.places.forget_all()
        self.assertFalse(self.places.forget(kernel_id))
        self.done(self.registry.execute(OWNER, "token-1", QUERY))
