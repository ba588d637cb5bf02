"""Sizes as clients spell them: a number of bytes, or a text such as ``1g``; pure."""

from __future__ import annotations

import re

from sorna.gateway.parameters import Parameters
from sorna.model.limits import KIB, MIB

_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([kmgtp]?)(?:i?b)?", re.ASCII | re.IGNORECASE)
_UNITS = {"": 1, "k": KIB, "m": MIB, "g": KIB * MIB, "t": MIB * MIB, "p": KIB * MIB * MIB}


def read_size(where: Parameters, key: str) -> float:
    """Read a number of bytes; 0 when it is not given. :raises InvalidRequest: it is none."""
    value = where.content.get(key)
    if not isinstance(value, str):
        return where.number(key)
    size = _SIZE.fullmatch(value.strip())
    if size is None:
        raise where.wrong(key, "a size such as 512m")
    return float(size[1]) * _UNITS[size[2].lower()]
