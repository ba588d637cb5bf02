"""One kernel as the agent holds it: its process, its counters, and the promise that nothing is left of it.

Knows pidfds, counters and Usage; may not know frames or how the kernel was confined.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from sorna.agent.interfaces import KernelExit, LimitHits
from sorna.agent.sandbox import cgroups, counting, wire
from sorna.errors import AgentFailed
from sorna.model.kernel import Usage
from sorna.model.limits import Limits

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@frozen
class SetupFailure:
    """The step that a kernel's first process did not survive. ``errno`` is 0 where no system call failed."""

    step: str
    errno: int
    detail: str

    @property
    def sentence(self) -> str:
        """Tell it to a human."""
        return f"{self.step}: {self.detail}"


class ConfinedProcess:
    """A kernel whose zygote has been asked for it; implements ``ConfinedKernel``.

    :ivar started: fires when the kernel's first process calls the runner; fails with AgentFailed when everything of a kernel
        that did not get there is gone.
    :param network: how many bytes it has exchanged with other hosts; 0 where it has no network but a loopback of its own, -1
        where it shares its host's.
    :param ending: the signal that ends it: SIGKILL for init of a PID namespace, SIGTERM for a keeper.
    :param gone: called once, right before ``exited`` fires.
    """

    def __init__(
        self,
        kernel_id: str,
        channel: socket.socket,
        trees: Sequence[cgroups.Hierarchy],
        *,
        ending: signal.Signals,
        network: int,
        gone: Callable[[ConfinedProcess], None],
    ) -> None:
        self.kernel_id = kernel_id
        self.channel = channel
        self.pid = 0
        self.exited: Deferred[KernelExit] = Deferred()
        self.started: Deferred[None] = Deferred(lambda _deferred: self.kill())
        self._trees = trees
        self._hits = counting.hit_counters(trees, kernel_id)
        self._ending = ending
        self._network = network
        self.own_network = network == 0
        self._gone = gone
        self._first = 0
        self._pidfd = -1
        self._scratch = -1
        self._scratch_most = -1
        self._doomed = False
        self._running = False
        self._ended = False
        self.failure = SetupFailure("begin", 0, "its first process ended before it was ready")

    def cloned(self, pid: int, pidfd: int) -> None:
        """Take the process to signal; the descriptor is this object's from now on."""
        self.pid = pid
        self._pidfd = pidfd
        if self._doomed:
            self._signal()
        self._tell_when_ready()

    def has_started(self, pid: int, scratch: int) -> None:
        """Take the news that the runner runs; the descriptor is this object's from now on."""
        self._first = pid
        self._scratch = scratch
        self._running = True
        self._tell_when_ready()

    def _tell_when_ready(self) -> None:
        # The zygote and the new process write to the same socket, in either order.
        if self._running and self._pidfd >= 0:
            self.pid = self._first or self.pid
            if not self.started.called:
                self.started.callback(None)

    def carry(self) -> dict[str, Any]:
        """Give what another program of this process needs to hold the kernel; its channel is carried by who has it."""
        return {
            "pid": self.pid,
            "first": self._first,
            "pidfd": self._pidfd,
            "scratch": self._scratch,
            "scratch_most": self._scratch_most,
        }

    def take_over(self, state: Mapping[str, Any]) -> None:
        """Hold a kernel that was started by another program of this process."""
        self.pid, self._first = state["pid"], state["first"]
        self._pidfd, self._scratch = state["pidfd"], state["scratch"]
        self._scratch_most = state["scratch_most"]
        self._running = True
        self.started.callback(None)

    def has_failed(self, failure: SetupFailure) -> None:
        """Take the reason for which it will not start; its end follows."""
        self.failure = failure

    @property
    def pidfd(self) -> int:
        """The descriptor of the process to signal, -1 when there is none."""
        return self._pidfd

    def usage(self) -> Usage:
        """Read the kernel's counters now; zeros and -1 once it is gone."""
        if self._ended:
            return Usage()
        counters = counting.read(self._trees, self.kernel_id, hits=False)
        cpu_ms = counters.cpu_ms if counters.cpu_ms >= 0 else _cpu_of_process(self.pid)
        return self._as_usage(counters, cpu_ms)

    def limit_hits(self) -> LimitHits:
        """Read how often a limit was hit."""
        if self._ended:
            return LimitHits(-1, -1)
        out_of_memory, processes = self._hits
        return LimitHits(out_of_memory.read(), processes.read())

    def _as_usage(self, counters: counting.Counters, cpu_ms: float) -> Usage:
        scratch = -1
        if self._scratch >= 0:
            with contextlib.suppress(OSError):
                level = os.fstatvfs(self._scratch)
                scratch = (level.f_blocks - level.f_bfree) * level.f_frsize
        self._scratch_most = max(self._scratch_most, scratch)
        return Usage(
            cpu_used=max(cpu_ms, 0.0),
            mem_max_bytes=counters.memory_most,
            mem_cur_bytes=counters.memory,
            net_rx_bytes=self._network,
            net_tx_bytes=self._network,
            io_read_bytes=counters.io_read,
            io_write_bytes=counters.io_write,
            io_max_scratch_size=self._scratch_most,
            io_cur_scratch_size=scratch,
        )

    def adjust(self, limits: Limits) -> None:
        """Enforce other memory and processor limits; what no control group counts here is no part of what may differ.

        :raises AgentFailed: Linux refuses.
        """
        ceilings = cgroups.Ceilings(limits.memory, limits.cpu_cores, limits.processes)
        try:
            cgroups.adjust(self._trees, self.kernel_id, ceilings)
        except OSError as error:
            raise AgentFailed("The kernel's limits could not be set.", f"{type(error).__name__}: {error}") from error

    def kill(self) -> None:
        """Kill every process of the kernel. Harmless when they are gone."""
        if not self._doomed:
            self._doomed = True
            self._signal()

    def _signal(self) -> None:
        # A pidfd never names another process, however late this comes.
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, self._ending)

    def has_exited(self, body: Mapping[str, Any]) -> None:
        """Take the zygote's word that everything is gone."""
        self._finish(int(body["status"]), counting.Counters(*body["counters"]), float(body["cpu_ms"]))

    def is_lost(self) -> None:
        """Conclude, for a kernel whose zygote died, that everything is gone; nobody has read its status."""
        self._finish(-int(signal.SIGKILL), counting.Counters(), 0.0)

    def _finish(self, status: int, counters: counting.Counters, cpu_ms: float) -> None:
        if self._ended:
            return
        usage = self._as_usage(counters, cpu_ms)
        self._ended = True
        wire.close_all([descriptor for descriptor in (self._pidfd, self._scratch) if descriptor >= 0])
        self._pidfd = self._scratch = -1
        for counter in self._hits:
            counter.close()
        self._gone(self)
        if not self.started.called:
            self.channel.close()
            self.started.errback(Failure(AgentFailed("The kernel could not be confined.", self.failure.sentence)))
        self.exited.callback(KernelExit(status, counters.out_of_memory > 0, usage))


def _cpu_of_process(pid: int) -> float:
    """Give a process's processor time with that of the children it has waited for, in milliseconds."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0.0
    return sum(int(ticks) for ticks in fields[11:15]) * 1000 / _TICKS_PER_SECOND
