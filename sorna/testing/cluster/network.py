"""Where the parts of a test cluster run: each in a network namespace of its own on one bridge, or all on loopback.

Knows ``ip`` and ``tc`` and nothing of the parts. What a killed run left behind, the next one removes.

Note [Cutting a link one way]
    A queue that may hold one byte drops every packet, and every kernel with traffic control has ``bfifo``. Put on the
    end of the pair that is in the namespace it drops what the part sends, on the bridge's end what is sent to it. Neither
    side is told anything, as when a switch dies.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

from attrs import define, field

from sorna.testing.server import free_ports

Direction = Literal["from", "to", "both"]
NETNS = Path("/run/netns")
_PREFIX = "sorna"
_LETTERS = itertools.cycle("ghijklmnopqrstuvwxyz")


class NamespacesUnavailable(Exception):
    """This machine does not let us make network namespaces; the text says why."""


class Network(Protocol):
    """A place for parts."""

    def place(self, name: str, port: int) -> tuple[Sequence[str], str, int]:
        """Make a place for a part: the words before its command, its address, and the port it is to use."""
        ...

    def cut(self, name: str, direction: Direction) -> None:
        """Drop what a part sends, what is sent to it, or both, until :meth:`mend`.

        :raises NamespacesUnavailable: the parts share one loopback, which cannot be cut.
        """
        ...

    def slow(self, name: str, bits_per_second: int) -> None:
        """Let what is sent to a part and what it sends pass at this rate only, until :meth:`mend`. Raises as :meth:`cut`."""
        ...

    def mend(self, name: str) -> None:
        """Undo cuts and slowness of a part's link; harmless when there are none."""
        ...

    def close(self) -> None:
        """Remove all that was made; the parts must have ended."""
        ...


class Loopback:
    """All parts side by side on 127.0.0.1, with ports that were free a moment ago."""

    def place(self, _name: str, _port: int) -> tuple[Sequence[str], str, int]:
        """Give a free port."""
        return (), "127.0.0.1", free_ports(1)[0]

    def cut(self, name: str, _direction: Direction) -> None:
        """Refuse."""
        raise NamespacesUnavailable(f"{name} is on loopback, which cannot be cut")

    def slow(self, name: str, _bits_per_second: int) -> None:
        """Refuse."""
        raise NamespacesUnavailable(f"{name} is on loopback, which cannot be slowed")

    def mend(self, name: str) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


@define
class _Link:
    """One part's place: its namespace, and the bridge's end of its pair of interfaces."""

    namespace: str
    outer: str
    address: str
    slowed: bool = False
    cut: bool = False


