"""What every AgentStore, TicketStore and ClusterKeyStore does; run for the memory stores and for PostgreSQL."""

from __future__ import annotations

import uuid
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import evolve, frozen
from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import TestCase

from sorna.errors import InvalidRequest
from sorna.manager.enrolment_interfaces import AgentStore, ClusterKeyStore, StoredTicket, TicketStore
from sorna.store.agents import PostgresAgents, PostgresClusterKeys, PostgresTickets
from sorna.store.memory_agents import MemoryAgents, MemoryClusterKeys, MemoryTickets
from tests.contract.postgres import fresh_pool

if TYPE_CHECKING:
    Base = TestCase
else:
    Base = object

T = TypeVar("T")

NOW = 1_700_000_000.25
A, B = "a" * 40, "b" * 40
HASH = "0" * 64
ENDPOINT = "tcp://192.0.2.7:6011"


@frozen
class Stores:
    """The stores of one implementation, empty."""

    agents: AgentStore
    tickets: TicketStore
    keys: ClusterKeyStore


def ticket(agent_id: str | None = None, made_at: float = NOW, lasts: float = 600.0) -> StoredTicket:
    return StoredTicket(uuid.uuid4(), HASH, agent_id, "AKIAADMIN", made_at, made_at + lasts)


async def together(work: Sequence[Coroutine[Deferred[Any], Any, T]]) -> list[T]:
    """Run all at once and give every result."""
    return await gatherResults([Deferred.fromCoroutine(one) for one in work], consumeErrors=True)


