"""``python -m sorna.testing.cluster.delay NEAR FAR FROM TO SECONDS``: a wire between two interfaces on which some frames take long.

What is sent from one IPv4 address to another is held back for so many seconds, in order; everything else passes at once, so that
neighbours stay known and other peers feel nothing. For kernels without ``netem``. Runs in a network namespace that has no
addresses, and knows frames only: what Linux has put off (checksums, segmentation) passes as it came.
"""

from __future__ import annotations

import select
import socket
import sys
import time
from collections import deque

# From <linux/if_packet.h> and <linux/if_ether.h>; the socket module does not know them.
_SOL_PACKET, _PACKET_VNET_HDR, _PACKET_IGNORE_OUTGOING = 263, 15, 23
_EVERY_PROTOCOL, _IPV4 = 0x0003, b"\x08\x00"
_HEADER = 10  # bytes of struct virtio_net_hdr before each frame
_LONGEST = 1 << 17


def tap(interface: str) -> socket.socket:
    """Open an interface for whole frames, those of others included, without those that we send ourselves."""
    one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    one.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    one.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    one.bind((interface, _EVERY_PROTOCOL))
    return one


def between(frame: bytes, sender: bytes, receiver: bytes) -> bool:
    """Tell whether a frame with its header is IPv4 from one address to another, each as four bytes."""
    packet = frame[_HEADER:]
    return packet[12:14] == _IPV4 and packet[26:30] == sender and packet[30:34] == receiver


def carry(near: socket.socket, far: socket.socket, sender: str, receiver: str, seconds: float) -> None:
    """Carry frames both ways, until this process is killed."""
    one, other = socket.inet_aton(sender), socket.inet_aton(receiver)
    held: deque[tuple[float, socket.socket, bytes]] = deque()
    across = {near: far, far: near}
    while True:
        wait = max(0.0, held[0][0] - time.monotonic()) if held else None
        for source in select.select([near, far], [], [], wait)[0]:
            frame = source.recv(_LONGEST)
            if between(frame, one, other):
                held.append((time.monotonic() + seconds, across[source], frame))
            else:
                _send(across[source], frame)
        while held and held[0][0] <= time.monotonic():
            _due, to, frame = held.popleft()
            _send(to, frame)


def _send(to: socket.socket, frame: bytes) -> None:
    try:
        to.send(frame)
    except OSError:
        return  # a wire may lose a frame, for instance because the other end is down; who sent it sends it again


if __name__ == "__main__":
    _, here, there, source, target, delay = sys.argv
    ends = tap(here), tap(there)
    sys.stdout.write("carrying\n")
    sys.stdout.flush()
    carry(*ends, source, target, float(delay))
