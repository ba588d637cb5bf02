"""What every implementation of :class:`sorna.gateway.interfaces.Kernels` does, as the doors rely on it."""

from __future__ import annotations

import uuid
from typing import Protocol

from twisted.trial.unittest import TestCase

from sorna.errors import (
    InvalidRequest,
    KernelAlreadyExists,
    KernelNotFound,
    OutputGone,
    QuotaExceeded,
    RunNotFound,
    RuntimeUnknown,
)
from sorna.gateway import interfaces as gateway
from sorna.legacy import interfaces as legacy
from sorna.manager.interfaces import UploadFile
from sorna.manager.requests import Created, CreateRequest, KernelEvent
from sorna.model.kernel import KernelStatus, Usage, short_id
from sorna.model.run import OutputRequest, RunMode, RunRequest, RunStatus
from sorna.model.service import TunnelWish
from sorna.testing.services import MemoryUser
from sorna.testing.terminals import MemoryViewer

OWNER = "AKIAIOSFODNN7EXAMPLE"
STRANGER = "AKIANABBDUSEREXAMPLE"
TOKEN = "contract-token"


class Kernels(gateway.Kernels, legacy.Kernels, Protocol):
    """What both doors want."""

    async def destroy(self, access_key: str, reference: str, reason: str = "user-requested") -> Usage: ...


