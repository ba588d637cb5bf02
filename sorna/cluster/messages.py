"""The messages on the link between a manager (DEALER) and an agent (ROUTER): plain msgpack, no code, bounded sizes.

The only module, with ``building``, that manager and agent share besides ``model`` and ``errors``. It knows how a message
looks, not how it travels. One ZeroMQ message is one part (after the ROUTER's identity), a msgpack array whose first element is its kind:

* ``["call", id, method, parameters, deadline_ms]``  manager to agent; ``id`` is an int unique per connection
* ``["cancel", id]``                                  manager to agent; the caller is gone
* ``["answer", id, result]`` / ``["error", id, name, detail, exception]``  agent to manager
* ``["event", number, name, parameters]``             agent to manager, repeated until acknowledged
* ``["acknowledge", number]``                         manager to agent
* ``["steer", id, action, value]``                    manager to agent; what a viewer does at the terminal that the call
  ``id`` opened: ``write`` bytes, ``resize`` [rows, columns], ``restart`` nil, ``consumed`` bytes as int, ``close`` nil
* ``["output", id, bytes]``                           agent to manager; what that terminal printed
* ``["ended", id, reason]``                           agent to manager; the last word about that terminal

A tunnel has the same three, with the actions ``write``, ``consumed``, ``finish`` nil and ``close``, and besides

* ``["room", id, size]``                              agent to manager; so many bytes were taken by the application
* ``["finished", id]``                                agent to manager; the application sends no more

Errors travel by class name (:data:`ERROR_NAMES`), anything else becomes ``AgentFailed`` with the exception as text.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import msgpack
from attrs import frozen

from sorna import errors
from sorna.cluster.building import MalformedMessage as MalformedMessage  # noqa: PLC0414 - for those who read messages
from sorna.cluster.building import build, is_integer, reading
from sorna.model.file import FileEntry, FilePiece
from sorna.model.folder import Mount
from sorna.model.kernel import KernelSpec, Usage
from sorna.model.limits import Limits
from sorna.model.run import OutputRequest, RunException, RunMode, RunReply, RunRequest, RunStatus
from sorna.model.service import Service, TunnelWish

MAX_MESSAGE = 24 * 1024 * 1024
# A header of a few bytes may announce an array of any length, and the memory for it is reserved at once.
MAX_ELEMENTS = 1 << 17
# From this size on, content is put between its neighbours instead of being copied through a growing buffer, which takes
# four times as long (20 MiB: 14 to 36 ms against 3 to 6 ms) and would block the reactor.
LARGE_CONTENT = 1 << 18

ERROR_NAMES: Mapping[str, type[errors.SornaError]] = {
    cls.__name__: cls
    for cls in (
        errors.InvalidRequest,
        errors.KernelNotFound,
        errors.RunNotFound,
        errors.OutputGone,
        errors.RuntimeUnknown,
        errors.NoAgentAvailable,
        errors.Unavailable,
        errors.AgentRefused,
        errors.AgentTimeout,
        errors.AgentFailed,
    )
}


_NUMBERS = frozenset({int, float})


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
class Took:
    """The answer of the call ``id`` has been passed on: it needs not be given back when the connection is lost."""

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


@frozen
class Steer:
    """What a viewer does at the terminal that the call ``id`` opened."""

    id: int
    action: str
    value: Any = None


@frozen
class Output:
    """What the terminal that the call ``id`` opened printed."""

    id: int
    data: bytes


@frozen
class Ended:
    """The terminal that the call ``id`` opened is no longer there."""

    id: int
    reason: str


@frozen
class Room:
    """The application behind the tunnel that the call ``id`` opened has taken so many bytes."""

    id: int
    size: int


@frozen
class Finished:
    """The application behind the tunnel that the call ``id`` opened sends no more."""

    id: int


Message = Call | Cancel | Took | Answer | Failed | Event | Acknowledge | Steer | Output | Ended | Room | Finished


def encode(message: Message) -> bytes:
    """Turn a message into the bytes of one ZeroMQ part.

    :raises ValueError, TypeError, OverflowError: a value cannot travel: a lone surrogate, an object, a number over 64 bits.
    """
    if isinstance(message, Call):
        return _encode_call(message)
    return msgpack.packb(_row_of(message), use_bin_type=True)


def _row_of(message: Message) -> list[Any]:
    match message:
        case Cancel() | Took():
            return ["took" if isinstance(message, Took) else "cancel", message.id]
        case Answer():
            return ["answer", message.id, message.result]
        case Failed():
            return ["error", message.id, message.name, message.detail, message.exception]
        case Event():
            return ["event", message.number, message.name, dict(message.parameters)]
        case Acknowledge():
            return ["acknowledge", message.number]
        case _:
            return _row_about_what_is_open(message)


def _row_about_what_is_open(message: Message) -> list[Any]:
    match message:
        case Steer():
            return ["steer", message.id, message.action, message.value]
        case Output():
            return ["output", message.id, message.data]
        case Ended():
            return ["ended", message.id, message.reason]
        case Room():
            return ["room", message.id, message.size]
        case Finished():
            return ["finished", message.id]
        case _:
            raise TypeError(message)


def _encode_call(call: Call) -> bytes:
    deadline = max(1, round(call.deadline * 1000))
    large = {
        name: content
        for name, content in call.parameters.items()
        if isinstance(content, bytes) and len(content) >= LARGE_CONTENT
    }
    if not large:
        return msgpack.packb(("call", call.id, call.method, dict(call.parameters), deadline))
    pieces = [b"\x95", *(msgpack.packb(value) for value in ("call", call.id, call.method))]
    pieces.append(b"\xdf" + len(call.parameters).to_bytes(4, "big"))
    for name, value in call.parameters.items():
        pieces.append(msgpack.packb(name))
        if name in large:
            pieces += (b"\xc6" + len(value).to_bytes(4, "big"), value)
        else:
            pieces.append(msgpack.packb(value))
    pieces.append(msgpack.packb(deadline))
    return b"".join(pieces)


def decode(raw: bytes | memoryview) -> Message:
    """Read a message; nothing of the sender is trusted.

    :raises MalformedMessage: for anything that :func:`encode` would not write.
    """
    if len(raw) > MAX_MESSAGE:
        raise MalformedMessage(f"message of {len(raw)} bytes")
    try:
        row = msgpack.unpackb(raw, raw=False, strict_map_key=True, max_array_len=MAX_ELEMENTS, max_map_len=MAX_ELEMENTS)
    except (ValueError, msgpack.UnpackException) as error:
        raise MalformedMessage(str(error) or type(error).__name__) from error
    # True and False are ints to Python, and never ids.
    if not isinstance(row, list) or len(row) < 2 or isinstance(row[1], bool):
        raise MalformedMessage("not a message of this link")
    return _read(row)


def _read(row: list[Any]) -> Message:
    match row:
        case ["call", int(id_), str(method), dict(parameters), int(deadline)] if deadline is not True and deadline > 0:
            return Call(id_, method, parameters, deadline / 1000)
        case ["cancel", int(id_)]:
            return Cancel(id_)
        case ["answer", int(id_), result]:
            return Answer(id_, result)
        case ["error", int(id_), str(name), str(detail), None | str() as exception]:
            return Failed(id_, name, detail, exception)
        case _:
            return _read_one_way(row)


def _read_one_way(row: list[Any]) -> Message:
    match row:
        case ["event", int(number), str(name), dict(parameters)]:
            return Event(number, name, parameters)
        case ["took", int(id_)]:
            return Took(id_)
        case ["acknowledge", int(number)]:
            return Acknowledge(number)
        case _:
            return _read_about_what_is_open(row)


def _read_about_what_is_open(row: list[Any]) -> Message:
    match row:
        case ["output", int(id_), bytes(data)]:
            return Output(id_, data)
        case ["ended", int(id_), str(reason)]:
            return Ended(id_, reason)
        case ["room", int(id_), int(size)] if size is not True and size > 0:
            return Room(id_, size)
        case ["finished", int(id_)]:
            return Finished(id_)
        case ["steer", int(id_), str(action), value] if _may_steer(action, value):
            return Steer(id_, action, value)
        case _:
            raise MalformedMessage("not a message of this link")


def _may_steer(action: str, value: Any) -> bool:
    match action:
        case "write":
            return isinstance(value, bytes)
        case "resize":
            return isinstance(value, list) and len(value) == 2 and all(is_integer(one) for one in value)
        case "consumed":
            return is_integer(value) and value >= 0
        case _:
            return action in {"restart", "finish", "close"} and value is None


#: In place of an error's name: the agent has not begun the call, and can be asked again at the next connection.
RESTARTING = "AgentRestarting"


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
    packed = {}
    for name in _names(type(value)) or ():
        content = getattr(value, name)
        packed[name] = content if type(content) in _PLAIN else _plain(content)
    return packed


def _plain(value: Any) -> Any:
    cls = type(value)
    if cls in _PLAIN:
        return value
    if cls is uuid.UUID:
        return value.bytes
    if cls is tuple or cls is list:
        return [_plain(one) for one in value]
    return value if _names(cls) is None else pack_value(value)


_PLAIN = frozenset({str, bytes, int, float, bool, type(None)})


def _names(cls: type[Any]) -> tuple[str, ...] | None:
    """Give the names of a model's fields, None for what is no model."""
    if cls not in _NAMES:
        _NAMES[cls] = tuple(field.name for field in attrs.fields(cls)) if attrs.has(cls) else None
    return _NAMES[cls]


