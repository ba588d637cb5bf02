"""Why this host cannot isolate, in a sentence that an operator can act on. Pure, but for reading what the host says.

Knows Linux's and distributions' switches; may not know the sandbox's code beyond the names of its steps.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from attrs import frozen

from sorna.agent.sandbox.confined import SetupFailure

WAY_OUT = "For development only, --isolation=none runs kernels without isolation."


@frozen
class HostFacts:
    """What the host says about namespaces; None where it has no such switch."""

    root: bool
    max_user_namespaces: int | None = None
    unprivileged_clone: int | None = None
    apparmor_restricts: int | None = None


def _switch(path: str) -> int | None:
    try:
        return int(Path("/proc/sys", path).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def read_facts() -> HostFacts:
    """Ask the host."""
    return HostFacts(
        root=os.geteuid() == 0,
        max_user_namespaces=_switch("user/max_user_namespaces"),
        unprivileged_clone=_switch("kernel/unprivileged_userns_clone"),
        apparmor_restricts=_switch("kernel/apparmor_restrict_unprivileged_userns"),
    )


def _why_ordinary(facts: HostFacts) -> str | None:
    if facts.max_user_namespaces == 0:
        return "user namespaces are switched off (sysctl user.max_user_namespaces is 0)"
    if facts.unprivileged_clone == 0:
        return "ordinary users may not make user namespaces (sysctl kernel.unprivileged_userns_clone is 0)"
    if facts.apparmor_restricts:
        return (
            "AppArmor restricts the user namespaces of ordinary users "
            "(sysctl kernel.apparmor_restrict_unprivileged_userns is 1, and no profile allows this program)"
        )
    return None


_REFUSED = frozenset({errno.EPERM, errno.EACCES})
_FULL = frozenset({errno.ENOSPC, errno.EUSERS})
_UNKNOWN = frozenset({errno.EINVAL, errno.ENOSYS})
_ANY: frozenset[int] = frozenset()

# Step, numbers of the error (none: any), part of the detail, sentence; the first that fits is told.
_REASONS = (
    ("clone", _FULL, "", "the host's limit of namespaces is reached (sysctl user.max_*_namespaces)"),
    ("clone", _UNKNOWN, "", "this Linux lacks a kind of namespace or is older than 5.4"),
    (
        "clone",
        _REFUSED,
        "",
        "new namespaces are refused: this is a container without CAP_SYS_ADMIN, or its seccomp filter forbids them",
    ),
    (
        "root file system",
        _REFUSED,
        "mount /proc",
        (
            "a new /proc may not be mounted: this is a container whose engine hides parts of /proc "
            "(Docker: --security-opt systempaths=unconfined)"
        ),
    ),
    (
        "root file system",
        frozenset({errno.EINVAL}),
        "pivot_root",
        "the root file system is an initramfs, which cannot be changed for another (pivot_root)",
    ),
    (
        "root file system",
        _REFUSED,
        "",
        "mounts are refused: this is a container without CAP_SYS_ADMIN, or AppArmor or its seccomp filter forbids them",
    ),
    ("credentials", _REFUSED, "", "root may not change its user: CAP_SETUID, CAP_SETGID and CAP_SETPCAP are needed"),
    ("control group", _ANY, "", "a control group cannot be made or entered ({detail})"),
    ("filter", _ANY, "", "this Linux has no seccomp filters ({detail})"),
)


def _why_step(failure: SetupFailure) -> str:
    for step, numbers, part, sentence in _REASONS:
        if failure.step == step and (not numbers or failure.errno in numbers) and part in failure.detail:
            return sentence.format(detail=failure.detail)
    return failure.sentence


def explain(failure: SetupFailure, facts: HostFacts) -> str:
    """Say why a first kernel could not be confined, and what the way out is."""
    early = failure.step in ("clone", "map user", "root file system")
    ordinary = not facts.root and early and failure.errno in _REFUSED | _FULL
    why = _why_ordinary(facts) if ordinary else None
    return f"This host cannot isolate kernels: {why or _why_step(failure)}. {WAY_OUT}"
