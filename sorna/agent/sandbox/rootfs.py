"""The file system that a kernel sees: planned once per zygote, built anew inside each kernel's mount namespace.

Standard library only: it is loaded in zygotes. Knows paths and mounts; may not know credentials, limits or agents. A plan
names host paths that an operator or the distribution chose, never anything that a client sent.

Note [Building the root]: the new root is a tmpfs put over an existing directory, which becomes the root with the old one
below ``/.host``. Only then are the host's directories bound, from ``/.host/...``: so it does not matter what the
first mount has hidden, and no path of the host is ever resolved through a link inside the new root. ``/proc`` is
mounted while the old root is still there, because Linux lets an ordinary user mount one only where a whole one can be
seen. Then the old root is detached with everything on it, and the new root is made read-only. What a kernel may write
to is one tmpfs, bound to ``/home/work``, ``/tmp`` and ``/dev/shm``, so that the three share one budget.
"""

import contextlib
import errno
import glob
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from sorna.agent.sandbox import namespaces as ns

WORK = "/home/work"
HOST = "/.host"  # where the old root is seen until everything is mounted
_SMALL = 16 * 1024  # a file of this size is cheaper to copy than to bind
_SCRATCH = "/.scratch"

_SYSTEM = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
# What programs read of /etc and /var without learning about this host: dynamic linking, chosen alternatives, time
# zone, certificates, and the configuration of language runtimes. Patterns, because the versions are in the names.
_HARMLESS = (
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/alternatives",
    "/etc/localtime",
    "/etc/timezone",
    "/etc/os-release",
    "/etc/debian_version",
    "/etc/mime.types",
    "/etc/protocols",
    "/etc/services",
    "/etc/magic",
    "/etc/inputrc",
    "/etc/locale.alias",
    "/etc/locale.conf",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/pki/tls/certs",
    "/etc/pki/ca-trust/extracted",
    "/etc/pki/java",
    "/etc/ca-certificates/extracted",
    "/etc/crypto-policies",
    "/etc/fonts",
    "/etc/java",
    "/etc/java-*",
    "/etc/jvm*",
    "/etc/python3*",
    "/etc/perl",
    "/etc/php*",
    "/etc/R",
    "/etc/octave*",
    "/etc/ruby*",
    "/etc/erlang",
    "/etc/terminfo",
    "/var/lib/ghc",
    "/var/lib/gems",
    "/var/cache/fontconfig",
)
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
# Files of /proc that tell about the host or command it; an ordinary uid may not write them anyway.
_MASKED_PROC = ("kcore", "keys", "key-users", "timer_list", "sched_debug", "sysrq-trigger", "kpagecount", "kpageflags")
_READ_ONLY_PROC = ("sys", "irq", "bus", "fs")
# Bound as a whole, these would show the host instead of a tool.
_TOO_MUCH = frozenset({"/", "/root", "/home", "/etc", "/var", "/run", "/tmp", "/mnt", "/media", "/srv", "/boot"})
_COVERED_BY_SCRATCH = ("/tmp/", f"{WORK}/", "/dev/shm/")
_NEVER = ("/proc", "/sys", "/dev")


class PlanRefused(Exception):
    """A path that was asked for would show more of the host than a tool."""


class Bind(NamedTuple):
    """A host path and where the kernel sees it, read-only."""

    source: str
    target: str
    directory: bool


class Plan(NamedTuple):
    """Everything of the new root that is the same for every kernel."""

    binds: Sequence[Bind]
    links: Sequence[tuple[str, str]]
    copies: Sequence[tuple[str, bytes]]
    devices: Sequence[str]
    masked: Sequence[str]
    read_only_proc: Sequence[str]
    missing: Sequence[str]


def _system(binds: list[Bind], links: list[tuple[str, str]]) -> None:
    binds.append(Bind("/usr", "/usr", True))
    for path in _SYSTEM:
        if os.path.islink(path):
            links.append((path, os.readlink(path)))
        elif os.path.isdir(path):
            binds.append(Bind(path, path, True))


