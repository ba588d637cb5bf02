"""How an agent that is drained stops: when its last kernel is gone and its managers know of it.

Knows the kernels and how many news are untold, and how to end the process only as something to call. The managers end what
is left at a drain's deadline; the agent itself ends no kernel for it.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from sorna.agent.deadlines import cancel
from sorna.agent.kernels import Kernels

# The answer to the call that has begun the drain, or ended the last kernel, is to get out before the process ends.
MOMENT = 0.5
# What no manager wants to hear for so long is found missing by their reapers.
PATIENCE = 10.0


class Retirement:
    """Watches the kernels of an agent.

    :param untold: tells how many news no manager has acknowledged.
    :param retire: ends the process; called once.
    """

    _log = Logger()

    def __init__(
        self, clock: IReactorTime, kernels: Kernels, untold: Callable[[], int], retire: Callable[[], None]
    ) -> None:
        self._clock = clock
        self._kernels = kernels
        self._untold = untold
        self._retire = retire
        self._timer: IDelayedCall | None = None
        self._empty_since: float | None = None
        self._stopped = False
        kernels.watch(self._look)

    def _look(self) -> None:
        if self._is_over():
            if self._timer is None:
                self._empty_since = self._clock.seconds()
                self._timer = self._clock.callLater(MOMENT, self._look_again)
        else:
            self._calm()

    def stop(self) -> None:
        """Look no more."""
        self._stopped = True
        self._calm()

    def _calm(self) -> None:
        cancel(self._timer)
        self._timer = self._empty_since = None

    def _is_over(self) -> bool:
        return self._kernels.draining and not self._kernels.occupied and not self._stopped

    def _look_again(self) -> None:
        self._timer = None
        if not self._is_over() or self._empty_since is None:
            return
        if self._untold() and self._clock.seconds() - self._empty_since < PATIENCE:
            self._timer = self._clock.callLater(MOMENT, self._look_again)
            return
        self._stopped = True
        self._log.info("this agent is drained and stops")
        self._retire()
