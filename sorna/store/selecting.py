"""Conditions and orders of :mod:`sorna.model.selection` as SQL, over columns that are named here and nowhere else.

Note [Never pasted]
    A statement is put together out of this file's own texts: operators, the columns of a list, and the names of parameters.
    Whatever comes from a client is the value of a parameter. What a field is called chooses among columns; it is never
    itself part of a statement.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from attrs import frozen

from sorna.model.selection import (
    FOLDER_FIELDS,
    KERNEL_FIELDS,
    KEYPAIR_FIELDS,
    SAME_FOR_FOLDERS,
    SAME_FOR_KERNELS,
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

_SYMBOLS: Mapping[Operator, str] = {
    Operator.EQUAL: "=",
    Operator.UNEQUAL: "<>",
    Operator.LESS: "<",
    Operator.LESS_OR_EQUAL: "<=",
    Operator.GREATER: ">",
    Operator.GREATER_OR_EQUAL: ">=",
}
_CONSTANTS = {None: "NULL", True: "TRUE", False: "FALSE"}
_CASTS: Mapping[Kind, str] = {
    Kind.TEXT: "{}::text",
    Kind.WORD: "{}::text",
    Kind.NUMBER: "{}::numeric",
    Kind.FLAG: "{}::boolean",
    Kind.MOMENT: "to_timestamp({}::float8)",
    Kind.ID: "{}::uuid",
}
_LIST_TYPES: Mapping[Kind, str] = {Kind.NUMBER: "numeric", Kind.FLAG: "boolean", Kind.ID: "uuid"}


@frozen
class Columns:
    """What the fields of a list are in its table.

    :ivar sql: field -> column, or a constant. Texts are compared by code points; see Note [Three values].
    """

    fields: Fields
    sql: Mapping[str, str]


def _constants(values: Mapping[str, str]) -> dict[str, str]:
    return {name: f"'{value}'::text" for name, value in values.items()}


KERNEL_COLUMNS = Columns(
    KERNEL_FIELDS,
    {
        **dict.fromkeys(("id", "session_id", "main_kernel_id"), "kernels.id"),
        **dict.fromkeys(("name", "sess_id"), "kernels.session_token"),
        **dict.fromkeys(("lang", "image"), "kernels.requested_runtime"),
        "access_key": "kernels.access_key",
        "tag": "kernels.tag",
        "agent": "kernels.agent_id",
        "status": "kernels.status",
        "status_info": "kernels.status_reason",
        "created_at": "kernels.created_at",
        "terminated_at": "kernels.terminated_at",
        "status_changed": "kernels.status_changed_at",
        **_constants(SAME_FOR_KERNELS),
    },
)
KEYPAIR_COLUMNS = Columns(
    KEYPAIR_FIELDS,
    {
        **{name: f"k.{name}" for name in KEYPAIR_FIELDS},
        **dict.fromkeys(("email", "full_name"), "k.user_id"),
    },
)
FOLDER_COLUMNS = Columns(
    FOLDER_FIELDS,
    {
        **{name: f"f.{name}" for name in FOLDER_FIELDS},
        **dict.fromkeys(("user", "creator"), "f.owner"),
        # As it is told, in KiB.
        "max_size": "(f.max_size / 1024)",
        **_constants(SAME_FOR_FOLDERS),
    },
)


@frozen
class Clauses:
    """What a selection adds to a statement.

    :ivar where: a condition, with what is before it.
    :ivar order: sorting, with what is behind it.
    """

    where: str
    order: str
    parameters: Mapping[str, Any]


def clauses(columns: Columns, selection: Selection) -> Clauses:
    """Turn a selection into SQL; see Note [Never pasted]."""
    writing = _Writing(columns)
    where = "" if selection.condition is None else f" AND {writing.condition(selection.condition)}"
    order = "".join(f"{writing.order(one)}, " for one in selection.order)
    return Clauses(where, order, writing.parameters)


class _Writing:
    """One statement's parameters, while its clauses are written."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self.parameters: dict[str, Any] = {}

    def condition(self, condition: Condition) -> str:
        match condition:
            case Comparison():
                return f"({self._comparison(condition)})"
            case Negation(inner):
                return f"(NOT {self.condition(inner)})"
            case Every(parts):
                return f"({' AND '.join(map(self.condition, parts))})"
            case Some(parts):
                return f"({' OR '.join(map(self.condition, parts))})"

    def order(self, order: Order) -> str:
        return f"{self._column(order.field)} {'DESC' if order.descending else 'ASC'}"

    def _column(self, field: str) -> str:
        column = self._columns.sql[field]
        return f'{column} COLLATE "C"' if self._columns.fields[field] in {Kind.TEXT, Kind.WORD} else column

    def _comparison(self, comparison: Comparison) -> str:
        kind, column, value = self._columns.fields[comparison.field], self._column(comparison.field), comparison.value
        match comparison.operator:
            case Operator.IS | Operator.IS_NOT as operator:
                assert value is None or isinstance(value, bool)
                return f"{column} IS {'NOT ' if operator is Operator.IS_NOT else ''}{_CONSTANTS[value]}"
            case Operator.IN:
                return f"{column} = ANY({self._several(kind, value)})"
            case Operator.CONTAINS:
                return f"strpos({column}, {self._parameter(value)}::text) > 0"
            case Operator.LIKE:
                return f"{column} LIKE {self._parameter(value)}::text ESCAPE ''"
            case Operator.LIKE_WITHOUT_CASE:
                # In this collation, lower() knows A to Z.
                pattern = f'lower({self._parameter(value)}::text COLLATE "C")'
                return f"lower({column}) LIKE {pattern} ESCAPE ''"
            case operator:
                return f"{column} {_SYMBOLS[operator]} {_CASTS[kind].format(self._parameter(value))}"

    def _several(self, kind: Kind, values: Any) -> str:
        plain = [_plain(value) for value in values]
        if kind is Kind.MOMENT:
            return f"ARRAY(SELECT to_timestamp(m) FROM unnest({self._parameter(plain)}::float8[]) AS m)"  # noqa: S608 - see the note
        return f"{self._parameter(plain)}::{_LIST_TYPES.get(kind, 'text')}[]"

    def _parameter(self, value: Any) -> str:
        name = f"selected_{len(self.parameters)}"
        self.parameters[name] = _plain(value)
        return f"%({name})s"


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, uuid.UUID) else value
