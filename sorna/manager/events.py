"""What happens to kernels: announced between managers, and told to whoever watches, each event once; knows no door.

An announcement is one text: the kernel's short id, its new status, its owner, its session token, when that was, and the
reason, with spaces between.

Note [Repairing a stream]
=========================
Redis keeps no message for who is away, and takes none while it is away itself. The truth is the row, which is written before
anything is announced, and which has the time of its last change. So what is announced and what the row says are the same
event, down to that time, and a watcher is told it once, whichever way it comes: from the manager that made the change, at
once; from Redis; or from the rows. Behind a kernel's end nothing more is told of it, however late it comes.

* While this side does not listen, nothing is known. When it listens again, the rows of all watched owners that changed since
  shortly before the connection was lost are read, and what was not told is told.
* What this side could not announce is kept, up to a bound, and announced as soon as Redis takes it: the other managers may
  have been listening all the time, and have no reason to look at rows.

Statuses that nobody announces, because something is under way in them, are left out of both.
"""

from __future__ import annotations

import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from sorna.errors import Unavailable
from sorna.manager.interfaces import Announcements, KernelStore
from sorna.manager.requests import KernelEvent
from sorna.model.kernel import Kernel, KernelStatus, parse_kernel_id, short_id

KERNEL_TOPIC = "sorna.kernel-status"
#: Seconds for which a connection may have been lost before that is noticed.
UNNOTICED = 10.0
#: Seconds by which the clocks of two managers may differ.
CLOCKS_DIFFER = 3.0
#: So many of the latest events are remembered for each watcher: more than there are within these seconds.
REMEMBERED = 1024
MOST_UNSENT = 1000
PAGE = 500


def event_of(kernel: Kernel) -> KernelEvent:
    """Give the event that a row tells of."""
    return KernelEvent(
        kernel.id,
        kernel.status,
        kernel.access_key,
        kernel.session_token,
        kernel.status_reason,
        kernel.status_changed_at,
    )


def announcement_of(event: KernelEvent) -> str:
    """Give the text that announces an event."""
    names = f"{short_id(event.kernel_id)} {event.status} {event.access_key} {event.session_token}"
    return f"{names} {event.at!r} {event.reason}"


def read_announcement(text: str) -> KernelEvent | None:
    """Read an announcement, or give None for what is none, such as one of a manager of another version."""
    match text.split(" ", 5):
        case [short, status, access_key, token, time, reason]:
            kernel_id = parse_kernel_id(short)
            if kernel_id is None or status not in KernelStatus.__members__:
                return None
            try:
                return KernelEvent(kernel_id, KernelStatus(status), access_key, token, reason, float(time))
            except ValueError:
                return None
    return None


@define(eq=False)
class _Watcher:
    """Whoever watches one kernel of an owner, or all when ``kernel_id`` is None, since some time."""

    access_key: str
    kernel_id: uuid.UUID | None
    since: float
    receive: Callable[[KernelEvent], None]
    _told: OrderedDict[KernelEvent, None] = field(factory=OrderedDict)
    _ended: OrderedDict[uuid.UUID, None] = field(factory=OrderedDict)

    _log = Logger()

    def tell(self, event: KernelEvent) -> None:
        """Tell an event that concerns this watcher, if it was not told before."""
        if self.kernel_id not in {None, event.kernel_id} or event in self._told or event.kernel_id in self._ended:
            return
        self._told[event] = None
        if event.status.final:
            self._ended[event.kernel_id] = None
        for remembered in (self._told, self._ended):
            if len(remembered) > REMEMBERED:
                remembered.popitem(last=False)
        with self._log.failuresHandled("telling an event of {kernel_id}", kernel_id=short_id(event.kernel_id)):
            self.receive(event)


