"""Frames of the ZeroMQ interface to requests and back, and the shapes of replies; pure, and total over whatever bytes arrive.

Source of the format: sections 1.2 to 1.4 of the interface's description. Knows no socket and no action.

Note [No long pauses]
---------------------
Everybody else waits while a frame is read or written. Text is fast (4 MiB take 3 ms), but 4 MiB of small values take half a
second. So what a request has outside of its strings is bounded before it is parsed, and a reply's long texts are written
in slices, between which others have their turn.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Generator, Mapping
from json.decoder import scanstring  # type: ignore[attr-defined]  # what the decoder itself reads strings with
from typing import Any, NoReturn

PONG, SUCCESS, INVALID_INPUT, FAILURE = 0, 200, 400, 500

MALFORMED = "Malformed API request."
MISSING = "Missing API parameters."

# Characters of a request outside of its strings, and number of strings, together.
MOST_STRUCTURE = 64 * 1024
# Characters of a reply that are written at once.
SLICE = 256 * 1024

Reply = Mapping[str, Any]


class MalformedRequest(ValueError):
    """A frame is no request of this interface."""


def decode(raw: bytes | memoryview) -> dict[str, Any]:
    """Read a request: a JSON object in UTF-8 with an action of whatever value.

    :raises MalformedRequest: for everything else; no other exception leaves this function.
    """
    try:
        text = str(raw, "utf-8")
        _bound_structure(text)
        request = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise MalformedRequest(str(error)) from None
    if not isinstance(request, dict) or "action" not in request:
        raise MalformedRequest("not an object with an action")
    return request


def encode(reply: Reply) -> bytes:
    """Write a reply as the historic server did: UTF-8 in order, nothing escaped that need not be, lone surrogates as ``?``.

    A reply that JSON cannot carry (what a kernel sent may be anything) becomes one that says so.
    """
    try:
        return _to_json(reply)
    except (ValueError, TypeError, RecursionError) as error:
        return _to_json(failure(f"{type(error).__name__}: The reply cannot be written as JSON."))


def encode_in_turns(reply: Reply) -> Generator[None, None, bytes]:
    """Do the same as :func:`encode` in steps of some milliseconds; see Note [No long pauses]."""
    mark = secrets.token_hex(16)
    long: list[str] = []
    shell = encode(_without_long_texts(reply, mark, long))
    # Each long text was replaced by the mark, which nobody can guess, as a string of its own.
    pieces = shell.split(mark.encode())
    if len(pieces) != len(long) + 1:
        return shell
    written = [pieces[0]]
    for text, behind in zip(long, pieces[1:], strict=True):
        for start in range(0, len(text), SLICE):
            yield
            written.append(_to_json(text[start : start + SLICE])[1:-1])
        written.append(behind)
    return b"".join(written)


def _to_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")


def _without_long_texts(value: Any, mark: str, long: list[str], depth: int = 4) -> Any:
    """Put a mark in the place of each long text and collect the texts; as deep as replies of ours go."""
    if isinstance(value, str) and len(value) > SLICE:
        long.append(value)
        return mark
    if depth and isinstance(value, Mapping):
        return {name: _without_long_texts(one, mark, long, depth - 1) for name, one in value.items()}
    if depth and isinstance(value, list):
        return [_without_long_texts(one, mark, long, depth - 1) for one in value]
    return value


def pong(body: Any) -> Reply:
    """Answer a PING."""
    return {"reply": PONG, "body": body}


def success(**fields: Any) -> Reply:
    """Say that it was done; the fields follow in the order given."""
    return {"reply": SUCCESS, **fields}


def invalid(cause: str) -> Reply:
    """Say that the request is wrong."""
    return {"reply": INVALID_INPUT, "cause": cause}


def failure(cause: str) -> Reply:
    """Say that it could not be done."""
    return {"reply": FAILURE, "cause": cause}


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _bound_structure(text: str) -> None:
    """Refuse what would take long to parse; see Note [No long pauses]. :raises ValueError: also for a string without end."""
    if len(text) <= MOST_STRUCTURE:
        return
    place = outside = 0
    while (quote := text.find('"', place)) >= 0 and outside <= MOST_STRUCTURE:
        outside += quote - place + 1
        _string, place = scanstring(text, quote + 1, True)
    if outside + (len(text) - place if quote < 0 else 0) > MOST_STRUCTURE:
        raise ValueError("too much outside of strings")
