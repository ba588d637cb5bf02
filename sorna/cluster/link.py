"""The manager's end of the link: calls to agents over ZeroMQ, and the agents' news.

Implements :class:`sorna.manager.interfaces.AgentLink`. It knows which method goes over which connection and how long it may
take; it does not decide what a failure means for a kernel, nor which agents to trust (``enrolment`` does).

Note [Five connections]
-----------------------
ZeroMQ does not interleave messages of one connection, and encrypts each as a whole: behind 20 MiB everything waits for
some 50 ms on one machine, and for seconds on a slow network. So each agent has a connection for control, another for
output, and, once they are needed, one each for uploads, for terminals and for tunnels. Only the control connection asks for
the agent's news.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from attrs import define, evolve, field
from twisted.application.service import Service
from twisted.internet import defer
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from sorna.cluster.lane import Lane, LaneKind
from sorna.cluster.messages import (
    Event,
    MalformedMessage,
    pack_value,
    unpack_file_entries,
    unpack_file_piece,
    unpack_kernel_id,
    unpack_run_reply,
    unpack_services,
    unpack_usage,
)
from sorna.curve_keys import CurveKeypair, valid_public_key
from sorna.errors import AgentFailed, Unavailable
from sorna.manager.interfaces import KernelEnded, KernelOrder, OnKernelEnded, UploadFile
from sorna.model.agent import AgentAddress
from sorna.model.agent_identity import valid_endpoint
from sorna.model.file import FileEntry, FilePiece
from sorna.model.kernel import Usage
from sorna.model.run import OutputRequest, RunMode, RunReply, RunRequest, RunStatus
from sorna.model.service import Service as KernelService
from sorna.model.service import Tunnel, TunnelUser, TunnelWish
from sorna.model.terminal import COLUMNS, ROWS, Terminal, TerminalViewer, within_bounds
from sorna.zeromq import Sockets

T = TypeVar("T")
Permits = Callable[[AgentAddress], Awaitable[bool]]

CONTROL = LaneKind("control", greets=True, heartbeat=1.0, silence=3.0)
OUTPUT = LaneKind("output", greets=False, heartbeat=1.0, silence=3.0)
TERMINAL = LaneKind("terminal", greets=False, heartbeat=1.0, silence=3.0)
TUNNEL = LaneKind("tunnel", greets=False, heartbeat=1.0, silence=3.0)
# A slow network may need long for one large message, and a heartbeat cannot overtake it.
UPLOAD = LaneKind("upload", greets=False, heartbeat=5.0, silence=30.0)

# Seconds until AgentTimeout. An execute call may take its own ``wait`` and EXECUTE_MARGIN; without one, a day.
DEADLINES: Mapping[str, float] = {
    "create_kernel": 10.0,
    "destroy_kernel": 10.0,
    "restart_kernel": 30.0,
    "interrupt": 5.0,
    "complete": 10.0,
    "upload": 30.0,
    "list_files": 10.0,
    "read_file": 10.0,
    "usage": 5.0,
    "drain": 5.0,
    "logs": 10.0,
    "open_terminal": 5.0,
    "services": 5.0,
    "open_tunnel": 5.0,
    "stop_service": 10.0,
    "ping": 5.0,
    "restart_program": 40.0,
}
EXECUTE_MARGIN = 10.0
EXECUTE_WITHOUT_WAIT = 86_400.0

MAX_AGENTS = 1000
IDLE = 300.0
SWEEP_INTERVAL = 30.0
NEWS_PATIENCE = 2.0
IO_THREADS = 2


@define(eq=False)
class _Agent:
    """The connections to one agent at one address, and the numbers of its news that are being taken care of."""

    address: AgentAddress
    used_at: float
    watched: bool = False
    lanes: dict[str, Lane] = field(factory=dict)
    news: dict[int, Deferred[None]] = field(factory=dict)

    @property
    def in_use(self) -> bool:
        return any(lane.conversation.in_use for lane in self.lanes.values())

    def over(self, _result: object, number: int) -> None:
        del self.news[number]

    def close(self, why: str = "the link to the agent is closed") -> None:
        for lane in self.lanes.values():
            lane.close(why)
        self.lanes.clear()


class ZmqAgentLink(Service):
    """Calls to agents, made on connections that are opened when needed and kept.

    Works between ``startService`` and ``stopService``; outside, calls raise Unavailable. Besides AgentLink's errors, calls
    raise InvalidRequest for values that cannot travel and Unavailable when too much is already on its way to the agent.

    :param on_kernel_ended: is given an agent's news; when it returns the news is acknowledged, when it raises, the agent
        tells it again later. The same news may come more than once.
    :param permits: tells whether an agent may be connected to, asked before each new connection; None permits all.
    :param idle: seconds after which the connections to an agent that nobody watches are closed.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        keypair: CurveKeypair,
        on_kernel_ended: OnKernelEnded,
        *,
        permits: Permits | None = None,
        idle: float = IDLE,
    ) -> None:
        self._reactor = reactor
        self._keypair = keypair
        self._on_kernel_ended = on_kernel_ended
        self._permits = permits
        self._idle = idle
        self._sockets: Sockets | None = None
        self._agents: dict[AgentAddress, _Agent] = {}
        self._sweeping = LoopingCall(self._sweep)
        self._sweeping.clock = reactor

    def startService(self) -> None:
        """Make the ZeroMQ context; connections come later."""
        super().startService()
        self._sockets = Sockets(self._reactor, IO_THREADS)
        self._sweeping.start(min(SWEEP_INTERVAL, self._idle), now=False).addErrback(
            lambda failure: self._log.failure("idle connections are no longer closed", failure)
        )

    def stopService(self) -> Deferred[None]:
        """Let the news that is being taken care of end, fail every call and close everything."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._sweeping.running:
            self._sweeping.stop()
        news = [one for agent in self._agents.values() for one in agent.news.values()]
        if news:
            ended: Deferred[Any] = DeferredList(news)
            ended.addTimeout(NEWS_PATIENCE, self._reactor)
            try:
                await ended
            except defer.TimeoutError:
                self._log.warn("{count} news of agents were not taken care of in time", count=len(news))
                for one in news:
                    one.cancel()
        for agent in self._agents.values():
            agent.close()
        self._agents.clear()
        if self._sockets is not None:
            self._sockets.shutdown()
            self._sockets = None

    # Connections.

    def watch(self, addresses: Iterable[AgentAddress]) -> None:
        """Keep connected to exactly these agents, called or not, so that their news arrives.

        To be called with the live and trusted agents whenever they are listed; an agent that is no longer among them keeps
        its connections until its calls have ended and it has been idle.
        """
        wanted = set(addresses)
        for address in wanted:
            try:
                self._agent(address).watched = True
            except (AgentFailed, Unavailable) as error:
                self._log.warn("agent {agent_id} is not watched: {error}", agent_id=address.agent_id, error=error)
        for address, agent in self._agents.items():
            agent.watched = agent.watched and address in wanted

    def forget(self, agent_id: str) -> None:
        """Close every connection to an agent, because it is not to be trusted any more; its calls fail with Unavailable."""
        for agent in [one for one in self._agents.values() if one.address.agent_id == agent_id]:
            self._drop(agent, "it is not trusted any more")

    async def _permitted(self, address: AgentAddress) -> _Agent:
        """Give the connections to an agent, made now if need be.

        :raises AgentFailed: it is not to be trusted. What Redis says of where a kernel is proves nothing.
        """
        if address not in self._agents and self._permits is not None and not await self._permits(address):
            raise AgentFailed(f"agent {address.agent_id} is not enrolled with this key")
        return self._agent(address)

    def _agent(self, address: AgentAddress) -> _Agent:
        agent = self._agents.get(address)
        if agent is None:
            agent = self._connect(address)
        agent.used_at = self._reactor.seconds()
        return agent

    def _connect(self, address: AgentAddress) -> _Agent:
        if self._sockets is None:
            raise Unavailable("the link to the agents is closed")
        if not valid_endpoint(address.endpoint) or not valid_public_key(address.public_key):
            raise AgentFailed(f"agent {address.agent_id} advertises no tcp://ADDRESS:PORT or no public key")
        for other in list(self._agents.values()):
            if other.address.agent_id == address.agent_id and not other.in_use:
                self._drop(other, "the agent is now elsewhere or has another key")
        if len(self._agents) >= MAX_AGENTS:
            raise Unavailable("too many agents are connected")
        agent = self._agents[address] = _Agent(address, self._reactor.seconds())
        for kind in (CONTROL, OUTPUT):
            self._lane(agent, kind)
        return agent

    def _lane(self, agent: _Agent, kind: LaneKind) -> Lane:
        lane = agent.lanes.get(kind.name)
        if lane is None:
            if self._sockets is None:
                raise Unavailable("the link to the agents is closed")
            lane = agent.lanes[kind.name] = Lane(
                self._reactor,
                self._sockets,
                self._keypair,
                agent.address,
                kind=kind,
                on_event=lambda event: self._event(agent, event),
            )
        return lane

    def _sweep(self) -> None:
        now = self._reactor.seconds()
        for agent in list(self._agents.values()):
            if now - agent.used_at >= self._idle and not agent.watched and not agent.in_use and not agent.news:
                self._drop(agent, "nobody uses it")

    def _drop(self, agent: _Agent, reason: str) -> None:
        self._log.info("closing the link to agent {agent_id}: {reason}", agent_id=agent.address.agent_id, reason=reason)
        del self._agents[agent.address]
        agent.close(f"the link to agent {agent.address.agent_id} is closed: {reason}")

    # Calls.

    async def _call(
        self,
        address: AgentAddress,
        kind: LaneKind,
        method: str,
        parameters: Mapping[str, Any],
        deadline: float | None = None,
    ) -> Any:
        agent = await self._permitted(address)
        try:
            return await self._lane(agent, kind).conversation.call(
                method, parameters, DEADLINES[method] if deadline is None else deadline
            )
        finally:
            agent.used_at = self._reactor.seconds()

    async def ping(self, agent: AgentAddress) -> str:
        """Give the incarnation of the agent that answers at this address."""
        answer = await self._call(agent, CONTROL, "ping", {})
        try:
            return str(answer["incarnation"])
        except (TypeError, KeyError) as error:
            raise _unreadable(agent, "ping", error) from error

    async def restart_program(self, agent: AgentAddress) -> None:
        """Have an agent replace its program; its kernels live on. It begins to when this returns, within 40 s."""
        await self._call(agent, CONTROL, "restart_program", {})

    async def create_kernel(self, agent: AgentAddress, order: KernelOrder) -> Sequence[KernelService]:
        """Make a kernel; within 10 s."""
        parameters = {"kernel_id": order.kernel_id.bytes, "spec": pack_value(order.spec)}
        return await self._services(agent, "create_kernel", parameters)

    async def destroy_kernel(self, agent: AgentAddress, kernel_id: uuid.UUID, reason: str) -> Usage:
        """End a kernel; within 10 s."""
        parameters = {"kernel_id": kernel_id.bytes, "reason": reason}
        return _usage(agent, await self._call(agent, CONTROL, "destroy_kernel", parameters))

    async def restart_kernel(self, agent: AgentAddress, kernel_id: uuid.UUID) -> None:
        """Restart a kernel; within 30 s."""
        await self._call(agent, CONTROL, "restart_kernel", {"kernel_id": kernel_id.bytes})

    async def execute(self, agent: AgentAddress, kernel_id: uuid.UUID, request: RunRequest) -> RunReply:
        """Start, continue or feed a run; within ``request.wait`` and a margin, and a day when it has none."""
        parameters = {"kernel_id": kernel_id.bytes, "request": pack_value(request)}
        deadline = EXECUTE_WITHOUT_WAIT if request.wait is None else max(0.0, request.wait) + EXECUTE_MARGIN
        answer = await self._call(agent, OUTPUT, "execute", parameters, deadline)
        try:
            reply = unpack_run_reply(answer)
        except MalformedMessage as error:
            raise _unreadable(agent, "execute", error) from error
        restarting = self._lane(self._agent(agent), OUTPUT).conversation.restarting
        if restarting and request.wait is None and reply.status is RunStatus.CONTINUED:
            # An agent that replaces its program answers what waits before it does: what follows is asked for.
            rest = await self.execute(agent, kernel_id, RunRequest(RunMode.CONTINUE, "", reply.run_id, wait=None))
            return evolve(rest, console=(*reply.console, *rest.console), first_seq=reply.first_seq)
        return reply

    async def read_output(self, agent: AgentAddress, kernel_id: uuid.UUID, request: OutputRequest) -> RunReply:
        """Read a run's output; within ``request.wait`` and a margin."""
        parameters = {"kernel_id": kernel_id.bytes, "request": pack_value(request)}
        answer = await self._call(agent, OUTPUT, "read_output", parameters, max(0.0, request.wait) + EXECUTE_MARGIN)
        try:
            return unpack_run_reply(answer)
        except MalformedMessage as error:
            raise _unreadable(agent, "read_output", error) from error

    async def interrupt(self, agent: AgentAddress, kernel_id: uuid.UUID) -> None:
        """Interrupt what runs; within 5 s."""
        await self._call(agent, CONTROL, "interrupt", {"kernel_id": kernel_id.bytes})

    async def complete(
        self, agent: AgentAddress, kernel_id: uuid.UUID, code: str, options: Mapping[str, Any]
    ) -> Sequence[str]:
        """Give completions; within 10 s."""
        parameters = {"kernel_id": kernel_id.bytes, "code": code, "options": dict(options)}
        answer = await self._call(agent, CONTROL, "complete", parameters)
        if not isinstance(answer, list) or not all(isinstance(one, str) for one in answer):
            raise _unreadable(agent, "complete", "not a list of texts")
        return answer

    async def upload(self, agent: AgentAddress, kernel_id: uuid.UUID, file: UploadFile) -> None:
        """Write one file; within 30 s."""
        parameters = {"kernel_id": kernel_id.bytes, "path": file.path, "content": file.content}
        await self._call(agent, UPLOAD, "upload", parameters)

    async def list_files(
        self, agent: AgentAddress, kernel_id: uuid.UUID, path: str, *, recursive: bool
    ) -> Sequence[FileEntry]:
        """List a directory; within 10 s."""
        parameters = {"kernel_id": kernel_id.bytes, "path": path, "recursive": recursive}
        answer = await self._call(agent, OUTPUT, "list_files", parameters)
        try:
            return unpack_file_entries(answer)
        except MalformedMessage as error:
            raise _unreadable(agent, "list_files", error) from error

    async def read_file(
        self, agent: AgentAddress, kernel_id: uuid.UUID, path: str, offset: int, size: int
    ) -> FilePiece:
        """Read a piece of a file; within 10 s."""
        parameters = {"kernel_id": kernel_id.bytes, "path": path, "offset": offset, "size": size}
        answer = await self._call(agent, OUTPUT, "read_file", parameters)
        try:
            return unpack_file_piece(answer)
        except MalformedMessage as error:
            raise _unreadable(agent, "read_file", error) from error

    async def drain(self, agent: AgentAddress, *, draining: bool) -> None:
        """Tell an agent to refuse new kernels, or to take them again; within 5 s."""
        await self._call(agent, CONTROL, "drain", {"draining": draining})

    async def usage(self, agent: AgentAddress, kernel_id: uuid.UUID) -> Usage:
        """Give what the kernel has used; within 5 s."""
        return _usage(agent, await self._call(agent, CONTROL, "usage", {"kernel_id": kernel_id.bytes}))

    async def logs(self, agent: AgentAddress, kernel_id: uuid.UUID) -> str:
        """Give the kernel's recent output; within 10 s."""
        answer = await self._call(agent, OUTPUT, "logs", {"kernel_id": kernel_id.bytes})
        if not isinstance(answer, str):
            raise _unreadable(agent, "logs", "not a text")
        return answer

    async def open_terminal(
        self,
        agent: AgentAddress,
        kernel_id: uuid.UUID,
        viewer: TerminalViewer,
        rows: int = ROWS,
        columns: int = COLUMNS,
    ) -> Terminal:
        """Look at a kernel's terminal; within 5 s."""
        rows, columns = within_bounds(rows, columns)
        parameters = {"kernel_id": kernel_id.bytes, "rows": rows, "columns": columns}
        lane = self._lane(await self._permitted(agent), TERMINAL)
        return await lane.conversation.open_terminal(parameters, viewer, DEADLINES["open_terminal"])

    async def services(self, agent: AgentAddress, kernel_id: uuid.UUID) -> Sequence[KernelService]:
        """List a kernel's applications; within 5 s."""
        return await self._services(agent, "services", {"kernel_id": kernel_id.bytes})

    async def _services(
        self, agent: AgentAddress, method: str, parameters: Mapping[str, Any]
    ) -> Sequence[KernelService]:
        answer = await self._call(agent, CONTROL, method, parameters)
        try:
            return unpack_services(answer)
        except MalformedMessage as error:
            raise _unreadable(agent, method, error) from error

    async def open_tunnel(
        self, agent: AgentAddress, kernel_id: uuid.UUID, user: TunnelUser, wish: TunnelWish
    ) -> Tunnel:
        """Open a tunnel to an application; within 5 s."""
        parameters = {"kernel_id": kernel_id.bytes, "wish": pack_value(wish)}
        lane = self._lane(await self._permitted(agent), TUNNEL)
        return await lane.conversation.open_tunnel(parameters, user, DEADLINES["open_tunnel"])

    async def stop_service(self, agent: AgentAddress, kernel_id: uuid.UUID, name: str) -> None:
        """End an application; within 10 s."""
        await self._call(agent, CONTROL, "stop_service", {"kernel_id": kernel_id.bytes, "name": name})

    # News.

    def _event(self, agent: _Agent, event: Event) -> None:
        if event.number in agent.news or not self.running:
            return
        try:
            if event.name != "kernel_ended":
                raise MalformedMessage(f"unknown event {event.name[:100]!r}")
            news = KernelEnded(
                agent_id=agent.address.agent_id,
                kernel_id=unpack_kernel_id(event.parameters.get("kernel_id")),
                reason=str(event.parameters.get("reason")),
                usage=unpack_usage(event.parameters.get("usage")),
            )
        except MalformedMessage as error:
            # Not acknowledged: a manager of another version may understand it.
            self._log.error("news of agent {agent_id}: {error}", agent_id=agent.address.agent_id, error=error)
            return
        done = Deferred.fromCoroutine(self._take_care(agent, event.number, news))
        if not done.called:
            agent.news[event.number] = done
            done.addBoth(agent.over, event.number)

    async def _take_care(self, agent: _Agent, number: int, news: KernelEnded) -> None:
        try:
            await self._on_kernel_ended(news)
        except defer.CancelledError:  # this manager stops; the agent tells the next one
            return
        except Exception:  # noqa: BLE001 -- the agent will tell again, and the log says why
            self._log.failure(
                "agent {agent_id} tells that kernel {kernel_id} ended, and that could not be recorded",
                agent_id=news.agent_id,
                kernel_id=str(news.kernel_id),
            )
            return
        lane = agent.lanes.get(CONTROL.name)
        if lane is not None:
            lane.conversation.acknowledge(number)


def _usage(agent: AgentAddress, answer: Any) -> Usage:
    try:
        return unpack_usage(answer)
    except MalformedMessage as error:
        raise _unreadable(agent, "usage", error) from error


def _unreadable(agent: AgentAddress, method: str, why: object) -> AgentFailed:
    return AgentFailed(f"agent {agent.agent_id} answered {method} with what cannot be read: {why}"[:500])
