"""Percentiles, rows and tables."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from bench.figures import (
    Row,
    Section,
    goals_table,
    least_row,
    milliseconds,
    most_row,
    not_measured,
    percentile,
    report,
    text_table,
    times_row,
)
from sorna.testing.unit import UnitTestCase


class PercentileTests(UnitTestCase):
    """The nearest rank."""

    def test_known(self) -> None:
        """Of a hundred values in any order the share is the rank."""
        values = [float(value) for value in range(100, 0, -1)]
        self.assertEqual([percentile(values, share) for share in (0, 0.5, 0.99, 1)], [1.0, 50.0, 99.0, 100.0])

    def test_few(self) -> None:
        """Of few values the highest percentiles are the greatest."""
        self.assertEqual(percentile([3.0, 1.0, 2.0], 0.99), 3.0)
        self.assertEqual(percentile([7.0], 0.5), 7.0)

    def test_none(self) -> None:
        """There is no percentile of nothing."""
        with self.assertRaises(ValueError):
            percentile([], 0.5)

    @given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(0, 1))
    def test_share_is_reached(self, values: list[float], share: float) -> None:
        """At least the share of all values does not exceed it, and it is one of them."""
        found = percentile(values, share)
        self.assertIn(found, values)
        self.assertGreaterEqual(sum(value <= found for value in values), math.floor(share * len(values)))


class RowTests(UnitTestCase):
    """Figures beside their goals."""

    def test_times(self) -> None:
        """Both percentiles have to reach their goals."""
        self.assertIs(times_row("x", [0.002] * 100, (4, 12)).met, True)
        self.assertIs(times_row("x", [0.005] * 100, (4, 12)).met, False)
        self.assertIs(times_row("x", [0.002] * 98 + [0.02] * 2, (4, 12)).met, False)
        self.assertIsNone(times_row("x", [0.002], None).met)

    def test_least_and_most(self) -> None:
        """A rate is to reach its goal, a size not to exceed it."""
        self.assertTrue(least_row("x", 1500, 1500, "/s").met)
        self.assertFalse(least_row("x", 1499, 1500, "/s").met)
        self.assertTrue(most_row("x", 8, 8, " MB").met)
        self.assertFalse(most_row("x", 8.1, 8, " MB").met)
        self.assertEqual(least_row("x", 12345.6, 1500, "/s").measured, "12,346/s")

    def test_milliseconds(self) -> None:
        """Three digits are enough, whatever the size."""
        self.assertEqual([milliseconds(s) for s in (0.00123, 0.0123, 0.123, 1.23)], ["1.23", "12.3", "123", "1230"])


class TableTests(UnitTestCase):
    """Tables of reStructuredText."""

    def test_columns_line_up(self) -> None:
        """Every cell begins below its head."""
        table = text_table(("a", "bcd"), [("long one", "1"), ("x", "")]).splitlines()
        self.assertEqual(table[0], "========  ===")
        self.assertEqual(table[3:5], ["long one  1", "x"])

    def test_wrong_number_of_cells(self) -> None:
        """A line with a cell too few is an error here and not in the reader's browser."""
        with self.assertRaises(ValueError):
            text_table(("a", "b"), [("x",)])

    def test_notes_are_numbered(self) -> None:
        """Each note is below the table under the number that stands in its row."""
        table = goals_table(
            [
                Row("one", "1", "2", met=True, client=0.125, notes=["first", "second"]),
                not_measured("two", "3", "why not"),
            ]
        )
        self.assertIn("2 [1] [2]", table)
        self.assertIn("yes  12%", table)
        self.assertIn("not measured [3]", table)
        self.assertEqual(table.splitlines()[-3:], ["* [1] first", "* [2] second", "* [3] why not"])

    def test_notes_are_no_markup(self) -> None:
        """What a note quotes is shown as it is, whatever it would mean in reStructuredText."""
        table = goals_table([Row("one", "1", "2", notes=["b'*x* `y` |z| a_ b_c \\n'"])])
        self.assertEqual(table.splitlines()[-1], r"* [1] b'\*x\* \`y\` \|z\| a\_ b_c \\n'")

    def test_sections_come_last(self) -> None:
        """Sections follow the one table of all rows, each below its underlined title."""
        text = report([Section("Title", "text"), Row("one", "1", "2")])
        self.assertLess(text.index("one"), text.index("Title\n-----\n\ntext"))
        self.assertNotIn("figure", report([Section("Title", "text")]))
