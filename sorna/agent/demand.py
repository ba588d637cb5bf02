"""How many kernels of one kind are worth keeping ready, judged by how many were asked for lately.

Pure arithmetic on times in seconds; knows no kernel and no clock.

Note [Demand]: making a kernel takes some tens of milliseconds of a processor, which those who use theirs want too, so what a
supply has to outlast is a burst: the number of requests within ``BURST`` seconds. ``recent`` follows that number (each request adds one, and all fade with that time
constant); ``peak`` is the highest it has been, and fades slowly, so that a class that starts its exercises every few
minutes finds the supply that the last one needed.
"""

from __future__ import annotations

import math

from attrs import define

BURST = 6.0
MEMORY = 300.0
# Less than this is as good as nothing: a single request is remembered for about seven minutes.
_NOTHING = 0.25


@define
class Demand:
    """What was asked for of one kind."""

    recent: float = 0.0
    peak: float = 0.0
    at: float = 0.0

    def note(self, now: float) -> None:
        """Count one request."""
        self._fade(now)
        self.recent += 1.0
        self.peak = max(self.peak, self.recent)

    def wanted(self, now: float) -> int:
        """Tell how many are worth keeping."""
        self._fade(now)
        return math.ceil(self.peak) if self.peak >= _NOTHING else 0

    def _fade(self, now: float) -> None:
        passed = max(0.0, now - self.at)
        self.at = now
        self.recent *= math.exp(-passed / BURST)
        self.peak = max(self.recent, self.peak * math.exp(-passed / MEMORY))
