"""The messages between the agent and its zygotes, over one ``SOCK_SEQPACKET`` pair per zygote.

Standard library only: it is loaded on both sides. One packet is one JSON object; descriptors travel beside it. Knows how a
message looks; may not know what anyone does about it.

Agent to zygote:

=============  ==========================================================================================
configure      first packet: :class:`Configuration`; answered by ``ready`` or ``unavailable``
spawn          :class:`Request`, with the kernel's end of its channel as descriptor
=============  ==========================================================================================

Zygote, or the kernel's first process before it runs anything of the user's, to agent:

=============  ==========================================================================================
ready          ``{"notes": [sentences for the log]}``
unavailable    ``{"detail"}``: this zygote can never work; it exits
cloned         ``{"id", "pid"}`` with a pidfd: the process to signal
started        ``{"id"}``, maybe with ``pid`` of init when that is another, and with a descriptor of the scratch space
failed         ``{"id", "step", "errno", "detail"}``: ``exited`` follows
exited         ``{"id", "status", "cpu_ms", "counters": [...]}``: everything of the kernel is gone
=============  ==========================================================================================

The agent says nothing to end a zygote: it closes the socket.
"""

import array
import contextlib
import json
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sorna.agent.sandbox.cgroups import Hierarchy

MAX_PACKET = 128 * 1024
_MAX_DESCRIPTORS = 32

# As plain numbers: their own class takes longer for a combination than the calls that want it.
_NOW = int(socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
_CUT = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)

NAMESPACES = "namespaces"
NONE = "none"


class WireError(Exception):
    """The peer sent what is no message, or more than one packet can hold."""


class Configuration(NamedTuple):
    """What one zygote is.

    :ivar tier: ``namespaces`` or ``none``.
    :ivar entry: ``module:function``, called in each kernel with its channel's descriptor; a function ``prepare`` of the same
        module is called once in the zygote.
    :ivar trees: rows of :class:`Hierarchy`.
    :ivar identities: whether each request brings a user id, because the agent is a root that has ids to give.
    """

    tier: str
    entry: str
    preload: Sequence[str]
    read_only: Sequence[str]
    trees: Sequence[Sequence[Any]]
    home: str
    identities: bool

    def hierarchies(self) -> tuple[Hierarchy, ...]:
        """Give the trees as values."""
        return tuple(Hierarchy(*tree) for tree in self.trees)


class Request(NamedTuple):
    """One kernel to make.

    :ivar uid: the host's user id for it when the agent has ids to give; else -1.
    :ivar probe: go through every step and exit with 0 instead of calling the entry.
    :ivar folders: rows of :class:`sorna.agent.sandbox.folders.Shown`.
    :ivar devices: paths of device nodes of the host that the kernel sees in its ``/dev``.
    """

    id: int
    kernel_id: str
    uid: int
    hostname: str
    environ: Mapping[str, str]
    memory: int
    processes: int
    cpu_cores: float
    file_size: int
    scratch_size: int
    open_files: int
    probe: bool = False
    folders: Sequence[Sequence[Any]] = ()
    devices: Sequence[str] = ()


def pack(op: str, body: Mapping[str, Any]) -> bytes:
    """Write one packet.

    :raises WireError: it would be larger than a packet may be.
    """
    packet = json.dumps({"op": op, **body}, separators=(",", ":")).encode()
    if len(packet) > MAX_PACKET:
        raise WireError(f"a message of {len(packet)} bytes")
    return packet


def unpack(packet: bytes) -> tuple[str, dict[str, Any]]:
    """Read one packet.

    :raises WireError: it is no message.
    """
    try:
        body = json.loads(packet)
        op = body.pop("op")
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise WireError(f"not a message: {error}") from error
    if not isinstance(op, str):
        raise WireError("not a message: op is no text")
    return op, body


def send(sock: socket.socket, packet: bytes, descriptors: Sequence[int] = ()) -> None:
    """Send one packet; raises BlockingIOError like the socket does."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    sock.sendmsg([packet], ancillary)


def receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """Receive one packet, without waiting, and the descriptors beside it, closed on exec. Empty bytes mean the end.

    :raises BlockingIOError: nothing is there.
    :raises WireError: it was larger than a packet may be.
    """
    room = socket.CMSG_SPACE(_MAX_DESCRIPTORS * 4)
    packet, ancillary, flags, _address = sock.recvmsg(MAX_PACKET, room, _NOW)
    received = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            received.frombytes(content[: len(content) - len(content) % received.itemsize])
    if flags & _CUT:
        close_all(received)
        raise WireError("a packet that does not fit")
    return packet, list(received)


def close_all(descriptors: Sequence[int]) -> None:
    """Close descriptors that nobody wants; those that are closed already do not matter."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
