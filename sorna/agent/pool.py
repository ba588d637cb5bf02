"""Keeps kernels ready before anybody asks, so that creating one means taking one.

Knows how many were asked for lately and how to have one made; may not know sessions, managers or what a kernel is made of.

Note [Refilling]: whoever takes a kernel usually runs code in it at once, and making the next one takes the processor from
that. So a pool waits until nobody has asked for ``REST`` seconds, as long as it has an eighth (``_RESERVE``) of what it wants;
one that runs lower does not. One kernel is made at a time, beside those that requests which found nothing are having made.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from sorna.agent.deadlines import cancel
from sorna.agent.demand import Demand
from sorna.agent.factory import KernelFactory, Recipe
from sorna.agent.kernel import Kernel
from sorna.errors import SornaError
from sorna.model.folder import Mount
from sorna.model.kernel import Usage
from sorna.model.limits import Limits

REST = 0.05
_RESERVE = 8
REVIEW = 30.0
MOST_KINDS = 64
FIRST_BACKOFF = 1.0
LONGEST_BACKOFF = 60.0
STOP_DEADLINE = 8.0
# What an operator who says nothing gets: a part of the host's memory, in idle kernels of 8 MiB, within bounds.
_PART_OF_MEMORY = 16
_IDLE_KERNEL = 8 << 20
_FEWEST, _MOST = 8, 256


def suggested_size(memory: int) -> int:
    """Give how many kernels a host with so many bytes of memory may keep ready at the most."""
    return max(_FEWEST, min(_MOST, memory // _PART_OF_MEMORY // _IDLE_KERNEL))


@define(eq=False)
class _Shelf:
    """The ready kernels of one recipe."""

    demand: Demand = field(factory=Demand)
    ready: deque[Kernel] = field(factory=deque)


class Pool:
    """Kernels that are ready, and nobody's.

    :param most: how many are kept at the most; with 0 every kernel is made when it is asked for.
    """

    _log = Logger()

    def __init__(self, reactor: IReactorTime, factory: KernelFactory, most: int) -> None:
        self._reactor = reactor
        self._factory = factory
        self._most = most
        self._shelves: OrderedDict[Recipe, _Shelf] = OrderedDict()
        self._usual: Recipe | None = None
        self._least = 0
        self._leaving: set[Kernel] = set()
        self._making: Deferred[None] | None = None
        self._timer: IDelayedCall | None = None
        self._backoff = 0.0
        self._running = False

    def __len__(self) -> int:
        """Tell how many kernels are ready."""
        return sum(len(shelf.ready) for shelf in self._shelves.values())

    def start(self, runtime: str, least: int) -> None:
        """Begin to keep kernels; ``least`` of this runtime, if it is offered, whether anybody asks or not."""
        self._running = self._most > 0
        if self._running and runtime in self._factory.runtimes:
            self._least = min(least, self._most)
            limits = self._factory.runtimes[runtime].runtime.adapt(Limits())
            self._usual = self._factory.recipe(runtime, limits)
            self._shelf(self._usual)
        self._look_again(0.0)

    async def obtain(
        self, runtime: str, limits: Limits, mounts: Sequence[Mount] = (), devices: Sequence[str] = ()
    ) -> Kernel:
        """Give a kernel that can run code and is nobody's: one that is ready, or else a new one.

        One with folders or devices is always new, because they are mounted while it is confined.

        :raises AgentFailed, AgentRefused: none could be made.
        """
        recipe = self._factory.recipe(runtime, limits)
        if mounts or devices or not self._running:
            return await self._factory.make(recipe, _nobody, mounts, devices)
        if self._usual is not None and recipe.runtime == self._usual.runtime:
            self._usual = recipe  # what an operator has configured is learned from the first request
        shelf = self._shelf(recipe)
        shelf.demand.note(self._reactor.seconds())
        kernel = shelf.ready.popleft() if shelf.ready else None
        plenty = kernel is not None and self._lacking(recipe, shelf) <= (_RESERVE - 1) * len(shelf.ready)
        self._look_again(REST if plenty else 0.0)
        return await self._factory.make(recipe, _nobody) if kernel is None else kernel

    def _shelf(self, recipe: Recipe) -> _Shelf:
        shelf = self._shelves.get(recipe)
        if shelf is None:
            shelf = self._shelves[recipe] = _Shelf()
            if len(self._shelves) > MOST_KINDS:
                _recipe, oldest = self._shelves.popitem(last=False)
                self._discard(oldest, len(oldest.ready))
        self._shelves.move_to_end(recipe)
        return shelf

    def _lacking(self, recipe: Recipe, shelf: _Shelf) -> int:
        """Tell how many are missing; less than 0 when some are not needed."""
        least = self._least if recipe == self._usual else 0
        return max(least, shelf.demand.wanted(self._reactor.seconds())) - len(shelf.ready)

    # -- keeping it filled

    def _look_again(self, delay: float) -> None:
        if not self._running:
            return
        cancel(self._timer)
        self._timer = self._reactor.callLater(max(delay, self._backoff), self._look)

    def _look(self) -> None:
        """Have the kernel made that is missed most, or let go of those that nobody misses."""
        self._timer = None
        if self._making is not None:
            return
        lacking = {recipe: self._lacking(recipe, shelf) for recipe, shelf in self._shelves.items()}
        for recipe, shelf in self._shelves.items():
            self._discard(shelf, -lacking[recipe])
        missed = max(lacking, key=lambda recipe: lacking[recipe], default=None)
        if missed is None or lacking[missed] <= 0 or len(self) >= self._most:
            self._look_again(REVIEW)
            return
        self._making = Deferred.fromCoroutine(self._make(missed))
        self._making.addErrback(lambda failure: self._log.failure("keeping kernels ready", failure))
        self._making.addCallback(self._made)

    def _made(self, _result: None) -> None:
        self._making = None
        self._look_again(0.0)

    async def _make(self, recipe: Recipe) -> None:
        try:
            kernel = await self._factory.make(recipe, self._on_ended)
        except CancelledError:
            if self._running:
                raise
        except SornaError as error:
            if not self._running:
                return  # it was not made because the pool stops
            self._backoff = min(max(2 * self._backoff, FIRST_BACKOFF), LONGEST_BACKOFF)
            self._log.warn(
                "no kernel of {runtime} could be made ready; tried again in {delay:g} s: {error}",
                runtime=recipe.runtime,
                delay=self._backoff,
                error=error.detail,
            )
        else:
            self._backoff = 0.0
            shelf = self._shelves.get(recipe)
            if shelf is None or not self._running:
                self._let_go(kernel)
            else:
                shelf.ready.append(kernel)

    def _on_ended(self, kernel: Kernel, reason: str, _usage: Usage) -> None:
        """Note that a kernel that was nobody's is gone."""
        if kernel in self._leaving:
            self._leaving.discard(kernel)
            return
        for shelf in self._shelves.values():
            if kernel in shelf.ready:
                shelf.ready.remove(kernel)
                self._log.warn("a kernel that was kept ready has ended: {reason}", reason=reason)
                self._look_again(FIRST_BACKOFF)

    def _discard(self, shelf: _Shelf, surplus: int) -> None:
        while shelf.ready and surplus > 0:
            surplus -= 1
            self._let_go(shelf.ready.popleft())

    def _let_go(self, kernel: Kernel) -> None:
        self._leaving.add(kernel)
        kernel.end("not-needed")

    async def stop(self) -> None:
        """End every kernel that is ready; nothing is left of them when this returns, or after a bound."""
        self._running = False
        cancel(self._timer)
        if self._making is not None:
            self._making.cancel()
        for shelf in self._shelves.values():
            self._discard(shelf, len(shelf.ready))
        for kernel in [*self._leaving]:
            ended = kernel.when_ended().addTimeout(STOP_DEADLINE, self._reactor)
            ended.addErrback(lambda _failure: self._log.error("a kernel that was kept ready does not end"))
            await ended


def _nobody(_kernel: Kernel, _reason: str, _usage: Usage) -> None:
    """Ignore the end of a kernel whose making fails: its maker is told."""
