"""``sorna agent``: what is asked, and how the answers are printed."""

from __future__ import annotations

from typing import Any

from tests.client.test_administration import found
from tests.client.test_cli import CommandLineTestCase


class ListTests(CommandLineTestCase):
    """``sorna agent list``."""

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
