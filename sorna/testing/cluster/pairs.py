"""What can happen to the link between two parts, each way by itself, while both talk to everybody else as before.

Knows namespaces on a bridge, and nothing of what the parts say.

Note [Cutting one way between two]
    The sender is told, for ever, an address on the wire that nobody has: the bridge takes what it sends everywhere and nobody
    wants it. The other direction is not touched, and neither side is told anything.

Note [Delaying one way between two]
    The sender's end of the wire is taken off the bridge and put into a namespace of its own, in which ``delay`` carries frames
    between it and a new pair of interfaces, whose other end is on the bridge.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from attrs import define, field

from sorna.testing.cluster.network import NETNS, Link, Namespaces, NamespacesUnavailable, run
from sorna.testing.server import PROJECT

_NOBODY = "02:00:00:00:00:01"


@define
class Pairs:
    """Faults between two parts by name; :meth:`mend` undoes all of them."""

    network: Namespaces
    _cut: list[tuple[Link, Link]] = field(factory=list)
    _delayed: dict[str, subprocess.Popen[str]] = field(factory=dict)

    def cut(self, sender: str, receiver: str) -> None:
        """Drop what one part sends to another; see Note [Cutting one way between two]."""
        one, other = self.network.link(sender), self.network.link(receiver)
        words = ("neighbour", "replace", other.address, "lladdr", _NOBODY, "dev", "eth0", "nud", "permanent")
        run("ip", "-n", one.namespace, *words)
        self._cut.append((one, other))

    def delay(self, sender: str, receiver: str, seconds: float) -> None:
        """Hold back what one part sends to another; see Note [Delaying one way between two]. Once per sender."""
        one, other = self.network.link(sender), self.network.link(receiver)
        wire, near, far = self._wire(one)
        run("ip", "netns", "add", wire)
        run("ip", "link", "add", far, "type", "veth", "peer", "name", near, "netns", wire)
        run("ip", "link", "set", far, "master", self.network.bridge, "up")
        run("ip", "-n", wire, "link", "set", near, "up")
        run("ip", "link", "set", one.outer, "nomaster")
        run("ip", "link", "set", one.outer, "netns", wire)
        run("ip", "-n", wire, "link", "set", one.outer, "up")
        addresses = (one.address, other.address, f"{seconds:g}")
        self._delayed[sender] = process = subprocess.Popen(
            ["nsenter", f"--net={NETNS / wire}", *self._carrier(), one.outer, near, *addresses],
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        if process.stdout is None or process.stdout.readline() != "carrying\n":
            raise NamespacesUnavailable("frames cannot be carried here")

    def mend(self) -> None:
        """Undo everything. Harmless when there is nothing to undo."""
        while self._cut:
            one, other = self._cut.pop()
            run("ip", "-n", one.namespace, "neighbour", "delete", other.address, "dev", "eth0")
        while self._delayed:
            sender, process = self._delayed.popitem()
            process.kill()
            process.communicate()
            one = self.network.link(sender)
            wire, _near, far = self._wire(one)
            run("ip", "-n", wire, "link", "set", one.outer, "netns", str(os.getpid()))
            run("ip", "link", "set", one.outer, "master", self.network.bridge, "up")
            for words in (("link", "delete", far), ("netns", "delete", wire)):
                with contextlib.suppress(NamespacesUnavailable):
                    run("ip", *words)

    def _wire(self, link: Link) -> tuple[str, str, str]:
        """Name the namespace and the pair of a delayed link so that what a killed run leaves of them is found by the next."""
        number = link.outer.partition("-")[2]
        return f"{link.namespace}-wire", f"{link.outer}n", f"{self.network.bridge.replace('sorna', 'sv')}-{number}f"

    @staticmethod
    def _carrier() -> tuple[str, str]:
        return sys.executable, str(Path(__file__).with_name("delay.py"))
