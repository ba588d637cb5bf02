"""Virtual folders in PostgreSQL; implements :class:`sorna.manager.folder_interfaces.FolderStore`.

Every method is one statement, so that what it promises holds whatever others do at the same time; see Note [Exact under
concurrency] in ``kernels.py`` for how a place of a quota is taken.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sorna.errors import FolderAlreadyExists, QuotaExceeded
from sorna.model.folder import Folder, FolderAccess, FolderBounds, FolderUse, Invitation, Permission, Share
from sorna.model.selection import EVERYTHING, Selection
from sorna.store import rows
from sorna.store.connection import Conflict, Row
from sorna.store.folder_sharing import PostgresSharing
from sorna.store.selecting import FOLDER_COLUMNS
from sorna.store.selecting import clauses as clauses_of

_ADD = """
WITH taken AS (
    UPDATE keypairs SET folders_used = folders_used + 1
     WHERE access_key = %(owner)s AND removed_at IS NULL AND (%(most)s::integer IS NULL OR folders_used < %(most)s)
    RETURNING access_key
)
INSERT INTO folders (id, owner, name, created_at, max_files, max_size, cloneable, num_files, cur_size, counted_at)
SELECT %(id)s::uuid, access_key, %(name)s, to_timestamp(%(now)s), %(files)s, %(size)s, %(cloneable)s,
       %(num_files)s, %(cur_size)s, CASE WHEN %(num_files)s::integer IS NOT NULL THEN to_timestamp(%(now)s) END FROM taken
RETURNING 1
"""
_FOLDER = """f.id, f.name, f.owner, extract(epoch FROM f.created_at)::float8, f.max_files, f.max_size,
       extract(epoch FROM f.last_used)::float8, f.cloneable, f.num_files, f.cur_size"""
# Constants and column names only; every value is a parameter.
_SEEN = f"""
SELECT {_FOLDER}, f.owner = %(key)s, coalesce(p.permission, 'rw')
  FROM folders f LEFT JOIN folder_permissions p ON p.folder_id = f.id AND p.access_key = %(key)s
 WHERE (f.owner = %(key)s OR p.access_key IS NOT NULL)
"""  # noqa: S608 - see above
_IN_ORDER = " ORDER BY f.owner = %(key)s DESC, f.name, f.created_at, f.id"
_BY_NAME = f"{_SEEN} AND f.name = %(name)s{_IN_ORDER} LIMIT 1"
_BY_ID = f"{_SEEN} AND f.id = %(id)s::uuid"
_SEEN_BY = f"{_SEEN}{_IN_ORDER}"
_ALL = f"SELECT {_FOLDER} FROM folders f"  # noqa: S608 - see above
_OF_OWNER = "(%(owner)s::text IS NULL OR f.owner = %(owner)s)"
_NEWEST = "f.created_at DESC, f.id DESC"
_PAGE = f"{_ALL} WHERE {_OF_OWNER}{{where}} ORDER BY {{order}}{_NEWEST} OFFSET %(offset)s LIMIT %(limit)s"
_COUNT = f"SELECT count(*) FROM folders f WHERE {_OF_OWNER}{{where}}"  # noqa: S608 - see above
_NEWEST_OF_OWNERS = f"""
SELECT newest.* FROM unnest(%s::text[]) AS o(owner)
 CROSS JOIN LATERAL ({_ALL} WHERE f.owner = o.owner ORDER BY {_NEWEST} LIMIT %s) newest
