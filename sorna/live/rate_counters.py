"""Requests per keypair and window in Redis db 4: a counter per access key that expires by itself.

Knows no HTTP and no clock of its own: the window is measured by the server that holds the counter, so that managers whose
clocks differ count alike. The counters may be lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sorna.errors import RateLimitExceeded
from sorna.live.connection import RedisConnection, Script
from sorna.live.together import Together
from sorna.manager.interfaces import RateState

RATE_COUNTERS_DB = 4
WINDOW = 900.0

# Requests counted by one command.
MOST_TOGETHER = 500

# KEYS: access keys.  ARGV: window in milliseconds, then for each key a limit and how many requests want to be counted.
# Gives for each key how many were counted before, how many were counted now, and the milliseconds left of the window.
# A request that is refused is not counted: the counter stays at the limit, and a raised limit helps at once.
_HIT = Script(
    """
local answer = {}
for number, key in ipairs(KEYS) do
  local limit, wanted = tonumber(ARGV[2 * number]), tonumber(ARGV[2 * number + 1])
  local used = tonumber(redis.call('GET', key) or '0')
  local granted = math.max(0, math.min(wanted, limit - used))
  local left = 0
  if granted > 0 then
    redis.call('INCRBY', key, granted)
    left = redis.call('PTTL', key)
    if left < 0 then
      left = tonumber(ARGV[1])
      redis.call('PEXPIRE', key, left)
    end
  end
  answer[#answer + 1] = used
  answer[#answer + 1] = granted
  answer[#answer + 1] = left
end
return answer
""",
    RATE_COUNTERS_DB,
)


def exceeded() -> RateLimitExceeded:
    """Make the error of a request that came too many."""
    return RateLimitExceeded("The requests of the current window are used up.")


class RedisRateCounters:
    """Fixed windows that start with the first request; the requests of one turn are counted by one command.

    :param connection: any connection to the server.
    :param window: seconds.
    """

    def __init__(self, connection: RedisConnection, window: float = WINDOW) -> None:
        self._connection = connection
        self._window = max(1, round(window * 1000))
        self._together = Together(connection.reactor, self._count, MOST_TOGETHER)

    async def hit(self, access_key: str, limit: int) -> RateState:
        """Count one request; the first of a window leaves ``remaining`` = limit, each later one takes one off.

        :raises RateLimitExceeded: ``limit`` requests were counted in this window.
        """
        state = await self._together.ask((access_key, limit))
        if state is None:
            raise exceeded()
        return state

    async def _count(self, hits: Sequence[tuple[str, int]]) -> Sequence[RateState | None]:
        wanted = Counter(hits)
        numbers = [number for (_, limit), count in wanted.items() for number in (limit, count)]
        answer = await self._connection.run(
            _HIT, keys=tuple(access_key for access_key, _ in wanted), arguments=(self._window, *numbers)
        )
        states = {}
        for hit, used, granted, left in zip(wanted, answer[::3], answer[1::3], answer[2::3], strict=True):
            states[hit] = iter([RateState(hit[1], hit[1] - number, left) for number in range(used, used + granted)])
        return [next(states[hit], None) for hit in hits]
