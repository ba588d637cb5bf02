"""Makes kernels that are nobody's yet: confined, configured for their runtime, and ready to run code.

Knows the isolation tier as a :class:`~sorna.agent.interfaces.Sandbox` and the language table; may not know who will use a
kernel, nor how many are wanted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import field, frozen
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from sorna.agent.detection import DetectedRuntime
from sorna.agent.interfaces import ConfinedKernel, Sandbox, SandboxSpec
from sorna.agent.kernel import Kernel, OnEnded
from sorna.agent.lane import OpenChannel
from sorna.errors import AgentFailed, AgentRefused, SornaError
from sorna.model.folder import Mount
from sorna.model.kernel import new_kernel_id, short_id
from sorna.model.limits import Limits

SPAWN_DEADLINE = 8.0
END_DEADLINE = 8.0
# Processes that set themselves up side by side only delay each other: few at a time, and the first are ready in half the
# time. Enough that one which hangs holds up nobody.
MOST_AT_ONCE = 8


@frozen
class Recipe:
    """What two kernels must have in common to be each other's substitute."""

    runtime: str
    limits: Limits


@frozen
class KernelFactory:
    """Makes kernels of the runtimes that this host offers.

    :ivar open_channel: makes a channel of a kernel's socket; ``functools.partial(Channel, reactor)``.
    """

    reactor: IReactorTime
    sandbox: Sandbox
    runtimes: Mapping[str, DetectedRuntime]
    open_channel: OpenChannel
    _turns: DeferredSemaphore = field(factory=lambda: DeferredSemaphore(MOST_AT_ONCE), init=False)

    _log = Logger()

    def recipe(self, runtime: str, limits: Limits) -> Recipe:
        """Tell what a kernel has to be made of that ends up with these limits."""
        return Recipe(runtime, self.sandbox.template(limits))

    async def make(
        self, recipe: Recipe, on_ended: OnEnded, mounts: Sequence[Mount] = (), devices: Sequence[str] = ()
    ) -> Kernel:
        """Make one; code can run when this returns, and nothing is left of it when this raises.

        :param on_ended: told of its end until somebody else is, by :meth:`Kernel.assign`.
        :param devices: paths of the device nodes that it sees besides the harmless ones.
        :raises AgentFailed: it could not be made.
        :raises AgentRefused: folders cannot be mounted here.
        """
        if mounts and not self.sandbox.storage:
            raise AgentRefused("This agent does not have the storage of the folders that are to be mounted.")
        async with self._turns:
            return await self._make(recipe, on_ended, mounts, devices)

    async def _make(self, recipe: Recipe, on_ended: OnEnded, mounts: Sequence[Mount], devices: Sequence[str]) -> Kernel:
        detected = self.runtimes[recipe.runtime]
        name = short_id(new_kernel_id())
        order = SandboxSpec(name, detected.runtime.stack, recipe.limits, mounts=mounts, devices=devices)
        spawned: Deferred[ConfinedKernel] = Deferred.fromCoroutine(self.sandbox.spawn(order))
        spawned.addTimeout(SPAWN_DEADLINE, self.reactor)
        try:
            confined = await spawned
        except (DeferredTimeout, CancelledError) as error:
            raise AgentFailed(f"The kernel could not be confined within {SPAWN_DEADLINE:g} seconds.") from error
        kernel = Kernel(self.reactor, confined, recipe.limits, self.open_channel, on_ended)
        try:
            await kernel.configure(detected.runtime.language, detected.environ)
        except CancelledError:
            kernel.end("not-needed")
            raise
        except SornaError:
            try:
                await kernel.when_ended().addTimeout(END_DEADLINE, self.reactor)
            except DeferredTimeout:
                self._log.error("what is left of kernel {kernel_id} does not end", kernel_id=kernel.id)
            raise
        return kernel
