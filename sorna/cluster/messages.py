"""The messages on the link between a manager (DEALER) and an agent (ROUTER): plain msgpack, no code, bounded sizes.

The only module that manager and agent share besides ``model`` and ``errors``. It knows how a message looks, not how it
travels. One ZeroMQ message is one part (after the ROUTER's identity), a msgpack array whose first element is its kind:

* ``["call", id, method, parameters, deadline_ms]``  manager to agent; ``id`` is an int unique per connection
* ``["cancel", id]``                                  manager to agent; the caller is gone
* ``["answer", id, result]`` / ``["error", id, name, detail, exception]``  agent to manager
* ``["event", number, name, parameters]``             agent to manager, repeated until acknowledged
* ``["acknowledge", number]``                         manager to agent

Errors travel by class name (:data:`ERROR_NAMES`), anything else becomes ``AgentFailed`` with the exception as text.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import attrs
import msgpack
from attrs import frozen

from sorna import errors
from sorna.model.kernel import KernelSpec, Usage
from sorna.model.limits import Limits
from sorna.model.run import RunException, RunMode, RunReply, RunRequest, RunStatus

T = TypeVar("T")

MAX_MESSAGE = 24 * 1024 * 1024

ERROR_NAMES: Mapping[str, type[errors.SornaError]] = {
    cls.__name__: cls
    for cls in (
        errors.InvalidRequest,
        errors.KernelNotFound,
        errors.RuntimeUnknown,
        errors.NoAgentAvailable,
        errors.Unavailable,
        errors.AgentRefused,
        errors.AgentTimeout,
        errors.AgentFailed,
    )
}


class MalformedMessage(ValueError):
    """Bytes that are no message of this link."""


@frozen
class Call:
    """A request of a manager. ``deadline`` in seconds from when it is received."""

    id: int
    method: str
    parameters: Mapping[str, Any]
    deadline: float


@frozen
class Cancel:
    """The caller of the call ``id`` is gone; its answer is not wanted."""

    id: int


@frozen
class Answer:
    """The result of a call."""

    id: int
    result: Any


@frozen
class Failed:
    """The error of a call."""

    id: int
    name: str
    detail: str
    exception: str | None


@frozen
class Event:
    """News of an agent."""

    number: int
    name: str
    parameters: Mapping[str, Any]


@frozen
class Acknowledge:
    """An event has been taken care of."""

    number: int


Message = Call | Cancel | Answer | Failed | Event | Acknowledge


def encode(message: Message) -> bytes:
    """Turn a message into the bytes of one ZeroMQ part."""
    match message:
        case Call():
            row: list[Any] = [
                "call",
                message.id,
                message.method,
                dict(message.parameters),
                round(message.deadline * 1000),
            ]
        case Cancel():
            row = ["cancel", message.id]
        case Answer():
            row = ["answer", message.id, message.result]
        case Failed():
            row = ["error", message.id, message.name, message.detail, message.exception]
        case Event():
            row = ["event", message.number, message.name, dict(message.parameters)]
        case Acknowledge():
            row = ["acknowledge", message.number]
    packed: bytes = msgpack.packb(row, use_bin_type=True)
    return packed


def decode(raw: bytes) -> Message:
    """Read a message; nothing of the sender is trusted.

    :raises MalformedMessage: for anything that :func:`encode` would not write.
    """
    if len(raw) > MAX_MESSAGE:
        raise MalformedMessage(f"message of {len(raw)} bytes")
    try:
        row = msgpack.unpackb(raw, raw=False, strict_map_key=True, max_buffer_size=MAX_MESSAGE)
    except (ValueError, msgpack.UnpackException) as error:
        raise MalformedMessage(str(error)) from error
    match row:
        case ["call", int(id_), str(method), dict(parameters), int(deadline)] if deadline > 0:
            return Call(id_, method, parameters, deadline / 1000)
        case ["cancel", int(id_)]:
            return Cancel(id_)
        case ["answer", int(id_), result]:
            return Answer(id_, result)
        case ["error", int(id_), str(name), str(detail), None | str() as exception]:
            return Failed(id_, name, detail, exception)
        case ["event", int(number), str(name), dict(parameters)]:
            return Event(number, name, parameters)
        case ["acknowledge", int(number)]:
            return Acknowledge(number)
        case _:
            raise MalformedMessage("not a message of this link")


def error_to_failed(call_id: int, error: BaseException) -> Failed:
    """Describe an exception for the other end."""
    name = type(error).__name__
    if isinstance(error, errors.AgentFailed):
        return Failed(call_id, name, error.detail, error.exception)
    if isinstance(error, errors.SornaError) and name in ERROR_NAMES:
        return Failed(call_id, name, error.detail, None)
    return Failed(call_id, "AgentFailed", "Agent-side exception occurred.", f"{name}{error.args!r}"[:1000])


def failed_to_error(failed: Failed) -> errors.SornaError:
    """Rebuild the exception that the other end described."""
    cls = ERROR_NAMES.get(failed.name, errors.AgentFailed)
    if cls is errors.AgentFailed:
        return errors.AgentFailed(failed.detail, failed.exception)
    return cls(failed.detail)


def pack_value(value: Any) -> dict[str, Any]:
    """Turn a frozen value of the model into a map of plain values."""
    return attrs.asdict(value, value_serializer=_plain)


def _plain(_instance: Any, _attribute: Any, value: Any) -> Any:
    if isinstance(value, uuid.UUID):
        return value.bytes
    return value


def unpack_limits(raw: Mapping[str, Any]) -> Limits:
    """Read limits; unknown names are an error."""
    return _build(Limits, raw)


def unpack_spec(raw: Mapping[str, Any]) -> KernelSpec:
    """Read what a kernel shall be."""
    return _build(KernelSpec, {**raw, "limits": unpack_limits(raw.get("limits", {}))})


def unpack_usage(raw: Mapping[str, Any]) -> Usage:
    """Read what a kernel used."""
    return _build(Usage, raw)


def unpack_run_request(raw: Mapping[str, Any]) -> RunRequest:
    """Read a call to execute."""
    return _build(RunRequest, {**raw, "mode": RunMode(raw["mode"])})


def unpack_run_reply(raw: Mapping[str, Any]) -> RunReply:
    """Read a piece of a run's output."""
    return _build(
        RunReply,
        {
            **raw,
            "status": RunStatus(raw["status"]),
            "console": tuple((kind, content) for kind, content in raw["console"]),
            "exceptions": tuple(_build(RunException, one) for one in raw["exceptions"]),
        },
    )


def unpack_kernel_id(raw: Any) -> uuid.UUID:
    """Read a kernel id (16 bytes)."""
    if not isinstance(raw, bytes) or len(raw) != 16:
        raise MalformedMessage("a kernel id is 16 bytes")
    return uuid.UUID(bytes=raw)


def _build(cls: Callable[..., T], raw: Mapping[str, Any]) -> T:
    try:
        return cls(**raw)
    except TypeError as error:
        raise MalformedMessage(f"not a {getattr(cls, '__name__', 'value')}: {error}") from error
