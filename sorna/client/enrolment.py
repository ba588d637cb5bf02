"""How an agent's host becomes part of an installation: the ticket as a text, the exchange of keys, and the files it leaves.

The agent's side of what :mod:`sorna.manager.enrolments` describes. Knows the wire and files, no flags and no terminal.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from attrs import field, frozen
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.protocol import Factory, Protocol

from sorna.client.api import QUICK, ApiClient
from sorna.client.wire import ApiError, host_header, json_object, raise_problem, text_of
from sorna.curve_keys import CurveKeypair, authorise, valid_public_key
from sorna.sealing import Broken, Seal

PREFIX = "sorna-ticket-1."
LONGEST_TICKET = 8 * 1024
MOST_ADDRESSES = 8
PATH = "/agents/enroll"
ENROLLED_FILE = "enrolled.toml"
MANAGERS = "managers"
# What is sealed, and for whom; the managers' side has the same words.
REQUEST, ANSWER = b"sorna enrolment request 1", b"sorna enrolment answer 1"
CONNECT_TIMEOUT = 10.0


class TicketUnusable(Exception):
    """The text is no ticket, or not a whole one."""


@frozen
class Ticket:
    """A ticket as it is handed from an administrator to an agent's host.

    :ivar addresses: URLs of managers.
    :ivar manager_key: the managers' public key, in Z85.
    :ivar agent_id: the only agent that it is for; None for any new one.
    :ivar expires_at: when it ends, as the server wrote it; for human readers.
    """

    addresses: tuple[str, ...]
    id: str
    secret: bytes = field(repr=False)
    manager_key: str
    agent_id: str | None
    expires_at: str

    def text(self) -> str:
        """Give the ticket as one word."""
        content = {
            "a": self.addresses, "i": self.id, "s": self.secret.hex(), "k": self.manager_key, "n": self.agent_id,
            "e": self.expires_at,
        }  # fmt: skip
        return PREFIX + base64.urlsafe_b64encode(json.dumps(content).encode()).decode("ascii").rstrip("=")


def read_ticket(text: str) -> Ticket:
    """Read a ticket.

    :raises TicketUnusable: it is none.
    """
    word = text.strip()
    if not word:
        raise TicketUnusable("There is no ticket: give it on standard input or by --ticket-file.")
    if not word.startswith(PREFIX) or len(word) > LONGEST_TICKET:
        raise TicketUnusable("That is no ticket as `sorna agent ticket` prints it.")
    encoded = word.removeprefix(PREFIX)
    try:
        content = json.loads(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))
        addresses = tuple(str(address) for address in content["a"])[:MOST_ADDRESSES]
        for address in addresses:
            host_header(address)
        name = content["n"]
        ticket = Ticket(
            addresses=addresses,
            id=str(content["i"]),
            secret=bytes.fromhex(content["s"]),
            manager_key=str(content["k"]),
            agent_id=None if name is None else str(name),
            expires_at=str(content["e"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise TicketUnusable("The ticket is damaged: was all of it copied?") from error
    if not addresses or not valid_public_key(ticket.manager_key):
        raise TicketUnusable("The ticket is damaged: it names no manager.")
    return ticket


@frozen
class Enrolled:
    """What an agent needs to serve."""

    agent_id: str
    redis_address: str = field(repr=False)
    redis_password: str | None = field(repr=False)


async def exchange(api: ApiClient, ticket: Ticket, keys: CurveKeypair, agent_id: str, endpoint: str) -> Enrolled:
    """Exchange keys with the first manager of the ticket that can be reached.

    :raises ApiError: none can be, or one refuses.
    """
    seal = Seal(keys)
    content = {"ticket": ticket.id, "secret": ticket.secret.hex(), "agent_id": agent_id, "endpoint": endpoint}
    sealed = seal.close(json.dumps(content).encode("utf-8"), ticket.manager_key, REQUEST)
    body = json.dumps({"public_key": keys.public, "sealed": base64.b64encode(sealed).decode("ascii")}).encode("ascii")
    answer = await _first_answer(api, ticket.addresses, body)
    try:
        opened = seal.open(base64.b64decode(answer, validate=True), ticket.manager_key, ANSWER, ticket.secret)
        told: Mapping[str, Any] = json.loads(opened)
        password = told["redis_password"]
        return Enrolled(str(told["agent_id"]), str(told["redis_addr"]), None if password is None else str(password))
    except (Broken, ValueError, KeyError, TypeError) as error:
        raise ApiError(
            200,
            "unreadable-answer",
            "The answer is not from the managers that made the ticket, or was changed on its way; nothing was kept of it.",
        ) from error


async def _first_answer(api: ApiClient, addresses: Sequence[str], body: bytes) -> str:
    unreachable: ApiError | None = None
    for address in addresses:
        headers = {b"Content-Type": b"application/json", b"Host": host_header(address).encode("ascii")}
        try:
            reply = await api.transfer("POST", address.rstrip("/") + PATH, headers, body, deadline=QUICK)
        except ApiError as error:
            if error.status:
                raise
            unreachable = ApiError(0, error.type, f"No answer from {address} ({error.type}).")
            continue
        if reply.status != 200:
            raise_problem(reply)
        return text_of(json_object(reply), "sealed")
    raise unreachable or ApiError(0, "unreachable", "The ticket names no manager.")


def keep(directory: Path, ticket: Ticket, enrolled: Enrolled, address: str, port: int) -> Path:
    """Leave what ``twistd sorna-agent`` needs in an agent's directory, and give the file with its options.

    :param directory: where the agent's keys are.
    :param address: an IP address that the agent listens on.
    :raises OSError: it cannot be written.
    """
    authorise(directory / "authorised", MANAGERS, ticket.manager_key)
    options: dict[str, str | int] = {
        "agent-id": enrolled.agent_id,
        "agent-ip": address,
        "agent-port": port,
        "redis-addr": enrolled.redis_address,
    }
    if enrolled.redis_password is not None:
        options["redis-password"] = enrolled.redis_password
    text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in options.items())
    path = directory / ENROLLED_FILE
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 -- a descriptor has no path
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


class _Nothing(Protocol):
    """A connection over which nothing is said."""


async def own_address(reactor: Any, url: str) -> str:
    """Find the IP address from which this host reaches a server, by connecting to it.

    :raises ApiError: it cannot be reached.
    """
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    endpoint = HostnameEndpoint(reactor, parts.hostname or "", port, timeout=CONNECT_TIMEOUT)
    try:
        connection: Any = await endpoint.connect(Factory.forProtocol(_Nothing))
    except Exception as error:
        raise ApiError(0, "unreachable", f"Cannot reach {url}: {error}") from error
    address = str(connection.transport.getHost().host)
    connection.transport.abortConnection()
    return address.partition("%")[0]


def is_loopback(url: str) -> bool:
    """Tell whether a URL leads to the host that follows it."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def only_on_this_host(redis_address: str) -> bool:
    """Tell whether a Redis address means something on its own host only."""
    return redis_address.startswith("unix:") or is_loopback(redis_address)
