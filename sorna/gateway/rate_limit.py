"""Counting authorised requests and telling clients where they stand; knows header names, not where the counters are.

Source: section 1.7 of the REST interface's specification. Unlike the historic server, errors carry the headers too.
"""

from __future__ import annotations

from collections.abc import Mapping

from sorna.errors import RateLimitExceeded
from sorna.gateway.interfaces import RateLimits
from sorna.manager.interfaces import RateState
from sorna.model.keypair import Keypair

#: Length of a window in milliseconds.
WINDOW = 900_000
#: What anonymous requests are told; they are not counted, so no flood of them costs a round trip.
ANONYMOUS = RateState(limit=1000, remaining=1000, reset=WINDOW)


def rate_headers(state: RateState) -> Mapping[bytes, bytes]:
    """Spell a state as headers."""
    return {
        b"X-RateLimit-Limit": b"%d" % state.limit,
        b"X-RateLimit-Remaining": b"%d" % state.remaining,
        b"X-RateLimit-Reset": b"%d" % state.reset,
    }


def exhausted(keypair: Keypair, error: RateLimitExceeded) -> RateState:
    """Give the state of a keypair that was refused; a limiter that cannot tell the end of the window means all of it."""
    return RateState(keypair.rate_limit, 0, WINDOW if error.reset is None else max(error.reset, 0))


async def count(limits: RateLimits, keypair: Keypair) -> RateState:
    """Count one request of a keypair.

    :raises RateLimitExceeded: nothing remains in this window.
    """
    return await limits.hit(keypair.access_key, keypair.rate_limit)
