"""How many kernels are worth keeping ready."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sorna.agent.demand import BURST, MEMORY, Demand
from sorna.testing.unit import UnitTestCase


class DemandTests(UnitTestCase):
    def test_nobody_asked(self) -> None:
        """What nobody asks for is not kept."""
        self.assertEqual(Demand().wanted(1000.0), 0)

    def test_one_now_and_then(self) -> None:
        """A single request is worth one kernel for some minutes, and is then forgotten."""
        demand = Demand()
        demand.note(10.0)
        self.assertEqual([demand.wanted(10.0), demand.wanted(130.0), demand.wanted(10.0 + 3 * MEMORY)], [1, 1, 0])

    def test_burst(self) -> None:
        """A burst is worth as many as it had requests, and less as it fades."""
        demand = Demand()
        for _ in range(40):
            demand.note(5.0)
        self.assertEqual(demand.wanted(5.0), 40)
        self.assertEqual(demand.wanted(5.0 + MEMORY), 15)

    def test_steady_rate(self) -> None:
        """A steady rate is worth what comes within a burst's time."""
        demand = Demand()
        for number in range(1000):
            demand.note(number / 10)
        self.assertEqual(demand.wanted(99.9), 10 * BURST + 1)

    @given(st.lists(st.floats(0, 100), max_size=50), st.floats(0, 1000))
    def test_bounds(self, gaps: list[float], later: float) -> None:
        """Never more than were asked for in all, never less than none, and never more by waiting."""
        demand, now = Demand(), 0.0
        for gap in gaps:
            now += gap
            demand.note(now)
        wanted = demand.wanted(now)
        self.assertTrue(0 <= demand.wanted(now + later) <= wanted <= len(gaps))
