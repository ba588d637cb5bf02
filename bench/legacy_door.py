"""The ZeroMQ door under load: a million frames of garbage, and 50 clients while one creates slowly.

``python bench/legacy_door.py [--frames N] [--clients N] [--seed N]`` (no frames: 0) starts a server of its own and prints how the garbage was
answered and what it left behind in memory, and how long PINGs took meanwhile. Exit status 1 when a frame stayed unanswered,
memory grew by more than 16 MiB, or the 99th percentile of the PINGs was above 20 ms.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from pathlib import Path

from sorna.testing.legacy import Context, LegacyClient, Pings, legacy_context, ping_together, throw_garbage
from sorna.testing.server import RunningServer, running_server

PIECE = 50_000
MOST_GROWTH = 16.0
MOST_PING = 20.0
SESSION = {"action": 2, "user_id": "bench", "entry_id": "slow", "lang": "python3"}


def memory(pid: int) -> float:
    """Give the resident memory of a process in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024 / 1024


def descriptors(pid: int) -> int:
    """Count the open descriptors of a process."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def show(title: str, pings: Pings) -> None:
    """Print a distribution."""
    row = " ".join(f"{name} {pings.part(share):.2f}" for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)))
    print(f"{title}: {row} ms ({len(pings.times)} PINGs)", flush=True)


def ping_meanwhile(context: Context, port: int, over: threading.Event, times: list[float]) -> None:
    """PING every 50 ms until it is over."""
    client = LegacyClient(context, port)
    while not over.wait(0.05):
        times += ping_together([client], 1, pause=0.0).times
    client.socket.close()


def bench_garbage(server: RunningServer, context: Context, frames: int, seed: int) -> bool:
    """Throw garbage at both ports in turn."""
    ports = (server.manager_port, server.execution_port)
    for port in ports:
        throw_garbage(context, port, min(frames, 10_000), seed)
    before, open_before = memory(server.pid), descriptors(server.pid)
    over, times = threading.Event(), list[float]()
    watcher = threading.Thread(target=ping_meanwhile, args=(context, server.manager_port, over, times))
    watcher.start()
    started, answered, sent = time.perf_counter(), 0, 0
    while sent < frames:
        count = min(PIECE, frames - sent)
        answered += throw_garbage(context, ports[sent // PIECE % 2], count, seed + sent)
        sent += count
        print(f"  {answered:,} of {sent:,} answered, {memory(server.pid):.1f} MiB", flush=True)
    took = time.perf_counter() - started
    over.set()
    watcher.join()
    grown = memory(server.pid) - before
    print(f"garbage: {answered:,} of {frames:,} frames answered in {took:.0f} s ({frames / took:,.0f} per second)")
    print(
        f"  memory {before:.1f} MiB, grown by {grown:.1f} MiB; descriptors {open_before} to {descriptors(server.pid)}"
    )
    show("  PINGs of another client meanwhile", Pings(sorted(times)))
    return answered == frames and grown < MOST_GROWTH


def bench_slow_creation(server: RunningServer, context: Context, count: int) -> bool:
    """Let one client wait for a kernel of a stopped agent, and the others PING."""
    creator, *others = [LegacyClient(context, server.manager_port) for _ in range(count)]
    ping_together(others, 20)
    show(f"{count - 1} clients at once, nothing else going on", ping_together(others, 100))
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text(encoding="ascii").split()
    [agent] = [int(pid) for pid in children if b"sorna.agent" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(agent, signal.SIGSTOP)
    try:
        creator.socket.send_json(SESSION)
        pings = ping_together(others, 200)
        waiting = creator.socket.poll(0) == 0
    finally:
        os.kill(agent, signal.SIGCONT)
    show("  while the 50th waits for its kernel", pings)
    print(f"  it still waited then: {waiting}; in the end: {creator.socket.recv_json()}")
    for client in (creator, *others):
        client.socket.close()
    return waiting and pings.part(0.99) < MOST_PING


def main() -> int:
    """Run both; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seed", type=int, default=20161025)
    arguments = parser.parse_args()
    with running_server() as server, legacy_context() as context:
        fine = bench_slow_creation(server, context, arguments.clients)
        if arguments.frames:
            fine = bench_garbage(server, context, arguments.frames, arguments.seed) and fine
        print(f"the door still serves: {LegacyClient(context, server.manager_port).ask({'action': 0, 'body': 1})}")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
