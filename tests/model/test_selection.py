"""Tests of the rules by which entries of lists are selected and sorted."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sorna.model.folder import Folder, FolderBounds
from sorna.model.kernel import Kernel, KernelStatus
from sorna.model.keypair import Keypair
from sorna.model.limits import Limits
from sorna.model.selectable import of_folder, of_kernel, of_keypair
from sorna.model.selection import (
    FOLDER_FIELDS,
    KERNEL_FIELDS,
    KEYPAIR_FIELDS,
    Comparison,
    Condition,
    Every,
    Fields,
    Negation,
    Operator,
    Order,
    Selection,
    Some,
    Value,
    holds,
    like,
    select,
)
from sorna.store.selecting import FOLDER_COLUMNS, KERNEL_COLUMNS, KEYPAIR_COLUMNS, Columns
from sorna.testing.unit import UnitTestCase
from tests.model.selections import TEXTS

UNKNOWN, TRUE, FALSE = (Comparison("x", Operator.EQUAL, value) for value in ("unknown", "1", "2"))


def read(entry: str, field: str) -> str | None:
    return {"x": None if entry == "unknown" else entry}[field]


def a_kernel() -> Kernel:
    moment = 1.0
    return Kernel(uuid.UUID(int=1), "AKIA", "token", "c", "c", KernelStatus.RUNNING, "", moment, moment, Limits())


class HoldsTests(UnitTestCase):
    def test_what_is_not_known(self) -> None:
        """What is not known stays so through a negation, and decides nothing that the rest decides."""
        cases: tuple[tuple[Condition, bool | None], ...] = (
            (UNKNOWN, None),
            (Negation(UNKNOWN), None),
            (Every((UNKNOWN, FALSE)), None),
            (Comparison("x", Operator.IS, None), True),
            (Comparison("x", Operator.IS_NOT, None), False),
            (Some((UNKNOWN, Comparison("x", Operator.IS, None))), True),
            (Every((UNKNOWN, Comparison("x", Operator.IS_NOT, None))), False),
        )
        for condition, expected in cases:
            self.assertIs(holds(condition, "unknown", read), expected, condition)
        self.assertIs(holds(Every((TRUE, Negation(FALSE))), "1", read), True)
        self.assertIs(holds(Some((FALSE, Negation(TRUE))), "1", read), False)

    def test_lists(self) -> None:
        """Nothing is in an empty list, not even what is not known."""
        for values, expected in (((), False), (("x",), None)):
            condition = Comparison("tag", Operator.IN, values)
            self.assertIs(holds(condition, "1", lambda _entry, _field: None), expected)

    def test_sorting(self) -> None:
        """What is not known comes last, or first in descending order; alike entries stay as they came."""
        entries = ["b", "unknown", "a", "b"]
        self.assertEqual(select(entries, Selection(order=(Order("x"),)), read), ["a", "b", "b", "unknown"])
        self.assertEqual(select(entries, Selection(order=(Order("x", True),)), read), ["unknown", "b", "b", "a"])
        self.assertEqual(select(entries, Selection(), read), entries)

    def test_every_field_can_be_read(self) -> None:
        """Each field that may be named is one of the values, and has a column."""
        folder = Folder(a_kernel().id, "a", "AKIA", 1.0, FolderBounds())
        cases: tuple[tuple[Fields, Columns, Any, Callable[[Any, str], Value]], ...] = (
            (KERNEL_FIELDS, KERNEL_COLUMNS, a_kernel(), of_kernel),
            (KEYPAIR_FIELDS, KEYPAIR_COLUMNS, Keypair("AKIA", "s"), of_keypair),
            (FOLDER_FIELDS, FOLDER_COLUMNS, folder, of_folder),
        )
        for fields, columns, entry, reading in cases:
            self.assertEqual(set(columns.sql), set(fields))
            for field in fields:
                reading(entry, field)


class LikeTests(UnitTestCase):
    @given(TEXTS, TEXTS)
    def test_as_a_regular_expression(self, text: str, pattern: str) -> None:
        """Wildcards mean what they mean in SQL, and nothing escapes them."""
        expression = "".join({"%": ".*", "_": "."}.get(one, re.escape(one)) for one in pattern)
        self.assertEqual(like(text, pattern), re.fullmatch(expression, text, re.DOTALL) is not None)

    @given(st.integers(1, 300))
    def test_no_pattern_takes_long(self, number: int) -> None:
        """Many wildcards do not multiply."""
        self.assertFalse(like("a" * 500, "%a" * number + "b"))
