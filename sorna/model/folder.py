"""Virtual folders: what one is, who may do what with it, and where it is seen inside a kernel; pure."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from enum import StrEnum

from attrs import frozen

from sorna.model.limits import MIB

#: The only storage there is, by the name under which clients that know of several see it.
HOST = "local"
MAX_MOUNTS = 16
_MAX_ALIAS_PARTS = 8
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?", re.ASCII)
_ALIAS_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", re.ASCII)


def valid_folder_name(name: str) -> bool:
    """Tell whether a name is 1 to 64 of ``A-Za-z0-9._-`` with a letter or digit at both ends."""
    return _NAME.fullmatch(name) is not None


def valid_alias(alias: str) -> bool:
    """Tell whether a path can be where a folder is seen below a kernel's working directory: plain names, none hidden."""
    parts = alias.split("/")
    return len(parts) <= _MAX_ALIAS_PARTS and all(_ALIAS_PART.fullmatch(part) for part in parts)


def overlapping(aliases: Sequence[str]) -> str | None:
    """Give an alias that is the same as another or lies below it; None when each has a place of its own."""
    known: set[str] = set()
    for alias in sorted(aliases):
        parts = alias.split("/")
        if any("/".join(parts[:length]) in known for length in range(1, len(parts) + 1)):
            return alias
        known.add(alias)
    return None


class Permission(StrEnum):
    """What somebody with whom a folder is shared may do with its content."""

    READ_ONLY = "ro"
    READ_WRITE = "rw"


@frozen
class FolderBounds:
    """How much one folder may hold: entries of every kind, and bytes on the disk."""

    files: int = 10_000
    size: int = 1024 * MIB


@frozen
class FolderUse:
    """What a folder holds now.

    :ivar complete: False where it holds more, or is nested deeper, than was counted.
    """

    files: int
    size: int
    complete: bool = True

    def exceeds(self, bounds: FolderBounds) -> bool:
        """Tell whether it holds more than it may."""
        return not self.complete or self.files > bounds.files or self.size > bounds.size


@frozen
class Folder:
    """One folder as PostgreSQL has it. Times are seconds since the epoch.

    :ivar owner: an access key; a name is unique among those of its owner.
    :ivar last_used: when it was last written to or mounted; None for never.
    :ivar cloneable: whether those it is shared with may make folders of their own with the same content.
    :ivar held: what it held when it was last counted, which may be a while ago; None before the first time.
    """

    id: uuid.UUID
    name: str
    owner: str
    created_at: float
    bounds: FolderBounds
    last_used: float | None = None
    cloneable: bool = False
    held: FolderUse | None = None


@frozen
class FolderAccess:
    """A folder as one access key sees it."""

    folder: Folder
    is_owner: bool
    permission: Permission

    @property
    def may_write(self) -> bool:
        """Whether its content may be changed."""
        return self.permission is Permission.READ_WRITE


@frozen
class Invitation:
    """An owner's offer that nobody has answered yet.

    :ivar invitee: a user id, or an access key.
    """

    id: uuid.UUID
    folder_id: uuid.UUID
    folder_name: str
    inviter: str
    invitee: str
    permission: Permission
    created_at: float


@frozen
class Mount:
    """A folder inside a kernel.

    :ivar folder_id: in hexadecimal.
    :ivar alias: where it is seen, below the working directory.
    """

    folder_id: str
    alias: str
    read_only: bool
    max_files: int
    max_size: int


@frozen
class Share:
    """A folder and one of the access keys that may use it besides its owner."""

    folder: Folder
    access_key: str
    user_id: str
    permission: Permission
