"""Kernels in PostgreSQL and the quota they hold; implements :class:`sorna.manager.interfaces.KernelStore`.

Note [Exact under concurrency]
    A reservation is one statement: it takes a place of the quota with an UPDATE that finds its row only while there is
    one, and writes the kernel for the row it got. Two reservations of one owner wait for each other at that row, and the
    second looks at it again as the first has left it. That goes for what is asked of the row itself and for a scalar
    subquery such as the policy's; an EXISTS would become a join, which PostgreSQL does not do again. The second does not
    see the kernel that the first made, since its snapshot is older, and runs into the unique index on (access_key,
    session_token): the whole statement is undone, the place given back with it, and the next attempt finds the kernel. A
    reservation that finds neither a kernel nor a place looks once more, with a new snapshot, because the
    last place may have gone to the very kernel it asks for.

    A change of status is one statement too: the UPDATE names the statuses it may come from, so of two final changes the
    second, which waited for the row, finds nothing, and the quota is given back once, in the same statement.
    The two take their locks in opposite order. That can only meet when a kernel is made and ended while a third
    reservation of its token is under way; PostgreSQL then breaks one off, and it is tried again.

Note [What a crash may undo]
    A status in which somebody works on a kernel (PREPARING, RESTARTING, TERMINATING) is one that nobody outside was told of.
    Its commit is acknowledged before it is on the disk, where the next lasting commit of anybody takes it along: at the
    latest the one with which the work ends and somebody hears of it. Should PostgreSQL itself crash before, the row is as if
    the work had not begun. A creation then finds no row to run and takes its kernel back, what an agent holds without a row
    is ended as an orphan, and a kernel that its agent has ended already is written as ended all the same.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import attrs

from sorna.errors import QuotaExceeded, Unavailable
from sorna.model.census import Alike
from sorna.model.kernel import Kernel, KernelSpec, KernelStatus, Usage, statuses_before
from sorna.store import rows
from sorna.store.connection import Conflict, Prepared, Row
from sorna.store.keypairs import PostgresKeypairs
from sorna.store.pool import Pool

ATTEMPTS = 10
PAGE = 500
_LIVE = "status NOT IN ('TERMINATED', 'ERROR')"
# Part of a statement whose commit need not be on the disk before it is acknowledged; see Note [What a crash may undo].
_NOT_LASTING = "set_config('synchronous_commit', 'off', true)"
_USAGE = ", ".join(rows.USAGE_COLUMNS)
_FIRST_USAGE = ", ".join(str(value) for value in attrs.astuple(Usage()))

UNDER_WAY = frozenset({KernelStatus.PREPARING, KernelStatus.RESTARTING, KernelStatus.TERMINATING})

# Constants and column names only; every value is a parameter.
_RESERVE = Prepared(
    "reserve",
    f"""
