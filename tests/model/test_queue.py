"""The order of those who wait: fair among owners, whoever asks for how many."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from sorna.model.queue import next_turn
from sorna.testing.unit import UnitTestCase


class Line:
    """The order as the store keeps it: (turn, number, owner) of those who wait."""

    def __init__(self) -> None:
        self.waiting: list[tuple[int, int, str]] = []
        self.count = 0

    def put(self, owner: str) -> None:
        """Let one more wait."""
        mine = [turn for turn, _number, whose in self.waiting if whose == owner]
        first = min((turn for turn, _number, _whose in self.waiting), default=None)
        self.count += 1
        self.waiting.append((next_turn(first, max(mine, default=None)), self.count, owner))

    def serve(self) -> str:
        """Take out who comes first."""
        first = min(self.waiting)
        self.waiting.remove(first)
        return first[2]


class FairnessTests(UnitTestCase):
    """What Note [Fair turns] promises."""

    def test_one_asks_for_many(self) -> None:
        """The second of many comes after everybody's first, and who comes late begins where the others are."""
        line = Line()
        for owner in "aaaab":
            line.put(owner)
        self.assertEqual([line.serve() for _ in range(3)], ["a", "b", "a"])
        line.put("c")
        line.put("b")
        self.assertEqual([line.serve() for _ in range(4)], ["a", "c", "b", "a"])
        self.assertEqual(line.waiting, [])

    @given(st.lists(st.sampled_from("abc+"), max_size=60))
    def test_nobody_is_passed_twice(self, steps: Sequence[str]) -> None:
        """While an owner's first kernel waits, no other owner is served more than twice."""
        line = Line()
        passed: dict[str, dict[str, int]] = {}
        for step in steps:
            if step != "+":
                line.put(step)
                passed.setdefault(step, {})
            elif line.waiting:
                served = line.serve()
                passed.pop(served, None)
                waiting = {whose for _turn, _number, whose in line.waiting}
                if served in waiting:
                    passed[served] = {}
                for owner in waiting - {served}:
                    by = passed[owner]
                    by[served] = by.get(served, 0) + 1
                    self.assertLessEqual(by[served], 2)

    @given(st.lists(st.sampled_from("ab"), max_size=40))
    def test_in_order_of_one_owner(self, owners: Sequence[str]) -> None:
        """The kernels of one owner come in the order in which they were asked for."""
        line = Line()
        for owner in owners:
            line.put(owner)
        numbers: dict[str, list[int]] = {"a": [], "b": []}
        for _turn, number, owner in sorted(line.waiting):
            numbers[owner].append(number)
        for found in numbers.values():
            self.assertEqual(found, sorted(found))
