"""One ``sorna run`` from creation to end, over a scripted server."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred

from sorna.client.running import GRACE, FilesUnusable, RunOfCode, RunOrder, read_files, shell_code
from sorna.client.terminal import Terminal
from sorna.testing.unit import UnitTestCase
from tests.client.scripted import CREATED, KERNEL, Setting, problem, result

ORDER = RunOrder(runtime="python3", token="a-token", keep=False, code="print(1)")
GONE: tuple[int, Any] = (200, {"stats": {}})
CREATE, EXECUTE, DESTROY = "POST /v3/kernel/create", f"POST /v3/kernel/{KERNEL}", f"DELETE /v3/kernel/{KERNEL}"


class RunTestCase(UnitTestCase):
    """Ways to run."""

    def begin(self, setting: Setting, order: RunOrder = ORDER) -> Deferred[int]:
        """Start a run whose input is a pipe."""
        end, self.typing = os.pipe()
        self.addCleanup(os.close, end)
        self.addCleanup(os.close, self.typing)
        self.out, self.err = io.StringIO(), io.StringIO()
        terminal = Terminal(setting.reactor, end, self.out, self.err, quiet=False, media=None)
        self.run_of_code = RunOfCode(setting.api, terminal, order, setting.reactor)
        return Deferred.fromCoroutine(self.run_of_code.carry_out())


class EndTests(RunTestCase):
    """Runs that end by themselves."""

    def test_query(self) -> None:
        """Create, run, destroy; the output and the exit code are the run's."""
        setting = Setting(CREATED, result("finished", ["stdout", "1\n"], ["stderr", "!"], exitCode=7), GONE)
        self.assertEqual(self.successResultOf(self.begin(setting)), 7)
        self.assertEqual(self.out.getvalue(), "1\n")
        self.assertEqual(setting.server.calls, [CREATE, EXECUTE, DESTROY])

    def test_batch(self) -> None:
        """Files are uploaded before they are built and run, as the published clients do."""
        setting = Setting(
            CREATED, (204, None), result("build-finished", exitCode=1), result("finished", exitCode=127), GONE
        )
        order = evolve(ORDER, code="", files=(("main.c", b"main(){}"),))
        self.assertEqual(self.successResultOf(self.begin(setting, order)), 127)
        self.assertEqual(setting.server.calls, [CREATE, f"POST /v3/kernel/{KERNEL}/upload", EXECUTE, EXECUTE, DESTROY])
        self.assertIn(b"main(){}", setting.server.seen[1].body)
        self.assertEqual(setting.server.seen[2].json["options"], {"build": "*", "exec": "*", "buildLog": False})
        self.assertIn("the build ended with exit code 1", self.err.getvalue())

    def test_kept(self) -> None:
        """A kernel that is to stay is not destroyed, and its token is told."""
        setting = Setting((201, {"kernelId": KERNEL, "created": False}), result("finished"))
        self.assertEqual(self.successResultOf(self.begin(setting, evolve(ORDER, keep=True))), 0)
        self.assertIn("-t a-token", self.err.getvalue())
        self.assertEqual(setting.server.calls, [CREATE, EXECUTE])

    def test_input(self) -> None:
        """A typed line reaches the run."""
        setting = Setting(CREATED, result("waiting-input", ["stdout", "? "]), result("finished"), GONE)
        done = self.begin(setting)
        self.assertNoResult(done)
        os.write(self.typing, b"forty-two\n")
        setting.type_line()
        self.assertEqual(self.successResultOf(done), 0)
        self.assertEqual(setting.server.seen[2].json["code"], "forty-two")


class FailureTests(RunTestCase):
    """Runs that Sorna could not carry out end with 125 and leave nothing behind."""

    def test_refused_creation(self) -> None:
        """Nothing was made, so nothing is destroyed: the token may name a kernel of somebody else's run."""
        setting = Setting(problem(412, "quota-exceeded", "You have reached your resource limit."))
        self.assertEqual(self.successResultOf(self.begin(setting)), 125)
        self.assertEqual(setting.server.calls, [CREATE])
        self.assertIn("You have reached your resource limit. [412, quota-exceeded]", self.err.getvalue())

    def test_silent_creation(self) -> None:
        """A kernel that may have been made is destroyed by its token."""
        setting = Setting(None, problem(404, "kernel-not-found", "No such kernel."))
        done = self.begin(setting)
        setting.reactor.advance(60)
        self.assertEqual(self.successResultOf(done), 125)
        self.assertEqual(setting.server.calls, [CREATE, "DELETE /v3/kernel/a-token"])
        self.assertNotIn("could not be destroyed", self.err.getvalue())

    def test_failed_execution(self) -> None:
        """The kernel is destroyed when the run fails."""
        setting = Setting(CREATED, problem(500, "kernel-execution-failed", "Failed."), GONE)
        self.assertEqual(self.successResultOf(self.begin(setting)), 125)
        self.assertEqual(setting.server.calls, [CREATE, EXECUTE, DESTROY])

    def test_failed_destruction(self) -> None:
        """A kernel that cannot be destroyed is told, and the run's exit code stays."""
        setting = Setting(CREATED, result("finished", exitCode=3), problem(500, "x", "Failed."))
        self.assertEqual(self.successResultOf(self.begin(setting)), 3)
        self.assertIn("could not be destroyed", self.err.getvalue())

    def test_nobody_reads(self) -> None:
        """A closed pipe ends the run, and the kernel with it."""
        setting = Setting(CREATED, result("finished", ["stdout", "x"]), GONE)
        setting.server.on_request = lambda _: self.out.close()
        self.failureResultOf(self.begin(setting), ValueError)
        self.assertEqual(setting.server.calls[-1], DESTROY)

    def test_cancelled(self) -> None:
        """What SIGTERM does: the kernel is destroyed before the program ends."""
        setting = Setting(CREATED, None, GONE)
        done = self.begin(setting)
        done.cancel()
        self.assertEqual(self.successResultOf(done), 130)
        self.assertEqual(setting.server.calls, [CREATE, EXECUTE, DESTROY])


