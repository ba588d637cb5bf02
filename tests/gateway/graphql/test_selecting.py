"""Tests of reading what clients write into ``filter`` and ``order``."""

from __future__ import annotations

import contextlib
import json
import uuid
from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sorna.errors import InvalidRequest
from sorna.gateway.graphql.selecting import MAX_DEPTH, MAX_LENGTH, MAX_LISTED, MAX_ORDERS, read_selection
from sorna.model.selection import (
    AGENT_FIELDS,
    EVERYTHING,
    FOLDER_FIELDS,
    KERNEL_FIELDS,
    KEYPAIR_FIELDS,
    Comparison,
    Condition,
    Every,
    Kind,
    Negation,
    Operator,
    Order,
    Selection,
    Some,
)
from sorna.testing.unit import UnitTestCase
from tests.model.selections import selections

FIELDS = {**KERNEL_FIELDS, **KEYPAIR_FIELDS, **FOLDER_FIELDS, **AGENT_FIELDS, "id": Kind.ID}


def written(condition: Condition) -> str:
    """Write a condition as a client does."""
    match condition:
        case Comparison(field, operator, value):
            moments = FIELDS[field] is Kind.MOMENT
            return f"{field} {operator} {_value(value, moments)}"
        case Negation(inner):
            return f"! ({written(inner)})"
        case Every(parts):
            return "&".join(f"({written(part)})" for part in parts)
        case Some(parts):
            return " | ".join(f"({written(part)})" for part in parts)


def _value(value: Any, moments: bool) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_value(one, moments) for one in value)}]"
    if isinstance(value, uuid.UUID):
        return f'"{value}"'
    if moments and value is not None:
        return f'"{datetime.fromtimestamp(value, UTC).isoformat()}"'
    return json.dumps(value)


class ReadingTests(UnitTestCase):
    @given(selections(FIELDS))
    def test_round_trip(self, selection: Selection) -> None:
        """What was written is what is read."""
        text = "" if selection.condition is None else written(selection.condition)
        order = ",".join(f"{'-' if one.descending else '+'}{one.field}" for one in selection.order)
        self.assertEqual(read_selection(FIELDS, text, order), selection)

    @given(st.text(alphabet='()!&|[]"\\, \t\nnullisintrue=<>contaslkeix019.-+é\x00', max_size=60), st.booleans())
    def test_anything(self, text: str, is_order: bool) -> None:
        """Whatever it is, it is read or refused."""
        with contextlib.suppress(InvalidRequest):
            read_selection({"is": Kind.TEXT, "a": Kind.NUMBER}, *((None, text) if is_order else (text, None)))

    def test_as_in_the_clients_help(self) -> None:
        """The examples of published clients."""
        created = datetime(2021, 1, 1, tzinfo=UTC).timestamp()
        for text, condition in (
            (
                'status == "READY" & permission in ["READ_ONLY", "rw"]',
                Every(
                    (
                        Comparison("status", Operator.EQUAL, "READY"),
                        Comparison("permission", Operator.IN, ("READ_ONLY", "READ_WRITE")),
                    )
                ),
            ),
            ('created_at >= "2021-01-01"', Comparison("created_at", Operator.GREATER_OR_EQUAL, created)),
            ('creator ilike "%@example.com"', Comparison("creator", Operator.LIKE_WITHOUT_CASE, "%@example.com")),
            ("cur_size == null", Comparison("cur_size", Operator.IS, None)),
        ):
            self.assertEqual(read_selection(FOLDER_FIELDS, text, None), Selection(condition))
        orders = {"host": Order("host"), "+host": Order("host"), "-created_at": Order("created_at", True)}
        for text, order in orders.items():
            self.assertEqual(read_selection(FOLDER_FIELDS, None, text), Selection(order=(order,)))

    def test_binding(self) -> None:
        """A "not" binds before "and", and that before "or"."""
        one, two, three = (Comparison("name", Operator.EQUAL, text) for text in "abc")
        text = '!name == "a" & name=="b"|name=="c"'
        self.assertEqual(
            read_selection(KERNEL_FIELDS, text, None).condition, Some((Every((Negation(one), two)), three))
        )

    def test_nothing(self) -> None:
        """Neither a null nor an empty text wants anything."""
        for nothing in (None, ""):
            self.assertIs(read_selection(KERNEL_FIELDS, nothing, nothing), EVERYTHING)

    def test_what_is_refused(self) -> None:
        """Every refusal names what is wrong."""
        for text, words in (
            ("name", "at its end"),
            ('name == "a" name', "at character 13"),
            ("name == ", "at its end"),
            ("'a' == name", "at character 1"),
            ('secret_key == "a"', "secret_key"),
            ("name == 1", "name must be compared with a text"),
            ('num_files > "1"', "a number"),
            ('created_at > "tomorrow"', "a time as in"),
            ('id == "x"', "an id"),
            ("cloneable == 1", "true or false"),
            ("cloneable > true", "neither is more"),
            ('num_files like "1"', "is no text"),
            ("name is true", "null"),
            ("name in 1", "a list"),
            ('name == ["a"]', "a text"),
            ("name in [null]", "a text"),
            ('name == "\\ud800"', "character"),
            ('name == "\\x"', "escape"),
            ('name == "\\u0000"', "NUL"),
            ("num_files == 1e300", "too large"),
            ("!" * (MAX_DEPTH + 1) + 'name == "a"', "nested"),
            ("name in [" + ",".join(['""'] * (MAX_LISTED + 1)) + "]", f"{MAX_LISTED} values"),
            ("a" * (MAX_LENGTH + 1), f"{MAX_LENGTH} characters"),
        ):
            with self.assertRaises(InvalidRequest) as caught:
                read_selection(FOLDER_FIELDS, text, None)
            self.assertIn(words, caught.exception.detail, text)
        for order, words in (
            ("name desc", "order"),
            ("name,", "order"),
            ("-secret_key", "secret_key"),
            (",".join(["name"] * (MAX_ORDERS + 1)), f"{MAX_ORDERS} fields"),
            ("n" * (MAX_LENGTH + 1), "characters"),
        ):
            with self.assertRaises(InvalidRequest) as caught:
                read_selection(FOLDER_FIELDS, None, order)
            self.assertIn(words, caught.exception.detail, order)
