"""The question for completions, and what counts as an answer to it; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sorna.errors import AgentFailed

_OPTIONS: tuple[tuple[str, type, Any], ...] = (("row", int, 0), ("col", int, 0), ("line", str, ""), ("post", str, ""))


def question(number: int, code: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Build the frame; an option that is missing or of another type has its default."""
    asked: dict[str, Any] = {"request": number, "code": code}
    for name, kind, default in _OPTIONS:
        value = options.get(name)
        asked[name] = value if isinstance(value, kind) else default
    return asked


def checked(found: Any) -> Sequence[str]:
    """Give what a kernel answered. :raises AgentFailed: that is no list of texts."""
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise AgentFailed("The kernel gave completions that are none.")
    return found
