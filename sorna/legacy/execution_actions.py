"""What clients ask of the execution address: PING, EXECUTE and the life of kernels without a session; section 1.5.

In 2016 this was an agent's own port; here it stands before every agent. Knows no socket.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from attrs import frozen

from sorna.errors import (
    AgentError,
    AuthenticationFailed,
    KernelExecutionFailed,
    KernelNotFound,
    KernelRestartFailed,
    RuntimeUnknown,
    SornaError,
)
from sorna.legacy import control
from sorna.legacy.access import NOT_ACTIVE, Access
from sorna.legacy.actions import (
    NO_SUCH_KERNEL,
    creation_cause,
    destroy,
    has,
    known_runtime,
    named_kernel,
    ping,
)
from sorna.legacy.codec import MISSING, Reply, failure, invalid, success
from sorna.legacy.execution import RunTimedOut, execute
from sorna.legacy.interfaces import Kernels, Operations
from sorna.legacy.matching import WrongMatch, matches
from sorna.legacy.search import Searches, SearchFailed
from sorna.legacy.sessions import fresh_token
from sorna.legacy.socket import Work
from sorna.legacy.terminals import Terminals
from sorna.manager.requests import CreateRequest
from sorna.model.kernel import short_id

PING, EXECUTE, CREATE_KERNEL, DESTROY_KERNEL, RESTART_KERNEL = range(5)


@frozen
class ExecutionActions:
    """The desk of the execution address."""

    kernels: Kernels
    operations: Operations
    access: Access
    terminals: Terminals
    searches: Searches

    def take(self, request: Mapping[str, Any], _peer: str | None) -> Reply | Work:
        """Answer what needs no work; see :class:`sorna.legacy.socket.Desk`."""
        action = request["action"]
        if action == PING:
            return ping(request)
        for number, fields, work in (
            (EXECUTE, ("entry_id", "kernel_id", "cell_id", "code"), self._execute),
            (CREATE_KERNEL, ("lang",), self._create),
            (DESTROY_KERNEL, ("kernel_id",), self._destroy),
            (RESTART_KERNEL, ("kernel_id",), self._restart),
        ):
            if action == number:
                return partial(work, request) if has(request, *fields) else invalid(MISSING)
        return invalid("Invalid request.")

    async def _execute(self, request: Mapping[str, Any]) -> Reply:
        code, expected = request["code"], request.get("match")
        if not isinstance(code, str):
            return failure("TypeError: The code must be a string.")
        try:
            access_key = await self.access.check()
            result = await self._run(access_key, str(named_kernel(request["kernel_id"])), code)
            if await self.access.was_withdrawn():
                return failure(NOT_ACTIVE)
            if expected is None:
                return success(result=result)
            found = await matches(expected, result, self.searches.found)
        except (SornaError, WrongMatch, SearchFailed) as error:
            return execution_failure(error)
        return {"match_result": found, **success(result=result)}

    async def _run(self, access_key: str, reference: str, code: str) -> dict[str, Any]:
        if code.startswith("%"):
            info = await self.kernels.info(access_key, reference)
            if info.runtime == control.RUNTIME:
                ports = self.terminals.of(info.kernel_id)
                return await control.Control(self.kernels).obey(access_key, reference, ports, code)
        return await execute(self.kernels, access_key, reference, code)

    async def _create(self, request: Mapping[str, Any]) -> Reply:
        try:
            access_key = await self.access.check()
            runtime = known_runtime(request["lang"])
            wish = CreateRequest(access_key, fresh_token(runtime), request["lang"], names_joined=True)
            created = await self.operations.detach(self.kernels.create(wish))
            ports = self.terminals.ports_of(created.kernel_id)
        except RuntimeUnknown:
            return invalid("Unsupported kernel language.")
        except SornaError as error:
            return failure(creation_cause(error))
        return success(kernel_id=short_id(created.kernel_id), **_named(ports))

    async def _destroy(self, request: Mapping[str, Any]) -> Reply:
        return await destroy(self.kernels, self.operations, self.access, request["kernel_id"])

    async def _restart(self, request: Mapping[str, Any]) -> Reply:
        try:
            access_key = await self.access.check()
            kernel_id = named_kernel(request["kernel_id"])
            await self.operations.detach(self.kernels.restart(access_key, str(kernel_id)))
            ports = self.terminals.ports_of(kernel_id)
        except KernelNotFound:
            return invalid(NO_SUCH_KERNEL)
        except SornaError as error:
            return failure(cause(error))
        return success(**_named(ports))


def _named(ports: tuple[int, int]) -> dict[str, str]:
    stdin_port, stdout_port = ports
    return {"stdin_port": str(stdin_port), "stdout_port": str(stdout_port)}


def execution_failure(error: SornaError | WrongMatch | SearchFailed) -> Reply:
    """Say why there is no result."""
    match error:
        case KernelNotFound():
            return invalid("Could not find such kernel.")
        case RunTimedOut():
            return failure("TimeoutError")
        case WrongMatch():
            return failure(error.cause)
        case SearchFailed():
            return failure(f"{error.name}: {error}")
        case _:
            return failure(cause(error))


def cause(error: SornaError) -> str:
    """Spell an error as the historic agents did: the name of the exception, and what it says."""
    if isinstance(error, AuthenticationFailed):
        return error.detail
    behind = error.__cause__
    if isinstance(error, KernelExecutionFailed | KernelRestartFailed) and isinstance(behind, AgentError):
        error = behind
    name = type(error).__name__
    return f"{name}: {error.detail}" if error.detail else name
