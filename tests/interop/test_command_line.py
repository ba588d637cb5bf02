"""Our own command line as a process, against a real server: what a person does after ``make run``."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from pathlib import Path
from unittest import SkipTest

from sorna.testing.server import PROJECT, shared_server
from sorna.testing.unit import UnitTestCase

TIMEOUT = 60.0


class CommandLineTests(UnitTestCase):
    """``sorna`` in a folder of its own."""

    def setUp(self) -> None:
        """Name the server as a user of another machine would."""
        self.server = shared_server()
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.environ = {
            "HOME": str(self.folder.resolve()),
            "LANG": "C.UTF-8",
            "PATH": os.defpath,
            "PYTHONPATH": str(PROJECT),
            "SORNA_ENDPOINT": self.server.endpoint,
            "SORNA_ACCESS_KEY": self.server.access_key,
            "SORNA_SECRET_KEY": self.server.secret_key,
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the program with pipes for all its streams."""
        return subprocess.Popen(
            [sys.executable, "-m", "sorna.client.cli", *arguments],
            cwd=self.folder,
            env=self.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            start_new_session=True,
        )

    def sorna(self, *arguments: str, typed: str = "", code: int = 0) -> str:
        """Run the program to its end and give what it printed."""
        with self.start(*arguments) as process:
            try:
                out, err = process.communicate(typed, TIMEOUT)
            finally:
                process.kill()
        self.assertEqual(process.returncode, code, err)
        self.errors = err
        return out

    def after(self, signal_number: int, code: str) -> tuple[int, str]:
        """Send a signal as soon as the run has printed a line; give the exit code, and see that the kernel is gone."""
        token = f"signal-{secrets.token_hex(6)}"
        with self.start("run", "-t", token, "--rm", "python3", "-c", code) as process:
            overdue = threading.Timer(TIMEOUT, process.kill)
            overdue.start()
            try:
                assert process.stdout is not None
                self.assertEqual(process.stdout.readline(), "begun\n")
                process.send_signal(signal_number)
                _, err = process.communicate(timeout=TIMEOUT)
            finally:
                overdue.cancel()
                process.kill()
        self.sorna("info", token, code=125)
        self.assertIn("[404, kernel-not-found]", self.errors)
        return process.returncode, err

    def test_streams_and_exit_code(self) -> None:
        """The run's streams are the program's own."""
        out = self.sorna("run", "-q", "python3", "-c", "import sys; print(1+1); print('e', file=sys.stderr)")
        self.assertEqual((out, self.errors), ("2\n", "e\n"))

    def test_pasted_command(self) -> None:
        """The keypair that the server left in its state directory is enough."""
        if self.server.folder is None:
            raise SkipTest("the server was running before, and its state directory is not known")
        for name in ("SORNA_ENDPOINT", "SORNA_ACCESS_KEY", "SORNA_SECRET_KEY"):
            del self.environ[name]
        self.environ["SORNA_STATE_DIR"] = str(self.server.folder / "state")
        self.assertEqual(self.sorna("run", "python3", "-c", "print(1+1)"), "2\n")

    def test_input(self) -> None:
        """Lines are read as the run asks for them, a password without an echo where there is a terminal."""
        code = "import getpass; print('hi', input('name? ')); print(len(getpass.getpass('secret: ')))"
        out = self.sorna("run", "python3", "-c", code, typed="sorna\nfour\n")
        self.assertIn("name? ", out)
        self.assertIn("hi sorna\n", out)
        self.assertTrue(out.endswith("4\n"), out)

    def test_no_more_input(self) -> None:
        """Where the input ends the run is interrupted instead of waiting for ever."""
        self.sorna("run", "python3", "-c", "input()", code=1)
        self.assertIn("KeyboardInterrupt", self.errors)

    def test_files(self) -> None:
        """A program with its data in a folder below, and the program's exit code."""
        (self.folder / "data").mkdir()
        (self.folder / "data" / "a.txt").write_text("forty-two")
        (self.folder / "main.py").write_text("print(open('data/a.txt').read())\nraise SystemExit(42)\n")
        self.assertEqual(self.sorna("run", "python3", "main.py", "data/a.txt", code=42), "forty-two\n")

    def test_c_program(self) -> None:
        """Compiled and run; an error of the compiler is shown."""
        if shutil.which("gcc") is None:
            raise SkipTest("gcc is not installed")
        (self.folder / "main.c").write_text('#include <stdio.h>\nint main(void) { puts("hello"); return 3; }\n')
        self.assertEqual(self.sorna("run", "c", "main.c", code=3), "hello\n")
        (self.folder / "main.c").write_text("int main(void) { return nothing; }\n")
        self.sorna("run", "c", "main.c", code=127)
        self.assertIn("nothing", self.errors)

    def test_media(self) -> None:
        """A figure becomes a file."""
        code = "import matplotlib.pyplot as p; p.plot([1, 2]); p.show()"
        self.sorna("run", "--media", ".", "python3", "-c", code)
        self.assertEqual(len(list(self.folder.glob("sorna-1.*"))), 1, self.errors)

    def test_session(self) -> None:
        """A named session: kept, described, restarted, read again, and ended."""
        token = f"session-{secrets.token_hex(6)}"
        self.sorna("run", "-t", token, "python3", "-c", "x = 41")
        self.assertEqual(self.sorna("run", "-t", token, "python3", "-c", "print(x + 1)"), "42\n")
        self.assertRegex(self.sorna("info", token), r"lang +python3\n")
        self.assertIn("42", self.sorna("logs", token))
        self.sorna("restart", token)
        self.sorna("run", "-t", token, "python3", "-c", "x", code=1)
        self.assertIn("NameError", self.errors)
        self.assertIn("cpu_used", self.sorna("terminate", "--stats", token))

    def test_interrupted(self) -> None:
        """Ctrl-C raises KeyboardInterrupt in the run, whose last words are still shown, and destroys the kernel."""
        code, err = self.after(signal.SIGINT, "import time; print('begun', flush=True)\nwhile True: time.sleep(1)")
        self.assertEqual(code, 130)
        self.assertIn("KeyboardInterrupt", err)

    def test_interrupted_at_the_prompt(self) -> None:
        """Ctrl-C also leaves a run that waits for a line."""
        self.assertEqual(self.after(signal.SIGINT, "print('begun'); input()")[0], 130)

    def test_terminated(self) -> None:
        """SIGTERM leaves no kernel behind either."""
        code, _ = self.after(signal.SIGTERM, "import time; print('begun', flush=True); time.sleep(60)")
        self.assertEqual(code, 130)

    def test_nobody_reads(self) -> None:
        """``sorna ... | head -1`` ends soon, as programs do whose pipe was closed."""
        program = shlex.join([sys.executable, "-m", "sorna.client.cli"])
        line = f"{program} run -q python3 -c 'while True: print(\"x\")' | head -n 1; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(
            ["bash", "-c", line], env=self.environ, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
        self.assertEqual((done.stdout, done.returncode), ("x\n", 141), done.stderr)

    def test_refusals(self) -> None:
        """What the server refuses is told in its words."""
        self.sorna("run", "no-such-language", "-c", "x", code=125)
        self.assertIn("[404, image-not-found]", self.errors)
        self.environ["SORNA_SECRET_KEY"] = "wrong"
        self.sorna("info", "anything", code=125)
        self.assertIn("[401, auth-failed]", self.errors)

    def test_administration(self) -> None:
        """A keypair under a policy: made, listed, used, refused, reported, disabled within a second, and removed."""
        user, policy, token = (f"{kind}-{secrets.token_hex(6)}" for kind in ("user", "policy", "session"))
        self.sorna("admin", "policy", "put", policy, "--kernels", "5", "--memory", "600M", "--runtime", "python3")
        made = self.sorna("admin", "keypair", "add", user, "--policy", policy).split()
        access_key, secret_key = made[2], made[5]
        listed = json.loads(self.sorna("admin", "keypair", "list", "--user", user, "--format", "json"))
        self.assertEqual([(one["access_key"], one["resource_policy"]) for one in listed], [(access_key, policy)])
        self.sorna("admin", "policy", "remove", policy, code=125)
        self.assertIn("keypairs have this policy", self.errors)

        administrator, self.environ = self.environ, {
            **self.environ, "SORNA_ACCESS_KEY": access_key, "SORNA_SECRET_KEY": secret_key
        }  # fmt: skip
        self.sorna("run", "-t", token, "python3", "-c", "print(1)")
        self.assertRegex(self.sorna("ps"), rf"(?m)^{token} .* RUNNING ")
        self.sorna("run", "python3", "-c", "print(1)", code=125)
        self.assertIn("memory: 512 of 600 MiB in use", self.errors)
        self.sorna("run", "c", "-c", "print(1)", code=125)
        self.assertIn(f"the policy {policy} does not allow c", self.errors)
        self.assertEqual(len(self.sorna("admin", "usage", "--format", "csv").splitlines()), 2)
        self.sorna("terminate", token)
        owner, self.environ = self.environ, administrator

        report = self.sorna("admin", "usage", "--of", access_key, "--format", "csv").splitlines()
        self.assertEqual(len(report), 2, report)
        row = dict(zip(report[0].split(","), report[1].split(","), strict=True))
        self.assertEqual((row["user_id"], row["kernels"]), (user, "1"))
        self.assertGreater(float(row["wall_time"]), 0)
        self.assertGreater(float(row["cpu_used"]), 0)
        self.sorna("admin", "keypair", "modify", access_key, "--inactive", "--policy", "")
        self.environ = owner
        self.sorna("ps", code=125)
        self.assertIn("The access key is not active", self.errors)
        self.environ = administrator
        self.sorna("admin", "keypair", "remove", access_key)
        self.sorna("admin", "policy", "remove", policy)
        self.assertNotIn(access_key, self.sorna("admin", "keypair", "list"))
        self.assertIn(access_key, self.sorna("admin", "usage"))

    def test_folders(self) -> None:
        """A file goes into a folder, is seen and changed by kernels, and comes back; the folder goes when it is to."""
        name = f"cli-{secrets.token_hex(6)}"
        self.sorna("folder", "create", name, "--quota", "64m")
        content = secrets.token_bytes(9 * 1024 * 1024)
        (self.folder / "d").mkdir()
        (self.folder / "d" / "big.bin").write_bytes(content)
        self.sorna("folder", "upload", name, "d/big.bin")
        code = (
            "import hashlib; data = open('in/d/big.bin', 'rb').read(); print(hashlib.sha256(data).hexdigest());"
            "_ = open('in/d/more', 'w').write('from a kernel')"
        )
        printed = self.sorna("run", "-q", "-m", f"{name}:in", "python3", "-c", code)
        self.assertEqual(printed.strip(), hashlib.sha256(content).hexdigest())
        self.assertIn("more", self.sorna("folder", "ls", name, "d"))
        (self.folder / "back").mkdir()
        self.sorna("folder", "download", name, "d/big.bin", "d", "--to", "back")
        self.assertEqual((self.folder / "back" / "big.bin").read_bytes(), content)
        with tarfile.open(self.folder / "back" / "d.tar") as archive:
            self.assertEqual(sorted(archive.getnames()), ["d/big.bin", "d/more"])
        self.sorna("folder", "mkdir", name, "e/f")
        self.sorna("folder", "rm", "-r", name, "d", "e")
        self.assertIn("numFiles", self.sorna("folder", "info", name))
        self.sorna("folder", "rename", name, f"{name}-2")
        self.assertIn(f"{name}-2", self.sorna("folder", "list"))
        self.sorna("folder", "delete", f"{name}-2")
        self.sorna("folder", "info", name, code=125)
        self.assertIn("[404, folder-not-found]", self.errors)
