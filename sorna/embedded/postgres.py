"""A private PostgreSQL on a unix socket below the state directory; knows nothing of what is stored in it."""

from __future__ import annotations

import shutil
import signal
import struct
from collections.abc import Mapping
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from sorna.embedded import binaries
from sorna.embedded.process import Command
from sorna.embedded.server import Server, ask
from sorna.embedded.state import EmbeddedError, ServerDirectory
from sorna.store.address import DatabaseAddress

PORT = 5432
USER = "sorna"
DATABASE = "sorna"

_INITDB = (
    f"--username={USER}",
    "--auth=scram-sha-256",
    "--encoding=UTF8",
    # Built into PostgreSQL: sorts the same on every host, whatever locales that has.
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    "--wal-segsize=4",
    "--set=dynamic_shared_memory_type=mmap",
)

# One installation on one host: small, few processes, and every commit on the disk before it is acknowledged, but for those
# that say themselves that they can wait; see Note [What a crash may undo] in store/kernels.
_SETTINGS = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_directories": "../run",
    "unix_socket_permissions": "0700",
    "max_connections": "60",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    # After a crash: one call for the file system instead of one for every file, which takes seconds.
    "recovery_init_sync_method": "syncfs",
    "shared_buffers": "32MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "min_wal_size": "16MB",
    "max_wal_size": "128MB",
    # Files in the data directory instead of /dev/shm, which may be tiny and is not ours.
    "dynamic_shared_memory_type": "mmap",
    "huge_pages": "off",
    "io_method": "sync",
    "jit": "off",
    "max_worker_processes": "2",
    "max_logical_replication_workers": "0",
    "max_parallel_workers_per_gather": "0",
    "autovacuum_max_workers": "1",
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_line_prefix": "%m [%p] ",
    "log_timezone": "UTC",
    "timezone": "UTC",
    "idle_in_transaction_session_timeout": "60s",
}

# SIGINT is a fast shutdown: clients are cut off, everything is written. SIGQUIT leaves the rest to recovery.
_STOP = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 6.0))


# Passwords everywhere: who may connect at all is decided by where the server listens.
_ACCESS = "local all all scram-sha-256\nhost all all 0.0.0.0/0 scram-sha-256\nhost all all ::/0 scram-sha-256\n"


def _startup_packet() -> bytes:
    """Make the first message of a client (PostgreSQL documentation, "Message Formats", StartupMessage)."""
    words = b"".join(word.encode() + b"\0" for word in ("user", USER, "database", DATABASE)) + b"\0"
    return struct.pack("!II", 8 + len(words), 196608) + words


def running_postgres(directory: Path) -> DatabaseAddress:
    """Give the address of the server that another process runs in a directory.

    :raises EmbeddedError: there never was one, or this user may not know its password.
    """
    server = ServerDirectory(directory)
    return DatabaseAddress(server.reach(server.run, f".s.PGSQL.{PORT}"), PORT, DATABASE, USER, server.kept_password())


