"""The methods a manager may call: what parameters each wants, and how its result travels.

The only place where the names of the link meet :class:`sorna.agent.interfaces.AgentOperations`. It knows no socket, no
connection and no deadline. Parameters are judged before the operation sees them.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from sorna.agent.interfaces import AgentOperations
from sorna.cluster.messages import (
    MalformedMessage,
    pack_file_entries,
    pack_value,
    unpack_kernel_id,
    unpack_output_request,
    unpack_run_request,
    unpack_spec,
)
from sorna.errors import InvalidRequest

MAX_TEXT = 4096
MAX_CODE = 16 * 1024 * 1024

Parameters = Mapping[str, Any]


async def perform(operations: AgentOperations, method: str, parameters: Parameters) -> Any:
    """Carry out one call and give its result as plain values.

    :raises InvalidRequest: nobody knows the method, or a parameter is wrong; nothing was done.
    :raises Exception: what the operation raises.
    """
    row = _METHODS.get(method)
    if row is None:
        raise InvalidRequest(f"unknown method {method[:100]!r}")
    names, carry_out = row
    if parameters.keys() != names:
        missing, unknown = sorted(names - parameters.keys()), sorted(map(str, parameters.keys() - names))
        raise InvalidRequest(f"{method}: missing parameters {missing}, unknown parameters {unknown}"[:1000])
    try:
        pending = carry_out(operations, parameters)
    except MalformedMessage as error:
        raise InvalidRequest(f"{method}: {error}") from error
    return await pending


# Each function reads its parameters at once and gives back the awaitable that does the work, so that only what the
# reading raises is blamed on the caller.


def _create_kernel(operations: AgentOperations, parameters: Parameters) -> Awaitable[Any]:
    return _each_packed(operations.create_kernel(_kernel_id(parameters), unpack_spec(parameters["spec"])))


def _destroy_kernel(operations: AgentOperations, parameters: Parameters) -> Awaitable[Any]:
    return _packed(operations.destroy_kernel(_kernel_id(parameters), _text(parameters, "reason", MAX_TEXT)))


def _restart_kernel(operations: AgentOperations, parameters: Parameters) -> Awaitable[None]:
    return operations.restart_kernel(_kernel_id(parameters))


def _execute(operations: AgentOperations, parameters: Parameters) -> Awaitable[Any]:
    return _packed(operations.execute(_kernel_id(parameters), unpack_run_request(parameters["request"])))


def _read_output(operations: AgentOperations, parameters: Parameters) -> Awaitable[Any]:
    return _packed(operations.read_output(_kernel_id(parameters), unpack_output_request(parameters["request"])))


def _interrupt(operations: AgentOperations, parameters: Parameters) -> Awaitable[None]:
    return operations.interrupt(_kernel_id(parameters))


def _complete(operations: AgentOperations, parameters: Parameters) -> Awaitable[Any]:
    options = parameters["options"]
    if not isinstance(options, dict):
        raise MalformedMessage("options is not a map")
    return _listed(operations.complete(_kernel_id(parameters), _text(parameters, "code", MAX_CODE), options))


def _upload(operations: AgentOperations, parameters: Parameters) -> Awaitable[None]:
    content = parameters["content"]
    if not isinstance(content, bytes):
        raise MalformedMessage("content is not bytes")
    return operations.upload(_kernel_id(parameters), _text(parameters, "path", MAX_TEXT), content)


def _list_files(operations: AgentOperations, parameters: Parameters) -> Awaitable[Any]:
    recursive = parameters["recursive"]
    if not isinstance(recursive, bool):
        raise MalformedMessage("recursive is not true or false")
    path = _text(parameters, "path", MAX_TEXT)
    return _entries(operations.list_files(_kernel_id(parameters), path, recursive=recursive))


def _read_file(operations: AgentOperations, parameters: Parameters) -> Awaitable[Any]:
    offset, size = parameters["offset"], parameters["size"]
    for number in (offset, size):
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise MalformedMessage("offset and size are whole numbers, not negative")
    return _packed(operations.read_file(_kernel_id(parameters), _text(parameters, "path", MAX_TEXT), offset, size))


def _usage(operations: AgentOperations, parameters: Parameters) -> Awaitable[Any]:
    return _packed(operations.usage(_kernel_id(parameters)))


def _drain(operations: AgentOperations, parameters: Parameters) -> Awaitable[None]:
    draining = parameters["draining"]
    if not isinstance(draining, bool):
        raise MalformedMessage("draining is not true or false")
    return operations.drain(draining=draining)


def _logs(operations: AgentOperations, parameters: Parameters) -> Awaitable[str]:
    return operations.logs(_kernel_id(parameters))


def _services(operations: AgentOperations, parameters: Parameters) -> Awaitable[Any]:
    return _each_packed(operations.services(_kernel_id(parameters)))


def _stop_service(operations: AgentOperations, parameters: Parameters) -> Awaitable[None]:
    return operations.stop_service(_kernel_id(parameters), _text(parameters, "name", MAX_TEXT))


_METHODS: Mapping[str, tuple[frozenset[str], Callable[[AgentOperations, Parameters], Awaitable[Any]]]] = {
    "create_kernel": (frozenset({"kernel_id", "spec"}), _create_kernel),
    "destroy_kernel": (frozenset({"kernel_id", "reason"}), _destroy_kernel),
    "restart_kernel": (frozenset({"kernel_id"}), _restart_kernel),
    "execute": (frozenset({"kernel_id", "request"}), _execute),
    "read_output": (frozenset({"kernel_id", "request"}), _read_output),
    "interrupt": (frozenset({"kernel_id"}), _interrupt),
    "complete": (frozenset({"kernel_id", "code", "options"}), _complete),
    "upload": (frozenset({"kernel_id", "path", "content"}), _upload),
    "list_files": (frozenset({"kernel_id", "path", "recursive"}), _list_files),
    "read_file": (frozenset({"kernel_id", "path", "offset", "size"}), _read_file),
    "usage": (frozenset({"kernel_id"}), _usage),
    "logs": (frozenset({"kernel_id"}), _logs),
    "services": (frozenset({"kernel_id"}), _services),
    "stop_service": (frozenset({"kernel_id", "name"}), _stop_service),
    "drain": (frozenset({"draining"}), _drain),
}


def _kernel_id(parameters: Parameters) -> uuid.UUID:
    return unpack_kernel_id(parameters["kernel_id"])


def _text(parameters: Parameters, name: str, longest: int) -> str:
    value = parameters[name]
    if not isinstance(value, str):
        raise MalformedMessage(f"{name} is not text")
    if len(value) > longest:
        raise MalformedMessage(f"{name} is longer than {longest} characters")
    return value


async def _packed(pending: Awaitable[Any]) -> Any:
    return pack_value(await pending)


async def _entries(pending: Awaitable[Any]) -> Any:
    return pack_file_entries(await pending)


async def _listed(pending: Awaitable[Any]) -> Any:
    return list(await pending)


async def _each_packed(pending: Awaitable[Any]) -> Any:
    return [pack_value(one) for one in await pending]
