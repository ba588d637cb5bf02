"""What the table of every route needs for those of enrolment: bodies that they accept, an administrator, and an agent to revoke."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, cast

from attrs import evolve
from twisted.internet.task import Clock

from sorna.curve_keys import CurveKeypair, generate
from sorna.manager.enrolments import REQUEST, Ticket
from sorna.model.agent import Heartbeat
from sorna.model.keypair import Keypair
from sorna.sealing import Seal
from sorna.testing.administration import MemoryWorld
from sorna.testing.gateway import EXAMPLE, MemoryKeypairs

NAME = "i-1"
ENDPOINT = "tcp://192.0.2.7:6011"
TICKET, REVOKE, ENROLL = "/admin/agents/ticket", "/admin/agents/<agent>", "/agents/enroll"
RESTART = "/admin/agents/<agent>/restart"
BODIES: Mapping[tuple[str, str], Any] = {
    ("POST", TICKET): {"minutes": 5},
    ("POST", ENROLL): {"public_key": "filled in", "sealed": "when there is a ticket"},
}
#: POST routes that read no body.
BODILESS = frozenset({("POST", RESTART)})
TYPED: Mapping[tuple[str, str], Mapping[str, Any]] = {("POST", TICKET): {"minutes": "5", "agent_id": 1}}
KEYS = generate()


def administrator(keypairs: MemoryKeypairs) -> Keypair:
    """Make the example keypair an administrator's, and give it."""
    keypair = keypairs.all[EXAMPLE.access_key] = evolve(EXAMPLE, is_admin=True)
    return keypair


def sealed(ticket: Ticket, keys: CurveKeypair = KEYS, **changes: Any) -> dict[str, str]:
    """Give the body of a request to enrol."""
    content = {
        "ticket": ticket.id.hex,
        "secret": ticket.secret.hex(),
        "agent_id": NAME,
        "endpoint": ENDPOINT,
        **changes,
    }
    message = Seal(keys).close(json.dumps(content).encode(), ticket.manager_key, REQUEST)
    return {"public_key": keys.public, "sealed": base64.b64encode(message).decode("ascii")}


def prepare(do: Callable[[Coroutine[Any, Any, Any]], Any], world: MemoryWorld, path: str) -> Any:
    """Enrol an agent that can be revoked, or make a ticket and give the body that uses it."""
    if path in {REVOKE, RESTART}:
        do(world.agents.enrol(NAME, KEYS.public, 0))
        beat = Heartbeat(NAME, "first", ENDPOINT, KEYS.public, frozenset({"c"}), frozenset(), 5, "none", {})
        do(world.heartbeats.beat(beat, 3.0))
    if path != ENROLL:
        return None
    # More attempts than one manager allows at once are made one after another.
    cast("Clock", world.enrolments.clock).advance(0.5)
    return sealed(do(world.enrolments.make_ticket(EXAMPLE.access_key)))