class KernelsContract(TestCase):
    """Subclass this and make :attr:`kernels` in ``setUp``, with a quota of two for each owner.

    Import the module and not this class: trial runs every test case that it finds in the names of a test module.
    """

    kernels: Kernels

    async def create(self, token: str = TOKEN, owner: str = OWNER, runtime: str = "python3") -> Created:
        return await self.kernels.create(CreateRequest(owner, token, runtime))

    async def refused(self, error: type[Exception], owner: str, reference: str, *, ended: bool = False) -> None:
        """See that every method that names a kernel refuses a reference alike; output of ended kernels is another matter."""
        run = RunRequest(RunMode.QUERY, "1")
        kernels = self.kernels
        for attempt in (
            kernels.info(owner, reference),
            kernels.restart(owner, reference),
            kernels.destroy(owner, reference),
            kernels.execute(owner, reference, run),
            kernels.interrupt(owner, reference),
            kernels.complete(owner, reference, "", {}),
            kernels.upload(owner, reference, [UploadFile("x", b"")]),
            kernels.list_files(owner, reference, "."),
            kernels.read_file(owner, reference, "x", 0, 1),
            kernels.watch(owner, reference, lambda _event: None),
            kernels.logs(owner, reference),
            kernels.open_terminal(owner, reference, MemoryViewer()),
            kernels.services(owner, reference),
            kernels.open_tunnel(owner, reference, MemoryUser(), TunnelWish("files")),
            kernels.stop_service(owner, reference, "files"),
        ):
            with self.assertRaises(error):
                await attempt
        with self.assertRaises((RunNotFound, OutputGone) if ended else error):
            await kernels.read_output(owner, reference, OutputRequest("x", 0, 0))

    async def test_get_or_create(self) -> None:
        """One owner's token has one kernel, under any alias of its runtime."""
        first = await self.create()
        second = await self.create(runtime="python")
        self.assertEqual((first.created, second.created), (True, False))
        self.assertEqual((first.kernel_id, first.session_token), (second.kernel_id, TOKEN))
        self.assertEqual((first.runtime, first.status), ("python3", KernelStatus.RUNNING))
        self.assertNotEqual((await self.create(owner=STRANGER)).kernel_id, first.kernel_id)

    async def test_refused_creations(self) -> None:
        """Unknown runtimes, tokens of another runtime and more than the quota are refused; re-attaching is not."""
        with self.assertRaises(RuntimeUnknown):
            await self.create(runtime="cobol")
        await self.create()
        with self.assertRaises(KernelAlreadyExists):
            await self.create(runtime="lua")
        with self.assertRaises(KernelAlreadyExists):
            await self.kernels.create(CreateRequest(OWNER, TOKEN, "python3", reuse=False))
        await self.create("second-token")
        with self.assertRaises(QuotaExceeded):
            await self.create("third-token")
        self.assertFalse((await self.create()).created)

    async def test_events(self) -> None:
        """Whoever watches one kernel, or all, hears of its own owner's alone, until the watching is ended."""
        kernel_id = (await self.create()).kernel_id
        one: list[KernelEvent] = []
        every: list[KernelEvent] = []
        unwatch = await self.kernels.watch(OWNER, TOKEN, one.append)
        await self.kernels.watch(OWNER, None, every.append)
        await self.create("second-token")
        await self.create("third-token", STRANGER)
        await self.kernels.restart(OWNER, TOKEN)
        await self.kernels.destroy(OWNER, TOKEN)
        told = [(KernelStatus.RUNNING, "restarted"), (KernelStatus.TERMINATED, "user-requested")]
        self.assertEqual(
            [(event.kernel_id, event.status, event.reason) for event in one], [(kernel_id, *row) for row in told]
        )
        self.assertEqual([event.session_token for event in every], ["second-token", TOKEN, TOKEN])
        unwatch()
        await self.create()
        self.assertEqual(len(one), 2)

    async def test_references(self) -> None:
        """A kernel is found by either spelling of its id and by its token; each call counts."""
        kernel_id = (await self.create()).kernel_id
        for count, reference in enumerate((short_id(kernel_id), str(kernel_id), TOKEN), 1):
            info = await self.kernels.info(OWNER, reference)
            self.assertEqual((info.kernel_id, info.num_queries), (kernel_id, count))

    async def test_unknown_kernels(self) -> None:
        """What names no kernel is not found by any method."""
        for reference in ("nobody-has-this", short_id(uuid.uuid4()), str(uuid.uuid4())):
            await self.refused(KernelNotFound, OWNER, reference)

    async def test_other_owners(self) -> None:
        """Another owner's kernel is not found by any method, and stays."""
        kernel_id = (await self.create()).kernel_id
        await self.refused(KernelNotFound, STRANGER, short_id(kernel_id))
        await self.refused(KernelNotFound, STRANGER, TOKEN)
        self.assertEqual((await self.kernels.info(OWNER, TOKEN)).num_queries, 1)

    async def test_lives(self) -> None:
        """Whether a kernel lives can be asked without counting, and only by its owner."""
        kernel_id = str((await self.create()).kernel_id)
        self.assertTrue(await self.kernels.lives(OWNER, kernel_id))
        self.assertFalse(await self.kernels.lives(STRANGER, kernel_id))
        self.assertEqual((await self.kernels.info(OWNER, TOKEN)).num_queries, 1)
        await self.kernels.destroy(OWNER, TOKEN, "for a reason")
        self.assertFalse(await self.kernels.lives(OWNER, kernel_id))

    async def test_joined_names(self) -> None:
        """A token that the ZeroMQ door made of names, which no client could choose, has a kernel like any other."""
        wish = CreateRequest(OWNER, "user:entry%20one:python3", "python3", names_joined=True)
        first = await self.kernels.create(wish)
        self.assertEqual((await self.kernels.create(wish)).kernel_id, first.kernel_id)
        self.assertEqual((await self.kernels.info(OWNER, str(first.kernel_id))).session_token, wish.session_token)

    async def test_run(self) -> None:
        """A run ends and carries the client's id; input that nothing waits for is refused."""
        await self.create()
        reply = await self.kernels.execute(OWNER, TOKEN, RunRequest(RunMode.QUERY, "1", "my-run", wait=None))
        self.assertEqual((reply.status, reply.run_id), (RunStatus.FINISHED, "my-run"))
        with self.assertRaises(InvalidRequest):
            await self.kernels.execute(OWNER, TOKEN, RunRequest(RunMode.INPUT, "line"))

    async def test_small_calls(self) -> None:
        """Restart, interrupt, completion and logs work on a live kernel."""
        await self.create()
        await self.kernels.restart(OWNER, TOKEN)
        await self.kernels.interrupt(OWNER, TOKEN)
        self.assertTrue(all(isinstance(one, str) for one in await self.kernels.complete(OWNER, TOKEN, "pri", {})))
        self.assertIsInstance(await self.kernels.logs(OWNER, TOKEN), str)

    async def test_upload(self) -> None:
        """Paths that climb out are refused, and then no file of the request is written."""
        await self.create()
        await self.kernels.upload(OWNER, TOKEN, [UploadFile("a/b.txt", b"x"), UploadFile("c", b"")])
        for path in ("", "/etc/passwd", "../x", "a/../../x", "a\0b"):
            with self.assertRaises(InvalidRequest):
                await self.kernels.upload(OWNER, TOKEN, [UploadFile("fine", b""), UploadFile(path, b"")])

    async def test_terminal(self) -> None:
        """Looking at a terminal counts as a query, and its viewers learn of the kernel's end."""
        await self.create()
        viewer, closed = MemoryViewer(), MemoryViewer()
        await self.kernels.open_terminal(OWNER, TOKEN, viewer)
        (await self.kernels.open_terminal(OWNER, TOKEN, closed, rows=50, columns=132)).close()
        self.assertEqual((await self.kernels.info(OWNER, TOKEN)).num_queries, 3)
        await self.kernels.destroy(OWNER, TOKEN)
        self.assertEqual((len(viewer.ends), closed.ends), (1, []))

    async def test_services(self) -> None:
        """Applications and named ports are listed, at creation and later, and found again with the kernel."""
        wish = CreateRequest(OWNER, TOKEN, "python3", ports=[8000])
        made, found = await self.kernels.create(wish), await self.kernels.create(wish)
        names = [service.name for service in await self.kernels.services(OWNER, TOKEN)]
        self.assertIn("8000", names)
        self.assertIn("files", names)
        for created in (made, found):
            self.assertEqual([service.name for service in created.services], names)

    async def test_tunnel(self) -> None:
        """Opening a tunnel counts as a query; its user learns of the kernel's end unless it has closed the tunnel."""
        await self.create()
        user, closed = MemoryUser(), MemoryUser()
        await self.kernels.open_tunnel(OWNER, TOKEN, user, TunnelWish("files"))
        (await self.kernels.open_tunnel(OWNER, TOKEN, closed, TunnelWish("files"))).close()
        with self.assertRaises(InvalidRequest):
            await self.kernels.open_tunnel(OWNER, TOKEN, MemoryUser(), TunnelWish("nothing-of-that-name"))
        with self.assertRaises(InvalidRequest):
            await self.kernels.stop_service(OWNER, TOKEN, "nothing-of-that-name")
        await self.kernels.stop_service(OWNER, TOKEN, "files")
        self.assertEqual((await self.kernels.info(OWNER, TOKEN)).num_queries, 6)
        await self.kernels.destroy(OWNER, TOKEN)
        self.assertEqual((len(user.reasons), closed.told), (1, []))

    async def test_destroy(self) -> None:
        """A destroyed kernel is gone at once, and its token and its place in the quota are free."""
        first = await self.create()
        await self.create("second-token")
        usage = await self.kernels.destroy(OWNER, TOKEN)
        self.assertIsInstance(usage.cpu_used, int | float)
        for reference in (TOKEN, short_id(first.kernel_id), str(first.kernel_id)):
            await self.refused(KernelNotFound, OWNER, reference, ended=True)
            await self.refused(KernelNotFound, STRANGER, reference)
        second = await self.create()
        self.assertTrue(second.created)
        self.assertNotEqual(first.kernel_id, second.kernel_id)
