"""Runs of clients that can neither type nor wish to see a traceback twice."""

from __future__ import annotations

from sorna.agent.runners import frames
from tests.agent.runners.driver import KernelTestCase
from tests.agent.runners.test_commands import SHELL


class UnattendedTests(KernelTestCase):
    def test_exception_is_a_record_only(self) -> None:
        """An uncaught exception is not printed; what the program itself wrote to stderr is."""
        kernel = self.kernel()
        kernel.begin("import sys; sys.stderr.write('mine'); raise ValueError('boo', 3)", unattended=True)
        finished = kernel.wait(frames.FINISHED)
        self.assertEqual(kernel.texts(), [["stderr", "mine"]])
        [record] = finished["exceptions"]
        self.assertEqual((record["name"], record["args"], record["before_exec"]), ("ValueError", ["boo", 3], False))

    def test_later_runs_print_again(self) -> None:
        """The wish is one run's."""
        kernel = self.kernel()
        kernel.begin("1/0", unattended=True)
        kernel.wait(frames.FINISHED)
        kernel.begin("1/0")
        kernel.wait(frames.FINISHED)
        self.assertEqual(kernel.stream("stderr").count("ZeroDivisionError"), 1)

    def test_input_is_at_its_end(self) -> None:
        """``input`` raises EOFError, as at a terminal that was closed, and a password prompt likewise."""
        kernel = self.kernel()
        for code in ("input('name? ')", "import getpass; getpass.getpass('secret? ')"):
            kernel.begin(code, unattended=True)
            finished = kernel.wait(frames.FINISHED, frames.WAITING_INPUT)
            self.assertEqual([one["name"] for one in finished.get("exceptions", [])], ["EOFError"], code)

    def test_standard_input_of_commands_is_at_its_end(self) -> None:
        """A program that reads goes on at once, its children too."""
        kernel = self.kernel(SHELL)
        kernel.begin("read x || echo none; cat; (cat); echo done", unattended=True)
        finished = kernel.wait(frames.FINISHED, frames.WAITING_INPUT)
        self.assertEqual((finished["kind"], finished["exit_code"]), (frames.FINISHED, 0))
        self.assertEqual(kernel.stream("stdout"), "none\ndone\n")
