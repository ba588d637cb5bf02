"""What clients ask of the manager's port: PING, GET_OR_CREATE, DESTROY; source: section 1.4 of the interface's description.

Knows no socket. The table from domain errors to causes is here, as the HTTP door has one in ``problems``.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from functools import partial
from typing import Any

from attrs import frozen
from twisted.logger import Logger

from sorna.errors import (
    AuthenticationFailed,
    InvalidRequest,
    KernelNotFound,
    NoAgentAvailable,
    QuotaExceeded,
    RuntimeUnknown,
    SornaError,
)
from sorna.legacy.access import Access
from sorna.legacy.addresses import Addresses
from sorna.legacy.codec import MISSING, Reply, failure, invalid, pong, success
from sorna.legacy.interfaces import Kernels, Operations
from sorna.legacy.sessions import session_token
from sorna.legacy.socket import Work
from sorna.legacy.terminals import Terminals
from sorna.manager.requests import CreateRequest
from sorna.model.kernel import parse_kernel_id, short_id
from sorna.model.runtime import resolve_runtime

PING, GET_OR_CREATE, DESTROY = 0, 2, 3
NOT_CREATED = "Kernel creation failed. Try again later."
NOT_DESTROYED = "Kernel destruction failed. Try again later."
NO_SUCH_KERNEL = "No such kernel."

_log = Logger()


@frozen
class ManagerActions:
    """The desk of the manager's port.

    :ivar execution_port: the other port, which clients are sent to for executions.
    """

    kernels: Kernels
    operations: Operations
    access: Access
    terminals: Terminals
    addresses: Addresses
    execution_port: int

    def take(self, request: Mapping[str, Any], peer: str | None) -> Reply | Work:
        """Answer what needs no work; see :class:`sorna.legacy.socket.Desk`."""
        # By equality, as in 2016: ``0.0`` and ``false`` are a PING too.
        action = request["action"]
        if action == PING:
            return ping(request)
        if action == GET_OR_CREATE:
            if not has(request, "user_id", "entry_id", "lang"):
                return invalid(MISSING)
            return partial(self._get_or_create, request, peer)
        if action == DESTROY:
            return partial(self._destroy, request) if has(request, "kernel_id") else invalid(MISSING)
        return {}

    async def _get_or_create(self, request: Mapping[str, Any], peer: str | None) -> Reply:
        try:
            access_key = await self.access.check()
            lang = request["lang"]
            runtime = known_runtime(lang)
            token = session_token(request["user_id"], request["entry_id"], runtime)
            wish = CreateRequest(access_key, token, lang, names_joined=True)
            created = await self.operations.detach(self.kernels.create(wish))
            stdin_port, stdout_port = self.terminals.ports_of(created.kernel_id)
        except RecursionError:
            return failure(NOT_CREATED)
        except SornaError as error:
            return failure(creation_cause(error))
        endpoint = partial(self.addresses.endpoint, peer=peer)
        return success(
            kernel_id=short_id(created.kernel_id),
            kernel_addr=endpoint(self.execution_port),
            stdin_addr=endpoint(stdin_port),
            stdout_addr=endpoint(stdout_port),
        )

    async def _destroy(self, request: Mapping[str, Any]) -> Reply:
        return await destroy(self.kernels, self.operations, self.access, request["kernel_id"])


def has(request: Mapping[str, Any], *names: str) -> bool:
    """Tell whether a request has these fields, with whatever values."""
    return all(name in request for name in names)


def ping(request: Mapping[str, Any]) -> Reply:
    """Answer a PING, which both ports know."""
    return pong(request["body"]) if has(request, "body") else invalid(MISSING)


def known_runtime(lang: Any) -> str:
    """Give the canonical name of a runtime. :raises RuntimeUnknown: there is none of that name."""
    runtime = resolve_runtime(lang) if isinstance(lang, str) and len(lang) <= 64 else None
    if runtime is None:
        raise RuntimeUnknown(lang[:80] if isinstance(lang, str) else type(lang).__name__)
    return runtime


def named_kernel(kernel_id: Any) -> uuid.UUID:
    """Read a kernel's id, which alone names one here: session tokens can be guessed. :raises KernelNotFound: it is none."""
    parsed = parse_kernel_id(kernel_id) if isinstance(kernel_id, str) else None
    if parsed is None:
        raise KernelNotFound
    return parsed


async def destroy(kernels: Kernels, operations: Operations, access: Access, kernel_id: Any) -> Reply:
    """End a kernel and wait for its end; both ports know this."""
    try:
        access_key = await access.check()
        await operations.detach(kernels.destroy(access_key, str(named_kernel(kernel_id))))
    except KernelNotFound:
        return invalid(NO_SUCH_KERNEL)
    except AuthenticationFailed as error:
        return failure(error.detail)
    except SornaError as error:
        _log.warn("a kernel could not be destroyed: {error}", error=error)
        return failure(NOT_DESTROYED)
    return success()


def creation_cause(error: SornaError) -> str:
    """Say why there is no kernel, in the words that clients of 2016 know."""
    match error:
        case QuotaExceeded():
            return "You cannot create more kernels."
        case NoAgentAvailable():
            return "There is no available instance."
        case AuthenticationFailed():
            return error.detail
        case RuntimeUnknown() | InvalidRequest():
            return NOT_CREATED
        case _:
            _log.warn("a kernel could not be created: {error}", error=error)
            return NOT_CREATED
