"""How the time of a request is divided among its stages."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bench.attribution import Mark, faster_half, stages
from bench.stages import table
from sorna.testing.unit import UnitTestCase

WINDOW = Mark("create", 0, 100)


class StageTests(UnitTestCase):
    """Every moment belongs to one stage."""

    def test_nested(self) -> None:
        """A call's time is its own but for what the calls within it take, and is told apart by what lies around it."""
        marks = [Mark("request", 10, 90), Mark("rate", 20, 30), Mark("manager", 40, 80), Mark("store", 50, 60)]
        self.assertEqual(
            stages(WINDOW, marks),
            {
                "create: · → request": 10,
                "request: · → rate": 10,
                "rate": 10,
                "request: rate → manager": 10,
                "manager: · → store": 10,
                "store": 10,
                "manager: store → ·": 20,
                "request: manager → ·": 10,
                "create: request → ·": 10,
            },
        )

    def test_side_by_side(self) -> None:
        """Of calls that overlap, the one that began last has the moment."""
        self.assertEqual(stages(WINDOW, [Mark("a", 0, 60), Mark("b", 40, 100)]), {"a": 40, "b": 60})

    def test_moment(self) -> None:
        """A mark without a length divides the call that it lies in."""
        taken = stages(WINDOW, [Mark("agent", 0, 100), Mark("the code runs", 30, 30)])
        self.assertEqual(taken, {"agent: · → the code runs": 30, "agent: the code runs → ·": 70})

    def test_others_are_left_out(self) -> None:
        """Calls that do not lie wholly within the request belong to something else."""
        self.assertEqual(stages(WINDOW, [Mark("before", -5, 10), Mark("after", 90, 101)]), {"create": 100})

    @given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 100), st.integers(0, 100)), max_size=8))
    def test_adds_up(self, calls: list[tuple[str, int, int]]) -> None:
        """However calls lie, the stages add up to the whole."""
        marks = [Mark(name, min(ends), max(ends)) for name, *ends in calls]
        self.assertAlmostEqual(sum(stages(WINDOW, marks).values()), 100)


class MeanTests(UnitTestCase):
    """Many requests together."""

    def test_faster_half(self) -> None:
        """The mean is of the faster half, and the stages add up to it."""
        requests = [(Mark("x", 0, length), {"a": 1.0, "b": length - 1.0}) for length in (50, 3, 40, 5)]
        self.assertEqual(faster_half(requests), (4.0, {"a": 1.0, "b": 3.0}))

    def test_none(self) -> None:
        """There is no mean of nothing."""
        with self.assertRaises(ValueError):
            faster_half([])

    def test_table(self) -> None:
        """Small stages are shown together, and the whole comes last."""
        lines = table(7, 0.010, {"big": 0.00995, "tiny": 0.00005}).splitlines()
        self.assertIn("big", lines[3])
        self.assertIn("less than 1%", lines[4])
        self.assertIn("0.050", lines[4])
        self.assertIn("all, mean of the faster half of 7", lines[5])
