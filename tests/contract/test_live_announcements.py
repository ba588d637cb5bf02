"""The contract of Announcements."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sorna.errors import Unavailable
from sorna.live.memory import MemoryAnnouncements
from tests.contract.live_backends import MemoryCase, ValkeyCase

if TYPE_CHECKING:
    from tests.contract.live_backends import LiveCase as _Case
else:
    _Case = object


class AnnouncementsContract(_Case):
    async def test_received_in_order(self) -> None:
        """A subscriber of the topic gets every text as it was sent, in order, and nothing of other topics."""
        got: list[str] = []
        self.announcements.subscribe("keypairs", got.append)
        await self.settle()
        texts = ["AKIAONE", "0042", "", "한🎉", 'a\r\nb"\\', "x" * 60_000]
        for text in texts:
            await self.announcements.publish("other", "no")
            await self.announcements.publish("keypairs", text)
        await self.settle()
        self.assertEqual(got, texts)

    async def test_several_subscribers(self) -> None:
        """Every subscription gets every message, the same callable twice when it subscribed twice, until it ends."""
        got: list[str] = []
        end = [self.announcements.subscribe("t", got.append) for _ in range(3)]
        await self.settle()
        await self.announcements.publish("t", "a")
        await self.settle()
        end[0]()
        end[0]()
        await self.announcements.publish("t", "b")
        await self.settle()
        self.assertEqual(got, ["a"] * 3 + ["b"] * 2)
        for one in end[1:]:
            one()
        await self.settle()
        await self.announcements.publish("t", "c")
        await self.settle()
        self.assertEqual(len(got), 5)

    async def test_subscribe_anew(self) -> None:
        """A topic whose last subscription ended can be subscribed to again."""
        got: list[str] = []
        self.announcements.subscribe("t", got.append)()
        self.announcements.subscribe("t", got.append)
        await self.settle()
        await self.announcements.publish("t", "a")
        await self.settle()
        self.assertEqual(got, ["a"])

    async def test_a_receiver_that_fails(self) -> None:
        """An error in one receiver is logged and keeps the message from nobody."""
        got: list[str] = []

        def fail(text: str) -> None:
            raise ZeroDivisionError(text)

        self.announcements.subscribe("t", fail)
        self.announcements.subscribe("t", got.append)
        await self.settle()
        await self.announcements.publish("t", "a")
        await self.announcements.publish("t", "b")
        await self.settle()
        self.assertEqual(got, ["a", "b"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    async def test_ending_while_receiving(self) -> None:
        """A receiver may end its own subscription."""
        got: list[str] = []

        def once(text: str) -> None:
            got.append(text)
            end()

        end = self.announcements.subscribe("t", once)
        await self.settle()
        for text in ("a", "b"):
            await self.announcements.publish("t", text)
            await self.settle()
        self.assertEqual(got, ["a"])

    async def test_cannot_travel(self) -> None:
        """A text of more than 64 KiB, or one that is no Unicode, is refused."""
        for text in ("x" * 65_537, "한" * 30_000, "\ud800"):
            with self.assertRaises(ValueError):
                await self.announcements.publish("t", text)


class MemoryAnnouncementsTests(AnnouncementsContract, MemoryCase):
    """The fakes."""

    async def test_gap(self) -> None:
        """The fake can be told to have missed messages."""
        resyncs: list[int] = []
        MemoryAnnouncements(self.redis, on_resync=lambda: resyncs.append(1)).lose_messages()
        MemoryAnnouncements(self.redis).lose_messages()
        self.assertEqual(resyncs, [1])

    async def test_unavailable(self) -> None:
        """Every fake fails as an unreachable server does."""
        self.redis.available = False
        with self.assertRaises(Unavailable):
            await self.announcements.publish("t", "a")
        with self.assertRaises(Unavailable):
            await self.directory.alive()
        with self.assertRaises(Unavailable):
            await self.counters.hit("AKIAONE", 1)


class ValkeyAnnouncementsTests(AnnouncementsContract, ValkeyCase):
    """A real server."""

    async def test_two_processes(self) -> None:
        """A message reaches the other managers, and installations with another prefix do not hear each other."""
        got: list[str] = []
        self.listen().subscribe("t", got.append)
        self.listen(prefix="elsewhere:").subscribe("t", lambda text: got.append(f"wrong: {text}"))
        await self.settle()
        await self.announcements.publish("t", "a")
        await self.settle()
        self.assertEqual(got, ["a"])
