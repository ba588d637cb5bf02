"""The ZeroMQ door over real sockets in this process, with kernels in memory behind it: where its own tests start."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import zmq
from twisted.internet import reactor as global_reactor  # noqa: TID251 - a test of real sockets runs on the real one
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from sorna.legacy.access import Access
from sorna.legacy.service import Curve, LegacyDoor, Place
from sorna.model.keypair import Keypair
from sorna.testing.gateway import MemoryKeypairs, MemoryOperations
from sorna.testing.kernels import MemoryKernels
from sorna.zeromq import Socket, Sockets

reactor: Any = global_reactor  # Twisted types it as the union of everything that a reactor may be
OWNER = "AKIA" + "O" * 16
SESSION = {"action": 2, "user_id": "u", "entry_id": "e", "lang": "python3"}


class Client:
    """A DEALER, which may ask many things at once; each question has its own number in the envelope."""

    def __init__(self, sockets: Sockets, port: int, ready: Callable[[Socket], None] = lambda _socket: None) -> None:
        self._waiting: dict[bytes, Deferred[dict[str, Any]]] = {}
        self._count = 0
        self.stray: list[list[bytes]] = []
        self.socket = Socket(sockets, zmq.DEALER, self._receive)
        ready(self.socket)
        self.socket.socket.connect(f"tcp://127.0.0.1:{port}")

    def ask(self, message: Any) -> Deferred[dict[str, Any]]:
        """Send a request and give its reply; bytes are sent as they are."""
        self._count += 1
        number = str(self._count).encode()
        self._waiting[number] = Deferred()
        raw = message if isinstance(message, bytes) else json.dumps(message).encode()
        self.socket.send([number, b"", raw])
        return self._waiting[number].addTimeout(10, reactor)

    def _receive(self, parts: list[zmq.Frame]) -> None:
        frames = [part.bytes for part in parts]
        waiting = self._waiting.pop(frames[0], None)
        if waiting is None:
            self.stray.append(frames)
        else:
            assert frames[1:-1] == [b""], frames
            waiting.callback(json.loads(frames[-1]))


class DoorTestCase(TestCase):
    """A door on loopback ports, and the sockets of clients."""

    interface = "127.0.0.1"
    override: str | None = None
    curve: Curve | None = None

    def setUp(self) -> None:
        self.kernels = MemoryKernels(reactor, concurrency_limit=3)
        self.keypairs = MemoryKeypairs(Keypair(OWNER, "s" * 40))
        self.operations = MemoryOperations()
        self.listeners: list[Callable[[str], None]] = []
        self.access = self.make_access()
        self.door = self.open_door()
        self.sockets = Sockets(reactor)
        self.addCleanup(self.sockets.shutdown)

    def make_access(self) -> Access:
        """Say who pays."""
        return Access(self.keypairs, OWNER)

    def open_door(self) -> LegacyDoor:
        """Start a door; it stops with the test."""
        door = LegacyDoor(
            reactor,
            reactor,
            Place(self.interface, 0, 0, self.override),
            kernels=self.kernels,
            access=self.access,
            operations=self.operations,
            changes=self.subscribe,
            curve=self.curve,
        )
        door.startService()
        self.addCleanup(lambda: door.stopService() if door.running else None)
        return door

    def subscribe(self, receive: Callable[[str], None]) -> Callable[[], None]:
        """Keep whoever wants to hear of changes."""
        self.listeners.append(receive)
        return lambda: self.listeners.remove(receive)

    def manager(self, **options: Any) -> Client:
        """Connect to the manager's port."""
        return Client(self.sockets, self.door.manager_port, **options)

    def execution(self) -> Client:
        """Connect to the execution address."""
        return Client(self.sockets, self.door.execution_port)

    async def eventually(self, holds: Callable[[], bool], what: str = "") -> None:
        """Wait until something is so."""
        for _ in range(500):
            if holds():
                return
            await deferLater(reactor, 0.01)
        self.fail(f"it did not become so: {what}")
