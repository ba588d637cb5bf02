"""A manager's conversation with one agent over one connection: calls waiting, calls sent, and what becomes of them.

It knows messages and the clock, and no socket: it is handed a way to send and told what came in and whether there is a
connection. Every call ends: with its answer, at its deadline, when its caller cancels it, or when the connection is lost.

Note [Passed on]
----------------
A door writes what it makes of an answer in the turn of the reactor in which the answer came, and the reactor gives that to
the client's connection at the end of the next one. Only then the agent may be told so, and the telling would cost both ends
as much as another call if it went alone. So it goes right before the next call, which under load comes at once, and
otherwise a moment later by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attrs import define
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from sorna.cluster.messages import (
    MAX_MESSAGE,
    RESTARTING,
    Acknowledge,
    Answer,
    Call,
    Cancel,
    Ended,
    Event,
    Failed,
    Finished,
    MalformedMessage,
    Message,
    Output,
    Room,
    Took,
    decode,
    encode,
    failed_to_error,
)
from sorna.cluster.terminals import MAX_TERMINALS, Terminals
from sorna.cluster.tunnels import MAX_TUNNELS, Tunnels
from sorna.errors import AgentFailed, AgentTimeout, InvalidRequest, SornaError, Unavailable
from sorna.model.service import Tunnel, TunnelUser
from sorna.model.terminal import Terminal, TerminalViewer
from sorna.zeromq import Sent

MAX_CALLS = 2048
MAX_CALL_BYTES = 128 * 1024 * 1024
# How long a call waits for a connection: longer than a restart of the agent's process on a quick machine, and short
# enough to try another agent.
CONNECT_PATIENCE = 2.0
# As long as an agent may take to replace its program, once it has said that it does.
RESTART_PATIENCE = 20.0
# Three times within the silence after which an agent forgets a manager.
PING_INTERVAL = 25.0
PING_DEADLINE = 5.0
# How long the word that answers were passed on may wait for a call to go with. A call that continues the run at another
# manager waits for it.
TOOK_PATIENCE = 0.002
# Methods whose answers exist once: the agent takes them back when they do not arrive.
HANDED_OVER = frozenset({"execute"})


@define(eq=False)
class Pending:
    """One call. ``due`` is when it ends at the latest, on the clock of the conversation."""

    id: int
    method: str
    raw: bytes
    size: int
    deadline: float
    due: float
    answer: Deferred[Any]
    timer: IDelayedCall


class Conversation:
    """Calls to one agent over one connection that comes and goes.

    :param send: hands one message to the connection.
    :param on_event: is given each event.
    :param greets: whether to send a ping first on each connection, and then now and then, so that the agent tells its
        news here.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        agent_id: str,
        send: Callable[[bytes], Sent],
        on_event: Callable[[Event], None],
        *,
        greets: bool,
    ) -> None:
        self._clock = clock
        self._agent_id = agent_id
        self._send = send
        self._on_event = on_event
        self._last_id = 0
        self._waiting: dict[int, Pending] = {}
        self._sent: dict[int, Pending] = {}
        self._bytes = 0
        self._garbage = 0
        self._terminals = Terminals(send)
        self._tunnels = Tunnels(send)
        self._greeting = LoopingCall(self._ping) if greets else None
        if self._greeting is not None:
            self._greeting.clock = clock
        self._restarts_until = 0.0
        self._answered: list[int] = []
        self._passed_on: list[int] = []
        self._telling: IDelayedCall | None = None
        self.connected = False
        self.closed = False

    @property
    def calls(self) -> int:
        """How many calls have not ended."""
        return len(self._waiting) + len(self._sent)

    @property
    def in_use(self) -> bool:
        """Whether a call has not ended, a terminal is looked at or a tunnel is open."""
        return bool(self.calls or self._terminals or self._tunnels)

    @property
    def restarting(self) -> bool:
        """Whether the agent has said that it replaces its program, and was not heard of since."""
        return self._restarts_until > self._clock.seconds()

    def call(self, method: str, parameters: Mapping[str, Any], deadline: float) -> Deferred[Any]:
        """Make a call; gives its result as plain values.

        :raises InvalidRequest: a parameter cannot travel, or all of them are too large.
        :raises Unavailable: too many calls are outstanding, or the conversation is over.
        :raises AgentTimeout: no answer before the deadline, no connection in time, or the connection was lost: then
            nobody knows whether it was done.
        :raises SornaError: as the agent answered.
        """
        if self.closed:
            return fail(Unavailable("the link to the agents is closed"))
        self._last_id += 1
        id_ = self._last_id
        try:
            raw = encode(Call(id_, method, parameters, deadline))
        except (ValueError, TypeError, OverflowError) as error:
            return fail(InvalidRequest(f"a value cannot be sent to the agent: {error}"[:500]))
        if len(raw) > MAX_MESSAGE:
            return fail(InvalidRequest(f"{len(raw)} bytes are too many to send to an agent at once"))
        if self.calls >= MAX_CALLS or self._bytes + len(raw) > MAX_CALL_BYTES:
            return fail(Unavailable(f"too much is on its way to agent {self._agent_id}"))
        answer: Deferred[Any] = Deferred(lambda _: self._cancelled(id_))
        restart = self._restarts_until - self._clock.seconds()
        patience = deadline if self.connected else min(deadline, max(CONNECT_PATIENCE, restart))
        timer = self._clock.callLater(patience, self._too_late, id_)
        due = self._clock.seconds() + deadline
        self._bytes += len(raw)
        self._waiting[id_] = Pending(id_, method, raw, len(raw), deadline, due, answer, timer)
        if len(self._waiting) == 1:
            self.writable()
        return answer

    def open_terminal(
        self, parameters: Mapping[str, Any], viewer: TerminalViewer, deadline: float
    ) -> Deferred[Terminal]:
        """Look at a terminal until it is closed, has ended, or the connection is lost; fails as :meth:`call` does."""
        if self.closed or len(self._terminals) >= MAX_TERMINALS:
            return fail(Unavailable(f"no more terminals of agent {self._agent_id} can be looked at"))
        answer = self.call("open_terminal", parameters, deadline)
        return self._terminals.opened_by(self._last_id, answer, viewer)

    def open_tunnel(self, parameters: Mapping[str, Any], user: TunnelUser, deadline: float) -> Deferred[Tunnel]:
        """Open a tunnel until it is closed, has ended, or the connection is lost; fails as :meth:`call` does."""
        if self.closed or len(self._tunnels) >= MAX_TUNNELS:
            return fail(Unavailable(f"no more tunnels to agent {self._agent_id} can be opened"))
        answer = self.call("open_tunnel", parameters, deadline)
        return self._tunnels.opened_by(self._last_id, answer, user)

    def acknowledge(self, number: int) -> None:
        """Tell the agent that an event is taken care of; when that gets lost, the agent repeats the event."""
        if self.connected:
            self._send(encode(Acknowledge(number)))

    # What the connection tells.

    def connection_made(self) -> None:
        """Take it that messages can be sent from now on."""
        self.connected = True
        self._restarts_until = 0.0
        if self._greeting is not None and not self._greeting.running:
            # A ping of its own goes out before everything that waited.
            waited, self._waiting = self._waiting, {}
            self._greeting.start(PING_INTERVAL).addErrback(
                lambda failure: self._log.failure(
                    "the pings to agent {agent_id} stopped", failure, agent_id=self._agent_id
                )
            )
            self._waiting.update(waited)
        now = self._clock.seconds()
        for pending in self._waiting.values():
            pending.timer.reset(max(0.0, pending.due - now))
        self.writable()

    def connection_lost(self) -> None:
        """Fail what was sent: its answer can no longer come."""
        self.connected = False
        self._passed_on.clear()  # the agent has taken them back
        self._stop_greeting()
        lost = AgentTimeout(f"the connection to agent {self._agent_id} was lost before it answered")
        self._fail(list(self._sent), lost)
        self._end_all(f"the connection to agent {self._agent_id} was lost")

    def refused(self) -> None:
        """Fail everything: the agent does not accept this manager's key."""
        self.connected = False
        self._stop_greeting()
        refusal = AgentFailed(f"agent {self._agent_id} does not accept this manager's key")
        self._fail([*self._sent, *self._waiting], refusal)
        self._end_all(refusal.detail)

    def writable(self) -> None:
        """Send what waits, for as long as there is room."""
        self._tell_passed_on()
        while self.connected and not self._restarts_until and self._waiting:
            id_, pending = next(iter(self._waiting.items()))
            if self._send(pending.raw) is not Sent.AWAY:
                return
            del self._waiting[id_]
            self._sent[id_] = pending
        if self.connected:
            self._terminals.writable()
            self._tunnels.writable()

    def receive(self, raw: bytes | memoryview) -> None:
        """Take one message of the agent. Never raises for what it holds."""
        try:
            message = decode(raw)
        except MalformedMessage as error:
            self._count_garbage(str(error))
            return
        match message:
            case Answer(id=0):
                # Nobody's answer: the agent looks who is there, or goes on although it said that it restarts.
                self._restarts_until = 0.0
                self.writable()
            case Answer():
                pending = self._end(message.id)
                if pending is not None:
                    pending.answer.callback(message.result)
                    if pending.method in HANDED_OVER:
                        self._soon_passed_on(message.id)
            case Failed() if message.name == RESTARTING:
                self._restarting(message.id)
            case Failed():
                pending = self._end(message.id)
                if pending is not None:
                    pending.answer.errback(failed_to_error(message))
            case _:
                self._receive_more(message)

    def _receive_more(self, message: Message) -> None:
        """Take a message that answers no call."""
        match message:
            case Event():
                self._on_event(message)
            case Room() | Finished():
                self._tunnels.received(message)
            case Output() | Ended():
                of_a_terminal = self._terminals.is_open(message.id)
                (self._terminals if of_a_terminal else self._tunnels).received(message)
            case _:
                self._count_garbage("not a message for a manager")

    def close(self, why: str = "the link to the agent is closed") -> None:
        """Fail everything and take no more calls."""
        self._tell_passed_on()
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        self.closed = True
        self.connected = False
        self._stop_greeting()
        self._fail([*self._sent, *self._waiting], Unavailable(why))
        self._end_all(why)

    def _end_all(self, reason: str) -> None:
        self._terminals.end_all(reason)
        self._tunnels.end_all(reason)

    def _restarting(self, id_: int) -> None:
        """Take it that the agent has not begun a call, and begins none until the next connection."""
        self._restarts_until = self._clock.seconds() + RESTART_PATIENCE
        pending = self._sent.pop(id_, None)
        if pending is not None:
            self._waiting[id_] = pending

    # How calls end.

    def _end(self, id_: int) -> Pending | None:
        pending = self._sent.pop(id_, None) or self._waiting.pop(id_, None)
        if pending is not None:
            self._bytes -= pending.size
            if pending.timer.active():
                pending.timer.cancel()
        return pending

    def _fail(self, ids: list[int], error: SornaError) -> None:
        for id_ in ids:
            pending = self._end(id_)
            if pending is not None:
                # An exception of its own for each caller: they are raised, and gather tracebacks.
                pending.answer.errback(type(error)(error.detail))

    def _cancelled(self, id_: int) -> None:
        self._call_off(id_)
        self._end(id_)  # the Deferred then fails with CancelledError by itself

    def _too_late(self, id_: int) -> None:
        self._call_off(id_)
        pending = self._end(id_)
        if pending is not None:
            why = f"did not answer within {pending.deadline:g} s" if self.connected else "cannot be reached"
            pending.answer.errback(AgentTimeout(f"agent {self._agent_id} {why} ({pending.method})"))

    def _call_off(self, id_: int) -> None:
        if self.connected and id_ in self._sent:
            # Where there is no room for it, the agent's own deadline ends the call.
            self._send(encode(Cancel(id_)))

    # The rest.

    def _soon_passed_on(self, id_: int) -> None:
        """Tell the agent when what is made of its answer is out of this process; see Note [Passed on]."""
        self._answered.append(id_)
        if len(self._answered) == 1:
            self._clock.callLater(0, self._given_to_doors)

    def _given_to_doors(self) -> None:
        answered, self._answered = self._answered, []
        self._clock.callLater(0, self._written, answered)

    def _written(self, answered: list[int]) -> None:
        if self.connected:
            self._passed_on += answered
            if self._telling is None:
                self._telling = self._clock.callLater(TOOK_PATIENCE, self._tell_after_all)

    def _tell_after_all(self) -> None:
        self._telling = None
        self._tell_passed_on()

    def _tell_passed_on(self) -> None:
        passed_on = self._passed_on
        while self.connected and passed_on and self._send(encode(Took(passed_on[0]))) is Sent.AWAY:
            del passed_on[0]

    def _ping(self) -> None:
        self.call("ping", {}, PING_DEADLINE).addErrback(
            lambda failure: self._log.warn(
                "agent {agent_id} does not answer a ping: {error}", agent_id=self._agent_id, error=failure.value
            )
        )

    def _stop_greeting(self) -> None:
        if self._greeting is not None and self._greeting.running:
            self._greeting.stop()

    def _count_garbage(self, reason: str) -> None:
        self._garbage += 1
        if self._garbage & (self._garbage - 1) == 0:  # the first, second, fourth, eighth...
            self._log.warn(
                "agent {agent_id} sent {count} messages that cannot be read, the last: {reason}",
                agent_id=self._agent_id,
                count=self._garbage,
                reason=reason,
            )
