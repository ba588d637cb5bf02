"""Requests per keypair and window in Redis db 4: a counter per access key that expires by itself.

Knows no HTTP and no clock of its own: the window is measured by the server that holds the counter, so that managers whose
clocks differ count alike. The counters may be lost.
"""

from __future__ import annotations

from sorna.errors import RateLimitExceeded
from sorna.live.connection import RedisConnection, Script
from sorna.manager.interfaces import RateState

RATE_COUNTERS_DB = 4
WINDOW = 900.0

# A request that is refused is not counted: the counter stays at the limit, and a raised limit helps at once.
_HIT = Script(
    """
local used = tonumber(redis.call('GET', KEYS[1]) or '0')
if used >= tonumber(ARGV[1]) then return {-1, 0} end
used = redis.call('INCR', KEYS[1])
local left = redis.call('PTTL', KEYS[1])
if left < 0 then
  left = tonumber(ARGV[2])
  redis.call('PEXPIRE', KEYS[1], left)
end
return {used, left}
"""
)


def exceeded() -> RateLimitExceeded:
    """Make the error of a request that came too many."""
    return RateLimitExceeded("The requests of the current window are used up.")


class RedisRateCounters:
    """Fixed windows that start with the first request.

    :param connection: a connection to db 4.
    :param window: seconds.
    """

    def __init__(self, connection: RedisConnection, window: float = WINDOW) -> None:
        self._connection = connection
        self._window = max(1, round(window * 1000))

    async def hit(self, access_key: str, limit: int) -> RateState:
        """Count one request; the first of a window leaves ``remaining`` = limit, each later one takes one off.

        :raises RateLimitExceeded: ``limit`` requests were counted in this window.
        """
        used, left = await self._connection.run(_HIT, keys=(access_key,), arguments=(limit, self._window))
        if used < 0:
            raise exceeded()
        return RateState(limit=limit, remaining=limit - used + 1, reset=left)