def _inside_usr(path: str) -> bool:
    return path == "/usr" or path.startswith("/usr/")


def _harmless(binds: list[Bind], links: list[tuple[str, str]], copies: list[tuple[str, bytes]]) -> None:
    for pattern in _HARMLESS:
        for path in sorted(glob.glob(pattern)):
            real = os.path.realpath(path)
            if os.path.islink(path) and _inside_usr(real):
                links.append((path, real))
            elif os.path.isfile(real) and os.path.getsize(real) <= _SMALL:
                with contextlib.suppress(OSError), open(real, "rb") as file:
                    copies.append((path, file.read(_SMALL)))
            elif os.access(real, os.R_OK):
                binds.append(Bind(real, path, os.path.isdir(real)))


def _covered(path: str, binds: Iterable[Bind]) -> bool:
    """Tell whether a path is seen already, because it is its own target or lies below one."""
    return any(
        bind.source == bind.target and (path == bind.target or path.startswith(bind.target + "/")) for bind in binds
    )


def _extra(path: str, binds: list[Bind]) -> None:
    """Show one more tree, under the name that was asked for and under its real one, which its own files may use."""
    real = os.path.realpath(path)
    for name in (path, real):
        if name in _TOO_MUCH or name.startswith(tuple(f"{never}/" for never in _NEVER)) or name in _NEVER:
            raise PlanRefused(name)
    for target in dict.fromkeys((real, os.path.normpath(path))):
        if not _covered(target, binds):
            binds.append(Bind(real, target, os.path.isdir(real)))


def plan(prefixes: Iterable[str], read_only: Iterable[str]) -> Plan:
    """Look at the host once and decide what kernels see of it.

    :param prefixes: where the kernels' interpreter lives (``sys.prefix``, ``sys.base_prefix``...), wherever that is.
    :param read_only: the operator's own tools outside ``/usr``; those that do not exist are listed as missing.
    :raises PlanRefused: a path would show the host instead of a tool.
    """
    binds: list[Bind] = []
    links: list[tuple[str, str]] = [("/etc/mtab", "/proc/self/mounts"), ("/var/tmp", "/tmp")]
    copies: list[tuple[str, bytes]] = []
    missing = []
    _system(binds, links)
    _harmless(binds, links, copies)
    for path in (*prefixes, *read_only):
        if os.path.isabs(path) and os.path.exists(path):
            _extra(path, binds)
        else:
            missing.append(path)
    return Plan(
        binds=tuple(sorted(binds, key=lambda bind: bind.target.count("/"))),
        links=tuple(links),
        copies=tuple(copies),
        devices=tuple(name for name in _DEVICES if os.path.exists(f"/dev/{name}")),
        masked=tuple(f"/proc/{name}" for name in _MASKED_PROC if os.path.exists(f"/proc/{name}")),
        read_only_proc=tuple(f"/proc/{name}" for name in _READ_ONLY_PROC if os.path.isdir(f"/proc/{name}")),
        missing=tuple(missing),
    )


class Owner(NamedTuple):
    """Who the kernel's processes are, as its own ``/etc/passwd`` says."""

    uid: int
    gid: int
    hostname: str


def _etc(owner: Owner) -> dict[str, bytes]:
    texts = {
        "/etc/passwd": (
            "root:x:0:0:root:/nonexistent:/usr/sbin/nologin\n"
            f"work:x:{owner.uid}:{owner.gid}:work:{WORK}:/bin/bash\n"
            "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
        ),
        "/etc/group": f"root:x:0:\nwork:x:{owner.gid}:\nnogroup:x:65534:\n",
        "/etc/hosts": f"127.0.0.1 localhost {owner.hostname}\n::1 localhost\n",
        "/etc/hostname": f"{owner.hostname}\n",
        "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\nservices: files\nprotocols: files\n",
        "/etc/resolv.conf": "",
    }
    return {path: text.encode("ascii") for path, text in texts.items()}


