"""``sorna agent``: what is asked, and how the answers are printed."""

from __future__ import annotations

from typing import Any

from sorna.client.running import FAILED
from tests.client.test_administration import done, found
from tests.client.test_cli import CommandLineTestCase


class AgentTests(CommandLineTestCase):
    """What administrators do with agents."""

    def asked(self) -> Any:
        """Give the variables of the last question."""
        return self.setting.server.seen[-1].json["variables"]

    def test_list(self) -> None:
        """Agents that live, or all that were ever enrolled."""
        ran = self.invoke(["agent", "list"], found({"items": [{"id": "i-1", "status": "ALIVE"}]}))
        self.assertEqual((ran.exit_code, self.codes), (0, [0]), ran.output)
        self.assertIn("i-1", ran.stdout)
        self.assertEqual(self.asked(), {"status": "ALIVE,DRAINING", "limit": 100, "offset": 0})
        self.invoke(["agent", "list", "--all"], found({"items": []}))
        self.assertIsNone(self.asked()["status"])

    def test_explain(self) -> None:
        """Wishes become variables; a table says who is chosen and why not the others."""
        rows = [
            {"place": 1, "agent": "i-1", "load": 0.5, "reasons": []},
            {"place": None, "agent": "i-2", "reasons": ["is full"]},
        ]
        ran = self.invoke(
            ["agent", "explain", "python", "--memory", "512M", "--cpu", "0.5", "--label", "zone=a"], found(rows)
        )
        self.assertEqual((ran.exit_code, self.codes), (0, [0]), ran.output)
        self.assertIn("is full", ran.stdout)
        self.assertEqual(
            self.asked(),
            {"runtime": "python", "cpu_cores": 0.5, "memory": 2**29, "gpus": None, "labels": ["zone=a"]},
        )

    def test_drain(self) -> None:
        """Draining, with a bound or without, and undoing it."""
        for arguments, wanted in (
            (["i-1"], {"agent_id": "i-1", "wait": None}),
            (["i-1", "--wait", "60"], {"agent_id": "i-1", "wait": 60.0}),
            (["i-1", "--undo"], {"agent_id": "i-1"}),
        ):
            ran = self.invoke(["agent", "drain", *arguments], done())
            self.assertEqual(ran.exit_code, 0, ran.output)
            self.assertEqual(self.asked(), wanted)
        self.assertEqual(self.invoke(["agent", "drain", "i-1", "--undo", "--wait", "1"]).exit_code, 2)
        ran = self.invoke(["agent", "drain", "i-9"], done("there is no such agent"))
        self.assertEqual(self.codes[-1], FAILED)
        self.assertIn("there is no such agent", ran.stderr)
