"""Enrolment of agents: administrators get tickets and revoke agents; a new agent's host brings a ticket and asks for the keys.

The one route that needs no signature takes a message sealed for the managers' key, and answers with one that is sealed for the
agent's; what is in them is :mod:`sorna.manager.enrolments`'s.
"""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import ClassVar

from attrs import frozen

from sorna.errors import (
    AgentNotFound,
    AuthenticationFailed,
    Forbidden,
    InvalidRequest,
    QuotaExceeded,
    RateLimitExceeded,
)
from sorna.gateway.call import Access, Call, Reply, json_reply, no_content
from sorna.gateway.described import NOTHING, TEXT, WHOLE, Described, exactly, json_content, open_object, optional
from sorna.gateway.interfaces import Operations
from sorna.gateway.parameters import Parameters
from sorna.gateway.problems import PayloadTooLarge
from sorna.gateway.router import Router
from sorna.manager.enrolments import LONGEST, SHORTEST, USUAL, Enrolments

LONGEST_BODY = 8 * 1024

_MINUTES = {**WHOLE, "minimum": SHORTEST, "maximum": LONGEST}
_TICKET = Described(
    body=json_content(open_object(agent_id=optional(TEXT), minutes=optional(_MINUTES))),
    answers={
        201: json_content(
            exactly(
                id=TEXT,
                secret=TEXT,
                manager_key=TEXT,
                agent_id=optional(TEXT),
                expires_at={"type": "string", "format": "date-time"},
            )
        )
    },
    raises=(Forbidden, QuotaExceeded),
)
_REVOKE = Described(answers={200: json_content(exactly(kernels=WHOLE))}, raises=(Forbidden, AgentNotFound))
_RESTART = Described(answers={204: NOTHING}, raises=(Forbidden, AgentNotFound))
_ENROLL = Described(
    body=json_content(open_object("public_key", "sealed", public_key=TEXT, sealed=TEXT)),
    answers={200: json_content(exactly(sealed=TEXT))},
    raises=(AuthenticationFailed, RateLimitExceeded, PayloadTooLarge),
)


@frozen
class EnrolmentRoutes:
    """The routes of enrolment."""

    enrolments: Enrolments
    operations: Operations

    router: ClassVar[Router[EnrolmentRoutes]] = Router()

    @router.route("POST", "/admin/agents/ticket", needs_ready=True, described=_TICKET)
    async def ticket(self, call: Call) -> Reply:
        """Make a ticket that one agent can enrol itself with; for administrators."""
        _require_administrator(call)
        body = Parameters(call.json_object())
        minutes = body.whole_number("minutes")
        work = self.enrolments.make_ticket(
            call.access_key, body.optional_text("agent_id", 64), USUAL if minutes is None else minutes
        )
        ticket = await self.operations.detach(work)
        content = {
            "id": ticket.id.hex,
            "secret": ticket.secret.hex(),
            "manager_key": ticket.manager_key,
            "agent_id": ticket.agent_id,
            "expires_at": datetime.fromtimestamp(ticket.expires_at, UTC).isoformat(),
        }
        return json_reply(content, 201)

    @router.route("DELETE", "/admin/agents/<agent>", needs_ready=True, described=_REVOKE)
    async def revoke(self, call: Call) -> Reply:
        """Take an agent back and end its kernels; for administrators."""
        _require_administrator(call)
        ended = await self.operations.detach(self.enrolments.revoke(call.values["agent"]))
        return json_reply({"kernels": ended})

    @router.route("POST", "/admin/agents/<agent>/restart", needs_ready=True, described=_RESTART)
    async def restart(self, call: Call) -> Reply:
        """Have an agent replace its program while its kernels live on; for administrators."""
        _require_administrator(call)
        await self.operations.detach(self.enrolments.restart(call.values["agent"]))
        return no_content()

    @router.route("POST", "/agents/enroll", access=Access.TOKEN, needs_ready=True, described=_ENROLL)
    async def enroll(self, call: Call) -> Reply:
        """Enrol the agent that sealed this with a ticket in it, and tell it what it needs to serve."""
        if len(call.body) > LONGEST_BODY:
            raise PayloadTooLarge(f"at most {LONGEST_BODY} bytes")
        if not call.body:
            raise AuthenticationFailed("there is no ticket")
        body = Parameters(call.json_object())
        public_key, text = body.required_text("public_key"), body.required_text("sealed")
        try:
            sealed = base64.b64decode(text, validate=True)
        except ValueError:
            raise InvalidRequest("sealed must be base64") from None
        answer = await self.operations.detach(self.enrolments.enrol(public_key, sealed))
        return json_reply({"sealed": base64.b64encode(answer).decode("ascii")})


def _require_administrator(call: Call) -> None:
    if not call.caller.is_admin:
        raise Forbidden("this is for administrators")
