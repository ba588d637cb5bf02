"""Frozen values of the model out of plain values that somebody else sent, checked against what the model declares.

Knows attrs classes and type hints, and neither messages nor the link.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


class MalformedMessage(ValueError):
    """Bytes that are no message of this link."""


class reading:  # noqa: N801 - it is used like the generator that it was, which took as long as all of the checks
    """Turn what goes wrong while a value is read into MalformedMessage."""

    __slots__ = ("_cls",)

    def __init__(self, cls: type[Any]) -> None:
        self._cls = cls

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if error is None or isinstance(error, MalformedMessage):
            return
        if isinstance(error, KeyError):
            raise MalformedMessage(f"not a {self._cls.__name__}: {error} is missing") from error
        if isinstance(error, TypeError | ValueError):
            raise MalformedMessage(f"not a {self._cls.__name__}: {error}"[:300]) from error


def build(cls: type[T], raw: Any) -> T:
    """Make a value of the model out of a map of plain values.

    :raises MalformedMessage: a name is unknown or missing, or a value is not what its field is declared to be.
    """
    if not isinstance(raw, dict):
        raise MalformedMessage(f"not a {cls.__name__}: not a map")
    with reading(cls):
        checks = _checks_of(cls)
        for name, value in raw.items():
            check = checks.get(name)
            if check is not None and not check(value):
                raise MalformedMessage(f"not a {cls.__name__}: {name} has a value of the wrong type or out of range")
        return cls(**raw)


# Note [Checks are built once]
#
# What a field of the model is declared to be is looked at once for each class, and becomes a function that tells whether a
# value is that. To look at the declaration for each value would cost an execution as much as verifying its signature does.
# Only the kinds of declarations that the model uses are known here.

Check = Callable[[Any], bool]


def _checks_of(cls: type[Any]) -> Mapping[str, Check]:
    if cls not in _CHECKS:
        _CHECKS[cls] = {name: _check_of(hint) for name, hint in get_type_hints(cls).items()}
    return _CHECKS[cls]


_CHECKS: dict[type[Any], Mapping[str, Check]] = {}


def _check_of(hint: Any) -> Check:
    kind = get_origin(hint) or hint
    parts = [_check_of(part) for part in get_args(hint)]
    if kind in {Union, types.UnionType}:
        plain = frozenset(part for part in get_args(hint) if part in _PLAIN)
        return lambda value: type(value) in plain or any(check(value) for check in parts)
    if kind is Sequence:
        return lambda value: isinstance(value, list | tuple) and all(map(parts[0], value))
    if kind is tuple:
        return lambda value: (
            isinstance(value, tuple)
            and len(value) == len(parts)
            and all(check(one) for check, one in zip(parts, value, strict=True))
        )
    if kind is Mapping:
        return lambda value: (
            isinstance(value, dict) and all(map(parts[0], value)) and all(map(parts[1], value.values()))
        )
    return _SIMPLE.get(kind) or (lambda value: isinstance(value, kind))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_integer(value: Any) -> bool:
    """Tell whether a value is a whole number, which True and False are to Python alone."""
    return isinstance(value, int) and not isinstance(value, bool)


# Of these, values of exactly the type are all right.
_PLAIN = frozenset({str, bytes, bool, int, type(None)})
_SIMPLE: Mapping[Any, Check] = {Any: lambda _value: True, float: _is_number, int: is_integer}
