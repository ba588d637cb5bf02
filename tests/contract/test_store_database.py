"""The pool, the connection and the migrations against a real PostgreSQL that is killed, slowed and changed by hand."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from sorna.errors import Unavailable
from sorna.store.address import DatabaseAddress
from sorna.store.connection import Conflict, Connector, StatementFailed
from sorna.store.migrate import SCHEMA_DIRECTORY, SchemaError, migrate, migrate_blocking
from sorna.store.pool import Pool, PoolSettings
from tests.contract.postgres import address, fresh_pool

HEAD, NEXT = "0007", "0008"
NEWER = f"""
from alembic import op
revision = "{NEXT}"
down_revision = "{HEAD}"
def upgrade():
    op.execute("ALTER TABLE agents ADD COLUMN note text")
"""
BROKEN = NEWER.replace("ADD COLUMN note text", "ADD COLUMN note nonsense")


class DatabaseCase(TestCase):
    timeout = 60

    def setUp(self) -> None:
        from twisted.internet import reactor  # noqa: PLC0415, TID251 - a test against the real thing

        self.reactor: Any = reactor

    def pool(self, settings: PoolSettings | None = None, **more: Any) -> Pool:
        pool = Pool(
            self.reactor,
            Connector(self.reactor, more.pop("where", address()), **more),
            settings or PoolSettings(size=2),
        )
        pool.start()
        self.addCleanup(lambda: Deferred.fromCoroutine(pool.stop()))
        return pool

    async def eventually(self, pool: Pool, sql: str) -> list[tuple[Any, ...]]:
        for _attempt in range(100):
            try:
                return await pool.query(sql)
            except Unavailable:
                await deferLater(self.reactor, 0.05)
        raise AssertionError("the pool does not recover")

    async def failing(self, work: Any, error: type[Exception], *words: str) -> None:
        with self.assertRaises(error) as caught:
            await work
        for word in words:
            self.assertIn(word, str(caught.exception))


class PoolTests(DatabaseCase):
    async def test_killed_backends(self) -> None:
        """After the server has thrown every connection out, the pool works again by itself, and nothing is logged."""
        pool = self.pool(PoolSettings(size=4))
        await gatherResults([Deferred.fromCoroutine(pool.query("SELECT pg_sleep(0.05)")) for _ in range(4)])
        other = self.pool(PoolSettings(size=1))
        await other.query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'sorna' AND pid <> pg_backend_pid()"
            " AND backend_type = 'client backend'"
        )
        self.assertEqual(await self.eventually(pool, "SELECT 1"), [(1,)])
        results = await gatherResults([Deferred.fromCoroutine(self.eventually(pool, f"SELECT {n}")) for n in range(20)])
        self.assertEqual(results, [[(n,)] for n in range(20)])

    async def test_killed_in_a_statement(self) -> None:
        """A statement whose connection is thrown out is Unavailable, not a hang."""
        pool = self.pool()
        running = Deferred.fromCoroutine(pool.query("SELECT pg_sleep(30)"))
        await deferLater(self.reactor, 0.2)
        await pool.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(30)'")
        await self.failing(running, Unavailable)

    async def test_statement_timeout(self) -> None:
        """The server gives a long statement up, and the connection stays good."""
        pool = self.pool(PoolSettings(size=1), statement_timeout=0.2)
        before = await pool.query("SELECT pg_backend_pid()")
        await self.failing(pool.query("SELECT pg_sleep(30)"), Unavailable)
        self.assertEqual(await pool.query("SELECT pg_backend_pid()"), before)

    async def test_query_timeout(self) -> None:
        """A server that does not even give up is left, and its place is filled."""
        pool = self.pool(PoolSettings(size=1, query_timeout=0.3), statement_timeout=30)
        before = await pool.query("SELECT pg_backend_pid()")
        await self.failing(pool.query("SELECT pg_sleep(2)"), Unavailable, "in time")
        for _again in range(3):
            self.assertNotEqual(await self.eventually(pool, "SELECT pg_backend_pid()"), before)

    async def test_large_statements_and_answers(self) -> None:
        """What no socket takes at once goes there and comes back whole."""
        pool = self.pool(PoolSettings(size=1))
        large = "0123456789abcdef" * 500_000
        self.assertEqual(await pool.query("SELECT %s::text, length(%s)", (large, large)), [(large, len(large))])
        self.assertEqual(await pool.query("SELECT '%'"), [("%",)])

    async def test_the_next_statement_at_once(self) -> None:
        """Whoever gets an answer may use the very same connection for the next statement, many times over."""
        pool = self.pool(PoolSettings(size=1))
        backends = {(await pool.query("SELECT pg_backend_pid(), %s::int", (number,)))[0] for number in range(300)}
        self.assertEqual({number for _pid, number in backends}, set(range(300)))
        self.assertEqual(len({pid for pid, _number in backends}), 1)

    async def test_killed_while_it_sends(self) -> None:
        """A connection that is thrown out before all of a statement was sent is Unavailable, and the pool goes on."""
        pool = self.pool(PoolSettings(size=1))
        [(pid,)] = await pool.query("SELECT pg_backend_pid()")
        other = self.pool(PoolSettings(size=1))
        running = Deferred.fromCoroutine(pool.query("SELECT length(%s)", ("x" * 50_000_000,)))
        await other.query("SELECT pg_terminate_backend(%s)", (pid,))
        with contextlib.suppress(Unavailable):  # else it was quicker than the other one
            await running
        self.assertNotEqual(await self.eventually(pool, "SELECT pg_backend_pid()"), [(pid,)])

    async def test_cancelled_caller(self) -> None:
        """What a caller that went away has asked for still happens."""
        pool = await fresh_pool(self, self.reactor)
        sql = "INSERT INTO agents SELECT 'late', repeat('a', 40), now() FROM pg_sleep(0.2)"
        asked = Deferred.fromCoroutine(pool.query(sql))
        await deferLater(self.reactor, 0.05)
        asked.cancel()
        with self.assertRaises(CancelledError):
            await asked
        await deferLater(self.reactor, 0.4)
        self.assertEqual(await pool.query("SELECT agent_id FROM agents"), [("late",)])

    async def test_transaction(self) -> None:
        """A block is all or nothing."""
        pool = await fresh_pool(self, self.reactor)
        insert = "INSERT INTO agents VALUES (%s, repeat('a', 40), now())"
        async with pool.transaction() as transaction:
            await transaction.query(insert, ("one",))
            await transaction.query(insert, ("two",))
        with self.assertRaises(Conflict):
            async with pool.transaction() as transaction:
                await transaction.query(insert, ("three",))
                await transaction.query(insert, ("one",))
        self.assertEqual(await pool.query("SELECT agent_id FROM agents ORDER BY 1"), [("one",), ("two",)])

    async def test_cancelled_transaction(self) -> None:
        """A caller that goes away in the middle of a block leaves nothing of it."""
        pool = await fresh_pool(self, self.reactor)

        async def work() -> None:
            async with pool.transaction() as transaction:
                await transaction.query("INSERT INTO agents VALUES ('half', repeat('a', 40), now())")
                await transaction.query("SELECT pg_sleep(1)")

        running = Deferred.fromCoroutine(work())
        await deferLater(self.reactor, 0.2)
        running.cancel()
        with self.assertRaises(CancelledError):
            await running
        self.assertEqual(await pool.query("SELECT count(*) FROM agents"), [(0,)])

    async def test_wrong_statement(self) -> None:
        """A fault of ours says which, without the values, and does not cost the connection."""
        pool = self.pool(PoolSettings(size=1))
        before = await pool.query("SELECT pg_backend_pid()")
        with self.assertRaises(StatementFailed) as caught:
            await pool.query("SELECT * FROM nowhere WHERE secret = %s", ("hunter2",))
        self.assertIn("42P01", str(caught.exception))
        self.assertNotIn("hunter2", str(caught.exception))
        self.assertIsNone(caught.exception.__cause__)
        self.assertEqual(await pool.query("SELECT pg_backend_pid()"), before)

    async def test_nobody_there(self) -> None:
        """Where no server listens, and for a wrong password, it is Unavailable at once."""
        where = address()
        for wrong in (attrs.evolve(where, host="/nowhere"), attrs.evolve(where, password="wrong")):
            pool = self.pool(where=wrong)
            began = self.reactor.seconds()
            await self.failing(pool.query("SELECT 1"), Unavailable)
            self.assertLess(self.reactor.seconds() - began, 2)

    async def test_host_names(self) -> None:
        """A host name is looked up off the reactor, and one that is none is Unavailable."""
        for host in ("localhost", "no-such-host.invalid"):
            pool = self.pool(where=DatabaseAddress(host, 1, "sorna", "sorna"))
            await self.failing(pool.query("SELECT 1"), Unavailable)


class MigrationTests(DatabaseCase):
    def setUp(self) -> None:
        super().setUp()
        self.schema = f"test_{uuid.uuid4().hex[:12]}"
        self.admin = self.pool(PoolSettings(size=1))
        self.addCleanup(
            lambda: Deferred.fromCoroutine(self.admin.query(f"DROP SCHEMA IF EXISTS {self.schema} CASCADE"))
        )

    def inside(self) -> Pool:
        return self.pool(PoolSettings(size=1), schema=self.schema)

    def migrations(self, *more: str) -> Path:
        directory = Path(tempfile.mkdtemp(prefix="sorna-schema-"))
        self.addCleanup(shutil.rmtree, directory)
        shutil.copytree(SCHEMA_DIRECTORY, directory / "schema", ignore=shutil.ignore_patterns("__pycache__"))
        for number, text in enumerate(more, int(NEXT)):
            (directory / "schema" / f"m{number:04}_more.py").write_text(text)
        return directory / "schema"

    async def test_twice(self) -> None:
        """The first start makes the schema, the second finds it."""
        first = await migrate(self.reactor, address(), self.schema)
        self.assertEqual((first.before, first.after), (None, HEAD))
        second = await migrate(self.reactor, address(), self.schema)
        self.assertEqual((second.before, second.after), (HEAD, HEAD))

    async def test_several_managers_at_once(self) -> None:
        """Of several that start at once, one makes the schema."""
        done = await gatherResults(
            [Deferred.fromCoroutine(migrate(self.reactor, address(), self.schema)) for _ in range(5)]
        )
        self.assertEqual(sorted(str(one.before) for one in done), [HEAD] * 4 + ["None"])

    async def test_next_migration(self) -> None:
        """A newer version brings its migration, and its drift check covers it."""
        migrate_blocking(address(), self.schema)
        newer = self.migrations(NEWER)
        done = migrate_blocking(address(), self.schema, newer)
        self.assertEqual((done.before, done.after), (HEAD, NEXT))
        self.assertEqual(migrate_blocking(address(), self.schema, newer).before, NEXT)
        await self.admin.query(f"ALTER TABLE {self.schema}.agents DROP COLUMN note")
        self.assertRaises(SchemaError, migrate_blocking, address(), self.schema, newer)

    async def test_what_live_kernels_take_is_counted(self) -> None:
        """A database from before the policies learns what its live kernels take, so that their ends give it back."""
        older = self.migrations()
        for later in (
            "m0002_administration.py",
            "m0003_folders.py",
            "m0005_folders_in_use.py",
            "m0006_scheduling.py",
            "m0007_enrolment.py",
        ):
            (older / later).unlink()
        migrate_blocking(address(), self.schema, older)
        old = self.inside()
        await old.query(
            "INSERT INTO keypairs VALUES ('AKIA', 's', 7, true, false, 30, 2, 1000, 0), ('AKIB', 's', 8, true, false, 30, 0, 9, 0)"
        )
        limits = '{"memory": 1000, "cpu_cores": 0.25}'
        for number, (runtime, status, ended) in enumerate(
            (("c", "RUNNING", None), ("python3-torch-gpu", "PREPARING", None), ("c", "ERROR", "now()"))
        ):
            await old.query(
                f"INSERT INTO kernels SELECT gen_random_uuid(), 'AKIA', '{number}', '{runtime}', '', '{status}', '', now(),"
                f" now(), {ended or 'NULL'}, NULL, '{limits}', '{{}}', NULL, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0"
            )
        done = migrate_blocking(address(), self.schema)
        self.assertEqual((done.before, done.after), ("0001", HEAD))
        counted = await self.inside().query(
            "SELECT user_id, concurrency_used, memory_used, cpu_millis_used, gpus_used FROM keypairs ORDER BY access_key"
        )
        self.assertEqual(counted, [("7", 2, 2000, 500, 1), ("8", 0, 0, 0, 0)])

    async def test_newer_database(self) -> None:
        """An older version refuses what a newer one wrote, and says so."""
        migrate_blocking(address(), self.schema, self.migrations(NEWER))
        await self.failing(migrate(self.reactor, address(), self.schema), SchemaError, NEXT, "newer Sorna")

    async def test_failing_migration(self) -> None:
        """A migration that fails leaves everything as it was."""
        migrate_blocking(address(), self.schema)
        with self.assertRaises(SchemaError):
            migrate_blocking(address(), self.schema, self.migrations(BROKEN))
        self.assertEqual(migrate_blocking(address(), self.schema).before, HEAD)

    async def test_drift(self) -> None:
        """Every kind of change by hand is named, and putting it back makes peace."""
        await migrate(self.reactor, address(), self.schema)
        for change, undo, word in (
            ("ALTER TABLE {}.kernels ADD COLUMN x int", "ALTER TABLE {}.kernels DROP COLUMN x", "unexpected: column"),
            ("ALTER TABLE {}.agents RENAME TO a", "ALTER TABLE {}.a RENAME TO agents", "missing: column agents"),
            ("CREATE INDEX i ON {}.kernels (tag)", "DROP INDEX {}.i", "unexpected: index"),
            (
                "ALTER TABLE {}.keypairs ADD CONSTRAINT c CHECK (rate_limit > 0)",
                "ALTER TABLE {}.keypairs DROP CONSTRAINT c",
                "unexpected: constraint",
            ),
        ):  # fmt: skip
            await self.admin.query(change.format(self.schema))
            await self.failing(migrate(self.reactor, address(), self.schema), SchemaError, "by hand", word)
            await self.admin.query(undo.format(self.schema))
            await migrate(self.reactor, address(), self.schema)

    async def test_record_removed(self) -> None:
        """Without the record, the schema is not trusted."""
        await migrate(self.reactor, address(), self.schema)
        await self.inside().query("DELETE FROM schema_description")
        await self.failing(migrate(self.reactor, address(), self.schema), SchemaError, "record")
        await self.inside().query("DROP TABLE schema_description")
        await self.failing(migrate(self.reactor, address(), self.schema), SchemaError, "record")

    async def test_upgraded_server(self) -> None:
        """After an upgrade of PostgreSQL itself the description is taken anew."""
        await migrate(self.reactor, address(), self.schema)
        await self.inside().query("UPDATE schema_description SET server_major = 12, lines = '{}'")
        await migrate(self.reactor, address(), self.schema)
        rows = await self.inside().query("SELECT server_major, cardinality(lines) > 30 FROM schema_description")
        self.assertNotEqual(rows[0][0], 12)
        self.assertTrue(rows[0][1])

    async def test_nobody_there(self) -> None:
        """Without a server, a start may be tried again; the message names the trouble and no password."""
        nowhere = attrs.evolve(address(), host="/nowhere", password="hunter2")
        with self.assertRaises(Unavailable) as caught:
            await migrate(self.reactor, nowhere)
        self.assertIn("/nowhere", caught.exception.detail)
        self.assertNotIn("hunter2", caught.exception.detail)

    async def test_strange_schema_name(self) -> None:
        """A name that would need quoting is refused."""
        await self.failing(migrate(self.reactor, address(), "a; DROP TABLE b"), SchemaError)
