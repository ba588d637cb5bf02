"""A kernel as the manager remembers it, and which changes of its status are allowed."""

from __future__ import annotations

import base64
import re
import secrets
import uuid
from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import lru_cache

from attrs import field, frozen

from sorna.model.folder import Mount
from sorna.model.limits import Limits


class KernelStatus(StrEnum):
    """Where a kernel is in its life; the names are those that later clients print."""

    PENDING = "PENDING"
    PREPARING = "PREPARING"
    RUNNING = "RUNNING"
    RESTARTING = "RESTARTING"
    TERMINATING = "TERMINATING"
    TERMINATED = "TERMINATED"
    ERROR = "ERROR"

    @property
    def final(self) -> bool:
        """Whether nothing can follow."""
        return self in FINAL_STATUSES


FINAL_STATUSES = frozenset({KernelStatus.TERMINATED, KernelStatus.ERROR})

# Destroying is legal from every status that is not final.
ALLOWED_CHANGES: Mapping[KernelStatus, frozenset[KernelStatus]] = {
    KernelStatus.PENDING: frozenset(
        {KernelStatus.PREPARING, KernelStatus.ERROR, KernelStatus.TERMINATING, KernelStatus.TERMINATED}
    ),
    # Back to waiting only by way of the queue, which knows what has waited before.
    KernelStatus.PREPARING: frozenset(
        {KernelStatus.RUNNING, KernelStatus.ERROR, KernelStatus.TERMINATING, KernelStatus.TERMINATED}
    ),
    KernelStatus.RUNNING: frozenset({KernelStatus.RESTARTING, KernelStatus.TERMINATING, KernelStatus.TERMINATED}),
    KernelStatus.RESTARTING: frozenset(
        {KernelStatus.RUNNING, KernelStatus.TERMINATING, KernelStatus.TERMINATED, KernelStatus.ERROR}
    ),
    KernelStatus.TERMINATING: frozenset({KernelStatus.TERMINATED}),
    KernelStatus.TERMINATED: frozenset(),
    KernelStatus.ERROR: frozenset(),
}


def may_change(before: KernelStatus, after: KernelStatus) -> bool:
    """Tell whether a kernel may go from one status straight to another."""
    return after in ALLOWED_CHANGES[before]


def statuses_before(after: KernelStatus) -> tuple[KernelStatus, ...]:
    """List every status from which ``after`` can be reached in one step, for ``UPDATE ... WHERE status IN``."""
    return tuple(status for status, following in ALLOWED_CHANGES.items() if after in following)


SHORT_ID_LENGTH, _LONG = 22, 36
_LENGTHS = frozenset({SHORT_ID_LENGTH, _LONG})
_ID = re.compile(r"[A-Za-z0-9_-]{21}[AQgw]", re.ASCII)


def new_kernel_id() -> uuid.UUID:
    """Draw a random 128-bit kernel id (all bits random: it is a secret of its owner)."""
    return uuid.UUID(bytes=secrets.token_bytes(16))


# Every request spells and reads a few ids, mostly the same ones again.
_REMEMBERED = 8192


@lru_cache(_REMEMBERED)
def short_id(kernel_id: uuid.UUID) -> str:
    """Spell an id as clients of 2016 see it: 22 characters of URL-safe base64 without padding."""
    return base64.urlsafe_b64encode(kernel_id.bytes).rstrip(b"=").decode("ascii")


def parse_kernel_id(text: str) -> uuid.UUID | None:
    """Read an id in either spelling (22-character base64 or UUID), or give None when it is neither."""
    return _read_id(text) if len(text) in _LENGTHS else None


@lru_cache(_REMEMBERED)
def _read_id(text: str) -> uuid.UUID | None:
    if _ID.fullmatch(text):
        return uuid.UUID(bytes=base64.urlsafe_b64decode(text + "=="))
    try:
        return uuid.UUID(text) if len(text) == _LONG else None
    except ValueError:
        return None


# The strictest of the historic rules that every historic client satisfies: 4 to 80 characters.
_TOKEN = re.compile(r"\w[\w.-]{2,78}\w", re.ASCII)


def valid_session_token(token: str) -> bool:
    """Tell whether a client's session token is well-formed: 4 to 80 of ``A-Za-z0-9_.-``, alphanumeric at both ends."""
    return _TOKEN.fullmatch(token) is not None


@frozen
class KernelSpec:
    """What a client asks for when it creates a kernel.

    :ivar runtime: the canonical runtime name (aliases are resolved before).
    :ivar session_token: the client's own name for the session; unique per owner among live kernels.
    :ivar requested_runtime: the name as the client spelled it; later answers repeat it.
    :ivar mounts: folders that it sees, whose owner has agreed.
    :ivar ports: what the user's own programs will listen on, for clients to see; other ports can be reached as well.
    :ivar labels: that its agent must have.
    """

    access_key: str
    session_token: str
    runtime: str
    requested_runtime: str
    limits: Limits
    environ: Mapping[str, str] = field(factory=dict)
    tag: str | None = None
    mounts: Sequence[Mount] = ()
    ports: Sequence[int] = ()
    labels: Mapping[str, str] = field(factory=dict)


@frozen
class Usage:
    """What a kernel used up. Times in milliseconds, sizes in bytes; -1 where the host cannot tell."""

    cpu_used: float = 0.0
    mem_max_bytes: int = -1
    mem_cur_bytes: int = -1
    net_rx_bytes: int = -1
    net_tx_bytes: int = -1
    io_read_bytes: int = -1
    io_write_bytes: int = -1
    io_max_scratch_size: int = -1
    io_cur_scratch_size: int = -1


@frozen
class Kernel:
    """One kernel as PostgreSQL has it. Times are seconds since the epoch (UTC).

    :ivar status_reason: why the status is what it is, for instance ``idle-timeout`` or ``user-requested``.
    """

    id: uuid.UUID
    access_key: str
    session_token: str
    runtime: str
    requested_runtime: str
    status: KernelStatus
    status_reason: str
    status_changed_at: float
    created_at: float
    limits: Limits
    agent_id: str | None = None
    terminated_at: float | None = None
    num_queries: int = 0
    usage: Usage = Usage()
    environ: Mapping[str, str] = field(factory=dict)
    tag: str | None = None
