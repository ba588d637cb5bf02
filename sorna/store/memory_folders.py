"""Virtual folders in memory, for tests of the rooms above; held to the same contract suite as the real ones."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence

import attrs

from sorna.errors import FolderAlreadyExists, QuotaExceeded
from sorna.manager.interfaces import KeypairLists
from sorna.model.folder import Folder, FolderAccess, FolderUse, Invitation, Permission, Share
from sorna.model.selectable import of_folder
from sorna.model.selection import EVERYTHING, Selection, select
from sorna.store import rows
from sorna.store.memory import MemoryKernels

_MOST_KEYPAIRS = 100_000


class MemoryFolders:
    """Folders in a dict, permissions in another, invitations in a third."""

    def __init__(self, keypairs: KeypairLists, kernels: MemoryKernels | None = None) -> None:
        self._keypairs = keypairs
        self._kernels = kernels
        self._counted: dict[uuid.UUID, float] = {}
        self._folders: dict[uuid.UUID, Folder] = {}
        self._permissions: dict[tuple[uuid.UUID, str], Permission] = {}
        self._invitations: dict[uuid.UUID, Invitation] = {}

    async def add(self, folder: Folder, most: int | None) -> None:
        """Store a folder, unless its owner has ``most`` already."""
        rows.require_storable((folder.owner, folder.name))
        owned = [one for one in self._folders.values() if one.owner == folder.owner]
        if await self._keypairs.by_access_key(folder.owner) is None or (most is not None and len(owned) >= most):
            raise QuotaExceeded(f"folders: {most} of {most} in use")
        self._require_free(folder.owner, folder.name)
        at = rows.to_microseconds(folder.created_at)
        self._folders[folder.id] = attrs.evolve(folder, created_at=at)
        if folder.held is not None:
            self._counted[folder.id] = at

    def _require_free(self, owner: str, name: str) -> None:
        if any((one.owner, one.name) == (owner, name) for one in self._folders.values()):
            raise FolderAlreadyExists(name)

    async def by_name(self, access_key: str, name: str) -> FolderAccess | None:
        """Find the folder of this name that an access key sees."""
        return next((access for access in await self.seen_by(access_key) if access.folder.name == name), None)

    async def by_id(self, access_key: str, folder_id: uuid.UUID) -> FolderAccess | None:
        """Find a folder that an access key sees."""
        return next((access for access in await self.seen_by(access_key) if access.folder.id == folder_id), None)

    async def seen_by(self, access_key: str) -> Sequence[FolderAccess]:
        """List the folders that an access key sees, in order of their names, its own first."""
        own = [
            FolderAccess(one, True, Permission.READ_WRITE) for one in self._folders.values() if one.owner == access_key
        ]
        shared = [
            FolderAccess(self._folders[folder_id], False, permission)
            for (folder_id, key), permission in self._permissions.items()
            if key == access_key
        ]
        found = [*own, *shared]
        return sorted(found, key=lambda a: (not a.is_owner, a.folder.name, a.folder.created_at, a.folder.id))

    async def rename(self, folder_id: uuid.UUID, name: str) -> bool:
        """Give a folder another name; False when there is none."""
        rows.require_storable((name,))
        folder = self._folders.get(folder_id)
        if folder is None:
            return False
        if name != folder.name:
            self._require_free(folder.owner, name)
        self._folders[folder_id] = attrs.evolve(folder, name=name)
        return True

    async def allow_cloning(self, folder_id: uuid.UUID, allowed: bool) -> bool:
        """Say whether those it is shared with may clone a folder; False when there is none."""
        if folder_id not in self._folders:
            return False
        self._folders[folder_id] = attrs.evolve(self._folders[folder_id], cloneable=allowed)
        return True

    async def remove(self, folder_id: uuid.UUID) -> bool:
        """Remove a folder with its permissions and invitations; False when there is none."""
        for pair in [pair for pair in self._permissions if pair[0] == folder_id]:
            del self._permissions[pair]
        for one in [one for one in self._invitations.values() if one.folder_id == folder_id]:
            del self._invitations[one.id]
        return self._folders.pop(folder_id, None) is not None

    async def note_use(self, folder_ids: Collection[uuid.UUID], now: float) -> None:
        """Note that folders were used."""
        for folder_id in folder_ids:
            if folder_id in self._folders:
                at = rows.to_microseconds(now)
                self._folders[folder_id] = attrs.evolve(self._folders[folder_id], last_used=at)

    async def page(
        self, owner: str | None, offset: int, limit: int, selection: Selection = EVERYTHING
    ) -> Sequence[Folder]:
        """List the folders that an access key owns, or all, the newest first."""
        found = [one for one in self._folders.values() if owner in {None, one.owner}]
        newest = sorted(found, key=lambda one: (one.created_at, one.id), reverse=True)
        return select(newest, selection, of_folder)[offset : offset + limit]

    async def count_of(self, owner: str | None, selection: Selection = EVERYTHING) -> int:
        """Tell how many :meth:`page` would list without a limit."""
        return len(await self.page(owner, 0, len(self._folders), selection))

    async def newest_of_owners(self, owners: Collection[str], limit: int) -> Sequence[Folder]:
        """List the newest folders of each of these owners, at most ``limit`` each."""
        return [one for owner in dict.fromkeys(owners) for one in await self.page(owner, 0, limit)]

    async def existing(self, folder_ids: Collection[uuid.UUID]) -> frozenset[uuid.UUID]:
        """Tell which of these folders there are."""
        return frozenset(folder_ids) & self._folders.keys()

    async def invite(
        self, folder_id: uuid.UUID, inviter: str, invitees: Sequence[str], permission: Permission, now: float
    ) -> Sequence[str]:
        """Invite those of the invitees that are a user id or an access key of another's active keypair."""
        others = [one for one in await self._keypairs.page(None, True, 0, _MOST_KEYPAIRS) if one.access_key != inviter]
        known = {one.user_id for one in others} | {one.access_key for one in others}
        invited = [invitee for invitee in dict.fromkeys(invitees) if invitee in known]
        for invitee in invited:
            key = (folder_id, invitee)
            earlier = next((one for one in self._invitations.values() if (one.folder_id, one.invitee) == key), None)
            invitation = (
                attrs.evolve(earlier, permission=permission)
                if earlier
                else Invitation(
                    uuid.uuid4(),
                    folder_id,
                    self._folders[folder_id].name,
                    inviter,
                    invitee,
                    permission,
                    rows.to_microseconds(now),
                )
            )
            self._invitations[invitation.id] = invitation
        return invited

    async def invitations_for(self, access_key: str, user_id: str) -> Sequence[Invitation]:
        """List the invitations for an access key or its user, the oldest first."""
        found = [self._named(one) for one in self._invitations.values() if _is_for(one, access_key, user_id)]
        return sorted(found, key=lambda one: (one.created_at, one.id))

    async def accept(self, invitation_id: uuid.UUID, access_key: str, user_id: str) -> Invitation | None:
        """Turn an invitation into a permission; None when this key has none of that id."""
        found = self._invitations.get(invitation_id)
        if found is None or not _is_for(found, access_key, user_id):
            return None
        del self._invitations[invitation_id]
        if self._folders[found.folder_id].owner != access_key:
            self._permissions[found.folder_id, access_key] = found.permission
        return self._named(found)

    async def withdraw(self, invitation_id: uuid.UUID, access_key: str, user_id: str) -> Invitation | None:
        """Remove an invitation to or by an access key; None when there is none."""
        found = self._invitations.get(invitation_id)
        if found is None or not (found.inviter == access_key or _is_for(found, access_key, user_id)):
            return None
        return self._named(self._invitations.pop(invitation_id))

    def _named(self, invitation: Invitation) -> Invitation:
        return attrs.evolve(invitation, folder_name=self._folders[invitation.folder_id].name)

    async def leave(self, folder_id: uuid.UUID, access_key: str) -> bool:
        """Take a key's permission away; False when it had none."""
        return self._permissions.pop((folder_id, access_key), None) is not None

    async def share(
        self, folder_id: uuid.UUID, owner: str, users: Collection[str], permission: Permission
    ) -> Sequence[str]:
        """Let the active keypairs of these users, or of these access keys, use a folder; gives those that there are."""
        others = [one for one in await self._keypairs.page(None, True, 0, _MOST_KEYPAIRS) if one.access_key != owner]
        met = [
            (user, one.access_key)
            for user in dict.fromkeys(users)
            for one in others
            if user and user in {one.user_id, one.access_key} and folder_id in self._folders
        ]
        self._permissions.update({(folder_id, key): permission for _user, key in met})
        return list(dict.fromkeys(user for user, _key in met))

    async def unshare(self, folder_id: uuid.UUID, users: Collection[str]) -> Sequence[str]:
        """Take the permissions and invitations of these users, or access keys, away; gives those that had one."""
        met = []
        for user in filter(None, dict.fromkeys(users)):
            keys = [key for one, key in self._permissions if one == folder_id and user in await self._names_of(key)]
            offers = [one.id for one in self._invitations.values() if (one.folder_id, one.invitee) == (folder_id, user)]
            met += [user] if keys or offers else []
            for key in keys:
                del self._permissions[folder_id, key]
            for offer in offers:
                del self._invitations[offer]
        return met

    async def _names_of(self, access_key: str) -> tuple[str, str]:
        keypair = await self._keypairs.by_access_key(access_key)
        return access_key, keypair.user_id if keypair else ""

    async def shares_of(self, owner: str, folder_id: uuid.UUID | None, limit: int) -> Sequence[Share]:
        """List who may use the folders of an owner, or one of them, in order of name and access key."""
        found = [
            Share(self._folders[one], key, (await self._names_of(key))[1], permission)
            for (one, key), permission in self._permissions.items()
            if self._folders[one].owner == owner and folder_id in {None, one}
        ]
        return sorted(found, key=lambda share: (share.folder.name, share.access_key))[:limit]

    async def permissions(self, folder_ids: Collection[uuid.UUID]) -> Mapping[tuple[uuid.UUID, str], Permission]:
        """Give (folder, access key) -> permission for everybody who sees one of these folders."""
        owned = {(one.id, one.owner): Permission.READ_WRITE for one in self._folders.values()}
        return {pair: one for pair, one in (owned | self._permissions).items() if pair[0] in folder_ids}

    async def remove_forsaken(self) -> Sequence[uuid.UUID]:
        """Remove the folders of keypairs that were removed, and those keypairs' permissions and invitations."""
        gone = [one.id for one in self._folders.values() if await self._keypairs.by_access_key(one.owner) is None]
        for folder_id in gone:
            await self.remove(folder_id)
        for pair in [pair for pair in self._permissions if await self._keypairs.by_access_key(pair[1]) is None]:
            del self._permissions[pair]
        return gone

    # -- what folders hold

    async def to_count(self, since: float, limit: int) -> Sequence[Folder]:
        """List folders that were changed, or that a kernel could write to, after they were last counted."""
        written: dict[uuid.UUID, float] = {}
        for one in self._kernels.mounting() if self._kernels is not None else ():
            ended = one.kernel.terminated_at
            for folder_id in one.writable if ended is None or ended > since else ():
                written[folder_id] = max(written.get(folder_id, 0.0), float("inf") if ended is None else ended)
        wanted = [
            one
            for one in self._folders.values()
            if max(one.last_used or 0.0, written.get(one.id, 0.0)) > self._counted.get(one.id, -1.0)
        ]
        return sorted(wanted, key=lambda one: (-1.0 if one.held is None else self._counted[one.id], one.id))[:limit]

    async def note_count(self, folder_id: uuid.UUID, held: FolderUse, now: float) -> None:
        """Note what a folder held at a time."""
        if folder_id in self._folders:
            self._counted[folder_id] = rows.to_microseconds(now)
            self._folders[folder_id] = attrs.evolve(self._folders[folder_id], held=FolderUse(held.files, held.size))


def _is_for(invitation: Invitation, access_key: str, user_id: str) -> bool:
    return invitation.invitee in {access_key, user_id} - {""} and invitation.inviter != access_key
