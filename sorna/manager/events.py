"""What happens to kernels, as it is announced between managers and told to whoever watches; knows no door.

An announcement is one text: the kernel's short id, its new status, its owner, its session token and the reason, with spaces
between. Redis keeps none for who is away, so a watcher may miss some in an outage: the truth is the row.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable

from sorna.manager.interfaces import Announcements
from sorna.manager.requests import KernelEvent
from sorna.model.kernel import Kernel, KernelStatus, parse_kernel_id, short_id

KERNEL_TOPIC = "sorna.kernel-status"


def announcement_of(kernel: Kernel) -> str:
    """Give the text that announces a kernel's status."""
    return f"{short_id(kernel.id)} {kernel.status} {kernel.access_key} {kernel.session_token} {kernel.status_reason}"


def read_announcement(text: str) -> KernelEvent | None:
    """Read an announcement, or give None for what is none, such as one of a manager of another version."""
    match text.split(" ", 4):
        case [short, status, access_key, token, reason]:
            kernel_id = parse_kernel_id(short)
            if kernel_id is not None and status in KernelStatus.__members__:
                return KernelEvent(kernel_id, KernelStatus(status), access_key, token, reason)
    return None


def watch(
    announcements: Announcements, access_key: str, kernel_id: uuid.UUID | None, receive: Callable[[KernelEvent], None]
) -> Callable[[], None]:
    """Call ``receive`` for every event of one kernel of an owner, or of all when ``kernel_id`` is None.

    :returns: what ends it.
    """

    def hear(text: str) -> None:
        event = read_announcement(text)
        if event is not None and event.access_key == access_key and kernel_id in {None, event.kernel_id}:
            receive(event)

    return announcements.subscribe(KERNEL_TOPIC, hear)
