"""Which of the published clients run here, and why the others do not, in a few lines instead of one for every test."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial

from sorna.testing.unit import UnitTestCase
from tests.interop.environments import (
    AUTOBAHN,
    CLIENTS,
    JAVASCRIPT,
    ClientUnavailable,
    prepare,
    prepare_autobahn,
    prepare_javascript,
)


class EnvironmentTests(UnitTestCase):
    def test_clients(self) -> None:
        """Every client is ready, or it is said why it is not; ``SORNA_INTEROP_ALL`` forbids that."""
        wanted: list[tuple[str, Callable[[], object]]]
        wanted = [(client.name, partial(prepare, client)) for client in CLIENTS]
        wanted += [(JAVASCRIPT, prepare_javascript), (AUTOBAHN, prepare_autobahn)]
        missing = []
        for name, make in wanted:
            try:
                make()
            except ClientUnavailable as error:
                missing.append(f"  {name} is SKIPPED: {error}")
        lines = [f"{len(wanted) - len(missing)} of {len(wanted)} clients are ready", *missing]
        sys.stdout.write("\n  " + "\n".join(lines) + "\n")
        if os.environ.get("SORNA_INTEROP_ALL"):
            self.assertEqual(missing, [])
