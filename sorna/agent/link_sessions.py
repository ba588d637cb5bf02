"""The agent's conversations with its managers: calls in flight, their deadlines, and news until they are acknowledged.

It knows messages, the clock and the operations, and no socket: it is handed a way to send and told what came in.

Note [Knowing that a manager is gone]
-------------------------------------
A ROUTER does not tell which peer has disconnected; it tells, when asked to, that a message cannot be delivered. So when
the transport reports that *somebody* has gone, every manager that has calls in flight is sent an answer to call 0,
which nobody makes and every manager ignores; where it finds nobody, the calls of that manager are cancelled, so that
runs give the output they had taken back, for another manager to read. What must not stay half done (destroying,
restarting) goes on.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Awaitable, Callable, Mapping
from itertools import islice
from typing import Any

from attrs import evolve
from twisted.internet import defer
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from sorna.agent.interfaces import AgentOperations
from sorna.agent.link_calls import perform
from sorna.agent.link_peers import FIRST_REPEAT, Peer, Running
from sorna.agent.link_terminals import PeerTerminals
from sorna.agent.link_tunnels import PeerTunnels
from sorna.cluster.messages import (
    MAX_MESSAGE,
    RESTARTING,
    Acknowledge,
    Answer,
    Call,
    Cancel,
    Event,
    Failed,
    MalformedMessage,
    Steer,
    Took,
    decode,
    encode,
    error_to_failed,
    pack_value,
    unpack_kernel_id,
)
from sorna.errors import AgentTimeout, SornaError, Unavailable
from sorna.model.kernel import Usage
from sorna.zeromq import Sent

MAX_PEERS = 256
MAX_CALLS = 4096
MAX_CALL_BYTES = 256 * 1024 * 1024
MAX_UNSENT = 2 * MAX_CALLS
MAX_DEADLINE = 86_400.0
SMALL = 64 * 1024
MAX_EVENTS = 10_000
EVENTS_AT_ONCE = 100
LAST_REPEAT = 30.0
TICK = 1.0
SILENCE = 90.0
PROBE_DELAY = 0.05
_RESTARTING = Failed(0, RESTARTING, "the agent restarts", None)
UNFINISHED_WITHOUT_CALLER = frozenset({"destroy_kernel", "restart_kernel"})

RestartProgram = Callable[[], Awaitable[None]]


class Sessions:
    """Every conversation of this agent; its ``kernel_ended`` is the agent's :class:`~sorna.agent.interfaces.AgentNews`.

    :param send: hands one message to the connection of this identity.
    :param permits: tells whether a public key may still talk to this agent; asked for every message.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        operations: AgentOperations,
        send: Callable[[bytes, bytes], Sent],
        permits: Callable[[str], bool],
        incarnation: str,
    ) -> None:
        self._clock = clock
        self._operations = operations
        self._send = send
        self._permits = permits
        self._incarnation = incarnation
        self._peers: dict[bytes, Peer] = {}
        # Drawn at random, so that a manager's late acknowledgement of an earlier life's event means nothing here.
        self._last_event = secrets.randbits(48)
        self._events: dict[int, bytes] = {}
        self._ended: dict[uuid.UUID, int] = {}
        self._kernel_of: dict[int, uuid.UUID] = {}
        self._in_flight: set[Running] = set()
        self._all_done: Deferred[None] | None = None
        self._probe: IDelayedCall | None = None
        self._paused = False
        self.restart_program: RestartProgram | None = None
        self._ticking = LoopingCall(self._tick)
        self._ticking.clock = clock

    def start(self) -> None:
        """Begin to look after silent peers and unacknowledged news."""
        self._ticking.start(TICK, now=False).addErrback(
            lambda failure: self._log.failure("the link's timer stopped", failure)
        )

    def pause(self) -> None:
        """Begin no call from now on: who makes one is told to make it again at the next connection, as nothing was done.

        Every manager is told, so that it makes none until then.
        """
        self._paused = True
        for peer in list(self._peers.values()):
            peer.terminals.close_all()
            peer.tunnels.close_all()
            self._post(peer, encode(_RESTARTING))

    def resume(self) -> None:
        """Begin calls again, and tell every manager."""
        self._paused = False
        for peer in list(self._peers.values()):
            self._post(peer, encode(Answer(0, None)))

    def carry(self) -> Mapping[str, Any]:
        """Give the news that nobody has acknowledged as plain values."""
        events = [[number, raw, self._kernel_of[number].bytes] for number, raw in self._events.items()]
        return {"last": self._last_event, "events": events}

    def take_over(self, state: Mapping[str, Any]) -> None:
        """Go on telling what another program had to tell."""
        self._last_event = state["last"]
        for number, raw, kernel_id in state["events"]:
            self._events[number] = raw
            self._kernel_of[number] = uuid.UUID(bytes=kernel_id)
            self._ended[self._kernel_of[number]] = number

    async def stop(self, patience: float = 2.0) -> None:
        """Cancel the calls in flight, forget every peer, and wait, for so many seconds, until the last call has ended."""
        if self._ticking.running:
            self._ticking.stop()
        if self._probe is not None:
            self._probe.cancel()
            self._probe = None
        for peer in list(self._peers.values()):
            self._forget(peer, "this agent stops")
        if self._in_flight:
            done: Deferred[None] = Deferred()
            self._all_done = done
            done.addTimeout(patience, self._clock)
            try:
                await done
            except defer.TimeoutError:
                self._all_done = None
                self._log.warn("{count} calls do not end", count=len(self._in_flight))

    @property
    def calls_in_flight(self) -> int:
        """How many calls are being worked on."""
        return len(self._in_flight)

    # What comes in.

    def receive(self, identity: bytes, key: str, raw: bytes | memoryview) -> None:
        """Take one message of a manager. Never raises for what it holds."""
        peer = self._peers.get(identity)
        if not self._permits(key):
            if peer is not None:
                self._forget(peer, "its key is no longer authorised")
            return
        if peer is None:
            peer = self._new_peer(identity, key)
        peer.heard_at = self._clock.seconds()
        try:
            message = decode(raw)
        except MalformedMessage as error:
            self._refuse_garbage(peer, str(error))
            return
        match message:
            case Call():
                self._call(peer, message, len(raw))
            case Cancel():
                peer.give_up(message.id)
            case Took():
                peer.settle(message.id, arrived=True)
            case Steer():
                peer.terminals.steer(message)
                peer.tunnels.steer(message)
            case Acknowledge():
                self._acknowledged(message.number)
            case _:
                self._refuse_garbage(peer, "not a message for an agent")

    def _new_peer(self, identity: bytes, key: str) -> Peer:
        if len(self._peers) >= MAX_PEERS:
            oldest = min(self._peers.values(), key=lambda peer: (peer.in_use, peer.heard_at))
            self._forget(oldest, "too many managers are connected")
        peer = self._peers[identity] = Peer(identity, key, self._clock.seconds())
        peer.terminals = PeerTerminals(lambda raw: self._send_after_answers(peer, raw))
        peer.tunnels = PeerTunnels(lambda raw: self._send_after_answers(peer, raw))
        return peer

    def _refuse_garbage(self, peer: Peer, reason: str) -> None:
        peer.garbage += 1
        if peer.garbage & (peer.garbage - 1) == 0:  # the first, second, fourth, eighth...
            self._log.warn(
                "the manager with the key {key} sent {count} messages that cannot be read, the last: {reason}",
                key=peer.key,
                count=peer.garbage,
                reason=reason,
            )

    @property
    def untold(self) -> int:
        """How many news no manager has acknowledged yet."""
        return len(self._events)

    # Calls.

    def _call(self, peer: Peer, call: Call, size: int) -> None:
        if call.id in peer.calls or peer.opened(call.id):
            self._refuse_garbage(peer, "a call has the id of one in flight")
        elif self._paused:
            self._post(peer, encode(evolve(_RESTARTING, id=call.id)))
        elif call.method == "ping":
            self._post(peer, encode(Answer(call.id, {"incarnation": self._incarnation})))
            self._greet(peer)
        elif len(peer.calls) >= MAX_CALLS or peer.call_bytes + size > MAX_CALL_BYTES or peer.unsent >= MAX_CALLS:
            busy = Unavailable("this agent is already doing too much for this manager")
            self._post(peer, encode(error_to_failed(call.id, busy)))
        else:
            self._begin(peer, call, size)

    def _begin(self, peer: Peer, call: Call, size: int) -> None:
        running = peer.calls[call.id] = Running(call, size)
        self._in_flight.add(running)
        peer.call_bytes += size
        work = Deferred.fromCoroutine(self._work(peer, running))
        if call.id in peer.calls:
            running.work = work
            if not running.answered:
                deadline = min(call.deadline, MAX_DEADLINE)
                running.timer = self._clock.callLater(deadline, self._too_late, peer, running)
            elif call.method not in UNFINISHED_WITHOUT_CALLER:  # the manager was lost while the operation began
                work.cancel()
        work.addErrback(lambda failure: self._log.failure("a call could not be answered", failure))

    async def _work(self, peer: Peer, running: Running) -> None:
        call = running.call
        answer: Answer | Failed
        try:
            if call.method in {"open_terminal", "open_tunnel"}:
                opener = peer.terminals if call.method == "open_terminal" else peer.tunnels
                await opener.open(self._operations, call.id, call.parameters)
                answer = Answer(call.id, None)
            elif call.method == "restart_program":
                await self._restart_program()
                answer = Answer(call.id, None)
            else:
                answer = Answer(call.id, await perform(self._operations, call.method, call.parameters))
                if call.method == "execute":
                    self._hand_over(peer, running, answer.result)
        except Exception as error:  # noqa: BLE001 -- whatever it is, the manager gets an answer
            answer = error_to_failed(call.id, error)
            if not isinstance(error, SornaError | CancelledError):
                self._log.failure("the call {method} failed", Failure(), method=call.method)
        finally:
            del peer.calls[call.id]
            self._in_flight.discard(running)
            peer.call_bytes -= running.size
            if running.timer is not None and running.timer.active():
                running.timer.cancel()
            if not self._in_flight and self._all_done is not None:
                done, self._all_done = self._all_done, None
                done.callback(None)
        if running.answered:
            peer.close(call.id)
        else:
            running.answered = True
            self._post(peer, self._encoded(call, answer))

    def _hand_over(self, peer: Peer, running: Running, reply: Mapping[str, Any]) -> None:
        """Keep the answer of a run until the manager has passed it on; give it back at once when nobody waits for it."""
        call = running.call
        settle = self._operations.hand_over(unpack_kernel_id(call.parameters["kernel_id"]), reply["run_id"])
        if settle is None:
            return
        if running.answered or self._peers.get(peer.identity) is not peer:
            settle(False)
        else:
            peer.untaken[call.id] = settle

    async def _restart_program(self) -> None:
        if self.restart_program is None:
            raise Unavailable("this agent cannot replace its program")
        await self.restart_program()

    def _encoded(self, call: Call, answer: Answer | Failed) -> bytes:
        try:
            raw = encode(answer)
        except (ValueError, TypeError, OverflowError) as error:
            self._log.failure("the result of {method} cannot travel", Failure(), method=call.method)
            return encode(error_to_failed(call.id, error))
        if len(raw) > MAX_MESSAGE:
            self._log.error("the result of {method} has {size} bytes", method=call.method, size=len(raw))
            return encode(Failed(call.id, "AgentFailed", f"the result has {len(raw)} bytes, too many to send", None))
        return raw

    def _too_late(self, peer: Peer, running: Running) -> None:
        call = running.call
        self._post(
            peer, encode(error_to_failed(call.id, AgentTimeout(f"{call.method} took longer than {call.deadline:g} s")))
        )
        running.stop()

    # What goes out.

    def _post(self, peer: Peer, raw: bytes) -> None:
        sent = Sent.FULL if peer.unsent else self._send(peer.identity, raw)
        if sent is Sent.GONE:
            self._forget(peer, "it is no longer connected")
        elif sent is Sent.FULL:
            # Short answers go first, so that a run's result does not wait for another's megabytes.
            (peer.small if len(raw) <= SMALL else peer.large).append(raw)
            if peer.unsent > MAX_UNSENT:
                self._forget(peer, "it does not read its answers")

    def _send_after_answers(self, peer: Peer, raw: bytes) -> Sent:
        """Send what a terminal or an application has if nothing else waits: it never stands before an answer."""
        sent = Sent.FULL if peer.unsent else self._send(peer.identity, raw)
        if sent is Sent.GONE:
            self._forget(peer, "it is no longer connected")
        return sent

    def writable(self) -> None:
        """Send what waited for room."""
        for peer in list(self._peers.values()):
            while peer.unsent:
                queue = peer.small or peer.large
                sent = self._send(peer.identity, queue[0])
                if sent is Sent.FULL:
                    break
                if sent is Sent.GONE:
                    self._forget(peer, "it is no longer connected")
                    break
                queue.popleft()
            peer.terminals.writable()
            peer.tunnels.writable()

    # Who is there.

    def somebody_left(self) -> None:
        """Find out which manager has disconnected; see Note [Knowing that a manager is gone]."""
        if self._probe is None:
            self._probe = self._clock.callLater(PROBE_DELAY, self._look_around)

    def _look_around(self) -> None:
        self._probe = None
        nothing = encode(Answer(0, None))
        for peer in list(self._peers.values()):
            if not peer.unsent:
                self._post(peer, nothing)

    def _forget(self, peer: Peer, reason: str) -> None:
        if self._peers.get(peer.identity) is not peer:
            return
        del self._peers[peer.identity]
        if peer.calls or peer.unsent:
            self._log.info(
                "{calls} calls and {unsent} answers of the manager with the key {key} are dropped: {reason}",
                calls=len(peer.calls),
                unsent=peer.unsent,
                key=peer.key,
                reason=reason,
            )
        peer.small.clear()
        peer.large.clear()
        peer.terminals.close_all()
        peer.tunnels.close_all()
        for id_ in list(peer.untaken):
            peer.settle(id_, arrived=False)
        for running in list(peer.calls.values()):
            if running.call.method in UNFINISHED_WITHOUT_CALLER:
                running.answered = True
            else:
                running.stop()

    def _tick(self) -> None:
        now = self._clock.seconds()
        for peer in list(self._peers.values()):
            if not self._permits(peer.key):
                self._forget(peer, "its key is no longer authorised")
            elif now - peer.heard_at > SILENCE and not peer.in_use:
                self._forget(peer, "nothing was heard of it")
            elif peer.told and now >= peer.repeat_at:
                peer.repeat_after = min(2 * peer.repeat_after, LAST_REPEAT)
                peer.told.clear()
                self._tell(peer)

    # News.

    def kernel_ended(self, kernel_id: uuid.UUID, reason: str, usage: Usage) -> None:
        """Tell every manager, now and at each of its connections, until one has taken care of it."""
        if kernel_id in self._ended:
            return
        self._last_event += 1
        number = self._last_event
        news = {"kernel_id": kernel_id.bytes, "reason": reason[:1000], "usage": pack_value(usage)}
        self._events[number] = encode(Event(number, "kernel_ended", news))
        self._ended[kernel_id] = number
        self._kernel_of[number] = kernel_id
        if len(self._events) > MAX_EVENTS:
            oldest = next(iter(self._events))
            self._log.error(
                "no manager acknowledged that kernel {kernel_id} ended", kernel_id=str(self._kernel_of[oldest])
            )
            self._acknowledged(oldest)
        for peer in list(self._peers.values()):
            self._tell(peer)

    def _greet(self, peer: Peer) -> None:
        peer.greeted = True
        self._tell(peer)

    def _tell(self, peer: Peer) -> None:
        """Send the oldest news this connection has not been told, a bounded number at a time."""
        if not peer.greeted or len(peer.told) >= EVENTS_AT_ONCE:
            return
        for number, raw in islice(self._events.items(), 2 * EVENTS_AT_ONCE):
            if len(peer.told) >= EVENTS_AT_ONCE or peer.identity not in self._peers:
                break
            if number not in peer.told:
                if not peer.told:
                    peer.repeat_at = self._clock.seconds() + peer.repeat_after
                peer.told.add(number)
                self._post(peer, raw)

    def _acknowledged(self, number: int) -> None:
        if self._events.pop(number, None) is None:
            return
        del self._ended[self._kernel_of.pop(number)]
        for peer in list(self._peers.values()):
            peer.told.discard(number)
            peer.repeat_after = FIRST_REPEAT
            peer.repeat_at = self._clock.seconds() + FIRST_REPEAT
            self._tell(peer)
