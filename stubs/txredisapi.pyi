from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol

class RedisError(Exception): ...
class ConnectionError(RedisError): ...  # noqa: A001 - the driver's own name
class ResponseError(RedisError): ...

class BaseRedisProtocol(Protocol):
    callLater: Any
    def __init__(
        self,
        charset: str | None = ...,
        errors: str = ...,
        replyTimeout: float | None = ...,
        password: str | None = ...,
        dbid: int | None = ...,
        convertNumbers: bool = ...,
        username: str | None = ...,
    ) -> None: ...
    connected: int
    def replyReceived(self, reply: Any) -> None: ...
    def whenDisconnected(self) -> Deferred[Any]: ...

# With hiredis installed, a subclass that parses with it.
class RedisProtocol(BaseRedisProtocol): ...
