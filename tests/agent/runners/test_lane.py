"""What goes over a lane and what does not, and what becomes of runs when somebody leaves it."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

from sorna.agent.runners import frames, repl_link
from sorna.agent.runners.frames import pack_frame
from tests.agent.runners.driver import KernelTestCase
from tests.agent.runners.lane_driver import LaneKernel


def wakes(pid: int) -> int:
    """Wait until a process sleeps, and tell how often it was woken until now."""
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":
        time.sleep(0.001)
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("voluntary_ctxt_switches:")[2].split()[0])


class LaneTestCase(KernelTestCase):
    """Kernels whose REPL has a lane."""

    make = LaneKernel

    def lane_kernel(self, **options: Any) -> LaneKernel:
        kernel = self.kernel(**options)
        assert isinstance(kernel, LaneKernel)
        return kernel

    def assertGoesOver(self, kernel: LaneKernel, text: str = "2\n") -> None:
        """Check that code runs, and over the lane."""
        before = kernel.short
        end = kernel.run("1+1")
        self.assertEqual((end["exit_code"], kernel.stream("stdout"), kernel.short - before), (0, text, 1))


class WayTests(LaneTestCase):
    """Which way the end of a run takes."""

    def test_init_sleeps(self) -> None:
        """A run that says nothing but its result wakes nobody else, and init is sent nothing."""
        kernel = self.lane_kernel()
        kernel.run("import os; os.makedirs('.output')")
        before, sent = wakes(kernel.pid), dict(kernel.sent)
        for number in range(10):
            self.assertEqual(kernel.run(f"{number}+0")["run"], str(number + 2))
            self.assertEqual(kernel.stream("stdout"), f"{number}\n")
        self.assertEqual((wakes(kernel.pid), kernel.sent, kernel.short), (before, sent, 11))

    def test_what_passes_through_init(self) -> None:
        """Whoever printed it, its run ends behind it, though the pipes are empty by then."""
        kernel = self.lane_kernel()
        pause = "; import time; time.sleep(0.1)"
        for code in (
            "print('x')",
            "import sys; print('x', file=sys.stderr)",
            f"import os; os.write(1, b'x\\n'){pause}",
            f"import os; os.system('echo x'){pause}",
            f"import subprocess; subprocess.run(['sh', '-c', 'echo x >&2']){pause}",
            f"import ctypes; c = ctypes.CDLL(None); c.puts(b'x'); c.fflush(None){pause}",
        ):
            end = kernel.run(code)
            self.assertEqual((end["exit_code"], kernel.stream("stdout") + kernel.stream("stderr")), (0, "x\n"), code)
        self.assertEqual(kernel.short, 0)
        self.assertGoesOver(kernel)

    def test_what_waits_for_credit(self) -> None:
        """A run ends behind what could not be sent yet."""
        kernel = self.lane_kernel(window=1000)
        kernel.automatic = False
        kernel.begin("import os; os.write(1, b'x' * 5000)")
        while kernel.receive(0.3):
            pass
        self.assertNotIn(frames.FINISHED, [kind for kind, _message in kernel.seen])
        kernel.credit(100_000)
        kernel.wait(frames.FINISHED)
        self.assertEqual((len(kernel.stream("stdout")), kernel.short), (5005, 0))

    def test_output_of_others(self) -> None:
        """What goes on in the background makes a run that comes meanwhile take the long way, and no output is lost."""
        kernel = self.lane_kernel()
        kernel.run(
            "import subprocess; p = subprocess.Popen(['sh', '-c', 'for i in 1 2 3 4 5 6; do echo $i; sleep 0.05; done'])"
        )
        printed = kernel.stream("stdout")
        for _ in range(8):
            kernel.run("import time; time.sleep(0.06)")
            printed += kernel.stream("stdout")
        self.assertEqual(printed, "1\n2\n3\n4\n5\n6\n")

    def test_error(self) -> None:
        """An uncaught exception is printed, and its record comes with the end."""
        kernel = self.lane_kernel()
        end = kernel.run("1/0")
        self.assertEqual((end["exit_code"], end["exceptions"][0]["name"]), (1, "ZeroDivisionError"))
        self.assertIn("ZeroDivisionError", kernel.stream("stderr"))
        end = kernel.run("1/0", unattended=True)
        self.assertEqual((end["exit_code"], kernel.stream("stderr"), kernel.short), (1, "", 1))

    def test_files(self) -> None:
        """New files are named whichever way the end takes, and by init where the run was killed."""
        kernel = self.lane_kernel()
        self.assertEqual(
            kernel.run("import os; os.makedirs('.output'); open('.output/a', 'w').close()")["files"], ["a"]
        )
        self.assertEqual(kernel.run("print(1); open('.output/b', 'w').close()")["files"], ["b"])
        self.assertEqual(kernel.run("import time; time.sleep(0.05)")["files"], [])
        run = kernel.begin("import time; time.sleep(0.1); open('.output/c', 'w').close(); print(2)\nwhile True: pass")
        kernel.hear("2\n")
        kernel.send(frames.KILL_RUN, {"run": run, "message": "enough"})
        end = kernel.wait(frames.FINISHED)
        self.assertEqual((end["run"], end["files"], end["reset"], end["exit_code"]), (run, ["c"], True, 137))

    def test_environment(self) -> None:
        """It comes over the lane with the first run, and what that changes stays changed, though init hears of it later."""
        kernel = self.lane_kernel()
        kernel.lane.assign({"COLOUR": "red"})
        kernel.run("import os; print(os.environ['COLOUR']); os.environ['COLOUR'] = 'blue'")
        self.assertEqual(kernel.stream("stdout"), "red\n")
        kernel.run("", mode="batch", exec="echo $COLOUR")
        self.assertEqual(kernel.stream("stdout"), "red\n")
        kernel.run("import time; time.sleep(0.1); print(os.environ['COLOUR'])")
        self.assertEqual(kernel.stream("stdout"), "blue\n")

    def test_environment_of_a_repl_that_died(self) -> None:
        """One that was made since then has it too, whatever init had heard."""
        for runs_between in (0, 1):  # with that one a lane is opened
            kernel = self.lane_kernel()
            kernel.lane.assign({"COLOUR": "red"})
            kernel.run("import os; os._exit(1)")
            for _ in range(runs_between):
                kernel.run("1")
            kernel.run("import os; print(os.environ['COLOUR'])")
            self.assertEqual(kernel.stream("stdout"), "red\n")


class LeavingTests(LaneTestCase):
    """What becomes of runs when somebody leaves the lane, or init hears of them."""

    def test_user_closes_it(self) -> None:
        """The run ends by init, and so does the next one, with which there is a new lane."""
        kernel = self.lane_kernel()
        close = "import os\nfor fd in range(3, 2000):\n  if fd in LANE: os.close(fd)"
        find = "import os, socket; LANE = [n for n in range(900, 1024) if os.path.exists(f'/proc/self/fd/{n}')]; LANE = LANE[-1:]; 5"
        kernel.run(find)
        self.assertEqual((kernel.run(close + "\n6")["exit_code"], kernel.stream("stdout")), (0, "6\n"))
        self.assertEqual((kernel.run("7")["exit_code"], kernel.stream("stdout"), kernel.short), (0, "7\n", 1))
        self.assertGoesOver(kernel)

    def test_agent_closes_it_in_a_run(self) -> None:
        """Init hears of the run first, and says its end; what it says is said once."""
        kernel = self.lane_kernel()
        run = kernel.begin("import time; time.sleep(0.3); 8")
        kernel.lane.close()
        end = kernel.wait(frames.FINISHED)
        self.assertEqual((end["run"], kernel.stream("stdout"), kernel.short), (run, "8\n", 0))
        kernel.run("9")
        self.assertEqual((kernel.stream("stdout"), kernel.short), ("9\n", 0))
        self.assertGoesOver(kernel)

    def test_end_that_crosses_what_init_is_told(self) -> None:
        """An end that was under way when init was told of the run goes back to it, and is told once."""
        kernel = self.lane_kernel()
        for number in range(20):
            run = kernel.begin(f"{number}+0")
            kernel.interrupt()
            end = kernel.wait(frames.FINISHED)
            self.assertEqual(end["run"], run)
            if end["exit_code"] == 0:
                self.assertEqual(kernel.stream("stdout"), f"{number}\n")
            while kernel.receive(0.01):
                pass
            self.assertEqual(kernel.seen, [])
        self.assertEqual(kernel.short, 0)
        self.assertGoesOver(kernel)

    def test_late_words_about_a_run(self) -> None:
        """Init that is told of a run which is over by then leaves it at that, and takes the next one."""
        kernel = self.lane_kernel()
        print_run = kernel.begin("print(1)")
        kernel.wait(frames.FINISHED)
        late = {"run": print_run, "lane": 1, "unattended": False, "since": 0.0}
        kernel.send_raw(frames.UNDER_WAY, json.dumps(late).encode())
        kernel.send(frames.INPUT, {"run": print_run, "text": "x"})
        kernel.send(frames.KILL_RUN, {"run": print_run, "message": "late"})
        end = {"run": print_run, "exit_code": 0, "exceptions": [], "files": [], "reset": False, "since": 0.0}
        kernel.send_raw(frames.OVER, json.dumps(end).encode() + b"\0words")
        kernel.run("", mode="batch", exec="echo fine")
        self.assertEqual((kernel.stream("stdout"), kernel.seen), ("fine\n", []))
        self.assertGoesOver(kernel)

    def test_death(self) -> None:
        """A process that ends in a run of which init knew nothing: output, sentence, end, files, and the next one."""
        kernel = self.lane_kernel()
        kernel.run("import os; os.makedirs('.output')")
        code = "import os; open('.output/f', 'w').close(); os.write(1, b'last'); os._exit(3)"
        end = kernel.run(code)
        self.assertEqual((end["exit_code"], end["reset"], end["files"]), (3, True, ["f"]))
        self.assertEqual(kernel.stream("stdout"), "last")
        self.assertEqual(kernel.stream("stderr"), "The Python process ended with exit code 3; its state is lost.\n")
        end = kernel.run("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
        self.assertEqual((end["exit_code"], end["signal"]), (139, signal.SIGSEGV))
        self.assertEqual(kernel.run("1")["exit_code"], 0)
        self.assertGoesOver(kernel)

    def test_death_right_behind_the_end(self) -> None:
        """A run that ended before its process did has its own end."""
        kernel = self.lane_kernel()
        end = kernel.run("import os, threading, time\nthreading.Timer(0.05, os._exit, (4,)).start()\n'done'")
        self.assertEqual((end["exit_code"], end["reset"], kernel.stream("stdout")), (0, False, "'done'\n"))
        self.assertEqual(kernel.wait(frames.RESTARTED)["exit_code"], 4)

    def test_restart(self) -> None:
        """Over: the run that goes on, the state and the lane; then there is another one."""
        kernel = self.lane_kernel()
        run = kernel.begin("import time; time.sleep(60)")
        kernel.send(frames.RESTART, {"request": 1})
        self.assertEqual(kernel.wait(frames.FINISHED)["run"], run)
        kernel.wait(frames.REPLY)
        kernel.run("x = 1")
        self.assertGoesOver(kernel)

    def test_threads_that_ask(self) -> None:
        """Questions of threads between and across runs leave nothing that a later run would stumble over."""
        kernel = self.lane_kernel()
        kernel.run(
            "import threading, time\ndef ask():\n  while True:\n    try: input()\n    except EOFError: pass\nthreading.Thread(target=ask, daemon=True).start()"
        )
        for number in range(100):
            run = kernel.begin(f"{number}+0")
            end = kernel.wait(frames.FINISHED)
            self.assertEqual((end["run"], end["exit_code"], kernel.stream("stdout")), (run, 0, f"{number}\n"))
        kernel.run("", mode="batch", exec="echo fine")
        self.assertEqual(kernel.stream("stdout"), "fine\n")


class AbuseTests(LaneTestCase):
    """What user code says on a lane is a user's word."""

    def said(self, kernel: LaneKernel, content: bytes) -> None:
        """Let user code write to the lane."""
        kernel.run("import os; n = max(n for n in range(900, 1024) if os.path.exists(f'/proc/self/fd/{n}'))")
        kernel.run(f"os.write(n, {content!r}); 5")

    def test_end_of_another_run(self) -> None:
        """It is passed over."""
        kernel = self.lane_kernel()
        end = {"run": "99", "exit_code": 1, "exceptions": [], "files": [], "reset": False}
        self.said(kernel, pack_frame(repl_link.ENDED, json.dumps(end).encode() + b"\0"))
        self.assertEqual(kernel.stream("stdout"), "5\n")
        self.assertGoesOver(kernel)

    def test_nonsense(self) -> None:
        """It is an error that the agent is told."""
        header = b'{"run": "2", "exit_code": 0, "exceptions": [], "files": [], "reset": false}'
        for content in (
            pack_frame(repl_link.ENDED, b"no json\0"),
            pack_frame(repl_link.ENDED, header),
            pack_frame(repl_link.ENDED, header + b"\0" + b"x" * (repl_link.MOST_LAST_WORDS + 1)),
            pack_frame(repl_link.ENDED, b'{"run": "2"}\0'),
            pack_frame(repl_link.DONE, b"{}"),
            b"\xff" * 5,
        ):
            kernel = self.lane_kernel()
            with self.assertRaises(frames.FrameError, msg=content[:60]):
                self.said(kernel, content)

    def test_only_one_descriptor(self) -> None:
        """A program that the session starts finds no lane."""
        kernel = self.lane_kernel()
        kernel.run(
            "import subprocess; print(subprocess.run(['ls', '/proc/self/fd'], close_fds=False, stdout=-1, text=True).stdout)"
        )
        self.assertLess(max(map(int, kernel.stream("stdout").split())), 10)
