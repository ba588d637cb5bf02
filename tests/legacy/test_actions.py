"""Requests to the manager's port and what becomes of them, over real sockets."""

from __future__ import annotations

import json
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from sorna.errors import (
    KernelCreationFailed,
    KernelDestructionFailed,
    NoAgentAvailable,
    QuotaExceeded,
    Unavailable,
)
from sorna.legacy.access import Access
from sorna.manager.keypairs import CachedKeypairs
from sorna.manager.requests import Created, CreateRequest
from sorna.model.run import RunReply, RunStatus
from sorna.store.memory import MemoryKeypairs as StoredKeypairs
from tests.legacy.door import OWNER, SESSION, DoorTestCase, reactor


class PingTests(DoorTestCase):
    async def test_action_by_equality(self) -> None:
        """Whatever equals a number is that action; text is none."""
        client = self.manager()
        for action in (0, 0.0, False, -0.0):
            self.assertEqual(
                await client.ask({"action": action, "body": [1, None, "한"]}), {"reply": 0, "body": [1, None, "한"]}
            )
        self.assertEqual((await client.ask({**SESSION, "action": 2.0}))["reply"], 200)
        for other in ("0", "PING", 1, 99, None, [0], {"a": 1}, True, 0.5):
            self.assertEqual(await client.ask({"action": other, "body": 1}), {}, other)

    async def test_missing_fields(self) -> None:
        """A field that is null is there; one that is missing is not."""
        client = self.manager()
        missing = {"reply": 400, "cause": "Missing API parameters."}
        self.assertEqual(await client.ask({"action": 0, "body": None}), {"reply": 0, "body": None})
        self.assertEqual(await client.ask({"action": 0}), missing)
        for name in ("user_id", "entry_id", "lang"):
            self.assertEqual(await client.ask({key: SESSION[key] for key in SESSION if key != name}), missing)
        self.assertEqual(await client.ask({"action": 3}), missing)


