"""Tickets, the exchange of keys, and revocation."""

from __future__ import annotations

import json
import uuid
from typing import Any

from twisted.internet.defer import Deferred

from sorna.curve_keys import CurveKeypair, generate
from sorna.errors import (
    AgentNotFound,
    AuthenticationFailed,
    InvalidRequest,
    QuotaExceeded,
    RateLimitExceeded,
    SornaError,
)
from sorna.live.memory import MemoryAnnouncements
from sorna.manager import enrolments
from sorna.manager.enrolments import AGENT_TOPIC, ANSWER, REQUEST, REVOKED, Enrolments, RedisTold, Ticket
from sorna.manager.interfaces import KernelEnded
from sorna.model.kernel import Usage
from sorna.sealing import Broken, Seal
from sorna.store.memory_agents import MemoryAgents, MemoryTickets
from tests.manager.world import OWNER, ManagerTestCase

ADMIN = "AKIAADMIN"
ENDPOINT = "tcp://192.0.2.7:6011"
MANAGERS = Seal(generate())


class EnrolmentTestCase(ManagerTestCase):
    """A manager that makes tickets, and an agent's keys."""

    def setUp(self) -> None:
        super().setUp()
        self.agents = MemoryAgents()
        self.announced: list[str] = []
        announcements = MemoryAnnouncements(self.redis)
        announcements.subscribe(AGENT_TOPIC, self.announced.append)
        self.enrolments = Enrolments(
            self.clock,
            self.agents,
            MemoryTickets(self.agents),
            self.kernels,
            self.directory,
            self.link,
            self.ending,
            announcements,
            MANAGERS,
            RedisTold("redis://192.0.2.1:6379", "pass"),
        )
        self.keys = generate()

    def ticket(self, *arguments: Any) -> Ticket:
        return self.done(self.enrolments.make_ticket(ADMIN, *arguments))

    def request(self, given: Ticket, agent_id: str = "a-1", keys: CurveKeypair | None = None, **changes: Any) -> bytes:
        """Seal a request as an agent does."""
        content = {
            "ticket": given.id.hex,
            "secret": given.secret.hex(),
            "agent_id": agent_id,
            "endpoint": ENDPOINT,
            **changes,
        }
        return Seal(keys or self.keys).close(json.dumps(content).encode(), given.manager_key, REQUEST)

    def enrol(self, ticket: Ticket, agent_id: str = "a-1", keys: CurveKeypair | None = None) -> Any:
        """Enrol as an agent does, and give what is in the answer."""
        own = keys or self.keys
        answer = self.done(self.enrolments.enrol(own.public, self.request(ticket, agent_id, own)))
        return json.loads(Seal(own).open(answer, ticket.manager_key, ANSWER, ticket.secret))

    def trusted(self) -> Any:
        return self.done(self.agents.public_keys())


