"""What the fields of :mod:`sorna.model.selection` are of the values that have them; pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sorna.model.folder import Folder
from sorna.model.kernel import Kernel
from sorna.model.keypair import Keypair
from sorna.model.selection import SAME_FOR_FOLDERS, SAME_FOR_KERNELS, Value

_KERNEL: Mapping[str, str] = {
    **dict.fromkeys(("session_id", "main_kernel_id"), "id"),
    **dict.fromkeys(("name", "sess_id"), "session_token"),
    **dict.fromkeys(("lang", "image"), "requested_runtime"),
    "agent": "agent_id",
    "status_info": "status_reason",
    "status_changed": "status_changed_at",
}
_FOLDER: Mapping[str, Callable[[Folder], Any]] = {
    "user": lambda folder: folder.owner,
    "creator": lambda folder: folder.owner,
    "max_files": lambda folder: folder.bounds.files,
    "max_size": lambda folder: folder.bounds.size // 1024,
    "num_files": lambda folder: folder.held and folder.held.files,
    "cur_size": lambda folder: folder.held and folder.held.size,
}


def of_kernel(kernel: Kernel, field: str) -> Value:
    """Give a field of a kernel."""
    if field in SAME_FOR_KERNELS:
        return SAME_FOR_KERNELS[field]
    value: Value = getattr(kernel, _KERNEL.get(field, field))
    return value


def of_keypair(keypair: Keypair, field: str) -> Value:
    """Give a field of a keypair."""
    value: Value = getattr(keypair, "user_id" if field in {"email", "full_name"} else field)
    return value


def of_folder(folder: Folder, field: str) -> Value:
    """Give a field of a folder."""
    if field in SAME_FOR_FOLDERS:
        return SAME_FOR_FOLDERS[field]
    value: Value = _FOLDER[field](folder) if field in _FOLDER else getattr(folder, field)
    return value
