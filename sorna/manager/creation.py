"""How a kernel comes to be: one per owner and session token however many ask at once, never more than the quota.

Knows no door. The row is written first, in status PREPARING and with its place of the quota; then an agent is asked; every
way out leaves either a running kernel or a final row.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from sorna.errors import (
    AgentError,
    FolderNotFound,
    InvalidRequest,
    KernelAlreadyExists,
    KernelCreationFailed,
    KernelNotFound,
    NoAgentAvailable,
    QuotaExceeded,
    RuntimeUnknown,
    SornaError,
    Unavailable,
)
from sorna.manager.absence import Absence
from sorna.manager.ending import Ending
from sorna.manager.events import KERNEL_TOPIC
from sorna.manager.folders import Folders
from sorna.manager.interfaces import (
    AgentDirectory,
    AgentLink,
    Announcements,
    KernelOrder,
    KernelStore,
    KeypairFinder,
    LiveKernels,
)
from sorna.manager.placing import Placing
from sorna.manager.queue import Queue
from sorna.manager.requests import Created, CreateRequest
from sorna.model.agent import Agent
from sorna.model.kernel import Kernel, KernelSpec, KernelStatus, new_kernel_id, short_id, valid_session_token
from sorna.model.limits import LimitPolicy
from sorna.model.placement import Demand
from sorna.model.policy import slots_of, within
from sorna.model.queue import QueuePlace
from sorna.model.runtime import resolve_runtime
from sorna.model.service import Service

# Seconds that a request waits for a kernel which another request is making or ending.
SETTLE_DEADLINE = 15.0
# While a database is away, the failure of a creation is tried to be written; after that the row's own deadline ends it.
FAILURE_ATTEMPTS, FAILURE_PAUSE = 60, 0.5
# Agents that may say that they are full although they seemed not to be, before the request is told so.
MOST_REFUSALS = 16


@frozen
class Creation:
    """Makes kernels."""

    clock: IReactorTime
    kernels: KernelStore
    live: LiveKernels
    directory: AgentDirectory
    link: AgentLink
    announcements: Announcements
    ending: Ending
    absence: Absence
    keypairs: KeypairFinder
    folders: Folders
    policy: LimitPolicy
    placing: Placing
    queue: Queue

    _log = Logger()

    async def create(self, request: CreateRequest, gone: Deferred[None] | None = None) -> Created:
        """Get or create; see :meth:`sorna.gateway.interfaces.Kernels.create` for what it raises."""
        spec = await self._spec(request)
        deadline = self.clock.seconds() + SETTLE_DEADLINE
        self.placing.look_soon()
        while True:
            kernel, made = await self.kernels.reserve(new_kernel_id(), spec, self.clock.seconds())
            if made:
                made_now, services = await self._make_or_wait(kernel, spec, request)
                return await self._turn(made_now, request, gone, services, created=True)
            if not request.reuse:
                raise KernelAlreadyExists(kernel.session_token)
            if kernel.runtime != spec.runtime:
                raise KernelAlreadyExists(f"{kernel.session_token} runs {kernel.requested_runtime}")
            if kernel.status in {KernelStatus.RUNNING, KernelStatus.RESTARTING} and await self._still_there(kernel):
                return await self._found(kernel, created=False)
            if kernel.status is KernelStatus.PENDING:
                return await self._turn(kernel, request, gone, (), created=False)
            # Another request is making or ending it: wait for that, then look again.
            settled = await self._settled(kernel, deadline)
            if settled is not None and settled.status is KernelStatus.RUNNING:
                return await self._found(settled, created=False)
            if self.clock.seconds() >= deadline:
                raise Unavailable("Another request is still working on this session.")

    async def _make_or_wait(
        self, kernel: Kernel, spec: KernelSpec, request: CreateRequest
    ) -> tuple[Kernel, Sequence[Service]]:
        """Turn a PREPARING row into a running kernel, or into one that waits where the request wants that."""
        if request.wait is None:
            if self.queue.reserved:
                try:
                    return await self._make(kernel, spec, self.queue.reserved, give_up=False)
                except NoAgentAvailable:
                    # What was kept for those who wait may have become free.
                    await self.queue.look()
            return await self._make(kernel, spec, self.queue.reserved)
        try:
            if not self.queue.reserved:
                return await self._make(kernel, spec, give_up=False)
        except NoAgentAvailable:
            pass
        try:
            return await self.queue.put(kernel, spec, request.wait), ()
        except SornaError as error:
            await self._give_up(kernel, error)
            raise

    async def _turn(
        self,
        kernel: Kernel,
        request: CreateRequest,
        gone: Deferred[None] | None,
        services: Sequence[Service],
        *,
        created: bool,
    ) -> Created:
        """Give a kernel that runs; for one that waits, wait with it or say where it stands."""
        if kernel.status is not KernelStatus.PENDING:
            return _created(kernel, services, created=created)
        if request.wait is None:
            raise NoAgentAvailable("The session waits for an agent.")
        if request.enqueue_only:
            place = await self.queue.place_of(kernel.id)
            if place is not None:
                return _created(kernel, (), created=created, queue=place)
        return await self._found(await self.queue.turn(kernel, gone, mine=created), created=created)

    async def _found(self, kernel: Kernel, *, created: bool) -> Created:
        """Give a kernel that somebody else made; its applications are a courtesy, which no failure of its agent's withholds."""
        agent = await self.directory.find(kernel.agent_id or "")
        services: Sequence[Service] = ()
        try:
            if agent is not None:
                services = await self.link.services(agent.address, kernel.id)
        except (AgentError, KernelNotFound) as error:
            what = "the applications of {kernel_id} are not known: {error}"
            self._log.info(what, kernel_id=short_id(kernel.id), error=error.detail)
        return _created(kernel, services, created=created)

    async def _spec(self, request: CreateRequest) -> KernelSpec:
        if not request.names_joined and not valid_session_token(request.session_token):
            raise InvalidRequest(
                "clientSessionToken must be 4 to 80 of A-Z a-z 0-9 _ . - with a letter or digit at both ends"
            )
        runtime = resolve_runtime(request.runtime)
        if runtime is None:
            raise RuntimeUnknown(request.runtime[:80])
        owner = await self.keypairs.find(request.access_key)
        policy = owner.policy if owner is not None else None
        if policy is not None and not policy.allows(runtime):
            raise QuotaExceeded(f"the policy {policy.name} does not allow {request.runtime[:80]}")
        limits = self.policy.limits_for(
            runtime, request.memory, request.execution_timeout, request.cpu_cores, request.gpus
        )
        return KernelSpec(
            access_key=request.access_key,
            session_token=request.session_token,
            runtime=runtime,
            requested_runtime=request.runtime,
            limits=within(limits, policy),
            environ=request.environ,
            tag=request.tag,
            mounts=await self.folders.mounts(request.access_key, request.mounts),
            labels=request.labels,
            ports=tuple(request.ports),
        )

    async def _make(
        self, kernel: Kernel, spec: KernelSpec, excluded: Collection[str] = (), *, give_up: bool = True
    ) -> tuple[Kernel, Sequence[Service]]:
        """Turn a PREPARING row into a running kernel, or into a final row and an error.

        :param give_up: whether the row is final, too, where only no agent is free.
        """
        try:
            if not await self.folders.still_allowed(spec.access_key, spec.mounts):
                raise FolderNotFound("A folder was taken away while the kernel was being made.")
            agent, services = await self._on_some_agent(kernel, spec, excluded)
        except SornaError as error:
            if give_up or not isinstance(error, NoAgentAvailable):
                await self._give_up(kernel, error)
            if isinstance(error, AgentError):
                raise KernelCreationFailed from error
            raise
        return await self._run(kernel, agent), services

    async def make_waiting(self, kernel: Kernel, spec: KernelSpec, agent: Agent) -> None:
        """Make a kernel that has waited and was chosen an agent for; where that one is full after all it waits on."""
        try:
            await self._on(agent, kernel, spec)
        except NoAgentAvailable as error:
            if not await self.queue.put_back(kernel.id):
                await self._give_up(kernel, error)
            return
        except SornaError as error:
            await self._give_up(kernel, error)
            return
        try:
            await self._run(kernel, agent)
        except SornaError as error:
            # Whoever waits for it learns that from the row.
            self._log.warn("{kernel_id} could not be run: {error}", kernel_id=short_id(kernel.id), error=error)

    async def _run(self, kernel: Kernel, agent: Agent) -> Kernel:
        """Write that a kernel that an agent has made runs."""
        running = await self._running(kernel, agent)
        if running is None:
            # It was destroyed while it was being made, or PostgreSQL lost the row; that is not ours to change, the rest is.
            await self._take_back(agent, kernel.id, "destroyed-while-preparing")
            await self.ending.forget(kernel)
            raise KernelCreationFailed("The kernel was destroyed while it was being made.")
        return running

    async def _running(self, kernel: Kernel, agent: Agent) -> Kernel | None:
        """Write that a kernel runs, into both databases side by side, and announce it; None when its row had ended.

        :raises Unavailable: PostgreSQL did not take it; then the kernel is ended.
        """
        # Whoever finds the row without the live entry writes that entry itself, as after any loss of Redis.
        living = Deferred.fromCoroutine(self.live.add(kernel, agent.address))
        living.addErrback(self._not_yet_live, kernel)
        try:
            running = await self.kernels.change_status(
                kernel.id, KernelStatus.RUNNING, "", self.clock.seconds(), agent_id=agent.id
            )
        except SornaError as error:
            self.placing.over(kernel.id, live=False)
            taken_back = await self._take_back(agent, kernel.id)
            await living  # what came after it was forgotten would stay
            await self._give_up(kernel, error, agent.id if taken_back else None)
            raise
        await living
        self.placing.over(kernel.id, live=True)
        if running is not None:
            self.ending.announce_later(running)
        return running

    def _not_yet_live(self, failure: Failure, kernel: Kernel) -> None:
        failure.trap(SornaError)
        self._log.debug(
            "{kernel_id} has no live entry yet: {error}", kernel_id=short_id(kernel.id), error=failure.value
        )

    async def _on_some_agent(
        self, kernel: Kernel, spec: KernelSpec, excluded: Collection[str]
    ) -> tuple[Agent, Sequence[Service]]:
        """Ask agents, best first, until one makes the kernel; a full one is passed over, a broken one ends the search."""
        passed = set(excluded)
        refused = NoAgentAvailable()
        for _attempt in range(MOST_REFUSALS):
            agent = await self.placing.choose(kernel.id, self.demand(spec), passed)
            try:
                services = await self._on(agent, kernel, spec)
            except NoAgentAvailable as error:
                passed.add(agent.id)
                refused = error
            else:
                return agent, services
        raise refused

    async def _on(self, agent: Agent, kernel: Kernel, spec: KernelSpec) -> Sequence[Service]:
        """Have an agent that was chosen make a kernel. :raises NoAgentAvailable: it is full. :raises AgentError:."""
        try:
            return await self.link.create_kernel(agent.address, KernelOrder(kernel.id, spec))
        except BaseException as error:
            self.placing.over(kernel.id, live=False)
            if isinstance(error, AgentError):
                await self._take_back(agent, kernel.id)
            raise

    def demand(self, spec: KernelSpec) -> Demand:
        """Say what a kernel needs of its agent."""
        storage = self.folders.storage.storage_id if spec.mounts else None
        return Demand(spec.runtime, slots_of(spec.runtime, spec.limits), frozenset(spec.labels.items()), storage)

    async def _take_back(self, agent: Agent, kernel_id: uuid.UUID, reason: str = "creation-failed") -> bool:
        """After a failed or unanswered request the agent may still have made the kernel: end it, whatever there is.

        :returns: whether the agent surely does not hold it any more.
        """
        try:
            await self.link.destroy_kernel(agent.address, kernel_id, reason)
        except KernelNotFound:
            return True
        except SornaError as error:
            # The reaper finds it in the agent's next heartbeats.
            self._log.debug("{kernel_id} could not be taken back: {error}", kernel_id=short_id(kernel_id), error=error)
            return False
        return True

    async def _give_up(self, kernel: Kernel, error: SornaError, taken_from: str | None = None) -> None:
        """Write that a creation failed, later if that cannot be done now: its token and its place are wanted again.

        :param taken_from: id of an agent that it was taken back from although PostgreSQL may have written that it runs there.
        """
        reason = type(error).__name__
        try:
            await self._write_failure(kernel, reason, taken_from)
        except SornaError:
            Deferred.fromCoroutine(self._write_failure_later(kernel, reason, taken_from)).addErrback(
                lambda failure: self._log.failure("a failed creation could not be written", failure)
            )

    async def _write_failure(self, kernel: Kernel, reason: str, taken_from: str | None) -> None:
        ended = await self.kernels.change_status(kernel.id, KernelStatus.ERROR, reason, self.clock.seconds())
        # Its entry goes whatever became of the row: where a crash of PostgreSQL has undone it, nobody else knows the kernel;
        # see Note [What a crash may undo] in ``store/kernels``. Should it run after all, because the answer to that was lost
        # and the agent could not be told to end it, the reaper writes the entry again.
        await self.ending.forget(ended or kernel)
        if ended is not None:  # else whoever ended it meanwhile has announced that
            await self.ending.announce(ended)
        elif taken_from is not None:
            # Else whoever asks again with this token would be given what its agent does not hold, until the reaper's looks.
            now = await self.kernels.by_id(kernel.id)
            if now is not None and now.status is KernelStatus.RUNNING and now.agent_id == taken_from:
                await self.ending.lost(kernel.id, reason)

    async def _write_failure_later(self, kernel: Kernel, reason: str, taken_from: str | None) -> None:
        for _attempt in range(FAILURE_ATTEMPTS):
            await deferLater(self.clock, FAILURE_PAUSE)
            try:
                await self._write_failure(kernel, reason, taken_from)
            except SornaError:
                continue
            return

    async def _still_there(self, kernel: Kernel) -> bool:
        """Check that an existing kernel can be used; one whose agent is gone is ended, so that a new one is made."""
        if kernel.agent_id is None:
            return False
        agent = await self.directory.find(kernel.agent_id)
        if agent is None:
            if not self.absence.believable:
                raise Unavailable("The agent of this session has given no sign of life since Redis was away.")
            await self.ending.lost(kernel.id, "agent-lost")
            return False
        if await self.live.use(kernel.access_key, short_id(kernel.id), count=False) is None:
            await self.live.add(kernel, agent.address)
        return True

    async def _settled(self, kernel: Kernel, deadline: float) -> Kernel | None:
        """Wait until a kernel is neither being made nor being ended, and give its row as it is then."""
        news: Deferred[None] = Deferred()
        mine = short_id(kernel.id)

        def receive(text: str) -> None:
            if text.startswith(mine) and not news.called:
                news.callback(None)

        unsubscribe = self.announcements.subscribe(KERNEL_TOPIC, receive)
        try:
            # Looked at after subscribing: a change in between is seen by one or the other.
            now = await self.kernels.by_id(kernel.id)
            if now is None or now.status not in {KernelStatus.PREPARING, KernelStatus.TERMINATING}:
                return now
            news.addTimeout(max(0.0, deadline - self.clock.seconds()), self.clock)
            try:
                await news
            except DeferredTimeoutError:
                return None
            return await self.kernels.by_id(kernel.id)
        finally:
            unsubscribe()


def _created(kernel: Kernel, services: Sequence[Service], *, created: bool, queue: QueuePlace | None = None) -> Created:
    return Created(kernel.id, kernel.session_token, kernel.runtime, kernel.status, created, queue, services)
