"""What the manager decides about folders: their making, their mounting, and on which agents kernels that mount them run."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from attrs import evolve

from sorna.errors import (
    FolderAlreadyExists,
    FolderNotFound,
    InvalidRequest,
    NoAgentAvailable,
    Unavailable,
)
from sorna.folders.housekeeping import Housekeeping
from sorna.folders.storage import YOUNG
from sorna.manager.requests import MountWish
from sorna.model.folder import MAX_MOUNTS, Permission, overlapping, valid_alias, valid_folder_name
from sorna.model.kernel import KernelSpec
from tests.manager.world import HEARTBEAT, INTERVAL, OWNER, STRANGER, ManagerTestCase


class FolderManagerTestCase(ManagerTestCase):
    @property
    def root(self) -> Path:
        storage: Any = self.folders.storage
        return Path(storage._root)

    def last_spec(self) -> KernelSpec:
        """Give what the agent was last asked to make."""
        spec: KernelSpec = [call for call in self.agent.calls if call[0] == "create_kernel"][-1][2]
        return spec

    def share(self, name: str, permission: Permission) -> None:
        self.done(self.folders.invite(OWNER, name, [STRANGER], permission))
        (invitation,) = self.done(self.folders.invitations(STRANGER))
        self.done(self.folders.accept(STRANGER, invitation.id))


class MakingTests(FolderManagerTestCase):
    def test_what_could_not_be_stored_leaves_nothing(self) -> None:
        """A folder whose row is refused has no content either."""
        folder = self.done(self.folders.create(OWNER, "data"))
        self.fails(self.folders.create(OWNER, "data"), FolderAlreadyExists)
        self.assertEqual({path.name for path in self.root.iterdir()}, {folder.id.hex, "storage-id"})

    def test_a_storage_that_fails_makes_no_row(self) -> None:
        """A folder without a place for its content is not there."""
        (self.root / "x").write_text("")
        storage: Any = self.folders.storage
        storage._root = self.root / "x"
        self.fails(self.folders.create(OWNER, "data"), Unavailable)
        self.assertEqual(self.done(self.folders.seen_by(OWNER)), [])

    def test_removing(self) -> None:
        """A folder goes with its content."""
        self.done(self.folders.create(OWNER, "data"))
        self.done(self.folders.remove(OWNER, self.done(self.folders.open(OWNER, "data"))))
        self.assertEqual([path.name for path in self.root.iterdir()], ["storage-id"])
        self.fails(self.folders.open(OWNER, "data"), FolderNotFound)

    def test_a_removed_keypair(self) -> None:
        """Somebody whose keypair is gone gets no folder."""
        self.fails(self.folders.create("AKIANOBODY", "data"), FolderNotFound)

    def test_tidying(self) -> None:
        """Content that belongs to no folder goes when it is old; what was made a moment ago stays."""
        folder = self.done(self.folders.create(OWNER, "data"))
        orphan = uuid.UUID(int=5)
        self.done(self.folders.storage.create(orphan))
        storage: Any = self.folders.storage
        age = (self.root / orphan.hex).stat().st_mtime
        for passed, left in (
            (0.0, {folder.id.hex, orphan.hex, "storage-id"}),
            (YOUNG + 1, {folder.id.hex, "storage-id"}),
        ):
            self.clock.rightNow = age + passed
            self.done(Housekeeping(self.clock, storage, self.folders.store).tidy())
            self.assertEqual({path.name for path in self.root.iterdir()}, left)


class MountTests(FolderManagerTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.first = self.done(self.folders.create(OWNER, "data"))

    def beat_with(self, storage: str) -> None:
        self.done(self.heartbeats.beat(evolve(HEARTBEAT, storage=storage), INTERVAL))

    def made_of(self, *mounts: MountWish, owner: str = OWNER) -> Any:
        """Make a kernel with folders and give the mounts that its agent was told of."""
        request = evolve(self.wish(owner=owner), mounts=mounts)
        self.done(self.registry.create(request))
        spec = self.last_spec()
        return [(mount.folder_id, mount.alias, mount.read_only) for mount in spec.mounts]

    def test_names_and_aliases(self) -> None:
        """A kernel gets its owner's folders, under their names or others, with what each may hold."""
        second = self.done(self.folders.create(OWNER, "more", 4096))
        self.beat_with(self.folders.storage.storage_id)
        mounted = self.made_of(MountWish("data"), MountWish("more", "in/put"))
        self.assertEqual(mounted, [(self.first.id.hex, "data", False), (second.id.hex, "in/put", False)])
        self.assertEqual(self.last_spec().mounts[1].max_size, 4096)
        seen = self.done(self.folders.seen_by(OWNER))
        self.assertEqual([one.folder.last_used for one in seen], [self.clock.seconds()] * 2)

    def test_permissions(self) -> None:
        """What is shared for reading is mounted so, and what is not shared not at all."""
        self.beat_with(self.folders.storage.storage_id)
        wish = evolve(self.wish(owner=STRANGER), mounts=[MountWish("data")])
        self.fails(self.registry.create(wish), FolderNotFound)
        self.share("data", Permission.READ_ONLY)
        self.assertEqual(self.made_of(MountWish("data"), owner=STRANGER), [(self.first.id.hex, "data", True)])
        self.share("data", Permission.READ_WRITE)
        self.done(self.registry.destroy(STRANGER, "token-1"))
        self.assertEqual(self.made_of(MountWish("data"), owner=STRANGER), [(self.first.id.hex, "data", False)])

    def test_what_cannot_be_mounted(self) -> None:
        """Unknown folders, impossible places and places that meet are refused before anything is made."""
        for error, mounts in (
            (FolderNotFound, [MountWish("nothing")]),
            (FolderNotFound, [MountWish("../x", "x")]),
            (InvalidRequest, [MountWish("data", "../x")]),
            (InvalidRequest, [MountWish("data", "/etc")]),
            (InvalidRequest, [MountWish("data", ".bashrc")]),
            (InvalidRequest, [MountWish("data"), MountWish("data")]),
            (InvalidRequest, [MountWish("data", "a"), MountWish("data", "a/b")]),
            (InvalidRequest, [MountWish("data", f"a{number}") for number in range(MAX_MOUNTS + 1)]),
        ):
            self.fails(self.registry.create(evolve(self.wish(), mounts=mounts)), error)
        self.assertEqual(self.used(), 0)

    def test_only_agents_with_the_storage(self) -> None:
        """A kernel with folders runs where their storage is, and nowhere else."""
        for storage in ("", "another"):
            self.beat_with(storage)
            error = self.fails(self.registry.create(evolve(self.wish(), mounts=[MountWish("data")])), NoAgentAvailable)
            self.assertIn("storage", error.detail)
        self.done(self.registry.create(self.wish()))


class RuleTests(ManagerTestCase):
    def test_names(self) -> None:
        """Names and aliases that could be paths are none."""
        self.assertTrue(all(map(valid_folder_name, ("a", "a.b", "0-_9", "x" * 64))))
        self.assertFalse(any(map(valid_folder_name, ("", ".", "a/b", "a\n", "-a", "a.", "x" * 65, "é"))))
        self.assertTrue(all(map(valid_alias, ("a", "a/b", "_x", "a/b/c/d/e/f/g/h"))))
        self.assertFalse(any(map(valid_alias, ("", "/a", "a/", "a//b", "..", "a/../b", ".a", "a\0", "a/" * 8 + "a"))))

    def test_overlapping(self) -> None:
        """Two places meet when they are the same or one lies below the other."""
        self.assertIsNone(overlapping(["a", "ab", "b/c", "b/d"]))
        for aliases in (["a", "a"], ["a/b", "a"], ["a", "a-b", "a/b"]):
            self.assertIsNotNone(overlapping(aliases))
