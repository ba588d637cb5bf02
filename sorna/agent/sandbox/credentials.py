"""Who a kernel's processes are and how much each may take: user ids, capabilities, resource limits.

Standard library only: it is loaded in zygotes. Knows Linux's rules about credentials; may not know files or agents.
"""

import contextlib
import os
import resource
import secrets
import signal
from collections import deque
from typing import Any

from sorna.agent.sandbox import namespaces as ns

INSIDE_ID = 1000  # what an ordinary user's own id is called inside a user namespace
_GIB = 1 << 30


class IdentitiesExhausted(Exception):
    """Every user id of the range is in use."""


class Identities:
    """User ids for kernels, never one for two kernels at once.

    Starts somewhere in the range and takes the id that has rested longest, so that two agents of one host which were given
    the same range hardly ever meet, and what a dead kernel might have left is not at once another's.
    """

    def __init__(self, first: int, count: int) -> None:
        self._first = first
        self._count = count
        self._start = secrets.randbelow(count)
        self._drawn = 0
        self._rested: deque[int] = deque()
        self._kept: set[int] = set()

    def take(self) -> int:
        """Give an id that no live kernel has.

        :raises IdentitiesExhausted: there is none.
        """
        while self._drawn < self._count:
            uid = self._first + (self._start + self._drawn) % self._count
            self._drawn += 1
            if uid not in self._kept:
                return uid
        if not self._rested:
            raise IdentitiesExhausted
        return self._rested.popleft()

    def keep(self, uid: int) -> None:
        """Take it that a kernel of an earlier program has this id still."""
        self._kept.add(uid)

    def give_back(self, uid: int) -> None:
        """Take back an id whose processes are all gone."""
        self._rested.append(uid)


def usable_range(wanted: tuple[int, int], uid_map: str) -> tuple[int, int] | None:
    """Fit the operator's range of ids into those that exist in this user namespace; None when there is none to spare.

    :param uid_map: ``/proc/self/uid_map``; in a container it may lack the high ids. Then the upper half of its largest
        extent serves, whose ids nobody is likely to have given to a person or a service.
    """
    first, count = wanted
    extents = [(int(inside), int(length)) for inside, _outside, length in map(str.split, uid_map.splitlines())]
    if any(inside <= first and first + count <= inside + length for inside, length in extents):
        return wanted
    inside, length = max(extents, key=lambda extent: extent[1], default=(0, 0))
    if length < 2 * 1024:
        return None
    half = min(length // 2, count)
    return inside + length - half, half


def map_own_identity(uid: int, gid: int) -> None:
    """Call the ordinary user who made this user namespace ``INSIDE_ID`` in it; everybody else is nobody."""
    for name, content in (
        ("setgroups", "deny"),
        ("uid_map", f"{INSIDE_ID} {uid} 1"),
        ("gid_map", f"{INSIDE_ID} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(content)


def become(uid: int) -> None:
    """Turn root into an unprivileged user for ever; the group has the same number.

    The bounding set is the zygote's, which has emptied it: it stays empty through clones.
    """
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def forsake_privileges() -> None:
    """Make sure that no exec gives anything back, and that others of the same user cannot look into this process."""
    ns.clear_capabilities()
    ns.checked(ns.prctl(ns.PR_SET_NO_NEW_PRIVS, 1), "no_new_privs")
    ns.checked(ns.prctl(ns.PR_SET_DUMPABLE, 0), "dumpable")


def die_with_parent() -> None:
    """Ask to be killed when the parent ends. Credentials must not change any more: Linux forgets it then."""
    ns.checked(ns.prctl(ns.PR_SET_PDEATHSIG, int(signal.SIGKILL)), "parent death signal")


def limit_resources(*, processes: int | None, file_size: int, open_files: int, memory: int | None) -> None:
    """Set what Linux enforces per process or per user.

    Note [Memory without a memory cgroup]: nothing bounds the sum over processes then. Per process, RLIMIT_DATA counts the
    private memory that can be written, which is what programs mean by memory; RLIMIT_AS counts reservations too, and
    runtimes like Java's, Go's and Node's reserve gigabytes that they never touch. So the first is the limit itself, and
    the second adds room for reservations.

    :param memory: bytes, or None when a cgroup bounds it.
    :param processes: None where Linux would count every process of the agent's own user.
    """
    limits = {
        resource.RLIMIT_FSIZE: file_size,
        resource.RLIMIT_NOFILE: open_files,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 64 * 1024,
        resource.RLIMIT_MSGQUEUE: 256 * 1024,
        resource.RLIMIT_SIGPENDING: 1024,
    }
    if processes is not None:
        limits[resource.RLIMIT_NPROC] = processes
    if memory is not None:
        limits[resource.RLIMIT_DATA] = memory
        limits[resource.RLIMIT_AS] = memory + 16 * _GIB
    for which, wanted in limits.items():
        _soft, hard = resource.getrlimit(which)
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(which, (value, value))


def prefer_as_victim_after_fork() -> None:
    """Let every process that this one forks be killed before it when memory runs out.

    A fork of a process that nobody may look into cannot be looked into either, not even by itself; it opens itself first,
    because its ``/proc/self`` would otherwise belong to root.
    """

    def _volunteer() -> None:
        ns.prctl(ns.PR_SET_DUMPABLE, 1)
        with contextlib.suppress(OSError):
            # Not as a text file: that would import a codec, in each process that is forked.
            descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(descriptor, b"500")
            finally:
                os.close(descriptor)

    os.register_at_fork(after_in_child=_volunteer)


_FRESH: dict[int, Any] = {
    signal.SIGPIPE: signal.SIG_IGN,
    signal.SIGXFSZ: signal.SIG_IGN,
}


def forget_signals() -> None:
    """Undo in a kernel what a zygote does with signals beyond :func:`reset_signals`.

    SIGINT gets no handler of Python's, although a fresh Python has one: user code may signal the first process, and Linux
    keeps from the first process of a PID namespace just what it has no handler for.
    """
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def reset_signals() -> None:
    """Give every signal its default action, but for two that Python ignores, and block none, whatever the zygote inherited."""
    for number in signal.valid_signals():
        # Not ours to set: SIGKILL, SIGSTOP and those that the C library keeps for itself.
        with contextlib.suppress(OSError, ValueError):
            fresh = _FRESH.get(number, signal.SIG_DFL)
            if signal.getsignal(number) not in (fresh, None):
                signal.signal(number, fresh)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
