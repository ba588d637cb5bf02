"""The root directory of the folders' storage and the id by which processes on any host know it for the same.

Standard library only. Managers make it; agents only look whether it is there.
"""

import os
import secrets
from contextlib import suppress
from pathlib import Path

_ID_FILE = "storage-id"


def prepare_root(root: Path) -> str:
    """Make the root directory if need be, for its owner alone, and give the storage's id.

    :raises OSError: it cannot be made or written to.
    """
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if root.stat().st_mode & 0o077:
        root.chmod(0o700)
    if not (root / _ID_FILE).exists():
        fresh = root / f".{_ID_FILE}-{secrets.token_hex(8)}"
        fresh.write_text(f"{secrets.token_hex(16)}\n", encoding="ascii")
        with suppress(FileExistsError):  # another process was quicker
            os.link(fresh, root / _ID_FILE)
        fresh.unlink()
    return read_storage_id(root)


def read_storage_id(root: Path) -> str:
    """Give the id of the storage at a root directory. :raises OSError: there is none."""
    found = (root / _ID_FILE).read_text(encoding="ascii", errors="replace").strip()
    if not found.isalnum() or len(found) > 64:
        raise OSError(f"{root / _ID_FILE} does not hold the id of a storage")
    return found