_NAMES: dict[type[Any], tuple[str, ...] | None] = {}


def unpack_limits(raw: Any) -> Limits:
    """Read limits; unknown names are an error, as in every function below.

    :raises MalformedMessage: names what is wrong.
    """
    return build(Limits, raw)


def unpack_spec(raw: Any) -> KernelSpec:
    """Read what a kernel shall be. :raises MalformedMessage:."""
    with reading(KernelSpec):
        for name in ("mounts", "ports"):
            if not isinstance(raw[name], list | tuple):
                raise MalformedMessage(f"not a KernelSpec: {name} is no list")
        mounts = tuple(build(Mount, one) for one in raw["mounts"])
        parts = {"limits": unpack_limits(raw["limits"]), "mounts": mounts, "ports": tuple(raw["ports"])}
        return build(KernelSpec, {**raw, **parts})


def unpack_usage(raw: Any) -> Usage:
    """Read what a kernel used. :raises MalformedMessage:."""
    return build(Usage, raw)


def unpack_run_request(raw: Any) -> RunRequest:
    """Read a call to execute. :raises MalformedMessage:."""
    with reading(RunRequest):
        return build(RunRequest, {**raw, "mode": RunMode(raw["mode"])})


def unpack_output_request(raw: Any) -> OutputRequest:
    """Read a call to read output. :raises MalformedMessage:."""
    return build(OutputRequest, raw)


