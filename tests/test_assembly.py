"""Decisions of the wiring that need no server."""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from sorna.config import server_config
from sorna.errors import Unavailable
from sorna.legacy_assembly import BehindTheDoor, open_legacy_door
from sorna.lifecycle import OrderedServices
from sorna.testing.gateway import MemoryKeypairs
from sorna.testing.unit import UnitTestCase

EXTERNAL = {"db-addr": "127.0.0.1", "redis-addr": "127.0.0.1"}


class LegacyDoorTests(UnitTestCase):
    """Whether the ZeroMQ door opens at all."""

    def open(self, options: dict[str, str]) -> Deferred[None]:
        """Let the wiring decide, with no keypair in the store."""
        clock = Clock()
        self.parent = OrderedServices(clock)
        rest: Any = None
        behind = BehindTheDoor(rest, cast("Any", MemoryKeypairs()), rest, rest)
        return Deferred.fromCoroutine(open_legacy_door(clock, server_config(options, {}), self.parent, behind, None))

    def test_closed_unless_named(self) -> None:
        """Nobody is charged whom the operator did not name, and that is said once."""
        for options in (EXTERNAL, {}):
            with capturedLogs() as logs:
                self.successResultOf(self.open(options))
            self.assertEqual([event["log_format"] for event in logs if "log_format" in event], [logs[0]["log_format"]])
            self.assertIn("--legacy-keypair names no keypair", logs[0]["log_format"])
            self.assertEqual(list(self.parent), [])

    def test_unknown_keypair(self) -> None:
        """One that is named must exist."""
        self.failureResultOf(self.open({**EXTERNAL, "legacy-keypair": "AKIAX"}), Unavailable)
        self.assertEqual(list(self.parent), [])
