"""Keypairs in PostgreSQL; implements :class:`sorna.manager.interfaces.KeypairLists`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import attrs

from sorna.errors import InvalidRequest
from sorna.model.keypair import Keypair, KeypairChanges
from sorna.model.selection import EVERYTHING, Selection
from sorna.store import rows
from sorna.store.connection import Conflict, Parameters, Row, StatementFailed
from sorna.store.pool import Pool
from sorna.store.selecting import KEYPAIR_COLUMNS
from sorna.store.selecting import clauses as clauses_of

_FOREIGN_KEY_VIOLATION = "23503"
# Columns and constants only; every value is a parameter.
_SELECT = f"""
SELECT {rows.keypair_columns("k", "p")}
  FROM keypairs k LEFT JOIN resource_policies p ON p.name = k.resource_policy
 WHERE k.removed_at IS NULL
"""  # noqa: S608 - see above
_BY_ACCESS_KEYS = f"{_SELECT} AND k.access_key = ANY(%s)"
_OF_USER = "(%(user_id)s::text IS NULL OR k.user_id = %(user_id)s) AND (%(is_active)s::boolean IS NULL OR k.is_active = %(is_active)s)"
_PAGE = f"{_SELECT} AND {_OF_USER}{{where}} ORDER BY {{order}}k.created_at DESC, k.access_key OFFSET %(offset)s LIMIT %(limit)s"
_COUNT_OF_USER = f"SELECT count(*) FROM keypairs k WHERE k.removed_at IS NULL AND {_OF_USER}{{where}}"  # noqa: S608 - see above
_ADD = """
INSERT INTO keypairs (access_key, secret_key, user_id, is_active, is_admin, concurrency_limit, concurrency_used,
                      rate_limit, num_queries, resource_policy, created_at)
VALUES (%(access_key)s, %(secret_key)s, %(user_id)s, %(is_active)s, %(is_admin)s, %(concurrency_limit)s, 0,
        %(rate_limit)s, %(num_queries)s, %(resource_policy)s, to_timestamp(%(created_at)s))
ON CONFLICT (access_key) DO NOTHING RETURNING 1
"""
_MODIFY = """
UPDATE keypairs SET is_active = coalesce(%(is_active)s, is_active), is_admin = coalesce(%(is_admin)s, is_admin),
       concurrency_limit = coalesce(%(concurrency_limit)s, concurrency_limit),
       rate_limit = coalesce(%(rate_limit)s, rate_limit),
       resource_policy = CASE WHEN %(resource_policy)s::text IS NULL THEN resource_policy
                              ELSE nullif(%(resource_policy)s, '') END
 WHERE access_key = %(access_key)s AND removed_at IS NULL RETURNING 1
"""
# In one statement, so that a reservation either comes before and is seen, or after and finds nobody.
_REMOVE = """
WITH removed AS (
    UPDATE keypairs SET removed_at = to_timestamp(%(now)s), is_active = false, secret_key = '', resource_policy = NULL
     WHERE access_key = %(access_key)s AND removed_at IS NULL AND concurrency_used = 0 RETURNING 1
)
SELECT true FROM removed
UNION ALL
SELECT false FROM keypairs WHERE access_key = %(access_key)s AND removed_at IS NULL AND NOT EXISTS (SELECT FROM removed)
"""
_COUNT = "SELECT count(*) FROM keypairs WHERE removed_at IS NULL"
# Rows are locked in one order, so that two managers that write at once wait for each other and never deadlock.
_NOTE_USE = """
WITH used AS (
    SELECT * FROM unnest(%(keys)s::text[], %(counts)s::bigint[]) AS u(access_key, queries)
), locked AS (
    SELECT k.access_key, u.queries FROM keypairs k JOIN used u USING (access_key) ORDER BY k.access_key FOR UPDATE OF k
)
UPDATE keypairs k
   SET num_queries = k.num_queries + l.queries, last_used = greatest(k.last_used, to_timestamp(%(at)s))
  FROM locked l WHERE k.access_key = l.access_key
