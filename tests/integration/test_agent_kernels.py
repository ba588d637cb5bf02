"""The agent's kernels whole: real tiers, the real runner, the real channel in the real reactor.

What the unit tests play by hand is done here by processes: each runtime that the host offers, input, limits, destroying,
restarting, and output in quantity.
"""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
import uuid
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.trial.unittest import SkipTest, TestCase

from sorna.agent.channel import Channel
from sorna.agent.detection import Detection, detect
from sorna.agent.devices import Devices
from sorna.agent.ended import EndedKernels
from sorna.agent.factory import KernelFactory
from sorna.agent.folder_watch import FolderWatch
from sorna.agent.interfaces import SandboxSettings
from sorna.agent.kernels import Kernels
from sorna.agent.pool import Pool
from sorna.agent.sandbox.tiers import NamespaceSandbox
from sorna.beneath.storage_root import prepare_root
from sorna.errors import AgentRefused, IsolationUnavailable, KernelNotFound
from sorna.model.folder import Mount
from sorna.model.kernel import KernelSpec, Usage
from sorna.model.limits import MIB, Limits, OutputBounds
from sorna.model.run import OutputRequest, RunMode, RunReply, RunRequest, RunStatus
from tests.integration.test_agent_languages import PROGRAMS, the_reactor


class News:
    def __init__(self) -> None:
        self.ended: list[tuple[uuid.UUID, str]] = []
        self._waiting: list[Deferred[None]] = []

    def kernel_ended(self, kernel_id: uuid.UUID, reason: str, usage: Usage) -> None:
        self.ended.append((kernel_id, reason))
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.callback(None)

    async def come(self) -> None:
        """Wait for news."""
        if not self.ended:
            waiting: Deferred[None] = Deferred()
            self._waiting.append(waiting)
            await waiting


def console(reply: RunReply, stream: str = "stdout") -> str:
    """Give a reply's text of one stream."""
    return "".join(text for kind, text in reply.console if kind == stream)


class RealKernelCase(TestCase):
    timeout = 90
    pooled = 0
    device_root = Path("/nonexistent")
    detection: ClassVar[Detection | None] = None

    async def setUp(self) -> None:  # type: ignore[override]  # trial waits for it
        reactor: Any = the_reactor()
        cls = type(self)
        if cls.detection is None:
            cls.detection = await detect(reactor, reactor, sys.executable, dict(os.environ))
        directory = tempfile.TemporaryDirectory(prefix="sorna-folders-")
        self.addCleanup(directory.cleanup)
        self.folder_root = Path(directory.name)
        self.storage_id = prepare_root(self.folder_root)
        self.sandbox = NamespaceSandbox(
            reactor,
            SandboxSettings(
                python=sys.executable, read_only=cls.detection.read_only, folder_root=str(self.folder_root)
            ),
            f"test-{secrets.token_hex(4)}",
        )
        try:
            await self.sandbox.start()
        except IsolationUnavailable as error:
            raise SkipTest(f"no isolation here: {error.detail}") from error
        self.addCleanup(lambda: Deferred.fromCoroutine(self.sandbox.stop()))
        self.news = News()
        factory = KernelFactory(reactor, self.sandbox, cls.detection.runtimes, partial(Channel, reactor))
        self.pool = Pool(reactor, factory, self.pooled)
        self.watch = FolderWatch(
            reactor, self.folder_root, partial(deferToThreadPool, reactor, reactor.getThreadPool())
        )
        ended = EndedKernels(reactor, OutputBounds())
        self.kernels = Kernels(
            reactor,
            self.pool,
            cls.detection.runtimes,
            8,
            self.watch,
            ended=ended,
            devices=Devices(self.device_root, hidden=True),
        )
        self.kernels.report_to(self.news)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.kernels.stop()))
        self.addCleanup(lambda: Deferred.fromCoroutine(self.pool.stop()))

    async def create(self, runtime: str = "python3", mounts: Sequence[Mount] = (), **limits: Any) -> uuid.UUID:
        assert self.detection is not None
        if runtime not in self.detection.runtimes:
            raise SkipTest(f"{runtime} is not offered here: {self.detection.missing[runtime]}")
        kernel_id = uuid.UUID(bytes=secrets.token_bytes(16))
        spec = KernelSpec("AKIA", "t", runtime, runtime, evolve(Limits(), **limits), mounts=mounts)
        await self.kernels.create_kernel(kernel_id, spec)
        return kernel_id

    async def query(self, kernel_id: uuid.UUID, code: str, run_id: str | None = None) -> RunReply:
        return await self.kernels.execute(kernel_id, RunRequest(RunMode.QUERY, code, run_id, wait=None))


