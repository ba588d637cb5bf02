"""What of a list is wanted and in which order: conditions on named fields, and how they are decided; pure.

Knows no query language and no SQL: doors read conditions out of their clients' texts, stores turn them into statements, and
:func:`holds` says what both mean.

Note [Three values]
    A field that is not known makes a comparison neither true nor false, and so it goes on through "not", "and" and "or", as in
    SQL. Only what is true is selected. Texts are compared by the code points of their characters, whatever the language of
    a database, and where upper and lower case are not told apart, that goes for A to Z alone.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, StrEnum
from typing import Any, TypeVar

from attrs import frozen

T = TypeVar("T")
Value = str | int | float | bool | uuid.UUID | None
Read = Callable[[T, str], Value]


class Kind(Enum):
    """What a field's values are. A word is a text without case; a moment is in seconds since the epoch."""

    TEXT = "text"
    WORD = "word"
    NUMBER = "number"
    FLAG = "flag"
    MOMENT = "moment"
    ID = "id"


Fields = Mapping[str, Kind]


class Operator(StrEnum):
    """How a field is compared, as clients write it."""

    EQUAL = "=="
    UNEQUAL = "!="
    LESS = "<"
    LESS_OR_EQUAL = "<="
    GREATER = ">"
    GREATER_OR_EQUAL = ">="
    CONTAINS = "contains"
    IN = "in"
    IS = "is"
    IS_NOT = "isnot"
    LIKE = "like"
    LIKE_WITHOUT_CASE = "ilike"


@frozen
class Comparison:
    """One field and what it is compared with.

    :ivar value: of the field's kind; several for IN; for IS and IS_NOT a flag or None.
    """

    field: str
    operator: Operator
    value: Value | tuple[Value, ...]


@frozen
class Negation:
    """What is not so."""

    inner: Condition


@frozen
class Every:
    """All of these."""

    parts: tuple[Condition, ...]


@frozen
class Some:
    """At least one of these."""

    parts: tuple[Condition, ...]


Condition = Comparison | Negation | Every | Some


@frozen
class Order:
    """A field to sort by; what is not known comes last, or first if that is ``descending``."""

    field: str
    descending: bool = False


@frozen
class Selection:
    """Which entries of a list, and in which order; those that are alike in it come as they come without one."""

    condition: Condition | None = None
    order: tuple[Order, ...] = ()


EVERYTHING = Selection()

KERNEL_FIELDS: Fields = {
    **dict.fromkeys(("id", "session_id", "main_kernel_id"), Kind.ID),
    **dict.fromkeys(("name", "sess_id", "access_key", "lang", "image", "tag", "agent", "status_info"), Kind.TEXT),
    **dict.fromkeys(("status", "type", "sess_type", "result"), Kind.WORD),
    **dict.fromkeys(("group_name", "domain_name", "scaling_group"), Kind.TEXT),
    **dict.fromkeys(("created_at", "terminated_at", "status_changed"), Kind.MOMENT),
}
KEYPAIR_FIELDS: Fields = {
    **dict.fromkeys(("access_key", "user_id", "email", "full_name", "resource_policy"), Kind.TEXT),
    **dict.fromkeys(("is_active", "is_admin"), Kind.FLAG),
    **dict.fromkeys(("created_at", "last_used"), Kind.MOMENT),
    **dict.fromkeys(("rate_limit", "concurrency_limit", "concurrency_used", "num_queries"), Kind.NUMBER),
}
FOLDER_FIELDS: Fields = {
    "id": Kind.ID,
    **dict.fromkeys(("name", "host", "user", "creator"), Kind.TEXT),
    **dict.fromkeys(("ownership_type", "usage_mode", "permission", "status"), Kind.WORD),
    **dict.fromkeys(("max_files", "max_size", "num_files", "cur_size"), Kind.NUMBER),
    "cloneable": Kind.FLAG,
    **dict.fromkeys(("created_at", "last_used"), Kind.MOMENT),
}
AGENT_FIELDS: Fields = {
    **dict.fromkeys(("id", "region", "scaling_group", "addr", "isolation"), Kind.TEXT),
    "status": Kind.WORD,
    **dict.fromkeys(("cpu_cur_pct", "mem_cur_bytes"), Kind.NUMBER),
    "schedulable": Kind.FLAG,
    **dict.fromkeys(("first_contact", "lost_at"), Kind.MOMENT),
}
#: Fields that are the same for everything there is; Sorna has one of each of these things.
SAME_FOR_KERNELS: Mapping[str, str] = {
    "type": "INTERACTIVE",
    "sess_type": "INTERACTIVE",
    "result": "UNDEFINED",
    "group_name": "default",
    "domain_name": "default",
    "scaling_group": "default",
}
SAME_FOR_FOLDERS: Mapping[str, str] = {
    "host": "local",
    "ownership_type": "USER",
    "usage_mode": "GENERAL",
    "permission": "READ_WRITE",
    "status": "READY",
}


