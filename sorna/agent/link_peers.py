"""One manager's connection to the agent, and its calls in flight: what is remembered of them, and how a call is given up.

Knows no socket and decides nothing; :mod:`sorna.agent.link_sessions` does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from sorna.agent.link_terminals import PeerTerminals
from sorna.agent.link_tunnels import PeerTunnels
from sorna.cluster.messages import Call

FIRST_REPEAT = 2.0


@define(eq=False)
class Running:
    """One call in flight. ``answered`` once its answer is sent or no longer wanted, while the operation winds up."""

    call: Call
    size: int
    work: Deferred[None] | None = None
    timer: IDelayedCall | None = None
    answered: bool = False

    def stop(self) -> None:
        """Want no answer any more and cancel the operation."""
        self.answered = True
        if self.timer is not None and self.timer.active():
            self.timer.cancel()
        if self.work is not None:
            self.work.cancel()


@define(eq=False)
class Peer:
    """One connection of a manager. ``greeted`` once it has sent a ping, and gets news since.

    :ivar untaken: call -> what to call with whether its answer was passed on, for answers of which that is not known yet.
    """

    identity: bytes
    key: str
    heard_at: float
    calls: dict[int, Running] = field(factory=dict)
    call_bytes: int = 0
    small: deque[bytes] = field(factory=deque)
    large: deque[bytes] = field(factory=deque)
    greeted: bool = False
    told: set[int] = field(factory=set)
    repeat_after: float = FIRST_REPEAT
    repeat_at: float = 0.0
    garbage: int = 0
    untaken: dict[int, Callable[[bool], None]] = field(factory=dict)
    terminals: PeerTerminals = field(init=False)
    tunnels: PeerTunnels = field(init=False)

    def give_up(self, id_: int) -> None:
        """Do what there is to do for a call whose answer nobody wants; the answer may have been sent already."""
        running = self.calls.get(id_)
        if running is not None:
            running.stop()
        self.close(id_)
        self.settle(id_, arrived=False)

    def settle(self, id_: int, *, arrived: bool) -> None:
        """Say of an answer whether it was passed on; harmless when that is not asked."""
        settle = self.untaken.pop(id_, None)
        if settle is not None:
            settle(arrived)

    @property
    def unsent(self) -> int:
        """How many messages wait for room at the transport."""
        return len(self.small) + len(self.large)

    @property
    def in_use(self) -> bool:
        """Whether it waits for something, looks at something or has something open."""
        return bool(self.calls or self.terminals or self.tunnels)

    def opened(self, id_: int) -> bool:
        """Whether the call with this id opened something that is still there."""
        return self.terminals.has(id_) or self.tunnels.has(id_)

    def close(self, id_: int) -> None:
        """Close what the call with this id opened."""
        self.terminals.close(id_)
        self.tunnels.close(id_)
