"""What folders need of the store; run for the memory store and for PostgreSQL."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import attrs
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from sorna.errors import FolderAlreadyExists, InvalidRequest, QuotaExceeded
from sorna.manager.folder_interfaces import FolderStore
from sorna.manager.interfaces import KeypairLists
from sorna.model.folder import Folder, FolderBounds, Permission
from sorna.model.keypair import Keypair
from sorna.store.folders import PostgresFolders
from sorna.store.keypairs import PostgresKeypairs
from sorna.store.memory import MemoryKeypairs
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
        self.folders = MemoryFolders(self.keypairs)


class PostgresFolderTests(FolderStoreContract, TestCase):
    """The real store."""

    def setUp(self) -> Any:
        return Deferred.fromCoroutine(self.prepare())

    async def prepare(self) -> None:
        from twisted.internet import reactor  # noqa: PLC0415, TID251 - a test against the real thing

        pool = await fresh_pool(self, reactor)
        self.keypairs, self.folders = PostgresKeypairs(pool), PostgresFolders(pool)
