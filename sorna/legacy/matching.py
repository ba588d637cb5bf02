"""The ``match`` of an EXECUTE request: what is compared with what; the bad ones are errors as the historic agent gave them.

Pure but for the search for regular expressions, which is handed in. The code has been run by the time that any of this is
looked at, as in 2016.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

Search = Callable[[str, str], Awaitable[bool]]


class WrongMatch(Exception):
    """The match object is none; ``cause`` is what the client is told."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


async def matches(match: Any, result: Mapping[str, Any], search: Search) -> bool:
    """Compare a result with what the client expects.

    :param result: the ``result`` object of a reply.
    :raises WrongMatch: the match object is none.
    """
    match match:
        case {"op": operator, "target": str(target), "value": str(value)}:
            pass
        case _:
            raise WrongMatch("TypeError: Wrong match object format.")
    if target not in {"stdout", "stderr", "exception"}:
        raise WrongMatch("AssertionError: Invalid match target.")
    if operator not in ("contains", "equal", "regex"):
        raise WrongMatch("AssertionError: Invalid match operator.")
    text = _last_exception(result["exceptions"]) if target == "exception" else result[target]
    if text is None:
        return False
    if operator == "contains":
        return value in text
    if operator == "equal":
        return bool(value == text)
    return await search(value, text)


def _last_exception(exceptions: Sequence[Sequence[Any]]) -> str | None:
    return str(exceptions[-1][0]) if exceptions else None
