"""The embedded servers for real: as root and as an ordinary user, after crashes, in deep and taken directories."""

from __future__ import annotations

import atexit
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import psycopg2
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import SkipTest, TestCase

from sorna.embedded import binaries
from sorna.embedded.postgres import EmbeddedPostgres
from sorna.embedded.redis import EmbeddedRedis
from sorna.embedded.state import DirectoryTaken, EmbeddedError, left_behind
from sorna.store.address import DatabaseAddress

PROJECT = Path(__file__).parents[2]
PROGRAM = [str(PROJECT / "tests" / "integration" / "embedded_program.py")]
T = TypeVar("T")


def query(address: DatabaseAddress, sql: str) -> list[tuple[Any, ...]]:
    """Run one statement over a new connection; blocks for milliseconds."""
    connection = psycopg2.connect(
        host=address.host, port=address.port, dbname=address.name, user=address.user, password=address.password
    )
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def redis_command(path: str, password: str, *words: str) -> bytes:
    """Send one inline command after AUTH, and give both answers."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(path)
        sock.sendall(f"AUTH {password}\r\n{' '.join(words)}\r\n".encode())
        received = b""
        while received.count(b"\r\n") < 2:
            received += sock.recv(4096) or b"\r\n\r\n"
        return received


def servers_in(directory: Path) -> list[int]:
    """List the processes of both servers."""
    places = [directory / server / name for server in ("postgres", "redis") for name in ("", "data", "data.new")]
    return left_behind(*places)


_templates: list[Path] = []


def template() -> Path:
    """Give a PostgreSQL directory after its first start, made once: that start is most of a test's time."""
    if not _templates:
        place = Path(tempfile.mkdtemp(prefix="sorna-template-"))
        atexit.register(shutil.rmtree, place)
        environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
        program = [sys.executable, *PROGRAM, str(place)]
        subprocess.run(program, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment)
        _templates.append(place / "postgres")
    return _templates[0]


def connect_elsewhere(address: DatabaseAddress) -> None:
    """Connect in another process."""
    program = "import sys, psycopg2; psycopg2.connect(*sys.argv[1:]).close()"
    words = f"host={address.host} port={address.port} dbname={address.name} user={address.user}"
    environment = {**os.environ, "PGPASSWORD": address.password}
    subprocess.run([sys.executable, "-c", program, words], check=True, env=environment)


