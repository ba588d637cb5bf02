"""What a door may ask about virtual folders: who may do what with which, within which bounds.

Knows no door, no SQL and no file system. Every folder is looked up together with the access key, here and nowhere else.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from attrs import evolve, frozen
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from sorna.errors import (
    FolderAlreadyExists,
    FolderForbidden,
    FolderInUse,
    FolderNotFound,
    InvalidRequest,
    InvitationNotFound,
    QuotaExceeded,
)
from sorna.manager.entitlements import Entitlements
from sorna.manager.folder_interfaces import FolderStorage, FolderStore, SmallFile, Upload
from sorna.manager.interfaces import KeypairFinder
from sorna.manager.requests import MountWish
from sorna.model.file import FileEntry, FilePiece
from sorna.model.folder import (
    MAX_MOUNTS,
    Folder,
    FolderAccess,
    FolderBounds,
    FolderUse,
    Invitation,
    Mount,
    Permission,
    Share,
    overlapping,
    valid_alias,
    valid_folder_name,
)
from sorna.model.keypair import Keypair
from sorna.model.limits import MIB

MAX_INVITEES = 100
MAX_SHARES = 1000
# Seconds after its end for which a kernel's folders are counted once more; the first count after the end is enough.
_RECENT = 3600.0
_COUNTED_AT_ONCE = 100
# Sessions that an error names.
_NAMED = 5


@frozen
class OpenFolder:
    """A folder that somebody may read, and write to if they may."""

    access: FolderAccess
    storage: FolderStorage
    store: FolderStore
    clock: IReactorTime

    @property
    def id(self) -> uuid.UUID:
        """The folder's id."""
        return self.access.folder.id

    async def use(self) -> FolderUse:
        """Count what it holds, and remember it for the lists."""
        began = self.clock.seconds()
        held = await self.storage.measure(self.id, self.access.folder.bounds)
        await self.store.note_count(self.id, held, began)
        return held

    async def list_files(self, path: str, *, recursive: bool = False) -> Sequence[FileEntry]:
        """List a directory; what is no directory is one entry without a name."""
        return await self.storage.list_files(self.id, path, recursive=recursive)

    async def read_file(self, path: str, offset: int, size: int) -> FilePiece:
        """Read a piece of a regular file."""
        return await self.storage.read_file(self.id, path, offset, size)

    async def write_files(self, files: Sequence[SmallFile]) -> None:
        """Write files, each whole or not at all. :raises QuotaExceeded: none was written."""
        await self._changing()
        await self.storage.write_files(self.id, files, self.access.folder.bounds)

    async def make_directory(self, path: str) -> None:
        """Make a directory and those above it."""
        await self._changing()
        await self.storage.make_directory(self.id, path, self.access.folder.bounds)

    async def remove_files(self, paths: Sequence[str], *, recursive: bool) -> None:
        """Remove files, and directories with what is in them only if ``recursive``."""
        await self._changing()
        await self.storage.remove_files(self.id, paths, recursive=recursive)

    async def rename_file(self, path: str, new_name: str) -> None:
        """Give a file or directory another name in its directory."""
        await self._changing()
        await self.storage.rename_file(self.id, path, new_name)

    async def move_file(self, source: str, target: str) -> None:
        """Move a file or directory into a directory, or to another place."""
        await self._changing()
        await self.storage.move_file(self.id, source, target)

    async def begin_upload(self, upload: Upload) -> None:
        """Reserve the room of an upload."""
        await self._changing()
        await self.storage.begin_upload(upload, self.access.folder.bounds)

    async def append_upload(self, upload: Upload, offset: int, content: bytes) -> int:
        """Add a piece; gives the new offset."""
        self.require_write()
        return await self.storage.append_upload(upload, offset, content, self.access.folder.bounds)

    async def _changing(self) -> None:
        self.require_write()
        await self.store.note_use([self.id], self.clock.seconds())

    def require_write(self) -> None:
        """See that its content may be changed. :raises FolderForbidden: it may only be read."""
        if not self.access.may_write:
            raise FolderForbidden("The folder is shared with you for reading only.")


