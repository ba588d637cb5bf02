"""Folders in real kernels: written and read by several at once, read-only where they must be, and never a way out."""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
import tempfile
import uuid
from pathlib import Path
from unittest import SkipTest

from sorna.agent.folder_watch import FULL
from sorna.agent.sandbox.credentials import INSIDE_ID
from sorna.errors import AgentFailed
from sorna.folders.storage import DiskFolders
from sorna.manager.folder_interfaces import SmallFile
from sorna.model.folder import FolderBounds, Mount
from sorna.testing.folders import at_once
from sorna.testing.unit import UnitTestCase
from tests.integration.test_agent_kernels import RealKernelCase, console
from tests.integration.test_embedded import as_user, run_program

BOUNDS = FolderBounds(100, 10 * 1024 * 1024)
FOLDER, OTHER = uuid.UUID(int=1), uuid.UUID(int=2)


class KernelFolderTests(RealKernelCase):
    """A storage of folders beside the agent's kernels."""

    async def prepare(self) -> None:
        """Make the folders; without the means to mount them there is nothing to test."""
        if not self.sandbox.storage:
            raise SkipTest("folders cannot be mounted here")
        self.assertEqual(self.sandbox.storage, self.storage_id)
        self.folders = DiskFolders(self.folder_root, self.storage_id, at_once)
        for folder_id in (FOLDER, OTHER):
            await self.folders.create(folder_id)

    async def run_code(self, kernel_id: uuid.UUID, code: str) -> str:
        """Run code and give what it printed."""
        return console(await self.query(kernel_id, code))

    def content(self, folder_id: uuid.UUID = FOLDER) -> Path:
        return self.folder_root / folder_id.hex / "content"

    def mount(
        self, alias: str = "data", folder_id: uuid.UUID = FOLDER, *, read_only: bool = False, size: int = BOUNDS.size
    ) -> Mount:
        return Mount(folder_id.hex, alias, read_only, BOUNDS.files, size)

    async def test_several_kernels_share_a_folder(self) -> None:
        """Each kernel sees its own user as the owner of all files, can change what another wrote, and leaves it behind."""
        await self.prepare()
        await self.folders.write_files(FOLDER, [SmallFile("d/from-gateway", b"1\n")], BOUNDS)
        first = await self.create(mounts=[self.mount()])
        second = await self.create(mounts=[self.mount("in/put")])
        wrote = await self.run_code(
            first,
            "import os\n"
            "open('data/d/from-first', 'w').write('2')\n"
            "open('data/d/from-gateway', 'a').write('3')\n"
            "os.mkdir('data/new'); os.chmod('data/new', 0o700)\n"
            "print(os.stat('data/d/from-gateway').st_uid == os.getuid(), sorted(os.listdir('data')))",
        )
        self.assertEqual(wrote, "True ['d', 'new']\n")
        shell = "cat in/put/d/*; echo; echo 4 > in/put/new/x; rm in/put/d/from-first; test -O in/put/d && echo mine"
        printed = await self.run_code(second, f"import subprocess; print(subprocess.getoutput({shell!r}))")
        self.assertEqual(printed, "21\n3\nmine\n")
        root = self.content().stat()
        for path in (self.content() / "new" / "x", self.content() / "d" / "from-gateway"):
            self.assertEqual((path.stat().st_uid, path.stat().st_gid), (root.st_uid, root.st_gid))
        await self.kernels.destroy_kernel(first, "test")
        await self.kernels.destroy_kernel(second, "test")
        self.assertEqual((self.content() / "d" / "from-gateway").read_text(), "1\n3")
        entries = await self.folders.list_files(FOLDER, "new")
        self.assertEqual([entry.name for entry in entries], ["x"])

    async def test_read_only(self) -> None:
        """What is shared for reading cannot be changed, nor made writable."""
        await self.prepare()
        await self.folders.write_files(FOLDER, [SmallFile("f", b"1")], BOUNDS)
        kernel = await self.create(mounts=[self.mount(read_only=True), self.mount("other", OTHER)])
        printed = await self.run_code(
            kernel,
            "import os\n"
            "for act in (lambda: open('data/f', 'w'), lambda: os.unlink('data/f'), lambda: os.mkdir('data/d'),\n"
            "            lambda: os.chmod('data/f', 0o777), lambda: os.rename('data/f', 'other/f'), lambda: os.rmdir('data')):\n"
            "    try:\n        act(); print('done')\n    except OSError as error:\n        print(error.errno)\n"
            "print(open('data/f').read())",
        )
        self.assertEqual(printed, "30\n30\n30\n30\n18\n16\n1\n")

    async def test_no_way_out(self) -> None:
        """From a folder a kernel reaches neither another folder, nor the storage, nor the host."""
        await self.prepare()
        kernel = await self.create(mounts=[self.mount()])
        printed = await self.run_code(
            kernel,
            "import os, subprocess\n"
            "print(os.listdir('data/../..'))\n"
            "os.symlink('../uploads', 'data/up'); os.symlink('/etc/shadow', 'data/shadow')\n"
            "for path in ('data/up', 'data/shadow', 'data/../lock'):\n"
            "    print(os.path.exists(path))\n"
            "open('data/set', 'w').close(); os.chmod('data/set', 0o6755)\n"
            "mounts = [line for line in open('/proc/self/mountinfo') if ' /home/work/data ' in line]\n"
            "print(len(mounts), all(flag in mounts[0] for flag in ('nosuid', 'nodev')))\n"
            "try:\n    os.mknod('data/null', 0o666 | 0o020000, os.makedev(1, 3)); print('made')\n"
            "except OSError as error:\n    print(error.errno)\n",
        )
        self.assertEqual(printed, "['work']\nFalse\nFalse\nFalse\n1 True\n1\n")
        # What the gateway then does with what was planted.
        for path in ("up", "shadow", "up/x"):
            with self.assertRaises(Exception):  # noqa: B017 - each by its own error
                await self.folders.read_file(FOLDER, path, 0, 10)
        (link,) = await self.folders.list_files(FOLDER, "shadow")
        self.assertTrue(stat.S_ISLNK(link.mode))

    async def test_a_full_folder_ends_who_writes(self) -> None:
        """A kernel that writes more than a folder may hold ends with that reason; one that only reads goes on."""
        await self.prepare()
        reader = await self.create(mounts=[self.mount(read_only=True, size=100_000)])
        writer = await self.create(mounts=[self.mount(size=100_000)])
        await self.run_code(writer, "open('data/big', 'wb').write(bytes(200_000))")
        await self.news.come()
        self.assertEqual(self.news.ended, [(writer, FULL)])
        self.assertEqual(await self.run_code(reader, "import os; print(os.path.getsize('data/big'))"), "200000\n")

    async def test_a_missing_folder(self) -> None:
        """A folder without content ends the creation with a reason, and nothing is left of the kernel."""
        await self.prepare()
        with self.assertRaises(AgentFailed) as caught:
            await self.create(mounts=[self.mount(folder_id=uuid.UUID(int=99))])
        self.assertIn("folders", caught.exception.exception or "")
        self.assertEqual(self.kernels.occupied, 0)

    async def test_ids_and_aliases_that_are_none(self) -> None:
        """Neither an id nor an alias that could be a path reaches the sandbox."""
        await self.prepare()
        for mount in (
            Mount("../../etc", "data", False, 1, 1),
            Mount(FOLDER.hex, "../x", False, 1, 1),
            Mount(FOLDER.hex, "/etc", False, 1, 1),
            Mount(FOLDER.hex, "", False, 1, 1),
            Mount(FOLDER.hex, ".bashrc", False, 1, 1),
        ):
            with self.assertRaises(AgentFailed):
                await self.create(mounts=[mount])

    async def test_a_restart_keeps_folders(self) -> None:
        """After a restart of its session a kernel still sees them."""
        await self.prepare()
        kernel = await self.create(mounts=[self.mount()])
        await self.kernels.restart_kernel(kernel)
        self.assertEqual(await self.run_code(kernel, "open('data/x', 'w').write('1'); print('ok')"), "ok\n")
        self.assertEqual(os.listdir(self.content()), ["x"])  # noqa: PTH208 - one entry


class OrdinaryUserTests(UnitTestCase):
    """An agent that is no root: its own id is the kernel's."""

    def test_mounts(self) -> None:
        """A folder can be written to, or only read, and what is made in it is the user's own."""
        uid = 54_321
        with tempfile.TemporaryDirectory() as directory:
            os.chmod(directory, 0o777)  # noqa: PTH101,S103 - the other user works there
            words = as_user(uid) if os.geteuid() == 0 else [sys.executable]
            done = run_program([*words, "-m", "tests.integration.ordinary_folders", directory])
        if done.returncode or not done.stdout:
            raise SkipTest(f"no namespaces for ordinary users here: {done.stderr[-300:]}")
        seen, own = (json.loads(line) for line in done.stdout.splitlines())
        self.assertEqual(seen["owner"], INSIDE_ID)
        self.assertEqual((seen["refused"], own), (errno.EROFS, True))
        self.assertEqual(seen["flags"], [["nodev", "nosuid", "rw"], ["nodev", "nosuid", "ro"]])
