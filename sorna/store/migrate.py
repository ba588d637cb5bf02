"""Brings the schema to the version of this code before anything uses it, and refuses a schema that is not what it should be.

Runs in a thread, over SQLAlchemy and alembic; knows the migrations' order and not what is in them.

Note [Drift]
    After the migrations, the catalogue's description of every table is written down, a line per column, constraint, index
    and trigger. The next start compares it with what is there: a line more or less was made by hand, and code that was
    tested against another schema does not run on it. Another major version of PostgreSQL may word the same thing
    differently, so after an upgrade of the server the description is taken anew, which is logged.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import psycopg2
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.script.revision import ResolutionError
from alembic.util.exc import CommandError
from attrs import frozen
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.pool import NullPool
from twisted.internet.interfaces import IReactorFromThreads, IReactorTime
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool

from sorna.errors import SornaError, Unavailable
from sorna.store.address import DatabaseAddress
from sorna.store.connection import plain_parameters

SCHEMA_DIRECTORY = Path(__file__).with_name("schema")
# Any number that nobody else locks: the first eight bytes of "sornaschema".
LOCK = int.from_bytes(b"sornasch", "big")
LOCK_TIMEOUT = 60
CONNECT_TIMEOUT = 5

_log = Logger()

_DESCRIBE = """
SELECT 'column ' || c.relname || '.' || a.attname || ' ' || format_type(a.atttypid, a.atttypmod)
       || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END
       || coalesce(' DEFAULT ' || pg_get_expr(d.adbin, d.adrelid), '')
  FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
  LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
 WHERE c.relnamespace = CAST(:schema AS regnamespace) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
   AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL
SELECT 'constraint ' || conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(oid)
  FROM pg_constraint WHERE connamespace = CAST(:schema AS regnamespace) AND contype <> 'n'
UNION ALL
SELECT 'index ' || pg_get_indexdef(c.oid) || CASE WHEN i.indisvalid THEN '' ELSE ' INVALID' END
  FROM pg_class c JOIN pg_index i ON i.indexrelid = c.oid WHERE c.relnamespace = CAST(:schema AS regnamespace)
UNION ALL
SELECT 'trigger ' || pg_get_triggerdef(t.oid)
  FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
 WHERE c.relnamespace = CAST(:schema AS regnamespace) AND NOT t.tgisinternal
"""


class SchemaError(SornaError):
    """The database's schema is not one that this code can use; ``detail`` tells the operator what to do."""


@frozen
class Migrated:
    """What :func:`migrate` did.

    :ivar before: revision found, None in an empty database. :ivar after: revision now.
    """

    before: str | None
    after: str


async def migrate(reactor: IReactorTime, address: DatabaseAddress, schema: str = "sorna") -> Migrated:
    """Bring the schema up to date, one manager at a time, and check it.

    :raises SchemaError: the schema is newer than this code, or was changed by hand.
    :raises Unavailable: the database does not answer, or another manager holds the lock too long.
    """
    threads = IReactorFromThreads(reactor)
    pool: ThreadPool = threads.getThreadPool()  # type: ignore[attr-defined]  # missing from Twisted's interface
    done = await deferToThreadPool(threads, pool, migrate_blocking, address, schema)
    if done.before != done.after:
        _log.info("database schema brought from {before} to {after}", before=done.before, after=done.after)
    return done


def migrate_blocking(address: DatabaseAddress, schema: str = "sorna", directory: Path = SCHEMA_DIRECTORY) -> Migrated:
    """Do what :func:`migrate` does, in the calling thread."""
    if not (schema.isidentifier() and schema.islower() and schema.isascii()):
        raise SchemaError(f"{schema!r} is no name for a schema: use lower-case letters, digits and underscores")
    engine = create_engine(
        "postgresql+psycopg2://",
        creator=lambda: psycopg2.connect(connect_timeout=CONNECT_TIMEOUT, **plain_parameters(address)),
        poolclass=NullPool,
    )
    try:
        # One transaction for all: PostgreSQL undoes a half-made schema by itself, and the lock ends with it.
        with engine.begin() as connection:
            return _migrate(connection, schema, _scripts(directory))
    except OperationalError as error:
        # Only the first line: the driver quotes the statement after it.
        reason = str(error.orig).strip().partition("\n")[0]
        raise Unavailable(f"the database cannot be migrated now: {reason}") from error
    except DBAPIError as error:
        reason = str(error.orig).strip().partition("\n")[0]
        raise SchemaError(f"the database refuses a migration: {reason}") from error
    finally:
        engine.dispose()


