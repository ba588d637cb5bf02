"""Ends a WebSocket whose keypair stops working: it was let in by a signature that would be refused now.

Knows sessions and keypairs, no route: whatever a session is about, it is wrapped before it is opened.
"""

from __future__ import annotations

from collections.abc import Callable

from sorna.gateway.interfaces import Keypairs
from sorna.gateway.websockets import POLICY, Session, WebSocket
from sorna.model.keypair import Keypair

REVOKED = "The access key is not active any more."


def when_revoked(keypairs: Keypairs, access_key: str, end: Callable[[], None]) -> Callable[[], None]:
    """Call ``end`` within a second after a keypair was disabled or removed, once or more.

    :returns: what ends the watch.
    """

    def changed(keypair: Keypair | None) -> None:
        if keypair is None or not keypair.is_active:
            end()

    return keypairs.watch(access_key, changed)


class WatchedSession:
    """A :class:`~sorna.gateway.websockets.Session` that is closed within a second after its keypair was disabled or removed."""

    def __init__(self, session: Session, keypairs: Keypairs, access_key: str) -> None:
        self._session = session
        self._keypairs = keypairs
        self._access_key = access_key
        self._end: Callable[[], None] | None = None

    def opened(self, socket: WebSocket) -> None:
        """See ``Session``."""
        self._end = when_revoked(self._keypairs, self._access_key, lambda: socket.close(POLICY, REVOKED))
        self._session.opened(socket)

    def received(self, text: str) -> None:
        """See ``Session``."""
        self._session.received(text)

    def resumed(self) -> None:
        """See ``Session``."""
        self._session.resumed()

    def closed(self) -> None:
        """See ``Session``."""
        if self._end is not None:
            self._end()
            self._end = None
        self._session.closed()
