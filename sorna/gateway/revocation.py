"""Ends what is open in a keypair's name when the keypair is not active any more; knows no route and no database."""

from __future__ import annotations

from collections.abc import Callable

from sorna.gateway.interfaces import Keypairs
from sorna.gateway.websockets import POLICY, Session, WebSocket
from sorna.model.keypair import Keypair


def when_revoked(keypairs: Keypairs, access_key: str, end: Callable[[], None]) -> Callable[[], None]:
    """Call ``end`` within a second after a keypair has gone or is not active; once or more.

    :returns: what ends the watch.
    """

    def changed(keypair: Keypair | None) -> None:
        if keypair is None or not keypair.is_active:
            end()

    return keypairs.watch(access_key, changed)


class GuardedSession:
    """A session whose WebSocket is closed when its owner's keypair is revoked; a ``Session`` itself."""

    def __init__(self, session: Session, keypairs: Keypairs, access_key: str) -> None:
        self._session = session
        self._keypairs = keypairs
        self._access_key = access_key
        self._unwatch: Callable[[], None] | None = None

    def opened(self, socket: WebSocket) -> None:
        """See ``Session``."""
        self._session.opened(socket)
        end = lambda: socket.close(POLICY, "The access key is not active")  # noqa: E731 - what there is to do, no more
        self._unwatch = when_revoked(self._keypairs, self._access_key, end)

    def received(self, text: str) -> None:
        """See ``Session``."""
        self._session.received(text)

    def resumed(self) -> None:
        """See ``Session``."""
        self._session.resumed()

    def closed(self) -> None:
        """See ``Session``."""
        unwatch, self._unwatch = self._unwatch, None
        if unwatch is not None:
            unwatch()
        self._session.closed()
