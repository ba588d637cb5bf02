"""Whether the counters of quotas are what live kernels take; implements :class:`sorna.manager.audit_interfaces.QuotaAudit`."""

from __future__ import annotations

from collections.abc import Sequence

from sorna.manager.audit_interfaces import QuotaDrift
from sorna.model.policy import Slots
from sorna.store.pool import Pool

# One statement sees one moment, so that a kernel that comes or goes meanwhile is in both sums or in neither.
_DRIFTED = """
WITH held AS (
    SELECT access_key, count(*) AS kernels, sum(memory) AS memory, sum(cpu_millis) AS cpu_millis, sum(gpus) AS gpus
      FROM kernels WHERE status NOT IN ('TERMINATED', 'ERROR') GROUP BY access_key
)
SELECT k.access_key, k.concurrency_used, k.memory_used, k.cpu_millis_used, k.gpus_used,
       coalesce(h.kernels, 0)::bigint, coalesce(h.memory, 0)::bigint, coalesce(h.cpu_millis, 0)::bigint,
       coalesce(h.gpus, 0)::bigint
  FROM keypairs k LEFT JOIN held h USING (access_key)
 WHERE (k.concurrency_used, k.memory_used, k.cpu_millis_used, k.gpus_used) IS DISTINCT FROM
       (coalesce(h.kernels, 0), coalesce(h.memory, 0), coalesce(h.cpu_millis, 0), coalesce(h.gpus, 0))
 ORDER BY k.access_key
"""


class PostgresQuotaAudit:
    """Reads only."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def drifted(self) -> Sequence[QuotaDrift]:
        """List the keypairs whose counters are wrong."""
        return [QuotaDrift(row[0], Slots(*row[1:5]), Slots(*row[5:9])) for row in await self._pool.query(_DRIFTED)]
