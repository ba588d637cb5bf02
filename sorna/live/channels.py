"""Short messages between the managers of one installation, over Redis pub/sub.

Knows topics and texts, not what they mean. Redis keeps no message for a subscriber that is away, so that whoever keeps something
up to date by these messages must start anew when ``on_resync`` is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from sorna.live.address import RedisAddress
from sorna.live.connection import RedisConnection
from sorna.live.reconnection import Reconnection
from sorna.live.wire import SubscriberWire

LONGEST_TEXT = 64 * 1024
PREFIX = "sorna:"


def encode_text(text: str) -> bytes:
    """Give a text as it travels.

    :raises ValueError: it is longer than 64 KiB, or holds a lone surrogate.
    """
    raw = text.encode()
    if len(raw) > LONGEST_TEXT:
        raise ValueError(f"an announcement is at most {LONGEST_TEXT} bytes")
    return raw


class RedisAnnouncements(Service):
    """Publishes over a connection that others use too, and listens on one of its own.

    :param publisher: any connection to the server; pub/sub knows no databases. Started and stopped by its owner.
    :param prefix: put before every topic; two installations on one server need two.
    :param on_resync: called each time this side listens again, after the first connection and after every gap: messages
        may have been missed until now, and none will be from now on until the connection is lost again.
    :param keepalive: seconds between two checks that the other end is still there; nobody else would notice.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        address: RedisAddress,
        publisher: RedisConnection,
        *,
        prefix: str = PREFIX,
        on_resync: Callable[[], None] | None = None,
        on_loss: Callable[[], None] | None = None,
        timeout: float = 2.0,
        keepalive: float = 5.0,
    ) -> None:
        self._reactor = reactor
        self._publisher = publisher
        self._prefix = prefix
        self._on_resync = on_resync
        self._on_loss = on_loss
        self._keepalive = keepalive
        self._receivers: dict[bytes, list[Callable[[str], None]]] = {}
        self._wire: SubscriberWire | None = None
        self._check: IDelayedCall | None = None
        self._reconnection = Reconnection(
            reactor,
            address,
            purpose="announcements",
            build=lambda: SubscriberWire(reactor, timeout, self._received),
            prepare=self._resubscribe,
            up=self._came_up,
            down=self._went_down,
            connect_timeout=timeout,
        )

    @property
    def listening(self) -> bool:
        """Whether messages arrive now; while False, what they keep up to date is to be distrusted."""
        return self._wire is not None

    def startService(self) -> None:
        """Begin to connect."""
        super().startService()
        self._reconnection.startService()

    def stopService(self) -> Deferred[None]:
        """Stop listening; subscriptions are kept for a later start."""
        super().stopService()
        return self._reconnection.stopService()

    async def publish(self, topic: str, text: str) -> None:
        """Send to every subscriber of the topic that is connected now, this process included.

        :raises ValueError: the text cannot travel, see :func:`encode_text`.
        :raises Unavailable: Redis did not take it.
        """
        await self._publisher.command("PUBLISH", self._channel(topic), encode_text(text))

    def subscribe(self, topic: str, receive: Callable[[str], None]) -> Callable[[], None]:
        """Call ``receive`` for every message from a moment soon after this; an error in it is logged and harms nobody.

        :returns: a callable that ends the subscription; harmless when called again.
        """
        channel = self._channel(topic)

        # One of its own for each subscription, so that the same callable can be subscribed twice.
        def deliver(text: str) -> None:
            receive(text)

        receivers = self._receivers.setdefault(channel, [])
        receivers.append(deliver)
        if len(receivers) == 1:
            self._tell("SUBSCRIBE", channel)

        def end() -> None:
            if deliver in receivers:
                receivers.remove(deliver)
                if not receivers:
                    del self._receivers[channel]
                    self._tell("UNSUBSCRIBE", channel)

        return end

    def _channel(self, topic: str) -> bytes:
        return f"{self._prefix}{topic}".encode()

    def _tell(self, word: str, channel: bytes) -> None:
        """Change a subscription on the connection there is; one that comes later is made with all of them."""
        if self._wire is not None:
            self._wire.send(word, channel).addErrback(self._distrust, self._wire)

    def _distrust(self, _failure: Failure, wire: SubscriberWire) -> None:
        """Start over with a new connection; when this one is lost already, nothing more happens."""
        wire.abort()

    async def _resubscribe(self, wire: SubscriberWire) -> None:
        # Subscribing to something is also what puts the connection into the mode in which PING is all it will be asked.
        # Topics that are subscribed to while this is under way are caught up with in _came_up.
        wire.subscribed = frozenset(self._receivers)
        await gatherResults([wire.send("SUBSCRIBE", channel) for channel in wire.subscribed], consumeErrors=True)

    def _came_up(self, wire: SubscriberWire) -> None:
        self._wire = wire
        now = frozenset(self._receivers)
        for channel in now - wire.subscribed:
            self._tell("SUBSCRIBE", channel)
        for channel in wire.subscribed - now:
            self._tell("UNSUBSCRIBE", channel)
        self._check = self._reactor.callLater(self._keepalive, self._ping, wire)
        if self._on_resync is not None:
            with self._log.failuresHandled("resynchronising after a gap in the announcements"):
                self._on_resync()

    def _went_down(self) -> None:
        self._wire = None
        if self._check is not None:
            self._check.cancel()
        self._check = None
        if self._on_loss is not None:
            with self._log.failuresHandled("noting a gap in the announcements"):
                self._on_loss()

    def _ping(self, wire: SubscriberWire) -> None:
        """Ask for a sign of life; the wire ends itself when none comes."""
        self._check = self._reactor.callLater(self._keepalive, self._ping, wire)
        wire.send("PING").addErrback(self._distrust, wire)

    def _received(self, channel: bytes, message: bytes) -> None:
        text = message.decode("utf-8", "replace")
        for receive in tuple(self._receivers.get(channel, ())):
            with self._log.failuresHandled("receiving an announcement on {channel}", channel=channel.decode()):
                receive(text)
