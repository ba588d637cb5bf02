"""Finds the files that a run left in ``.output``, and clears away the scratch directories of runs.

Standard library only. User code owns these directories, so every walk is bounded in number and depth, and follows no link.
"""

import os
import stat
from collections.abc import Mapping
from contextlib import suppress

OUTPUT = ".output"
_MOST_ENTRIES = 4096
_DEEPEST = 12

Fingerprints = Mapping[str, tuple[int, int, int]]


def fingerprints(work: str) -> Fingerprints:
    """Describe the regular files below ``.output`` that are not hidden, by their paths relative to it."""
    found: dict[str, tuple[int, int, int]] = {}
    root = f"{work}/{OUTPUT}"
    todo = [("", 0)]
    left = _MOST_ENTRIES
    while todo:
        prefix, depth = todo.pop()
        try:
            # On every run, so as cheap as it can be: mostly there is none.
            if not stat.S_ISDIR(os.lstat(root).st_mode):
                break
            entries = os.scandir(f"{root}/{prefix}")
        except OSError:
            continue
        with entries:
            for entry in entries:
                left -= 1
                if left < 0:
                    return found
                name = prefix + entry.name
                if entry.name.startswith(".") or not _is_text(name):
                    continue
                with suppress(OSError):
                    if entry.is_dir(follow_symlinks=False) and depth < _DEEPEST:
                        todo.append((name + "/", depth + 1))
                    elif entry.is_file(follow_symlinks=False):
                        status = entry.stat(follow_symlinks=False)
                        found[name] = (status.st_mtime_ns, status.st_size, status.st_ino)
    return found


def changed(before: Fingerprints, after: Fingerprints) -> list[str]:
    """Name the files that are new or different, in order."""
    return sorted(name for name, mark in after.items() if before.get(name) != mark)


def remove_tree(path: str, budget: int = _MOST_ENTRIES) -> int:
    """Remove a directory with what is in it, up to so many entries; what is left goes with the kernel.

    :returns: how much of the budget is left.
    """
    with suppress(OSError):
        with os.scandir(path) as entries:
            for entry in entries:
                if budget <= 0:
                    return 0
                budget -= 1
                if entry.is_dir(follow_symlinks=False):
                    budget = remove_tree(entry.path, budget)
                else:
                    os.unlink(entry.path)  # noqa: PTH108 - the entry has its path as text
        os.rmdir(path)  # noqa: PTH106 - likewise
    return budget


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
