"""Work that one of several processes does for all of them: whose turn it is, and what the others do meanwhile.

Knows neither how many there are nor which: whoever has the turn keeps it for as long as it does the work, and when it
dies, hangs or fails, another one takes it. Where a process is alone, it is always its turn.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

from attrs import frozen

from sorna.manager.attendance import Attendance
from sorna.manager.ending import Ending
from sorna.manager.queue import Queue
from sorna.manager.reaper import Reaper


class Turn(Protocol):
    """The turn for one kind of work, as one process sees it."""

    async def mine(self) -> bool:
        """Take the turn if nobody has it, keep it if it is mine, and tell which. :raises Unavailable:."""
        ...

    async def pass_on(self) -> None:
        """Let another one have it: the next question of this process is answered with no. Raises nothing."""
        ...


class Alone:
    """The turn of a process that shares its work with no other."""

    async def mine(self) -> bool:
        """Tell that it is."""
        return True

    async def pass_on(self) -> None:
        """Keep it, as there is nobody else."""


def in_turn(turn: Turn, work: Callable[[], Awaitable[None]]) -> Callable[[], Coroutine[Any, Any, bool]]:
    """Give what does the work if it is this process's turn, and tells whether it was; one that fails has had its turn."""

    async def once() -> bool:
        if not await turn.mine():
            return False
        try:
            await work()
        except BaseException:
            await turn.pass_on()
            raise
        return True

    return once


@frozen
class SharedMending:
    """The reaper's work, done by one of the processes; what each of them alone knows, it looks after itself.

    That is what it still owes to Redis, and who waits in the line, which bounds what its own requests may take.
    """

    turn: Turn
    reaper: Reaper
    ending: Ending
    queue: Queue

    async def mend(self) -> None:
        """Do once what is this process's to do; a timer calls it. :raises Unavailable:."""
        if await in_turn(self.turn, self.reaper.mend)():
            return
        self.reaper.forget_suspicions()
        await self.ending.forget_rest()
        await self.queue.mend(waited=await self.queue.anybody_waits())


@frozen
class SharedAttendance:
    """Which agents live, noted by one of the processes; what the others have noted before is outdated."""

    turn: Turn
    attendance: Attendance

    async def note(self) -> None:
        """Note once, if it is this process's turn; a timer calls it. :raises Unavailable:."""
        if not await in_turn(self.turn, self.attendance.note)():
            self.attendance.forget()