class KernelEvents:
    """Events of kernels; see Note [Repairing a stream]."""

    _log = Logger()

    def __init__(self, clock: IReactorTime, kernels: KernelStore, announcements: Announcements) -> None:
        self._clock = clock
        self._kernels = kernels
        self._announcements = announcements
        self._watchers: dict[str, list[_Watcher]] = {}
        self._unsent: deque[str] = deque(maxlen=MOST_UNSENT)
        self._listening = False
        self._deaf_since: float | None = clock.seconds()
        self._repairing = False

    def listen(self) -> None:
        """Hear what managers announce, for as long as the process lives."""
        self._announcements.subscribe(KERNEL_TOPIC, self._heard)

    # -- telling

    async def announce(self, kernel: Kernel) -> None:
        """Tell whoever watches, in any manager; what Redis does not take now is announced later."""
        event = event_of(kernel)
        self._tell(event)
        text = announcement_of(event)
        try:
            await self._announcements.publish(KERNEL_TOPIC, text)
        except Unavailable as error:
            self._unsent.append(text)
            self._log.warn(
                "a change of {kernel_id} is announced later: {error}", kernel_id=short_id(kernel.id), error=error
            )

    async def watch(
        self, access_key: str, kernel_id: uuid.UUID | None, receive: Callable[[KernelEvent], None]
    ) -> Callable[[], None]:
        """Call ``receive`` once for every event of one kernel, or of all of an owner when ``kernel_id`` is None.

        A kernel that has ended by now is told of at once.

        :returns: what ends it.
        :raises Unavailable: PostgreSQL cannot say whether the kernel has ended.
        """
        watcher = _Watcher(access_key, kernel_id, self._clock.seconds(), receive)
        self._watchers.setdefault(access_key, []).append(watcher)

        def end() -> None:
            watchers = self._watchers.get(access_key, [])
            if watcher in watchers:
                watchers.remove(watcher)
                if not watchers:
                    del self._watchers[access_key]

        if kernel_id is None:
            return end
        try:
            # Looked at after listening: an end in between is seen by one or the other.
            kernel = await self._kernels.by_id(kernel_id)
        except BaseException:
            end()
            raise
        if kernel is not None and kernel.status.final:
            watcher.tell(event_of(kernel))
        return end

    def _heard(self, text: str) -> None:
        event = read_announcement(text)
        if event is not None:
            self._tell(event)

    def _tell(self, event: KernelEvent) -> None:
        for watcher in tuple(self._watchers.get(event.access_key, ())):
            watcher.tell(event)

    # -- repairing

    def lost(self) -> None:
        """Learn that nothing is heard from now on, or has not been for a moment."""
        self._listening = False
        if self._deaf_since is None:
            self._deaf_since = self._clock.seconds() - UNNOTICED

    def heard_again(self) -> None:
        """Learn that announcements arrive again, and tell what was missed."""
        self._listening = True
        repaired = Deferred.fromCoroutine(self.repair())
        # The next of the regular attempts says so in the log.
        repaired.addErrback(Failure.trap, Unavailable)
        repaired.addErrback(lambda failure: self._log.failure("repairing the streams of events", failure))

    async def repair(self) -> None:
        """Do what is owed, if anything is; called regularly.

        :raises Unavailable: not all of it could be done; the rest stays owed.
        """
        if self._repairing:
            return
        self._repairing = True
        try:
            await self._catch_up()
            await self._send()
        finally:
            self._repairing = False

    async def _catch_up(self) -> None:
        since = self._deaf_since
        if since is None or not self._listening:
            return
        # A gap that begins while this one is mended is another one.
        self._deaf_since = None
        try:
            await self._tell_changes(since - CLOCKS_DIFFER)
        except BaseException:
            self._deaf_since = since
            raise

    async def _tell_changes(self, since: float) -> None:
        owners = tuple(self._watchers)
        after: tuple[float, uuid.UUID] | None = None
        page: Sequence[Kernel] = ()
        while owners and (after is None or len(page) == PAGE):
            page = await self._kernels.changed(owners, since, after=after, limit=PAGE)
            for kernel in page:
                after = (kernel.status_changed_at, kernel.id)
                if kernel.status.final or kernel.status is KernelStatus.RUNNING:
                    self._tell_missed(event_of(kernel))
            if not page:
                break

    def _tell_missed(self, event: KernelEvent) -> None:
        for watcher in tuple(self._watchers.get(event.access_key, ())):
            if event.at >= watcher.since - CLOCKS_DIFFER:
                watcher.tell(event)

    async def _send(self) -> None:
        while self._unsent:
            text = self._unsent[0]
            await self._announcements.publish(KERNEL_TOPIC, text)
            if self._unsent and self._unsent[0] is text:
                self._unsent.popleft()
