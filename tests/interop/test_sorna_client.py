"""sorna-client 0.9.8 of 2017, as published."""

from __future__ import annotations

import secrets

from tests.interop.environments import SORNA_0_9_8
from tests.interop.setting import MAIN_C, READS_DATA, InteropTestCase, Said


class CommandLineTests(InteropTestCase):
    """``python -m sorna.cli run`` and the scripts beside it."""

    client = SORNA_0_9_8

    def sorna(self, *arguments: str, typed: str = "") -> Said:
        """Run a command."""
        return self.run_program("python", "-W", "ignore", "-m", "sorna.cli", *arguments, typed=typed)

    def test_snippet(self) -> None:
        """A snippet runs in a temporary kernel."""
        said = self.sorna("run", "python3", "-c", "print(1+1)")
        self.says(said, "Client session token: ", "Kernel (ID: ", "2\n", "Cleaned up the kernel.")

    def test_quiet(self) -> None:
        """With -q there is nothing but the run's output, and stderr is apart."""
        said = self.sorna("run", "-q", "python3", "-c", "import sys; print(1); print(2, file=sys.stderr)")
        self.assertEqual((said.out, said.err), ("1\n", "2\n"))

    def test_exception(self) -> None:
        """An exception of user code is a finished run with a traceback on stderr."""
        said = self.sorna("run", "-q", "python3", "-c", "1/0")
        self.assertEqual((said.code, said.out), (0, ""))
        self.assertIn("ZeroDivisionError", said.err)

    def test_input(self) -> None:
        """A typed line reaches input(), a second one a hidden prompt."""
        code = "import getpass; print('hi', input('name? ')); print(len(getpass.getpass('secret: ')))"
        said = self.sorna("run", "python3", "-c", code, typed="sorna\nfour\n")
        self.says(said, "name? ", "hi sorna\n", "4\n", "Cleaned up the kernel.")

    def test_longer_than_an_answer(self) -> None:
        """A run that takes longer than one answer may is continued, and nothing is lost or doubled."""
        code = "import time\nfor i in range(3): print('tick', i); time.sleep(1.1)"
        said = self.sorna("run", "-q", "python3", "-c", code)
        self.says(said)
        self.assertEqual(said.out, "tick 0\ntick 1\ntick 2\n")

    def test_c_program(self) -> None:
        """Lcc uploads, builds and runs a C file."""
        self.need("gcc")
        self.write("main.c", MAIN_C)
        self.says(self.run_program("lcc", "main.c"), "Uploading done.", "Build finished.", "hello from C\n")

    def test_own_commands(self) -> None:
        """Building and running by one's own commands."""
        self.need("gcc")
        self.write("src/prog.c", MAIN_C)
        arguments = ("-b", "gcc -o prog src/prog.c", "-e", "./prog && echo and more", "c", "src/prog.c")
        self.says(self.sorna("run", *arguments), "hello from C\nand more\n")

    def test_python_file_with_data(self) -> None:
        """A program finds the data file that was uploaded beside it."""
        self.write("main.py", READS_DATA)
        self.write("data.txt", "forty-two\n")
        self.says(self.sorna("run", "python3", "main.py", "data.txt"), "read: forty-two\n")

    def test_lpython(self) -> None:
        """The alias ``python`` names the same runtime."""
        self.says(self.run_program("lpython", "-c", "print('alias')"), "alias\n")

    def test_token_reuse(self) -> None:
        """A named session keeps its state between commands."""
        token = f"interop-{secrets.token_hex(6)}"
        self.says(self.sorna("run", "-t", token, "python3", "-c", "x = 41"), "Connecting to the kernel")
        said = self.sorna("run", "-t", token, "python3", "-c", "print(x + 1)")
        self.says(said, "42\n")
        self.assertNotIn("Cleaned up", said.text)
        self.library(f"from sorna.kernel import Kernel; Kernel.get_or_create('python3', {token!r}).destroy()")


class LibraryTests(InteropTestCase):
    """The client's library."""

    client = SORNA_0_9_8

    def test_kernel(self) -> None:
        """Create, run, describe, restart, destroy, and the error for what is gone."""
        lines = self.library(
            "from sorna.kernel import Kernel\n"
            "from sorna.exceptions import SornaAPIError\n"
            "k = Kernel.get_or_create('python3')\n"
            "run = lambda code: k.execute(code, mode='query')\n"
            "print(run('x = 5')['status'])\n"
            "print(run('print(x)')['console'])\n"
            "info = k.get_info()\n"
            "print(info['lang'], info['numQueriesExecuted'], info['age'] > 0, info['memoryLimit'] > 0)\n"
            "k.restart()\n"
            "print('NameError' in str(run('x')['console']))\n"
            "k.destroy()\n"
            "try: k.get_info()\n"
            "except SornaAPIError as e: print(e.args[0])\n"
        )
        self.assertEqual(lines, ["finished", "[['stdout', '5\\n']]", "python3 3 True True", "True", "404"])

    def test_version_and_authorization(self) -> None:
        """The version query works with the wrong signature this client sends, and a good one is accepted."""
        lines = self.library(
            "from sorna.request import Request\n"
            "r = Request('GET', '/')\n"
            "print(r.send().json()['version'][:2])\n"
            "r = Request('GET', '/authorize', {'echo': 'hello'})\n"
            "print(sorted(r.send().json().items()))\n"
        )
        self.assertEqual(lines[0][0], "v")
        self.assertEqual(lines[1], "[('authorized', 'yes'), ('echo', 'hello')]")

    def test_asynchronous(self) -> None:
        """The asynchronous half of the library."""
        lines = self.library(
            "import asyncio\n"
            "from sorna.asyncio.kernel import AsyncKernel\n"
            "async def main():\n"
            "    k = await AsyncKernel.get_or_create('python3')\n"
            "    print((await k.execute('print(6*7)', mode='query'))['console'])\n"
            "    await k.restart()\n"
            "    print((await k.get_info())['lang'])\n"
            "    await k.destroy()\n"
            "asyncio.get_event_loop().run_until_complete(main())\n"
        )
        self.assertEqual(lines, ["[['stdout', '42\\n']]", "python3"])
