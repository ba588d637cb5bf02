"""The routes of enrolment: who may ask what, and what a new agent's host is answered."""

from __future__ import annotations

import base64
import json
import uuid
from typing import Any

from twisted.internet.defer import Deferred

from sorna.curve_keys import generate
from sorna.gateway.enrolment import LONGEST_BODY
from sorna.manager.enrolments import ANSWER, BURST, Ticket
from sorna.sealing import Seal
from sorna.testing.gateway import encode
from tests.gateway.base import OTHER, Answer, GatewayTestCase
from tests.gateway.enrolment_routes import ENROLL, KEYS, NAME, RESTART, TICKET, administrator, prepare, sealed

JSON = {b"Content-Type": b"application/json"}


class EnrolmentTests(GatewayTestCase):
    """Tickets, agents that enrol themselves, and revocation."""

    def setUp(self) -> None:
        super().setUp()
        self.admin = administrator(self.keypairs)

    def done(self, work: Any) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(work))

    def ticket(self, **content: Any) -> Ticket:
        """Have a ticket made over the wire."""
        answer = self.request("POST", "/v3" + TICKET, content)
        self.assertEqual(answer.status, 201, answer)
        said = answer.json
        return Ticket(uuid.UUID(said["id"]), bytes.fromhex(said["secret"]), said["manager_key"], said["agent_id"], 0.0)

    def enroll(self, content: Any) -> Answer:
        """Ask without a signature."""
        return self.send("POST", ENROLL, JSON, encode(content))

    def test_from_a_ticket_to_an_agent(self) -> None:
        """A ticket that an administrator had made enrols an agent, whose answer only it can open."""
        ticket = self.ticket(agent_id=NAME, minutes=1)
        self.assertEqual((ticket.manager_key, ticket.agent_id), (self.world.manager_keys.public, NAME))
        answer = self.enroll(sealed(ticket))
        self.assertEqual(answer.status, 200, answer)
        opened = Seal(KEYS).open(base64.b64decode(answer.json["sealed"]), ticket.manager_key, ANSWER, ticket.secret)
        self.assertEqual(json.loads(opened)["agent_id"], NAME)
        self.assertEqual(self.done(self.world.agents.public_keys()), {NAME: KEYS.public})
        self.assertNotIn(b"pass", answer.body)

    def test_a_ticket_for_anybody(self) -> None:
        """Without a name and a time a ticket is for any new agent and lasts ten minutes."""
        answer = self.request("POST", "/v3" + TICKET, {})
        self.assertEqual((answer.json["agent_id"], answer.json["expires_at"]), (None, "2017-07-14T02:50:00+00:00"))

    def test_for_administrators(self) -> None:
        """Others get no ticket and revoke nobody."""
        self.done(self.world.agents.enrol(NAME, KEYS.public, 0))
        for method, target in (("POST", TICKET), ("DELETE", f"/admin/agents/{NAME}")):
            answer = self.request(method, target, {}, keypair=OTHER)
            self.assert_problem(answer, 403, "generic-forbidden")
        self.assertEqual(self.done(self.world.agents.public_keys()), {NAME: KEYS.public})

    def test_bad_tickets(self) -> None:
        """What does not open is answered like a bad signature; what cannot be read, by its name."""
        ticket = self.ticket()
        good = sealed(ticket)
        for changes, status, slug in (
            ({"public_key": generate().public}, 401, "auth-failed"),
            ({"public_key": "x"}, 401, "auth-failed"),
            ({"sealed": ""}, 401, "auth-failed"),
            ({"sealed": "AAAA"}, 401, "auth-failed"),
            ({"sealed": "not base64!"}, 400, "invalid-api-params"),
            ({"sealed": 1}, 400, "invalid-api-params"),
            ({"public_key": None}, 400, "invalid-api-params"),
        ):
            self.assert_problem(self.enroll({**good, **changes}), status, slug)
        self.assert_problem(self.enroll(sealed(ticket, secret="00")), 401, "auth-failed")
        self.assert_problem(self.enroll({**good, "more": "x" * LONGEST_BODY}), 413, "payload-too-large")
        self.assertEqual(self.done(self.world.agents.public_keys()), {})
        self.assertEqual(self.enroll(good).status, 200)

    def test_too_many_attempts(self) -> None:
        """Whoever tries too often is told when to come again."""
        for _ in range(BURST):
            self.enroll({"public_key": KEYS.public, "sealed": "AAAA"})
        answer = self.enroll(sealed(self.ticket()))
        self.assert_problem(answer, 429, "rate-limit-exceeded")
        self.assertEqual(answer.headers["retry-after"], "1")

    def test_restart(self) -> None:
        """An agent that lives is told to replace its program; others are not there."""
        self.assert_problem(self.request("POST", f"/v3/admin/agents/{NAME}/restart"), 404, "agent-not-found")
        prepare(self.done, self.world, RESTART)
        self.assertEqual(self.request("POST", f"/v3/admin/agents/{NAME}/restart").status, 204)
        self.assertEqual(self.request("POST", f"/v3/admin/agents/{NAME}/restart", keypair=OTHER).status, 403)

    def test_revoke(self) -> None:
        """A revoked agent is trusted no longer, and is not there a second time."""
        self.done(self.world.agents.enrol(NAME, KEYS.public, 0))
        answer = self.request("DELETE", f"/v3/admin/agents/{NAME}")
        self.assertEqual((answer.status, answer.json), (200, {"kernels": 0}))
        self.assertEqual(self.done(self.world.agents.public_keys()), {})
        self.assert_problem(self.request("DELETE", f"/v3/admin/agents/{NAME}"), 404, "agent-not-found")
        self.assert_problem(self.request("DELETE", "/v3/admin/agents/%00"), 400, "invalid-api-params")