class CreateTests(DoorTestCase):
    async def test_one_kernel_however_many_ask(self) -> None:
        """Fifty requests at once and under any alias have one kernel, and its addresses."""
        client = self.manager()
        replies = await gatherResults([client.ask(SESSION) for _ in range(25)])
        replies += await gatherResults([client.ask({**SESSION, "lang": "python34"}) for _ in range(25)])
        self.assertEqual(len({tuple(reply.items()) for reply in replies}), 1)
        self.assertEqual(list(replies[0]), ["reply", "kernel_id", "kernel_addr", "stdin_addr", "stdout_addr"])
        self.assertEqual(replies[0]["kernel_addr"], f"tcp://127.0.0.1:{self.door.execution_port}")
        [kernel] = self.kernels.live.values()
        self.assertEqual(kernel.request.session_token, "u:e:python3")
        self.assertEqual(kernel.request.access_key, OWNER)

    async def test_names_of_any_kind(self) -> None:
        """Names may be any values; other names are other sessions, within the quota, which has its own cause."""
        client = self.manager()
        first = await client.ask({**SESSION, "user_id": {"a": [1]}, "entry_id": None})
        second = await client.ask({**SESSION, "user_id": "u:e", "entry_id": "\ud800" * 3000})
        third = await client.ask({**SESSION, "user_id": "u", "entry_id": "e:\0"})
        self.assertEqual(len({one["kernel_id"] for one in (first, second, third)}), 3)
        self.assertEqual(await client.ask(SESSION), {"reply": 500, "cause": "You cannot create more kernels."})

    async def test_causes(self) -> None:
        """Each error of the manager has the words of 2016."""
        client = self.manager()
        failed = "Kernel creation failed. Try again later."
        for error, cause in (
            (NoAgentAvailable("x"), "There is no available instance."),
            (QuotaExceeded("x"), "You cannot create more kernels."),
            (KernelCreationFailed("x"), failed),
            (Unavailable("x"), failed),
        ):
            self.kernels.errors["create"] = error
            self.assertEqual(await client.ask(SESSION), {"reply": 500, "cause": cause})
        del self.kernels.errors["create"]
        deep = json.loads("[" * 900 + "]" * 900)
        for lang in ("cobol", "", "x" * 70, None, 3, ["python3"], "python3\0", deep):
            self.assertEqual(await client.ask({**SESSION, "lang": lang}), {"reply": 500, "cause": failed}, lang)

    async def test_unforeseen_errors_are_answered(self) -> None:
        """What nobody thought of is logged, and its client is answered; the next request is served."""
        client = self.manager()
        self.kernels.errors["create"] = ZeroDivisionError()
        self.assertEqual(await client.ask(SESSION), {"reply": 500, "cause": "Internal server error."})
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        del self.kernels.errors["create"]
        self.assertEqual((await client.ask(SESSION))["reply"], 200)

    async def test_slow_creation_delays_nobody(self) -> None:
        """Another request is answered while a kernel is being made."""
        gate: Deferred[None] = Deferred()
        create = self.kernels.create

        async def slowly(request: CreateRequest, gone: Deferred[None] | None = None) -> Created:
            await gate
            return await create(request, gone)

        self.kernels.create = slowly  # type: ignore[method-assign]
        client = self.manager()
        creating = client.ask(SESSION)
        for _ in range(20):
            await client.ask({"action": 0, "body": 1})
        self.assertFalse(creating.called)
        gate.callback(None)
        self.assertEqual((await creating)["reply"], 200)

    async def test_inactive_keypair(self) -> None:
        """A keypair that was taken away serves nothing but PING, and its terminals are closed."""
        client = self.manager()
        kernel_id = (await client.ask(SESSION))["kernel_id"]
        [terminals] = [self.door._terminals]
        assert terminals is not None
        self.keypairs.all[OWNER] = evolve(self.keypairs.all[OWNER], is_active=False)
        refused = {"reply": 500, "cause": "The access key of this service is not active."}
        self.assertEqual(await client.ask(SESSION), refused)
        self.assertEqual(await client.ask({"action": 3, "kernel_id": kernel_id}), refused)
        execution = self.execution()
        request: dict[str, Any] = {"action": 1, "entry_id": "e", "kernel_id": kernel_id, "cell_id": "1", "code": "1"}
        for asked in (
            request,
            {"action": 2, "lang": "c"},
            {"action": 3, "kernel_id": kernel_id},
            {"action": 4, "kernel_id": kernel_id},
        ):
            self.assertEqual(await execution.ask(asked), refused, asked)
        self.assertEqual((await client.ask({"action": 0, "body": 1}))["reply"], 0)
        self.assertEqual(len(terminals), 1)
        await self.door.check_access()
        self.assertEqual(len(terminals), 0)
        del self.keypairs.all[OWNER]
        self.assertEqual(await client.ask(SESSION), refused)

    async def test_use_is_counted(self) -> None:
        """Each request that needs the keypair is one of its queries."""
        client = self.manager()
        await client.ask({"action": 0, "body": 1})
        await client.ask(SESSION)
        await client.ask({"action": 3, "kernel_id": "nope"})
        self.assertEqual(self.keypairs.uses, [OWNER, OWNER])


class WithdrawnTests(DoorTestCase):
    """The keypair as a whole server has it: from memory, and from the store again before that is a second old."""

    def make_access(self) -> Access:
        self.store = StoredKeypairs([self.keypairs.all[OWNER]])
        return Access(CachedKeypairs(reactor, self.store), OWNER)

    async def test_within_a_second(self) -> None:
        """A keypair that is deactivated closes the door within a second, and the run that goes on gives no result."""
        gate: Deferred[RunReply] = Deferred()
        self.kernels.on_execute = lambda _request: gate
        client, execution = self.manager(), self.execution()
        kernel_id = (await client.ask(SESSION))["kernel_id"]
        execute = {"action": 1, "entry_id": "e", "kernel_id": kernel_id, "cell_id": "1", "code": "1"}
        running = execution.ask(execute)
        await client.ask({**SESSION, "user_id": "other"})
        self.store._keypairs[OWNER] = evolve(self.store._keypairs[OWNER], is_active=False)
        await deferLater(reactor, 1.0)
        refused = {"reply": 500, "cause": "The access key of this service is not active."}
        self.assertEqual(await client.ask(SESSION), refused)
        self.assertEqual(await execution.ask(execute), refused)
        gate.callback(RunReply("r", RunStatus.FINISHED))
        self.assertEqual(await running, refused)


