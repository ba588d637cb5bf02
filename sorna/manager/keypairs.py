"""Keypairs as authentication wants them: normally from memory, never older than a second, their use written in batches.

Knows no HTTP. A disabled key stops working within :data:`MAX_AGE`, because nothing older is ever believed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from sorna.errors import SornaError
from sorna.manager.interfaces import KeypairStore
from sorna.model.keypair import Keypair

# Seconds for which a keypair, or the knowledge that there is none, is believed.
MAX_AGE = 0.8
MAX_REMEMBERED = 10_000


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
    _used: dict[str, int] = field(factory=dict)

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
            del self._asking[access_key]
            for waiting in others:
                waiting.errback(error)
            raise
        del self._asking[access_key]
        self._known[access_key] = (asked_at, keypair)
        self._known.move_to_end(access_key)
        if len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)
        for waiting in others:
            waiting.callback(keypair)
        return keypair