def holds(condition: Condition, entry: T, read: Read[T]) -> bool | None:
    """Tell whether a condition is true of an entry; None where that is not known. See Note [Three values]."""
    match condition:
        case Comparison(field, operator, value):
            return _compare(read(entry, field), operator, value)
        case Negation(inner):
            found = holds(inner, entry, read)
            return None if found is None else not found
        case Every(parts):
            known = [holds(part, entry, read) for part in parts]
            return False if False in known else None if None in known else True
        case Some(parts):
            known = [holds(part, entry, read) for part in parts]
            return True if True in known else None if None in known else False


def _compare(found: Value, operator: Operator, value: Any) -> bool | None:
    if operator in {Operator.IS, Operator.IS_NOT}:
        return (found is value) is (operator is Operator.IS)
    if operator is Operator.IN and not value:
        return False  # of a list without anything that much is known of every value
    if found is None or value is None:
        return None
    return _COMPARED[operator](found, value)


_COMPARED: Mapping[Operator, Callable[[Any, Any], bool]] = {
    Operator.EQUAL: lambda found, value: found == value,
    Operator.UNEQUAL: lambda found, value: found != value,
    Operator.LESS: lambda found, value: found < value,
    Operator.LESS_OR_EQUAL: lambda found, value: found <= value,
    Operator.GREATER: lambda found, value: found > value,
    Operator.GREATER_OR_EQUAL: lambda found, value: found >= value,
    Operator.CONTAINS: lambda found, value: value in found,
    Operator.IN: lambda found, value: found in value,
    Operator.LIKE: lambda found, value: like(found, value),  # noqa: PLW0108 - made below
    Operator.LIKE_WITHOUT_CASE: lambda found, value: like(_lower(found), _lower(value)),
}
_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


def _lower(text: str) -> str:
    return text.translate(_LOWER)


def like(text: str, pattern: str) -> bool:
    """Match a whole text: ``%`` stands for any characters or none, ``_`` for one; takes at most len(text) * len(pattern) steps."""
    at = place = 0
    back: tuple[int, int] | None = None
    while at < len(text):
        if place < len(pattern) and pattern[place] == "%":
            back = (at, place)
            place += 1
        elif place < len(pattern) and pattern[place] in {"_", text[at]}:
            at, place = at + 1, place + 1
        elif back is not None:
            # The last % takes one character more.
            back = (back[0] + 1, back[1])
            at, place = back[0], back[1] + 1
        else:
            return False
    return not pattern[place:].strip("%")


def select(entries: Sequence[T], selection: Selection, read: Read[T]) -> Sequence[T]:
    """Give what is selected of a list, in the wanted order."""
    condition = selection.condition
    found = [one for one in entries if condition is None or holds(condition, one, read) is True]
    for order in reversed(selection.order):

        def key(one: T, field: str = order.field) -> tuple[bool, Any]:
            value = read(one, field)
            return value is None, 0 if value is None else value

        found.sort(key=key, reverse=order.descending)
    return found