class PooledKernelTests(RealKernelCase):
    pooled = 3

    async def ready(self, number: int) -> None:
        """Wait until so many kernels are ready."""
        while len(self.pool) != number:
            await deferLater(the_reactor(), 0.01, lambda: None)

    async def test_taken_kernel(self) -> None:
        """A kernel that was ready has the request's variables in its running interpreter, in its commands, and its limits."""
        self.pool.start("python3", 2)
        await self.ready(2)
        kernel_id = uuid.UUID(bytes=secrets.token_bytes(16))
        limits = evolve(Limits(), memory=96 * MIB, cpu_cores=0.5)
        spec = KernelSpec("AKIA", "t", "python3", "python3", limits, {"GREETING": "héllo", "TZ": "UTC-3"})
        await self.kernels.create_kernel(kernel_id, spec)
        self.assertEqual(len(self.pool), 1)
        code = """
import os, subprocess, time
print(os.environ["GREETING"], os.environ["SORNA_MEMORY_MIB"], time.strftime("%z"), os.environ.get("HOME"))
print(subprocess.run("echo $GREETING", shell=True, capture_output=True, text=True).stdout.strip())"""
        self.assertEqual(console(await self.query(kernel_id, code)), "héllo 96 +0300 /home/work\nhéllo\n")
        await self.kernels.restart_kernel(kernel_id)
        reply = await self.query(kernel_id, "import os; print(os.environ['GREETING'])")
        self.assertEqual(console(reply), "héllo\n")
        reply = await self.query(kernel_id, "x = [bytearray(1 << 20) for _ in range(1000)]")
        if reply.exit_code != 1:  # else a host without a control group for memory
            self.assertIn("96 MiB", console(reply, "stderr"))
        await self.ready(2)

    async def test_limits_up_and_down(self) -> None:
        """A kernel that was ready gets more memory or less than it was made with, and Linux is told."""
        trees = [tree for tree in self.sandbox._trees if "memory" in tree.controllers]
        if not trees:
            raise SkipTest("this host has no control group for memory")
        tree = trees[0]
        file = "memory.limit_in_bytes" if tree.version == 1 else "memory.max"
        self.pool.start("python3", 2)
        for memory in (1024 * MIB, 64 * MIB):
            await self.ready(2)
            kernel_id = await self.create(memory=memory)
            group = Path(tree.directory, self.kernels.live()[kernel_id]._confined.kernel_id)
            self.assertEqual(int((group / file).read_text()), memory)

    async def test_kernels_do_not_share_randomness(self) -> None:
        """Kernels that were forked one after another before anybody asked draw different numbers."""
        self.pool.start("python3", 3)
        await self.ready(3)
        code = "import random, numpy, uuid; print(random.random(), numpy.random.rand(), uuid.uuid4())"
        replies = [await self.query(await self.create(), code) for _ in range(3)]
        self.assertEqual([console(reply, "stderr") for reply in replies], [""] * 3)
        for column in zip(*(console(reply).split() for reply in replies), strict=True):
            self.assertEqual(len(set(column)), 3, column)

    async def test_nothing_is_left(self) -> None:
        """After the stop no process of a kernel that was ready is there."""
        self.pool.start("python3", 3)
        await self.ready(3)
        pids = [kernel.pid for shelf in self.pool._shelves.values() for kernel in shelf.ready]
        self.assertEqual(len(pids), 3)
        await self.pool.stop()
        self.assertEqual([pid for pid in pids if os.path.exists(f"/proc/{pid}")], [])  # noqa: PTH110


