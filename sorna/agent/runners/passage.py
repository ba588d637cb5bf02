"""Whether anything of a run passed through init: what was printed, by whomever, and what was shown.

Standard library only. Knows the pipes, the count of what init takes from them, and how often init was asked; may not know runs or
lanes. Questions for input are not its concern.
"""

import os

from sorna.agent.runners.linux import bytes_waiting
from sorna.agent.runners.pump import Flow
from sorna.agent.runners.repl_link import Order
from sorna.agent.runners.streams import Outlet


class Passage:
    """Looks at the beginning and at the end of a run.

    :param flow: see Note [Flow] in ``pump.py``.
    """

    def __init__(self, order: Order, outlet: Outlet, flow: Flow) -> None:
        self._order = order
        self._outlet = outlet
        self._flow = flow
        self._before = (0, 0)

    def begin(self) -> None:
        """Note how things stand, and do to the pipes what init does before a run that it knows of."""
        for spare in self._outlet.spares:
            # Programs share them, and one may have changed that for all.
            os.set_blocking(spare, True)
        self._before = (self._flow.count, self._order.asked)

    @property
    def was_quiet(self) -> bool:
        """Whether nothing has passed since then, nothing is on its way, and our streams hold no more than last words."""
        if not self._outlet.is_quiet or any(bytes_waiting(spare) for spare in self._outlet.spares):
            return False
        # After the look at the pipes: what init has taken from them before it is counted now.
        count = self._flow.count
        return (count, self._order.asked) == self._before and count % 2 == 0
