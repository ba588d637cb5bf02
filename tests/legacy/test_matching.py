"""The ``match`` of an execution."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from twisted.internet.defer import Deferred

from sorna.legacy.matching import WrongMatch, matches
from sorna.testing.unit import UnitTestCase
from tests.legacy.test_codec import VALUES

RESULT = {
    "stdout": "1\n",
    "stderr": "a warning",
    "exceptions": [["KeyError", ["k"], False, None], ["ValueError", ["boo", 3], False, None]],
}


class MatchTests(UnitTestCase):
    def setUp(self) -> None:
        self.searched: list[tuple[str, str]] = []

    async def search(self, pattern: str, text: str) -> bool:
        self.searched.append((pattern, text))
        return True

    def look(self, match: Any, result: Any = RESULT) -> bool:
        return self.successResultOf(Deferred.fromCoroutine(matches(match, result, self.search)))

    def wrong(self, match: Any) -> str:
        failure = self.failureResultOf(Deferred.fromCoroutine(matches(match, RESULT, self.search)), WrongMatch)
        error = failure.value
        assert isinstance(error, WrongMatch)
        return error.cause

    def test_operators(self) -> None:
        """Equal is the whole text, contains a part of it, regex a search."""
        for operator, target, value, found in (
            ("equal", "stdout", "1\n", True),
            ("equal", "stdout", "1", False),
            ("contains", "stdout", "1", True),
            ("contains", "stderr", "error", False),
            ("contains", "stderr", "", True),
        ):
            self.assertIs(self.look({"op": operator, "target": target, "value": value}), found)
        self.assertTrue(self.look({"op": "regex", "target": "stderr", "value": "^a"}))
        self.assertEqual(self.searched, [("^a", "a warning")])

    def test_exception(self) -> None:
        """Its target is the name of the last one, and without any nothing matches."""
        for operator in ("equal", "contains", "regex"):
            wish = {"op": operator, "target": "exception", "value": "ValueError"}
            self.assertTrue(self.look(wish))
            self.assertFalse(self.look(wish, {**RESULT, "exceptions": []}))
        self.assertFalse(self.look({"op": "equal", "target": "exception", "value": "KeyError"}))

    def test_wrong_objects(self) -> None:
        """The errors are those of the historic agent."""
        good = {"op": "equal", "target": "stdout", "value": "1"}
        for name in good:
            self.assertEqual(
                self.wrong({key: value for key, value in good.items() if key != name}),
                "TypeError: Wrong match object format.",
            )
        self.assertEqual(self.wrong({**good, "op": "bogus"}), "AssertionError: Invalid match operator.")
        self.assertEqual(self.wrong({**good, "op": ["equal"]}), "AssertionError: Invalid match operator.")
        self.assertEqual(self.wrong({**good, "target": "media"}), "AssertionError: Invalid match target.")

    @given(VALUES)
    def test_total(self, match: Any) -> None:
        """Whatever is given as a match is none or matches."""
        if isinstance(match, dict):
            match = {**dict.fromkeys(("op", "target", "value"), "equal"), **match}
        self.assertIn("Error: ", self.wrong(match))