class RealKernelTests(RealKernelCase):
    async def test_python_session(self) -> None:
        """State stays between runs, the last expression is echoed, errors have a traceback and a record."""
        kernel_id = await self.create()
        reply = await self.query(kernel_id, "a = 6\na * 7")
        self.assertEqual((reply.status, reply.exit_code, console(reply)), (RunStatus.FINISHED, 0, "42\n"))
        reply = await self.query(kernel_id, "print(a); 1 / 0")
        self.assertEqual((console(reply), reply.exit_code), ("6\n", 1))
        self.assertIn("ZeroDivisionError", console(reply, "stderr"))
        self.assertEqual(reply.exceptions[0].name, "ZeroDivisionError")
        usage = await self.kernels.destroy_kernel(kernel_id, "user-requested")
        self.assertGreater(usage.cpu_used, 0)
        with self.assertRaises(KernelNotFound):
            await self.query(kernel_id, "1")

    async def test_input(self) -> None:
        """A run that asks is answered, with a password flag where it is one."""
        kernel_id = await self.create()
        reply = await self.query(kernel_id, "import getpass\nprint(input('name? '), getpass.getpass())")
        self.assertEqual((reply.status, console(reply)), (RunStatus.WAITING_INPUT, "name? "))
        self.assertEqual(reply.options, {"is_password": False})
        reply = await self.query(kernel_id, "Ada")
        self.assertEqual((reply.status, reply.options), (RunStatus.WAITING_INPUT, {"is_password": True}))
        reply = await self.kernels.execute(kernel_id, RunRequest(RunMode.INPUT, "secret", wait=None))
        self.assertEqual((reply.status, console(reply).split()[-2:]), (RunStatus.FINISHED, ["Ada", "secret"]))

    async def test_typed_ahead(self) -> None:
        """Lines typed ahead are taken in order, and the run is not believed to wait when it does not."""
        kernel_id = await self.create()
        code = "import time; time.sleep(0.2)\nfor _ in range(20): print(input())"
        await self.kernels.execute(kernel_id, RunRequest(RunMode.QUERY, code, "r", wait=0))
        reply = None
        for number in range(20):
            request = RunRequest(RunMode.INPUT, str(number), "r", wait=None if number == 19 else 0)
            reply = await self.kernels.execute(kernel_id, request)
        text = ""
        while reply is not None and reply.status is not RunStatus.FINISHED:
            text += console(reply)
            reply = await self.kernels.execute(kernel_id, RunRequest(RunMode.CONTINUE, run_id="r", wait=None))
        assert reply is not None
        self.assertEqual((text + console(reply)).split()[-1], "19")

    async def test_execution_timeout(self) -> None:
        """A run that computes too long is ended with a sentence and 124, and the kernel works on."""
        kernel_id = await self.create(execution_timeout=0.5)
        reply = await self.query(kernel_id, "print('begun')\nwhile True: pass")
        self.assertEqual((reply.status, reply.exit_code, console(reply)), (RunStatus.FINISHED, 124, "begun\n"))
        self.assertIn("limit of 0.5 seconds", console(reply, "stderr"))
        self.assertEqual(console(await self.query(kernel_id, "1+1")), "2\n")

    async def test_timeout_cannot_be_evaded_by_asking(self) -> None:
        """A run whose main thread computes while another thread waits for a line ends by its limit all the same."""
        kernel_id = await self.create(execution_timeout=1.0)
        code = "import threading; threading.Thread(target=input, daemon=True).start()\nwhile True: pass"
        reply = await self.query(kernel_id, code, "r")
        self.assertEqual(reply.status, RunStatus.WAITING_INPUT)
        while reply.status is not RunStatus.FINISHED:
            await deferLater(the_reactor(), 0.5, lambda: None)
            reply = await self.kernels.execute(kernel_id, RunRequest(RunMode.CONTINUE, run_id="r"))
        self.assertEqual(reply.exit_code, 124)

    async def test_endless_print(self) -> None:
        """An endless print ends at its limit of output, although it is faster than any reader."""
        kernel_id = await self.create(output_size=3 * MIB)
        reply = await self.query(kernel_id, "while True: print('y' * 1000)")
        size = len(console(reply))
        while reply.status is RunStatus.CONTINUED:
            reply = await self.kernels.execute(kernel_id, RunRequest(RunMode.CONTINUE, wait=None))
            size += len(console(reply))
        self.assertEqual((reply.status, reply.exit_code, size), (RunStatus.FINISHED, 124, 3 * MIB))
        self.assertIn("limit of 3 MiB", console(reply, "stderr"))
        self.assertEqual(console(await self.query(kernel_id, "1+1")), "2\n")

    async def test_unread_endless_print_can_be_ended(self) -> None:
        """A run that nobody reads is blocked, costs no memory, and still ends by its time."""
        kernel_id = await self.create(execution_timeout=1.0)
        await self.kernels.execute(kernel_id, RunRequest(RunMode.QUERY, "while True: print('y' * 1000)", "r", wait=0))
        await deferLater(the_reactor(), 1.5, lambda: None)
        kernel = self.kernels.live()[kernel_id]
        self.assertLess(kernel.runs.cost, 7 * MIB)
        reply = await self.kernels.execute(kernel_id, RunRequest(RunMode.CONTINUE, run_id="r"))
        while reply.status is RunStatus.CONTINUED:
            reply = await self.kernels.execute(kernel_id, RunRequest(RunMode.CONTINUE, run_id="r"))
        self.assertEqual(reply.exit_code, 124)

    async def test_much_output(self) -> None:
        """Fifty million bytes arrive complete and in order, in bounded pieces."""
        kernel_id = await self.create()
        code = "for n in range(500_000): print(f'{n:099}')"
        reply = await self.kernels.execute(kernel_id, RunRequest(RunMode.QUERY, code))
        expected = 0
        rest = ""
        while True:
            lines = (rest + console(reply)).split("\n")
            rest = lines.pop()
            for line in lines:
                if int(line) != expected:
                    self.fail(f"{line} instead of {expected}")
                expected += 1
            if reply.status is RunStatus.FINISHED:
                break
            reply = await self.kernels.execute(kernel_id, RunRequest(RunMode.CONTINUE))
        self.assertEqual((expected, rest), (500_000, ""))

    async def test_memory_bomb(self) -> None:
        """A run that takes too much memory is told so, with 137 and the limit's size."""
        kernel_id = await self.create(memory=96 * MIB)
        reply = await self.query(kernel_id, "x = [bytearray(1 << 20) for _ in range(1000)]")
        self.assertEqual(reply.status, RunStatus.FINISHED)
        if reply.exit_code == 1 and "MemoryError" in console(reply, "stderr"):
            raise SkipTest("this host has no control group for memory: the process limit raised MemoryError")
        self.assertEqual(reply.exit_code, 137)
        self.assertIn("96 MiB", console(reply, "stderr"))

    async def test_destroy_during_a_run(self) -> None:
        """The waiting call is answered with 130 and the reason."""
        kernel_id = await self.create()
        answer = Deferred.fromCoroutine(self.query(kernel_id, "print('x', flush=True)\nimport time; time.sleep(60)"))
        await deferLater(the_reactor(), 0.2, lambda: None)
        await self.kernels.destroy_kernel(kernel_id, "user-requested")
        reply = await answer
        self.assertEqual((reply.status, reply.exit_code, console(reply)), (RunStatus.FINISHED, 130, "x\n"))
        self.assertIn("user-requested", console(reply, "stderr"))
        self.assertEqual(self.news.ended, [])

    async def test_restart_during_a_run(self) -> None:
        """The run ends, the state is new, the files stay."""
        kernel_id = await self.create()
        await self.kernels.upload(kernel_id, "a/kept.txt", b"kept")
        await self.query(kernel_id, "a = 1")
        answer = Deferred.fromCoroutine(self.query(kernel_id, "import time; time.sleep(60)"))
        await deferLater(the_reactor(), 0.1, lambda: None)
        await self.kernels.restart_kernel(kernel_id)
        self.assertEqual((await answer).exit_code, 130)
        reply = await self.query(kernel_id, "print(open('a/kept.txt').read(), 'a' in globals())")
        self.assertEqual(console(reply), "kept False\n")

    async def test_interrupt(self) -> None:
        """An interrupt is a KeyboardInterrupt, and the state stays."""
        kernel_id = await self.create()
        await self.query(kernel_id, "a = 5")
        answer = Deferred.fromCoroutine(self.query(kernel_id, "import time; time.sleep(60)"))
        await deferLater(the_reactor(), 0.2, lambda: None)
        await self.kernels.interrupt(kernel_id)
        self.assertIn("KeyboardInterrupt", console(await answer, "stderr"))
        self.assertEqual(console(await self.query(kernel_id, "a")), "5\n")

    async def test_runner_dies(self) -> None:
        """A process that ends itself ends its run with its status; the next run starts on a fresh state."""
        kernel_id = await self.create()
        reply = await self.query(kernel_id, "import os; os._exit(7)")
        self.assertEqual((reply.status, reply.exit_code), (RunStatus.FINISHED, 7))
        self.assertEqual(console(await self.query(kernel_id, "1+1")), "2\n")

    async def test_idle_timeout(self) -> None:
        """A kernel that nobody uses ends and is news."""
        kernel_id = await self.create(idle_timeout=0.3)
        await self.news.come()
        self.assertEqual(self.news.ended, [(kernel_id, "idle-timeout")])

    async def test_upload_that_climbs_out(self) -> None:
        """A path out of the working directory is refused."""
        kernel_id = await self.create()
        for path in ("../x", "/etc/x", "a/../../x"):
            with self.assertRaises(AgentRefused):
                await self.kernels.upload(kernel_id, path, b"x")

    async def test_reading_again(self) -> None:
        """Whatever answers were lost, a reader that goes on from its last number gets every byte in order, then the end."""
        kernel_id = await self.create()
        code = "for number in range(200_000): print(number)"
        first = await self.kernels.execute(kernel_id, RunRequest(RunMode.QUERY, code, run_id="r1", wait=0.0))
        self.assertEqual(first.first_seq, 0)
        text, seq, ended = "", 0, False
        while not ended:
            # Everything is asked for twice, as if each first answer had been lost.
            lost = await self.kernels.read_output(kernel_id, OutputRequest("r1", seq, seq, 5.0))
            reply = await self.kernels.read_output(kernel_id, OutputRequest("r1", seq, seq, 5.0))
            self.assertEqual(reply.missing, 0)
            self.assertTrue(console(reply).startswith(console(lost)))
            text += console(reply)
            seq, ended = reply.next_seq, reply.status is RunStatus.FINISHED
        self.assertEqual(text, "".join(f"{number}\n" for number in range(200_000)))

    async def test_files(self) -> None:
        """What a kernel wrote is listed and read piece by piece; a link leads nowhere, inside the sandbox too."""
        kernel_id = await self.create()
        await self.query(
            kernel_id, "import os; os.mkdir('d'); open('d/f', 'wb').write(bytes(700_000)); os.symlink('/etc', 'd/l')"
        )
        entries = {entry.name: entry for entry in await self.kernels.list_files(kernel_id, ".", recursive=True)}
        self.assertEqual((entries["d/f"].size, entries["d"].is_directory), (700_000, True))
        self.assertFalse(entries["d/l"].is_file or entries["d/l"].is_directory)
        content = b""
        while len(content) < entries["d/f"].size:
            content += (await self.kernels.read_file(kernel_id, "d/f", len(content), 1 << 30)).content
        self.assertEqual(content, bytes(700_000))
        for path in ("d/l/passwd", "../etc/passwd", "/etc/passwd"):
            with self.assertRaises(AgentRefused):
                await self.kernels.read_file(kernel_id, path, 0, 10)

    async def test_completion(self) -> None:
        """Completions come from the live namespace."""
        kernel_id = await self.create()
        await self.query(kernel_id, "my_variable = 1")
        self.assertIn("my_variable", await self.kernels.complete(kernel_id, "my_va", {"line": "my_va", "col": 5}))

    async def test_logs(self) -> None:
        """The log is what was printed."""
        kernel_id = await self.create()
        await self.query(kernel_id, "print('hello')")
        self.assertIn("hello\n", await self.kernels.logs(kernel_id))


def _add_runtime_tests() -> None:
    for name in PROGRAMS:

        async def test(self: RealKernelTests, name: str = name) -> None:
            program = PROGRAMS[name]
            kernel_id = await self.create(name, execution_timeout=60.0)
            for path, content in program.files.items():
                await self.kernels.upload(kernel_id, path, content.encode())
            if program.query:
                reply = await self.query(kernel_id, program.query)
                found = (console(reply).strip(), reply.exit_code)
                self.assertEqual(found, ("42", 0), reply)
            batch = RunRequest(RunMode.BATCH, build="*", exec="*", wait=None)
            reply = await self.kernels.execute(kernel_id, batch)
            self.assertEqual(reply.status, RunStatus.BUILD_FINISHED, reply)
            reply = await self.kernels.execute(kernel_id, batch)
            self.assertEqual((console(reply).split(), reply.exit_code), (["batch", "42"], 0), reply)

        test.__doc__ = f"{name} works inside its sandbox, in query and in batch mode."
        setattr(RealKernelTests, f"test_runtime_{name.replace('-', '_')}", test)


_add_runtime_tests()
