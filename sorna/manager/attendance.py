"""Writes down which agents live and since when the others do not, so that it is known after they are forgotten in Redis.

Knows no door. Several managers may do it at the same time: what is as it was is not written again.
"""

from __future__ import annotations

from attrs import define
from twisted.internet.interfaces import IReactorTime

from sorna.manager.enrolment_interfaces import AgentStore
from sorna.manager.interfaces import AgentDirectory


@define
class Attendance:
    """One look is :meth:`note`; a timer calls it."""

    clock: IReactorTime
    directory: AgentDirectory
    agents: AgentStore
    _noted: frozenset[str] | None = None

    async def note(self) -> None:
        """Look once, and write if that is otherwise than at the last look. :raises Unavailable: next time, then."""
        alive = frozenset(agent.id for agent in await self.directory.alive())
        if alive != self._noted:
            await self.agents.note_alive(alive, self.clock.seconds())
            self._noted = alive

    def forget(self) -> None:
        """Forget the last look, because somebody else looks now: the next look writes, whatever it finds."""
        self._noted = None
