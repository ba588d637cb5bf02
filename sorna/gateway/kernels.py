"""Everything a client can do with kernels over HTTP; knows how requests and answers look, not how kernels work.

What changes something is detached from its request: Klein cancels a route when the client hangs up, and half a creation is
nobody's wish. Execution is the exception: a poll that nobody reads any more must give its output back.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import ClassVar

from attrs import asdict, fields, frozen
from twisted.internet.defer import CancelledError, Deferred

from sorna.errors import (
    AgentError,
    FolderNotFound,
    KernelAlreadyExists,
    KernelCreationFailed,
    KernelDestructionFailed,
    KernelRestartFailed,
    NoAgentAvailable,
    QuotaExceeded,
    RuntimeUnknown,
)
from sorna.gateway import execution
from sorna.gateway.call import Call, Reply, json_reply, no_content
from sorna.gateway.creation import CREATE_BODY, read_create
from sorna.gateway.described import (
    BINARY,
    FLAG,
    NOTHING,
    NUMBER,
    TEXT,
    WHOLE,
    Described,
    Schema,
    exactly,
    json_content,
    list_of,
    one_of,
    open_object,
)
from sorna.gateway.interfaces import Kernels, Operations
from sorna.gateway.parameters import Parameters
from sorna.gateway.router import Router
from sorna.gateway.service_rows import SERVICE, service_row
from sorna.gateway.upload import read_files
from sorna.manager.requests import KernelInfo
from sorna.model.kernel import KernelStatus, Usage, short_id
from sorna.model.limits import KIB
from sorna.model.queue import QueuePlace
from sorna.model.run import new_run_id


def kernel_paths(below: str = "") -> tuple[str, str]:
    """Give the two paths of what concerns one kernel; clients of version 5 and later say session."""
    return f"/kernel/<reference>{below}", f"/session/<reference>{below}"


def stream_paths(below: str) -> tuple[str, str]:
    """Give the two paths of a stream that belongs to one kernel."""
    return f"/stream/kernel/<reference>{below}", f"/stream/session/<reference>{below}"


def _with_queue(**properties: Schema) -> Schema:
    """Describe an object with these fields, and those that tell of a kernel that waits for an agent."""
    schema = exactly(**properties)
    waiting = {
        "queuePosition": {"type": "integer", "minimum": 1},
        "queueDeadline": {"type": "string", "format": "date-time"},
    }
    return {**schema, "properties": {"status": one_of(*KernelStatus), **properties, **waiting}}


_CREATE = Described(
    body=json_content(CREATE_BODY),
    answers={
        201: json_content(
            _with_queue(
                kernelId=TEXT,
                sessionId={"type": "string", "format": "uuid"},
                sessionName=TEXT,
                created=FLAG,
                servicePorts=list_of(SERVICE),
                status=one_of(*KernelStatus),
            )
        )
    },
    raises=(
        RuntimeUnknown,
        FolderNotFound,
        KernelAlreadyExists,
        QuotaExceeded,
        NoAgentAvailable,
        KernelCreationFailed,
    ),
)
_DESCRIBE = Described(
    answers={
        200: json_content(
            _with_queue(
                lang=TEXT,
                age=NUMBER,
                queryTimeout=WHOLE,
                idleTimeout=WHOLE,
                memoryLimit=WHOLE,
                maxCpuCredit=WHOLE,
                numQueriesExecuted=WHOLE,
                idle=WHOLE,
                memoryUsed=WHOLE,
                cpuCreditUsed=NUMBER,
            )
        )
    },
)
_RESTART = Described(answers={204: NOTHING}, raises=(KernelRestartFailed,))
_DESTROY = Described(
    answers={200: json_content(exactly(stats=exactly(**{field.name: NUMBER for field in fields(Usage)})))},
    raises=(KernelDestructionFailed,),
)
_EXECUTE = Described(
    body=json_content(execution.RUN_BODY),
    answers={200: json_content(exactly(result=execution.RESULT))},
    raises=(AgentError,),
)
_INTERRUPT = Described(answers={204: NOTHING}, raises=(AgentError,))
_COMPLETE = Described(
    body=json_content(execution.COMPLETION_BODY),
    answers={200: json_content(exactly(result=exactly(status=one_of("finished"), completions=list_of(TEXT))))},
    raises=(AgentError,),
)
_UPLOAD = Described(
    body={"multipart/form-data": open_object(file=BINARY)},
    answers={204: NOTHING},
    raises=(AgentError,),
)
_LOGS = Described(answers={200: json_content(exactly(result=exactly(logs=TEXT)))}, raises=(AgentError,))


@frozen
class KernelRoutes:
    """The routes below ``/kernel`` and ``/session``."""

    kernels: Kernels
    operations: Operations

    router: ClassVar[Router[KernelRoutes]] = Router()

    @router.route("POST", "/kernel/create", "/kernel", "/session", needs_ready=True, described=_CREATE)
    async def create(self, call: Call) -> Reply:
        """Get or create a kernel; 201 either way."""
        request = read_create(call.access_key, Parameters(call.json_object()))
        # Only one that waits for an agent is given up with its client.
        gone: Deferred[None] | None = None if request.wait is None else Deferred()
        try:
            created = await self.operations.detach(self.kernels.create(request, gone))
        except CancelledError:
            if gone is not None:
                gone.callback(None)
            raise
        return json_reply(
            {
                "kernelId": short_id(created.kernel_id),
                "sessionId": str(created.kernel_id),
                "sessionName": created.session_token,
                "created": created.created,
                "servicePorts": [service_row(service) for service in created.services],
                "status": created.status.value,
                **_queue(created.queue),
            },
            status=201,
        )

    @router.route("GET", *kernel_paths(), needs_ready=True, described=_DESCRIBE)
    async def describe(self, call: Call) -> Reply:
        """Describe a kernel; times are in milliseconds, sizes in KiB."""
        return json_reply(_description(await self.kernels.info(call.access_key, call.kernel_reference)))

    @router.route("PATCH", *kernel_paths(), needs_ready=True, described=_RESTART)
    async def restart(self, call: Call) -> Reply:
        """Restart a kernel: its files stay."""
        await self.operations.detach(self.kernels.restart(call.access_key, call.kernel_reference))
        return no_content()

    @router.route("DELETE", *kernel_paths(), needs_ready=True, described=_DESTROY)
    async def destroy(self, call: Call) -> Reply:
        """Destroy a kernel; clients of the first version want 204, later ones may read what it used."""
        usage = await self.operations.detach(self.kernels.destroy(call.access_key, call.kernel_reference))
        return no_content() if call.version == 1 else json_reply({"stats": asdict(usage)})

    @router.route("POST", *kernel_paths(), needs_ready=True, described=_EXECUTE)
    async def execute(self, call: Call) -> Reply:
        """Run code; not detached, so that a client that hangs up leaves its output for the next poll."""
        reference, body = call.kernel_reference, Parameters(call.json_object())
        if call.version == 1:
            reply = await self.kernels.execute(call.access_key, reference, execution.read_first_run(body))
            return json_reply({"result": execution.first_result(reply)})
        if execution.read_mode(body) == "complete":
            run_id = body.optional_text("runId", execution.MAX_RUN_ID) or new_run_id()
            code, options = execution.read_completion(body)
            completions = await self.kernels.complete(call.access_key, reference, code, options)
            return json_reply({"result": execution.completion_result(run_id, completions)})
        reply = await self.kernels.execute(call.access_key, reference, execution.read_run(body))
        return json_reply({"result": execution.result(reply)})

    @router.route("POST", *kernel_paths("/interrupt"), needs_ready=True, described=_INTERRUPT)
    async def interrupt(self, call: Call) -> Reply:
        """Interrupt what runs now."""
        await self.operations.detach(self.kernels.interrupt(call.access_key, call.kernel_reference))
        return no_content()

    @router.route("POST", *kernel_paths("/complete"), needs_ready=True, described=_COMPLETE)
    async def complete(self, call: Call) -> Reply:
        """Complete code at a position."""
        reference = call.kernel_reference
        code, options = execution.read_completion(Parameters(call.json_object()))
        completions = await self.kernels.complete(call.access_key, reference, code, options)
        return json_reply({"result": {"status": "finished", "completions": list(completions)}})

    @router.route("POST", *kernel_paths("/upload"), needs_ready=True, described=_UPLOAD)
    async def upload(self, call: Call) -> Reply:
        """Write files into the working directory."""
        reference = call.kernel_reference
        files = read_files(call.content_type, call.body)
        await self.operations.detach(self.kernels.upload(call.access_key, reference, files))
        return no_content()

    @router.route("GET", *kernel_paths("/logs"), needs_ready=True, described=_LOGS)
    async def logs(self, call: Call) -> Reply:
        """Give the kernel's recent console output."""
        return json_reply({"result": {"logs": await self.kernels.logs(call.access_key, call.kernel_reference)}})


def _queue(place: QueuePlace | None) -> dict[str, object]:
    """Say where a kernel stands that waits for an agent; nothing of one that does not."""
    if place is None:
        return {}
    return {"queuePosition": place.position, "queueDeadline": datetime.fromtimestamp(place.deadline, UTC).isoformat()}


def _description(info: KernelInfo) -> dict[str, object]:
    timeout = round(info.execution_timeout * 1000)
    return {
        "lang": info.requested_runtime,
        "age": info.age * 1000,
        "queryTimeout": timeout,
        "idleTimeout": round(info.idle_timeout * 1000),
        "memoryLimit": info.memory_limit // KIB,
        "maxCpuCredit": timeout,
        "numQueriesExecuted": info.num_queries,
        "idle": round(info.idle * 1000),
        "memoryUsed": info.memory_used // KIB if info.memory_used >= 0 else -1,
        "cpuCreditUsed": info.cpu_used * 1000 if info.cpu_used >= 0 else -1,
        **({} if info.status is KernelStatus.RUNNING else {"status": info.status.value}),
        **_queue(info.queue),
    }
