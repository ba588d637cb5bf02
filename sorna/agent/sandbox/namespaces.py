"""The system calls that Python's standard library does not offer, as plain functions over ctypes.

Standard library only: it is loaded in zygotes and in kernels, and works on every Python from 3.11. Knows Linux; may not
know kernels, policies or paths. Every function raises OSError with the call's errno unless it says otherwise.

Note [Cloning a Python process]: ``fork`` is not enough for a kernel, because a PID namespace begins with the *child* of
the one who asks for it, and two forks of a big process cost twice. So the zygote calls clone(2) itself. What fork(3) of
the C library and of Python would have done is then ours to do. Python's part is public: ``PyOS_BeforeFork`` and
``PyOS_AfterFork_*`` take the import lock, start the interpreter's own locks anew and run the functions registered with
``os.register_at_fork`` (``random`` seeds itself there). The C library's part is its notion of the thread's id, which
``raise`` and ``abort`` use: Linux writes it for us, to the address that the C library itself registered at start
(``PR_GET_TID_ADDRESS``). The handlers of pthread_atfork do not run; they guard locks held by *other* threads, and the
zygote proves that it has none. Nothing may release the interpreter lock around the call, hence PyDLL.
"""

import ctypes
import errno
import fcntl
import os
import platform
import signal
import socket
import struct
from collections.abc import Sequence

from sorna.agent.sandbox.syscalls import TABLES

_libc = ctypes.PyDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_before_fork = ctypes.pythonapi.PyOS_BeforeFork
_after_fork_parent = ctypes.pythonapi.PyOS_AfterFork_Parent
_after_fork_child = ctypes.pythonapi.PyOS_AfterFork_Child
for _hook in (_before_fork, _after_fork_parent, _after_fork_child):
    _hook.restype = None
    _hook.argtypes = []

CLONE_NEWTIME = 0x00000080
CLONE_PIDFD = 0x00001000
CLONE_PARENT = 0x00008000
CLONE_NEWNS = 0x00020000
CLONE_CHILD_CLEARTID = 0x00200000
CLONE_CHILD_SETTID = 0x01000000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_NOATIME, MS_NODIRATIME = 32, 1024, 2048
MS_BIND, MS_REC, MS_PRIVATE, MS_RELATIME = 4096, 16384, 1 << 18, 1 << 21
MNT_DETACH = 2

PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38
PR_GET_TID_ADDRESS = 40
PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 47, 4

_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV = 1, 2, 4


def machine() -> str:
    """Give this machine's architecture as the tables of system calls name it."""
    name = platform.machine()
    return {"AMD64": "x86_64", "arm64": "aarch64"}.get(name, name)


_TABLE = TABLES.get(machine())


def syscall(name: str, *arguments: int) -> int:
    """Make a system call by name; integers and addresses only. -1 tells of an error, errno is in ctypes."""
    if _TABLE is None:
        ctypes.set_errno(errno.ENOSYS)  # start() turns it into a sentence
        return -1
    result: int = _libc.syscall(ctypes.c_long(_TABLE.number(name)), *(ctypes.c_long(value) for value in arguments))
    return result


def checked(result: int, what: str) -> int:
    """Turn an error of a call into OSError; ``what`` tells what was tried."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


# A declared signature makes a call several times cheaper, and mounts are most of what a kernel's start does.
_mount = _libc.mount
_mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_umount = _libc.umount2
_umount.argtypes = [ctypes.c_char_p, ctypes.c_int]
_prctl = _libc.prctl
_prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
_path_call = _libc["syscall"]
_path_call.argtypes = [ctypes.c_long, ctypes.c_char_p, ctypes.c_char_p]
_path_call.restype = ctypes.c_long
_attribute_call = _libc["syscall"]
_attribute_call.argtypes = [
    ctypes.c_long,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_uint,
    ctypes.c_char_p,
    ctypes.c_size_t,
]
_attribute_call.restype = ctypes.c_long


def prctl(option: int, first: int = 0, second: int = 0) -> int:
    """Change or ask something about this process; gives -1 for an error."""
    result: int = _prctl(option, first, second, 0, 0)
    return result


def _thread_id_address() -> int:
    """Find where the C library keeps this thread's id; 0 where Linux does not tell (see Note [Cloning a Python process])."""
    address = ctypes.c_long(0)
    if prctl(PR_GET_TID_ADDRESS, ctypes.addressof(address)) < 0:
        return 0
    return address.value


def clone(namespaces: int) -> tuple[int, int]:
    """Fork into new namespaces: ``(pid, pidfd)`` in the parent and ``(0, -1)`` in the child.

    See Note [Cloning a Python process]. The pidfd is closed on exec.
    """
    pidfd = ctypes.c_int(-1)
    flags = namespaces | CLONE_PIDFD | int(signal.SIGCHLD)
    thread_id = _thread_id_address()
    if thread_id:
        flags |= CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID
    last = (0, thread_id) if machine() == "aarch64" else (thread_id, 0)
    _before_fork()
    pid = syscall("clone", flags, 0, ctypes.addressof(pidfd), *last)
    if pid == 0:
        _after_fork_child()
        return 0, -1
    number = ctypes.get_errno()
    _after_fork_parent()
    if pid < 0:
        raise OSError(number, os.strerror(number))
    return pid, pidfd.value


