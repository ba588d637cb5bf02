"""Whoever loses a folder loses it in its running kernels too, whatever happens at the same time."""

from __future__ import annotations

import uuid
from collections.abc import Coroutine
from typing import Any

from attrs import evolve

from sorna.errors import AgentFailed, FolderForbidden, FolderInUse, FolderNotFound
from sorna.manager.attendance import Attendance
from sorna.manager.entitlements import TAKEN_AWAY, entitled
from sorna.manager.folder_interfaces import MountingKernel
from sorna.manager.requests import MountWish
from sorna.model.folder import FolderUse, Permission
from sorna.model.kernel import Kernel, KernelStatus
from sorna.store.memory_agents import MemoryAgents
from tests.manager.test_folders import FolderManagerTestCase
from tests.manager.world import HEARTBEAT, INTERVAL, OWNER, STRANGER

RO, RW = Permission.READ_ONLY, Permission.READ_WRITE


class EntitlementTestCase(FolderManagerTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.folder = self.done(self.folders.create(OWNER, "data"))
        self.done(self.heartbeats.beat(evolve(HEARTBEAT, storage=self.folders.storage.storage_id), INTERVAL))

    def mounted(self, owner: str, token: str = "token-1") -> uuid.UUID:
        """Make a kernel that sees the folder."""
        request = evolve(self.wish(token, owner=owner), mounts=[MountWish("data")])
        return self.done(self.registry.create(request)).kernel_id

    def kernel(self, kernel_id: uuid.UUID) -> Kernel:
        found = self.done(self.kernels.by_id(kernel_id))
        assert found is not None
        return found

    def assert_ended(self, kernel_id: uuid.UUID) -> None:
        kernel = self.kernel(kernel_id)
        self.assertEqual((kernel.status, kernel.status_reason), (KernelStatus.TERMINATED, TAKEN_AWAY))
        self.assertNotIn(kernel_id, self.agent.kernels)


class TakingAwayTests(EntitlementTestCase):
    def test_every_way(self) -> None:
        """Who leaves, is turned out, may only read from now on or sees the folder removed loses its kernels; others do not."""
        name = "data"
        ways: tuple[tuple[Permission, Coroutine[Any, Any, Any]], ...] = (
            (RO, self.folders.leave(STRANGER, name)),
            (RW, self.folders.unshare(OWNER, name, [STRANGER])),
            (RW, self.folders.share(OWNER, name, [STRANGER], RO)),
        )
        mine = self.mounted(OWNER)
        for permission, way in ways:
            self.clock.advance(0.1)
            self.done(self.folders.share(OWNER, name, [STRANGER], permission))
            theirs, plain = self.mounted(STRANGER), self.make("token-2", STRANGER)
            self.done(way)
            self.assert_ended(theirs)
            self.done(self.registry.destroy(STRANGER, "token-2"))
            self.assertEqual(self.kernel(plain).status_reason, "user-requested")
        self.done(self.folders.share(OWNER, name, [STRANGER], RO))
        reader = self.mounted(STRANGER)
        self.done(self.folders.share(OWNER, name, [STRANGER], RW))
        self.assertEqual(self.kernel(reader).status, KernelStatus.RUNNING)
        self.assertEqual(self.kernel(mine).status, KernelStatus.RUNNING)

    def test_a_smaller_invitation(self) -> None:
        """Accepting to read alone what could be written to before ends what could write."""
        self.share("data", RW)
        theirs = self.mounted(STRANGER)
        self.share("data", RO)
        self.assert_ended(theirs)

    def test_removing(self) -> None:
        """A folder is not removed while its owner's kernels see it, which are named; others' end with it."""
        self.done(self.folders.share(OWNER, "data", [STRANGER], RO))
        theirs = self.mounted(STRANGER)
        self.mounted(OWNER, "my-session")
        open_folder = self.done(self.folders.open(OWNER, "data"))
        self.assertIn("my-session", self.fails(self.folders.remove(OWNER, open_folder), FolderInUse).detail)
        self.assertEqual(self.kernel(theirs).status, KernelStatus.RUNNING)
        self.done(self.registry.destroy(OWNER, "my-session"))
        self.done(self.folders.remove(OWNER, open_folder))
        self.assert_ended(theirs)

    def test_a_removed_keypair(self) -> None:
        """The folders of a removed keypair go, with their content and the kernels that see them."""
        self.done(self.folders.share(OWNER, "data", [STRANGER], RO))
        theirs = self.mounted(STRANGER)
        self.done(self.keypairs.remove(OWNER, 0.0))
        stored: Any = self.folders.store
        stored._keypairs = self.keypairs
        self.done(self.folders.remove_forsaken())
        self.assert_ended(theirs)
        self.assertEqual([path.name for path in self.root.iterdir()], ["storage-id"])
        self.done(self.folders.remove_forsaken())

    def test_while_it_is_being_made(self) -> None:
        """A folder that goes after it was found and before the kernel is there leaves no kernel that sees it."""
        self.done(self.folders.share(OWNER, "data", [STRANGER], RW))
        reserve = self.kernels.reserve
        stored: Any = self.kernels

        async def reserve_late(*arguments: Any) -> Any:
            await self.folders.unshare(OWNER, "data", [STRANGER])
            return await reserve(*arguments)

        stored.reserve = reserve_late
        request = evolve(self.wish(owner=STRANGER), mounts=[MountWish("data")])
        self.fails(self.registry.create(request), FolderNotFound)
        self.assertEqual((self.agent.kernels, self.used(STRANGER)), (set(), 0))

    def test_an_agent_that_does_not_answer(self) -> None:
        """A kernel that cannot be ended now is left to whoever mends kernels; what was asked for is done."""
        self.done(self.folders.share(OWNER, "data", [STRANGER], RW))
        theirs = self.mounted(STRANGER)

        async def fail(_kernel: Kernel, _reason: str) -> None:
            raise AgentFailed

        self.folders = evolve(self.folders, entitlements=evolve(self.folders.entitlements, end=fail))
        self.assertEqual(self.done(self.folders.unshare(OWNER, "data", [STRANGER])), [STRANGER])
        self.fails(self.folders.open(STRANGER, "data"), FolderNotFound)
        self.assertEqual(self.kernel(theirs).status, KernelStatus.RUNNING)

    def test_what_a_dead_manager_left(self) -> None:
        """A look at all kernels finds one whose folder was taken away by somebody who could not go on."""
        self.done(self.folders.share(OWNER, "data", [STRANGER], RW))
        theirs = self.mounted(STRANGER)
        self.done(self.folders.entitlements.enforce())
        self.done(self.folders.store.unshare(self.folder.id, [STRANGER]))
        self.done(self.folders.entitlements.enforce())
        self.assert_ended(theirs)

    def test_the_rule(self) -> None:
        """Everything that is seen must be allowed, and what can be written to must be allowed for that."""
        kernel = self.kernel(self.make())
        one, two = uuid.UUID(int=1), uuid.UUID(int=2)
        seen = MountingKernel(kernel, frozenset({one, two}), frozenset({two}))
        for permissions, right in (
            ({(one, OWNER): RO, (two, OWNER): RW}, True),
            ({(one, OWNER): RW, (two, OWNER): RO}, False),
            ({(two, OWNER): RW}, False),
            ({(one, STRANGER): RW, (two, OWNER): RW}, False),
        ):
            self.assertEqual(entitled(seen, permissions), right)


class CloningTests(EntitlementTestCase):
    def test_who_may(self) -> None:
        """The owner may clone, and others when the owner allows it; the clone is theirs who made it."""
        (self.root / self.folder.id.hex / "content" / "a").write_text("1")
        self.done(self.folders.clone(OWNER, "data", "copy", cloneable=True))
        copy = self.done(self.folders.open(OWNER, "copy")).access.folder
        self.assertEqual((copy.cloneable, copy.held and copy.held.files), (True, 1))
        self.assertEqual((self.root / copy.id.hex / "content" / "a").read_text(), "1")
        self.fails(self.folders.clone(STRANGER, "data", "mine"), FolderNotFound)
        self.done(self.folders.share(OWNER, "data", [STRANGER], RO))
        self.fails(self.folders.clone(STRANGER, "data", "mine"), FolderForbidden)
        self.fails(self.folders.allow_cloning(STRANGER, "data", True), FolderForbidden)
        self.done(self.folders.allow_cloning(OWNER, "data", True))
        self.assertEqual(self.done(self.folders.clone(STRANGER, "data", "mine")).owner, STRANGER)

    def test_counting(self) -> None:
        """What folders hold is counted after they were changed, and a folder that went meanwhile does not matter."""
        gone = self.done(self.folders.create(OWNER, "gone"))
        (self.root / self.folder.id.hex / "content" / "a").write_bytes(b"x" * 5000)
        self.done(self.folders.store.note_use([self.folder.id, gone.id], self.clock.seconds() + 1))
        self.done(self.folders.storage.destroy(gone.id))
        self.clock.advance(2)
        self.done(self.folders.count())
        held = {seen.folder.name: seen.folder.held for seen in self.done(self.folders.seen_by(OWNER))}
        self.assertEqual(held["data"], FolderUse(1, 8192))
        self.assertEqual(held["gone"], FolderUse(0, 0))


class AttendanceTests(FolderManagerTestCase):
    def test_lost_and_back(self) -> None:
        """An agent is lost since it was missed first, and not any more when it is back; nothing is written in between."""
        agents = MemoryAgents()
        self.done(agents.enrol("i-1", "k" * 40, 0.0))
        attendance = Attendance(self.clock, self.directory, agents)
        self.done(attendance.note())
        self.assertEqual(self.done(agents.lost()), {})
        self.clock.advance(5)
        since = self.clock.seconds()
        for _look in range(2):
            self.done(attendance.note())
            self.clock.advance(1)
        self.assertEqual(self.done(agents.lost()), {"i-1": since})
        self.beat()
        self.done(attendance.note())
        self.assertEqual(self.done(agents.lost()), {})
