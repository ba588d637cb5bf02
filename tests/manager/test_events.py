"""Tests of events of kernels: their announcements, and who hears them."""

from __future__ import annotations

import uuid
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sorna.errors import Unavailable
from sorna.live.memory import MemoryAnnouncements
from sorna.manager.events import (
    CLOCKS_DIFFER,
    KERNEL_TOPIC,
    REMEMBERED,
    KernelEvents,
    announcement_of,
    read_announcement,
)
from sorna.manager.interfaces import KernelEnded
from sorna.manager.requests import KernelEvent
from sorna.model.kernel import Kernel, KernelStatus, Usage, new_kernel_id, short_id
from tests.manager.world import OWNER, STRANGER, ManagerTestCase


class EventTests(ManagerTestCase):
    def test_a_kernels_life(self) -> None:
        """Its start, its restart and its end are told to its owner, with the reasons."""
        heard: list[KernelEvent] = []
        self.done(self.registry.watch(OWNER, None, heard.append))
        kernel_id = self.make()
        self.make(owner=STRANGER)
        self.done(self.registry.restart(OWNER, short_id(kernel_id)))
        self.done(self.registry.destroy(OWNER, short_id(kernel_id)))
        self.assertEqual(
            [(event.kernel_id, event.status, event.reason) for event in heard],
            [
                (kernel_id, KernelStatus.RUNNING, ""),
                (kernel_id, KernelStatus.RUNNING, "restarted"),
                (kernel_id, KernelStatus.TERMINATED, "user-requested"),
            ],
        )

    def test_foreign_announcements(self) -> None:
        """What another version announces is no event, and disturbs nobody."""
        heard: list[KernelEvent] = []
        self.done(self.registry.watch(OWNER, None, heard.append))
        for text in (
            "",
            "x",
            f"short RUNNING {OWNER} token 1.0 reason",
            "A" * 22 + f" FLYING {OWNER} token 1.0 ",
            "A" * 22 + f" RUNNING {OWNER} token soon ",
        ):
            self.done(self.announcements.publish(KERNEL_TOPIC, text))
        self.assertEqual(heard, [])

    @given(st.floats(0, 4e9), st.text(max_size=40), st.sampled_from(KernelStatus))
    def test_what_is_written_is_read(self, at: float, reason: str, status: KernelStatus) -> None:
        """An announcement says everything of its event, the time to the last bit."""
        event = KernelEvent(new_kernel_id(), status, OWNER, "token-1", reason, at)
        self.assertEqual(read_announcement(announcement_of(event)), event)

    @given(st.text(max_size=40))
    def test_any_text(self, text: str) -> None:
        """No text makes reading fail."""
        read_announcement(text)