class _Builder:
    """Makes directories and mount points of one new root; remembers what is there, to spare system calls."""

    def __init__(self) -> None:
        self._made = {"", "/"}

    def directory(self, path: str, mode: int = 0o755) -> None:
        if path in self._made:
            return
        self.directory(os.path.dirname(path))
        try:
            os.mkdir(path, mode)
        except FileExistsError:
            if os.path.islink(path) or not os.path.isdir(path):
                raise
        self._made.add(path)

    def file(self, path: str, content: bytes = b"") -> None:
        self.directory(os.path.dirname(path))
        # A mount point below another bind exists there already and cannot be created on a read-only mount.
        if os.path.lexists(path):
            return
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            os.write(descriptor, content)
        finally:
            os.close(descriptor)

    def link(self, path: str, value: str) -> None:
        self.directory(os.path.dirname(path))
        os.symlink(value, path)

    def bind(self, bind: Bind) -> None:
        if bind.directory:
            self.directory(bind.target)
        else:
            self.file(bind.target)
        ns.mount(HOST + bind.source, bind.target, None, ns.MS_BIND | ns.MS_REC)
        seal_tree(bind.target)


def seal_tree(target: str) -> None:
    """Make a mount and everything mounted below it read-only, without devices and set-user-id."""
    try:
        ns.seal(target)
    except OSError as error:
        # Older than 5.12, or an engine around us whose filter does not know the call.
        if error.errno not in (errno.ENOSYS, errno.EPERM):
            raise
        with open(f"{HOST}/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            listing = mounts.read()
        seal_each(target, listing)


_KEPT_FLAGS = {
    "noexec": ns.MS_NOEXEC,
    "noatime": ns.MS_NOATIME,
    "nodiratime": ns.MS_NODIRATIME,
    "relatime": ns.MS_RELATIME,
}


def mounts_below(target: str, mountinfo: str) -> list[tuple[str, int]]:
    """List the mounts at and below a path with those of their flags that a remount must repeat."""
    found = []
    for line in mountinfo.splitlines():
        fields = line.split(" ")
        path = fields[4].encode("utf-8", "surrogateescape").decode("unicode_escape")
        if path == target or path.startswith(target.rstrip("/") + "/"):
            flags = 0
            for option in fields[5].split(","):
                flags |= _KEPT_FLAGS.get(option, 0)
            found.append((path, flags))
    return found


def seal_each(target: str, mountinfo: str) -> None:
    """Do what ``seal`` does, mount by mount, as Linux before 5.12 needs it."""
    wanted = ns.MS_REMOUNT | ns.MS_BIND | ns.MS_RDONLY | ns.MS_NOSUID | ns.MS_NODEV
    for path, kept in mounts_below(target, mountinfo):
        ns.mount(None, path, None, wanted | kept)


def mount_proc(plan: Plan) -> None:
    """Mount the processes of this PID namespace, without what tells about the host or commands it."""
    harmless = ns.MS_NOSUID | ns.MS_NODEV | ns.MS_NOEXEC
    ns.mount("proc", "/proc", "proc", harmless)
    # In the new /proc there may be less than in the host's: an entry that is not there needs no mask.
    for path in plan.masked:
        if os.path.exists(path):
            ns.mount("/dev/null", path, None, ns.MS_BIND)
    for path in plan.read_only_proc:
        if os.path.isdir(path):
            ns.mount(path, path, None, ns.MS_BIND)
            ns.mount(None, path, None, ns.MS_REMOUNT | ns.MS_BIND | ns.MS_RDONLY | harmless)


def _mount_device(source: str, builder: _Builder) -> None:
    """Show one device node of the host in ``/dev``, under its own name."""
    target = f"/dev/{os.path.basename(source)}"
    builder.file(target)
    ns.mount(HOST + source, target, None, ns.MS_BIND)
    ns.mount(None, target, None, ns.MS_REMOUNT | ns.MS_BIND | ns.MS_NOSUID | ns.MS_NOEXEC)


def show_devices(sources: Iterable[str]) -> None:
    """Show device nodes of the host in ``/dev``; while the host is still seen.

    :raises OSError: a node is not there, or no device.
    """
    builder = _Builder()
    for source in sources:
        if not stat.S_ISCHR(os.lstat(HOST + source).st_mode):
            raise OSError(errno.ENODEV, "not a device", source)
        _mount_device(source, builder)


def _mount_devices(plan: Plan, builder: _Builder) -> None:
    for name in plan.devices:
        _mount_device(f"/dev/{name}", builder)
    builder.directory("/dev/pts")
    builder.directory("/dev/shm")
    terminal = "newinstance,ptmxmode=0666,mode=0620,max=64"
    ns.mount("devpts", "/dev/pts", "devpts", ns.MS_NOSUID | ns.MS_NOEXEC, terminal)
    for name, value in (
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ):
        builder.link(f"/dev/{name}", value)


def _mount_scratch(size: int, owner: Owner, builder: _Builder) -> int:
    """Mount what the kernel may write to; gives a descriptor that tells its fill level."""
    # An inode costs about as much memory as a small file: bound their number with the size.
    inodes = max(1024, min(size // 4096, 1 << 20))
    builder.directory(_SCRATCH)
    flags = ns.MS_NOSUID | ns.MS_NODEV
    ns.mount("scratch", _SCRATCH, "tmpfs", flags, f"size={size},nr_inodes={inodes},mode=0755")
    for name, target, mode in (("tmp", "/tmp", 0o1777), ("shm", "/dev/shm", 0o1777), ("work", WORK, 0o755)):
        source = f"{_SCRATCH}/{name}"
        os.mkdir(source)
        os.chmod(source, mode)
        builder.directory(target)
        ns.mount(source, target, None, ns.MS_BIND)
    os.chown(f"{_SCRATCH}/work", owner.uid, owner.gid)
    level = os.open(_SCRATCH, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    ns.unmount(_SCRATCH, ns.MNT_DETACH)
    os.rmdir(_SCRATCH)
    return level


def enter(plan: Plan, owner: Owner, scratch_size: int, mount_more: Callable[[], None]) -> int:
    """Build the new root and make it this process's, whose mount namespace is its own; see Note [Building the root].

    :param mount_more: called when everything but ``/proc`` is there and the host still is.
    :returns: an ``O_PATH`` descriptor of the scratch space, for fstatvfs(3) only.
    :raises OSError: a step failed; the process must exit.
    """
    ns.mount(None, "/", None, ns.MS_REC | ns.MS_PRIVATE)
    base = next(path for path in ("/tmp", "/mnt", "/usr") if os.path.isdir(path))
    flags = ns.MS_NOSUID | ns.MS_NODEV
    ns.mount("sorna", base, "tmpfs", flags, "size=1m,nr_inodes=4096,mode=0755")
    os.mkdir(base + HOST)
    ns.pivot_root(base, base + HOST)
    os.chdir("/")
    builder = _Builder()
    # A tool may lie in the host's /tmp: what the scratch space would hide is bound when that is there.
    hidden = [bind for bind in plan.binds if bind.target.startswith(_COVERED_BY_SCRATCH)]
    for bind in plan.binds:
        if bind not in hidden:
            builder.bind(bind)
    for path, value in plan.links:
        builder.link(path, value)
    for path, content in (*_etc(owner).items(), *plan.copies):
        builder.file(path, content)
    for path in ("/proc", "/dev", "/run", "/root", "/opt", "/srv", "/mnt", "/media"):
        builder.directory(path)
    _mount_devices(plan, builder)
    level = _mount_scratch(scratch_size, owner, builder)
    for bind in hidden:
        builder.bind(bind)
    mount_more()
    ns.unmount(HOST, ns.MNT_DETACH)
    os.rmdir(HOST)
    ns.mount(None, "/", None, ns.MS_REMOUNT | ns.MS_BIND | ns.MS_RDONLY | flags)
    os.chdir(WORK)
    return level
