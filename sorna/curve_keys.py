"""CURVE keys on disk: this process's own keypair, and the public keys of the others it lets in.

Both ends of the link between managers and agents use it. It knows files and the spelling of keys (Z85, 40 characters),
and nothing of sockets, of agents or of managers. Reading is synchronous: the files are tiny, read at start, and looked at
again only when something of them changed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import struct
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import zmq
from attrs import field, frozen
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zmq.utils import z85

KEY_LENGTH = 40
MAX_KEY_FILE = 64 * 1024
MAX_KEY_FILES = 1000


class KeyFileError(Exception):
    """A key file is missing, broken, or open to others; the text says which file, what is wrong and what to do."""


@frozen
class CurveKeypair:
    """A long-term CURVE keypair, both halves in Z85."""

    public: str
    secret: str = field(repr=False)


def generate() -> CurveKeypair:
    """Draw a new keypair."""
    public, secret = zmq.curve_keypair()
    return CurveKeypair(public.decode("ascii"), secret.decode("ascii"))


# The decoder is Python, and the keys of a cluster are looked at for every request to an agent.
@lru_cache(1024)
def valid_public_key(text: str) -> bool:
    """Tell whether a text is the Z85 of 32 bytes."""
    try:
        return len(text) == KEY_LENGTH and len(z85.decode(text)) == 32
    except (ValueError, KeyError, struct.error):  # which one depends on what is wrong with the text
        return False


def load_or_make(directory: Path, name: str = "curve") -> CurveKeypair:
    """Load the keypair ``NAME.secret`` of a directory, or make it when there is none.

    The secret's file belongs to this user alone (0600) and appears complete or not at all, also when two processes start
    at once: both end with the same keypair. Its public half lies beside it in ``NAME.public`` for the operator to copy.

    :raises KeyFileError: a file is broken or open to others, or cannot be read or written.
    """
    secret_file = directory / f"{name}.secret"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.path.lexists(secret_file):
            with contextlib.suppress(FileExistsError):  # another process was faster: its keypair is ours
                _write(secret_file, generate().secret, 0o600, replace=False)
        keypair = load(secret_file)
        _keep_public(directory / f"{name}.public", keypair)
    except OSError as error:
        raise KeyFileError(f"cannot use the key file {secret_file}: {error}") from error
    return keypair


def replace(directory: Path, keypair: CurveKeypair, name: str = "curve") -> None:
    """Put this keypair in the place of the one that a directory has.

    :raises KeyFileError: a file cannot be written.
    """
    try:
        # Without its public half the secret is complete, with the wrong one it is not.
        (directory / f"{name}.public").unlink(missing_ok=True)
        _write(directory / f"{name}.secret", keypair.secret, 0o600, replace=True)
        _write(directory / f"{name}.public", keypair.public, 0o644, replace=True)
    except OSError as error:
        raise KeyFileError(f"cannot write the keys into {directory}: {error}") from error


def authorise(directory: Path, name: str, public_key: str) -> None:
    """Let the holder of a key in where :class:`AuthorisedKeys` reads this directory; replaces an earlier key of this name.

    :raises OSError: it cannot be written.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    _write(directory / f"{name}.public", public_key, 0o644, replace=True)


