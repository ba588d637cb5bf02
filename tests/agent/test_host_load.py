"""Tests of what the agent says that its host uses."""

from __future__ import annotations

from pathlib import Path

from sorna.agent.host_load import HostLoadMeter
from sorna.model.agent import HostLoad
from sorna.testing.unit import UnitTestCase

MEMINFO = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    600 kB\nHugePages_Total:       0\n"


class HostLoadTests(UnitTestCase):
    def setUp(self) -> None:
        self.proc = Path(self.mktemp())
        self.proc.mkdir()
        (self.proc / "meminfo").write_text(MEMINFO)
        self.meter = HostLoadMeter(self.proc)

    def ticks(self, *ticks: int) -> None:
        (self.proc / "stat").write_text(f"cpu  {' '.join(map(str, ticks))}\ncpu0 1 2 3 4\nintr 5\n")

    def test_since_the_last_time(self) -> None:
        """Processors are busy for what is neither idle nor waiting, of the time since the last look; guests count once."""
        self.ticks(100, 0, 100, 700, 100, 0, 0, 0, 50, 0)
        self.assertIsNone(self.meter())
        self.ticks(110, 10, 110, 750, 110, 5, 5, 0, 60, 0)
        self.assertEqual(self.meter(), HostLoad(40.0, 400 * 1024))
        self.ticks(110, 10, 110, 850, 110, 5, 5, 0, 60, 0)
        self.assertEqual(self.meter(), HostLoad(0.0, 400 * 1024))

    def test_what_is_not_told(self) -> None:
        """A host that does not tell, or whose counters go backwards, makes nothing known, and what follows begins anew."""
        self.ticks(1, 1, 1, 1)
        self.assertIsNone(self.meter())
        self.assertIsNone(self.meter())
        (self.proc / "stat").write_text("nothing")
        self.assertIsNone(self.meter())
        self.ticks(2, 1, 1, 1)
        self.assertIsNone(self.meter())
        (self.proc / "meminfo").write_text("MemTotal: 1 kB\n")
        self.assertIsNone(self.meter())
        (self.proc / "meminfo").unlink()
        self.assertIsNone(self.meter())

    def test_of_this_host(self) -> None:
        """The real files can be read."""
        meter = HostLoadMeter()
        meter()
        load = meter()
        self.assertTrue(load is None or (0 <= load.cpu_percent <= 100 and load.memory > 0))
        self.assertIsNotNone(meter._before)