def unpack_run_reply(raw: Any) -> RunReply:
    """Read a piece of a run's output. :raises MalformedMessage:."""
    with reading(RunReply):
        return build(
            RunReply,
            {
                **raw,
                "status": RunStatus(raw["status"]),
                "console": tuple((kind, content) for kind, content in raw["console"]),
                "files": tuple(raw["files"]),
                "exceptions": tuple(build(RunException, one) for one in raw["exceptions"]),
            },
        )


def pack_file_entries(entries: Iterable[FileEntry]) -> list[Any]:
    """Turn a listing into rows, which take a third of the space of maps."""
    return [(entry.name, entry.mode, entry.size, entry.modified, entry.changed, entry.used) for entry in entries]


def unpack_file_entries(raw: Any) -> Sequence[FileEntry]:
    """Read a listing. :raises MalformedMessage:."""
    if not isinstance(raw, list) or not all(map(_is_entry, raw)):
        raise MalformedMessage("not a listing")
    return [FileEntry(*row) for row in raw]


def _is_entry(row: Any) -> bool:
    # By hand, because there may be thousands: what the other values travel by takes four times as long.
    if not isinstance(row, list) or len(row) != 6 or not isinstance(row[0], str):
        return False
    return type(row[1]) is int and type(row[2]) is int and all(type(time) in _NUMBERS for time in row[3:])


def unpack_file_piece(raw: Any) -> FilePiece:
    """Read a piece of a file. :raises MalformedMessage:."""
    return build(FilePiece, raw)


def unpack_services(raw: Any) -> Sequence[Service]:
    """Read a list of applications. :raises MalformedMessage:."""
    if not isinstance(raw, list):
        raise MalformedMessage("not a list of applications")
    return tuple(build(Service, one) for one in raw)


def unpack_tunnel_wish(raw: Any) -> TunnelWish:
    """Read what a client wants to be connected with. :raises MalformedMessage:."""
    return build(TunnelWish, raw)


def unpack_kernel_id(raw: Any) -> uuid.UUID:
    """Read a kernel id (16 bytes). :raises MalformedMessage:."""
    if not isinstance(raw, bytes) or len(raw) != 16:
        raise MalformedMessage("a kernel id is 16 bytes")
    return uuid.UUID(bytes=raw)
