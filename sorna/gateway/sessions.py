"""``GET /kernel``: the list of one's own sessions, page by page. Of this server alone; published clients ask by GraphQL.

Knows how a page and its cursor look. A cursor is the place behind the last session of a page, in the order in which they are
listed: so pages neither repeat nor leave out a session because others were made or have ended meanwhile.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
import uuid
from datetime import UTC, datetime
from typing import Any, ClassVar

from attrs import frozen

from sorna.errors import InvalidRequest
from sorna.gateway.call import Call, Reply, json_reply
from sorna.gateway.described import (
    NUMBER,
    TEXT,
    WHOLE,
    Described,
    exactly,
    json_content,
    list_of,
    one_of,
    optional,
    text_of,
)
from sorna.gateway.interfaces import Administration
from sorna.gateway.router import Router
from sorna.manager.interfaces import KernelFilter
from sorna.model.kernel import FINAL_STATUSES, Kernel, KernelStatus, short_id
from sorna.model.limits import KIB
from sorna.model.policy import slots_of

MOST = 100
USUAL = 20
_CURSOR = struct.Struct(">d16s")
_CURSOR_LENGTH = 32
_LIVE = frozenset(KernelStatus) - FINAL_STATUSES
_TIME = {"type": "string", "format": "date-time"}
_SESSION = exactly(
    kernelId=TEXT,
    sessionId={"type": "string", "format": "uuid"},
    sessionName=TEXT,
    lang=TEXT,
    status=one_of(*KernelStatus),
    statusReason=TEXT,
    createdAt=_TIME,
    terminatedAt=optional(_TIME),
    tag=optional(TEXT),
    memoryLimit=WHOLE,
    cpuCores=NUMBER,
    gpus=WHOLE,
)
_LIST = Described(
    query={
        "status": text_of(0, 200),
        "limit": {"type": "integer", "minimum": 1, "maximum": MOST},
        "after": {"type": "string", "pattern": f"^[A-Za-z0-9_-]{{{_CURSOR_LENGTH}}}$"},
    },
    answers={200: json_content(exactly(sessions=list_of(_SESSION), next=optional(TEXT)))},
)


@frozen
class SessionRoutes:
    """The list of sessions."""

    administration: Administration

    router: ClassVar[Router[SessionRoutes]] = Router()

    @router.route("GET", "/kernel", "/session", needs_ready=True, described=_LIST)
    async def page(self, call: Call) -> Reply:
        """List one's own sessions, the newest first; those that live, unless ``status`` names others."""
        query = {name: values[-1] for name, values in call.query.items()}
        limit = _limit(query.get("limit", ""))
        wanted = KernelFilter(
            call.access_key, statuses=_statuses(query.get("status", "")), before=_place(query.get("after", ""))
        )
        # One more than is shown tells whether there is another page.
        found = await self.administration.kernels(wanted, 0, limit + 1)
        shown = found[:limit]
        following = _cursor(shown[-1]) if len(found) > limit else None
        return json_reply({"sessions": [_description(kernel) for kernel in shown], "next": following})


def _statuses(text: str) -> frozenset[KernelStatus]:
    names = [name.strip().upper() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in KernelStatus.__members__]
    if unknown:
        raise InvalidRequest(f"status must be of {', '.join(KernelStatus)}")
    return frozenset(map(KernelStatus, names)) or _LIVE


def _limit(text: str) -> int:
    if not text:
        return USUAL
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= MOST):
        raise InvalidRequest(f"limit must be a whole number from 1 to {MOST}")
    return int(text)


def _cursor(kernel: Kernel) -> str:
    return base64.urlsafe_b64encode(_CURSOR.pack(kernel.created_at, kernel.id.bytes)).decode("ascii")


def _place(text: str) -> tuple[float, uuid.UUID] | None:
    if not text:
        return None
    try:
        at, raw = _CURSOR.unpack(base64.b64decode(text.encode("ascii"), b"-_", validate=True))
    except (ValueError, binascii.Error, struct.error):
        raise InvalidRequest("after must be what a page gave as next") from None
    if not (math.isfinite(at) and 0 <= at < 1e11):  # what PostgreSQL takes for a time
        raise InvalidRequest("after must be what a page gave as next")
    return at, uuid.UUID(bytes=raw)


def _description(kernel: Kernel) -> dict[str, Any]:
    slots = slots_of(kernel.runtime, kernel.limits)
    return {
        "kernelId": short_id(kernel.id),
        "sessionId": str(kernel.id),
        "sessionName": kernel.session_token,
        "lang": kernel.requested_runtime,
        "status": kernel.status.value,
        "statusReason": kernel.status_reason,
        "createdAt": _spelt(kernel.created_at),
        "terminatedAt": None if kernel.terminated_at is None else _spelt(kernel.terminated_at),
        "tag": kernel.tag,
        "memoryLimit": slots.memory // KIB,
        "cpuCores": slots.cpu_millis / 1000,
        "gpus": slots.gpus,
    }


def _spelt(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
