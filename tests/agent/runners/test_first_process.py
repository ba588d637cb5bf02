"""Init as PID 1 of a PID namespace."""

from __future__ import annotations

import shutil
import subprocess
import time

from sorna.agent.runners import frames
from tests.agent.runners.driver import PYTHON, UNSHARE, KernelTestCase


class FirstProcessTests(KernelTestCase):
    def setUp(self) -> None:
        if (
            shutil.which("unshare") is None
            or subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode
        ):
            self.skipTest("PID namespaces cannot be made here")

    def test_whole_life(self) -> None:
        """Runs, orphans, signals at init, a killed fork bomb, and nothing left at the end."""
        kernel = self.kernel(first_process=True)
        self.assertEqual(kernel.ready["pid"], 1)
        kernel.run("import os; os.getppid()")
        self.assertEqual(kernel.texts(), [["stdout", "1\n"]])
        kernel.run("import signal\nfor n in signal.valid_signals() - {17, 18}: os.kill(1, n)\n'unharmed'")
        self.assertEqual(kernel.texts(), [["stdout", "'unharmed'\n"]])
        kernel.run("x = os.system('(sleep .01 &)')")
        time.sleep(0.1)
        kernel.run("len([p for p in os.listdir('/proc') if p.isdigit()])")
        self.assertEqual(kernel.texts(), [["stdout", "2\n"]])
        identity = kernel.begin(
            "for i in range(6): os.fork()\nos.setsid() if os.getpid() % 2 else 0\nprint('.')\nwhile True: x = os.fork() or os._exit(0)"
        )
        kernel.hear(".", 10)
        kernel.send(frames.KILL_RUN, {"run": identity, "message": "Bomb."})
        kernel.wait(frames.FINISHED)
        self.assertEqual(kernel.run("1")["exit_code"], 0)
        self.assertLessEqual(len(kernel.processes()), 2)

    def test_batch_is_killed_beside_the_session(self) -> None:
        """In a namespace, too, the idle session outlives a killed batch."""
        kernel = self.kernel(PYTHON, first_process=True)
        kernel.run("x = 7")
        identity = kernel.begin(mode="batch", exec="(setsid sleep 60 &); echo go; read line")
        kernel.wait(frames.WAITING_INPUT)
        kernel.send(frames.KILL_RUN, {"run": identity, "message": ""})
        kernel.wait(frames.FINISHED)
        kernel.run("x")
        self.assertEqual(kernel.texts(), [["stdout", "7\n"]])
