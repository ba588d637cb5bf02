"""Who may use whose folders, as rows; a part of :class:`sorna.store.folders.PostgresFolders`.

Every method is one statement.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence

from sorna.model.folder import Permission
from sorna.store import rows
from sorna.store.connection import Row
from sorna.store.pool import Pool

# More keypairs than these of the users that are named at once get nothing.
_MOST_KEYPAIRS = 1000
_OF_USERS = "(k.user_id = ANY(%(users)s) OR k.access_key = ANY(%(users)s))"
# The folder is held, so that nobody removes it between the look and the row that needs it.
_SHARE = f"""
WITH target AS (
    SELECT id FROM folders WHERE id = %(folder)s::uuid FOR KEY SHARE
), found AS (
    SELECT k.access_key, k.user_id FROM keypairs k, target
     WHERE {_OF_USERS} AND k.access_key <> %(owner)s AND k.is_active AND k.removed_at IS NULL
     ORDER BY k.access_key LIMIT {_MOST_KEYPAIRS}
), allowed AS (
    INSERT INTO folder_permissions (folder_id, access_key, permission)
    SELECT target.id, found.access_key, %(permission)s FROM found, target
    ON CONFLICT (folder_id, access_key) DO UPDATE SET permission = excluded.permission
)
SELECT access_key, user_id FROM found
"""  # noqa: S608 - constants only; every value is a parameter
_UNSHARE = f"""
WITH gone AS (
    DELETE FROM folder_permissions p USING keypairs k
     WHERE p.folder_id = %(folder)s::uuid AND k.access_key = p.access_key AND {_OF_USERS}
    RETURNING k.access_key, k.user_id
), uninvited AS (
    DELETE FROM folder_invitations WHERE folder_id = %(folder)s::uuid AND invitee = ANY(%(users)s) RETURNING invitee
)
SELECT access_key, user_id FROM gone UNION ALL SELECT invitee, invitee FROM uninvited
"""  # noqa: S608 - see above
_PERMISSIONS = """
SELECT id, owner, 'rw' FROM folders WHERE id = ANY(%(ids)s::uuid[])
UNION ALL
SELECT folder_id, access_key, permission FROM folder_permissions WHERE folder_id = ANY(%(ids)s::uuid[])
"""


class PostgresSharing:
    """The permissions of folders."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def share(
        self, folder_id: uuid.UUID, owner: str, users: Collection[str], permission: Permission
    ) -> Sequence[str]:
        """Let the active keypairs of these users, or of these access keys, use a folder; gives those that there are."""
        wanted = _nameable(users)
        parameters = {"folder": str(folder_id), "owner": owner, "users": wanted, "permission": permission.value}
        return _met(wanted, await self._pool.query(_SHARE, parameters))

    async def unshare(self, folder_id: uuid.UUID, users: Collection[str]) -> Sequence[str]:
        """Take the permissions and invitations of these users, or access keys, away; gives those that had one."""
        wanted = _nameable(users)
        return _met(wanted, await self._pool.query(_UNSHARE, {"folder": str(folder_id), "users": wanted}))

    async def permissions(self, folder_ids: Collection[uuid.UUID]) -> Mapping[tuple[uuid.UUID, str], Permission]:
        """Give (folder, access key) -> permission for everybody who sees one of these folders."""
        found = await self._pool.query(_PERMISSIONS, {"ids": [str(one) for one in folder_ids]})
        return {(uuid.UUID(row[0]), row[1]): Permission(row[2]) for row in found}


def _nameable(users: Collection[str]) -> list[str]:
    # A keypair without a user has an empty one, and is nobody's whom one could name.
    return [user for user in dict.fromkeys(users) if user and rows.storable(user)]


def _met(wanted: Sequence[str], found: Sequence[Row]) -> Sequence[str]:
    met = {name for row in found for name in row}
    return [user for user in wanted if user in met]
