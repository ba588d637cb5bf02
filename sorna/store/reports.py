"""Lists of kernels and sums over them, as administrators ask for; implements :class:`sorna.manager.interfaces.KernelReports`.

Each method is one statement, whatever number of owners or agents it is asked about.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sorna.manager.folder_interfaces import MountingKernel
from sorna.manager.interfaces import KernelFilter
from sorna.model.kernel import Kernel, KernelStatus
from sorna.model.policy import Slots
from sorna.model.usage import KeypairUsage
from sorna.store import rows
from sorna.store.pool import Pool
from sorna.store.selecting import KERNEL_COLUMNS
from sorna.store.selecting import clauses as clauses_of

# Constants and column names only; every value is a parameter.
_WANTED = """
(%(access_key)s::text IS NULL OR access_key = %(access_key)s)
AND (%(session_token)s::text IS NULL OR session_token = %(session_token)s)
AND (%(statuses)s::text[] IS NULL OR status = ANY(%(statuses)s))
AND (%(before_at)s::float8 IS NULL OR (created_at, id) < (to_timestamp(%(before_at)s), %(before_id)s::uuid))
"""
_PAGE = f"""
SELECT {rows.kernel_columns("kernels")} FROM kernels WHERE {_WANTED}{{where}}
 ORDER BY {{order}}created_at DESC, id DESC OFFSET %(offset)s LIMIT %(limit)s
"""  # noqa: S608 - see above
_COUNT = f"SELECT count(*) FROM kernels WHERE {_WANTED}{{where}}"  # noqa: S608 - see above
_NEWEST = f"""
SELECT {rows.kernel_columns("found")}
  FROM unnest(%(values)s::text[]) AS asked(value) CROSS JOIN LATERAL (
       SELECT * FROM kernels
        WHERE {{column}} = asked.value AND (%(statuses)s::text[] IS NULL OR status = ANY(%(statuses)s))
        ORDER BY created_at DESC, id DESC LIMIT %(limit)s
  ) AS found
 ORDER BY found.created_at DESC, found.id DESC
"""  # noqa: S608 - see above
_OCCUPIED = """
SELECT agent_id, count(*), sum(memory)::bigint, sum(cpu_millis)::bigint, sum(gpus)::bigint
  FROM kernels WHERE status NOT IN ('TERMINATED', 'ERROR') AND agent_id IS NOT NULL GROUP BY agent_id
"""
_MOUNTING = f"""
SELECT k.folders::text[], k.writable_folders::text[], {rows.kernel_columns("k")} FROM kernels k
 WHERE k.status NOT IN ('TERMINATED', 'ERROR') AND k.folders <> '{{}}'
   AND (%(ids)s::uuid[] IS NULL OR k.folders && %(ids)s::uuid[])
 ORDER BY k.id
"""  # noqa: S608 - see above
# See Note [What belongs to a period] in sorna/model/usage.py.
_USAGE = """
WITH period AS (
    SELECT to_timestamp(%(since)s) AS since, to_timestamp(%(until)s) AS until
), lived AS (
    SELECT kernels.*, kernels.terminated_at < period.until AS ended,
           extract(epoch FROM least(coalesce(terminated_at, until), until) - greatest(created_at, since))::float8 AS wall_time
      FROM kernels, period
     WHERE created_at < until AND (terminated_at IS NULL OR terminated_at >= since)
       AND (%(access_key)s::text IS NULL OR access_key = %(access_key)s)
)
SELECT lived.access_key, keypairs.user_id, count(*) FILTER (WHERE ended), sum(wall_time)::float8,
       coalesce(sum(greatest(cpu_used, 0)) FILTER (WHERE ended), 0)::float8,
       coalesce(max(greatest(mem_max_bytes, 0)) FILTER (WHERE ended), 0)::bigint,
       coalesce(sum(greatest(net_rx_bytes, 0)) FILTER (WHERE ended), 0)::bigint,
       coalesce(sum(greatest(net_tx_bytes, 0)) FILTER (WHERE ended), 0)::bigint,
       coalesce(sum(greatest(io_read_bytes, 0)) FILTER (WHERE ended), 0)::bigint,
       coalesce(sum(greatest(io_write_bytes, 0)) FILTER (WHERE ended), 0)::bigint
  FROM lived JOIN keypairs USING (access_key)
 GROUP BY lived.access_key, keypairs.user_id ORDER BY lived.access_key OFFSET %(offset)s LIMIT %(limit)s
