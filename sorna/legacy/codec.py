"""Frames of the ZeroMQ interface to requests and back, and the shapes of replies; pure, and total over whatever bytes arrive.

Source of the format: sections 1.2 to 1.4 of the interface's description. Knows no socket and no action.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

PONG, SUCCESS, INVALID_INPUT, FAILURE = 0, 200, 400, 500

MALFORMED = "Malformed API request."
MISSING = "Missing API parameters."

Reply = Mapping[str, Any]


class MalformedRequest(ValueError):
    """A frame is no request of this interface."""


def decode(raw: bytes | memoryview) -> dict[str, Any]:
    """Read a request: a JSON object in UTF-8 with an action of whatever value.

    :raises MalformedRequest: for everything else; no other exception leaves this function.
    """
    try:
        request = json.loads(str(raw, "utf-8"), parse_constant=_refuse, parse_float=_finite)
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
        text = json.dumps(reply, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        text = json.dumps(failure(f"{type(error).__name__}: The reply cannot be written as JSON."))
    return text.encode("utf-8", "replace")


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


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number out of range")
    return value
