"""Turns in Redis db 4: a key per kind of work that expires when whoever has the turn does not say that it still wants it.

Implements :class:`sorna.manager.turns.Turn`. Keys begin with what no access key can hold; they may be lost at any time.
"""

from __future__ import annotations

from contextlib import suppress

from sorna.errors import Unavailable
from sorna.live.connection import RedisConnection, Script
from sorna.live.rate_counters import RATE_COUNTERS_DB

# KEYS: the turn.  ARGV: who asks, and for how many milliseconds it is given.
_TAKE = Script(
    """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
""",
    RATE_COUNTERS_DB,
)
_LEAVE = Script(
    """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
""",
    RATE_COUNTERS_DB,
)


class RedisTurn:
    """The turn for one kind of work.

    :param group: what all processes have in common that take turns; :param work: names the work.
    :param holder: names this process among them.
    :param lease: seconds for which the turn is given, longer than between two questions of whoever has it.
    """

    def __init__(self, connection: RedisConnection, group: str, work: str, holder: str, lease: float) -> None:
        self._connection = connection
        self._key = f"turn:{group}:{work}"
        self._holder = holder
        self._lease = max(1, round(lease * 1000))
        self._passing = False

    async def mine(self) -> bool:
        """Take the turn if nobody has it, keep it if it is mine, and tell which."""
        if self._passing:
            self._passing = False
            return False
        taken: int = await self._connection.run(_TAKE, keys=(self._key,), arguments=(self._holder, self._lease))
        return taken == 1

    async def pass_on(self) -> None:
        """Let another one have it; where Redis does not hear that, it expires."""
        self._passing = True
        with suppress(Unavailable):
            await self._connection.run(_LEAVE, keys=(self._key,), arguments=(self._holder,))
