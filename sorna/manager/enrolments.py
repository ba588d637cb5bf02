"""How agents come to be trusted and cease to be: one-time tickets, the exchange of keys, and revocation.

Knows no HTTP. An administrator has a ticket made: a random secret of which a hash is kept, and the managers' public key. Whoever
holds it, on the new agent's host, seals a message for that key with the secret in it; see Note [The exchange].

Note [The exchange]
===================
The connection may be in anybody's hands. The ticket, which came another way, names the managers' public key, so nobody else
can read the request, and the secret in it says that its sender holds the ticket. The sender's own public key is what the request
is sealed with: nobody can put another in its place and still have it open. The answer is sealed for that key by the managers' key
and opens only together with the ticket's secret; so it is from them, and for this ticket. A copy of the request, sent again, gets
the same answer, which is of use to the holder of that key alone, and enrols nobody: the ticket is used. So an agent whose
answer was lost may simply ask again.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import define, field, frozen
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from sorna.errors import (
    AgentNotFound,
    AuthenticationFailed,
    InvalidRequest,
    QuotaExceeded,
    RateLimitExceeded,
)
from sorna.manager.ending import Ending
from sorna.manager.enrolment_interfaces import AgentStore, StoredTicket, TicketStore
from sorna.manager.interfaces import AgentDirectory, AgentLink, Announcements, KernelStore
from sorna.model.agent import Agent
from sorna.model.agent_identity import valid_agent_name, valid_endpoint
from sorna.model.kernel import Kernel, Usage
from sorna.sealing import Broken, Seal

# The text of an announcement is the id of the agent that was enrolled or revoked.
AGENT_TOPIC = "sorna.agent"
# What is sealed, and for whom; the agent's side has the same words.
REQUEST, ANSWER = b"sorna enrolment request 1", b"sorna enrolment answer 1"
SECRET_BYTES = 32
# Minutes.
SHORTEST, USUAL, LONGEST = 1, 10, 24 * 60
MOST_TICKETS = 1000
# Attempts to enrol, good or bad, by anybody, at this manager.
BURST, PER_SECOND = 20, 2.0
# Seconds that a revoked agent has to end its kernels by itself, before nobody talks to it any more.
PARTING = 0.5
AT_ONCE = 16
MOST_TEXT = 256
REVOKED = "agent-revoked"
_REFUSED = "the ticket is unknown, was used or has expired"


@frozen
class Ticket:
    """A ticket as its administrator gets it, once.

    :ivar manager_key: the managers' public key, in Z85.
    :ivar expires_at: seconds since the epoch.
    """

    id: uuid.UUID
    secret: bytes = field(repr=False)
    manager_key: str
    agent_id: str | None
    expires_at: float


@frozen
class RedisTold:
    """Where agents find the managers' Redis."""

    address: str = field(repr=False)  # a URL may hold a password
    password: str | None = field(default=None, repr=False)


@frozen
class _Wish:
    """What a request asks for, once it is opened."""

    ticket_id: uuid.UUID
    secret: bytes = field(repr=False)
    agent_id: str
    endpoint: str