@frozen
class Folders:
    """The folders of everybody.

    :ivar bounds: of a new folder, where its owner's policy says nothing else.
    :ivar most: folders that a keypair may own, likewise.
    """

    clock: IReactorTime
    store: FolderStore
    storage: FolderStorage
    keypairs: KeypairFinder
    entitlements: Entitlements
    bounds: FolderBounds
    most: int

    _log = Logger()

    async def create(self, access_key: str, name: str, size: int = 0, *, cloneable: bool = False) -> Folder:
        """Make a folder.

        :param size: bytes that it may hold; 0 for as much as is allowed.
        :param cloneable: whether those it will be shared with may clone it.
        :raises InvalidRequest, FolderAlreadyExists, QuotaExceeded:
        """
        folder, most = await self._planned(access_key, name, size, cloneable=cloneable)
        # Its place comes first: a place that nobody knows is swept away, a row without a place would stay.
        await self.storage.create(folder.id)
        await self._add(folder, most)
        return folder

    async def clone(self, access_key: str, name: str, new_name: str, *, cloneable: bool = False) -> Folder:
        """Make a folder that holds what another one holds now.

        :raises FolderForbidden: it is somebody else's, who does not allow it.
        :raises InvalidRequest, FolderAlreadyExists, QuotaExceeded: there is no new folder.
        """
        source = await self.open(access_key, name)
        if not (source.access.is_owner or source.access.folder.cloneable):
            raise FolderForbidden("The owner of the folder does not allow that it is cloned.")
        folder, most = await self._planned(access_key, new_name, 0, cloneable=cloneable)
        # Looked at before anything is copied, and for good when the row is written.
        if any(seen.is_owner and seen.folder.name == new_name for seen in await self.store.seen_by(access_key)):
            raise FolderAlreadyExists(new_name)
        if await self.store.count_of(access_key) >= most:
            raise QuotaExceeded(f"folders: {most} of {most} in use")
        await self.storage.create(folder.id)
        try:
            held = await self.storage.copy(source.id, folder.id, folder.bounds)
        except BaseException:
            await self.storage.destroy(folder.id)
            raise
        await self._add(evolve(folder, held=held), most)
        return folder

    async def _planned(self, access_key: str, name: str, size: int, *, cloneable: bool) -> tuple[Folder, int]:
        """Give the folder that somebody may make, and how many there may be with it."""
        require_name(name)
        policy = (await self._keypair(access_key)).policy
        most = self.most if policy is None or policy.max_folders is None else policy.max_folders
        allowed = self.bounds.size if policy is None or policy.max_folder_size is None else policy.max_folder_size
        if size > allowed or allowed <= 0:
            raise QuotaExceeded(f"size: a folder may hold {allowed // MIB} MiB")
        bounds = evolve(self.bounds, size=size or allowed)
        now = self.clock.seconds()
        folder = Folder(uuid.uuid4(), name, access_key, now, bounds, cloneable=cloneable, held=FolderUse(0, 0))
        return folder, most

    async def _add(self, folder: Folder, most: int) -> None:
        try:
            await self.store.add(folder, most)
        except (FolderAlreadyExists, QuotaExceeded, InvalidRequest):
            await self.storage.destroy(folder.id)
            raise

    async def seen_by(self, access_key: str) -> Sequence[FolderAccess]:
        """List the folders that an access key sees, its own first."""
        return await self.store.seen_by(access_key)

    async def open(self, access_key: str, name: str) -> OpenFolder:
        """Find a folder by its name. :raises FolderNotFound: this key sees none."""
        return self._opened(await self.store.by_name(access_key, name) if valid_folder_name(name) else None, name)

    async def open_by_id(self, access_key: str, folder_id: uuid.UUID) -> OpenFolder:
        """Find a folder by its id. :raises FolderNotFound: this key sees none."""
        return self._opened(await self.store.by_id(access_key, folder_id), folder_id.hex)

    def _opened(self, access: FolderAccess | None, reference: str) -> OpenFolder:
        if access is None:
            raise FolderNotFound(reference[:64])
        return OpenFolder(access, self.storage, self.store, self.clock)

    async def rename(self, access_key: str, name: str, new_name: str) -> None:
        """Give a folder of this key another name. :raises FolderForbidden, FolderAlreadyExists, InvalidRequest:."""
        require_name(new_name)
        folder = self._own(await self.open(access_key, name))
        if not await self.store.rename(folder.id, new_name):
            raise FolderNotFound(name)

    async def allow_cloning(self, access_key: str, name: str, allowed: bool) -> None:
        """Say whether those whom a folder of this key is shared with may clone it."""
        folder = self._own(await self.open(access_key, name))
        if not await self.store.allow_cloning(folder.id, allowed):
            raise FolderNotFound(name)

    async def remove(self, access_key: str, folder: OpenFolder) -> None:
        """Remove a folder of this key, with everything in it; others' kernels that see it end.

        :raises FolderForbidden: it is somebody else's.
        :raises FolderInUse: kernels of this key see it.
        """
        self._own(folder)
        sessions = await self.entitlements.sessions_of(access_key, folder.id)
        if sessions:
            more = f" and {len(sessions) - _NAMED} more" if len(sessions) > _NAMED else ""
            raise FolderInUse(f"End the sessions that see it first: {', '.join(sessions[:_NAMED])}{more}")
        await self.store.remove(folder.id)
        await self.entitlements.enforce([folder.id])
        await self.storage.destroy(folder.id)
        self._log.info("folder {folder_id} of {access_key} is removed", folder_id=folder.id.hex, access_key=access_key)

    async def remove_forsaken(self) -> None:
        """Remove the folders of keypairs that were removed, with everything in them; others' kernels that see one end."""
        gone = await self.store.remove_forsaken()
        if gone:
            await self.entitlements.enforce(gone)
        for folder_id in gone:
            await self.storage.destroy(folder_id)
            self._log.info("folder {folder_id} is removed with its owner", folder_id=folder_id.hex)

    async def count(self) -> None:
        """Count what was changed since it was last counted, for the lists; some of it, if that is much."""
        now = self.clock.seconds()
        for folder in await self.store.to_count(now - _RECENT, _COUNTED_AT_ONCE):
            began = self.clock.seconds()
            try:
                held = await self.storage.measure(folder.id, folder.bounds)
            except FolderNotFound:
                continue  # it was removed a moment ago
            await self.store.note_count(folder.id, held, began)

    async def leave(self, access_key: str, name: str) -> None:
        """Give up a folder that is shared with this key; its kernels that see it end.

        :raises FolderForbidden: it is its own.
        """
        folder = await self.open(access_key, name)
        if folder.access.is_owner:
            raise FolderForbidden("It is your own folder; delete it instead.")
        await self.store.leave(folder.id, access_key)
        await self.entitlements.enforce([folder.id])

    # -- sharing

    async def invite(
        self, access_key: str, name: str, invitees: Sequence[str], permission: Permission
    ) -> Sequence[str]:
        """Offer a folder of this key to users or access keys; gives those that there are."""
        _require_some(invitees)
        folder = self._own(await self.open(access_key, name))
        return await self.store.invite(folder.id, access_key, invitees, permission, self.clock.seconds())

    async def share(self, access_key: str, name: str, users: Sequence[str], permission: Permission) -> Sequence[str]:
        """Let users or access keys use a folder of this key without asking them; gives those that there are.

        Who could use it already can with this permission from now on: kernels that could do more end.
        """
        folder = self._own(await self.open(access_key, name))
        _require_some(users)
        found = await self.store.share(folder.id, access_key, users, permission)
        await self.entitlements.enforce([folder.id])
        return found

    async def unshare(self, access_key: str, name: str, users: Sequence[str]) -> Sequence[str]:
        """Take a folder of this key away from users or access keys; gives those that had it. Their kernels that see it end."""
        folder = self._own(await self.open(access_key, name))
        _require_some(users)
        found = await self.store.unshare(folder.id, users)
        await self.entitlements.enforce([folder.id])
        return found

    async def shares(self, access_key: str, folder_id: uuid.UUID | None) -> Sequence[Share]:
        """List who may use the folders of this key, or one of them."""
        return await self.store.shares_of(access_key, folder_id, MAX_SHARES)

    async def invitations(self, access_key: str) -> Sequence[Invitation]:
        """List what this key is invited to."""
        return await self.store.invitations_for(access_key, (await self._keypair(access_key)).user_id)

    async def accept(self, access_key: str, invitation_id: uuid.UUID) -> Invitation:
        """Take an offer. :raises InvitationNotFound, FolderAlreadyExists: this key sees a folder of that name already."""
        keypair = await self._keypair(access_key)
        for invitation in await self.store.invitations_for(access_key, keypair.user_id):
            seen = None
            if invitation.id == invitation_id:
                seen = await self.store.by_name(access_key, invitation.folder_name)
            if seen is not None and seen.folder.id != invitation.folder_id:
                raise FolderAlreadyExists(invitation.folder_name)
        accepted = await self.store.accept(invitation_id, access_key, keypair.user_id)
        if accepted is None:
            raise InvitationNotFound
        # A later invitation may allow less than an earlier one.
        await self.entitlements.enforce([accepted.folder_id])
        return accepted

    async def withdraw(self, access_key: str, invitation_id: uuid.UUID) -> Invitation:
        """Refuse an offer, or take it back. :raises InvitationNotFound:."""
        keypair = await self._keypair(access_key)
        withdrawn = await self.store.withdraw(invitation_id, access_key, keypair.user_id)
        if withdrawn is None:
            raise InvitationNotFound
        return withdrawn

    # -- kernels

    async def mounts(self, access_key: str, wishes: Sequence[MountWish]) -> Sequence[Mount]:
        """Find what a new kernel shall see of folders.

        :raises FolderNotFound, InvalidRequest: nothing is mounted.
        """
        if not wishes:
            return ()
        if len(wishes) > MAX_MOUNTS:
            raise InvalidRequest(f"At most {MAX_MOUNTS} folders can be mounted")
        aliases = [wish.alias or wish.name for wish in wishes]
        wrong = next((alias for alias in aliases if not valid_alias(alias)), None) or overlapping(aliases)
        if wrong is not None:
            raise InvalidRequest(f"A folder cannot be mounted at {wrong[:80]!r}, or another one is already")
        found = [await self.open(access_key, wish.name) for wish in wishes]
        await self.store.note_use([folder.id for folder in found], self.clock.seconds())
        return [_mount(folder.access, alias) for folder, alias in zip(found, aliases, strict=True)]

    async def still_allowed(self, access_key: str, mounts: Sequence[Mount]) -> bool:
        """Tell whether what :meth:`mounts` gave may still be mounted; see Note [Taking a folder away]."""
        return not mounts or await self.entitlements.hold(access_key, mounts)

    def _own(self, folder: OpenFolder) -> OpenFolder:
        if not folder.access.is_owner:
            raise FolderForbidden("Only the owner of a folder can do this.")
        return folder

    async def _keypair(self, access_key: str) -> Keypair:
        keypair = await self.keypairs.find(access_key)
        if keypair is None:
            raise FolderNotFound  # it was removed a moment ago
        return keypair


def _mount(access: FolderAccess, alias: str) -> Mount:
    bounds = access.folder.bounds
    return Mount(access.folder.id.hex, alias, not access.may_write, bounds.files, bounds.size)


def _require_some(users: Sequence[str]) -> None:
    if not 1 <= len(users) <= MAX_INVITEES:
        raise InvalidRequest(f"1 to {MAX_INVITEES} users can be named at once")


def require_name(name: str) -> None:
    """See that a folder may have a name. :raises InvalidRequest: it may not."""
    if not valid_folder_name(name):
        raise InvalidRequest(
            "The name of a folder must be 1 to 64 of A-Z a-z 0-9 . _ - with a letter or digit at both ends"
        )
