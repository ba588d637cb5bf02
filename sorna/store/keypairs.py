"""Keypairs in PostgreSQL; implements :class:`sorna.manager.interfaces.KeypairStore`."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from sorna.model.keypair import Keypair
from sorna.store import rows
from sorna.store.connection import Conflict
from sorna.store.pool import Pool

_COLUMNS = ", ".join(rows.KEYPAIR_COLUMNS)
_PLACES = ", ".join(f"%({name})s" for name in rows.KEYPAIR_COLUMNS)

_BY_ACCESS_KEY = f"SELECT {_COLUMNS} FROM keypairs WHERE access_key = %s"  # noqa: S608 - constants only
_ADD = f"INSERT INTO keypairs ({_COLUMNS}) VALUES ({_PLACES}) ON CONFLICT (access_key) DO NOTHING RETURNING 1"  # noqa: S608 - constants only
_COUNT = "SELECT count(*) FROM keypairs"
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
        if not rows.storable(access_key):
            return None
        found = await self._pool.query(_BY_ACCESS_KEY, (access_key,))
        return rows.keypair(found[0]) if found else None

    async def add(self, keypair: Keypair) -> bool:
        """Store a keypair; give False, changing nothing, when its access key is already there."""
        rows.require_storable((keypair.access_key, keypair.secret_key))
        return bool(await self._pool.query(_ADD, attrs.asdict(keypair)))

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
