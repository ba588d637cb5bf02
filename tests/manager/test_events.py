"""Tests of events of kernels: their announcements, and who hears them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sorna.manager.events import KERNEL_TOPIC, read_announcement
from sorna.manager.requests import KernelEvent
from sorna.model.kernel import KernelStatus, short_id
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
        for text in ("", "x", f"short RUNNING {OWNER} token reason", "A" * 22 + f" FLYING {OWNER} token "):
            self.done(self.ending.announcements.publish(KERNEL_TOPIC, text))
        self.assertEqual(heard, [])

    @given(st.text(max_size=40))
    def test_any_text(self, text: str) -> None:
        """No text makes reading fail."""
        read_announcement(text)
