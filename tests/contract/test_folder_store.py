"""What folders need of the store; run for the memory store and for PostgreSQL."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from sorna.errors import FolderAlreadyExists, InvalidRequest, QuotaExceeded
from sorna.manager.folder_interfaces import FolderStore
from sorna.manager.interfaces import KernelStore, KeypairLists
from sorna.model.folder import Folder, FolderBounds, FolderUse, Mount, Permission, Share
from sorna.model.kernel import KernelSpec, KernelStatus, new_kernel_id
from sorna.model.keypair import Keypair
from sorna.model.limits import Limits
from sorna.store.folders import PostgresFolders
from sorna.store.kernels import PostgresKernels
from sorna.store.keypairs import PostgresKeypairs
from sorna.store.memory import MemoryKernels, MemoryKeypairs
from sorna.store.memory_folders import MemoryFolders
from tests.contract.postgres import fresh_pool
from tests.contract.test_store import NOW, together

if TYPE_CHECKING:
    Base = TestCase
else:
    Base = object

OWNER, FRIEND, STRANGER, SECOND = "AKIAOWNER", "AKIAFRIEND", "AKIASTRANGER", "AKIASECONDOFFRIEND"
RO, RW = Permission.READ_ONLY, Permission.READ_WRITE


def folder(name: str = "data", owner: str = OWNER, created_at: float = NOW) -> Folder:
    return Folder(uuid.uuid4(), name, owner, created_at, FolderBounds(100, 2**40))


class FolderStoreContract(Base):
    keypairs: KeypairLists
    folders: FolderStore
    kernels: KernelStore

    async def people(self) -> None:
        for key, user in ((OWNER, "o@x"), (FRIEND, "f@x"), (SECOND, "f@x"), (STRANGER, "s@x")):
            await self.keypairs.add(Keypair(key, "secret", user_id=user))

    async def shared(self, permission: Permission = RO, name: str = "data") -> Folder:
        """Give a folder of the owner that the friend sees."""
        one = folder(name)
        await self.folders.add(one, None)
        await self.folders.invite(one.id, OWNER, [FRIEND], permission, NOW)
        (invitation,) = await self.folders.invitations_for(FRIEND, "f@x")
        await self.folders.accept(invitation.id, FRIEND, "f@x")
        return one

    async def test_life(self) -> None:
        """A folder is found by its owner, by name and by id, until it is removed, and by nobody else."""
        await self.people()
        one = folder()
        await self.folders.add(one, 5)
        found = await self.folders.by_name(OWNER, "data")
        assert found is not None
        self.assertEqual((found.folder, found.is_owner, found.permission), (one, True, RW))
        self.assertEqual(await self.folders.by_id(OWNER, one.id), found)
        self.assertEqual(await self.folders.seen_by(OWNER), [found])
        self.assertEqual(await self.folders.existing([one.id, uuid.uuid4()]), {one.id})
        for key in (FRIEND, "nobody", "\0"):
            self.assertIsNone(await self.folders.by_name(key, "data"))
        self.assertIsNone(await self.folders.by_id(FRIEND, one.id))
        self.assertIsNone(await self.folders.by_name(OWNER, "\0"))
        self.assertTrue(await self.folders.remove(one.id))
        self.assertFalse(await self.folders.remove(one.id))
        self.assertIsNone(await self.folders.by_name(OWNER, "data"))

    async def test_names(self) -> None:
        """An owner has a name once, for a new folder and for a renamed one."""
        await self.people()
        one, two = folder("one"), folder("two")
        await self.folders.add(one, None)
        await self.folders.add(two, None)
        await self.folders.add(folder("one", FRIEND), None)
        with self.assertRaises(FolderAlreadyExists):
            await self.folders.add(folder("one"), None)
        with self.assertRaises(FolderAlreadyExists):
            await self.folders.rename(two.id, "one")
        self.assertTrue(await self.folders.rename(two.id, "two"))
        self.assertTrue(await self.folders.rename(two.id, "three"))
        self.assertFalse(await self.folders.rename(uuid.uuid4(), "four"))
        self.assertEqual([a.folder.name for a in await self.folders.seen_by(OWNER)], ["one", "three"])
        with self.assertRaises(InvalidRequest):
            await self.folders.add(folder("a\0"), None)

    async def test_never_more_than_allowed(self) -> None:
        """However many are made at once, an owner never has more than the quota; what is removed gives its place back."""
        await self.people()

        async def attempt(number: int) -> bool:
            try:
                await self.folders.add(folder(f"f{number}"), 3)
            except QuotaExceeded:
                return False
            return True

        self.assertEqual(sum(await together([attempt(number) for number in range(10)])), 3)
        first = (await self.folders.seen_by(OWNER))[0].folder
        await self.folders.remove(first.id)
        self.assertTrue(await attempt(11))
        self.assertFalse(await attempt(12))
        with self.assertRaises(QuotaExceeded):
            await self.folders.add(folder(owner="AKIANOBODY"), None)

    async def test_a_refused_name_takes_no_place(self) -> None:
        """A folder that was not made because of its name does not count."""
        await self.people()
        await self.folders.add(folder(), 2)
        for _again in range(3):
            with self.assertRaises(FolderAlreadyExists):
                await self.folders.add(folder(), 2)
        await self.folders.add(folder("other"), 2)

    async def test_use(self) -> None:
        """The last use is noted, for those that there are."""
        await self.people()
        one = folder()
        await self.folders.add(one, None)
        await self.folders.note_use([], NOW)
        await self.folders.note_use([one.id, uuid.uuid4()], NOW + 5)
        (found,) = await self.folders.seen_by(OWNER)
        self.assertEqual(found.folder, attrs.evolve(one, last_used=NOW + 5))

    async def test_invitations(self) -> None:
        """Users and keys that there are can be invited, but not oneself; a second time changes the permission."""
        await self.people()
        one = folder()
        await self.folders.add(one, None)
        wanted = ["f@x", "nobody@x", STRANGER, OWNER, "o@x", "f@x", "\0"]
        self.assertEqual(await self.folders.invite(one.id, OWNER, wanted, RO, NOW), ["f@x", STRANGER])
        self.assertEqual(await self.folders.invite(one.id, OWNER, ["f@x"], RW, NOW + 1), ["f@x"])
        for key in (FRIEND, SECOND):
            (invitation,) = await self.folders.invitations_for(key, "f@x")
            self.assertEqual(attrs.astuple(invitation)[1:], (one.id, "data", OWNER, "f@x", RW, NOW))
        self.assertEqual(await self.folders.invitations_for(OWNER, "o@x"), [])
        self.assertEqual(await self.folders.invitations_for("x", ""), [])

    async def test_accepting(self) -> None:
        """Who accepts sees the folder with the permission of the invitation, which is gone then; nobody else can."""
        await self.people()
        one = folder()
        await self.folders.add(one, None)
        await self.folders.invite(one.id, OWNER, ["f@x"], RO, NOW)
        (invitation,) = await self.folders.invitations_for(FRIEND, "f@x")
        for key, user in ((STRANGER, "s@x"), (OWNER, "o@x"), (STRANGER, "")):
            self.assertIsNone(await self.folders.accept(invitation.id, key, user))
        self.assertEqual(await self.folders.accept(invitation.id, SECOND, "f@x"), invitation)
        self.assertIsNone(await self.folders.accept(invitation.id, FRIEND, "f@x"))
        (seen,) = await self.folders.seen_by(SECOND)
        self.assertEqual((seen.folder, seen.is_owner, seen.permission), (one, False, RO))
        self.assertEqual(await self.folders.seen_by(FRIEND), [])
        self.assertTrue(await self.folders.leave(one.id, SECOND))
        self.assertFalse(await self.folders.leave(one.id, SECOND))
        self.assertEqual(await self.folders.seen_by(SECOND), [])

    async def test_withdrawing(self) -> None:
        """An invitation can be taken back by who made it and refused by whom it is for, and by nobody else."""
        await self.people()
        one = folder()
        await self.folders.add(one, None)
        for key, user in ((OWNER, "o@x"), (FRIEND, "f@x")):
            await self.folders.invite(one.id, OWNER, [FRIEND], RO, NOW)
            (invitation,) = await self.folders.invitations_for(FRIEND, "f@x")
            self.assertIsNone(await self.folders.withdraw(invitation.id, STRANGER, "s@x"))
            self.assertEqual(await self.folders.withdraw(invitation.id, key, user), invitation)
            self.assertIsNone(await self.folders.withdraw(invitation.id, key, user))

    async def test_own_folders_come_first(self) -> None:
        """A name means the own folder where another of that name is shared."""
        await self.people()
        theirs = await self.shared()
        found = await self.folders.by_name(FRIEND, "data")
        assert found is not None
        self.assertEqual(found.folder, theirs)
        mine = folder(owner=FRIEND)
        await self.folders.add(mine, None)
        found = await self.folders.by_name(FRIEND, "data")
        assert found is not None
        self.assertEqual(found.folder, mine)
        self.assertEqual([a.folder for a in await self.folders.seen_by(FRIEND)], [mine, theirs])

    async def test_sharing(self) -> None:
        """Every active keypair of a user can be let in at once, and be turned out again, and nobody else is concerned."""
        await self.people()
        one, other = folder(), folder("other")
        await self.folders.add(one, None)
        await self.folders.add(other, None)
        users = ["nobody@x", "f@x", "", OWNER, "o@x", "f@x", "\0"]
        self.assertEqual(await self.folders.share(one.id, OWNER, users, RO), ["f@x"])
        self.assertEqual(await self.folders.share(other.id, OWNER, [STRANGER], RW), [STRANGER])
        shares = [Share(one, FRIEND, "f@x", RO), Share(one, SECOND, "f@x", RO), Share(other, STRANGER, "s@x", RW)]
        self.assertEqual(await self.folders.shares_of(OWNER, None, 9), shares)
        self.assertEqual(await self.folders.shares_of(OWNER, None, 1), shares[:1])
        self.assertEqual(await self.folders.shares_of(OWNER, other.id, 9), shares[2:])
        self.assertEqual(await self.folders.shares_of(FRIEND, None, 9), [])
        found = await self.folders.permissions([one.id])
        self.assertEqual(found, {(one.id, OWNER): RW, (one.id, FRIEND): RO, (one.id, SECOND): RO})
        await self.folders.share(one.id, OWNER, [SECOND], RW)
        self.assertEqual((await self.folders.permissions([one.id, other.id]))[one.id, SECOND], RW)
        await self.folders.invite(one.id, OWNER, ["s@x"], RO, NOW)
        self.assertEqual(await self.folders.unshare(one.id, ["nobody@x", SECOND, "s@x"]), [SECOND, "s@x"])
        self.assertEqual(await self.folders.invitations_for(STRANGER, "s@x"), [])
        self.assertEqual(await self.folders.unshare(one.id, ["f@x", "s@x"]), ["f@x"])
        self.assertEqual(await self.folders.permissions([one.id]), {(one.id, OWNER): RW})
        self.assertEqual(await self.folders.share(uuid.uuid4(), OWNER, ["f@x"], RO), [])

    async def test_cloning(self) -> None:
        """Whether a folder may be cloned is kept with it."""
        await self.people()
        one = attrs.evolve(folder(), cloneable=True)
        await self.folders.add(one, None)
        self.assertEqual([a.folder.cloneable for a in await self.folders.seen_by(OWNER)], [True])
        self.assertTrue(await self.folders.allow_cloning(one.id, False))
        self.assertEqual([a.folder.cloneable for a in await self.folders.seen_by(OWNER)], [False])
        self.assertFalse(await self.folders.allow_cloning(uuid.uuid4(), True))

    async def test_removed_keypairs(self) -> None:
        """What a removed keypair had goes, with what was shared with it; what others have stays."""
        await self.people()
        theirs = await self.shared()
        mine, more = folder("mine", FRIEND), folder("more", FRIEND)
        for one in (mine, more):
            await self.folders.add(one, None)
        await self.folders.share(mine.id, FRIEND, [OWNER], RO)
        await self.folders.invite(more.id, FRIEND, [STRANGER], RO, NOW)
        self.assertEqual(await self.folders.remove_forsaken(), [])
        await self.keypairs.remove(FRIEND, NOW)
        self.assertEqual(set(await self.folders.remove_forsaken()), {mine.id, more.id})
        self.assertEqual(await self.folders.remove_forsaken(), [])
        self.assertEqual([a.folder for a in await self.folders.seen_by(OWNER)], [theirs])
        self.assertEqual(await self.folders.shares_of(OWNER, None, 9), [])
        self.assertEqual(await self.folders.invitations_for(STRANGER, "s@x"), [])
        self.assertEqual(await self.folders.existing([mine.id, more.id]), frozenset())

    async def test_counting(self) -> None:
        """What was changed since it was counted, or that a kernel could write to, is to be counted; what is known is told."""
        await self.people()
        quiet, used, written, read = (folder(name) for name in ("quiet", "used", "written", "read"))
        for one in (quiet, used, written, read):
            await self.folders.add(attrs.evolve(one, held=FolderUse(0, 0)), None)
        await self.folders.add(folder("uncounted"), None)
        mounts = (Mount(written.id.hex, "w", False, 1, 1), Mount(read.id.hex, "r", True, 1, 1))
        spec = KernelSpec(OWNER, "token-1", "python3", "python3", Limits(memory=1), mounts=mounts)
        kernel, _made = await self.kernels.reserve(new_kernel_id(), spec, NOW + 1)
        await self.folders.note_use([used.id], NOW + 2)

        async def names() -> list[str]:
            return sorted(one.name for one in await self.folders.to_count(NOW, 9))

        self.assertEqual(await names(), ["uncounted", "used", "written"])
        self.assertEqual(len(await self.folders.to_count(NOW, 2)), 2)
        for one in (used, written):
            await self.folders.note_count(one.id, FolderUse(3, 2**40), NOW + 3)
        self.assertEqual(await names(), ["uncounted", "written"])
        await self.kernels.change_status(kernel.id, KernelStatus.ERROR, "", NOW + 4)
        self.assertEqual(await names(), ["uncounted", "written"])
        self.assertEqual([one.name for one in await self.folders.to_count(NOW + 5, 9)], ["uncounted"])
        await self.folders.note_count(written.id, FolderUse(4, 5), NOW + 5)
        await self.folders.note_count(uuid.uuid4(), FolderUse(4, 5), NOW + 5)
        self.assertEqual(await names(), ["uncounted"])
        found = {one.name: one.held for one in await self.folders.page(None, 0, 9)}
        self.assertEqual(found["used"], FolderUse(3, 2**40))
        self.assertEqual(
            (found["written"], found["quiet"], found["uncounted"]), (FolderUse(4, 5), FolderUse(0, 0), None)
        )

    async def test_lists(self) -> None:
        """Folders are listed the newest first, of one owner, of all, or the newest of each of several."""
        await self.people()
        made = [folder(f"f{number}", (OWNER, FRIEND)[number % 2], NOW + number) for number in range(6)]
        for one in made:
            await self.folders.add(one, None)
        newest = made[::-1]
        self.assertEqual(await self.folders.page(None, 1, 3), newest[1:4])
        self.assertEqual(await self.folders.page(FRIEND, 0, 2), newest[0:4:2])
        self.assertEqual([await self.folders.count_of(owner) for owner in (None, OWNER, STRANGER)], [6, 3, 0])
        found = await self.folders.newest_of_owners([OWNER, STRANGER, FRIEND, OWNER, "\0"], 2)
        self.assertEqual(sorted(one.name for one in found), ["f2", "f3", "f4", "f5"])
        self.assertEqual(await self.folders.page("\0", 0, 5), [])
        self.assertEqual(await self.folders.count_of("\0"), 0)

    async def test_removing_takes_everything(self) -> None:
        """With a folder go its permissions and its invitations."""
        await self.people()
        one = await self.shared(RW)
        await self.folders.invite(one.id, OWNER, [STRANGER], RO, NOW)
        await self.folders.remove(one.id)
        self.assertEqual(await self.folders.seen_by(FRIEND), [])
        self.assertEqual(await self.folders.invitations_for(STRANGER, "s@x"), [])


class MemoryFolderTests(FolderStoreContract, TestCase):
    """The memory store."""

    def setUp(self) -> None:
        self.keypairs = MemoryKeypairs()
        self.kernels = MemoryKernels(self.keypairs)
        self.folders = MemoryFolders(self.keypairs, self.kernels)


class PostgresFolderTests(FolderStoreContract, TestCase):
    """The real store."""

    def setUp(self) -> Any:
        return Deferred.fromCoroutine(self.prepare())

    async def prepare(self) -> None:
        from twisted.internet import reactor  # noqa: PLC0415, TID251 - a test against the real thing

        pool = await fresh_pool(self, reactor)
        self.keypairs, self.folders, self.kernels = PostgresKeypairs(pool), PostgresFolders(pool), PostgresKernels(pool)
