"""The file system that a kernel sees: planned once per zygote, built anew inside each kernel's mount namespace.

Standard library only: it is loaded in zygotes. Knows paths and mounts; may not know credentials, limits or agents. A plan
names host paths that an operator or the distribution chose, never anything that a client sent.

Note [Building the root]: the new root is a tmpfs put over an existing directory, which becomes the root with the old one
below ``/.host``. Only then are the host's directories bound, from ``/.host/...``: so it does not matter what the
first mount has hidden, and no path of the host is ever resolved through a link inside the new root. ``/proc`` is
mounted while the old root is still there, because Linux lets an ordinary user mount one only where a whole one can be
seen. Then the old root is detached with everything on it, and the new root is made read-only. What a kernel may write
to is one tmpfs, bound to ``/home/work``, ``/tmp`` and ``/dev/shm``, so that the three share one budget.

Note [Model]: most of a root is the same for every kernel, and a mount namespace is copied in one call. So a zygote that can makes one
root as a model, in a namespace in which no process stays. A kernel's namespace is a copy of it with its own terminals and scratch
space; nobody can write to the files that it shares with all others. What names the kernel's user, which is another one in each,
is bound over the model's.
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
_PLACE = "/mnt"  # where a file system is until its parts are bound
_ASIDE = "/.aside"  # where tools are until the place is there where they are seen
_ROOT_FLAGS = ns.MS_NOSUID | ns.MS_NODEV

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


def _write_new(path: str, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, content)
    finally:
        os.close(descriptor)


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
        _write_new(path, content)

    def link(self, path: str, value: str) -> None:
        self.directory(os.path.dirname(path))
        os.symlink(value, path)

    def point(self, bind: Bind) -> None:
        if bind.directory:
            self.directory(bind.target)
        else:
            self.file(bind.target)

    def bind(self, bind: Bind) -> None:
        self.point(bind)
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
    for name, value in (
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ):
        builder.link(f"/dev/{name}", value)


def _mount_scratch(size: int, owner: Owner) -> int:
    """Mount what the kernel may write to; gives a descriptor that tells its fill level."""
    # An inode costs about as much memory as a small file: bound their number with the size.
    inodes = max(1024, min(size // 4096, 1 << 20))
    ns.mount("scratch", _PLACE, "tmpfs", _ROOT_FLAGS, f"size={size},nr_inodes={inodes},mode=0755")
    for name, target, mode in (("tmp", "/tmp", 0o1777), ("shm", "/dev/shm", 0o1777), ("work", WORK, 0o755)):
        source = f"{_PLACE}/{name}"
        os.mkdir(source)
        os.chmod(source, mode)
        ns.mount(source, target, None, ns.MS_BIND)
    os.chown(f"{_PLACE}/work", owner.uid, owner.gid)
    level = os.open(_PLACE, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    ns.unmount(_PLACE, ns.MNT_DETACH)
    return level


def _mount_own_files(owner: Owner, known: Owner) -> None:
    """Bind what names the owner over what a root has that was built for another one."""
    there = _etc(known)
    own = {path: content for path, content in _etc(owner).items() if content != there[path]}
    if not own:
        return
    ns.mount("own", _PLACE, "tmpfs", _ROOT_FLAGS, "size=64k,nr_inodes=16,mode=0755")
    for path, content in own.items():
        source = f"{_PLACE}/{os.path.basename(path)}"
        _write_new(source, content)
        ns.mount(source, path, None, ns.MS_BIND)
        ns.mount(None, path, None, ns.MS_REMOUNT | ns.MS_BIND | ns.MS_RDONLY | _ROOT_FLAGS)
    ns.unmount(_PLACE, ns.MNT_DETACH)


def _covered_by_scratch(plan: Plan) -> list[tuple[str, Bind]]:
    """List tools in the host's ``/tmp``, which the scratch space would hide, with where they are bound until that is there."""
    covered = [bind for bind in plan.binds if bind.target.startswith(_COVERED_BY_SCRATCH)]
    return [(f"{_ASIDE}/{number}", bind) for number, bind in enumerate(covered)]


def _build(plan: Plan, owner: Owner) -> None:
    """Begin a new root with what is the same for every kernel, and make it this process's; the host is at ``HOST`` then."""
    ns.mount(None, "/", None, ns.MS_REC | ns.MS_PRIVATE)
    base = next(path for path in ("/tmp", "/mnt", "/usr") if os.path.isdir(path))
    ns.mount("sorna", base, "tmpfs", _ROOT_FLAGS, "size=1m,nr_inodes=4096,mode=0755")
    os.mkdir(base + HOST)
    ns.pivot_root(base, base + HOST)
    os.chdir("/")
    builder = _Builder()
    asides = {bind: aside for aside, bind in _covered_by_scratch(plan)}
    for bind in plan.binds:
        builder.bind(bind._replace(target=asides.get(bind, bind.target)))
    for path, value in plan.links:
        builder.link(path, value)
    for path, content in (*_etc(owner).items(), *plan.copies):
        builder.file(path, content)
    for path in ("/proc", "/dev", "/run", "/root", "/opt", "/srv", _PLACE, "/media", "/tmp", WORK):
        builder.directory(path)
    _mount_devices(plan, builder)


def _close() -> None:
    """Take the host away, and let nobody write to the root."""
    ns.unmount(HOST, ns.MNT_DETACH)
    os.rmdir(HOST)
    ns.mount(None, "/", None, ns.MS_REMOUNT | ns.MS_BIND | ns.MS_RDONLY | _ROOT_FLAGS)


def model(plan: Plan, known: Owner) -> None:
    """Build the root that :func:`furnish` makes a kernel's of, in a mount namespace of this process's own.

    :raises OSError: a step failed; this process must leave the namespace.
    """
    _build(plan, known)
    _close()


def furnish(plan: Plan, owner: Owner, known: Owner, scratch_size: int) -> int:
    """Give a kernel's root what is its own; see Note [Model].

    :param known: whom the root was built for.
    :returns: an ``O_PATH`` descriptor of the scratch space, for fstatvfs(3) only.
    :raises OSError: a step failed; this process must leave the namespace.
    """
    options = "newinstance,ptmxmode=0666,mode=0620,max=64"
    ns.mount("devpts", "/dev/pts", "devpts", ns.MS_NOSUID | ns.MS_NOEXEC, options)
    _mount_own_files(owner, known)
    level = _mount_scratch(scratch_size, owner)
    builder = _Builder()
    for aside, bind in _covered_by_scratch(plan):
        builder.point(bind)
        ns.mount(aside, bind.target, None, ns.MS_BIND | ns.MS_REC)
    return level


def enter(plan: Plan, owner: Owner, scratch_size: int, mount_more: Callable[[], None]) -> int:
    """Build the new root and make it this process's, whose mount namespace is its own; see Note [Building the root].

    :param mount_more: called when everything but ``/proc`` is there and the host still is.
    :returns: an ``O_PATH`` descriptor of the scratch space, for fstatvfs(3) only.
    :raises OSError: a step failed; the process must exit.
    """
    _build(plan, owner)
    level = furnish(plan, owner, owner, scratch_size)
    mount_more()
    _close()
    os.chdir(WORK)
    return level
