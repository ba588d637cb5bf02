"""Starts one embedded server so that it cannot outlive Sorna, and as an unprivileged user when Sorna is root.

A program of its own, run as ``python -I -S launcher.py ... -- argv`` with nothing but the standard library; it may not
import anything of Sorna. It ends by becoming the server (``exec``), so the pid that the caller sees is the server's.

Note [Root and the unreachable directory]
    PostgreSQL refuses to run as root, and what it needs may lie below a directory that only root may pass (``/root`` is
    0700), which is not ours to open. So a root launcher makes a mount namespace of its own, puts an empty tmpfs over
    ``/mnt`` in it and binds each directory that was named with ``--reach`` below that; nobody else sees these mounts and
    they vanish with the server. Sources are opened before the cover goes on, since they may themselves be below ``/mnt``,
    and after the namespace is made, since the kernel binds nothing of another one.
    Where the host does not allow this, the directories are used where they are, if the other user can reach them.

Note [Dying with the parent]
    ``PR_SET_PDEATHSIG`` is forgotten when credentials change, so it is set afterwards; the parent may have died before,
    so it is compared once more. The signal comes when the parent's *thread* ends: the reactor's, which spawns us.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
from pathlib import Path

EXIT_UNREACHABLE = 121
EXIT_ORPHANED = 122

_CLONE_NEWNS = 0x00020000
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x2, 0x4, 0x1000, 0x4000, 0x40000
_PR_SET_PDEATHSIG = 1
# Present on every system that follows the file system hierarchy standard, and nothing a database server reads is there.
_COVERS = ("/mnt", "/media", "/srv")

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        options.encode() or None,
    )
    _check(result, f"mount {target}")


def bind(places: dict[str, str]) -> dict[str, str]:
    """Show each directory at a path that every user can pass, in a mount namespace of this process alone.

    :param places: name -> directory. A name may have one slash, which makes neighbours of two directories.
    :returns: name -> where it is now; the same as ``places`` where the host does not allow mounts.
    """
    cover = next((path for path in _COVERS if os.path.isdir(path) and not os.path.islink(path)), None)  # noqa: PTH112, PTH114 - stat only, before any path of the caller
    if cover is None:
        return places
    try:
        _check(_libc.unshare(_CLONE_NEWNS), "unshare")
        _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
        sources = {name: os.open(path, os.O_PATH | os.O_DIRECTORY) for name, path in places.items()}
        _mount("tmpfs", cover, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0755,size=64k")
    except OSError:
        return places
    bound: dict[str, str] = {}
    for name, source in sources.items():
        target = Path(cover, name)
        target.mkdir(parents=True)
        _mount(f"/proc/self/fd/{source}", str(target), None, _MS_BIND)
        os.close(source)
        bound[name] = str(target)
    return bound


def become(uid: int, gid: int) -> None:
    """Give up root for good."""
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="start one embedded server")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--death-signal", type=int, required=True)
    parser.add_argument("--become", metavar="UID:GID")
    parser.add_argument("--reach", action="append", default=[], metavar="NAME=DIRECTORY")
    parser.add_argument("--cwd", required=True, metavar="PATH", help="may begin with {NAME}, as may every word of argv")
    parser.add_argument("argv", nargs="+")
    return parser.parse_args()


def _main() -> int:
    """Prepare, and become the server; gives an exit status when that cannot be."""
    arguments = _arguments()
    places = dict(pair.split("=", 1) for pair in arguments.reach)
    # A session of its own: a Ctrl-C in the terminal must reach Sorna alone, which then stops its servers in order.
    os.setsid()
    if arguments.become:
        uid, gid = (int(number) for number in arguments.become.split(":"))
        places = bind(places)
        become(uid, gid)
    os.umask(0o077)
    _check(_libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(arguments.death_signal), 0, 0, 0), "prctl")
    if os.getppid() != arguments.parent:
        return EXIT_ORPHANED

    def locate(word: str) -> str:
        for name, path in places.items():
            word = word.replace("{" + name + "}", path)
        return word

    argv = [locate(word) for word in arguments.argv]
    try:
        os.chdir(locate(arguments.cwd))
        reachable = os.access(argv[0], os.X_OK)
    except OSError:
        reachable = False
    if not reachable:
        sys.stderr.write(f"user id {os.geteuid()} cannot reach {argv[0]} and {locate(arguments.cwd)}\n")
        return EXIT_UNREACHABLE
    return os.execv(argv[0], argv)  # noqa: S606 - an argument vector, no shell


if __name__ == "__main__":
    try:
        sys.exit(_main())
    except OSError as error:
        sys.exit(str(error))
