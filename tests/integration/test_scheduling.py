"""Draining and waiting on a whole server, with the commands that an administrator types."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from sorna.testing.server import PROJECT, RunningServer, running_server
from sorna.testing.unit import UnitTestCase

PATIENCE = 60.0


class CommandLine:
    """``sorna`` against a server."""

    def __init__(self, server: RunningServer) -> None:
        self._environ = {
            **os.environ,
            "PYTHONPATH": str(PROJECT),
            "SORNA_ENDPOINT": server.endpoint,
            "SORNA_ACCESS_KEY": server.access_key,
            "SORNA_SECRET_KEY": server.secret_key,
        }

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start a command."""
        command = [sys.executable, "-m", "sorna.client.cli", *words]
        return subprocess.Popen(
            command, env=self._environ, stdin=-3, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, *words: str) -> tuple[int, str, str]:
        """Give status, output and errors of a command."""
        command = self.start(*words)
        out, errors = command.communicate(timeout=PATIENCE)
        return command.returncode, out, errors

    def rows(self, *words: str) -> list[dict[str, Any]]:
        """Give what a command lists."""
        _status, out, _errors = self.run(*words, "--format", "json")
        rows: list[dict[str, Any]] = json.loads(out)
        return rows


class SchedulingTests(UnitTestCase):
    """One server whose agent has one place."""

    def until(self, what: Callable[[], bool]) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + PATIENCE
        while not what():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.2)

    def test_a_place_is_waited_for_and_the_agent_drained(self) -> None:
        """A second kernel waits for the first one's place; a drain ends what is left, stops the agent, and can be undone."""
        with running_server("--max-kernels", "1", "--agent-labels", "zone=a") as server:
            line = CommandLine(server)
            status, out, errors = line.run("run", "-q", "-t", "token-1", "python3", "-c", "print(1)")
            self.assertEqual((status, out), (0, "1\n"), errors)
            waiting = line.start("run", "-q", "-t", "token-2", "--wait", "60", "python3", "-c", "print(2)")
            self.until(lambda: any(row["queue_position"] == 1 for row in line.rows("ps")))
            self.assertEqual(line.run("terminate", "token-1")[0], 0)
            out, errors = waiting.communicate(timeout=PATIENCE)
            self.assertEqual((waiting.returncode, out), (0, "2\n"), errors)
            (agent,) = line.rows("agent", "list")
            self.assertEqual((agent["status"], agent["labels"]), ("ALIVE", ["zone=a"]))
            (judged,) = line.rows("agent", "explain", "python3", "--label", "zone=b")
            self.assertEqual(judged["reasons"], ["lacks the label zone=b", "kernels: 1 of 1 taken"], judged)
            self.drain(line, server, agent["id"])

    def drain(self, line: CommandLine, server: RunningServer, agent_id: str) -> None:
        """Drain the agent, look, and bring it back."""
        self.assertEqual(line.run("agent", "drain", agent_id, "--wait", "1")[0], 0)
        self.until(lambda: not line.rows("agent", "list"))
        self.assertIn("the local agent has stopped", server.log)
        reasons = {row["sess_id"]: row["status"] for row in line.rows("ps", "--all")}
        self.assertEqual(reasons["token-2"], "TERMINATED")
        self.assertIn("has ended: drained", server.log)
        (gone,) = line.rows("agent", "list", "--all")
        self.assertEqual(gone["status"], "TERMINATED")
        status, _out, errors = line.run("run", "-q", "python3", "-c", "print(3)")
        self.assertEqual(status, 125)
        self.assertIn("No agent is alive", errors)
        self.assertEqual(line.run("agent", "drain", agent_id, "--undo")[0], 0)
        status, out, errors = line.run("run", "-q", "--wait", "60", "python3", "-c", "print(4)")
        self.assertEqual((status, out), (0, "4\n"), errors)