"""  # noqa: S608 - see above
_RENAME = "UPDATE folders SET name = %s WHERE id = %s::uuid RETURNING 1"
_ALLOW_CLONING = "UPDATE folders SET cloneable = %s WHERE id = %s::uuid RETURNING 1"
_REMOVE = """
WITH gone AS (DELETE FROM folders WHERE id = %s::uuid RETURNING owner)
UPDATE keypairs k SET folders_used = k.folders_used - 1 FROM gone WHERE k.access_key = gone.owner RETURNING 1
"""
_NOTE_USE = "UPDATE folders SET last_used = to_timestamp(%s) WHERE id = ANY(%s::uuid[])"
_EXISTING = "SELECT id FROM folders WHERE id = ANY(%s::uuid[])"
# Whoever is invited is a user or a key that there is; the ids are made here for as many as might be.
_INVITE = """
WITH wanted AS (
    SELECT * FROM unnest(%(ids)s::uuid[], %(invitees)s::text[]) WITH ORDINALITY AS w(id, invitee, place)
), invited AS (
    INSERT INTO folder_invitations (id, folder_id, inviter, invitee, permission, created_at)
    SELECT w.id, %(folder)s::uuid, %(inviter)s, w.invitee, %(permission)s, to_timestamp(%(now)s) FROM wanted w
     WHERE EXISTS (SELECT FROM keypairs k
                    WHERE (k.user_id = w.invitee OR k.access_key = w.invitee) AND k.access_key <> %(inviter)s
                      AND k.is_active AND k.removed_at IS NULL)
    ON CONFLICT (folder_id, invitee) DO UPDATE SET permission = excluded.permission
    RETURNING invitee
)
SELECT w.invitee FROM wanted w JOIN invited USING (invitee) ORDER BY w.place
"""
_INVITATION = (
    """i.id, i.folder_id, f.name, i.inviter, i.invitee, i.permission, extract(epoch FROM i.created_at)::float8"""
)
_TO_ME = "i.invitee IN (%(key)s, %(user)s) AND i.invitee <> '' AND i.inviter <> %(key)s"
_INVITATIONS = f"""
SELECT {_INVITATION} FROM folder_invitations i JOIN folders f ON f.id = i.folder_id
 WHERE {_TO_ME} ORDER BY i.created_at, i.id
"""  # noqa: S608 - see above
_ACCEPT = f"""
WITH i AS (
    DELETE FROM folder_invitations i WHERE i.id = %(id)s::uuid AND {_TO_ME} RETURNING *
), allowed AS (
    INSERT INTO folder_permissions (folder_id, access_key, permission)
    SELECT i.folder_id, %(key)s, i.permission FROM i JOIN folders f ON f.id = i.folder_id AND f.owner <> %(key)s
    ON CONFLICT (folder_id, access_key) DO UPDATE SET permission = excluded.permission
)
SELECT {_INVITATION} FROM i JOIN folders f ON f.id = i.folder_id
"""  # noqa: S608 - see above
_WITHDRAW = f"""
WITH i AS (
    DELETE FROM folder_invitations i WHERE i.id = %(id)s::uuid AND (i.inviter = %(key)s OR ({_TO_ME})) RETURNING *
)
SELECT {_INVITATION} FROM i JOIN folders f ON f.id = i.folder_id
"""  # noqa: S608 - see above
_SHARES_OF = f"""
SELECT {_FOLDER}, p.access_key, k.user_id, p.permission
  FROM folders f JOIN folder_permissions p ON p.folder_id = f.id JOIN keypairs k ON k.access_key = p.access_key
 WHERE f.owner = %(owner)s AND (%(folder)s::uuid IS NULL OR f.id = %(folder)s::uuid)
 ORDER BY f.name, p.access_key LIMIT %(limit)s
"""  # noqa: S608 - see above
# After a keypair was removed nobody can add anything in its name, so that this leaves nothing.
_REMOVE_FORSAKEN = """
WITH gone AS (
    DELETE FROM folders f USING keypairs k WHERE k.access_key = f.owner AND k.removed_at IS NOT NULL RETURNING f.id, f.owner
), freed AS (
    UPDATE keypairs SET folders_used = 0 WHERE access_key IN (SELECT owner FROM gone)
), forbidden AS (
    DELETE FROM folder_permissions p USING keypairs k WHERE k.access_key = p.access_key AND k.removed_at IS NOT NULL
), uninvited AS (
    DELETE FROM folder_invitations i USING keypairs k WHERE k.access_key = i.invitee AND k.removed_at IS NOT NULL
)
SELECT id FROM gone
"""
_TO_COUNT = f"""
{_ALL} WHERE f.counted_at IS NULL OR f.counted_at < f.last_used OR f.id IN (
    SELECT written.id FROM kernels k, unnest(k.writable_folders) AS written(id) JOIN folders g ON g.id = written.id
     WHERE k.folders <> '{{}}' AND coalesce(k.terminated_at > greatest(to_timestamp(%(since)s), g.counted_at), true)
)
 ORDER BY f.counted_at NULLS FIRST, f.id LIMIT %(limit)s
