"""Everything that Redis holds about kernels; implements :class:`sorna.manager.audit_interfaces.LiveAudit`.

Walks over the keys in steps, so that nobody else waits long, and judges nothing: a hash that is none of ours comes out as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from sorna.live.connection import RedisConnection, Script

_STEP = 200

# ARGV: database, cursor, step.
_WALK = Script(
    """
redis.call('SELECT', ARGV[1])
local found = redis.call('SCAN', ARGV[2], 'COUNT', ARGV[3])
local rows = {}
for _, key in ipairs(found[2]) do
  local kind = redis.call('TYPE', key).ok
  if kind == 'hash' then rows[#rows + 1] = {key, redis.call('HGETALL', key)}
  elseif kind == 'string' then rows[#rows + 1] = {key, redis.call('GET', key)} end
end
return cjson.encode({found[1], rows})
"""
)


class RedisLiveAudit:
    """Reads only.

    :param connection: a connection to db 1.
    """

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection

    async def kernels(self) -> Mapping[str, Mapping[str, str]]:
        """Give every hash of db 1."""
        return {key: _paired(value) for key, value in (await self._walk(1)).items() if isinstance(value, list)}

    async def sessions(self) -> Mapping[str, str]:
        """Give every session id of db 3."""
        return {key: value for key, value in (await self._walk(3)).items() if isinstance(value, str)}

    async def _walk(self, database: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        cursor = "0"
        while True:
            answer = await self._connection.run(_WALK, arguments=(database, cursor, _STEP))
            cursor, rows = json.loads(answer.decode("utf-8", "replace"))
            found.update(_rows(rows))
            if cursor == "0":
                return found


def _rows(rows: Any) -> Iterator[tuple[str, Any]]:
    """Read what the script found; an empty table of Lua is an object in JSON."""
    yield from (tuple(row) for row in rows or ())


def _paired(flat: list[str]) -> dict[str, str]:
    words = iter(flat)
    return dict(zip(words, words, strict=True))
