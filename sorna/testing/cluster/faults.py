"""What can happen to a cluster, as things to do to it: each breaks one part, waits, and mends it again.

Knows parts and links, and nothing of what runs on them. ``happen`` returns when the part is back.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence

from attrs import frozen

from sorna.testing.cluster.cluster import Cluster
from sorna.testing.cluster.network import Direction, Namespaces
from sorna.testing.cluster.parts import Part


@frozen
class Fault:
    """One thing that happens.

    :ivar kind: what it is counted as. :ivar happen: does it, and returns when the part is back.
    :ivar seconds: how long the part is away; None where that is not drawn.
    """

    kind: str
    happen: Callable[[], None]
    seconds: float | None = None

    @property
    def name(self) -> str:
        """What is printed when it happens."""
        return self.kind if self.seconds is None else f"{self.kind} for {self.seconds:.1f} s"


_WAYS: Mapping[Direction, str] = {"from": "from", "to": "to", "both": "from and to"}


def kill(part: Part, away: float) -> Fault:
    """``kill -9`` a part, and start it again after ``away`` seconds."""

    def happen() -> None:
        part.kill()
        time.sleep(away)
        part.start()

    return Fault(f"kill -9 {part.name}", happen, away)


def restart(part: Part, away: float) -> Fault:
    """Stop a part in order, and start it again."""

    def happen() -> None:
        part.stop()
        time.sleep(away)
        part.start()

    return Fault(f"restart {part.name}", happen, away)


def freeze(part: Part, away: float) -> Fault:
    """Stop a part in the middle of what it does, and let it go on."""

    def happen() -> None:
        part.freeze()
        time.sleep(away)
        part.thaw()

    return Fault(f"freeze {part.name}", happen, away)


def empty_redis(cluster: Cluster, away: float) -> Fault:
    """Restart Redis with nothing in it."""

    def happen() -> None:
        cluster.redis.stop()
        cluster.redis.empty()
        time.sleep(away)
        cluster.redis.start()

    return Fault("restart redis empty", happen, away)


def kill_backends(cluster: Cluster) -> Fault:
    """Kill a process that serves a client, whereupon PostgreSQL ends all connections and recovers."""

    def happen() -> None:
        cluster.postgres.kill_backends()

    return Fault("kill a backend of postgres", happen)


def cut(cluster: Cluster, part: Part, direction: Direction, away: float) -> Fault:
    """Cut the link of a part one way or both."""

    def happen() -> None:
        cluster.network.cut(part.name, direction)
        time.sleep(away)
        cluster.network.mend(part.name)

    return Fault(f"cut the link {_WAYS[direction]} {part.name}", happen, away)


def possible(cluster: Cluster, dice: random.Random) -> Sequence[Callable[[], Fault]]:
    """List what can happen here; each call of one draws its details anew."""
    managers, agents = cluster.managers, cluster.agents
    away = dice.uniform
    faults: list[Callable[[], Fault]] = [
        lambda: kill(dice.choice(managers), away(0, 3)),
        lambda: freeze(dice.choice(managers), away(1, 6)),
        lambda: kill(dice.choice(agents), away(0, 3)),
        lambda: freeze(dice.choice(agents), away(1, 6)),
        lambda: empty_redis(cluster, away(0, 3)),
        lambda: freeze(cluster.redis, away(1, 6)),
        lambda: restart(cluster.postgres, away(0, 3)),
        lambda: kill(cluster.postgres, away(0, 3)),
        lambda: kill_backends(cluster),
    ]
    if isinstance(cluster.network, Namespaces):
        ways: Sequence[Direction] = ("from", "to", "both")
        faults.append(lambda: cut(cluster, dice.choice([*managers, *agents]), dice.choice(ways), away(1, 6)))
        faults.append(
            lambda: cut(cluster, dice.choice([cluster.redis, cluster.postgres]), dice.choice(ways), away(1, 6))
        )
    return faults