class OverrideTests(DoorTestCase):
    interface = "0.0.0.0"
    override = "203.0.113.9"

    async def test_override(self) -> None:
        """All three addresses have the host that the operator wants."""
        reply = await self.manager().ask(SESSION)
        for name in ("kernel_addr", "stdin_addr", "stdout_addr"):
            self.assertTrue(reply[name].startswith("tcp://203.0.113.9:"), reply)


class EveryAddressTests(DoorTestCase):
    interface = "0.0.0.0"

    async def test_the_interface_the_request_came_in_on(self) -> None:
        """A client is told an address that it can reach, not the one that stands for all."""
        reply = await self.manager().ask(SESSION)
        self.assertTrue(reply["kernel_addr"].startswith("tcp://127.0.0.1:"), reply)


class DestroyTests(DoorTestCase):
    async def test_destroy(self) -> None:
        """A kernel is gone when the reply comes; then it is not known any more, and its session gets another."""
        client = self.manager()
        first = await client.ask(SESSION)
        self.assertEqual(await client.ask({"action": 3, "kernel_id": first["kernel_id"]}), {"reply": 200})
        self.assertEqual(self.kernels.live, {})
        again = await client.ask({"action": 3, "kernel_id": first["kernel_id"]})
        self.assertEqual(again, {"reply": 400, "cause": "No such kernel."})
        self.assertNotEqual((await client.ask(SESSION))["kernel_id"], first["kernel_id"])

    async def test_only_ids_name_kernels(self) -> None:
        """Session tokens can be guessed, so that they name nothing here; nor do other values."""
        client = self.manager()
        await client.ask(SESSION)
        for kernel_id in ("u:e:python3", "nope", "", None, 3, ["x"], "A" * 22, "\ud800", "x" * 10_000):
            reply = await client.ask({"action": 3, "kernel_id": kernel_id})
            self.assertEqual(reply, {"reply": 400, "cause": "No such kernel."}, kernel_id)
        self.assertEqual(len(self.kernels.live), 1)

    async def test_failure_is_no_lie(self) -> None:
        """A kernel that could not be destroyed is not called unknown, as the old server did."""
        client = self.manager()
        kernel_id = (await client.ask(SESSION))["kernel_id"]
        self.kernels.errors["destroy"] = KernelDestructionFailed()
        reply = await client.ask({"action": 3, "kernel_id": kernel_id})
        self.assertEqual(reply, {"reply": 500, "cause": "Kernel destruction failed. Try again later."})


class StopTests(DoorTestCase):
    async def test_who_waits_is_told(self) -> None:
        """A client whose request is being worked on when the server stops gets a reply; detached work goes on."""
        gate: Deferred[Any] = Deferred()
        self.kernels.on_execute = lambda _request: gate
        kernel_id = (await self.manager().ask(SESSION))["kernel_id"]
        client = self.execution()
        waiting = client.ask({"action": 1, "entry_id": "e", "kernel_id": kernel_id, "cell_id": "1", "code": "1"})
        [kernel] = self.kernels.live.values()
        await self.eventually(lambda: bool(kernel.runs))
        started = reactor.seconds()
        await self.door.stopService()
        self.assertLess(reactor.seconds() - started, 1.0)
        self.assertEqual(await waiting, {"reply": 500, "cause": "The server is stopping."})
        self.assertEqual(self.listeners, [])
