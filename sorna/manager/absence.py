"""When the absence of a sign of life may be believed; knows neither Redis nor agents.

Note [Who is away: the agents or Redis]
    A Redis that has restarted empty knows no agent until each has written its next heartbeat, and an agent that could not
    reach Redis looks like one that is dead. So whoever hears that Redis was away says so here, and for :data:`SEEN_AGAIN`
    seconds no agent is taken for lost: long enough for every agent that lives to say so.
"""

from __future__ import annotations

from attrs import define
from twisted.internet.interfaces import IReactorTime

# An agent that lives has written a heartbeat by then: one that fails, reconnecting, and the next.
SEEN_AGAIN = 4.0


@define
class Absence:
    """Shared by all that conclude something from an agent's absence; see the Note above."""

    clock: IReactorTime
    _believed_from: float = 0.0

    def distrust(self) -> None:
        """Begin to wait: signs of life may have been lost until now."""
        self._believed_from = self.clock.seconds() + SEEN_AGAIN

    @property
    def believable(self) -> bool:
        """Whether who is absent now is gone."""
        return self.clock.seconds() >= self._believed_from
