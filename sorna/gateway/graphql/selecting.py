"""Reads the ``filter`` and ``order`` of lists as clients of 20.03 and later write them; pure.

Source: the help of those clients. A filter compares fields with values and combines comparisons::

    status == "RUNNING" & (created_at >= "2026-01-01" | name ilike "test-%") & !(tag is null)

``&`` binds before ``|``. Values are texts in double quotes with the escapes of JSON, numbers, ``true``, ``false``, ``null``,
and lists of them in brackets. An order is a list of fields, each with ``+`` or ``-`` before it or nothing: ``-created_at, name``.
Whoever writes more than a page of text wants something else, and gets an error.
"""

from __future__ import annotations

import functools
import json
import math
import re
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from attrs import frozen
from lark import Lark, Token, Transformer
from lark.exceptions import LarkError, UnexpectedInput, VisitError

from sorna.errors import InvalidRequest
from sorna.model.selection import (
    EVERYTHING,
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

MAX_LENGTH = 1024
MAX_DEPTH = 16
MAX_LISTED = 100
MAX_ORDERS = 8
_REMEMBERED = 64

_GRAMMAR = r"""
?start: either
?either: both ("|" both)* -> either
?both: one ("&" one)* -> both
?one: "!" one -> negation
    | "(" either ")"
    | FIELD OPERATOR value -> comparison
value: STRING -> text
     | NUMBER -> number
     | ATOM -> atom
     | "[" [value ("," value)*] "]" -> several
FIELD: /[A-Za-z_][A-Za-z0-9_]*/
OPERATOR: /==|!=|>=|<=|>|<|(?:contains|in|isnot|is|like|ilike)\b/
ATOM: /(?:null|true|false)\b/
STRING: /"(?:\\.|[^"\\])*"/
NUMBER: /-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?/
%ignore /[ \t\r\n]+/
"""
_ORDER = re.compile(r"([+-]?)\s*([A-Za-z_][A-Za-z0-9_]*)", re.ASCII)
_ATOMS = {"null": None, "true": True, "false": False}
_TEXTUAL = frozenset({Operator.CONTAINS, Operator.LIKE, Operator.LIKE_WITHOUT_CASE})
_SORTED = frozenset({Operator.LESS, Operator.LESS_OR_EQUAL, Operator.GREATER, Operator.GREATER_OR_EQUAL})
# The words of answers, for those of filters.
_SAME_WORD = {"RO": "READ_ONLY", "RW": "READ_WRITE"}


def read_selection(fields: Fields, filter_text: str | None, order_text: str | None) -> Selection:
    """Read what a client wants of a list; nothing, or an empty text, wants everything.

    :param fields: those that may be named.
    :raises InvalidRequest: a text is too long, is none of this language, or names what is not there.
    """
    if not filter_text and not order_text:
        return EVERYTHING
    condition = _read_filter(tuple(fields.items()), filter_text) if filter_text else None
    return Selection(condition, _read_order(fields, order_text) if order_text else ())


def _read_order(fields: Fields, text: str) -> tuple[Order, ...]:
    _require_short("order", text)
    parts = [_ORDER.fullmatch(part.strip()) for part in text.split(",")]
    if len(parts) > MAX_ORDERS:
        raise InvalidRequest(f"order has at most {MAX_ORDERS} fields")
    orders = []
    for part in parts:
        if part is None:
            raise InvalidRequest("order must be fields with + or - before them, separated by commas")
        sign, name = part.groups()
        _kind(fields, name)
        orders.append(Order(name, sign == "-"))
    return tuple(orders)


def _require_short(name: str, text: str) -> None:
    if len(text) > MAX_LENGTH:
        raise InvalidRequest(f"{name} has at most {MAX_LENGTH} characters")


def _kind(fields: Fields, name: str) -> Kind:
    if name not in fields:
        raise InvalidRequest(f"there is no field {name[:40]} to select by; there are {', '.join(sorted(fields))}")
    return fields[name]


@functools.lru_cache(_REMEMBERED)
def _read_filter(fields: tuple[tuple[str, Kind], ...], text: str) -> Condition:
    _require_short("filter", text)
    try:
        read: _Read = _Reading(dict(fields)).transform(_parser().parse(text))
    except VisitError as error:
        raise error.orig_exc from None
    except UnexpectedInput as error:
        token: Any = getattr(error, "token", None)
        where: Any = error.pos_in_stream
        at_end = where is None or (token is not None and token.type == "$END")
        place = "at its end" if at_end else f"at character {where + 1}"
        raise InvalidRequest(f"filter cannot be understood {place}") from None
    except LarkError:
        raise InvalidRequest("filter cannot be understood") from None
    return read.condition


@functools.cache
def _parser() -> Lark:
    return Lark(_GRAMMAR, parser="lalr", maybe_placeholders=False)


@frozen
class _Read:
    """A condition and how deep it is nested."""

    condition: Condition
    depth: int


class _Reading(Transformer[Token, Any]):
    """Makes conditions while going up the tree of a text."""

    def __init__(self, fields: Fields) -> None:
        super().__init__()
        self._fields = fields

    def either(self, parts: list[_Read]) -> _Read:
        return parts[0] if len(parts) == 1 else _nested(lambda: Some(tuple(part.condition for part in parts)), parts)

    def both(self, parts: list[_Read]) -> _Read:
        return parts[0] if len(parts) == 1 else _nested(lambda: Every(tuple(part.condition for part in parts)), parts)

    def negation(self, parts: list[_Read]) -> _Read:
        return _nested(lambda: Negation(parts[0].condition), parts)

    def text(self, parts: list[Token]) -> str:
        try:
            text: str = json.loads(parts[0], strict=False)
            text.encode("utf-8")
        except ValueError:
            raise InvalidRequest("a text of the filter has an escape or a character that is none") from None
        if "\0" in text:
            raise InvalidRequest("a text of the filter has a NUL, which nothing here has")
        return text

    def number(self, parts: list[Token]) -> int | float:
        text = str(parts[0])
        value = int(text) if text.lstrip("-").isdecimal() else float(text)
        if not math.isfinite(value) or abs(value) > 2**63:
            raise InvalidRequest("a number of the filter is too large")
        return value

    def atom(self, parts: list[Token]) -> bool | None:
        return _ATOMS[str(parts[0])]

    def several(self, parts: list[Any]) -> tuple[Any, ...]:
        if len(parts) > MAX_LISTED:
            raise InvalidRequest(f"a list of the filter has at most {MAX_LISTED} values")
        return tuple(parts)

    def comparison(self, parts: list[Any]) -> _Read:
        name, operator, value = str(parts[0]), Operator(str(parts[1])), parts[2]
        return _Read(_comparison(name, _kind(self._fields, name), operator, value), 1)


def _nested(make: Callable[[], Condition], parts: list[_Read]) -> _Read:
    depth = 1 + max(part.depth for part in parts)
    if depth > MAX_DEPTH:
        raise InvalidRequest(f"filter is nested deeper than {MAX_DEPTH}")
    return _Read(make(), depth)


def _comparison(name: str, kind: Kind, operator: Operator, value: Any) -> Comparison:
    # As everywhere else, "is" is what it means to be null.
    if value is None and operator in {Operator.EQUAL, Operator.UNEQUAL}:
        operator = Operator.IS if operator is Operator.EQUAL else Operator.IS_NOT
    if operator in {Operator.IS, Operator.IS_NOT}:
        if value is not None and not (isinstance(value, bool) and kind is Kind.FLAG):
            raise InvalidRequest(f"{name} can only be, or not be, null{' true or false' if kind is Kind.FLAG else ''}")
        return Comparison(name, operator, value)
    if operator in _TEXTUAL and kind not in {Kind.TEXT, Kind.WORD}:
        raise InvalidRequest(f"{name} is no text, which {operator} is for")
    if operator in _SORTED and kind is Kind.FLAG:
        raise InvalidRequest(f"{name} is true or false, and neither is more than the other")
    if operator is Operator.IN:
        if not isinstance(value, tuple):
            raise InvalidRequest(f"{name} in must be followed by a list in brackets")
        return Comparison(name, operator, tuple(_value(name, kind, one) for one in value))
    return Comparison(name, operator, _value(name, kind, value))


def _value(name: str, kind: Kind, value: Any) -> Any:
    try:
        return _VALUES[kind](value)
    except (TypeError, ValueError, OverflowError):
        raise InvalidRequest(f"{name} must be compared with {_EXPECTED[kind]}") from None


def _text_of(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _word(value: Any) -> str:
    word = _text_of(value).upper()
    return _SAME_WORD.get(word, word)


def _number(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def moment(value: Any) -> float:
    """Read a time. :raises TypeError, ValueError, OverflowError: it is none."""
    parsed = datetime.fromisoformat(_text_of(value))
    return (parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed).timestamp()


_VALUES: dict[Kind, Callable[[Any], Any]] = {
    Kind.TEXT: _text_of,
    Kind.WORD: _word,
    Kind.NUMBER: _number,
    Kind.FLAG: _flag,
    Kind.MOMENT: moment,
    Kind.ID: lambda value: uuid.UUID(_text_of(value)),
}
_EXPECTED = {
    Kind.TEXT: "a text",
    Kind.WORD: "a text",
    Kind.NUMBER: "a number",
    Kind.FLAG: "true or false",
    Kind.MOMENT: 'a time as in "2026-01-31T12:00:00+00:00"',
    Kind.ID: "an id",
}
