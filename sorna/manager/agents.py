"""What administrators do with agents: see why a kernel would go where, take an agent out of service, and bring it back.

Knows no HTTP and no query language. That an agent is drained is written down first; every manager then sees to it that the
agent knows, and ends what is left at the deadline.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

from attrs import field, frozen
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from sorna.errors import InvalidRequest, NotFound, SornaError
from sorna.manager.ending import Ending
from sorna.manager.enrolment_interfaces import AgentStore
from sorna.manager.interfaces import AgentDirectory, AgentLink, Announcements, KernelStore
from sorna.manager.placing import Placing
from sorna.model.agent import MAX_LABELS, Agent, Drain, read_label
from sorna.model.kernel import Kernel, KernelStatus, short_id
from sorna.model.limits import LimitPolicy
from sorna.model.placement import Demand, Judgement
from sorna.model.policy import Slots, slots_of
from sorna.model.runtime import resolve_runtime

#: Told to every manager with the agent's id when it is no longer drained, so that one that supervises it starts it again.
UNDRAINED_TOPIC = "sorna.agent-undrained"
LONGEST_WAIT = 30 * 86_400.0
# Kernels of a drained agent that are ended at once.
TOGETHER = 16


@frozen
class AgentAdministration:
    """Agents as their administrator sees them.

    :param changed: makes the directory believe nothing that it read of enrolled agents before.
    """

    clock: IReactorTime
    store: AgentStore
    directory: AgentDirectory
    link: AgentLink
    kernels: KernelStore
    ending: Ending
    announcements: Announcements
    placing: Placing
    limits: LimitPolicy
    changed: Callable[[], None] = field(default=lambda: None)

    _log = Logger()

    async def explain(
        self, runtime: str, cpu_cores: float, memory: int, gpus: int | None, labels: Collection[str]
    ) -> Sequence[Judgement]:
        """Judge every live agent for a kernel that a client might ask for; those first that would be chosen first.

        :param cpu_cores: 0 for the default, like ``memory`` in bytes; ``gpus`` None for what the runtime takes.
        :raises InvalidRequest: there is no such runtime, or something else cannot be asked for.
        """
        name = resolve_runtime(runtime)
        if name is None:
            raise InvalidRequest(f"no runtime has the name {runtime[:80]}")
        if not (math.isfinite(cpu_cores) and cpu_cores >= 0 and memory >= 0 and (gpus is None or gpus >= 0)):
            raise InvalidRequest("processors, memory and GPUs cannot be negative")
        read = [read_label(label) for label in labels]
        if None in read or len(read) > MAX_LABELS:
            raise InvalidRequest(f"a label is KEY=VALUE, and there are {MAX_LABELS} at the most")
        slots = slots_of(name, self.limits.limits_for(name, memory, 0, cpu_cores))
        if gpus is not None:
            slots = Slots(slots.kernels, slots.memory, slots.cpu_millis, gpus)
        return await self.placing.explain(Demand(name, slots, frozenset(one for one in read if one is not None)))

    async def drain(self, agent_id: str, wait: float | None) -> None:
        """Give an agent no new kernels, and let it stop when it has none.

        :param wait: seconds after which the kernels that are left are ended; None for never. Drained again, an agent gets
            the new bound.
        :raises InvalidRequest: that is no time to wait.
        :raises NotFound: there is no such agent.
        """
        if wait is not None and not (math.isfinite(wait) and 0 <= wait <= LONGEST_WAIT):
            raise InvalidRequest(f"the time to wait must be 0 to {LONGEST_WAIT:g} seconds")
        now = self.clock.seconds()
        await self._write(agent_id, Drain(now, None if wait is None else now + wait))
        self._log.info("agent {agent_id} is drained, for {wait} s at the most", agent_id=agent_id, wait=wait)
        await self._look_after(agent_id)

    async def undo(self, agent_id: str) -> None:
        """Give an agent kernels again; one that has stopped must be started by who runs it.

        :raises NotFound: there is no such agent.
        """
        await self._write(agent_id, None)
        self._log.info("agent {agent_id} is not drained any more", agent_id=agent_id)
        with self._log.failuresHandled("announcing that an agent is not drained any more"):
            await self.announcements.publish(UNDRAINED_TOPIC, agent_id)
        await self._look_after(agent_id)

    async def mend(self, agents: Collection[Agent]) -> None:
        """See to it that live agents know whether they are drained, and that deadlines are kept; called again and again."""
        for agent in agents:
            if agent.draining != agent.refuses_kernels:
                await self._tell(agent)
        draining = [agent.id for agent in agents if agent.draining]
        drains = await self.store.drains() if draining else {}
        for agent_id in draining:
            drain = drains.get(agent_id)
            if drain is not None and drain.deadline is not None and drain.deadline <= self.clock.seconds():
                await self._end_all(agent_id)

    async def _write(self, agent_id: str, drain: Drain | None) -> None:
        if not await self.store.drain(agent_id, drain):
            raise NotFound("there is no such agent")
        self.changed()
        self.placing.distrust()

    async def _look_after(self, agent_id: str) -> None:
        """Do at once what would be done within a moment."""
        agent = await self.directory.find(agent_id)
        if agent is not None:
            await self.mend([agent])

    async def _tell(self, agent: Agent) -> None:
        try:
            await self.link.drain(agent.address, draining=agent.draining)
        except SornaError as error:
            # Tried again while its heartbeats say that it does not know.
            self._log.debug("agent {agent_id} could not be told: {error}", agent_id=agent.id, error=error)

    async def _end_all(self, agent_id: str) -> None:
        left = [
            kernel
            for kernel in await self.kernels.live(agent_id=agent_id)
            if kernel.status in {KernelStatus.RUNNING, KernelStatus.RESTARTING}
        ]
        for first in range(0, len(left), TOGETHER):
            ends = [Deferred.fromCoroutine(self._end(kernel)) for kernel in left[first : first + TOGETHER]]
            await DeferredList(ends)

    async def _end(self, kernel: Kernel) -> None:
        with self._log.failuresHandled("while ending {kernel_id}", kernel_id=short_id(kernel.id)):
            await self.ending.destroy(kernel, "drained")
