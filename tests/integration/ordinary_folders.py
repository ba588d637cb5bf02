"""Program of a test: mounts a folder as the first process of an ordinary user's kernel does, and prints what it sees.

``python -m tests.integration.ordinary_folders DIRECTORY``; standard library only, as everything that runs in a kernel.
"""

import json
import os
import sys
from pathlib import Path

from sorna.agent.sandbox import credentials, folders
from sorna.agent.sandbox import namespaces as ns


def inside(base: str, ids: tuple[int, int]) -> dict[str, object]:
    """Look from within new namespaces."""
    credentials.map_own_identity(*ids)
    ns.mount(None, "/", None, ns.MS_REC | ns.MS_PRIVATE)
    for alias, read_only in (("writable", False), ("sealed", True)):
        folders.show(folders.Shown(f"{base}/content", alias, read_only), "", f"{base}/{alias}", {})
    made = Path(base, "writable", "made")
    made.write_text("1", encoding="ascii")
    try:
        Path(base, "sealed", "made-too").mkdir()
        refused = 0
    except OSError as error:
        refused = error.errno or -1
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    flags = [line.split(" ")[5].split(",") for line in mounts if f" {base}/" in line]
    return {
        "owner": made.stat().st_uid,
        "refused": refused,
        "flags": [sorted({"ro", "rw", "nosuid", "nodev"} & set(one)) for one in flags],
    }


def main() -> None:
    """Clone, look, and tell."""
    base = sys.argv[1]
    ids = os.geteuid(), os.getegid()  # as they are called outside
    for name in ("content", "writable", "sealed"):
        Path(base, name).mkdir()
    pid, _pidfd = ns.clone(ns.CLONE_NEWUSER | ns.CLONE_NEWNS)
    if pid == 0:
        try:
            sys.stdout.write(json.dumps(inside(base, ids)) + "\n")
            sys.stdout.flush()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    sys.stdout.write(json.dumps(Path(base, "content", "made").stat().st_uid == ids[0]) + "\n")


if __name__ == "__main__":
    main()
