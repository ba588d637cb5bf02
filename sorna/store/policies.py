"""Resource policies in PostgreSQL; implements :class:`sorna.manager.interfaces.PolicyStore`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from sorna.model.policy import ResourcePolicy
from sorna.store import rows
from sorna.store.connection import StatementFailed
from sorna.store.pool import Pool

_NAMES = tuple(field.name for field in attrs.fields(ResourcePolicy))
# Column names only; every value is a parameter.
_LIST = f"SELECT {', '.join(_NAMES)} FROM resource_policies ORDER BY name"  # noqa: S608 - see above
_PUT = f"""
INSERT INTO resource_policies ({", ".join(_NAMES)}) VALUES ({", ".join(f"%({name})s" for name in _NAMES)})
ON CONFLICT (name) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in _NAMES[1:])}
"""  # noqa: S608 - see above
_REMOVE = "DELETE FROM resource_policies WHERE name = %s RETURNING 1"
_FOREIGN_KEY_VIOLATION = "23503"


class PostgresPolicies:
    """Every resource policy."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def all(self) -> Sequence[ResourcePolicy]:
        """List the policies by name."""
        return [rows.policy(dict(zip(_NAMES, row, strict=True))) for row in await self._pool.query(_LIST)]

    async def put(self, policy: ResourcePolicy) -> None:
        """Store a policy, or replace the one of its name."""
        rows.require_storable((policy.name, *(policy.runtimes or ())))
        parameters: dict[str, Any] = attrs.asdict(policy, recurse=False)
        if policy.runtimes is not None:
            parameters["runtimes"] = sorted(policy.runtimes)
        await self._pool.query(_PUT, parameters)

    async def remove(self, name: str) -> bool | None:
        """Remove a policy; False while a keypair has it, None when there is no such policy."""
        if not rows.storable(name):
            return None
        try:
            return bool(await self._pool.query(_REMOVE, (name,))) or None
        except StatementFailed as error:
            if error.sqlstate == _FOREIGN_KEY_VIOLATION:
                return False
            raise
