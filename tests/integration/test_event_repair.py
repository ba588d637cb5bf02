"""Streams of events through an outage of a real Redis: what ended meanwhile is told once, by every manager."""

from __future__ import annotations

import uuid

from sorna.errors import Unavailable
from sorna.live.channels import RedisAnnouncements
from sorna.manager.events import KernelEvents
from sorna.manager.requests import KernelEvent
from sorna.model.kernel import KernelSpec, KernelStatus
from sorna.model.keypair import Keypair
from sorna.model.limits import Limits
from sorna.store.memory import MemoryKernels, MemoryKeypairs
from tests.contract.live_backends import REACTOR, ValkeyCase

OWNER = "AKIA" + "O" * 16


class EventRepairTests(ValkeyCase):
    timeout = 60

    def manager(self, kernels: MemoryKernels) -> tuple[KernelEvents, RedisAnnouncements]:
        """Make the part of a manager that tells events."""
        made: list[KernelEvents] = []
        announcements = self.listen(
            on_resync=lambda: made[0].heard_again(),  # noqa: PLW0108 - made below
            on_loss=lambda: made[0].lost(),  # noqa: PLW0108 - likewise
            timeout=1.0,
        )
        events = KernelEvents(REACTOR, kernels, announcements)
        made.append(events)
        events.listen()
        return events, announcements

    async def repaired(self, events: KernelEvents) -> None:
        """Wait until nothing is owed any more."""
        while True:
            try:
                await events.repair()
            except Unavailable:
                await self.sleep(0.1)
            else:
                return

    async def test_an_outage(self) -> None:
        """Each of two managers tells each event once: one before, one within, and one after the outage."""
        kernels = MemoryKernels(MemoryKeypairs([Keypair(OWNER, "s" * 40)]))
        (first, _one), (second, two) = self.manager(kernels), self.manager(kernels)
        heard: tuple[list[str], list[str]] = ([], [])
        for events, told in zip((first, second), heard, strict=True):

            def note(event: KernelEvent, told: list[str] = told) -> None:
                told.append(event.reason)

            await events.watch(OWNER, None, note)

        async def end(reason: str) -> None:
            kernel, _made = await kernels.reserve(
                uuid.uuid4(), KernelSpec(OWNER, reason, "python3", "python3", Limits()), REACTOR.seconds()
            )
            ended = await kernels.change_status(kernel.id, KernelStatus.TERMINATED, reason, REACTOR.seconds())
            assert ended is not None
            await first.announce(ended)

        await self.settle()
        await end("before")
        await self.eventually(lambda: heard == (["before"], ["before"]))
        self.server.kill()
        await self.eventually(lambda: not two.listening)
        await end("within")
        self.assertEqual(heard, (["before", "within"], ["before"]))
        self.server.start()
        await self.eventually(lambda: heard == (["before", "within"],) * 2)
        await self.repaired(first)
        await end("after")
        await self.settle()
        self.assertEqual(heard, (["before", "within", "after"],) * 2)