"""  # noqa: S608 - see above
_NOTE_COUNT = """
UPDATE folders SET num_files = %(files)s, cur_size = %(size)s, counted_at = to_timestamp(%(now)s) WHERE id = %(id)s::uuid
"""
_LEAVE = "DELETE FROM folder_permissions WHERE folder_id = %s::uuid AND access_key = %s RETURNING 1"


class PostgresFolders(PostgresSharing):
    """Every folder there is."""

    async def add(self, folder: Folder, most: int | None) -> None:
        """Store a folder, unless its owner has ``most`` already.

        :raises FolderAlreadyExists, QuotaExceeded: nothing was stored.
        """
        rows.require_storable((folder.owner, folder.name))
        parameters = {
            "id": str(folder.id),
            "owner": folder.owner,
            "name": folder.name,
            "now": rows.to_microseconds(folder.created_at),
            "files": folder.bounds.files,
            "size": folder.bounds.size,
            "most": most,
            "cloneable": folder.cloneable,
            "num_files": None if folder.held is None else folder.held.files,
            "cur_size": None if folder.held is None else folder.held.size,
        }
        try:
            if not await self._pool.query(_ADD, parameters):
                raise QuotaExceeded(f"folders: {most} of {most} in use")
        except Conflict:
            raise FolderAlreadyExists(folder.name) from None

    async def by_name(self, access_key: str, name: str) -> FolderAccess | None:
        """Find the folder of this name that an access key sees, its own before one that is shared with it."""
        if not (rows.storable(access_key) and rows.storable(name)):
            return None
        return _first(await self._pool.query(_BY_NAME, {"key": access_key, "name": name}))

    async def by_id(self, access_key: str, folder_id: uuid.UUID) -> FolderAccess | None:
        """Find a folder that an access key sees."""
        return _first(await self._pool.query(_BY_ID, {"key": access_key, "id": str(folder_id)}))

    async def seen_by(self, access_key: str) -> Sequence[FolderAccess]:
        """List the folders that an access key sees, in order of their names, its own first."""
        return [_access(row) for row in await self._pool.query(_SEEN_BY, {"key": access_key})]

    async def rename(self, folder_id: uuid.UUID, name: str) -> bool:
        """Give a folder another name; False when there is none. :raises FolderAlreadyExists: its owner has that name."""
        rows.require_storable((name,))
        try:
            return bool(await self._pool.query(_RENAME, (name, str(folder_id))))
        except Conflict:
            raise FolderAlreadyExists(name) from None

    async def allow_cloning(self, folder_id: uuid.UUID, allowed: bool) -> bool:
        """Say whether those it is shared with may clone a folder; False when there is none."""
        return bool(await self._pool.query(_ALLOW_CLONING, (allowed, str(folder_id))))

    async def remove(self, folder_id: uuid.UUID) -> bool:
        """Remove a folder with its permissions and invitations; False when there is none."""
        return bool(await self._pool.query(_REMOVE, (str(folder_id),)))

    async def note_use(self, folder_ids: Collection[uuid.UUID], now: float) -> None:
        """Note that folders were used."""
        if folder_ids:
            await self._pool.query(_NOTE_USE, (rows.to_microseconds(now), [str(one) for one in folder_ids]))

    async def page(
        self, owner: str | None, offset: int, limit: int, selection: Selection = EVERYTHING
    ) -> Sequence[Folder]:
        """List the folders that an access key owns, or all, the newest first."""
        if owner is not None and not rows.storable(owner):
            return []
        clauses = clauses_of(FOLDER_COLUMNS, selection)
        parameters = {"owner": owner, "offset": offset, "limit": limit, **clauses.parameters}
        found = await self._pool.query(_PAGE.format(where=clauses.where, order=clauses.order), parameters)
        return [_folder(row) for row in found]

    async def count_of(self, owner: str | None, selection: Selection = EVERYTHING) -> int:
        """Tell how many :meth:`page` would list without a limit."""
        if owner is not None and not rows.storable(owner):
            return 0
        clauses = clauses_of(FOLDER_COLUMNS, selection)
        found = await self._pool.query(_COUNT.format(where=clauses.where), {"owner": owner, **clauses.parameters})
        return int(found[0][0])

    async def newest_of_owners(self, owners: Collection[str], limit: int) -> Sequence[Folder]:
        """List the newest folders of each of these owners, at most ``limit`` each."""
        wanted = [owner for owner in dict.fromkeys(owners) if rows.storable(owner)]
        return [_folder(row) for row in await self._pool.query(_NEWEST_OF_OWNERS, (wanted, limit))]

    async def existing(self, folder_ids: Collection[uuid.UUID]) -> frozenset[uuid.UUID]:
        """Tell which of these folders there are."""
        found = await self._pool.query(_EXISTING, ([str(one) for one in folder_ids],))
        return frozenset(uuid.UUID(row[0]) for row in found)

    async def invite(
        self, folder_id: uuid.UUID, inviter: str, invitees: Sequence[str], permission: Permission, now: float
    ) -> Sequence[str]:
        """Invite those of the invitees that are a user id or an access key of another's active keypair."""
        wanted = [invitee for invitee in dict.fromkeys(invitees) if rows.storable(invitee)]
        parameters = {
            "ids": [str(uuid.uuid4()) for _invitee in wanted],
            "invitees": wanted,
            "folder": str(folder_id),
            "inviter": inviter,
            "permission": permission.value,
            "now": rows.to_microseconds(now),
        }
        return [row[0] for row in await self._pool.query(_INVITE, parameters)]

    async def invitations_for(self, access_key: str, user_id: str) -> Sequence[Invitation]:
        """List the invitations for an access key or its user, the oldest first."""
        found = await self._pool.query(_INVITATIONS, {"key": access_key, "user": user_id})
        return [_invitation(row) for row in found]

    async def accept(self, invitation_id: uuid.UUID, access_key: str, user_id: str) -> Invitation | None:
        """Turn an invitation into a permission; None when this key has none of that id."""
        return await self._take(_ACCEPT, invitation_id, access_key, user_id)

    async def withdraw(self, invitation_id: uuid.UUID, access_key: str, user_id: str) -> Invitation | None:
        """Remove an invitation to or by an access key; None when there is none."""
        return await self._take(_WITHDRAW, invitation_id, access_key, user_id)

    async def _take(self, sql: str, invitation_id: uuid.UUID, access_key: str, user_id: str) -> Invitation | None:
        parameters: Mapping[str, Any] = {"id": str(invitation_id), "key": access_key, "user": user_id}
        found = await self._pool.query(sql, parameters)
        return _invitation(found[0]) if found else None

    async def leave(self, folder_id: uuid.UUID, access_key: str) -> bool:
        """Take a key's permission away; False when it had none."""
        return bool(await self._pool.query(_LEAVE, (str(folder_id), access_key)))

    async def shares_of(self, owner: str, folder_id: uuid.UUID | None, limit: int) -> Sequence[Share]:
        """List who may use the folders of an owner, or one of them, in order of name and access key."""
        parameters = {"owner": owner, "folder": None if folder_id is None else str(folder_id), "limit": limit}
        return [
            Share(_folder(row[:-3]), row[-3], row[-2], Permission(row[-1]))
            for row in await self._pool.query(_SHARES_OF, parameters)
        ]

    async def remove_forsaken(self) -> Sequence[uuid.UUID]:
        """Remove the folders of keypairs that were removed, and those keypairs' permissions and invitations."""
        return [uuid.UUID(row[0]) for row in await self._pool.query(_REMOVE_FORSAKEN)]

    # -- what folders hold

    async def to_count(self, since: float, limit: int) -> Sequence[Folder]:
        """List folders that were changed, or that a kernel could write to, after they were last counted."""
        return [_folder(row) for row in await self._pool.query(_TO_COUNT, {"since": since, "limit": limit})]

    async def note_count(self, folder_id: uuid.UUID, held: FolderUse, now: float) -> None:
        """Note what a folder held at a time."""
        parameters = {"files": held.files, "size": held.size, "now": rows.to_microseconds(now), "id": str(folder_id)}
        await self._pool.query(_NOTE_COUNT, parameters)


def _first(found: Sequence[Row]) -> FolderAccess | None:
    return _access(found[0]) if found else None


def _access(row: Row) -> FolderAccess:
    *folder, is_owner, permission = row
    return FolderAccess(_folder(folder), is_owner, Permission.READ_WRITE if is_owner else Permission(permission))


def _folder(row: Sequence[Any]) -> Folder:
    folder_id, name, owner, created_at, max_files, max_size, last_used, cloneable, num_files, cur_size = row
    bounds = FolderBounds(max_files, max_size)
    held = None if num_files is None else FolderUse(num_files, cur_size)
    return Folder(uuid.UUID(folder_id), name, owner, created_at, bounds, last_used, cloneable, held)


def _invitation(row: Row) -> Invitation:
    invitation_id, folder_id, name, inviter, invitee, permission, created_at = row
    return Invitation(
        uuid.UUID(invitation_id), uuid.UUID(folder_id), name, inviter, invitee, Permission(permission), created_at
    )