"""


class PostgresKeypairs:
    """Every keypair there is."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def by_access_key(self, access_key: str) -> Keypair | None:
        """Fetch one keypair, active or not."""
        found = await self.by_access_keys([access_key])
        return found[0] if found else None

    async def by_access_keys(self, access_keys: Collection[str]) -> Sequence[Keypair]:
        """Fetch those of these keypairs that exist, in any order; one statement."""
        wanted = [access_key for access_key in access_keys if rows.storable(access_key)]
        if not wanted:
            return []
        return [rows.keypair(row) for row in await self._pool.query(_BY_ACCESS_KEYS, (wanted,))]

    async def page(
        self, user_id: str | None, is_active: bool | None, offset: int, limit: int, selection: Selection = EVERYTHING
    ) -> Sequence[Keypair]:
        """List the keypairs of a user or of all, the newest first."""
        if user_id is not None and not rows.storable(user_id):
            return []
        clauses = clauses_of(KEYPAIR_COLUMNS, selection)
        wanted = {"user_id": user_id, "is_active": is_active, "offset": offset, "limit": limit}
        sql = _PAGE.format(where=clauses.where, order=clauses.order)
        return [rows.keypair(row) for row in await self._pool.query(sql, {**wanted, **clauses.parameters})]

    async def count_of(self, user_id: str | None, is_active: bool | None, selection: Selection = EVERYTHING) -> int:
        """Tell how many :meth:`page` would list without a limit."""
        if user_id is not None and not rows.storable(user_id):
            return 0
        clauses = clauses_of(KEYPAIR_COLUMNS, selection)
        wanted = {"user_id": user_id, "is_active": is_active}
        sql = _COUNT_OF_USER.format(where=clauses.where)
        return int((await self._pool.query(sql, {**wanted, **clauses.parameters}))[0][0])

    async def add(self, keypair: Keypair) -> bool:
        """Store a keypair; give False, changing nothing, when its access key is already there."""
        rows.require_storable((keypair.access_key, keypair.secret_key, keypair.user_id, keypair.resource_policy))
        parameters = {
            name: getattr(keypair, name)
            for name in (*rows.KEYPAIR_PLAIN, "access_key", "secret_key", "resource_policy", "created_at")
        }
        return bool(await self._with_policy(_ADD, parameters))

    async def modify(self, access_key: str, changes: KeypairChanges) -> bool:
        """Change a keypair; give False when there is none.

        :raises InvalidRequest: there is no such resource policy.
        """
        rows.require_storable((access_key, changes.resource_policy))
        return bool(await self._with_policy(_MODIFY, {**attrs.asdict(changes), "access_key": access_key}))

    async def remove(self, access_key: str, now: float) -> bool | None:
        """Remove a keypair; False while it has live kernels, None when there is no such keypair."""
        if not rows.storable(access_key):
            return None
        found = await self._pool.query(_REMOVE, {"access_key": access_key, "now": now})
        return bool(found[0][0]) if found else None

    async def count(self) -> int:
        """Tell how many keypairs there are."""
        found = await self._pool.query(_COUNT)
        return int(found[0][0])

    async def note_use(self, queries: Mapping[str, int], at: float) -> None:
        """Add to ``num_queries`` per access key and set ``last_used``; one statement for the whole batch."""
        known = {key: count for key, count in queries.items() if rows.storable(key)}
        if not known:
            return
        parameters = {"keys": list(known), "counts": list(known.values()), "at": at}
        try:
            await self._pool.query(_NOTE_USE, parameters)
        except Conflict:
            await self._pool.query(_NOTE_USE, parameters)

    async def _with_policy(self, sql: str, parameters: Parameters) -> list[Row]:
        try:
            return await self._pool.query(sql, parameters)
        except StatementFailed as error:
            if error.sqlstate == _FOREIGN_KEY_VIOLATION:
                raise InvalidRequest("there is no such resource policy") from None
            raise
