"""What is remembered of kernels that are gone: what they used, why they ended, and the output of their runs.

Knows no process, no manager and no owner. Bounded twice: output as a whole by a number of bytes, of which the oldest kernels
lose theirs first, and everything by time. Each run keeps its own time, see :class:`sorna.agent.runs.Runs`.
"""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from attrs import frozen
from twisted.internet.interfaces import IReactorTime

from sorna.agent.run import Run
from sorna.agent.runs import Runs
from sorna.cluster.messages import pack_value, unpack_usage
from sorna.model.kernel import Usage
from sorna.model.limits import OutputBounds

#: A late call finds out for at least as long what became of a kernel.
LEAST_RETENTION = 300.0
MAX_ENDED = 4096


@frozen
class Ended:
    """What is remembered of one kernel."""

    usage: Usage
    reason: str
    at: float
    runs: Runs


class _NoKernel:
    """What the runs of a kernel that is gone can still tell it."""

    def start_run(self, _run: Run) -> None:
        """Nothing is started any more."""

    def send_input(self, _run: Run, _text: str) -> None:
        """Nobody reads."""

    def room_changed(self) -> None:
        """Nobody prints."""


class EndedKernels:
    """The kernels that are gone, the oldest first.

    :param bounds: how much of their output is kept, and how long.
    :param most: how many kernels are remembered.
    """

    def __init__(self, reactor: IReactorTime, bounds: OutputBounds, most: int = MAX_ENDED) -> None:
        self._reactor = reactor
        self.bounds = bounds
        self._most = most
        self._known: OrderedDict[uuid.UUID, Ended] = OrderedDict()
        self._output: OrderedDict[uuid.UUID, int] = OrderedDict()
        self._size = 0

    def add(self, kernel_id: uuid.UUID, usage: Usage, reason: str, runs: Runs) -> None:
        """Remember a kernel, and forget what is too much or too old."""
        self._known[kernel_id] = Ended(usage, reason, self._reactor.seconds(), runs)
        self._output[kernel_id] = size = runs.cost
        self._size += size
        self._prune()

    def find(self, kernel_id: uuid.UUID) -> Ended | None:
        """Give what is remembered of a kernel."""
        return self._known.get(kernel_id)

    def answer_all(self) -> None:
        """Answer every call that waits for output."""
        for known in self._known.values():
            known.runs.answer_all()

    def carry(self) -> Sequence[Sequence[Any]]:
        """Give what is remembered as plain values; nothing here goes on."""
        now = self._reactor.seconds()
        return [
            [kernel_id.bytes, pack_value(one.usage), one.reason, now - one.at, one.runs.carry()]
            for kernel_id, one in self._known.items()
        ]

    def take_over(self, state: Sequence[Sequence[Any]]) -> None:
        """Remember what another program did; nothing was remembered here before."""
        for raw, usage, reason, age, carried in state:
            kernel_id, runs = uuid.UUID(bytes=raw), Runs(self._reactor, _NoKernel())
            runs.retention = self.bounds.retention
            runs.take_over(carried)
            self._known[kernel_id] = Ended(unpack_usage(usage), reason, self._reactor.seconds() - age, runs)
            self._output[kernel_id] = runs.cost
            self._size += runs.cost
        self._prune()

    def clear(self) -> None:
        """Forget everything."""
        for known in self._known.values():
            known.runs.forget()
        self._known.clear()
        self._output.clear()
        self._size = 0

    def _is_kept(self, oldest: Ended, now: float) -> bool:
        fits = self._size <= self.bounds.size and len(self._output) <= self._most
        return fits and oldest.at > now - self.bounds.retention

    def _prune(self) -> None:
        now = self._reactor.seconds()
        while self._output:
            kernel_id = next(iter(self._output))
            known = self._known[kernel_id]
            if self._is_kept(known, now):
                break
            # The kernel itself is remembered: whoever asks for its output is told that it is gone.
            self._size -= self._output.pop(kernel_id)
            known.runs.forget()
        oldest = now - max(LEAST_RETENTION, self.bounds.retention)
        while len(self._known) > len(self._output):
            kernel_id, known = next(iter(self._known.items()))
            if known.at >= oldest and len(self._known) <= self._most:
                break
            del self._known[kernel_id]
