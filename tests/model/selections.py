"""Conditions and orders at will, for property tests of those who read, decide and translate them."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

from hypothesis import strategies as st

from sorna.model.selection import (
    Comparison,
    Condition,
    Every,
    Fields,
    Kind,
    Negation,
    Operator,
    Order,
    Selection,
    Some,
)

#: Few, so that they meet, and with everything in them that means something to somebody.
TEXTS = st.text(alphabet="aAbB%_\\'\"é한 ;-", max_size=4)
WORDS = st.sampled_from(("RUNNING", "TERMINATED", "ERROR", "INTERACTIVE", "'; DROP TABLE KERNELS; --"))
MOMENTS = st.sampled_from([datetime(2026, 1, day, 12, 30, 1, 250_000, UTC).timestamp() for day in (1, 2, 3)])
IDS = st.sampled_from([uuid.UUID(int=number) for number in (1, 2, 2**127)])
VALUES: dict[Kind, st.SearchStrategy[Any]] = {
    Kind.TEXT: TEXTS,
    Kind.WORD: WORDS,
    Kind.NUMBER: st.sampled_from((-1, 0, 1, 1.5, 2**40)),
    Kind.FLAG: st.booleans(),
    Kind.MOMENT: MOMENTS,
    Kind.ID: IDS,
}
_SORTED = (Operator.LESS, Operator.LESS_OR_EQUAL, Operator.GREATER, Operator.GREATER_OR_EQUAL)
_TEXTUAL = (Operator.CONTAINS, Operator.LIKE, Operator.LIKE_WITHOUT_CASE)


@st.composite
def comparisons(draw: st.DrawFn, fields: Fields) -> Comparison:
    """Draw one that a client may write."""
    name = draw(st.sampled_from(sorted(fields)))
    kind = fields[name]
    operators = [Operator.EQUAL, Operator.UNEQUAL, Operator.IN, Operator.IS, Operator.IS_NOT]
    operators += [] if kind is Kind.FLAG else _SORTED
    operators += _TEXTUAL if kind in {Kind.TEXT, Kind.WORD} else ()
    operator = draw(st.sampled_from(operators))
    if operator in {Operator.IS, Operator.IS_NOT}:
        return Comparison(name, operator, draw(st.none() | st.booleans()) if kind is Kind.FLAG else None)
    if operator is Operator.IN:
        return Comparison(name, operator, tuple(draw(st.lists(VALUES[kind], max_size=3))))
    return Comparison(name, operator, draw(VALUES[kind]))


def conditions(fields: Fields) -> st.SearchStrategy[Condition]:
    """Draw some of any shape."""
    several = lambda inner: st.lists(inner, min_size=2, max_size=3).map(tuple)  # noqa: E731
    return st.recursive(
        comparisons(fields),
        lambda inner: inner.map(Negation) | several(inner).map(Every) | several(inner).map(Some),
        max_leaves=5,
    )


def selections(fields: Fields) -> st.SearchStrategy[Selection]:
    """Draw some with and without conditions and orders."""
    orders = st.builds(Order, st.sampled_from(sorted(fields)), st.booleans())
    return st.builds(Selection, st.none() | conditions(fields), st.lists(orders, max_size=3).map(tuple))
