"""What the manager needs for virtual folders, as Protocols: who has which, and where their content lies.

``store`` implements :class:`FolderStore`, ``folders`` implements :class:`FolderStorage`. Every method may raise
:class:`sorna.errors.Unavailable`.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from attrs import field, frozen

from sorna.model.file import FileEntry, FilePiece
from sorna.model.folder import Folder, FolderAccess, FolderBounds, FolderUse, Invitation, Permission, Share
from sorna.model.kernel import Kernel
from sorna.model.selection import EVERYTHING, Selection


class FolderStore(Protocol):
    """Folders, permissions and invitations in PostgreSQL."""

    async def add(self, folder: Folder, most: int | None) -> None:
        """Store a folder, unless its owner has ``most`` already; atomic across processes.

        :raises FolderAlreadyExists, QuotaExceeded: nothing was stored.
        """
        ...

    async def by_name(self, access_key: str, name: str) -> FolderAccess | None:
        """Find the folder of this name that an access key sees, its own before one that is shared with it."""
        ...

    async def by_id(self, access_key: str, folder_id: uuid.UUID) -> FolderAccess | None:
        """Find a folder that an access key sees."""
        ...

    async def seen_by(self, access_key: str) -> Sequence[FolderAccess]:
        """List the folders that an access key sees, in order of their names, its own first."""
        ...

    async def rename(self, folder_id: uuid.UUID, name: str) -> bool:
        """Give a folder another name; False when there is none. :raises FolderAlreadyExists: its owner has that name."""
        ...

    async def allow_cloning(self, folder_id: uuid.UUID, allowed: bool) -> bool:
        """Say whether those it is shared with may clone a folder; False when there is none."""
        ...

    async def remove(self, folder_id: uuid.UUID) -> bool:
        """Remove a folder with its permissions and invitations; False when there is none."""
        ...

    async def note_use(self, folder_ids: Collection[uuid.UUID], now: float) -> None:
        """Note that folders were used."""
        ...

    async def page(
        self, owner: str | None, offset: int, limit: int, selection: Selection = EVERYTHING
    ) -> Sequence[Folder]:
        """List the folders that an access key owns, or all, the newest first."""
        ...

    async def count_of(self, owner: str | None, selection: Selection = EVERYTHING) -> int:
        """Tell how many :meth:`page` would list without a limit."""
        ...

    async def newest_of_owners(self, owners: Collection[str], limit: int) -> Sequence[Folder]:
        """List the newest folders of each of these owners, at most ``limit`` each."""
        ...

    async def existing(self, folder_ids: Collection[uuid.UUID]) -> frozenset[uuid.UUID]:
        """Tell which of these folders there are."""
        ...

    async def invite(
        self, folder_id: uuid.UUID, inviter: str, invitees: Sequence[str], permission: Permission, now: float
    ) -> Sequence[str]:
        """Invite those of the invitees that are a user id or an access key of an active keypair that is not the inviter's.

        Whoever was invited already is invited anew, with this permission.

        :returns: those who were invited, in the order of the request.
        """
        ...

    async def invitations_for(self, access_key: str, user_id: str) -> Sequence[Invitation]:
        """List the invitations for an access key or its user, the oldest first."""
        ...

    async def accept(self, invitation_id: uuid.UUID, access_key: str, user_id: str) -> Invitation | None:
        """Turn an invitation into a permission; None when this key has none of that id."""
        ...

    async def withdraw(self, invitation_id: uuid.UUID, access_key: str, user_id: str) -> Invitation | None:
        """Remove an invitation to or by an access key; None when there is none."""
        ...

    async def leave(self, folder_id: uuid.UUID, access_key: str) -> bool:
        """Take a key's permission away; False when it had none."""
        ...

    async def share(
        self, folder_id: uuid.UUID, owner: str, users: Collection[str], permission: Permission
    ) -> Sequence[str]:
        """Let the active keypairs of these users, or of these access keys, use a folder.

        Who could use it already can with this permission from now on.

        :returns: those of ``users`` that there are and that are not the owner alone, in their order.
        """
        ...

    async def unshare(self, folder_id: uuid.UUID, users: Collection[str]) -> Sequence[str]:
        """Take the permissions and invitations of these users, or of these access keys, away.

        :returns: those of ``users`` that had one, in their order.
        """
        ...

    async def shares_of(self, owner: str, folder_id: uuid.UUID | None, limit: int) -> Sequence[Share]:
        """List who may use the folders of an owner, or one of them, in order of name and access key."""
        ...

    async def permissions(self, folder_ids: Collection[uuid.UUID]) -> Mapping[tuple[uuid.UUID, str], Permission]:
        """Give (folder, access key) -> permission for everybody who sees one of these folders, their owners among them."""
        ...

    async def remove_forsaken(self) -> Sequence[uuid.UUID]:
        """Remove the folders of keypairs that were removed, and those keypairs' permissions and invitations.

        :returns: the folders, whose content is still there.
        """
        ...

    async def to_count(self, since: float, limit: int) -> Sequence[Folder]:
        """List folders that were changed, or that a kernel could write to, after they were last counted.

        :param since: kernels that ended before are not looked at.
        """
        ...

    async def note_count(self, folder_id: uuid.UUID, held: FolderUse, now: float) -> None:
        """Note what a folder held at a time."""
        ...