class RepairTests(ManagerTestCase):
    """Two managers on one database and one Redis: what either missed is told once, and nothing twice."""

    def setUp(self) -> None:
        super().setUp()
        self.other = MemoryAnnouncements(
            self.redis,
            on_resync=lambda: self.other_events.heard_again(),  # noqa: PLW0108 - made below
            on_loss=lambda: self.other_events.lost(),  # noqa: PLW0108 - likewise
        )
        self.other_events = KernelEvents(self.clock, self.kernels, self.other)
        self.other_events.listen()
        self.other.hear_again()
        self.heard: list[tuple[str, str]] = []
        self.elsewhere: list[tuple[str, str]] = []
        self.later(100.0)

    def watch(self, kernel_id: uuid.UUID | None = None) -> None:
        """Watch through both managers."""
        for events, heard in ((self.events, self.heard), (self.other_events, self.elsewhere)):

            def note(event: KernelEvent, heard: list[tuple[str, str]] = heard) -> None:
                heard.append((event.session_token, event.reason or event.status.value))

            self.done(events.watch(OWNER, kernel_id, note))

    def later(self, seconds: float) -> None:
        """Let time pass; the agent lives on."""
        self.clock.advance(seconds)
        self.beat()

    def end(self, kernel_id: uuid.UUID, reason: str) -> None:
        self.done(self.ending.finish(kernel_id, reason, Usage()))

    def test_nothing_is_told_twice(self) -> None:
        """What was heard is not told again after a gap, however often there is one."""
        self.watch()
        self.end(self.make(), "one")
        expected = [("token-1", "RUNNING"), ("token-1", "one")]
        for _ in range(3):
            self.other.lose_messages()
            self.announcements.lose_messages()
            self.later(1.0)
            self.done(self.other_events.repair())
        self.assertEqual((self.heard, self.elsewhere), (expected, expected))

    def test_a_deaf_manager(self) -> None:
        """What happened while this side did not listen is told when it does again, in order; others' is not."""
        first = self.make()
        self.watch()
        self.other.go_deaf()
        self.later(50.0)
        self.end(first, "while deaf")
        self.later(50.0)
        self.done(self.registry.create(self.wish("token-2", owner=OWNER)))
        self.make("token-3", owner=STRANGER)
        self.assertEqual(self.elsewhere, [])
        self.other.hear_again()
        expected = [("token-1", "while deaf"), ("token-2", "RUNNING")]
        self.assertEqual((self.elsewhere, self.heard), (expected, expected))

    def test_one_kernel(self) -> None:
        """Whoever watches one kernel is told of no other."""
        first, second = self.make(), self.make("token-2")
        self.watch(first)
        self.other.go_deaf()
        self.end(second, "x")
        self.end(first, "y")
        self.other.hear_again()
        self.assertEqual(self.elsewhere, [("token-1", "y")])

    def test_a_loss_that_was_noticed_late(self) -> None:
        """What was missed shortly before the loss was noticed is told too; what is older was heard."""
        old, young = self.make(), self.make("token-2")
        self.watch()
        self.other._deaf = True
        self.end(old, "long ago")
        self.later(100.0)
        self.end(young, "just now")
        self.later(5.0)
        self.other.lose_messages()
        self.assertEqual(self.elsewhere, [("token-2", "just now")])

    def test_an_announcement_that_failed(self) -> None:
        """What Redis did not take is heard here at once, and by other managers, who had no gap, when it takes it."""
        kernel_id = self.make()
        self.watch()
        self.redis.available = False
        self.end(kernel_id, "meanwhile")
        self.assertEqual((self.heard, self.elsewhere), ([("token-1", "meanwhile")], []))
        self.fails(self.events.repair(), Unavailable)
        self.redis.available = True
        for _ in range(2):
            self.done(self.events.repair())
        self.assertEqual((self.heard, self.elsewhere), ([("token-1", "meanwhile")],) * 2)

    def test_an_end_without_redis(self) -> None:
        """A kernel's end is written with its reason, its usage and its quota although Redis is away, and forgotten later."""
        kernel_id = self.make()
        reference = short_id(kernel_id)
        self.redis.available = False
        self.done(self.ending.on_kernel_ended(KernelEnded("i-1", kernel_id, "idle-timeout", Usage(cpu_used=7.0))))
        row = self.done(self.kernels.by_id(kernel_id))
        assert row is not None
        self.assertEqual((row.status_reason, row.usage.cpu_used, self.used()), ("idle-timeout", 7.0, 0))
        self.fails(self.ending.forget_rest(), Unavailable)
        self.redis.available = True
        self.assertIsNotNone(self.done(self.live.use(OWNER, reference)))
        self.done(self.reaper.mend())
        self.assertIsNone(self.done(self.live.use(OWNER, reference)))

    def test_late_news(self) -> None:
        """Behind a kernel's end nothing is told of it."""
        kernel_id = self.make()
        running = self.done(self.kernels.by_id(kernel_id))
        assert running is not None
        self.watch()
        self.end(kernel_id, "over")
        self.done(self.other_events.announce(running))
        self.assertEqual(self.heard, [("token-1", "over")])

    def test_a_watcher_that_comes_late(self) -> None:
        """What had happened well before somebody began to watch is not told; a kernel that has ended is, to who watches it."""
        first, second = self.make(), self.make("token-2")
        self.other.go_deaf()
        self.end(first, "before")
        self.later(2 * CLOCKS_DIFFER)
        self.watch()
        self.end(second, "after")
        self.other.hear_again()
        self.assertEqual(self.elsewhere, [("token-2", "after")])
        self.heard.clear()
        self.watch(first)
        self.assertEqual(self.heard, [("token-1", "before")])

    def test_a_database_that_is_away(self) -> None:
        """The gap stays to be repaired until PostgreSQL can tell what happened."""
        kernel_id = self.make()
        self.watch()
        self.other.go_deaf()
        self.end(kernel_id, "unseen")
        whole = self.kernels.changed

        async def away(*_arguments: Any, **_more: Any) -> Any:
            raise Unavailable("PostgreSQL cannot be reached.")

        self.kernels.changed = away  # type: ignore[method-assign]  # the fake's own
        self.other.hear_again()
        self.fails(self.other_events.repair(), Unavailable)
        self.assertEqual(self.elsewhere, [])
        self.kernels.changed = whole  # type: ignore[method-assign]  # likewise
        self.done(self.other_events.repair())
        self.assertEqual(self.elsewhere, [("token-1", "unseen")])

    def test_many_events(self) -> None:
        """Pages are read to the end, and what is remembered is bounded."""
        self.watch()
        self.other.go_deaf()
        for _ in range(REMEMBERED + 10):
            self.end(self.make(), "x")
            self.later(0.001)
        self.other.hear_again()
        self.assertEqual(self.elsewhere, [("token-1", "x")] * (REMEMBERED + 10))
        (watchers,) = self.other_events._watchers.values()
        self.assertEqual([len(watchers[0]._told), len(watchers[0]._ended)], [REMEMBERED] * 2)

    def test_ending_the_watching(self) -> None:
        """Nothing is kept of who watches no more, also where the watching could not begin."""
        for _ in range(2):
            self.done(self.events.watch(OWNER, None, self.fail))()

        async def away(kernel_id: uuid.UUID) -> Kernel | None:  # noqa: ARG001 - as it is called
            raise Unavailable

        self.kernels.by_id = away  # type: ignore[method-assign]  # the fake's own
        self.fails(self.events.watch(OWNER, new_kernel_id(), self.fail), Unavailable)
        self.assertEqual(self.events._watchers, {})