class EnrolmentContract(Base):
    """Each test starts with empty stores."""

    stores: Stores

    async def kept(self, one: StoredTicket) -> StoredTicket:
        """Keep a ticket."""
        self.assertTrue(await self.stores.tickets.add(one, 10))
        return one

    async def test_revoked_agents(self) -> None:
        """A revoked agent is not trusted, has been enrolled all the same, and cannot be revoked twice."""
        agents = self.stores.agents
        self.assertTrue(await agents.enrol("i-1", A, NOW))
        self.assertTrue(await agents.enrol("i-2", B, NOW + 1))
        self.assertTrue(await agents.revoke("i-1", NOW + 2))
        self.assertEqual(await agents.public_keys(), {"i-2": B})
        self.assertEqual(await agents.enrolled(), {"i-1": NOW, "i-2": NOW + 1})
        self.assertFalse(await agents.revoke("i-1", NOW + 3))
        self.assertFalse(await agents.revoke("nobody", NOW))
        with self.assertRaises(InvalidRequest):
            await agents.revoke("a\0", NOW)

    async def test_a_revoked_key_comes_back_on_purpose_only(self) -> None:
        """What lies around does not bring a revoked key back; another key of the agent, or somebody who means it, does."""
        agents = self.stores.agents
        await agents.enrol("i-1", A, NOW)
        await agents.revoke("i-1", NOW)
        self.assertFalse(await agents.enrol("i-1", A, NOW, again=False))
        self.assertEqual(await agents.public_keys(), {})
        self.assertTrue(await agents.enrol("i-1", B, NOW, again=False))
        self.assertEqual(await agents.public_keys(), {"i-1": B})
        await agents.revoke("i-1", NOW)
        self.assertTrue(await agents.enrol("i-1", B, NOW))
        self.assertTrue(await agents.enrol("i-1", B, NOW, again=False))
        self.assertEqual(await agents.public_keys(), {"i-1": B})

    async def test_tickets_are_kept(self) -> None:
        """A ticket is found as it was made, and an unknown one is not."""
        one = await self.kept(ticket("i-1"))
        self.assertEqual(await self.stores.tickets.find(one.id), one)
        self.assertIsNone(await self.stores.tickets.find(uuid.uuid4()))

    async def test_open_tickets_are_bounded(self) -> None:
        """No more than so many are open; used ones do not count, and expired ones are forgotten."""
        tickets = self.stores.tickets
        one, two = ticket(), ticket(made_at=NOW + 1)
        self.assertTrue(await tickets.add(one, 1))
        self.assertFalse(await tickets.add(two, 1))
        self.assertIsNone(await tickets.find(two.id))
        self.assertTrue(await tickets.use(one, "i-1", A, ENDPOINT, NOW + 2))
        self.assertTrue(await tickets.add(two, 1))
        self.assertTrue(await tickets.add(ticket(made_at=NOW + 601), 1))
        self.assertIsNone(await tickets.find(one.id))
        self.assertIsNone(await tickets.find(two.id))

    async def test_a_ticket_enrols_once(self) -> None:
        """The agent is trusted and the ticket says by whom it was used; it is of no use any more."""
        one = await self.kept(ticket())
        self.assertTrue(await self.stores.tickets.use(one, "i-1", A, ENDPOINT, NOW + 1))
        self.assertEqual(await self.stores.agents.public_keys(), {"i-1": A})
        self.assertEqual(await self.stores.tickets.find(one.id), evolve(one, used_by="i-1", used_key=A))
        for name, key in (("i-2", B), ("i-1", A), ("i-1", B)):
            self.assertFalse(await self.stores.tickets.use(one, name, key, ENDPOINT, NOW + 2))
        self.assertEqual(await self.stores.agents.public_keys(), {"i-1": A})

    async def test_one_of_many_at_once(self) -> None:
        """Of many that use a ticket at the same time one is enrolled."""
        one = await self.kept(ticket())
        keys = [f"{number:040}" for number in range(8)]
        used = await together([self.stores.tickets.use(one, f"i-{key[-1]}", key, ENDPOINT, NOW + 1) for key in keys])
        self.assertEqual(sum(used), 1)
        (enrolled,) = (await self.stores.agents.public_keys()).values()
        self.assertEqual(enrolled, keys[used.index(True)])

    async def test_many_tickets_for_one_name(self) -> None:
        """Of many that want the same new name with other keys one gets it; the tickets of the others stay as they were."""
        tickets = [await self.kept(ticket()) for _ in range(6)]
        used = await together(
            [
                self.stores.tickets.use(one, "i-1", f"{number:040}", ENDPOINT, NOW + 1)
                for number, one in enumerate(tickets)
            ]
        )
        self.assertEqual(sum(used), 1)
        found = [await self.stores.tickets.find(one.id) for one in tickets]
        self.assertEqual([one is not None and one.used_by is not None for one in found], used)

    async def test_what_a_ticket_does_not_do(self) -> None:
        """One that has expired, is unknown, has another secret or is for another agent enrols nobody and is not used up."""
        one = await self.kept(ticket("i-1"))
        for wrong, name, now in (
            (one, "i-1", NOW + 600),
            (one, "i-2", NOW + 1),
            (evolve(one, secret_hash="1" * 64), "i-1", NOW + 1),
            (ticket("i-1"), "i-1", NOW + 1),
        ):
            self.assertFalse(await self.stores.tickets.use(wrong, name, A, ENDPOINT, now))
        with self.assertRaises(InvalidRequest):
            await self.stores.tickets.use(one, "", A, ENDPOINT, NOW)
        self.assertEqual(await self.stores.agents.public_keys(), {})
        self.assertTrue(await self.stores.tickets.use(one, "i-1", A, ENDPOINT, NOW + 1))

    async def test_whose_key_may_be_replaced(self) -> None:
        """A ticket for anybody replaces no key that is trusted; one by name does, and a revoked agent's may be."""
        agents, tickets = self.stores.agents, self.stores.tickets
        await agents.enrol("i-1", A, NOW)
        anybody, again, by_name = [await self.kept(one) for one in (ticket(), ticket(), ticket("i-1"))]
        self.assertFalse(await tickets.use(anybody, "i-1", B, ENDPOINT, NOW + 1))
        self.assertTrue(await tickets.use(again, "i-1", A, ENDPOINT, NOW + 1))
        self.assertTrue(await tickets.use(by_name, "i-1", B, ENDPOINT, NOW + 1))
        self.assertEqual(await agents.public_keys(), {"i-1": B})
        await agents.revoke("i-1", NOW + 2)
        self.assertTrue(await tickets.use(anybody, "i-1", A, ENDPOINT, NOW + 3))
        self.assertEqual(await agents.public_keys(), {"i-1": A})

    async def test_the_first_key_is_everybodys(self) -> None:
        """Of managers that start at once one proposes the key that all of them take, then and later."""
        proposals = [(letter * 40, letter.upper() * 40) for letter in "abcdef"]
        taken = await together([self.stores.keys.manager_key(*one, NOW) for one in proposals])
        self.assertEqual(len(set(taken)), 1)
        self.assertIn(taken[0], proposals)
        self.assertEqual(await self.stores.keys.manager_key("z" * 40, "Z" * 40, NOW), taken[0])


class MemoryEnrolmentTests(EnrolmentContract, TestCase):
    def setUp(self) -> None:
        agents = MemoryAgents()
        self.stores = Stores(agents, MemoryTickets(agents), MemoryClusterKeys())


class PostgresEnrolmentTests(EnrolmentContract, TestCase):
    def setUp(self) -> Any:
        from twisted.internet import reactor  # noqa: PLC0415, TID251 - a test against the real thing

        async def set_up() -> None:
            pool = await fresh_pool(self, reactor)
            self.stores = Stores(PostgresAgents(pool), PostgresTickets(pool), PostgresClusterKeys(pool))

        return Deferred.fromCoroutine(set_up())
