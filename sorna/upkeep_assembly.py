"""The wiring of what is done again and again without anyone asking, and by which of a server's processes; nothing else.

Note [What one process does for all]
    With ``--workers`` each process is a manager with a gateway, and any of them serves any client. What a timer does for
    everybody (mending, looking after folders and agents) is done by the one that has the turn (``manager/turns``), which is
    nobody's by right: the one that asks first keeps it, and when it dies, hangs or fails, the next one that asks has it.
    The reaper asks most often, so another process takes over within :data:`LEASE` and one interval of it. What concerns
    what a process keeps in its own memory (keypairs' use, open streams, who waits) each does for itself.
"""

from __future__ import annotations

from typing import Any

from attrs import frozen

from sorna.boot import repeating
from sorna.folders.housekeeping import Housekeeping
from sorna.folders.storage import DiskFolders
from sorna.lifecycle import OrderedServices
from sorna.live.connection import RedisConnection
from sorna.live.turns import RedisTurn
from sorna.manager.attendance import Attendance
from sorna.manager.folders import Folders
from sorna.manager.interfaces import AgentDirectory
from sorna.manager.turns import Alone, SharedAttendance, SharedMending, Turn, in_turn
from sorna.store.service import Tables
from sorna.workers import Place

REAPER_INTERVAL = 0.5
HOUSEKEEPING_INTERVAL = 3600.0
ENTITLEMENT_INTERVAL = 5.0
COUNTING_INTERVAL = 15.0
ATTENDANCE_INTERVAL = 1.0
# Three questions of the reaper: over well before the lease of an agent that dies together with whoever had the turn.
LEASE = 3 * REAPER_INTERVAL


def turn_of(place: Place, workers: int, connection: RedisConnection) -> Turn:
    """Give the turn as one of so many processes sees it."""
    return Alone() if workers == 1 else RedisTurn(connection, place.group, "upkeep", str(place.number), LEASE)


@frozen
class Upkeep:
    """Puts the work on timers, which are stopped with ``parent``."""

    reactor: Any
    parent: OrderedServices
    turn: Turn

    def look_after_kernels(self, mending: SharedMending) -> None:
        """Mend what broke."""
        self.parent.addService(repeating(self.reactor, REAPER_INTERVAL, mending.mend, "while mending"))

    def look_after_folders(self, folders: Folders, storage: DiskFolders, store: Tables) -> None:
        """Take folders away, count and tidy them."""
        housekeeping = Housekeeping(self.reactor, storage, store.folders)
        for interval, work, what in (
            (ENTITLEMENT_INTERVAL, folders.entitlements.enforce, "while looking after folders in kernels"),
            (COUNTING_INTERVAL, folders.count, "while counting what folders hold"),
            (HOUSEKEEPING_INTERVAL, housekeeping.tidy, "while tidying folders"),
        ):
            self.parent.addService(repeating(self.reactor, interval, in_turn(self.turn, work), what))

    def look_after_agents(self, directory: AgentDirectory, store: Tables) -> None:
        """Note which agents come and go."""
        attendance = SharedAttendance(self.turn, Attendance(self.reactor, directory, store.agents))
        self.parent.addService(
            repeating(self.reactor, ATTENDANCE_INTERVAL, attendance.note, "while noting which agents live")
        )