class InterruptTests(RunTestCase):
    """Ctrl-C."""

    def test_during_a_run(self) -> None:
        """The run is interrupted, its last words are read, and the kernel is destroyed."""
        held: Deferred[Any] = Deferred()
        last_words = result("finished", ["stderr", "KeyboardInterrupt\n"])
        setting = Setting(CREATED, result("continued"), held, (204, None), last_words, GONE)
        done = self.begin(setting)
        self.run_of_code.interrupt()
        held.callback(result("continued"))
        setting.treq.flush()
        self.assertEqual(self.successResultOf(done), 130)
        self.assertIn("KeyboardInterrupt", self.err.getvalue())
        self.assertEqual(
            setting.server.calls, [CREATE, EXECUTE, EXECUTE, f"POST /v3/kernel/{KERNEL}/interrupt", EXECUTE, DESTROY]
        )

    def test_while_waiting_for_input(self) -> None:
        """The one who does not want to type can leave."""
        setting = Setting(CREATED, result("waiting-input"), (204, None), result("finished"), GONE)
        done = self.begin(setting)
        self.run_of_code.interrupt()
        self.assertEqual(self.successResultOf(done), 130)
        self.assertEqual(setting.server.calls[-2:], [EXECUTE, DESTROY])

    def test_that_helps_nothing(self) -> None:
        """A run that goes on all the same is left after a while."""
        setting = Setting(CREATED, None, (204, None), GONE)
        done = self.begin(setting)
        self.run_of_code.interrupt()
        setting.reactor.advance(GRACE - 0.1)
        self.assertNoResult(done)
        setting.reactor.advance(0.2)
        self.assertEqual(self.successResultOf(done), 130)
        self.assertEqual(setting.server.calls[-1], DESTROY)

    def test_twice(self) -> None:
        """The second time does not wait, and a failing interrupt is told."""
        setting = Setting(CREATED, None, problem(500, "x", "Failed."), GONE)
        done = self.begin(setting)
        self.run_of_code.interrupt()
        self.run_of_code.interrupt()
        self.assertEqual(self.successResultOf(done), 130)
        self.assertIn("Failed.", self.err.getvalue())
        self.run_of_code.interrupt()
        self.assertEqual(setting.reactor.getDelayedCalls(), [])

    def test_during_creation(self) -> None:
        """Nothing runs yet: give up at once, and destroy what may have been made by its token."""
        setting = Setting(None, GONE)
        done = self.begin(setting)
        self.run_of_code.interrupt()
        self.assertEqual(self.successResultOf(done), 130)
        self.assertEqual(setting.server.calls, [CREATE, "DELETE /v3/kernel/a-token"])


class FileTests(UnitTestCase):
    """Files of a batch run."""

    def setUp(self) -> None:
        """Make a folder with a file."""
        self.base = Path(self.mktemp())
        (self.base / "sub").mkdir(parents=True)
        (self.base / "sub" / "a.txt").write_bytes(b"a")

    def test_places(self) -> None:
        """A file's place is its path below the base, however it was spelled."""
        spelled = self.base / "sub" / ".." / "sub" / "a.txt"
        self.assertEqual(read_files((spelled,), self.base), (("sub/a.txt", b"a"),))

    def test_unusable(self) -> None:
        """Files outside of the base, missing, folders, and too large ones are refused with their name."""
        (self.base / "large").write_bytes(b"x" * (1024 * 1024 + 1))
        (self.base / "link").symlink_to("/etc/hostname")
        for name in ("../outside", "missing", "sub", "large", "link"):
            error = self.assertRaises(FilesUnusable, read_files, (self.base / name,), self.base)
            self.assertIn(name, str(error))


class ShellCodeTests(UnitTestCase):
    """Exit codes as a shell knows them."""

    def test_codes(self) -> None:
        """No code is success, and a signal is 128 and its number."""
        self.assertEqual([shell_code(code) for code in (None, 0, 3, -9, 256 + 4, -500)], [0, 0, 3, 137, 4, 12])
