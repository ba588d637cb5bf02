"""Kernels that wait for an agent, in PostgreSQL; implements :class:`sorna.manager.queue_interfaces.KernelQueue`.

The order is that of :mod:`sorna.model.queue`, and stands in the kernels' own rows: whoever ends a kernel takes it out of the
queue by that, and a kernel that an agent refused is back in its old place. Beginning to wait is serialised over all managers,
so that the bounds are exact.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import attrs

from sorna.errors import QueueFull
from sorna.model.folder import Mount
from sorna.model.kernel import Kernel, KernelSpec
from sorna.model.queue import QueueBounds, QueuePlace, Waiting, next_turn
from sorna.store import rows
from sorna.store.pool import Pool

# Any number that nobody else locks: the first eight bytes of "sornaqueue".
LOCK = int.from_bytes(b"sornaque", "big")

# How many of an owner's newest kernels are looked at for the last turn that it had; no more than that ever count.
REMEMBERED = 200

_STATE = """
SELECT count(*), count(*) FILTER (WHERE access_key = %(access_key)s), min(queue_turn),
       greatest(max(queue_turn) FILTER (WHERE access_key = %(access_key)s), (
           SELECT max(queue_turn) FROM (
               SELECT queue_turn FROM kernels WHERE access_key = %(access_key)s
                ORDER BY created_at DESC, id DESC LIMIT %(remembered)s
           ) AS newest
       ))
  FROM kernels WHERE status = 'PENDING'
"""
# Constants and column names only; every value is a parameter.
_PUT = f"""
WITH changed AS (
    UPDATE kernels SET status = 'PENDING', status_reason = 'queued', status_changed_at = to_timestamp(%(now)s),
           queue_turn = %(turn)s, queue_deadline = to_timestamp(%(deadline)s), queue_wish = %(wish)s::jsonb
     WHERE id = %(id)s::uuid AND status = 'PREPARING'
    RETURNING *
)
SELECT {rows.kernel_columns("changed")} FROM changed
"""  # noqa: S608 - see above
_BACK = f"""
WITH changed AS (
    UPDATE kernels SET status = 'PENDING', status_reason = 'queued', status_changed_at = to_timestamp(%(now)s)
     WHERE id = %(id)s::uuid AND status = 'PREPARING' AND queue_deadline > to_timestamp(%(now)s)
    RETURNING *
)
SELECT {rows.kernel_columns("changed")} FROM changed
"""  # noqa: S608 - see above
_WAITING = f"""
SELECT queue_turn, extract(epoch FROM queue_deadline)::float8, queue_wish, {rows.kernel_columns("kernels")}
  FROM kernels WHERE status = 'PENDING' ORDER BY queue_turn, created_at, id LIMIT %s
"""  # noqa: S608 - see above
_OVERDUE = "SELECT id FROM kernels WHERE status = 'PENDING' AND queue_deadline <= to_timestamp(%s) ORDER BY id LIMIT %s"
_PLACES = """
SELECT id, position, extract(epoch FROM queue_deadline)::float8
  FROM (SELECT id, queue_deadline, row_number() OVER (ORDER BY queue_turn, created_at, id) AS position
          FROM kernels WHERE status = 'PENDING') AS waiting
 WHERE id = ANY(%s::uuid[])
"""


def require_room(in_all: int, of_owner: int, bounds: QueueBounds) -> None:
    """Refuse one more.

    :raises QueueFull: as many wait as may.
    """
    if of_owner >= bounds.kernels_of_owner:
        raise QueueFull(f"{of_owner} of your kernels wait already, and no more than {bounds.kernels_of_owner} may.")
    if in_all >= bounds.kernels:
        raise QueueFull(f"{in_all} kernels wait already, and no more than {bounds.kernels} may.")


def wish_of(spec: KernelSpec) -> str:
    """Give as JSON what a kernel's row does not say of its specification."""
    mounts = [attrs.asdict(mount) for mount in spec.mounts]
    return json.dumps({"mounts": mounts, "labels": dict(spec.labels), "ports": list(spec.ports)})


def spec_of(kernel: Kernel, wish: Mapping[str, Any]) -> KernelSpec:
    """Put a specification together again."""
    return KernelSpec(
        access_key=kernel.access_key,
        session_token=kernel.session_token,
        runtime=kernel.runtime,
        requested_runtime=kernel.requested_runtime,
        limits=kernel.limits,
        environ=kernel.environ,
        tag=kernel.tag,
        mounts=tuple(Mount(**mount) for mount in wish["mounts"]),
        labels=wish["labels"],
        # What a manager of an earlier version wrote knows no ports.
        ports=tuple(wish.get("ports", ())),
    )


class PostgresQueue:
    """The queue of all managers."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def put(
        self, kernel_id: uuid.UUID, spec: KernelSpec, deadline: float, now: float, bounds: QueueBounds
    ) -> Kernel | None:
        """Let a PREPARING kernel wait; None when it is not that any more.

        :raises QueueFull: as many wait as may; nothing is changed.
        """
        rows.require_storable((*spec.labels, *spec.labels.values()))
        async with self._pool.transaction() as transaction:
            await transaction.query("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
            question = {"access_key": spec.access_key, "remembered": REMEMBERED}
            ((in_all, of_owner, first, last),) = await transaction.query(_STATE, question)
            require_room(in_all, of_owner, bounds)
            parameters = {
                "id": str(kernel_id),
                "now": rows.to_microseconds(now),
                "turn": next_turn(first, last, now),
                "deadline": rows.to_microseconds(deadline),
                "wish": wish_of(spec),
            }
            found = await transaction.query(_PUT, parameters)
        return rows.kernel(found[0]) if found else None

    async def put_back(self, kernel_id: uuid.UUID, now: float) -> Kernel | None:
        """Let a PREPARING kernel that has waited before wait on in its old place; None when it may not."""
        found = await self._pool.query(_BACK, {"id": str(kernel_id), "now": rows.to_microseconds(now)})
        return rows.kernel(found[0]) if found else None

    async def waiting(self, limit: int) -> Sequence[Waiting]:
        """List kernels that wait, in order."""
        found = []
        for turn, deadline, wish, *columns in await self._pool.query(_WAITING, (limit,)):
            kernel = rows.kernel(tuple(columns))
            found.append(Waiting(kernel, spec_of(kernel, wish), turn, deadline))
        return found

    async def overdue(self, now: float, limit: int) -> Sequence[uuid.UUID]:
        """List kernels that wait although their time is over."""
        return [uuid.UUID(row[0]) for row in await self._pool.query(_OVERDUE, (rows.to_microseconds(now), limit))]

    async def places(self, kernel_ids: Collection[uuid.UUID]) -> Mapping[uuid.UUID, QueuePlace]:
        """Tell where those of these kernels stand that wait."""
        if not kernel_ids:
            return {}
        found = await self._pool.query(_PLACES, ([str(one) for one in kernel_ids],))
        return {uuid.UUID(row[0]): QueuePlace(*row[1:]) for row in found}