WITH found AS (
    SELECT * FROM kernels WHERE access_key = %(access_key)s AND session_token = %(session_token)s AND {_LIVE}
), taken AS (
    UPDATE keypairs k
       SET concurrency_used = k.concurrency_used + 1, memory_used = k.memory_used + %(memory)s,
           cpu_millis_used = k.cpu_millis_used + %(cpu_millis)s, gpus_used = k.gpus_used + %(gpus)s
     WHERE k.access_key = %(access_key)s AND k.removed_at IS NULL AND k.concurrency_used < k.concurrency_limit
       AND NOT EXISTS (SELECT FROM found)
       AND (SELECT k.concurrency_used >= p.max_kernels OR k.memory_used + %(memory)s > p.memory
                   OR k.cpu_millis_used + %(cpu_millis)s > round((p.cpu_cores * 1000)::numeric)
                   OR k.gpus_used + %(gpus)s > p.gpus
              FROM resource_policies p WHERE p.name = k.resource_policy) IS NOT TRUE
    RETURNING k.access_key
), made AS (
    INSERT INTO kernels (id, access_key, session_token, runtime, requested_runtime, status, status_reason,
                         status_changed_at, created_at, limits, environ, tag, num_queries, memory, cpu_millis, gpus,
                         folders, writable_folders, {_USAGE})
    SELECT %(id)s::uuid, access_key, %(session_token)s, %(runtime)s, %(requested_runtime)s, 'PREPARING', %(reason)s,
           to_timestamp(%(now)s), to_timestamp(%(now)s), %(limits)s::jsonb, %(environ)s::jsonb, %(tag)s, 0,
           %(memory)s, %(cpu_millis)s, %(gpus)s, %(folders)s::uuid[], %(writable_folders)s::uuid[], {_FIRST_USAGE}
      FROM taken
    RETURNING *
)
SELECT {_NOT_LASTING} = 'off', {rows.kernel_columns("made")} FROM made
UNION ALL
SELECT false, {rows.kernel_columns("found")} FROM found
""",  # noqa: S608 - see above
)

_CHANGE = f"""
WITH changed AS (
    UPDATE kernels SET status = %(after)s, status_reason = %(reason)s, status_changed_at = to_timestamp(%(now)s),
           terminated_at = CASE WHEN %(final)s THEN to_timestamp(%(now)s) END,
           agent_id = coalesce(%(agent_id)s, agent_id), num_queries = coalesce(%(num_queries)s, num_queries)
           {{usage}}
     WHERE id = %(id)s::uuid AND status = ANY(%(before)s)
       AND (%(access_key)s::text IS NULL OR access_key = %(access_key)s)
    RETURNING *
), freed AS (
    UPDATE keypairs k
       SET concurrency_used = k.concurrency_used - 1, memory_used = k.memory_used - c.memory,
           cpu_millis_used = k.cpu_millis_used - c.cpu_millis, gpus_used = k.gpus_used - c.gpus
      FROM changed c WHERE %(final)s AND k.access_key = c.access_key
)
SELECT CASE WHEN NOT %(lasting)s THEN {_NOT_LASTING} END, {rows.kernel_columns("changed")} FROM changed
"""  # noqa: S608 - see above
_CHANGE_ALONE = Prepared("change", _CHANGE.format(usage=""))
_CHANGE_WITH_USAGE = Prepared(
    "change_with_usage", _CHANGE.format(usage="".join(f", {name} = %({name})s" for name in rows.USAGE_COLUMNS))
)

_SELECT = f"SELECT {rows.kernel_columns('kernels')} FROM kernels"  # noqa: S608 - see above
_OF_TOKEN = f"{_SELECT} WHERE access_key = %(access_key)s AND session_token = %(session_token)s"
_BY_ID = Prepared("kernel_by_id", f"{_SELECT} WHERE id = %(id)s::uuid")
_LIVE_BY_TOKEN = Prepared("live_kernel_by_token", f"{_OF_TOKEN} AND {_LIVE}")
_LAST_BY_TOKEN = Prepared("last_kernel_by_token", f"{_OF_TOKEN} ORDER BY created_at DESC, kernels.id DESC LIMIT 1")

# One row for all kernels that are alike; the names are short ids.
_CENSUS = Prepared(
    "census",
    f"""
SELECT status, agent_id,
       CASE WHEN status <> 'RUNNING' OR status_changed_at >= to_timestamp(%(settled)s)
            THEN extract(epoch FROM status_changed_at)::float8 END,
       string_agg(translate(encode(uuid_send(id), 'base64'), '+/=', '-_'), ',')
  FROM kernels WHERE {_LIVE} GROUP BY 1, 2, 3
""",  # noqa: S608 - see above
)

# A kernel that has ended changed last when it ended, so that the index of ends finds both halves.
_CHANGED = f"""
{_SELECT}
 WHERE access_key = ANY(%(owners)s) AND (terminated_at >= to_timestamp(%(since)s) OR terminated_at IS NULL)
   AND status_changed_at >= to_timestamp(%(since)s)
   AND (%(at)s::float8 IS NULL OR (status_changed_at, kernels.id) > (to_timestamp(%(at)s), %(id)s::uuid))
 ORDER BY status_changed_at, kernels.id LIMIT %(limit)s
