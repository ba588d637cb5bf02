# The part of txZMQ 1.0 that Sorna uses; read from its sources.
from typing import Any

import zmq
from twisted.internet.interfaces import IDelayedCall, IReadDescriptor
from zope.interface import implementer

class ZmqFactory:
    reactor: Any
    ioThreads: int
    lingerPeriod: int
    connections: set[ZmqConnection]
    context: zmq.Context[zmq.Socket[bytes]]
    def __init__(self) -> None: ...
    def shutdown(self) -> None: ...

@implementer(IReadDescriptor)
class ZmqConnection:
    socketType: int
    highWaterMark: int
    reconnectInterval: int
    reconnectIntervalMax: int
    factory: ZmqFactory
    socket: zmq.Socket[bytes]
    read_scheduled: IDelayedCall | None
    def __init__(self, factory: ZmqFactory, endpoint: None = None, identity: bytes | None = None) -> None: ...
    def shutdown(self) -> None: ...
    def doRead(self) -> None: ...
    def fileno(self) -> int: ...
    def connectionLost(self, reason: Any) -> None: ...
    def logPrefix(self) -> str: ...
