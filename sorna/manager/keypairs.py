"""Keypairs as authentication wants them: normally from memory, never older than a second, their use written in batches.

Knows no HTTP. Whoever changes a keypair announces it, so that every manager forgets what it knew, and tells streams that are
open in the keypair's name, at once. An announcement may be lost: then :data:`MAX_AGE` is the bound, because nothing older
is ever believed and watched keypairs are looked at again as often.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection

from attrs import define, evolve, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from sorna.errors import SornaError
from sorna.manager.interfaces import Announcements, KeypairStore
from sorna.model.keypair import Keypair
from sorna.model.policy import Slots

# Seconds for which a keypair, or the knowledge that there is none, is believed.
MAX_AGE = 0.8
MAX_REMEMBERED = 10_000
# The text of an announcement is the access key that changed, or nothing where any may have (a policy did).
KEYPAIR_TOPIC = "sorna.keypair"

OnChange = Callable[[Keypair | None], None]


@define
class CachedKeypairs:
    """Implements :class:`sorna.gateway.interfaces.Keypairs`.

    :ivar refused: access keys that do not exist for this process, whatever the store has: the published example keypair of
        an earlier start must not open a server that was started without it.
    """

    clock: IReactorTime
    store: KeypairStore
    refused: Collection[str] = ()
    _known: OrderedDict[str, tuple[float, Keypair | None]] = field(factory=OrderedDict)
    _asking: dict[str, list[Deferred[Keypair | None]]] = field(factory=dict)
    _outdated: set[str] = field(factory=set)
    _used: dict[str, int] = field(factory=dict)
    _watchers: dict[str, list[OnChange]] = field(factory=dict)
    _shown: dict[str, Keypair | None] = field(factory=dict)

    _log = Logger()

    async def find(self, access_key: str) -> Keypair | None:
        """Give the keypair; concurrent requests for one key share one query."""
        if access_key in self.refused:
            return None
        known = self._known.get(access_key)
        if known is not None and self.clock.seconds() - known[0] < MAX_AGE:
            return known[1]
        if access_key in self._asking:
            waiting: Deferred[Keypair | None] = Deferred()
            self._asking[access_key].append(waiting)
            return await waiting
        return await self._ask(access_key)

    def watch(self, access_key: str, on_change: OnChange) -> Callable[[], None]:
        """Call ``on_change`` with the keypair as it is now, None when it is gone, within a second after it changed.

        It is called once soon after the beginning too, because a change may have come just before; who keeps a stream open
        in a keypair's name closes it when there is no keypair or it is not active.

        :returns: a callable that ends the watch; harmless when called again.
        """

        def tell(keypair: Keypair | None) -> None:
            on_change(keypair)

        self._watchers.setdefault(access_key, []).append(tell)
        self._shown.pop(access_key, None)

        def end() -> None:
            watchers = self._watchers.get(access_key, [])
            if tell in watchers:
                watchers.remove(tell)
                if not watchers:
                    del self._watchers[access_key]
                    self._shown.pop(access_key, None)

        return end

    def listen(self, announcements: Announcements) -> None:
        """Heed what managers announce of keypairs, for as long as the process lives."""
        announcements.subscribe(KEYPAIR_TOPIC, self.changed)

    def changed(self, access_key: str = "") -> None:
        """Forget what is known of a keypair, of all without one, and tell those who watch it."""
        forgotten = (access_key,) if access_key else (*self._known, *self._asking)
        for one in forgotten:
            self._known.pop(one, None)
            if one in self._asking:
                # The answer that is under way may be from before the change: good for who asked then, and for nobody later.
                self._outdated.add(one)
        watched = [access_key] if access_key else list(self._watchers)
        Deferred.fromCoroutine(self._tell(watched)).addErrback(
            lambda failure: self._log.failure("watched keypairs could not be looked at", failure)
        )

    async def check_watched(self) -> None:
        """Look at every watched keypair, in one query; called every :data:`MAX_AGE`, in case an announcement was lost."""
        await self._tell(list(self._watchers))

    async def _tell(self, access_keys: Collection[str]) -> None:
        wanted = [access_key for access_key in access_keys if access_key in self._watchers]
        if not wanted:
            return
        try:
            found = {keypair.access_key: keypair for keypair in await self.store.by_access_keys(wanted)}
        except SornaError as error:
            self._log.debug("watched keypairs cannot be looked at now: {error}", error=error)
            return
        for access_key in wanted:
            now = found.get(access_key)
            # What every request changes is no news.
            shown = None if now is None else evolve(now, num_queries=0, last_used=None, taken=Slots())
            if access_key in self._shown and self._shown[access_key] == shown:
                continue
            watchers = tuple(self._watchers.get(access_key, ()))
            if watchers:
                self._shown[access_key] = shown
            for on_change in watchers:
                with self._log.failuresHandled("telling of a change of {access_key}", access_key=access_key):
                    on_change(now)

    def used(self, access_key: str) -> None:
        """Note one authorised request."""
        self._used[access_key] = self._used.get(access_key, 0) + 1

    async def write_use(self) -> None:
        """Write what was noted since the last time; what cannot be written now is kept for the next time."""
        used, self._used = self._used, {}
        if not used:
            return
        try:
            await self.store.note_use(used, self.clock.seconds())
        except SornaError as error:
            self._log.warn("the use of keypairs could not be written yet: {error}", error=error)
            for access_key, count in used.items():
                self._used[access_key] = self._used.get(access_key, 0) + count

    async def _ask(self, access_key: str) -> Keypair | None:
        others: list[Deferred[Keypair | None]] = []
        self._asking[access_key] = others
        asked_at = self.clock.seconds()
        try:
            keypair = await self.store.by_access_key(access_key)
        except BaseException as error:
            self._outdated.discard(access_key)
            del self._asking[access_key]
            for waiting in others:
                waiting.errback(error)
            raise
        del self._asking[access_key]
        if access_key in self._outdated:
            self._outdated.remove(access_key)
        else:
            self._known[access_key] = (asked_at, keypair)
            self._known.move_to_end(access_key)
        if len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)
        for waiting in others:
            waiting.callback(keypair)
        return keypair
