"""Ratios beside those that are kept."""

from __future__ import annotations

from pathlib import Path

from bench.baseline import FILE, UnreadableBaseline, better, compare, highest, keep, load
from sorna.testing.unit import UnitTestCase


class CompareTests(UnitTestCase):
    """Worse by half, and no more than that, is what fails."""

    def test_tolerance(self) -> None:
        """A ratio may be half as high again."""
        verdicts = compare({"a": 15.0, "b": 15.1, "c": 1.0}, {"a": 10.0, "b": 10.0, "c": 10.0})
        self.assertEqual([verdict.fine for verdict in verdicts], [True, False, True])
        self.assertIn("more than 1.5", verdicts[1].in_words)
        self.assertNotIn("more than", verdicts[0].in_words)

    def test_nothing_kept(self) -> None:
        """A ratio that nothing is kept of fails, because else nobody would notice that it is not looked after."""
        [verdict] = compare({"new": 1.0}, {})
        self.assertFalse(verdict.fine)
        self.assertIn("--update", verdict.in_words)

    def test_better_of_two(self) -> None:
        """What was measured again counts where it is lower."""
        self.assertEqual(better({"a": 2.0, "b": 2.0, "c": 2.0}, {"a": 1.0, "b": 3.0}), {"a": 1.0, "b": 2.0, "c": 2.0})

    def test_highest(self) -> None:
        """Of several runs the highest is kept, of ratios that all of them have."""
        self.assertEqual(highest([{"a": 1.0, "b": 1.0}, {"a": 3.0}, {"a": 2.0, "b": 9.0}]), {"a": 3.0})


class FileTests(UnitTestCase):
    """The file with the kept ratios."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp())

    def test_round_trip(self) -> None:
        """What was kept is read again."""
        keep({"a : b, time": 12.3471}, "a machine", self.path)
        self.assertEqual(load(self.path), {"a : b, time": 12.35})

    def test_unreadable(self) -> None:
        """A missing or broken file is an error and not a baseline that everything passes."""
        for content in (None, "", "[]", "{}", '{"ratios": {"a": "1"}}', '{"ratios": {"a": 0}}'):
            if content is not None:
                self.path.write_text(content, encoding="ascii")
            with self.assertRaises(UnreadableBaseline):
                load(self.path)

    def test_the_kept_one(self) -> None:
        """The project's own file can be read."""
        self.assertTrue(load(FILE))