"""


class PostgresKernels:
    """Every kernel that ever was."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._keypairs = PostgresKeypairs(pool)

    async def reserve(self, kernel_id: uuid.UUID, spec: KernelSpec, now: float) -> tuple[Kernel, bool]:
        """Find the owner's live kernel of this token, or write a PREPARING one; see Note [Exact under concurrency].

        :raises QuotaExceeded: the owner has no free place.
        :raises InvalidRequest: the specification holds text that no database can keep.
        """
        rows.require_storable_spec(spec)
        parameters = rows.kernel_parameters(rows.new_kernel(kernel_id, spec, now)) | rows.mount_parameters(spec)
        found = await self._persist(_RESERVE, parameters)
        if found:
            return rows.kernel(found[0][1:]), bool(found[0][0])
        existing = await self.live_by_token(spec.access_key, spec.session_token)
        if existing is None:
            owner = await self._keypairs.by_access_key(spec.access_key)
            raise QuotaExceeded(rows.why_refused(owner, spec))
        return existing, False

    async def _persist(self, sql: str, parameters: Mapping[str, Any]) -> list[Row]:
        for _attempt in range(ATTEMPTS):
            try:
                return await self._pool.query(sql, parameters)
            except Conflict:
                continue
        raise Unavailable("too many changes of the same kernel at once")

    async def change_status(
        self,
        kernel_id: uuid.UUID,
        after: KernelStatus,
        reason: str,
        now: float,
        *,
        agent_id: str | None = None,
        usage: Usage | None = None,
        num_queries: int | None = None,
        access_key: str | None = None,
    ) -> Kernel | None:
        """Change a status if that is allowed, else give None; see Note [Exact under concurrency]."""
        rows.require_storable((reason, agent_id, access_key))
        parameters: dict[str, Any] = {
            "id": str(kernel_id),
            "after": after.value,
            "before": [status.value for status in statuses_before(after)],
            "final": after.final,
            "lasting": after not in UNDER_WAY,
            "access_key": access_key,
            "reason": reason,
            "now": rows.to_microseconds(now),
            "agent_id": agent_id,
            "num_queries": num_queries,
        }
        if usage is None:
            found = await self._persist(_CHANGE_ALONE, parameters)
        else:
            found = await self._persist(_CHANGE_WITH_USAGE, {**parameters, **attrs.asdict(usage)})
        return rows.kernel(found[0][1:]) if found else None

    async def by_id(self, kernel_id: uuid.UUID) -> Kernel | None:
        """Fetch a kernel of any status."""
        return self._one(await self._pool.query(_BY_ID, {"id": str(kernel_id)}))

    async def live_by_token(self, access_key: str, session_token: str) -> Kernel | None:
        """Fetch the owner's kernel of this token that is in no final status."""
        return await self._by_token(_LIVE_BY_TOKEN, access_key, session_token)

    async def last_by_token(self, access_key: str, session_token: str) -> Kernel | None:
        """Fetch the owner's most recent kernel of this token, of any status."""
        return await self._by_token(_LAST_BY_TOKEN, access_key, session_token)

    async def _by_token(self, sql: str, access_key: str, session_token: str) -> Kernel | None:
        if not (rows.storable(access_key) and rows.storable(session_token)):
            return None
        return self._one(await self._pool.query(sql, {"access_key": access_key, "session_token": session_token}))

    async def live(
        self, *, agent_id: str | None = None, after: uuid.UUID | None = None, limit: int = PAGE
    ) -> Sequence[Kernel]:
        """Page through kernels in no final status in order of id, of one agent or of all; at most 500 at once."""
        wanted = [_LIVE]
        parameters: list[Any] = []
        if agent_id is not None:
            wanted.append("agent_id = %s")
            parameters.append(agent_id)
        if after is not None:
            wanted.append("id > %s::uuid")
            parameters.append(str(after))
        sql = f"{_SELECT} WHERE {' AND '.join(wanted)} ORDER BY kernels.id LIMIT %s"
        return [rows.kernel(row) for row in await self._pool.query(sql, (*parameters, min(limit, PAGE)))]

    async def census(self, settled: float) -> Sequence[Alike]:
        """Give the names of all kernels in no final status, in groups; see :class:`~sorna.model.census.Alike`."""
        found = await self._pool.query(_CENSUS, {"settled": rows.to_microseconds(settled)})
        return [
            Alike(KernelStatus(status), agent, at, frozenset(names.split(","))) for status, agent, at, names in found
        ]

    async def changed(
        self,
        access_keys: Collection[str],
        since: float,
        *,
        after: tuple[float, uuid.UUID] | None = None,
        limit: int = PAGE,
    ) -> Sequence[Kernel]:
        """Page through kernels of these owners whose last change of status was at ``since`` or later; at most 500."""
        at, kernel_id = (None, None) if after is None else (after[0], str(after[1]))
        parameters = {
            "owners": sorted(filter(rows.storable, access_keys)),
            "since": rows.to_microseconds(since),
            "at": at,
            "id": kernel_id,
            "limit": min(limit, PAGE),
        }
        return [rows.kernel(row) for row in await self._pool.query(_CHANGED, parameters)]

    @staticmethod
    def _one(found: list[Row]) -> Kernel | None:
        return rows.kernel(found[0]) if found else None
