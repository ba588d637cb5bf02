"""Reading typed values out of a client's JSON object, with errors that name the field; knows no particular request."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import field, frozen

from sorna.errors import InvalidRequest

#: Numbers beyond this are refused: no limit of a kernel has a use for them, and other parts store 64-bit integers.
MOST = 2.0**53


@frozen
class Parameters:
    """A JSON object from a client, and where it lies in the body.

    Every method raises :class:`sorna.errors.InvalidRequest` with the field's name; null always means "not given".
    """

    content: Mapping[str, Any] = field(factory=dict)
    path: str = ""

    def name(self, key: str) -> str:
        """Spell a field so that the client finds it, for instance ``config.environ``."""
        return f"{self.path}.{key}" if self.path else key

    def wrong(self, key: str, expected: str) -> InvalidRequest:
        """Build the error for a field that is not what it should be."""
        return InvalidRequest(f"{self.name(key)} must be {expected}")

    def required_text(self, key: str) -> str:
        """Read a text that must be there."""
        value = self.content.get(key)
        if value is None:
            raise InvalidRequest(f"{self.name(key)} is missing")
        return self._text(key, value)

    def text(self, key: str, default: str = "") -> str:
        """Read a text."""
        value = self.content.get(key)
        return default if value is None else self._text(key, value)

    def optional_text(self, key: str, longest: int) -> str | None:
        """Read a text of bounded length; an empty one counts as not given."""
        value = self.text(key)
        if len(value) > longest:
            raise self.wrong(key, f"at most {longest} characters long")
        return value or None

    def flag(self, key: str) -> bool:
        """Read a boolean, False when it is not given."""
        value = self.content.get(key)
        if value is None or isinstance(value, bool):
            return bool(value)
        raise self.wrong(key, "true or false")

    def number(self, key: str) -> float:
        """Read a number, or one written as text; 0 when it is not given, which means the default everywhere."""
        value = self.content.get(key)
        if value is None:
            return 0.0
        if isinstance(value, str) and len(value) <= 32:
            try:
                value = float(value)
            except ValueError:
                raise self.wrong(key, "a number") from None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, "a number")
        if not 0 <= value <= MOST or not math.isfinite(value):
            raise self.wrong(key, "a number from 0 to 2**53")
        return float(value)

    def whole_number(self, key: str) -> int | None:
        """Read an integer that is not negative."""
        value = self.content.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST:
            raise self.wrong(key, "a whole number, not negative")
        return value

    def whole_numbers(self, key: str) -> Sequence[int]:
        """Read a list of integers that are not negative, each of which may be written as text."""
        value = self.content.get(key)
        if value is None:
            return ()
        wrong = self.wrong(key, "a list of whole numbers, not negative")
        if not isinstance(value, list):
            raise wrong
        numbers = []
        for one in value:
            if isinstance(one, str) and one.isascii() and one.isdecimal() and len(one) <= 16:
                one = int(one)  # noqa: PLW2901 - the same number
            if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one <= MOST:
                raise wrong
            numbers.append(one)
        return numbers

    def inner(self, key: str) -> Parameters:
        """Read an object within this one, empty when it is not given."""
        value = self.content.get(key)
        if value is None:
            return Parameters({}, self.name(key))
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return Parameters(value, self.name(key))

    def texts(self, key: str) -> Sequence[str]:
        """Read a list of texts."""
        value = self.content.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self.wrong(key, "a list of texts")
        return value

    def _text(self, key: str, value: Any) -> str:
        if not isinstance(value, str):
            raise self.wrong(key, "a text")
        try:
            # JSON can spell lone surrogates, which no part behind this door can store or send.
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise self.wrong(key, "a text of Unicode characters") from None
        return value