"""


def _statuses(statuses: Collection[KernelStatus] | None) -> list[str] | None:
    return None if statuses is None else sorted(statuses)


def _parameters(wanted: KernelFilter) -> dict[str, Any]:
    at, kernel_id = (None, None) if wanted.before is None else (wanted.before[0], str(wanted.before[1]))
    return {
        "before_at": at,
        "before_id": kernel_id,
        "access_key": wanted.access_key,
        "session_token": wanted.session_token,
        "statuses": _statuses(wanted.statuses),
    }


def _possible(wanted: KernelFilter) -> bool:
    """Tell whether any row can have these texts."""
    return all(text is None or rows.storable(text) for text in (wanted.access_key, wanted.session_token))


class PostgresReports:
    """Reads only."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def page(self, wanted: KernelFilter, offset: int, limit: int) -> Sequence[Kernel]:
        """List kernels, the newest first."""
        if not _possible(wanted):
            return []
        clauses = clauses_of(KERNEL_COLUMNS, wanted.selection)
        parameters = {**_parameters(wanted), **clauses.parameters, "offset": offset, "limit": limit}
        sql = _PAGE.format(where=clauses.where, order=clauses.order)
        return [rows.kernel(row) for row in await self._pool.query(sql, parameters)]

    async def count(self, wanted: KernelFilter) -> int:
        """Tell how many kernels :meth:`page` would list without a limit."""
        if not _possible(wanted):
            return 0
        clauses = clauses_of(KERNEL_COLUMNS, wanted.selection)
        parameters = {**_parameters(wanted), **clauses.parameters}
        return int((await self._pool.query(_COUNT.format(where=clauses.where), parameters))[0][0])

    async def newest_of_owners(
        self, access_keys: Collection[str], statuses: Collection[KernelStatus] | None, limit: int
    ) -> Sequence[Kernel]:
        """List the newest kernels of each of these owners, at most ``limit`` each."""
        return await self._newest("access_key", access_keys, statuses, limit)

    async def newest_of_agents(
        self, agent_ids: Collection[str], statuses: Collection[KernelStatus] | None, limit: int
    ) -> Sequence[Kernel]:
        """List the newest kernels of each of these agents, at most ``limit`` each."""
        return await self._newest("agent_id", agent_ids, statuses, limit)

    async def _newest(
        self, column: str, values: Collection[str], statuses: Collection[KernelStatus] | None, limit: int
    ) -> Sequence[Kernel]:
        parameters = {"values": sorted(filter(rows.storable, values)), "statuses": _statuses(statuses), "limit": limit}
        return [rows.kernel(row) for row in await self._pool.query(_NEWEST.format(column=column), parameters)]

    async def occupied(self) -> Mapping[str, Slots]:
        """Give agent id -> what its live kernels take."""
        return {str(row[0]): Slots(*row[1:]) for row in await self._pool.query(_OCCUPIED)}

    async def mounting(self, folder_ids: Collection[uuid.UUID] | None) -> Sequence[MountingKernel]:
        """List the live kernels that see one of these folders, or any folder where that is None."""
        ids = None if folder_ids is None else [str(one) for one in folder_ids]
        return [
            MountingKernel(
                rows.kernel(tuple(rest)), frozenset(map(uuid.UUID, folders)), frozenset(map(uuid.UUID, writable))
            )
            for folders, writable, *rest in await self._pool.query(_MOUNTING, {"ids": ids})
        ]

    async def usage(
        self, since: float, until: float, access_key: str | None, offset: int, limit: int
    ) -> Sequence[KeypairUsage]:
        """Sum up what keypairs used in a period, in order of access key."""
        if access_key is not None and not rows.storable(access_key):
            return []
        parameters = {"since": since, "until": until, "access_key": access_key, "offset": offset, "limit": limit}
        return [KeypairUsage(*row) for row in await self._pool.query(_USAGE, parameters)]
