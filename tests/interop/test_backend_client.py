"""backend.ai-client 1.1.11 and 1.4.2 of 2018, as published."""

from __future__ import annotations

import secrets
import textwrap

from tests.interop.environments import BACKEND_1_1_11, BACKEND_1_4_2
from tests.interop.setting import FAILING_C, MAIN_C, READS_DATA, InteropTestCase, Said


class BackendTestCase(InteropTestCase):
    """Ways to run the client."""

    def backend(self, *arguments: str, typed: str = "") -> Said:
        """Run a command."""
        return self.run_program("backend.ai", *arguments, typed=typed)

    def session(self) -> str:
        """Name a session that is ended after the test."""
        token = f"interop-{secrets.token_hex(6)}"
        self.addCleanup(self.backend, "terminate", token)
        return token


class OldCommandLineTests(BackendTestCase):
    """Release 1.1.11; the newer release runs the same tests."""

    client = BACKEND_1_1_11
    # How the library makes a session; the newer release does so within an object of its own.
    make = "from ai.backend.client.kernel import Kernel\nk = Kernel.get_or_create('python3')\n"
    end = "pass"

    def test_run_and_remove(self) -> None:
        """--rm ends the session, and the exit code is told."""
        said = self.backend("run", "--rm", "python3", "-c", "print(1+1)")
        self.says(said, " is ready.", "2\n", "Finished. (exit code = ", "Cleaned up the session.")

    def test_statistics(self) -> None:
        """--stats prints what the session used; with -q there is nothing else but the output."""
        said = self.backend("run", "-q", "--stats", "--rm", "python3", "-c", "print(1)")
        self.says(said, "1\n", "cpu_used_msec", "mem_max_bytes")

    def test_session_stays(self) -> None:
        """Without --rm the session stays, keeps its state, and is ended by name."""
        token = f"interop-{secrets.token_hex(6)}"
        self.says(self.backend("run", "-t", token, "python3", "-c", "x = 41"), " is ready.")
        self.says(self.backend("run", "-t", token, "python3", "-c", "print(x + 1)"), "Reusing session ", "42\n")
        self.says(self.backend("terminate", "--stats", token), "Done.", "cpu_used_msec")

    def test_logs(self) -> None:
        """What a session printed can be read again."""
        token = self.session()
        self.says(self.backend("run", "-t", token, "python3", "-c", "print('logged line')"))
        self.says(self.backend("logs", token), "logged line", "End of logs.")

    def test_input(self) -> None:
        """A typed line reaches input(), a second one a hidden prompt."""
        code = "import getpass; print('hi', input('name? ')); print(len(getpass.getpass('secret: ')))"
        said = self.backend("run", "--rm", "python3", "-c", code, typed="sorna\nfour\n")
        self.says(said, "name? ", "hi sorna\n", "4\n", "Cleaned up the session.")

    def test_longer_than_an_answer(self) -> None:
        """A run that takes longer than one answer may is continued by its run id."""
        code = "import time\nfor i in range(3): print('tick', i); time.sleep(1.1)"
        said = self.backend("run", "-q", "--rm", "python3", "-c", code)
        self.assertEqual((said.code, said.out), (0, "tick 0\ntick 1\ntick 2\n"))

    def test_variables(self) -> None:
        """-e sets a variable of the session, however a release spells that."""
        code = "import os; print(os.environ['COLOUR'])"
        self.says(self.backend("run", "--rm", "-e", "COLOUR=red", "python3", "-c", code), "red\n")

    def test_files(self) -> None:
        """A program with its data file."""
        self.write("main.py", READS_DATA)
        self.write("data.txt", "forty-two\n")
        said = self.backend("run", "--rm", "python3", "main.py", "data.txt")
        self.says(said, "Uploading done.", "Build finished. (exit code = 0)", "read: forty-two\n")

    def test_c_program(self) -> None:
        """Lcc uploads, builds and runs a C file."""
        self.need("gcc")
        self.write("main.c", MAIN_C)
        said = self.run_program("lcc", "main.c", "--rm")
        self.says(said, "hello from C\n", "Finished. (exit code = 0)")

    def test_exit_code(self) -> None:
        """One's own commands, and the exit code of the program."""
        self.need("gcc")
        self.write("main.c", FAILING_C)
        said = self.backend("run", "--build", "gcc -o m main.c", "--exec", "./m", "--rm", "c", "main.c")
        self.says(said, "Build finished. (exit code = 0)", "Finished. (exit code = 3)")

    def test_unknown_session(self) -> None:
        """An error is told in the server's words, in JSON that the client can read."""
        said = self.backend("logs", "nobody-has-this-one")
        self.assertIn("404", said.text)
        self.assertNotIn("Traceback", said.err)

    def test_library(self) -> None:
        """Create, run, describe, complete, restart, interrupt, destroy."""
        code = (
            "run = lambda code: k.execute(None, code, mode='query')\n"
            "print(k.created, run('value = 5')['status'])\n"
            "print(run('print(value)')['console'])\n"
            "info = k.get_info()\n"
            "print(info['lang'], info['numQueriesExecuted'])\n"
            "print('value' in k.complete('val', {'row': 0, 'col': 3, 'line': 'val'})['result']['completions'])\n"
            "k.interrupt()\n"
            "k.restart()\n"
            "print('NameError' in str(run('value')['console']))\n"
            "print(int(k.destroy()['stats']['cpu_used']) >= 0)\n"
        )
        lines = self.library(f"{self.make}try:\n{textwrap.indent(code, '    ')}\nfinally:\n    {self.end}\n")
        self.assertEqual(lines, ["True finished", "[['stdout', '5\\n']]", "python3 3", "True", "True", "True"])


class NewCommandLineTests(OldCommandLineTests):
    """Release 1.4.2."""

    client = BACKEND_1_4_2
    make = (
        "from ai.backend.client.session import Session\n"
        "session = Session()\n"
        "k = session.Kernel.get_or_create('python3', envs={})\n"
    )
    end = "session.close()"  # without which its thread keeps the interpreter

    def test_resources(self) -> None:
        """-r is accepted."""
        self.says(self.backend("run", "--rm", "-r", "cpu=1", "python3", "-c", "print('ran')"), "ran\n")
