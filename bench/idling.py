"""What kernels cost that do nothing: memory of each, processor of many, and what the manager keeps of those that are gone."""

from __future__ import annotations

import contextlib
import itertools
import select
import time
from collections.abc import Sequence

from attrs import evolve

from bench.client import Connection, WebSocket
from bench.creating import come_and_go
from bench.figures import Row, most_row, not_measured, percentile
from bench.parts import Settings, run_alone
from bench.processes import MIB, descendants, pid_namespace, proportional, resident
from bench.session import Failed, Session
from bench.wire import TEXT

KERNELS = 50
IDLE_KERNELS, IDLE_SOCKETS, IDLE_SECONDS = 500, 1000, 20.0
# Until shells have started and the agent has made again, or let go, what it keeps ready.
SETTLED = 15.0
CHURN_PATIENCE = 120.0
WARM_UP = 300
#: MiB by which a manager may have grown and still be called flat.
FLAT = 8.0
MB = 1e6
_NO_PID = "which process the server is, is not known: --pid"
_WHERE_AM_I = "import os, numpy, pandas; print(os.readlink('/proc/self/ns/pid'))"


def memory(session: Session, settings: Settings) -> list[Row]:
    """Add up the proportional memory of all processes in each kernel's own namespace of process ids."""
    what, goal = "memory per idle kernel, libraries imported (proportional set size)", "8 MB"
    if not session.server.pid:
        return [not_measured(what, goal, _NO_PID)]
    with session.kernels(settings.scaled(KERNELS)) as kernels:
        namespaces = dict.fromkeys(_namespaces(session, kernels), 0)
        time.sleep(1.0)
        counted = 0
        for pid in descendants(session.server.pid):
            namespace, size = pid_namespace(pid), proportional(pid)
            if namespace in namespaces and size is not None:
                namespaces[namespace] += size
                counted += 1
        sizes = [size / MB for size in namespaces.values()]
    if len(namespaces) != len(kernels) or not all(sizes):
        why = "kernels share their namespace of process ids, or their memory may not be looked at (run it as root)"
        return [not_measured(what, goal, why)]
    note = (
        f"median of {len(sizes)} kernels that have imported numpy and pandas and then done nothing for a second, "
        f"{counted / len(sizes):g} processes each; the largest {max(sizes):.1f} MB"
    )
    return [most_row(what, percentile(sizes, 0.5), 8, " MB", notes=[note])]


def _namespaces(session: Session, kernels: Sequence[str]) -> list[str]:
    with contextlib.closing(Connection(session.endpoint)) as connection:
        answers = [connection.ask(session.run(kernel, _WHERE_AM_I)) for kernel in kernels]
    try:
        return ["".join(text for _kind, text in answer.json["result"]["console"]).strip() for answer in answers]
    except (KeyError, TypeError, ValueError) as error:
        raise Failed(f"a kernel does not say where it is: {answers[0].body[:300]!r}") from error


def idle(session: Session, settings: Settings) -> list[Row]:
    """Let kernels and sockets be, answer pings, and see what processor the whole tree of processes took meanwhile.

    Half of the sockets tell of a kernel's life, the others show a terminal with its shell.
    """
    count, most = settings.scaled(IDLE_KERNELS), settings.scaled(IDLE_SOCKETS)
    seconds = max(5.0, IDLE_SECONDS * settings.scale)
    what = f"{count} idle kernels, {most:,} idle WebSockets: processor of server, databases, agent and kernels"
    if not session.server.pid:
        return [not_measured(what, "below 5 % of a core", _NO_PID)]
    with session.kernels(count) as kernels, contextlib.ExitStack() as stack:
        paths = itertools.cycle([f"/stream/kernel/{kernel}/{kind}" for kind in ("events", "pty") for kernel in kernels])
        sockets = [
            stack.enter_context(contextlib.closing(WebSocket(session.endpoint, session.signer.handshake(path))))
            for path, _ in zip(paths, range(most), strict=False)
        ]
        _idle(sockets, SETTLED)
        processes = len(descendants(session.server.pid))
        before = session.used()
        began = time.perf_counter()
        lost = _idle(sockets, seconds)
        elapsed = time.perf_counter() - began
        shares = {name: (used - before[name]) / elapsed * 100 for name, used in session.used().items()}
        alive = session.alive(kernels)
    told = ", ".join(f"{name} {share:.1f} %" for name, share in shares.items())
    note = (
        f"over {elapsed:.0f} s, {processes:,} processes: {told}; {lost} sockets were lost, "
        f"{alive} of {count} kernels run code afterwards"
    )
    row = most_row(what, sum(shares.values()), 5, " % of a core", notes=[note])
    return (
        [row]
        if not lost and alive == count
        else [row, Row("kernels and sockets lost while idle", "0", f"{count - alive} and {lost}", met=False)]
    )


def _idle(sockets: Sequence[WebSocket], seconds: float) -> int:
    """Answer pings for a while and give how many sockets were lost."""
    lost = 0
    by_descriptor = {socket.fileno(): socket for socket in sockets}
    with contextlib.closing(select.epoll()) as poller:
        for descriptor in by_descriptor:
            poller.register(descriptor, select.EPOLLIN)
        end = time.perf_counter() + seconds
        while (left := end - time.perf_counter()) > 0:
            for descriptor, _event in poller.poll(left):
                frames = by_descriptor[descriptor].waiting()
                if any(opcode != TEXT for opcode, _payload in frames):
                    poller.unregister(descriptor)
                    lost += 1
    return lost


def churn(session: Session, settings: Settings) -> list[Row]:
    """Let kernels come and go, and compare the manager's memory; in the time that a bench has."""
    wanted = settings.scaled(settings.churn)
    what = "manager's memory after {:,} kernels came and went"
    if not session.server.pid:
        return [not_measured(what.format(wanted), "flat", _NO_PID)]
    come_and_go(session, deadline=time.perf_counter() + CHURN_PATIENCE, most=settings.scaled(WARM_UP))
    before = resident(session.server.pid)
    agent = session.agent
    agent_before = resident(agent) if agent else 0
    deadline = time.perf_counter() + CHURN_PATIENCE
    count, effort = come_and_go(session, deadline=deadline, most=wanted)
    after = resident(session.server.pid)
    told = f"in {effort.seconds:.0f} s"
    if count < wanted:
        told += f", as many as there was time for; {wanted:,} are meant"
    note = (
        f"{told}; the manager had {before / MIB:.1f} MiB and has {after / MIB:.1f} MiB, the agent "
        f"{agent_before / MIB:.1f} MiB and {(resident(agent) if agent else 0) / MIB:.1f} MiB"
    )
    row = most_row(what.format(count), (after - before) / MIB, FLAT, " MiB more", client=effort.share, notes=[note])
    # Fewer than were to come say nothing of those that did not.
    return [row if count >= wanted else evolve(row, met=None)]


PARTS = {"memory": memory, "idle": idle, "churn": churn}

if __name__ == "__main__":
    run_alone(PARTS)