@define
class Namespaces:
    """A bridge of our own, a namespace per part, and this process's own address on the bridge.

    :raises NamespacesUnavailable: no root, no ``ip``, or the kernel refuses.
    """

    _id: str = field(init=False)
    _net: str = field(init=False)
    _links: dict[str, _Link] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        """Make the bridge."""
        if os.geteuid() != 0:
            raise NamespacesUnavailable("network namespaces take root")
        missing = [program for program in ("ip", "tc", "nsenter") if shutil.which(program) is None]
        if missing:
            raise NamespacesUnavailable(f"{' and '.join(missing)} not installed (iproute2, util-linux)")
        remove_leftovers()
        # The number of this process tells a later run whether what it finds still has an owner; a letter that is no
        # digit of it tells apart what one process makes.
        self._id = f"{os.getpid():x}{next(_LETTERS)}"
        self._net = _free_net()
        try:
            _ip("link", "add", self.bridge, "type", "bridge")
            _ip("address", "add", f"{self._net}.1/24", "dev", self.bridge)
            _ip("link", "set", self.bridge, "up")
        except NamespacesUnavailable:
            self.close()
            raise

    @property
    def bridge(self) -> str:
        """The name of the bridge."""
        return f"{_PREFIX}{self._id}"

    def place(self, name: str, port: int) -> tuple[Sequence[str], str, int]:
        """Make a namespace on the bridge; the port is as asked, since nobody else is there."""
        number = len(self._links) + 2
        namespace, outer = f"{_PREFIX}-{self._id}-{name}", f"sv{self._id}-{number}"
        link = self._links[name] = _Link(namespace, outer, f"{self._net}.{number}")
        _ip("netns", "add", namespace)
        _ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _ip("link", "set", outer, "master", self.bridge, "up")
        _ip("-n", namespace, "link", "set", "lo", "up")
        _ip("-n", namespace, "address", "add", f"{link.address}/24", "dev", "eth0")
        _ip("-n", namespace, "link", "set", "eth0", "up")
        # Not "ip netns exec": that mounts another /sys, and agents need the control groups in it.
        return ("nsenter", f"--net={NETNS / namespace}"), link.address, port

    def cut(self, name: str, direction: Direction) -> None:
        """See Note [Cutting a link one way]."""
        link = self._links[name]
        link.cut = True
        for end in self._ends(link, direction):
            _run("tc", *end, "root", "bfifo", "limit", "1")

    def slow(self, name: str, bits_per_second: int) -> None:
        """Let packets wait for their turn; up to 10 MB of them."""
        link = self._links[name]
        link.slowed = True
        for end in self._ends(link, "both"):
            _run("tc", *end, "root", "tbf", "rate", f"{bits_per_second}bit", "burst", "4kb", "limit", "10mb")

    def mend(self, name: str) -> None:
        """Take the queues away again."""
        link = self._links[name]
        if link.cut or link.slowed:
            link.cut = link.slowed = False
            for end in self._ends(link, "both"):
                words = ["del" if word == "replace" else word for word in end]
                with contextlib.suppress(NamespacesUnavailable):  # the other end had none
                    _run("tc", *words, "root")

    def _ends(self, link: _Link, direction: Direction) -> list[list[str]]:
        inner = ["-n", link.namespace, "qdisc", "replace", "dev", "eth0"]
        outer = ["qdisc", "replace", "dev", link.outer]
        return {"from": [inner], "to": [outer], "both": [inner, outer]}[direction]

    def close(self) -> None:
        """Remove the pairs, the namespaces and the bridge."""
        for link in self._links.values():
            # The kernel removes a namespace and what is in it some time after its last process.
            for words in (("link", "delete", link.outer), ("netns", "delete", link.namespace)):
                with contextlib.suppress(NamespacesUnavailable):
                    _ip(*words)
        self._links.clear()
        with contextlib.suppress(NamespacesUnavailable):
            _ip("link", "delete", self.bridge)


def remove_leftovers() -> None:
    """Remove what runs that were killed have left: namespaces and bridges whose process is no more."""
    for path in sorted(NETNS.glob(f"{_PREFIX}-*-*")) if NETNS.is_dir() else ():
        if not _owned(path.name.split("-")[1]):
            with contextlib.suppress(NamespacesUnavailable):
                _ip("netns", "delete", path.name)
    for path in Path("/sys/class/net").glob("sv*-*"):
        if not _owned(path.name.removeprefix("sv").partition("-")[0]):
            with contextlib.suppress(NamespacesUnavailable):
                _ip("link", "delete", path.name)
    for path in Path("/sys/class/net").glob(f"{_PREFIX}*"):
        if (path / "bridge").is_dir() and not _owned(path.name.removeprefix(_PREFIX)):
            with contextlib.suppress(NamespacesUnavailable):
                _ip("link", "delete", path.name)


def _owned(text: str) -> bool:
    try:
        return Path(f"/proc/{int(text[:-1], 16)}").exists()
    except ValueError:
        return True  # not a name of ours


def _free_net() -> str:
    """Draw a /24 of the private range that this host has no route into."""
    routes = subprocess.run(["ip", "-4", "route"], capture_output=True, text=True, check=False).stdout
    for _ in range(100):
        net = f"10.{secrets.randbelow(128) + 100}.{secrets.randbelow(256)}"
        if f"{net}." not in routes:
            return net
    raise NamespacesUnavailable("no free addresses were found")


def _ip(*words: str) -> None:
    _run("ip", *words)


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=20)
    if done.returncode != 0:
        raise NamespacesUnavailable(f"{' '.join(words)}: {done.stderr.strip()}")