def run_program(words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run the program of these tests to its end."""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    return subprocess.run(words, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment)


def as_user(uid: int) -> list[str]:
    """Give the words before a program's path that run it as an ordinary user with this version of Python.

    The interpreter may be in a directory that only root may pass, so it is shown below ``/mnt`` to that process alone.
    """
    if shutil.which("unshare") is None or shutil.which("setpriv") is None:
        raise SkipTest("takes unshare and setpriv")
    script = f'mount --bind "$1" /mnt && shift && exec setpriv --reuid={uid} --regid={uid} --clear-groups "$@"'
    python = f"/mnt/bin/python3.{sys.version_info.minor}"
    return ["unshare", "--mount", "/bin/sh", "-c", script, "sh", sys.base_prefix, python]


def sleeper(uid: int) -> subprocess.Popen[bytes]:
    """Start a process of this user that does nothing."""
    return subprocess.Popen(["sleep", "60"], user=uid if os.geteuid() == 0 else None)


def owner(pid: int) -> int:
    """Tell whose process this is."""
    return Path(f"/proc/{pid}").stat().st_uid


def command_line(pid: int) -> bytes:
    """Give the words of a process."""
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def outside(directory: Path) -> tuple[object, ...]:
    """Give what a start must not change."""
    modes = [path.stat().st_mode for path in (directory, *directory.parents)]
    return modes, Path("/etc/passwd").read_bytes(), Path("/proc/self/mounts").read_bytes()


class EmbeddedCase(TestCase):
    timeout = 60

    def setUp(self) -> None:
        from twisted.internet import reactor  # noqa: PLC0415, TID251 - a test against the real thing

        self.reactor = reactor
        self.directory = Path(tempfile.mkdtemp(prefix="sorna-embedded-"))
        self.addCleanup(shutil.rmtree, self.directory)

    def seed(self, name: str = "postgres") -> None:
        """Put a database there that has been started before."""
        place = self.directory / name
        place.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", "--reflink=auto", str(template()), str(place)], check=True)

    def postgres(self, directory: Path | None = None) -> EmbeddedPostgres:
        server = EmbeddedPostgres(self.reactor, directory or self.directory / "postgres")
        self.addCleanup(lambda: Deferred.fromCoroutine(server.stop()))
        return server

    def redis(self, directory: Path | None = None) -> EmbeddedRedis:
        server = EmbeddedRedis(self.reactor, directory or self.directory / "redis")
        self.addCleanup(lambda: Deferred.fromCoroutine(server.stop()))
        return server

    async def until(self, fine: Callable[[], bool], seconds: float) -> None:
        deadline = self.reactor.seconds() + seconds
        while not fine():
            self.assertLess(self.reactor.seconds(), deadline, "it did not happen in time")
            await deferLater(self.reactor, 0.02)

    async def failing(self, work: Awaitable[object], error: type[Exception], *words: str) -> None:
        with self.assertRaises(error) as caught:
            await work
        for word in words:
            self.assertIn(word, str(caught.exception))


class PostgresTests(EmbeddedCase):
    async def test_second_start_finds_the_data(self) -> None:
        """What was written before a stop is there after the next start, and no process or file is left between."""
        first = self.postgres()
        address = await first.start()
        query(address, "CREATE TABLE t AS SELECT 42 AS n")
        await first.stop()
        self.assertEqual(servers_in(self.directory), [])
        again = await self.postgres().start()
        self.assertEqual(again, address)
        self.assertEqual(query(again, "SELECT n FROM t"), [(42,)])

    async def test_settings(self) -> None:
        """It listens on no network, flushes commits, checks pages and sorts the same on every host."""
        self.seed()
        address = await self.postgres().start()
        wanted = {"listen_addresses": "", "fsync": "on", "data_checksums": "on", "server_encoding": "UTF8"}
        for name, setting in wanted.items():
            self.assertEqual(query(address, f"SHOW {name}"), [(setting,)])
        self.assertEqual(query(address, "SELECT datlocale FROM pg_database WHERE datname='sorna'"), [("C.UTF-8",)])

    async def test_private(self) -> None:
        """Files and socket are closed to other users, and a wrong password does not enter."""
        self.seed()
        address = await self.postgres().start()
        root = self.directory / "postgres"
        for path in (root / "data", root / "run"):
            self.assertEqual(path.stat().st_mode & 0o777, 0o700)
        for name in ("password", "lock", "server.log"):
            self.assertEqual((root / name).stat().st_mode & 0o777, 0o600)
        self.assertFalse((root / "run" / "password").exists())
        with self.assertRaises(psycopg2.OperationalError):
            query(DatabaseAddress(address.host, address.port, address.name, address.user, "wrong"), "SELECT 1")
        self.assertNotIn(address.password, repr(address))

    async def test_deep_directory(self) -> None:
        """A path longer than a socket's name may be works, for child processes too."""
        deep = self.directory / ("d" * 80) / ("e" * 80)
        self.seed(f"{deep}/postgres")
        address = await self.postgres(deep / "postgres").start()
        self.assertEqual(query(address, "SELECT 1"), [(1,)])
        connect_elsewhere(address)

    async def test_two_at_once(self) -> None:
        """A second server on the directory is refused at once and leaves the first alone."""
        self.seed()
        address = await self.postgres().start()
        await self.failing(self.postgres().start(), DirectoryTaken, "in use", "--state-dir")
        self.assertEqual(query(address, "SELECT 1"), [(1,)])

    async def test_lost_is_told(self) -> None:
        """When the server dies on its own, whoever asked is told, and the next start recovers."""
        self.seed()
        server = self.postgres()
        address = await server.start()
        query(address, "CREATE TABLE t AS SELECT 1 AS n")
        lost = server.when_lost()
        pid = int((self.directory / "postgres" / "data" / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        self.assertIn("PostgreSQL ended", await lost)
        await server.stop()
        self.assertEqual(query(await self.postgres().start(), "SELECT n FROM t"), [(1,)])

    async def test_stop_is_told_to_nobody(self) -> None:
        """A stop that was asked for is no loss, and may be asked for twice."""
        self.seed()
        server = self.postgres()
        await server.start()
        lost = server.when_lost()
        await server.stop()
        await server.stop()
        self.assertNoResult(lost)

    async def test_stop_while_starting(self) -> None:
        """A stop during the first start leaves no process, and the next start works."""
        server = self.postgres()
        starting = Deferred.fromCoroutine(server.start())
        await deferLater(self.reactor, 0.15)
        await server.stop()
        with self.assertRaises(EmbeddedError):
            await starting
        await self.until(lambda: servers_in(self.directory) == [], 5)
        self.assertEqual(query(await self.postgres().start(), "SELECT 1"), [(1,)])

    async def test_half_made_directory(self) -> None:
        """What a crash during the first start left is made anew."""
        half = self.directory / "postgres" / "data.new"
        half.mkdir(parents=True)
        (half / "PG_VERSION").write_text("18\n")
        self.assertEqual(query(await self.postgres().start(), "SELECT 1"), [(1,)])

    async def test_stale_pid_of_a_living_process(self) -> None:
        """A pid in the lock files that belongs to somebody else by now does not prevent the start."""
        self.seed()
        data = self.directory / "postgres" / "data"
        other = sleeper(data.stat().st_uid)
        self.addCleanup(other.wait)
        self.addCleanup(other.kill)
        (data / "postmaster.pid").write_text(f"{other.pid}\n{data}\n1\n5432\n\n\n0 0\nready\n")
        (self.directory / "postgres" / "run" / ".s.PGSQL.5432.lock").write_text(f"{other.pid}\n")
        self.assertEqual(query(await self.postgres().start(), "SELECT 1"), [(1,)])

    async def test_other_major_version(self) -> None:
        """A database of another PostgreSQL is named and left alone."""
        self.seed()
        version = self.directory / "postgres" / "data" / "PG_VERSION"
        version.write_text("16\n")
        await self.failing(self.postgres().start(), EmbeddedError, "PostgreSQL 16", "--state-dir")
        self.assertEqual(version.read_text(), "16\n")

    async def test_foreign_content(self) -> None:
        """A directory with something else in it is not touched."""
        precious = self.directory / "postgres" / "data" / "thesis.txt"
        precious.parent.mkdir(parents=True)
        precious.write_text("x")
        await self.failing(self.postgres().start(), EmbeddedError, "no PostgreSQL database")
        self.assertEqual(precious.read_text(), "x")

    async def test_not_a_directory(self) -> None:
        """A file in the way is named."""
        (self.directory / "postgres").write_text("x")
        await self.failing(self.postgres().start(), EmbeddedError, "postgres", "--state-dir")

    async def test_damaged_database(self) -> None:
        """A server that cannot start says why at once, and the directory is free again."""
        self.seed()
        (self.directory / "postgres" / "data" / "global" / "pg_control").unlink()
        await self.failing(self.postgres().start(), EmbeddedError, "pg_control")
        self.assertEqual(servers_in(self.directory), [])


class RedisTests(EmbeddedCase):
    async def test_second_start_finds_the_data(self) -> None:
        """What was written before a stop is there after the next start."""
        first = self.redis()
        address = await first.start()
        self.assertEqual(address.url, f"unix://{self.directory}/redis/run/redis.sock")
        redis_command(address.path, address.password, "SET", "k", "v")
        await first.stop()
        self.assertEqual(servers_in(self.directory), [])
        again = await self.redis().start()
        self.assertEqual(redis_command(again.path, again.password, "GET", "k"), b"+OK\r\n$1\r\nv\r\n")

    async def test_private(self) -> None:
        """The password is asked for, kept from other users and from the list of processes."""
        address = await self.redis().start()
        self.assertIn(b"WRONGPASS", redis_command(address.path, "wrong", "PING"))
        [pid] = servers_in(self.directory)
        self.assertNotIn(address.password.encode(), command_line(pid))
        self.assertEqual((self.directory / "redis" / "data" / "redis.conf").stat().st_mode & 0o777, 0o600)
        self.assertNotIn(address.password, repr(address))

    async def test_deep_directory(self) -> None:
        """A path longer than a socket's name may be works."""
        address = await self.redis(self.directory / ("d" * 120) / "redis").start()
        self.assertEqual(redis_command(address.path, address.password, "PING"), b"+OK\r\n+PONG\r\n")

    async def test_two_at_once(self) -> None:
        """A second server on the directory is refused at once."""
        await self.redis().start()
        await self.failing(self.redis().start(), DirectoryTaken, "in use")

    async def test_lost_is_told(self) -> None:
        """When the server dies on its own, whoever asked is told, and the next start works."""
        server = self.redis()
        address = await server.start()
        lost = server.when_lost()
        os.kill(servers_in(self.directory)[0], signal.SIGKILL)
        self.assertIn("Redis ended", await lost)
        await server.stop()
        again = await self.redis().start()
        self.assertEqual(again.password, address.password)


class ProgramTests(EmbeddedCase):
    """Both servers below a program of their own, which can be killed."""

    def start(self, words: list[str], **more: Any) -> tuple[subprocess.Popen[bytes], Mapping[str, Any]]:
        program = subprocess.Popen(
            [*words, *PROGRAM, str(self.directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, **more
        )
        self.addCleanup(self.end, program)
        assert program.stdout is not None
        line = program.stdout.readline()
        self.assertTrue(line, "the program ended without an address")
        return program, json.loads(line)

    @staticmethod
    def end(program: subprocess.Popen[bytes]) -> None:
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.close()
        program.wait(30)
        program.stdout.close()

    def here(self) -> tuple[subprocess.Popen[bytes], Mapping[str, Any]]:
        return self.start([sys.executable], cwd=PROJECT, env={**os.environ, "PYTHONPATH": str(PROJECT)})

    async def test_killed_parent(self) -> None:
        """After kill -9 every server is gone within 5 s, and the next start finds what was acknowledged."""
        self.seed()
        program, found = self.here()
        address = DatabaseAddress(**found["postgres"])
        query(address, "CREATE TABLE t AS SELECT 42 AS n")
        redis_command(found["redis"], found["password"], "SET", "k", "v")
        self.assertGreater(len(servers_in(self.directory)), 2)
        program.kill()
        program.wait()
        await self.until(lambda: servers_in(self.directory) == [], 5)
        _again, found = self.here()
        self.assertEqual(query(DatabaseAddress(**found["postgres"]), "SELECT n FROM t"), [(42,)])
        self.assertIn(b"v", redis_command(found["redis"], found["password"], "GET", "k"))

    async def test_start_right_after_a_kill(self) -> None:
        """A start that meets the servers of a killed one, still going down, waits for them."""
        self.seed()
        program, found = self.here()
        address = DatabaseAddress(**found["postgres"])
        query(address, "CREATE TABLE t AS SELECT generate_series(1, 100000) AS n")
        program.kill()
        program.wait()
        again = await self.postgres().start()
        self.assertEqual(query(again, "SELECT count(*) FROM t"), [(100000,)])

    async def test_orphan_that_does_not_go(self) -> None:
        """A stopped orphan, which no polite signal reaches, is killed by the next start after its time."""
        self.seed()
        program, found = self.here()
        query(DatabaseAddress(**found["postgres"]), "CREATE TABLE t AS SELECT 42 AS n")
        data = self.directory / "postgres" / "data"
        os.kill(int((data / "postmaster.pid").read_text().split()[0]), signal.SIGSTOP)
        program.kill()
        program.wait()
        self.assertEqual(query(await self.postgres().start(), "SELECT n FROM t"), [(42,)])

    async def test_ordinary_user(self) -> None:
        """It works for an ordinary user, whose files all are that user's."""
        if os.geteuid() != 0:
            raise SkipTest("this is an ordinary user already")
        packages = next(iter(binaries.postgres().reach.values())).rpartition("/")[0]
        entry = pwd.getpwnam("daemon")
        os.chown(self.directory, entry.pw_uid, entry.pw_gid)
        environment = {
            "PYTHONPATH": f"{PROJECT}:{packages}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PATH": os.environ["PATH"],
            "LD_LIBRARY_PATH": "/mnt/lib",
        }
        for _start in range(2):
            program, found = self.start(as_user(entry.pw_uid), cwd="/", env=environment)
            query(DatabaseAddress(**found["postgres"]), "CREATE TABLE IF NOT EXISTS t (n int)")
            self.end(program)
            self.assertEqual(program.returncode, 0)
        owners = {path.lstat().st_uid for path in self.directory.rglob("*")}
        self.assertEqual(owners, {entry.pw_uid})

    def without_mounts(self) -> list[str]:
        setpriv = shutil.which("setpriv")
        if os.geteuid() != 0 or setpriv is None:
            raise SkipTest("takes root and setpriv")
        return [setpriv, "--bounding-set=-sys_admin", sys.executable]

    async def test_root_that_may_not_mount(self) -> None:
        """Where the host allows no mounts, a directory that others may pass does."""
        words = self.without_mounts()
        self.directory.chmod(0o711)
        _program, found = self.start(words, cwd=PROJECT, env={**os.environ, "PYTHONPATH": str(PROJECT)})
        self.assertEqual(query(DatabaseAddress(**found["postgres"]), "SELECT 1"), [(1,)])

    async def test_root_that_may_not_mount_in_a_closed_directory(self) -> None:
        """Where the host allows no mounts, a closed directory is a clear error and no hang."""
        ended = run_program([*self.without_mounts(), *PROGRAM, str(self.directory)])
        self.assertNotEqual(ended.returncode, 0)
        self.assertIn("cannot reach", ended.stderr)
        self.assertIn("--state-dir", ended.stderr)

    async def test_root_in_a_closed_directory(self) -> None:
        """Under root the servers are somebody else's processes, and nothing outside the state directory changes."""
        if os.geteuid() != 0:
            raise SkipTest("only root becomes somebody else")
        self.directory.chmod(0o700)
        before = outside(self.directory)
        _program, found = self.here()
        self.assertEqual(query(DatabaseAddress(**found["postgres"]), "SELECT 1"), [(1,)])
        for pid in servers_in(self.directory):
            self.assertNotEqual(owner(pid), 0)
        self.assertEqual(outside(self.directory), before)
        password = self.directory / "postgres" / "password"
        self.assertEqual((password.stat().st_uid, password.stat().st_mode & 0o777), (0, 0o600))