class EmbeddedPostgres:
    """A PostgreSQL server of our own.

    :param directory: its directory, made at the first start; nothing outside is changed.
    :param listen: address and port to listen on besides its unix socket, for clients on other hosts; none by default.
    """

    def __init__(self, reactor: IReactorTime, directory: Path, listen: tuple[str, int] | None = None) -> None:
        self._server = Server(reactor, "PostgreSQL", directory)
        self._directory = self._server.directory
        self._listen = listen
        self._socket = f".s.PGSQL.{listen[1] if listen else PORT}"

    async def start(self) -> DatabaseAddress:
        """Start the server, after making its database at the first start; it answers when this returns.

        :raises DirectoryTaken: another server uses the directory.
        :raises EmbeddedError: it cannot run here; the detail says why.
        """
        await self._server.open()
        try:
            return await self._start()
        except BaseException:
            await self._server.stop(_STOP)
            raise

    async def _start(self) -> DatabaseAddress:
        found = binaries.postgres()
        password = self._directory.password()
        data = self._directory.data
        if not (data / "PG_VERSION").exists():
            await self._initialize(found, password)
        self._check_version()
        # No process of an earlier start is left: a pid in these files belongs to somebody else by now.
        (data / "postmaster.pid").unlink(missing_ok=True)
        (self._directory.run / f"{self._socket}.lock").unlink(missing_ok=True)
        settings = [word for name, setting in self._settings().items() for word in ("-c", f"{name}={setting}")]
        command = Command(
            argv=[found.programs["postgres"], "-D", "{state}/data", *settings],
            cwd="{state}/data",
            reach={**found.reach, "state": str(self._directory.path)},
            death_signal=signal.SIGINT,
        )
        host = self._directory.reach(self._directory.run, self._socket)
        await self._server.serve(command, lambda: Deferred.fromCoroutine(self._answers(host)))
        where, port = self._listen or (host, PORT)
        return DatabaseAddress(where, port, DATABASE, USER, password)

    def _settings(self) -> Mapping[str, str]:
        if self._listen is None:
            return _SETTINGS
        self._directory.write(self._directory.data / "access.conf", _ACCESS)
        address, port = self._listen
        return {**_SETTINGS, "listen_addresses": address, "port": str(port), "hba_file": "access.conf"}

    async def _answers(self, host: str) -> bool:
        # "R" asks us to authenticate, so connections are accepted; "E" is the error of a server still starting.
        packet = _startup_packet()
        return (await ask(self._server.reactor, f"{host}/{self._socket}", packet, 1)).startswith(b"R")

    def _check_version(self) -> None:
        try:
            made_by = (self._directory.data / "PG_VERSION").read_text(encoding="ascii").strip()
        except (OSError, UnicodeError) as error:
            raise EmbeddedError(f"{self._directory.data} holds no readable PostgreSQL database: {error}") from error
        if made_by != str(binaries.POSTGRES_MAJOR):
            raise EmbeddedError(
                f"{self._directory.data} was made by PostgreSQL {made_by}, and this Sorna brings "
                f"PostgreSQL {binaries.POSTGRES_MAJOR}: dump it with the old version and load it into a new "
                "--state-dir, or point --db-addr at a server of that version"
            )

    async def _initialize(self, found: binaries.Binaries, password: str) -> None:
        """Make the database beside its place and move it there when it is whole: a crash meanwhile leaves no half."""
        data, fresh = self._directory.data, self._directory.path / "data.new"
        if data.exists() and any(data.iterdir()):
            raise EmbeddedError(f"{data} holds something that is no PostgreSQL database: move it away")
        await self._server.in_thread(lambda: shutil.rmtree(fresh, ignore_errors=True))
        self._directory.subdirectory(fresh)
        secret = self._directory.run / "password"
        self._directory.write(secret, password + "\n")
        reach = {**found.reach, "state": str(self._directory.path)}
        initdb = [found.programs["initdb"], *_INITDB, "--pwfile={state}/run/password", "-D", "{state}/data.new"]
        create = [found.programs["postgres"], "--single", "-c", "log_min_messages=fatal"]
        create += ["-D", "{state}/data.new", "postgres"]
        try:
            await self._server.run_to_end(Command(initdb, "{state}/data.new", reach, signal.SIGTERM))
            await self._server.run_to_end(
                Command(create, "{state}/data.new", reach, signal.SIGTERM, b"CREATE DATABASE sorna\n")
            )
        finally:
            secret.unlink(missing_ok=True)
        if data.exists():
            data.rmdir()
        fresh.rename(data)

    def when_lost(self) -> Deferred[str]:
        """Give a new Deferred that fires with a sentence if the server ends without :meth:`stop`."""
        return self._server.when_lost()

    async def stop(self) -> None:
        """Stop the server; all data is on the disk, and the directory is free, when this returns. Harmless twice."""
        await self._server.stop(_STOP)
