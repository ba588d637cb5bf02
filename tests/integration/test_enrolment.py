"""Two managers on the same databases, and an agent that joins them by a ticket: real processes, and the commands of operators."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sorna.model.keypair import EXAMPLE_ACCESS_KEY, EXAMPLE_SECRET_KEY
from sorna.testing.server import PROJECT, START_TIMEOUT, free_ports, server_command
from sorna.testing.unit import UnitTestCase

PROMISED = 1.0  # seconds until a revoked agent is gone everywhere
SLOW = 60.0


class EnrolmentTests(UnitTestCase):
    """From nothing to an agent of two managers, and back."""

    timeout = 240

    def setUp(self) -> None:
        """Start both managers; the second uses the databases of the first."""
        self.folder = Path(tempfile.mkdtemp(prefix="sorna-test-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.folder.chmod(0o711)
        self.ports = free_ports(7)
        first, second = self.folder / "one", self.folder / "two"
        self.start("one", *self.server(0), f"--state-dir={first}")
        self.until(lambda: "Sorna is ready" in self.log("one"), START_TIMEOUT)
        postgres, redis = first / "postgres", first / "redis"
        self.start(
            "two",
            *self.server(1),
            f"--state-dir={second}",
            f"--db-addr={postgres / 'run'}",
            "--db-user=sorna",
            f"--redis-addr=unix://{redis / 'run' / 'redis.sock'}",
            SORNA_DB_PASSWORD=(postgres / "password").read_text().strip(),
            SORNA_REDIS_PASSWORD=(redis / "password").read_text().strip(),
        )
        self.until(lambda: "Sorna is ready" in self.log("two"), START_TIMEOUT)

    def server(self, number: int) -> list[str]:
        service, manager, execution = self.ports[number * 3 : number * 3 + 3]
        ports = f"--service-port={service} --manager-port={manager} --legacy-execution-port={execution}"
        common = "sorna --service-ip=127.0.0.1 --example-keypair --local-agent=no"
        return [*common.split(), *ports.split()]

    def environ(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SORNA_")}
        return {**kept, "PYTHONPATH": str(PROJECT), "PYTHONUNBUFFERED": "1", **more}

    def start(self, name: str, *words: str, **environ: str) -> None:
        """Start a program of ``twistd`` that the end of the test ends."""
        command = [word for word in server_command() if word != "sorna"]
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [*command, *words], cwd=self.folder, env=self.environ(**environ), stdin=-3, stdout=log, stderr=log
            )
        self.addCleanup(self.end, process)

    def end(self, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        try:
            process.wait(30)
        finally:
            process.kill()
            process.wait()

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text("utf-8", "replace")

    def until(self, what: Callable[[], bool], seconds: float) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + seconds
        while not what():
            if time.monotonic() > deadline:
                logs = "\n".join(f"{path.name}:\n{path.read_text()[-2000:]}" for path in self.folder.glob("*.log"))
                self.fail(f"it did not happen within {seconds} s:\n{logs}")
            time.sleep(0.02)

    def sorna(self, number: int, *words: str, text: str = "") -> subprocess.Popen[str]:
        """Start the command line against one of the managers."""
        environ = self.environ(
            SORNA_ENDPOINT=f"http://127.0.0.1:{self.ports[number * 3]}",
            SORNA_ACCESS_KEY=EXAMPLE_ACCESS_KEY,
            SORNA_SECRET_KEY=EXAMPLE_SECRET_KEY,
            SORNA_STATE_DIR=str(self.folder / "client"),
        )
        process = subprocess.Popen(
            [sys.executable, "-m", "sorna.client.cli", *words],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.addCleanup(process.wait, SLOW)
        self.addCleanup(process.kill)
        assert process.stdin is not None
        assert process.stdout is not None
        self.addCleanup(process.stdout.close)
        process.stdin.write(text)
        process.stdin.close()
        return process

    def said(self, number: int, *words: str, text: str = "", code: int = 0) -> str:
        """Run a command to its end and give what it printed."""
        process = self.sorna(number, *words, text=text)
        assert process.stdout is not None
        output = process.stdout.read()
        self.assertEqual(process.wait(SLOW), code, output)
        return output

    def enroll(self) -> None:
        """Do what the operator's guide says."""
        ticket = self.said(0, "agent", "ticket", "--agent-id", "a-1").split()[0]
        state, port = str(self.folder / "agent"), str(self.ports[6])
        self.said(0, "agent", "enroll", "--state-dir", state, "--agent-port", port, text=ticket)

    def alive(self, number: int) -> bool:
        return "a-1" in self.said(number, "agent", "list")

    def test_an_agent_of_two_managers(self) -> None:
        """Two commands add an agent that both managers use; one takes it back from both within a second."""
        keys = [(self.folder / name / "manager" / "curve.public").read_text() for name in ("one", "two")]
        self.assertEqual(keys[0], keys[1])
        self.enroll()
        self.start("agent", "sorna-agent", f"--state-dir={self.folder / 'agent'}", "--kernel-preload=")
        self.until(lambda: self.alive(0) and self.alive(1), SLOW)

        # Either manager answers for the kernel that the other made.
        run = ("run", "-q", "-t", "together", "python3", "-c")
        self.assertEqual(self.said(0, *run, "seen = 41; print(seen)"), "41\n")
        self.assertEqual(self.said(1, *run, "print(seen + 1)"), "42\n")

        # A run through one manager ends with a reason when the other revokes its agent.
        running = self.sorna(0, *run, "import time; print('on it', flush=True); time.sleep(600)")
        assert running.stdout is not None
        self.assertEqual(running.stdout.readline(), "on it\n")
        began = time.monotonic()
        self.assertIn("kernels that it had: 1", self.said(1, "agent", "revoke", "a-1"))
        for name in ("one", "two"):
            self.until(lambda name=name: "closing the link to agent a-1" in self.log(name), SLOW)  # type: ignore[misc]
        # The command itself takes a part of it, and the machine may be busy.
        self.assertLess(time.monotonic() - began, PROMISED + 4.0)
        self.assertRegex(running.stdout.read(), "agent-revoked|not trusted any more")
        self.assertNotEqual(running.wait(SLOW), 0)
        self.assertIn("agent-revoked", self.said(0, "info", "together", code=125))
        self.assertFalse(self.alive(0) or self.alive(1))

        # Another ticket brings it back, without a restart of anything.
        self.enroll()
        self.until(lambda: self.alive(0) and self.alive(1), SLOW)
        self.assertEqual(self.said(1, *run, "print('again')"), "again\n")
