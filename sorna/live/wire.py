"""One connection to Redis: txredisapi's protocol with bytes in and out, on our clock, watched for silence.

The driver parses with hiredis where that is installed; both ways give the same results here, except that answers like ``OK``
are bytes with it and text without, so nobody may look at them.

Knows RESP only through the driver, and nothing of what the commands mean or of what follows when a connection is lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import txredisapi
from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

Word = bytes | str | int
# Bytes read in one turn of the reactor: some 200 answers of integers, 8 of a kernel's hash.
_BITE = 4096

# Note [One timer per connection]
#
# Redis answers in the order it was asked, so the oldest command without an answer tells everything: while it is younger
# than the timeout, so is every other one; when it is older, the server is frozen, gone without a word, or busy, and all
# those behind it are stuck too. One timer, looking at the oldest command only, therefore bounds every call without a
# timer per call (setting and cancelling one costs a tenth of a round trip). When it strikes, the connection is aborted:
# a half-open connection would otherwise stay for ever, and an answer that comes late would have nobody to go to.


def without_values(message: str) -> str:
    """Cut an error message of Redis before the arguments that some repeat: keys, and the password where AUTH is renamed."""
    return message.partition(", with args")[0][:200]


def _spelled(word: Word) -> bytes:
    raw = word if isinstance(word, bytes) else str(word).encode()
    return b"$%d\r\n%b\r\n" % (len(raw), raw)


class Wire(txredisapi.RedisProtocol):
    """A connection that aborts itself when the oldest command has had no answer for ``timeout`` seconds."""

    def __init__(self, clock: IReactorTime, timeout: float) -> None:
        super().__init__(charset=None, convertNumbers=False)
        # The driver would take the global reactor.
        self.callLater = clock.callLater
        self._clock = clock
        self._timeout = timeout
        self._sent: deque[float] = deque()
        self._watch: IDelayedCall | None = None
        self._idle: list[Deferred[None]] = []
        # Whether the watch, and not the other end, ended this connection.
        self.silent = False

    @property
    def unanswered(self) -> int:
        """How many commands still wait for their answer."""
        return len(self._sent)

    def send(self, *words: Word) -> Deferred[Any]:
        """Send one command; those of one reactor turn leave in one write.

        :raises txredisapi.ConnectionError: at once or later, when the connection is lost.
        :raises txredisapi.ResponseError: later, when Redis answers with an error.
        """
        # What a client sent may hold a lone surrogate; it must not make sending fail, it only never finds anything.
        answer = self.execute_command(
            *(word.encode("utf-8", "surrogatepass") if isinstance(word, str) else word for word in words)
        )
        self._sent.append(self._clock.seconds())
        if self._watch is None:
            self._watch = self._clock.callLater(self._timeout, self._look)
        return answer

    def _build_command(self, *words: Word, **_options: Any) -> bytes:
        """Spell a command; the driver's own, which it takes where it no longer calls this, needs five times as long."""
        return b"".join((b"*%d\r\n" % len(words), *map(_spelled, words)))

    def when_idle(self) -> Deferred[None]:
        """Fire as soon as no command waits any more, because of answers or because the connection is gone."""
        idle: Deferred[None] = Deferred(self._idle.remove)
        self._idle.append(idle)
        if not self._sent:
            self._tell_idle()
        return idle

    def connectionMade(self) -> None:
        """Read little at a time, so that many answers at once do not keep the reactor from everything else."""
        transport: object = self.transport
        if isinstance(transport, FileDescriptor):
            transport.bufferSize = _BITE
        super().connectionMade()

    def replyReceived(self, reply: Any) -> None:
        """Take one answer off the list; the driver gives it to whoever asked."""
        if self._sent:
            self._sent.popleft()
        super().replyReceived(reply)
        if not self._sent and self._idle:
            self._tell_idle()

    def connectionLost(self, reason: Any = None) -> None:
        """Fail every command that waits."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        super().connectionLost(reason)
        self._sent.clear()
        self._tell_idle()

    def abort(self) -> None:
        """End the connection now, whatever has not been sent."""
        assert self.transport is not None
        # Every stream transport has it; the interface that the driver's base class names does not.
        abort: Callable[[], None] = getattr(self.transport, "abortConnection", self.transport.loseConnection)
        abort()

    def _tell_idle(self) -> None:
        waiting, self._idle = self._idle, []
        for idle in waiting:
            idle.callback(None)

    def _look(self) -> None:
        """Check the oldest command; see Note [One timer per connection]."""
        self._watch = None
        if not self._sent:
            return
        left = self._sent[0] + self._timeout - self._clock.seconds()
        if left > 0:
            self._watch = self._clock.callLater(left, self._look)
            return
        self.silent = True
        self.abort()


class SubscriberWire(Wire, txredisapi.SubscriberProtocol):
    """A connection in subscriber mode, which also gets messages nobody asked for.

    :ivar subscribed: the channels it was prepared with.
    """

    def __init__(self, clock: IReactorTime, timeout: float, receive: Callable[[bytes, bytes], None]) -> None:
        super().__init__(clock, timeout)
        self._receive = receive
        self.subscribed: frozenset[bytes] = frozenset()

    def replyReceived(self, reply: Any) -> None:
        """Tell a message from an answer."""
        if isinstance(reply, list) and len(reply) == 3 and reply[0] == b"message":
            self._receive(reply[1], reply[2])
        else:
            super().replyReceived(reply)
