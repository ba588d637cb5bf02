"""Mends what broke without anyone asking: lost agents, kernels without a row or a live entry, rows past their deadline.

Knows no door. It only looks at PostgreSQL and Redis and calls the same ends as everybody else; several managers may run one
at once, because every change is conditional.

Note [Nobody waits for a stuck agent]
    A pass only looks and writes; what it asks of agents goes on beside it, once per kernel at a time and
    :data:`MOST_AT_ONCE` in all. So an agent that takes its ten seconds to answer nothing delays no other kernel's end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
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
from sorna.model.kernel import Kernel, KernelStatus, parse_kernel_id, short_id

# Seconds that a status may last which somebody is working on.
DEADLINES = {KernelStatus.PREPARING: 30.0, KernelStatus.RESTARTING: 60.0, KernelStatus.TERMINATING: 2.0}
# An agent writes a new kernel into its heartbeat within this many seconds.
SEEN_WITHIN = 4.0
# A kernel must have been missing for as long: a heartbeat that was under way when it came is corrected by the next one.
# A little less than three times the pause between passes, so that no passes that come a moment early make it four.
MISSING_FOR = 1.4
# Looking at every live entry costs more than the rest of a pass, and whoever asks for a kernel whose entry Redis has lost
# writes it again anyway.
ENTER_AGAIN = 2.0
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

    _log = Logger()

    async def mend(self) -> None:
        """Compare what should be with what is, once."""
        await self.ending.forget_rest()
        agents = {agent.id: agent for agent in await self.directory.alive()}
        # An agent tells its news to managers that are connected: this one shall hear it although it has not asked anything yet.
        self.link.watch(agent.address for agent in agents.values())
        held = {agent_id: await self.directory.kernels_of(agent_id) for agent_id in agents}
        rows: dict[str, Kernel] = {}
        waited = False
        lost: list[tuple[Kernel, str]] = []
        async for kernel in self._live():
            rows[short_id(kernel.id)] = kernel
            waited = waited or kernel.status is KernelStatus.PENDING
            with self._log.failuresHandled("while mending {kernel_id}", kernel_id=short_id(kernel.id)):
                reason = await self._mend_kernel(kernel, agents, held)
                if reason:
                    lost.append((kernel, reason))
        await self._end_lost(lost)
        with self._log.failuresHandled("while looking after drained agents"):
            await self.agents.mend(agents.values())
        with self._log.failuresHandled("while looking after those who wait"):
            await self.queue.mend(waited=waited)
        self._missing = {name: since for name, since in self._missing.items() if name in rows}
        now = self.clock.seconds()
        if now - self._entered_at >= ENTER_AGAIN:
            self._entered_at = now
            await self._enter_again(rows, agents, held)
        for agent_id, kernels in held.items():
            for orphan in kernels - rows.keys():
                self._ask_agent(orphan, partial(self._end_orphan, agents[agent_id], orphan))
            for double in kernels & rows.keys():
                self._end_double(agents[agent_id], rows[double])

    async def _enter_again(
        self, rows: dict[str, Kernel], agents: dict[str, Agent], held: dict[str, frozenset[str]]
    ) -> None:
        """Write what Redis has lost of kernels that run, so that their agents' figures find a place again."""
        running = [
            kernel
            for name, kernel in rows.items()
            if kernel.status is KernelStatus.RUNNING and name in held.get(kernel.agent_id or "", ())
        ]
        for first in range(0, len(running), PAGE):
            page = running[first : first + PAGE]
            known = await self.live.places([kernel.id for kernel in page])
            for kernel in page:
                if kernel.id not in known and kernel.agent_id is not None:
                    await self.live.add(kernel, agents[kernel.agent_id].address)
                    now = await self.kernels.by_id(kernel.id)
                    if now is None or now.status.final:  # it ended meanwhile, and may have been forgotten before
                        await self.live.forget(kernel)

    async def _live(self) -> AsyncIterator[Kernel]:
        page = await self.kernels.live()
        while page:
            for kernel in page:
                yield kernel
            page = await self.kernels.live(after=page[-1].id)

    async def _end_lost(self, lost: list[tuple[Kernel, str]]) -> None:
        """Write the ends of lost kernels, many at a time: those of an agent that dies are lost all at once."""
        for first in range(0, len(lost), TOGETHER):
            ends = lost[first : first + TOGETHER]
            await DeferredList([Deferred.fromCoroutine(self._end_one(kernel, reason)) for kernel, reason in ends])

    async def _end_one(self, kernel: Kernel, reason: str) -> None:
        with self._log.failuresHandled("while mending {kernel_id}", kernel_id=short_id(kernel.id)):
            await self.ending.lost(kernel.id, reason)

    async def _mend_kernel(self, kernel: Kernel, agents: dict[str, Agent], held: dict[str, frozenset[str]]) -> str:
        """Do what one kernel needs; for one that is lost, give the reason instead."""
        age = self.clock.seconds() - kernel.status_changed_at
        if kernel.agent_id is not None and kernel.agent_id not in agents:
            return "agent-lost" if self._lost_for_sure(kernel) else ""
        if kernel.status is KernelStatus.RUNNING and age > SEEN_WITHIN and kernel.agent_id is not None:
            if short_id(kernel.id) in held[kernel.agent_id]:
                self._missing.pop(short_id(kernel.id), None)
            else:
                return "lost" if self._lost_for_sure(kernel) else ""
        elif age > DEADLINES.get(kernel.status, age):
            await self._past_deadline(kernel)
        return ""

    def _lost_for_sure(self, kernel: Kernel) -> bool:
        """Believe a loss at a later look only: a heartbeat may have been read while it was being written."""
        now = self.clock.seconds()
        if not self.absence.believable:
            self._missing.pop(short_id(kernel.id), None)
            return False
        if now - self._missing.setdefault(short_id(kernel.id), now) < MISSING_FOR:
            return False
        del self._missing[short_id(kernel.id)]
        return True

    async def _past_deadline(self, kernel: Kernel) -> None:
        match kernel.status:
            case KernelStatus.TERMINATING:
                self._ask_agent(short_id(kernel.id), partial(self._destroy, kernel, kernel.status_reason))
            case KernelStatus.RESTARTING:
                self._ask_agent(short_id(kernel.id), partial(self._destroy, kernel, "restart-timeout"))
            case KernelStatus.PREPARING:
                # A manager that took it out of the queue and died loses nobody's place.
                if await self.queue.put_back(kernel.id):
                    self.queue.wake()
                    return
                now = self.clock.seconds()
                ended = await self.kernels.change_status(kernel.id, KernelStatus.ERROR, "creation-timeout", now)
                if ended is not None:
                    await self.ending.forget(ended)
                    await self.ending.announce(ended)

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

    async def _destroy(self, kernel: Kernel, reason: str) -> None:
        try:
            await self.ending.destroy(kernel, reason)
        except SornaError as error:
            self._log.info("{kernel_id} is not gone yet: {error}", kernel_id=short_id(kernel.id), error=error)

    def _end_double(self, agent: Agent, kernel: Kernel) -> None:
        """End what an agent holds of a kernel that was made on another one since: its first manager died while it was made."""
        elsewhere = kernel.status is KernelStatus.RUNNING and kernel.agent_id not in {None, agent.id}
        if elsewhere and self.clock.seconds() - kernel.status_changed_at > SEEN_WITHIN:
            self._ask_agent(f"{short_id(kernel.id)} on {agent.id}", partial(self._destroy_double, agent, kernel))

    async def _destroy_double(self, agent: Agent, kernel: Kernel) -> None:
        try:
            await self.link.destroy_kernel(agent.address, kernel.id, "orphan")
        except SornaError as error:
            self._log.debug(
                "the double of {kernel_id} is not gone: {error}", kernel_id=short_id(kernel.id), error=error
            )

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
