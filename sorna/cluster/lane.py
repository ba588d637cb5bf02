"""One connection from a manager to an agent: a DEALER with CURVE, its monitor, and the conversation over it.

It knows how a connection is made, watched and closed, and no method of an agent.

Note [Noticing that an agent is gone]
-------------------------------------
A DEALER hides its connection: it queues for an agent that is not there and connects again by itself. Two things make it
honest. ``IMMEDIATE`` lets nothing be queued without a finished handshake, so that no stale call reaches the next life of an
agent. And the socket's monitor tells of every handshake and of every loss, so that calls fail when their connection does
and not at their deadline: at once when the agent's process or socket ends, and by ZeroMQ's own heartbeats, which its
threads send and answer without the reactor, when the network between falls silent.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import zmq
from attrs import frozen
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from sorna.cluster.conversation import Conversation
from sorna.cluster.messages import MAX_MESSAGE, Event
from sorna.curve_keys import CurveKeypair
from sorna.model.agent import AgentAddress
from sorna.zeromq import Sent, Socket, Sockets, present_curve

MOST_QUEUED = 1000
RECONNECT_MS, MOST_RECONNECT_MS = 50, 1_000
CONNECT_MS = 3_000
HANDSHAKE_MS = 5_000
DRAIN_TURNS = 20
# ZeroMQ connects again after a loss, but gives up for ever after a refusal; an operator may enrol the key meanwhile.
RETRY = 1.0

_WATCHED = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


@frozen
class LaneKind:
    """What a connection is for. A large message delays those behind it, so each kind of traffic has its own.

    :ivar heartbeat: seconds between ZeroMQ's heartbeats.
    :ivar silence: seconds without any sign of life after which the connection counts as lost.
    """

    name: str
    greets: bool
    heartbeat: float
    silence: float


class Lane:
    """One connection to one agent."""

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        sockets: Sockets,
        keypair: CurveKeypair,
        address: AgentAddress,
        *,
        kind: LaneKind,
        on_event: Callable[[Event], None],
    ) -> None:
        self._reactor = reactor
        self._retry: IDelayedCall | None = None
        self._address = address
        self._kind = kind
        self._refusals = 0
        self.conversation = Conversation(reactor, address.agent_id, self._send, on_event, greets=kind.greets)
        self._socket = Socket(sockets, zmq.DEALER, self._receive, self.conversation.writable, most_queued=MOST_QUEUED)
        present_curve(self._socket, keypair, address.public_key)
        for option, value in (
            (zmq.IMMEDIATE, 1),
            (zmq.MAXMSGSIZE, MAX_MESSAGE),
            (zmq.RECONNECT_IVL, RECONNECT_MS),
            (zmq.RECONNECT_IVL_MAX, MOST_RECONNECT_MS),
            (zmq.CONNECT_TIMEOUT, CONNECT_MS),
            (zmq.HANDSHAKE_IVL, HANDSHAKE_MS),
            (zmq.HEARTBEAT_IVL, round(kind.heartbeat * 1000)),
            (zmq.HEARTBEAT_TIMEOUT, round(kind.silence * 1000)),
            (zmq.IPV6, int("[" in address.endpoint)),
        ):
            self._socket.socket.set(option, value)
        self._socket.watch(_WATCHED, self._happened)
        self._socket.socket.connect(address.endpoint)

    def close(self, why: str = "the link to the agent is closed") -> None:
        """Fail the calls and close the connection."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self.conversation.close(why)
        self._socket.shutdown()

    def _send(self, raw: bytes) -> Sent:
        return self._socket.send([raw])

    def _receive(self, parts: list[zmq.Frame]) -> None:
        if len(parts) == 1:
            self.conversation.receive(parts[0].buffer)

    def _happened(self, event: int, value: int) -> None:
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._refusals = 0
            self._log.info(
                "{kind} connection to agent {agent_id} at {endpoint} is made",
                kind=self._kind.name,
                agent_id=self._address.agent_id,
                endpoint=self._address.endpoint,
            )
            self.conversation.connection_made()
        elif event == zmq.EVENT_DISCONNECTED:
            self._drain()
            if self.conversation.connected:
                self._log.info(
                    "{kind} connection to agent {agent_id} is lost with {calls} calls outstanding",
                    kind=self._kind.name,
                    agent_id=self._address.agent_id,
                    calls=self.conversation.calls,
                )
            self.conversation.connection_lost()
        else:
            self._handshake_failed(event, value)

    def _drain(self) -> None:
        """Take the answers that came before the end."""
        for _ in range(DRAIN_TURNS):
            self._socket.doRead()

    def _handshake_failed(self, event: int, value: int) -> None:
        self._refusals += 1
        if self._refusals == 1:
            self._log.error(
                "no handshake with agent {agent_id} at {endpoint}: {reason}",
                agent_id=self._address.agent_id,
                endpoint=self._address.endpoint,
                reason=f"it does not accept this manager's key ({value})"
                if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH
                else "it ended, or has another key than expected",
            )
        if event != zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL and self._retry is None:
            self._retry = self._reactor.callLater(RETRY, self._connect_again)
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self.conversation.refused()  # last, because a caller may close this lane

    def _connect_again(self) -> None:
        self._retry = None
        with contextlib.suppress(zmq.ZMQError):  # it may have forgotten the endpoint already
            self._socket.socket.disconnect(self._address.endpoint)
        self._socket.socket.connect(self._address.endpoint)
