"""How values of the model become columns and come back; knows no connection.

Times are rounded to the microseconds that PostgreSQL keeps, in the memory stores too.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from sorna.errors import InvalidRequest
from sorna.model.kernel import Kernel, KernelSpec, KernelStatus, Usage
from sorna.model.keypair import Keypair
from sorna.model.limits import Limits
from sorna.model.policy import ResourcePolicy, Slots, shortages, slots_of
from sorna.store.connection import Row

USAGE_COLUMNS = tuple(field.name for field in attrs.fields(Usage))
_LIMITS = frozenset(field.name for field in attrs.fields(Limits))

_KERNEL_TEXT = ("access_key", "session_token", "runtime", "requested_runtime", "status", "status_reason")
_KERNEL_TIMES = ("status_changed_at", "created_at", "terminated_at")
_KERNEL_REST = ("agent_id", "limits", "environ", "tag", "num_queries")

KEYPAIR_PLAIN = ("user_id", "is_active", "is_admin", "concurrency_limit", "rate_limit", "num_queries")
_KEYPAIR_FIRST = ("access_key", "secret_key", *KEYPAIR_PLAIN, "resource_policy")
_TAKEN = ("concurrency_used", "memory_used", "cpu_millis_used", "gpus_used")


def kernel_columns(table: str) -> str:
    """Give the select list that :func:`kernel` reads, for a table or its alias."""
    parts = [f"{table}.id"]
    parts += [f"{table}.{name}" for name in _KERNEL_TEXT]
    parts += [f"extract(epoch FROM {table}.{name})::float8" for name in _KERNEL_TIMES]
    parts += [f"{table}.{name}" for name in (*_KERNEL_REST, *USAGE_COLUMNS)]
    return ", ".join(parts)


def kernel(row: Row) -> Kernel:
    """Read a row of :func:`kernel_columns`."""
    names = ("id", *_KERNEL_TEXT, *_KERNEL_TIMES, *_KERNEL_REST)
    values: dict[str, Any] = dict(zip(names, row, strict=False))
    return Kernel(
        **{
            **values,
            "id": uuid.UUID(values["id"]),
            "status": KernelStatus(values["status"]),
            # A limit that this version does not know was written by a newer manager; it is that one's to enforce.
            "limits": Limits(**{name: limit for name, limit in values["limits"].items() if name in _LIMITS}),
            "usage": Usage(*row[len(names) :]),
        }
    )


def keypair_columns(table: str, policies: str) -> str:
    """Give the select list that :func:`keypair` reads, for aliases of the two tables."""
    parts = [f"{table}.{name}" for name in _KEYPAIR_FIRST]
    parts.append(f"CASE WHEN {policies}.name IS NOT NULL THEN to_jsonb({policies}) END")
    parts += [f"extract(epoch FROM {table}.{name})::float8" for name in ("created_at", "last_used")]
    parts += [f"{table}.{name}" for name in _TAKEN]
    return ", ".join(parts)


def keypair(row: Row) -> Keypair:
    """Read a row of :func:`keypair_columns`."""
    names = (*_KEYPAIR_FIRST, "policy", "created_at", "last_used")
    values: dict[str, Any] = dict(zip(names, row, strict=False))
    if values["policy"] is not None:
        values["policy"] = policy(values["policy"])
    return Keypair(**values, taken=Slots(*row[len(names) :]))


def policy(values: Mapping[str, Any]) -> ResourcePolicy:
    """Read a policy from its columns by name."""
    runtimes = values["runtimes"]
    return ResourcePolicy(**{**values, "runtimes": None if runtimes is None else frozenset(runtimes)})


def to_microseconds(seconds: float) -> float:
    """Round a time to what a ``timestamptz`` keeps."""
    return round(seconds, 6)


def new_kernel(kernel_id: uuid.UUID, spec: KernelSpec, now: float) -> Kernel:
    """Give the kernel that a reservation writes."""
    at = to_microseconds(now)
    return Kernel(
        id=kernel_id,
        access_key=spec.access_key,
        session_token=spec.session_token,
        runtime=spec.runtime,
        requested_runtime=spec.requested_runtime,
        status=KernelStatus.PREPARING,
        status_reason="requested",
        status_changed_at=at,
        created_at=at,
        limits=spec.limits,
        environ=dict(spec.environ),
        tag=spec.tag,
    )


def kernel_parameters(value: Kernel) -> dict[str, Any]:
    """Give a new kernel as named parameters."""
    slots = slots_of(value.runtime, value.limits)
    return {
        "id": str(value.id),
        "memory": slots.memory,
        "cpu_millis": slots.cpu_millis,
        "gpus": slots.gpus,
        **{name: getattr(value, name) for name in _KERNEL_TEXT[:4]},
        "reason": value.status_reason,
        "now": value.created_at,
        "limits": json.dumps(attrs.asdict(value.limits), allow_nan=False),
        "environ": json.dumps(dict(value.environ)),
        "tag": value.tag,
    }


def mount_parameters(spec: KernelSpec) -> dict[str, Any]:
    """Give what a new kernel sees of folders as named parameters."""
    return {
        "folders": _ids(mount.folder_id for mount in spec.mounts),
        "writable_folders": _ids(mount.folder_id for mount in spec.mounts if not mount.read_only),
    }


def _ids(hexadecimal: Iterable[str]) -> str:
    # A text, because a prepared statement takes no list of texts for one of ids.
    return f"{{{','.join(str(uuid.UUID(one)) for one in hexadecimal)}}}"


def why_refused(owner: Keypair | None, spec: KernelSpec) -> str:
    """Say why a reservation found no place; what is in use may have changed since then."""
    if owner is None:
        return "There is no such keypair."
    wanted = slots_of(spec.runtime, spec.limits)
    reasons = "; ".join(shortages(owner.taken, wanted, owner.concurrency_limit, owner.policy))
    return reasons or "A place was taken by another request and has become free again."


def storable(text: str) -> bool:
    """Tell whether PostgreSQL can hold this text: no NUL, and nothing that is no Unicode."""
    if "\0" in text:
        return False
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def require_storable(texts: Iterable[str | None]) -> None:
    """Refuse what PostgreSQL cannot hold.

    :raises InvalidRequest: one of the texts.
    """
    if not all(text is None or storable(text) for text in texts):
        raise InvalidRequest("a NUL or a lone surrogate is not allowed here")


def require_storable_spec(spec: KernelSpec) -> None:
    """Refuse a specification with text that PostgreSQL cannot hold."""
    environ: Mapping[str, str] = spec.environ
    names = (spec.access_key, spec.session_token, spec.runtime, spec.requested_runtime, spec.tag)
    require_storable((*names, *environ, *environ.values()))