@define
class Enrolments:
    """Makes tickets, enrols agents, has them restart and revokes them.

    :ivar seal: seals in the name of the managers' key.
    :ivar redis: what an enrolled agent is told.
    """

    clock: IReactorTime
    agents: AgentStore
    tickets: TicketStore
    kernels: KernelStore
    directory: AgentDirectory
    link: AgentLink
    ending: Ending
    announcements: Announcements
    seal: Seal
    redis: RedisTold
    _allowance: float = BURST
    _counted_at: float = 0.0

    _log = Logger()

    async def make_ticket(self, made_by: str, agent_id: str | None = None, minutes: float = USUAL) -> Ticket:
        """Make a ticket that one agent can enrol itself with.

        :param made_by: the access key of who asks.
        :param agent_id: who alone may use it; only such a ticket can give an agent that is enrolled another key.
        :raises InvalidRequest: the id is none, or the time is out of range.
        :raises QuotaExceeded: too many tickets are open.
        """
        if agent_id is not None and not valid_agent_name(agent_id):
            raise InvalidRequest("agent_id must be up to 64 of A-Z a-z 0-9 . _ -")
        if not SHORTEST <= minutes <= LONGEST:
            raise InvalidRequest(f"minutes must be a number from {SHORTEST} to {LONGEST}")
        now = self.clock.seconds()
        ticket_id, secret = uuid.uuid4(), secrets.token_bytes(SECRET_BYTES)
        stored = StoredTicket(ticket_id, _hash(secret), agent_id, made_by, now, now + minutes * 60)
        if not await self.tickets.add(stored, MOST_TICKETS):
            raise QuotaExceeded(f"{MOST_TICKETS} tickets are open: use them, or wait until they have expired")
        self._log.info("{access_key} made a ticket for {agent}", access_key=made_by, agent=agent_id or "a new agent")
        return Ticket(ticket_id, secret, self.seal.keypair.public, agent_id, stored.expires_at)

    async def enrol(self, public_key: str, sealed: bytes) -> bytes:
        """Enrol the agent of this key by what it has sealed for the managers, and give the sealed answer.

        :raises AuthenticationFailed: it does not open, or the ticket does not count; nothing says which part of it.
        :raises InvalidRequest: the ticket counts, and what it is to be used for is wrong; the ticket stays as it is.
        :raises RateLimitExceeded: too many try at this manager.
        """
        self._count()
        try:
            wish = _read(self.seal.open(sealed, public_key, REQUEST))
        except Broken as error:
            raise AuthenticationFailed("this was not made with a ticket of this installation") from error
        ticket = await self.tickets.find(wish.ticket_id)
        known = ticket.secret_hash if ticket is not None else _hash(b"")
        if not hmac.compare_digest(known, _hash(wish.secret)) or ticket is None:
            raise AuthenticationFailed(_REFUSED)
        if not valid_agent_name(wish.agent_id):
            raise InvalidRequest("the agent's id must be up to 64 of A-Z a-z 0-9 . _ -")
        if not valid_endpoint(wish.endpoint):
            raise InvalidRequest("the agent's endpoint must be tcp://ADDRESS:PORT with an IP address")
        if ticket.agent_id not in {None, wish.agent_id}:
            raise InvalidRequest(f"the ticket is for the agent {ticket.agent_id}")
        if await self.tickets.use(ticket, wish.agent_id, public_key, wish.endpoint, self.clock.seconds()):
            self._log.info(
                "agent {agent_id} at {endpoint} was enrolled by a ticket of {access_key}, key {key}",
                agent_id=wish.agent_id,
                endpoint=wish.endpoint,
                access_key=ticket.made_by,
                key=public_key,
            )
            await self._announce(wish.agent_id)
        else:
            await self._check_used(wish, public_key)
        return self.seal.close(self._answer(wish.agent_id), public_key, ANSWER, wish.secret)

    async def _check_used(self, wish: _Wish, public_key: str) -> None:
        """Find out why a ticket could not be used; no error means that it was, by this very agent."""
        ticket = await self.tickets.find(wish.ticket_id)
        if ticket is None or (ticket.used_by is None and ticket.expires_at <= self.clock.seconds()):
            raise AuthenticationFailed(_REFUSED)
        if ticket.used_by is None:
            raise InvalidRequest(
                f"there is an agent {wish.agent_id} with another key: choose another id, or have a ticket made for this one"
            )
        trusted = (await self.agents.public_keys()).get(wish.agent_id)
        if (ticket.used_by, ticket.used_key, trusted) != (wish.agent_id, public_key, public_key):
            raise AuthenticationFailed(_REFUSED)

    def _answer(self, agent_id: str) -> bytes:
        content = {
            "agent_id": agent_id,
            "manager_key": self.seal.keypair.public,
            "redis_addr": self.redis.address,
            "redis_password": self.redis.password,
        }
        return json.dumps(content).encode("utf-8")

    def _count(self) -> None:
        now = self.clock.seconds()
        self._allowance = min(BURST, self._allowance + (now - self._counted_at) * PER_SECOND)
        self._counted_at = now
        if self._allowance < 1:
            wait = (1 - self._allowance) / PER_SECOND
            raise RateLimitExceeded("too many attempts to enrol an agent", reset=round(wait * 1000))
        self._allowance -= 1

    async def revoke(self, agent_id: str) -> int:
        """Take an agent back: no manager talks to it any more, and its kernels are written down as ended.

        It is told to end its kernels, and has half a second to do so; whether it does changes nothing.

        :returns: how many kernels it had.
        :raises AgentNotFound: there is no such agent, or it is revoked.
        """
        agent = await self.directory.find(agent_id)
        if not await self.agents.revoke(agent_id, self.clock.seconds()):
            raise AgentNotFound("there is no such agent")
        self._log.info("agent {agent_id} was revoked", agent_id=agent_id)
        try:
            used = await self._part([kernel.id for kernel in await self._kernels_of(agent_id)], agent)
            # First written down, then announced: whoever is cut off by the announcement finds the reason.
            ended = list(used.items())
            for first in range(0, len(ended), AT_ONCE):
                work = [self._end(kernel_id, usage) for kernel_id, usage in ended[first : first + AT_ONCE]]
                await DeferredList([Deferred.fromCoroutine(one) for one in work])
        finally:
            await self._announce(agent_id)
        return len(ended)

    async def restart(self, agent_id: str) -> None:
        """Have an agent replace its program by the one that is installed now; its kernels live on.

        :raises AgentNotFound: no such agent is alive.
        :raises Unavailable: it cannot now; the detail says why.
        :raises AgentError: it does not answer.
        """
        agent = await self.directory.find(agent_id)
        if agent is None:
            raise AgentNotFound("there is no such agent, or it does not live")
        await self.link.restart_program(agent.address)
        self._log.info("agent {agent_id} replaces its program", agent_id=agent_id)

    async def _kernels_of(self, agent_id: str) -> Sequence[Kernel]:
        kernels: list[Kernel] = []
        page = await self.kernels.live(agent_id=agent_id)
        while page:
            kernels += page
            page = await self.kernels.live(agent_id=agent_id, after=page[-1].id)
        return kernels

    async def _part(self, kernel_ids: Sequence[uuid.UUID], agent: Agent | None) -> Mapping[uuid.UUID, Usage | None]:
        """Tell an agent to end its kernels, and give what each has used, as far as it answers in time."""
        used: dict[uuid.UUID, Usage | None] = dict.fromkeys(kernel_ids)
        if agent is None:
            return used
        ending = [
            Deferred.fromCoroutine(self.link.destroy_kernel(agent.address, one, REVOKED)).addTimeout(
                PARTING, self.clock
            )
            for one in kernel_ids
        ]
        answers = await DeferredList(ending, consumeErrors=True)
        used.update((one, answer) for one, (ended, answer) in zip(kernel_ids, answers, strict=True) if ended)
        return used

    async def _end(self, kernel_id: uuid.UUID, usage: Usage | None) -> None:
        # What cannot be written now the managers' regular look ends: for them its agent is not there any more.
        with self._log.failuresHandled("while ending {kernel_id} of a revoked agent", kernel_id=str(kernel_id)):
            await self.ending.finish(kernel_id, REVOKED, usage)

    async def _announce(self, agent_id: str) -> None:
        """Tell every manager; when that fails they learn it within a second, because they look again as often."""
        with self._log.failuresHandled("announcing a change of agents"):
            await self.announcements.publish(AGENT_TOPIC, agent_id)


def _hash(secret: bytes) -> str:
    return hashlib.sha256(secret).hexdigest()


def _read(message: bytes) -> _Wish:
    """Read a request that was opened.

    :raises InvalidRequest: it is none.
    """
    try:
        content: Any = json.loads(message)
        return _Wish(
            ticket_id=uuid.UUID(hex=_text(content, "ticket")),
            secret=bytes.fromhex(_text(content, "secret")),
            agent_id=_text(content, "agent_id"),
            endpoint=_text(content, "endpoint"),
        )
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        raise InvalidRequest("the sealed request has no ticket, secret, agent_id and endpoint") from error


def _text(content: Any, name: str) -> str:
    text = content[name]
    if not isinstance(text, str) or len(text) > MOST_TEXT:
        raise ValueError(name)
    return text
