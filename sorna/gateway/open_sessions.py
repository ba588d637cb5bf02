"""Every WebSocket session that is open, so that each is told when the server stops; knows no route and not what is said."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from sorna.gateway.websockets import Session, WebSocket

GOING_AWAY = 1001


@runtime_checkable
class Departing(Protocol):
    """A session that has something to say before the server stops."""

    def going_away(self) -> None:
        """Say it; the WebSocket is closed after that."""
        ...


class OpenSessions:
    """The sessions of one door."""

    def __init__(self) -> None:
        self._open: set[_OpenSession] = set()

    def keep(self, session: Session) -> Session:
        """Give a session in place of this one, which is told when the server stops."""
        return _OpenSession(session, self._open)

    def going_away(self) -> None:
        """Close every session, because the server stops."""
        for session in tuple(self._open):
            session.going_away()


class _OpenSession:
    """A session that is in the set while it is open; a ``Session`` itself."""

    def __init__(self, session: Session, all_open: set[_OpenSession]) -> None:
        self._session = session
        self._all_open = all_open
        self._socket: WebSocket | None = None

    def opened(self, socket: WebSocket) -> None:
        """See ``Session``."""
        self._socket = socket
        self._all_open.add(self)
        self._session.opened(socket)

    def received(self, text: str) -> None:
        """See ``Session``."""
        self._session.received(text)

    def resumed(self) -> None:
        """See ``Session``."""
        self._session.resumed()

    def closed(self) -> None:
        """See ``Session``."""
        self._socket = None
        self._all_open.discard(self)
        self._session.closed()

    def going_away(self) -> None:
        """Let the session say its last words, and close."""
        if isinstance(self._session, Departing):
            self._session.going_away()
        if self._socket is not None:
            self._socket.close(GOING_AWAY, "The server is restarting")
