"""Who speaks next over one connection to a manager, when several have much to say: each in turn, one message at a time.

Knows messages and room, neither terminals nor tunnels. Nobody's messages are kept here: a speaker is asked for its next one
when there is room, so that what it has gathered meanwhile goes out in one piece.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from sorna.cluster.messages import Message, encode
from sorna.zeromq import Sent


class Speaker(Protocol):
    """Somebody with something to say."""

    def first_message(self) -> Message | None:
        """Give what is to be sent next, None when there is nothing."""
        ...

    def forget_message(self) -> None:
        """Note that the message was sent."""
        ...


class Turns:
    """The speakers of one connection.

    :param send: hands one message to the connection if that has room now.
    """

    def __init__(self, send: Callable[[bytes], Sent]) -> None:
        self._send = send
        self._waiting: deque[Speaker] = deque()
        self._over = False

    def post(self, speaker: Speaker) -> None:
        """Send what somebody has, now or when there is room."""
        if speaker not in self._waiting and not self._over:
            self._waiting.append(speaker)
            if len(self._waiting) == 1:
                self.writable()

    def writable(self) -> None:
        """Send what waits, for as long as there is room."""
        while self._waiting:
            speaker = self._waiting[0]
            message = speaker.first_message()
            if message is not None and self._send(encode(message)) is not Sent.AWAY:
                return
            # Sending may have found the manager gone, and forgotten everything.
            if self._waiting and self._waiting[0] is speaker:
                self._waiting.popleft()
                speaker.forget_message()
                if speaker.first_message() is not None:
                    self._waiting.append(speaker)

    def stop(self) -> None:
        """Send nothing more."""
        self._over = True
        self._waiting.clear()