@frozen
class MountingKernel:
    """A live kernel and the folders that it sees.

    :ivar writable: those of ``folders`` that it can write to.
    """

    kernel: Kernel
    folders: frozenset[uuid.UUID]
    writable: frozenset[uuid.UUID]


@frozen
class Upload:
    """One file on its way into a folder, piece by piece.

    :ivar id: drawn at random by the server.
    :ivar place: the same for two uploads of one key to one path, of which only the later goes on.
    :ivar size: bytes, reserved in the folder from the beginning.
    """

    folder_id: uuid.UUID
    id: str
    place: str
    path: str
    size: int


@frozen
class SmallFile:
    """A file that is written at once. ``path`` is relative, as the client sent it."""

    path: str
    content: bytes = field(repr=False)


class FolderStorage(Protocol):
    """The content of folders on a file system that agents see too.

    Paths are relative and are resolved below their folder without following any link. A path that cannot be, or what the
    system refuses, is InvalidRequest with a sentence; a folder without content, FolderNotFound.

    :ivar storage_id: the same wherever the same storage is seen.
    """

    storage_id: str

    async def create(self, folder_id: uuid.UUID) -> None:
        """Make the place of a new folder."""
        ...

    async def destroy(self, folder_id: uuid.UUID) -> None:
        """Remove a folder's content, however much it is; harmless when there is none."""
        ...

    async def measure(self, folder_id: uuid.UUID, bounds: FolderBounds) -> FolderUse:
        """Count what a folder holds, no further than its bounds."""
        ...

    async def list_files(self, folder_id: uuid.UUID, path: str, *, recursive: bool = False) -> Sequence[FileEntry]:
        """List a directory; what is no directory is one entry without a name."""
        ...

    async def read_file(self, folder_id: uuid.UUID, path: str, offset: int, size: int) -> FilePiece:
        """Read a piece of a regular file."""
        ...

    async def write_files(self, folder_id: uuid.UUID, files: Sequence[SmallFile], bounds: FolderBounds) -> None:
        """Write files, each whole or not at all. :raises QuotaExceeded: they do not fit; none was written."""
        ...

    async def make_directory(self, folder_id: uuid.UUID, path: str, bounds: FolderBounds) -> None:
        """Make a directory and those above it. :raises QuotaExceeded: the folder holds as many entries as it may."""
        ...

    async def remove_files(self, folder_id: uuid.UUID, paths: Sequence[str], *, recursive: bool) -> None:
        """Remove files, and directories with what is in them only if ``recursive``."""
        ...

    async def rename_file(self, folder_id: uuid.UUID, path: str, new_name: str) -> None:
        """Give a file or directory another name in the same directory, where nothing has that name."""
        ...

    async def move_file(self, folder_id: uuid.UUID, source: str, target: str) -> None:
        """Move a file or directory: into the target if that is a directory, else in its place, where only a file may be."""
        ...

    async def copy(self, source_id: uuid.UUID, target_id: uuid.UUID, bounds: FolderBounds) -> FolderUse:
        """Fill an empty folder with what another holds: directories, files and links, each as it is now.

        :raises QuotaExceeded: it is more than ``bounds`` allow; the target holds a part of it.
        """
        ...

    async def begin_upload(self, upload: Upload, bounds: FolderBounds) -> None:
        """Reserve the room of an upload. :raises QuotaExceeded: there is none."""
        ...

    async def upload_offset(self, upload: Upload) -> int:
        """Tell how many bytes of an upload have arrived. :raises UploadConflict: it is over or was replaced."""
        ...

    async def append_upload(self, upload: Upload, offset: int, content: bytes, bounds: FolderBounds) -> int:
        """Add a piece, and put the file in its place when it is whole; gives the new offset.

        :raises UploadConflict: it is not at this offset. :raises QuotaExceeded: the folder has become full meanwhile.
        """
        ...

    async def abandon_upload(self, upload: Upload) -> None:
        """Forget an upload and give its room back; harmless when it is over."""
        ...