class ExchangeTests(EnrolmentTestCase):
    """Who is enrolled by a ticket, and who is not."""

    def refused(self, error: type[SornaError], work: Any) -> str:
        """See that something is refused and nobody is trusted by it."""
        before = self.trusted()
        detail: str = self.fails(work, error).detail
        self.assertEqual(self.trusted(), before)
        return detail

    def test_enrolled(self) -> None:
        """The holder of a ticket is trusted with its own key, is told where Redis is, and every manager hears of it."""
        told = self.enrol(self.ticket())
        self.assertEqual(
            told,
            {
                "agent_id": "a-1",
                "manager_key": MANAGERS.keypair.public,
                "redis_addr": "redis://192.0.2.1:6379",
                "redis_password": "pass",
            },
        )
        self.assertEqual(self.trusted(), {"a-1": self.keys.public})
        self.assertEqual(self.announced, ["a-1"])

    def test_the_answer_is_for_the_holder_of_the_ticket(self) -> None:
        """Whoever lacks the agent's key or the ticket's secret cannot open the answer."""
        ticket = self.ticket()
        answer = self.done(self.enrolments.enrol(self.keys.public, self.request(ticket)))
        for keys, secret in ((generate(), ticket.secret), (self.keys, b"guess")):
            with self.assertRaises(Broken):
                Seal(keys).open(answer, ticket.manager_key, ANSWER, secret)

    def test_a_key_in_the_middle(self) -> None:
        """Who passes the request on with a key of its own enrols nobody: it is not what that key has sealed."""
        work = self.enrolments.enrol(generate().public, self.request(self.ticket()))
        self.assertIn("not made with a ticket", self.refused(AuthenticationFailed, work))

    def test_single_use(self) -> None:
        """Another agent cannot use a ticket again, nor the same one with another key or name."""
        ticket = self.ticket()
        self.enrol(ticket)
        for name, keys in (("a-2", generate()), ("a-1", generate()), ("a-2", self.keys)):
            work = self.enrolments.enrol(keys.public, self.request(ticket, name, keys))
            self.refused(AuthenticationFailed, work)

    def test_a_lost_answer(self) -> None:
        """The agent that used a ticket may ask again; nothing is done twice."""
        ticket = self.ticket()
        self.assertEqual(self.enrol(ticket), self.enrol(ticket))
        self.assertEqual(self.announced, ["a-1"])

    def test_a_copy_brings_no_revoked_agent_back(self) -> None:
        """A request that somebody kept and sends again after the agent was revoked enrols nobody."""
        ticket = self.ticket()
        request = self.request(ticket)
        self.done(self.enrolments.enrol(self.keys.public, request))
        self.done(self.enrolments.revoke("a-1"))
        self.refused(AuthenticationFailed, self.enrolments.enrol(self.keys.public, request))
        self.assertEqual(self.trusted(), {})

    def test_expired(self) -> None:
        """A ticket ends when it says so."""
        ticket = self.ticket(None, 1)
        self.assertEqual(ticket.expires_at, self.clock.seconds() + 60)
        self.clock.advance(60)
        self.refused(AuthenticationFailed, self.enrolments.enrol(self.keys.public, self.request(ticket)))

    def test_guessed(self) -> None:
        """An unknown ticket and a wrong secret are told apart by nobody."""
        ticket = self.ticket()
        guesses: list[dict[str, Any]] = [{"secret": "00" * 32}, {"ticket": uuid.uuid4().hex}, {"secret": ""}]
        details = {
            self.refused(AuthenticationFailed, self.enrolments.enrol(self.keys.public, self.request(ticket, **guess)))
            for guess in guesses
        }
        self.assertEqual(len(details), 1)
        self.enrol(ticket)

    def test_by_name(self) -> None:
        """A ticket for one agent is for no other, and can give it another key; one for anybody cannot."""
        self.enrol(self.ticket())
        new = generate()
        work = self.enrolments.enrol(new.public, self.request(self.ticket(), "a-1", new))
        self.assertIn("another key", self.refused(InvalidRequest, work))
        by_name = self.ticket("a-1")
        work = self.enrolments.enrol(new.public, self.request(by_name, "a-2", new))
        self.assertIn("for the agent a-1", self.refused(InvalidRequest, work))
        self.enrol(by_name, "a-1", new)
        self.assertEqual(self.trusted(), {"a-1": new.public})

    def test_nonsense(self) -> None:
        """What is in a request is checked, and a ticket is not used up by what is wrong."""
        ticket = self.ticket()
        for changes in (
            {"agent_id": "a b"},
            {"agent_id": "x" * 65},
            {"agent_id": "instances"},
            {"endpoint": "tcp://example.org:1"},
            {"endpoint": "ipc:///x"},
            {"endpoint": 5},
            {"secret": "zz"},
            {"ticket": "x"},
            {"secret": None},
            {"agent_id": "x" * 10_000},
        ):
            self.refused(InvalidRequest, self.enrolments.enrol(self.keys.public, self.request(ticket, **changes)))
            self.clock.advance(1)
        for message in (b"", b"[]", b"{", b"\xff", b"[" * 100_000):
            sealed = Seal(self.keys).close(message, ticket.manager_key, REQUEST)
            self.refused(InvalidRequest, self.enrolments.enrol(self.keys.public, sealed))
            self.clock.advance(1)
        self.enrol(ticket)

    def test_tickets_are_checked(self) -> None:
        """A ticket has a sensible length and name, and there are not too many."""
        for arguments in ((None, 0), (None, 1441), ("a b",), ("",)):
            self.fails(self.enrolments.make_ticket(ADMIN, *arguments), InvalidRequest)
        for _ in range(enrolments.MOST_TICKETS):
            self.ticket()
        self.fails(self.enrolments.make_ticket(ADMIN), QuotaExceeded)

    def test_the_rate_is_limited(self) -> None:
        """After a burst of attempts, good or bad, everybody waits; they are let in again at a steady rate."""
        ticket = self.ticket()
        for _ in range(enrolments.BURST):
            self.fails(self.enrolments.enrol(self.keys.public, b"guess"), AuthenticationFailed)
        error = self.fails(self.enrolments.enrol(self.keys.public, self.request(ticket)), RateLimitExceeded)
        self.assertEqual(error.reset, 500)
        self.clock.advance(0.5)
        self.enrol(ticket)
        self.fails(self.enrolments.enrol(self.keys.public, self.request(ticket)), RateLimitExceeded)

    def test_no_secret_is_shown(self) -> None:
        """Neither a ticket nor what agents are told shows its secret where it might be logged."""
        ticket = self.ticket()
        self.assertNotIn(ticket.secret.hex(), repr(ticket) + repr(self.enrolments))
        self.assertNotIn("pass", repr(self.enrolments.redis))
        stored = self.done(self.enrolments.tickets.find(ticket.id))
        self.assertNotIn(ticket.secret.hex(), str(vars(stored) if hasattr(stored, "__dict__") else stored))


