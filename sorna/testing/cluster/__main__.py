"""``python -m sorna.testing.cluster``: two managers and three agents on one machine, until Ctrl-C. What ``make cluster`` runs.

Knows terminals and signals; the cluster itself is in ``cluster``.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path

from sorna.testing.cluster.cluster import Cluster, make_cluster
from sorna.testing.cluster.network import Loopback, Namespaces, NamespacesUnavailable, Network
from sorna.testing.cluster.parts import PartDidNotStart


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def network_or_loopback() -> Network:
    """Make namespaces, or say why there are none and use loopback."""
    try:
        return Namespaces()
    except NamespacesUnavailable as error:
        say(f"No network namespaces here ({error}): the parts run side by side on loopback, and links cannot be cut.")
        return Loopback()


def described(cluster: Cluster) -> str:
    """Give what a user needs to know, commands included."""
    program = Path(sys.executable).with_name("sorna")
    managers = "\n".join(f"  {one.name}  {one.endpoint}   process {one.pid}" for one in cluster.managers)
    agents = "\n".join(
        f"  {one.name}  {one.address}:{one.port}   {one.agent_id}, process {one.pid}" for one in cluster.agents
    )
    first, second = cluster.managers[0], cluster.managers[-1]
    return f"""
Managers
{managers}
Agents
{agents}
PostgreSQL {cluster.postgres.address}:{cluster.postgres.port}, Redis {cluster.redis.address}:{cluster.redis.port}
Logs: {cluster.folder}/*/log

Run code at the first manager, and look at its kernel from the second:
  export SORNA_STATE_DIR={first.folder / "state"}
  {program} run -t mine python3 -c 'x = 6; print(x * 7)'
  SORNA_ENDPOINT={second.endpoint} {program} run -t mine python3 -c 'print(x)'
Kill a manager or an agent, and see who goes on:
  kill -9 {first.pid}
Check all promises:
  {program} doctor --config {cluster.options_file}

Ctrl-C ends everything and leaves nothing behind."""


def main() -> int:
    """Start the cluster, print how to use it, wait for Ctrl-C or SIGTERM, and end it."""
    parser = argparse.ArgumentParser(prog="python -m sorna.testing.cluster", description=__doc__)
    parser.add_argument("--managers", type=int, default=2, choices=range(1, 10))
    parser.add_argument("--agents", type=int, default=3, choices=range(1, 20))
    parser.add_argument("--loopback", action="store_true", help="make no network namespaces")
    wanted = parser.parse_args()
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: ended.set())
    network = Loopback() if wanted.loopback else network_or_loopback()
    cluster = make_cluster(wanted.managers, wanted.agents, network=network)
    try:
        say(f"Starting {wanted.managers} managers and {wanted.agents} agents...")
        cluster.start()
        say(described(cluster))
        ended.wait()
        say("Ending.")
    except PartDidNotStart as error:
        say(str(error))
        return 1
    finally:
        cluster.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
