"""What making a kernel costs, without any server: ``python -m bench.making``. Root makes isolated ones; numpy and pandas are imported.

Kernels are made one after another and kept until the end, so that the processor time of every process that had to do with it can
be read: the zygote, its template, the kernels' own, and this one, which is in the place of an agent.
"""

from __future__ import annotations

import argparse
import os
import secrets
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater, react

from bench.figures import milliseconds, percentile
from bench.processes import MIB, descendants, own_and_children, processor_time, proportional
from sorna.agent.channel import Channel
from sorna.agent.detection import detect
from sorna.agent.factory import KernelFactory
from sorna.agent.interfaces import SandboxSettings
from sorna.agent.kernel import Kernel
from sorna.agent.sandbox.tiers import NamespaceSandbox
from sorna.model.limits import Limits

PRELOAD = ("numpy", "pandas", "matplotlib.pyplot")
RUNTIME = "python3"


async def _measure(reactor: Any, count: int) -> None:
    settings = SandboxSettings(python=sys.executable, preload=PRELOAD)
    sandbox = NamespaceSandbox(reactor, settings, f"bench-{secrets.token_hex(4)}")
    await sandbox.start()
    detection = await detect(reactor, reactor, sys.executable, dict(os.environ), has_gpu=False)
    factory = KernelFactory(reactor, sandbox, detection.runtimes, partial(Channel, reactor))
    recipe = factory.recipe(RUNTIME, Limits())

    async def make() -> Kernel:
        return await factory.make(recipe, lambda _kernel, _reason, _usage: None)

    warm = [await make() for _kernel in range(5)]
    await _end(warm)
    makers = [pid for pid in descendants(os.getpid()) if pid != os.getpid()]
    before, own, times, kernels = processor_time(makers), own_and_children(), [], []
    for _kernel in range(count):
        began = time.perf_counter()
        kernels.append(await make())
        times.append(time.perf_counter() - began)
    await deferLater(reactor, 1.0)
    making, agent = processor_time(makers) - before, own_and_children() - own
    theirs = [pid for pid in descendants(os.getpid()) if pid not in {*makers, os.getpid()}]
    _show(times, making, agent, theirs)
    await _end(kernels)
    await sandbox.stop()


def _show(times: Sequence[float], making: float, agent: float, theirs: Sequence[int]) -> None:
    count = len(times)
    print(f"until it is ready, p50 / p99 of {count}: {milliseconds(percentile(times, 0.5))} / {_last(times)} ms")
    kernels = processor_time(theirs)
    parts = {"zygote and template": making, "its own processes": kernels, "agent": agent}
    for name, seconds in {**parts, "all": sum(parts.values())}.items():
        print(f"processor time of one, {name}: {milliseconds(seconds / count)} ms")
    copied = statistics.mean(_faults(pid) for pid in theirs) * len(theirs) / count
    print(f"pages that its processes copied or were given: {copied:.0f}")
    sizes = [proportional(pid) or 0 for pid in theirs]
    print(f"memory of one that is idle, proportional set size: {sum(sizes) / count / MIB:.1f} MiB")


def _last(times: Sequence[float]) -> str:
    return milliseconds(percentile(times, 0.99))


def _faults(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    return int(stat.rpartition(")")[2].split()[7])


async def _end(kernels: Sequence[Kernel]) -> None:
    for kernel in kernels:
        kernel.end("not-needed")
    await gatherResults([kernel.when_ended() for kernel in kernels])


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(prog="python -m bench.making", description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--count", type=int, default=100, help="kernels to make")
    options = parser.parse_args()
    react(lambda reactor: Deferred.fromCoroutine(_measure(reactor, options.count)))


if __name__ == "__main__":
    main()
