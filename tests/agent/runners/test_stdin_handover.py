"""The order in which a short command's end, its closed stdin and its filter's listener may be noticed."""

from __future__ import annotations

import os

from sorna.agent.runners.commands import _StdinPipe
from sorna.agent.runners.poller import Poller
from sorna.testing.unit import UnitTestCase


class StdinHandoverTests(UnitTestCase):
    def test_listener_after_the_pipe_is_closed(self) -> None:
        """A listener that is taken over after the reader has gone lets everything pass and breaks nothing."""
        poller = Poller()
        waits: list[None] = []
        reading, writing = os.pipe()
        stdin = _StdinPipe(poller, writing, lambda: waits.append(None))
        os.close(reading)
        poller.once()
        # An end of a pipe without a peer looks like a listener whose programs are gone.
        listener, other = os.pipe()
        os.close(other)
        stdin.watch(listener)
        self.assertFalse(stdin.type("a line for nobody"))
        poller.once()
        with self.assertRaises(OSError):
            os.fstat(listener)
        stdin.close()
        self.assertEqual(waits, [])
