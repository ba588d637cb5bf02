"""The directory of one embedded server: who may use it, who owns it, what a crash left in it, how to reach a socket in it.

Knows files and processes, not which server they belong to.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import secrets
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from attrs import frozen

from sorna.errors import SornaError

# sun_path has 108 bytes, the last of which is a NUL.
SOCKET_PATH_LIMIT = 107
_SERVERS = frozenset({b"postgres", b"initdb", b"valkey-server"})


class EmbeddedError(SornaError):
    """An embedded server cannot run here; ``detail`` tells the operator what to change."""


class DirectoryTaken(EmbeddedError):
    """Another process uses the directory now."""


@frozen
class Owner:
    """The user that a server runs as and that owns its files."""

    uid: int
    gid: int


def choose_owner(directory: Path, held: Path) -> Owner:
    """Tell which user the server runs as: ourselves, or for root somebody unprivileged.

    :param directory: the server's directory; :param held: the part of it that the server itself owns, from its first
        start on. What is there keeps its owner, so that every start uses the same one.
    :raises EmbeddedError: the directory is somebody else's, or the system has no unprivileged user.
    """
    uid = os.geteuid()
    for path in (held, directory):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        if uid not in (0, status.st_uid):
            raise EmbeddedError(
                f"{path} belongs to user id {status.st_uid}, and this is user id {uid}: "
                "start as the same user as before, or choose another --state-dir"
            )
        if uid == 0 and status.st_uid != 0:
            return Owner(status.st_uid, status.st_gid)
    return Owner(uid, os.getegid()) if uid != 0 else _unprivileged()


def _unprivileged() -> Owner:
    for name in ("nobody", "daemon"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            if entry.pw_uid != 0:
                return Owner(entry.pw_uid, entry.pw_gid)
    raise EmbeddedError("the database refuses to run as root and there is no user 'nobody': start as an ordinary user")


class ServerDirectory:
    """One server's directory, held by this process alone between :meth:`take` and :meth:`release`.

    The directory and the files that Sorna writes in it belong to whoever runs Sorna; ``data`` and ``run`` belong to the
    user that the server runs as, and root writes nothing there but through :meth:`write`, which follows no links.

    :ivar path: absolute; :meth:`take` makes it with its missing parents, each mode 0700.
    :ivar data: what the server keeps.
    :ivar run: where it makes its socket.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.data = self.path / "data"
        self.run = self.path / "run"
        self.owner = Owner(os.geteuid(), os.getegid())
        self._lock: int | None = None
        self._reached: list[int] = []

    def take(self) -> None:
        """Make the directory where it is missing and lock it.

        :raises DirectoryTaken: another server holds it.
        :raises EmbeddedError: it cannot be used; the detail says why.
        """
        if self._lock is not None:
            raise DirectoryTaken(f"{self.path} is already in use by this server")
        lock: int | None = None
        try:
            self.owner = choose_owner(self.path, self.data)
            self._make()
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            self._keep(lock)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.subdirectory(self.run)
        except OSError as error:
            if lock is not None:
                os.close(lock)
            if isinstance(error, BlockingIOError):
                raise DirectoryTaken(
                    f"{self.path} is in use by another server: stop that one, or choose another --state-dir"
                ) from error
            raise EmbeddedError(
                f"cannot use {error.filename or self.path}: {error.strerror}; choose another --state-dir"
            ) from error
        self._lock = lock

    def _make(self) -> None:
        missing = [self.path]
        while not missing[-1].parent.exists():
            missing.append(missing[-1].parent)
        for path in reversed(missing):
            path.mkdir(mode=0o700, exist_ok=True)
        # Under root the server runs as somebody else, who must pass; the state directory above stays closed.
        self.path.chmod(0o711 if os.geteuid() == 0 else 0o700)

    def _keep(self, descriptor: int) -> None:
        """Give an open file to the owner of the directory, for the day that root borrows an ordinary user's."""
        if os.geteuid() == 0:
            status = self.path.stat()
            os.fchown(descriptor, status.st_uid, status.st_gid)

    def release(self) -> None:
        """Let others use the directory; harmless when it is not held."""
        for descriptor in self._reached:
            os.close(descriptor)
        self._reached.clear()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def subdirectory(self, path: Path) -> None:
        """Make a directory of the server's own, mode 0700, where it is missing."""
        path.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            self._give(descriptor)
        finally:
            os.close(descriptor)

    def _give(self, descriptor: int) -> None:
        if os.geteuid() == 0:
            os.fchown(descriptor, self.owner.uid, self.owner.gid)

    def write(self, path: Path, text: str) -> None:
        """Write a file of mode 0600 for the server, which is either there in whole or not at all."""
        self._write(path, text, self._give)

    def _write(self, path: Path, text: str, hand_over: Callable[[int], None]) -> None:
        fresh = path.with_name(path.name + ".new")
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            hand_over(descriptor)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        fresh.replace(path)

    def append(self, name: str) -> int:
        """Open one of Sorna's own files in the directory for appending; gives the descriptor."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self.path / name, flags, 0o600)
        self._keep(descriptor)
        return descriptor

    def password(self) -> str:
        """Give the server's password, drawn at the first start and kept here with mode 0600.

        :raises EmbeddedError: the file is there and holds no password.
        """
        path = self.path / "password"
        try:
            kept = path.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            kept = secrets.token_urlsafe(24)
            self._write(path, kept + "\n", self._keep)
        except (OSError, UnicodeError) as error:
            raise EmbeddedError(f"cannot read {path}: {error}") from error
        if not kept:
            raise EmbeddedError(f"{path} is empty: put the server's password there, or choose another --state-dir")
        return kept

    def kept_password(self) -> str:
        """Give the password of a server that another process runs here, and make nothing.

        :raises EmbeddedError: there is none, or this user may not read it.
        """
        try:
            return (self.path / "password").read_text(encoding="ascii").strip()
        except (OSError, UnicodeError) as error:
            raise EmbeddedError(f"cannot read {self.path / 'password'}: {error}") from error

    def reach(self, directory: Path, longest_name: str) -> str:
        """Give a path of the directory that is short enough for a socket named ``longest_name`` in it.

        A path that is too long is reached through a descriptor of this process. The form with the pid works for our
        child processes too, as long as we run and hold the directory.
        """
        if len(os.fsencode(directory / longest_name)) <= SOCKET_PATH_LIMIT:
            return str(directory)
        descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._reached.append(descriptor)
        return f"/proc/{os.getpid()}/fd/{descriptor}"


def _is_server(process: str) -> bool:
    with suppress(OSError):
        if Path(process, "comm").read_bytes().strip() in _SERVERS:
            return True
        return b"launcher.py" in Path(process, "cmdline").read_bytes()
    return False


def _processes() -> Iterator[int]:
    return (int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit())


def left_behind(*directories: Path) -> list[int]:
    """List the server processes whose working directory is one of these: what a killed Sorna left, still going down.

    Compares the directories themselves and not their names, which differ in another mount namespace. Reads all of
    ``/proc``: call it in a thread.
    """
    wanted = set()
    for directory in directories:
        with suppress(FileNotFoundError):
            status = directory.stat()
            wanted.add((status.st_dev, status.st_ino))
    found = []
    for pid in _processes():
        process = f"/proc/{pid}"
        with suppress(OSError):
            status = os.stat(f"{process}/cwd")  # noqa: PTH116 - a bare string is a third of the cost, times every process
            if stat.S_ISDIR(status.st_mode) and (status.st_dev, status.st_ino) in wanted and _is_server(process):
                found.append(pid)
    return found


def kill(pids: list[int]) -> None:
    """Kill these processes; those that are gone meanwhile are no error."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
