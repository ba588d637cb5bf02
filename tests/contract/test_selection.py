"""What a selection means in PostgreSQL is what it means in memory, whatever is asked for and whatever there is."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from sorna.manager.interfaces import KernelFilter
from sorna.model.kernel import Kernel, KernelStatus
from sorna.model.keypair import Keypair
from sorna.model.limits import Limits
from sorna.model.selectable import of_kernel, of_keypair
from sorna.model.selection import (
    FOLDER_FIELDS,
    KERNEL_FIELDS,
    KEYPAIR_FIELDS,
    Comparison,
    Fields,
    Kind,
    Negation,
    Operator,
    Order,
    Selection,
    select,
)
from sorna.store.connection import plain_parameters
from sorna.store.folders import PostgresFolders
from sorna.store.keypairs import PostgresKeypairs
from sorna.store.reports import PostgresReports
from sorna.store.selecting import KERNEL_COLUMNS, KEYPAIR_COLUMNS, Columns, clauses
from sorna.testing.unit import UnitTestCase
from tests.contract.postgres import address, fresh_pool
from tests.model.selections import MOMENTS, TEXTS, selections

_KERNELS = """
CREATE TEMPORARY TABLE kernels (
    id uuid, session_token text, requested_runtime text, access_key text, tag text, agent_id text, status text,
    status_reason text, created_at timestamptz, terminated_at timestamptz, status_changed_at timestamptz
)
"""
_KEYPAIRS = """
CREATE TEMPORARY TABLE k (
    access_key text, user_id text, resource_policy text, is_active boolean, is_admin boolean, created_at timestamptz,
    last_used timestamptz, rate_limit integer, concurrency_limit integer, concurrency_used integer, num_queries bigint
)
"""
KERNELS = st.builds(
    Kernel,
    id=st.uuids(),
    access_key=TEXTS,
    session_token=TEXTS,
    runtime=st.just("c"),
    requested_runtime=TEXTS,
    status=st.sampled_from(KernelStatus),
    status_reason=TEXTS,
    status_changed_at=MOMENTS,
    created_at=MOMENTS,
    limits=st.just(Limits()),
    environ=st.just({}),
    tag=st.none() | TEXTS,
    agent_id=st.none() | TEXTS,
    terminated_at=st.none() | MOMENTS,
)
KEYPAIRS = st.builds(
    Keypair,
    access_key=st.uuids().map(str),
    secret_key=st.just("s"),
    user_id=TEXTS,
    is_active=st.booleans(),
    is_admin=st.booleans(),
    rate_limit=st.integers(0, 2),
    num_queries=st.sampled_from((0, 1, 2**40)),
    resource_policy=st.none() | TEXTS,
    created_at=MOMENTS,
    last_used=st.none() | MOMENTS,
)


class SelectionTests(UnitTestCase):
    """The two ways beside each other, for lists at will."""

    @contextmanager
    def table(self, sql: str) -> Iterator[Any]:
        """Give a cursor of a session that has a table of its own."""
        with psycopg2.connect(**plain_parameters(address())) as connection, connection.cursor() as cursor:
            cursor.execute(sql)
            yield cursor
            connection.rollback()
        connection.close()

    def insert(self, cursor: Any, table: str, rows: Sequence[Mapping[str, Any]], times: frozenset[str]) -> None:
        cursor.execute(f"TRUNCATE {table}")
        for row in rows:
            values = [f"to_timestamp(%({name})s)" if name in times else f"%({name})s" for name in row]
            into = f"INSERT INTO {table} ({', '.join(row)})"
            cursor.execute(f"{into} VALUES ({', '.join(values)})", row)

    def selected(self, cursor: Any, table: str, key: str, columns: Columns, selection: Selection) -> list[str]:
        written = clauses(columns, selection)
        sql = f"SELECT {key} FROM {table} WHERE true{written.where}"  # noqa: S608 - the test's own words
        cursor.execute(f"{sql} ORDER BY {written.order}{key} DESC", written.parameters)
        return [row[0] for row in cursor.fetchall()]

    def test_kernels(self) -> None:
        """Kernels."""
        names = ("session_token", "requested_runtime", "access_key", "tag", "agent_id", "status", "status_reason")
        times = ("created_at", "terminated_at", "status_changed_at")
        with self.table(_KERNELS) as cursor:

            @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
            @given(st.lists(KERNELS, max_size=6, unique_by=lambda one: one.id), selections(KERNEL_FIELDS))
            def same(kernels: list[Kernel], selection: Selection) -> None:
                rows = [{"id": str(one.id), **{n: getattr(one, n) for n in (*names, *times)}} for one in kernels]
                self.insert(cursor, "kernels", rows, frozenset(times))
                expected = select(sorted(kernels, key=lambda one: one.id, reverse=True), selection, of_kernel)
                found = self.selected(cursor, "kernels", "id", KERNEL_COLUMNS, selection)
                self.assertEqual(found, [str(one.id) for one in expected])

            same()

    def test_keypairs(self) -> None:
        """Keypairs."""
        names = ("access_key", "user_id", "resource_policy", "is_active", "is_admin")
        numbers = ("rate_limit", "concurrency_limit", "concurrency_used", "num_queries")
        times = ("created_at", "last_used")
        with self.table(_KEYPAIRS) as cursor:

            @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
            @given(st.lists(KEYPAIRS, max_size=6, unique_by=lambda one: one.access_key), selections(KEYPAIR_FIELDS))
            def same(keypairs: list[Keypair], selection: Selection) -> None:
                rows = [{n: getattr(one, n) for n in (*names, *numbers, *times)} for one in keypairs]
                self.insert(cursor, "k", rows, frozenset(times))
                expected = select(sorted(keypairs, key=lambda one: one.access_key, reverse=True), selection, of_keypair)
                found = self.selected(cursor, "k", "access_key", KEYPAIR_COLUMNS, selection)
                self.assertEqual(found, [one.access_key for one in expected])

            same()


class EveryFieldTests(TestCase):
    """The real tables have every field that may be named."""

    def setUp(self) -> Any:
        from twisted.internet import reactor  # noqa: PLC0415, TID251 - a test against the real thing

        async def prepare() -> None:
            self.pool = await fresh_pool(self, reactor)

        return Deferred.fromCoroutine(prepare())

    async def test_lists(self) -> None:
        """Each can be compared, looked for and sorted by, in pages and in numbers."""
        keypairs, folders, reports = PostgresKeypairs(self.pool), PostgresFolders(self.pool), PostgresReports(self.pool)
        await keypairs.add(Keypair("AKIA", "s"))
        for selection in _each(KEYPAIR_FIELDS):
            page = await keypairs.page(None, None, 0, 9, selection)
            self.assertEqual(len(page), await keypairs.count_of(None, None, selection), selection)
        for selection in _each(FOLDER_FIELDS):
            self.assertEqual(
                (await folders.page(None, 0, 9, selection), await folders.count_of(None, selection)), ([], 0)
            )
        for selection in _each(KERNEL_FIELDS):
            wanted = KernelFilter(selection=selection)
            self.assertEqual((await reports.page(wanted, 0, 9), await reports.count(wanted)), ([], 0))


def _each(fields: Fields) -> Iterator[Selection]:
    for name, kind in fields.items():
        value: Any = {
            Kind.TEXT: "a",
            Kind.WORD: "A",
            Kind.NUMBER: 1,
            Kind.FLAG: True,
            Kind.MOMENT: 1.0,
            Kind.ID: uuid.UUID(int=1),
        }[kind]
        yield Selection(Comparison(name, Operator.EQUAL, value), (Order(name), Order(name, True)))
        yield Selection(Negation(Comparison(name, Operator.IN, (value,))))
        yield Selection(Comparison(name, Operator.IS, None))
