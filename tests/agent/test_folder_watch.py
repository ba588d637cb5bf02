"""Folders of an agent's kernels: who gets them, and what happens when one is full."""

from __future__ import annotations

import uuid
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred

from sorna.agent.folder_watch import FULL, INTERVAL
from sorna.errors import AgentRefused
from sorna.model.folder import Mount
from tests.agent.fakes import KernelTestCase, spec

FOLDER = uuid.UUID(int=3).hex


class MountedKernelTests(KernelTestCase):
    most_ready = 2

    def mount(self, *, read_only: bool = False, size: int = 10_000) -> Mount:
        return Mount(FOLDER, "data", read_only, 5, size)

    def make(self, kernel_id: uuid.UUID, *mounts: Mount) -> Deferred[Any]:
        wanted = evolve(spec(), mounts=mounts)
        creating = Deferred.fromCoroutine(self.kernels.create_kernel(kernel_id, wanted))
        self.flow()
        return creating

    def test_never_from_the_pool(self) -> None:
        """A kernel with folders is made for them, although others are ready."""
        self.pool.start("python3", 1)
        self.clock.advance(1)
        self.flow()
        self.assertEqual(len(self.pool), 1)
        self.successResultOf(self.make(self.kernel_id, self.mount()))
        self.assertEqual(len(self.pool), 1)
        self.assertEqual(
            [list(kernel.spec.mounts) for kernel in self.sandbox.kernels if kernel.spec.mounts], [[self.mount()]]
        )

    def test_an_agent_without_the_storage(self) -> None:
        """Where folders cannot be mounted, a kernel with some is refused with the reason, and one without is made."""
        self.sandbox.storage = ""
        self.failureResultOf(self.make(self.kernel_id, self.mount()), AgentRefused)
        self.successResultOf(self.make(self.kernel_id))

    def test_a_full_folder(self) -> None:
        """Who can write to a folder that holds too much ends; who only reads does not; nothing is looked at afterwards."""
        content = self.folder_root / FOLDER / "content"
        content.mkdir(parents=True)
        other = uuid.UUID(int=2)
        self.successResultOf(self.make(self.kernel_id, self.mount()))
        self.successResultOf(self.make(other, self.mount(read_only=True)))
        self.clock.advance(INTERVAL)
        self.flow()
        self.assertEqual(len(self.kernels.live()), 2)
        (content / "big").write_bytes(bytes(20_000))
        self.clock.advance(INTERVAL)
        self.flow()
        self.assertEqual([one[:2] for one in self.news.ended], [(self.kernel_id, FULL)])
        self.assertEqual(list(self.kernels.live()), [other])

    def test_a_folder_that_is_gone(self) -> None:
        """A folder that was removed while it is mounted ends nobody."""
        self.successResultOf(self.make(self.kernel_id, self.mount()))
        self.clock.advance(INTERVAL)
        self.flow()
        self.assertEqual(list(self.kernels.live()), [self.kernel_id])