class RevocationTests(EnrolmentTestCase):
    """Taking an agent back."""

    def setUp(self) -> None:
        super().setUp()
        self.done(self.agents.enrol("i-1", generate().public, 0))

    def status(self, token: str = "token-1") -> str:
        kernel = self.done(self.kernels.last_by_token(OWNER, token))
        assert kernel is not None
        return f"{kernel.status} {kernel.status_reason}".strip()

    def test_its_kernels_are_ended(self) -> None:
        """They end with a reason and their usage, their places are free, the agent is told, and everybody hears of it."""
        self.make()
        self.make("token-2")
        self.assertEqual(self.done(self.enrolments.revoke("i-1")), 2)
        for token in ("token-1", "token-2"):
            self.assertEqual(self.status(token), f"TERMINATED {REVOKED}")
        self.assertEqual(self.used(), 0)
        self.assertEqual(self.agent.kernels, set())
        self.assertEqual(self.trusted(), {})
        self.assertEqual(self.announced, ["i-1"])

    def test_an_agent_that_does_not_answer(self) -> None:
        """It has half a second; then its kernels are written down as ended all the same."""
        self.make()
        self.agent.script["destroy_kernel"] = Deferred
        revoking = self.start(self.enrolments.revoke("i-1"))
        self.assertNoResult(revoking)
        self.assertEqual(self.trusted(), {})
        self.clock.advance(enrolments.PARTING)
        self.assertEqual(self.successResultOf(revoking), 1)
        self.assertEqual(self.status(), f"TERMINATED {REVOKED}")
        self.assertEqual(self.announced, ["i-1"])

    def test_an_agent_that_is_not_there(self) -> None:
        """One that is dead already is revoked as well."""
        self.make()
        self.clock.advance(60)
        self.assertEqual(self.done(self.enrolments.revoke("i-1")), 1)
        self.assertEqual(self.status(), f"TERMINATED {REVOKED}")

    def test_nobody(self) -> None:
        """There is nothing to revoke of an agent that is not enrolled, or not any more."""
        self.fails(self.enrolments.revoke("nobody"), AgentNotFound)
        self.done(self.enrolments.revoke("i-1"))
        self.fails(self.enrolments.revoke("i-1"), AgentNotFound)
        self.assertEqual(self.announced, ["i-1"])

    def test_an_agent_speaks_for_its_own_kernels_only(self) -> None:
        """News of a kernel's end counts from the agent that has it, and from no other."""
        kernel_id = self.make()
        for agent_id, status in (("i-2", "RUNNING"), ("i-1", "TERMINATED idle-timeout")):
            news = KernelEnded(agent_id, kernel_id, "idle-timeout", Usage())
            self.successResultOf(Deferred.fromCoroutine(self.ending.on_kernel_ended(news)))
            self.assertEqual(self.status(), status)
