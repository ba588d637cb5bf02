"""Folders of the host inside a kernel, writable by it and by several kernels at once, whoever owns them on the disk.

Standard library only: it is loaded in zygotes. Knows mounts and user ids; may not know what a folder is to managers. What is
mounted is a path that the agent has put together from its own root and an id, never from anything a client sent.

Note [Whose files]
~~~~~~~~~~~~~~~~~~
On the disk all files of folders belong to one user, whom the gateway runs as too. Where the agent is root, every kernel has
another user id, so that a plain bind would show each the others' files as a stranger's. Such a mount is therefore idmapped
(Linux 5.12): the disk's owner and the kernel's own id are the same in it, in both directions, and nobody else exists. The
mapping is that of a user namespace, which needs a process to be made; that process does nothing and is ended at once. Where
the agent is an ordinary user, its own id is the kernel's already, and a plain bind is right if the files are its own.
"""

import ctypes
import os
import signal
import struct
from collections.abc import Sequence
from typing import NamedTuple

from sorna.agent.sandbox import namespaces as ns

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
_AT_EMPTY_PATH, _AT_FDCWD = 0x1000, -100
_MOVE_MOUNT_F_EMPTY_PATH = 4
_RDONLY, _NOSUID, _NODEV, _IDMAP = 1, 2, 4, 0x00100000


class Shown(NamedTuple):
    """A directory of the host and where the kernel sees it, below its working directory."""

    source: str
    alias: str
    read_only: bool


def mapping(owner: tuple[int, int], seen_as: tuple[int, int]) -> int:
    """Give a descriptor of a user namespace in which a user and a group of the disk are others; see Note [Whose files]."""
    pid, pidfd = ns.clone(ns.CLONE_NEWUSER)
    if pid == 0:
        while True:
            signal.pause()
    try:
        # The proc file system that is seen here is the host's, in which the process has another number.
        number = _number_of(pidfd)
        for name, inner, outer in (("uid_map", owner[0], seen_as[0]), ("gid_map", owner[1], seen_as[1])):
            with open(f"/proc/{number}/{name}", "w", encoding="ascii") as file:
                file.write(f"{inner} {outer} 1")
        return os.open(f"/proc/{number}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(pidfd)


def _number_of(pidfd: int) -> int:
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pid:"))


def mappings(shown: Sequence[Shown], uid: int) -> dict[tuple[int, int], int]:
    """Make the mapping of each owner of what is shown to a kernel's own id; while the host's /proc is still there."""
    made: dict[tuple[int, int], int] = {}
    for one in shown:
        status = os.lstat(one.source)
        owner = (status.st_uid, status.st_gid)
        if owner not in made:
            made[owner] = mapping(owner, (uid, uid))
    return made


def show(one: Shown, host: str, target: str, made: dict[tuple[int, int], int]) -> None:
    """Mount a directory, without devices and set-user-id.

    :param host: where the host's root is seen.
    :param made: mappings by owner; empty where none is needed.
    """
    source = os.open(host + one.source, _DIRECTORY)
    empty = ctypes.create_string_buffer(b"")
    address = ctypes.addressof(empty)
    try:
        flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_EMPTY_PATH
        tree = ns.checked(ns.syscall("open_tree", source, address, flags), f"open {one.alias}")
        try:
            status = os.fstat(source)
            attributes = _NOSUID | _NODEV | (_RDONLY if one.read_only else 0)
            mapped = made.get((status.st_uid, status.st_gid), -1)
            if made:
                attributes |= _IDMAP
            wanted = ctypes.create_string_buffer(struct.pack("=QQQQ", attributes, 0, 0, max(mapped, 0)))
            result = ns.syscall("mount_setattr", tree, address, _AT_EMPTY_PATH, ctypes.addressof(wanted), 32)
            ns.checked(result, f"map {one.alias}")
            place = ctypes.create_string_buffer(os.fsencode(target))
            where = ctypes.addressof(place)
            result = ns.syscall("move_mount", tree, address, _AT_FDCWD, where, _MOVE_MOUNT_F_EMPTY_PATH)
            ns.checked(result, f"mount {one.alias}")
        finally:
            os.close(tree)
    finally:
        os.close(source)