def unshare(namespaces: int) -> None:
    """Leave the namespaces that are named and enter new ones."""
    checked(syscall("unshare", namespaces), "unshare")


class Place:
    """The namespaces for mounts, host name, System V objects and network that a process is in, to come there.

    :param descriptors: one of each, this object's from now on.
    """

    FLAGS = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET
    KINDS = ("mnt", "uts", "ipc", "net")

    def __init__(self, descriptors: Sequence[int]) -> None:
        self.descriptors = descriptors

    def enter(self) -> None:
        """Come to this place. Root and working directory are the root of its mounts then."""
        for descriptor in self.descriptors:
            enter(descriptor)


def enter(namespace: int) -> None:
    """Come into one namespace."""
    checked(syscall("setns", namespace, 0), "setns")


class Compass:
    """Tells where this process is, also where no ``/proc`` is seen."""

    def __init__(self) -> None:
        self._directory = os.open("/proc/self/ns", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def mounts(self) -> int:
        """Give a descriptor of the mount namespace that this process is in now."""
        return self._namespace("mnt")

    def place(self) -> Place:
        """Give the place where this process is now."""
        return Place([self._namespace(kind) for kind in Place.KINDS])

    def _namespace(self, kind: str) -> int:
        return os.open(kind, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)


def may_come_back(here: Place) -> bool:
    """Tell whether this process might come back here from new namespaces; a child tries that."""
    pid = os.fork()
    if pid == 0:
        try:
            unshare(Place.FLAGS)
            here.enter()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """Mount, bind or change a mount."""
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    if _mount(texts[0], texts[1], texts[2], flags, texts[3]) < 0:
        checked(-1, f"mount {target}")


def unmount(target: str, flags: int = 0) -> None:
    """Take a mount away."""
    checked(_umount(os.fsencode(target), flags), f"unmount {target}")


def pivot_root(new_root: str, put_old: str) -> None:
    """Make ``new_root`` the root of this mount namespace and hang the old one below it."""
    checked(_path_call(_number("pivot_root"), os.fsencode(new_root), os.fsencode(put_old)), "pivot_root")


def _number(name: str) -> int:
    return -1 if _TABLE is None else _TABLE.number(name)  # Linux answers ENOSYS to -1


_SEALED = struct.pack("=QQQQ", _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV, 0, 0, 0)
_MOUNT_SETATTR = _number("mount_setattr")


def seal(target: str) -> None:
    """Make a mount and all below it read-only, without devices and set-user-id, in one call (Linux 5.12 and newer)."""
    path = os.fsencode(target)
    if _attribute_call(_MOUNT_SETATTR, _AT_FDCWD, path, _AT_RECURSIVE, _SEALED, len(_SEALED)) < 0:
        checked(-1, f"seal {target}")


_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


def raise_loopback() -> None:
    """Bring ``lo`` up in this network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        request = struct.pack("16sh22x", b"lo", 0)
        (flags,) = struct.unpack_from("h", fcntl.ioctl(probe, _SIOCGIFFLAGS, request), 16)
        fcntl.ioctl(probe, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", flags | _IFF_UP))


_mprotect = _libc.mprotect
_mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def protect(address: int, size: int, protection: int) -> bool:
    """Change what may be done to memory of this process; False when Linux refuses."""
    return bool(_mprotect(address, size, protection) == 0)


_HUGE = 2 * 1024 * 1024
_MADV_COLLAPSE = 25
_madvise = _libc.madvise
_madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def collapse_memory() -> int:
    """Let this process's own memory lie in huge pages where that is possible (Linux 6.1 and newer); gives how many.

    A fork copies one entry of the page tables for each page, and the end of the child takes it back. The pages that a child
    writes to are split again, for it alone.
    """
    done = 0
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as mappings:
        lines = [line.split() for line in mappings]
    for fields in lines:
        first, last = (int(address, 16) for address in fields[0].split("-"))
        if not fields[1].startswith("rw") or fields[5:] not in ([], ["[heap]"]):
            continue
        for address in range(-(-first // _HUGE) * _HUGE, last - _HUGE + 1, _HUGE):
            done += _madvise(address, _HUGE, _MADV_COLLAPSE) == 0
    return done


_CAPABILITY_VERSION_3 = 0x20080522


def clear_capabilities() -> None:
    """Give up every capability: effective, permitted, inheritable and ambient."""
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), 8)
    empty = ctypes.create_string_buffer(24)
    checked(syscall("capset", ctypes.addressof(header), ctypes.addressof(empty)), "capset")


def drop_bounding_set() -> None:
    """Take every capability out of what an exec could ever give back; needs CAP_SETPCAP."""
    for capability in range(64):
        if prctl(PR_CAPBSET_DROP, capability) < 0:
            if ctypes.get_errno() == errno.EINVAL:  # one more than Linux knows
                return
            checked(-1, "drop capability")


def close_from(first: int) -> None:
    """Close every descriptor from ``first`` on."""
    if syscall("close_range", first, 0xFFFFFFFF, 0) < 0:
        os.closerange(first, os.sysconf("SC_OPEN_MAX"))
