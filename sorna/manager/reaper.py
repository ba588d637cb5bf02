"""Mends what broke without anyone asking: lost agents, kernels without a row or a live entry, rows past their deadline.

Knows no door. It only looks at PostgreSQL and Redis and calls the same ends as everybody else; several managers may run one
at once, because every change is conditional.

Note [Nobody waits for a stuck agent]
    A pass only looks and writes; what it asks of agents goes on beside it, once per kernel at a time and
    :data:`MOST_AT_ONCE` in all. So an agent that takes its ten seconds to answer nothing delays no other kernel's end.

Note [What a look costs]
    A pass looks at every live kernel and mostly finds nothing to do. So it asks for names alone, as one text for all
    kernels that are alike, and compares sets of them: a fraction of a microsecond for each kernel. The row is read of one
    that something is to be done for, and what is done to a row is conditional, so that it may have changed since the look.

Note [What nobody remembers]
    A kernel's traces in Redis are removed by whoever ends it, or fails to make it. That one may die before Redis is back, or
    never hear that PostgreSQL has written the end, and a kernel whose row was lost in a crash has nobody who ends it. So
    every few seconds the reaper walks over the names in Redis, one part in a pass, and forgets those that no live row has.
    It reads a part before it asks for the rows: a row is there before there is a trace of it and never lives again once it
    has ended, so that what had a trace then and has no live row now will have none.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from sorna.errors import SornaError
from sorna.manager.absence import Absence
from sorna.manager.agents import AgentAdministration
from sorna.manager.ending import Ending
from sorna.manager.interfaces import AgentDirectory, AgentLink, KernelStore, LiveKernels
from sorna.manager.queue import Queue
from sorna.model.agent import Agent
from sorna.model.census import Alike, Traces, id_of
from sorna.model.kernel import KernelStatus, parse_kernel_id, short_id

# Seconds that a status may last which somebody is working on.
DEADLINES = {KernelStatus.PREPARING: 30.0, KernelStatus.RESTARTING: 60.0, KernelStatus.TERMINATING: 2.0}
# An agent writes a new kernel into its heartbeat within this many seconds.
SEEN_WITHIN = 4.0
# A kernel must have been missing for as long: a heartbeat that was under way when it came is corrected by the next one.
# A little less than three times the pause between passes, so that no passes that come a moment early make it four.
MISSING_FOR = 1.4
# Whoever asks for a kernel whose entry Redis has lost writes it again anyway.
ENTER_AGAIN = 2.0
# Seconds from one walk over the names in Redis to the next; within the patience of an audit.
SWEEP_AGAIN = 3.0
PAGE = 500
MOST_AT_ONCE = 100
TOGETHER = 25


@define
class Reaper:
    """One pass is :meth:`mend`; a timer calls it."""

    clock: IReactorTime
    kernels: KernelStore
    live: LiveKernels
    directory: AgentDirectory
    link: AgentLink
    ending: Ending
    absence: Absence
    agents: AgentAdministration
    queue: Queue
    _missing: dict[str, float] = field(factory=dict)
    _asking: set[str] = field(factory=set)
    _entered_at: float = 0.0
    _swept_at: float = 0.0
    _sweeping_from: str = ""

    _log = Logger()

    async def mend(self) -> None:
        """Compare what should be with what is, once; see Note [What a look costs]."""
        await self.ending.forget_rest()
        agents = {agent.id: agent for agent in await self.directory.alive()}
        # An agent tells its news to managers that are connected: this one shall hear it although it has not asked anything yet.
        self.link.watch(agent.address for agent in agents.values())
        held = {agent_id: await self.directory.kernels_of(agent_id) for agent_id in agents}
        now = self.clock.seconds()
        traces = await self._traces(now)
        groups = await self.kernels.census(now - SEEN_WITHIN)
        if traces is not None:
            await self._sweep(traces.stale(groups))
        await self._end_lost(self._lost(groups, held))
        for group in groups:
            if group.changed_at is not None and group.agent_id in {None, *agents}:
                await self._mend_group(group, now - group.changed_at)
        with self._log.failuresHandled("while looking after drained agents"):
            await self.agents.mend(agents.values())
        with self._log.failuresHandled("while looking after those who wait"):
            await self.queue.mend(waited=any(group.status is KernelStatus.PENDING for group in groups))
        if now - self._entered_at >= ENTER_AGAIN:
            self._entered_at = now
            await self._enter_again(groups, agents, held)
        self._end_unwanted(groups, agents, held)

    def _lost(self, groups: Sequence[Alike], held: Mapping[str, frozenset[str]]) -> list[tuple[str, str]]:
        """Give the names of kernels that are lost for sure, and the reasons.

        A loss is believed at a later look only: a heartbeat may have been read while it was being written.
        """
        if not self.absence.believable:
            self._missing = {}
            return []
        now = self.clock.seconds()
        suspected: dict[str, str] = {}
        for group in groups:
            if group.agent_id is None:
                continue
            if group.agent_id not in held:
                suspected.update(dict.fromkeys(group.names, "agent-lost"))
            elif group.settled:
                suspected.update(dict.fromkeys(group.names - held[group.agent_id], "lost"))
        self._missing = {name: self._missing.get(name, now) for name in suspected}
        lost = [name for name, since in self._missing.items() if now - since >= MISSING_FOR]
        for name in lost:
            del self._missing[name]
        return [(name, suspected[name]) for name in lost]

    async def _mend_group(self, group: Alike, age: float) -> None:
        """Do what kernels need whose status somebody was to change long ago."""
        if age <= DEADLINES.get(group.status, age):
            return
        for name in group.names:
            with self._log.failuresHandled("while mending {kernel_id}", kernel_id=name):
                if group.status is KernelStatus.PREPARING:
                    await self._give_up(id_of(name))
                else:
                    self._ask_agent(name, partial(self._destroy, id_of(name)))

    async def _give_up(self, kernel_id: uuid.UUID) -> None:
        # A manager that took it out of the queue and died loses nobody's place.
        if await self.queue.put_back(kernel_id):
            self.queue.wake()
            return
        now = self.clock.seconds()
        ended = await self.kernels.change_status(kernel_id, KernelStatus.ERROR, "creation-timeout", now)
        if ended is not None:
            await self.ending.forget(ended)
            await self.ending.announce(ended)

    async def _end_lost(self, lost: Sequence[tuple[str, str]]) -> None:
        """Write the ends of lost kernels, many at a time: those of an agent that dies are lost all at once."""
        for first in range(0, len(lost), TOGETHER):
            ends = lost[first : first + TOGETHER]
            await DeferredList([Deferred.fromCoroutine(self._end_one(name, reason)) for name, reason in ends])

    async def _end_one(self, name: str, reason: str) -> None:
        with self._log.failuresHandled("while mending {kernel_id}", kernel_id=name):
            await self.ending.lost(id_of(name), reason)

    async def _traces(self, now: float) -> Traces | None:
        """Give the next part of what Redis holds, while a walk is under way or one is due; see Note [What nobody remembers]."""
        if not self._sweeping_from:
            if now - self._swept_at < SWEEP_AGAIN:
                return None
            self._swept_at = now
        return await self.live.traces(self._sweeping_from)

    async def _sweep(self, stale: Traces) -> None:
        if stale.names or stale.sessions:
            gone = await self.live.forget_traces(stale)
            if gone:
                self._log.info("removed {count} traces of kernels that nobody has", count=gone)
        self._sweeping_from = stale.rest

    async def _enter_again(
        self, groups: Sequence[Alike], agents: Mapping[str, Agent], held: Mapping[str, frozenset[str]]
    ) -> None:
        """Write what Redis has lost of kernels that run, so that their agents' figures find a place again."""
        running = [
            name
            for group in groups
            if group.status is KernelStatus.RUNNING
            for name in group.names & held.get(group.agent_id or "", frozenset())
        ]
        for first in range(0, len(running), PAGE):
            for name in await self.live.absent(running[first : first + PAGE]):
                await self._enter(id_of(name), agents)

    async def _enter(self, kernel_id: uuid.UUID, agents: Mapping[str, Agent]) -> None:
        kernel = await self.kernels.by_id(kernel_id)
        agent = None if kernel is None else agents.get(kernel.agent_id or "")
        if kernel is None or kernel.status.final or agent is None:
            return
        await self.live.add(kernel, agent.address)
        now = await self.kernels.by_id(kernel_id)
        if now is None or now.status.final:  # it ended meanwhile, and may have been forgotten before
            await self.live.forget(kernel)

    def _end_unwanted(
        self, groups: Sequence[Alike], agents: Mapping[str, Agent], held: Mapping[str, frozenset[str]]
    ) -> None:
        """End what agents hold and nobody wants, and what was made on another agent since: its first manager died meanwhile."""
        settled = {group.agent_id: group.names for group in groups if group.settled and group.agent_id is not None}
        running = frozenset[str]().union(*settled.values())
        wanted = running.union(*(group.names for group in groups))
        for agent_id, kernels in held.items():
            agent, rest = agents[agent_id], kernels - settled.get(agent_id, frozenset())
            for orphan in rest - wanted:
                self._ask_agent(orphan, partial(self._end_orphan, agent, orphan))
            for double in rest & running:
                self._ask_agent(f"{double} on {agent_id}", partial(self._destroy_double, agent, double))

    def _ask_agent(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do something for a kernel that waits for its agent; see Note [Nobody waits for a stuck agent]."""
        if name in self._asking or len(self._asking) >= MOST_AT_ONCE:
            return
        self._asking.add(name)

        async def ask() -> None:
            try:
                await work()
            except Exception:  # noqa: BLE001 - nobody else would hear of it
                self._log.failure("while mending {kernel_id}", kernel_id=name)
            finally:
                self._asking.discard(name)

        Deferred.fromCoroutine(ask())

    async def _destroy(self, kernel_id: uuid.UUID) -> None:
        kernel = await self.kernels.by_id(kernel_id)
        if kernel is None or kernel.status not in {KernelStatus.TERMINATING, KernelStatus.RESTARTING}:
            return
        reason = kernel.status_reason if kernel.status is KernelStatus.TERMINATING else "restart-timeout"
        try:
            await self.ending.destroy(kernel, reason)
        except SornaError as error:
            self._log.info("{kernel_id} is not gone yet: {error}", kernel_id=short_id(kernel_id), error=error)

    async def _destroy_double(self, agent: Agent, name: str) -> None:
        try:
            await self.link.destroy_kernel(agent.address, id_of(name), "orphan")
        except SornaError as error:
            self._log.debug("the double of {kernel_id} is not gone: {error}", kernel_id=name, error=error)

    def forget_suspicions(self) -> None:
        """Forget what looked lost at the last look, because others look now and this one's next look may be much later."""
        self._missing.clear()

    async def _end_orphan(self, agent: Agent, reference: str) -> None:
        """End a kernel that an agent holds and nobody wants."""
        kernel_id = parse_kernel_id(reference)
        if kernel_id is None:
            return
        row = await self.kernels.by_id(kernel_id)
        if row is not None and not row.status.final:
            return
        try:
            await self.link.destroy_kernel(agent.address, kernel_id, "orphan")
        except SornaError as error:
            self._log.debug("orphan {kernel_id} is not gone: {error}", kernel_id=reference, error=error)
        else:
            self._log.info("ended orphan {kernel_id} on {agent_id}", kernel_id=reference, agent_id=agent.id)