def load(secret_file: Path) -> CurveKeypair:
    """Load a keypair from the file of its secret half.

    :raises KeyFileError: the file is broken or open to others.
    :raises OSError: it cannot be read.
    """
    descriptor = os.open(secret_file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb") as source:  # noqa: PTH123 -- a descriptor has no path
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise KeyFileError(f"{secret_file} is not a regular file")
        if status.st_uid != os.geteuid():
            raise KeyFileError(f"{secret_file} belongs to user {status.st_uid}, and this process is {os.geteuid()}")
        if status.st_mode & 0o077:
            raise KeyFileError(
                f"{secret_file} is open to other users (mode {stat.S_IMODE(status.st_mode):04o}): make a new key, or "
                "chmod 0600 it when you are sure that nobody read it"
            )
        secret = source.read(MAX_KEY_FILE).decode("ascii", "replace").strip()
    if not valid_public_key(secret):  # a secret key is spelt the same way
        raise KeyFileError(
            f"{secret_file} does not hold a CURVE key of {KEY_LENGTH} characters; remove it to make a new one"
        )
    public: bytes = zmq.curve_public(secret.encode("ascii"))
    return CurveKeypair(public.decode("ascii"), secret)


def _keep_public(public_file: Path, keypair: CurveKeypair) -> None:
    try:
        written = public_file.read_bytes()[:MAX_KEY_FILE].decode("ascii", "replace").strip()
    except FileNotFoundError:
        _write(public_file, keypair.public, 0o644, replace=True)
        return
    if written != keypair.public:
        raise KeyFileError(
            f"{public_file} is not the public half of the secret beside it; remove it, and it is written anew"
        )


def _write(path: Path, text: str, mode: int, *, replace: bool) -> None:
    """Write a whole file or none of it; without ``replace``, raise FileExistsError when there is one."""
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "w", encoding="ascii") as target:  # noqa: PTH123 -- a descriptor has no path
            target.write(f"{text}\n")
            target.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        if replace:
            unfinished.replace(path)
        else:
            path.hardlink_to(unfinished)
    finally:
        unfinished.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class AuthorisedKeys:
    """The public keys that may connect: one file with a key per line, or a directory of such ``*.public`` files.

    Read again when the directory or a file in it changed, at most every :data:`INTERVAL` seconds, so that enrolling or
    removing a key needs no restart and a flood of connections no disk. Text after ``#`` is a comment. What cannot be
    read lets nobody in and is logged once.
    """

    INTERVAL = 0.5
    _log = Logger()

    def __init__(self, clock: IReactorTime, path: Path) -> None:
        self._clock = clock
        self._path = path
        self._keys: frozenset[str] = frozenset()
        self._seen: object = None
        self._looked_at: float | None = None

    def permits(self, public_key: str) -> bool:
        """Tell whether this key (Z85) may connect now."""
        now = self._clock.seconds()
        if self._looked_at is None or now - self._looked_at >= self.INTERVAL:
            self._looked_at = now
            self._refresh()
        return public_key in self._keys

    def _refresh(self) -> None:
        try:
            files = list(self._files())
            seen: tuple[object, ...] = tuple(files)
        except OSError as error:
            files, seen = [], (type(error), error.errno)
            if seen != self._seen:
                self._log.error("authorised keys in {path} cannot be read: {error}", path=str(self._path), error=error)
        if seen == self._seen:
            return
        self._seen = seen
        self._keys = frozenset(key for file, *_status in files for key in self._keys_of(file))
        self._log.info("{count} keys are authorised by {path}", count=len(self._keys), path=str(self._path))

    def _files(self) -> Iterator[tuple[Path, int, int, int]]:
        paths = [self._path]
        if self._path.is_dir():
            paths = sorted(self._path.glob("*.public"))
            if len(paths) > MAX_KEY_FILES:
                self._log.error(
                    "only the first {count} files of {path} are read", count=MAX_KEY_FILES, path=str(self._path)
                )
        for path in paths[:MAX_KEY_FILES]:
            with contextlib.suppress(FileNotFoundError):  # removed since the directory was listed
                status = path.stat()
                yield path, status.st_ino, status.st_size, status.st_ctime_ns

    def _keys_of(self, path: Path) -> Iterator[str]:
        try:
            with path.open("rb") as source:
                text = source.read(MAX_KEY_FILE).decode("utf-8", "replace")
        except OSError as error:
            self._log.error("the key file {path} cannot be read: {error}", path=str(path), error=error)
            return
        for number, line in enumerate(text.splitlines(), 1):
            # "#" is also a character of Z85: a comment begins after a blank or at the line's start.
            key = line.split(maxsplit=1)[0] if line.strip() else ""
            if valid_public_key(key):
                yield key
            elif key and not key.startswith("#"):
                self._log.error("line {line} of {path} is no public key", line=number, path=str(path))