def _scripts(directory: Path) -> ScriptDirectory:
    return ScriptDirectory(str(directory), version_locations=[str(directory)])


def _migrate(connection: Connection, schema: str, scripts: ScriptDirectory) -> Migrated:
    connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}s'"))
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
    connection.execute(text("SET LOCAL client_min_messages = warning"))
    connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {schema}"))
    connection.execute(text(f"SET LOCAL search_path = {schema}"))
    head = scripts.get_current_head()
    if head is None:
        raise SchemaError("this installation of Sorna has lost its migrations: install it anew")
    before = _revision(connection, schema, scripts, head)
    if before is not None:
        _check(connection, schema, before)
    if before != head:
        _upgrade(connection, schema, scripts)
        _write_down(connection, schema, head)
    return Migrated(before, head)


def _revision(connection: Connection, schema: str, scripts: ScriptDirectory, head: str) -> str | None:
    found = MigrationContext.configure(connection, opts={"version_table_schema": schema}).get_current_revision()
    if found is None:
        return None
    try:
        scripts.get_revision(found)
    except (CommandError, ResolutionError) as error:
        raise SchemaError(
            f"the database is at schema revision {found}, which this Sorna (up to {head}) does not know: "
            "a newer Sorna has written it. Start that version, or restore a copy from before"
        ) from error
    return found


def _upgrade(connection: Connection, schema: str, scripts: ScriptDirectory) -> None:
    def steps(revision: str, _context: MigrationContext) -> object:
        return scripts._upgrade_revs("head", revision)  # noqa: SLF001 - how alembic's own command "upgrade" does it

    with EnvironmentContext(Config(), scripts, fn=steps, destination_rev="head") as environment:
        environment.configure(connection=connection, version_table_schema=schema)
        with environment.begin_transaction():
            environment.run_migrations()


def describe(connection: Connection, schema: str) -> Sequence[str]:
    """Give the schema as sorted lines, the two tables of the migrations themselves left out."""
    lines = connection.execute(text(_DESCRIBE), {"schema": schema}).scalars()
    return sorted(line for line in lines if "alembic_version" not in line and "schema_description" not in line)


def _server_major(connection: Connection) -> int:
    return int(connection.execute(text("SHOW server_version_num")).scalar_one()) // 10_000


def _write_down(connection: Connection, schema: str, revision: str) -> None:
    connection.execute(
        text(
            "CREATE TABLE IF NOT EXISTS schema_description "
            "(revision text PRIMARY KEY, server_major integer NOT NULL, lines text[] NOT NULL)"
        )
    )
    connection.execute(
        text(
            "INSERT INTO schema_description VALUES (:revision, :major, :lines) ON CONFLICT (revision) "
            "DO UPDATE SET server_major = excluded.server_major, lines = excluded.lines"
        ),
        {"revision": revision, "major": _server_major(connection), "lines": list(describe(connection, schema))},
    )


def _check(connection: Connection, schema: str, revision: str) -> None:
    """Compare the schema with what was written down; see Note [Drift]."""
    exists = connection.execute(
        text("SELECT to_regclass(:name) IS NOT NULL"), {"name": f"{schema}.schema_description"}
    ).scalar_one()
    row = (
        connection.execute(
            text("SELECT server_major, lines FROM schema_description WHERE revision = :revision"),
            {"revision": revision},
        ).one_or_none()
        if exists
        else None
    )
    if row is None:
        raise SchemaError(f"the record of schema revision {revision} is missing: somebody removed it by hand")
    if row.server_major != _server_major(connection):
        _log.warn("PostgreSQL was upgraded: taking the description of the schema anew")
        _write_down(connection, schema, revision)
        return
    wanted, found = set(row.lines), set(describe(connection, schema))
    if wanted != found:
        changes = [f"missing: {line}" for line in sorted(wanted - found)]
        changes += [f"unexpected: {line}" for line in sorted(found - wanted)]
        raise SchemaError("the database's schema was changed by hand; put it back: " + "; ".join(changes[:10]))
