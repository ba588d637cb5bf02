"""Pages of lists, and how values are spelled in answers; what the resolvers of every type share.

What a field is counted in is that of section 2.12 of the REST interface's specification: memory in units of 256 MiB,
processors and GPUs in halves.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import attrs
from graphql import GraphQLResolveInfo

from sorna.errors import InvalidRequest
from sorna.gateway.graphql.asking import Asking
from sorna.gateway.graphql.bounds import DEFAULT_LIMIT, MAX_LIMIT
from sorna.model.agent import Capacity
from sorna.model.limits import MIB
from sorna.model.policy import Slots

Info = GraphQLResolveInfo[Asking]
Resolver = Callable[..., Any]

MAX_OFFSET = 100_000
MEMORY_SLOT = 256 * MIB


def bounds(limit: int | None, offset: int | None, default: int = DEFAULT_LIMIT) -> tuple[int, int]:
    """Give offset and limit of a page. :raises InvalidRequest: they are out of range."""
    limit, offset = default if limit is None else limit, offset or 0
    if not 0 <= limit <= MAX_LIMIT or not 0 <= offset <= MAX_OFFSET:
        raise InvalidRequest(f"limit must be 0 to {MAX_LIMIT}, offset 0 to {MAX_OFFSET}")
    return offset, limit


def text_of(moment: float | None) -> str | None:
    """Write a time."""
    return None if moment is None else datetime.fromtimestamp(moment, UTC).isoformat()


def text_of_slots(slots: Slots | Capacity) -> str:
    """Write slots as later clients read them."""
    texts = {"cpu": f"{slots.cpu_millis / 1000:g}", "mem": str(slots.memory), "cuda.device": str(slots.gpus)}
    return json.dumps(texts)


def memory_slots(size: int) -> int:
    """Count memory in slots."""
    return math.ceil(size / MEMORY_SLOT)


def cpu_slots(millis: int) -> int:
    """Count processors in slots."""
    return math.ceil(millis / 500)


def always(value: Any) -> Resolver:
    """Give a resolver for what is the same for everything there is."""
    return lambda _of, _info: value


@attrs.frozen
class Page:
    """A page whose number of entries is only asked for where a query wants it."""

    items: Callable[[], Any]
    total_count: Callable[[], Any]


NOTHING = Page(lambda: (), lambda: 0)
PAGE: Mapping[str, Resolver] = {
    "items": lambda page, _info: page.items(),
    "total_count": lambda page, _info: page.total_count(),
}
