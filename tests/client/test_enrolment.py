"""``sorna agent ticket``, ``enroll`` and ``revoke`` against a gateway in memory, and what they leave on the agent's host."""

from __future__ import annotations

import base64
import json
import stat
import tomllib
from pathlib import Path
from typing import Any

from attrs import evolve
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure

from sorna.client.api import ApiClient
from sorna.client.cli import cli
from sorna.client.configuration import ClientConfiguration
from sorna.client.door import Command, Door
from sorna.client.enrolment import (
    PREFIX,
    Ticket,
    TicketUnusable,
    is_loopback,
    only_on_this_host,
    read_ticket,
)
from sorna.client.wire import ApiError
from sorna.config import agent_config
from sorna.curve_keys import generate, load_or_make
from sorna.manager import enrolments
from sorna.testing.gateway import EXAMPLE
from sorna.testing.unit import UnitTestCase
from tests.gateway.base import OTHER, GatewayTestCase
from tests.gateway.enrolment_routes import RESTART, administrator, prepare

ENDPOINT = "http://127.0.0.1:8081"
TICKET = Ticket((ENDPOINT,), "00" * 16, b"secret", generate().public, None, "soon")


class TicketTests(UnitTestCase):
    """The ticket as one word."""

    def test_round_trip(self) -> None:
        """What was written is read, with blanks around it; its secret is not shown."""
        for ticket in (TICKET, evolve(TICKET, agent_id="a-1", addresses=("https://a.example", "http://[::1]:1/x"))):
            self.assertEqual(read_ticket(f"\n {ticket.text()} \n"), ticket)
            self.assertRegex(ticket.text(), r"^[A-Za-z0-9._-]+$")
            self.assertNotIn(ticket.secret.hex(), repr(ticket))

    @given(st.text(max_size=50) | st.text(max_size=50).map(lambda text: PREFIX + text))
    def test_anything_is_a_ticket_or_refused(self, text: str) -> None:
        """No text does anything but be refused with a sentence."""
        with self.assertRaises(TicketUnusable):
            read_ticket(text)

    def test_damaged(self) -> None:
        """A ticket that is cut off, too long, or lacks something is refused."""
        whole = TICKET.text()
        content = json.loads(base64.urlsafe_b64decode(whole.removeprefix(PREFIX) + "=="))
        changes: list[dict[str, Any]] = [
            *({"a": one} for one in ([], ["ftp://x"], 5, ["x"])),
            *({"s": one} for one in ("zz", 1)),
            {"k": "short"},
        ]
        changed = [{**content, **change} for change in changes]
        lacking = [{name: content[name] for name in content if name != one} for one in content]
        encoded = [
            PREFIX + base64.urlsafe_b64encode(json.dumps(one).encode()).decode() for one in [*changed, *lacking, []]
        ]
        for text in (whole[:-9], whole + "A" * 9000, "", *encoded):
            with self.assertRaises(TicketUnusable):
                read_ticket(text)

    def test_where_addresses_lead(self) -> None:
        """What means this host only is known as that."""
        for url, own in (("http://127.0.0.1:1", True), ("http://[::1]", True), ("http://localhost", True)):
            self.assertIs(is_loopback(url), own)
        for address, own in (("unix:///x", True), ("redis://127.0.0.1:1", True), ("redis://192.0.2.1:1", False)):
            self.assertIs(only_on_this_host(address), own)

    def test_both_sides_have_the_same_words(self) -> None:
        """The client and the manager name what they seal alike."""
        from sorna.client import enrolment  # noqa: PLC0415

        self.assertEqual((enrolment.REQUEST, enrolment.ANSWER), (enrolments.REQUEST, enrolments.ANSWER))


class CommandTests(GatewayTestCase):
    """From a ticket to an agent's state directory, and back."""

    def setUp(self) -> None:
        super().setUp()
        administrator(self.keypairs)
        self.outcome: Any = None
        self.state = Path(self.mktemp())
        self.http: Any = self.treq
        self.configurations: list[ClientConfiguration] = []

    def invoke(self, *arguments: str, text: str = "", keypair: Any = EXAMPLE) -> Result:
        """Run one command against the gateway in memory."""
        self.outcome = None

        def perform(configuration: ClientConfiguration, command: Command) -> None:
            self.configurations.append(configuration)
            reactor = MemoryReactorClock()
            reactor.advance(self.clock.seconds() - reactor.seconds())
            keys = configuration.access_key, configuration.secret_key
            door = Door(reactor, ApiClient(self.http, configuration.endpoint, *keys, reactor))

            async def carry_out() -> int:
                return await command(door)

            work = Deferred.fromCoroutine(carry_out())
            self.treq.flush()
            work.addBoth(lambda result: setattr(self, "outcome", result))

        keys = {"SORNA_ACCESS_KEY": keypair.access_key, "SORNA_SECRET_KEY": keypair.secret_key}
        variables = {"SORNA_STATE_DIR": str(self.state), "SORNA_ENDPOINT": ENDPOINT, **keys}
        ran = CliRunner().invoke(cli, ["agent", *arguments], obj=perform, input=text, env=variables)
        outcome = self.outcome
        self.outcome = outcome.value if isinstance(outcome, Failure) else outcome
        return ran

    def ticket(self, *arguments: str) -> str:
        ran = self.invoke("ticket", *arguments)
        self.assertEqual((ran.exit_code, self.outcome), (0, 0), ran.output)
        return ran.stdout

    def enroll(self, text: str, *arguments: str) -> Result:
        return self.invoke("enroll", "--agent-id", "a-1", "--agent-ip", "192.0.2.7", *arguments, text=text)

    def trusted(self) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(self.world.agents.public_keys()))

    def test_a_new_agent(self) -> None:
        """The agent's keys are made here, the managers' is let in, and the configuration of the agent is complete."""
        ran = self.enroll(self.ticket())
        self.assertEqual((ran.exit_code, self.outcome), (0, 0), ran.output)
        self.assertIn(f"sorna-agent --state-dir {self.state.absolute()}", ran.stdout)
        keys = load_or_make(self.state / "agent")
        self.assertEqual(self.trusted(), {"a-1": keys.public})
        authorised = self.state / "agent" / "authorised" / "managers.public"
        self.assertEqual(authorised.read_text().strip(), self.world.manager_keys.public)
        for secret in ("curve.secret", "enrolled.toml"):
            self.assertEqual(stat.S_IMODE((self.state / "agent" / secret).stat().st_mode), 0o600)
        config = agent_config({"state-dir": str(self.state)}, {})
        self.assertEqual((config.agent_id, config.ip, config.port), ("a-1", "192.0.2.7", 6011))
        self.assertEqual((config.redis.address, config.redis.password), ("redis://192.0.2.1:6379", "pass"))
        given = agent_config({"state-dir": str(self.state), "agent-port": "7"}, {"SORNA_REDIS_ADDR": "r:1"})
        self.assertEqual((given.port, given.redis.address), (7, "redis://r:1"))

    def test_from_a_file(self) -> None:
        """The ticket may be in a file; a ticket with a name gives the name."""
        file = Path(self.mktemp())
        file.write_text(self.ticket("--agent-id", "a-9", "--minutes", "1"))
        ran = self.invoke("enroll", "--ticket-file", str(file), "--agent-ip", "::1", "--agent-port", "9")
        self.assertEqual((ran.exit_code, self.outcome), (0, 0), ran.output)
        self.assertEqual(list(self.trusted()), ["a-9"])
        options = tomllib.loads((self.state / "agent" / "enrolled.toml").read_text())
        self.assertEqual((options["agent-ip"], options["agent-port"]), ("::1", 9))

    def test_never_from_the_command_line(self) -> None:
        """A ticket among the arguments is refused with the reason, and is not used."""
        ticket = self.ticket().strip()
        ran = self.invoke("enroll", ticket)
        self.assertEqual(ran.exit_code, 2)
        self.assertIn("every user of this host", ran.stderr)
        self.assertEqual(self.trusted(), {})

    def test_refusals_leave_nothing(self) -> None:
        """A ticket that was used is refused, and nothing but the agent's own keys is there afterwards."""
        ticket = self.ticket()
        self.enroll(ticket)
        self.state = Path(self.mktemp())
        self.enroll(ticket)
        self.assertIsInstance(self.outcome, ApiError)
        self.assertIn("was used or has expired", str(self.outcome))
        self.assertEqual(
            sorted(path.name for path in (self.state / "agent").iterdir()), ["curve.public", "curve.secret"]
        )

    def test_what_cannot_be_used(self) -> None:
        """No ticket, a server's own directory, an address that is none: each is said before anything is asked."""
        ticket = self.ticket()
        asked = len(self.configurations)
        for text, arguments, words in (
            ("", (), "no ticket"),
            ("hello", (), "no ticket"),
            (ticket[:-20], (), "damaged"),
            (ticket, ("--agent-ip", "example.org"), "example.org"),
        ):
            ran = self.enroll(text, *arguments)
            self.assertEqual(ran.exit_code, 125, ran.output)
            self.assertIn(words, ran.stderr)
        (self.state / "manager").mkdir(parents=True)
        self.assertIn("is a server's", self.enroll(ticket).stderr)
        self.assertEqual(len(self.configurations), asked)
        self.assertEqual(self.trusted(), {})

    def test_an_answer_that_was_changed(self) -> None:
        """Whoever changes the answer on its way is found out, and nothing is kept of it."""
        changing: Any = _ChangingSeal(self.world.enrolments.seal)
        self.world.enrolments.seal = changing
        self.enroll(self.ticket())
        self.assertIn("changed on its way", str(self.outcome))
        self.assertFalse((self.state / "agent" / "authorised").exists())
        self.assertFalse((self.state / "agent" / "enrolled.toml").exists())

    def test_the_next_manager(self) -> None:
        """Of several addresses the first that can be reached is asked; when none can, that is said."""
        reached = self.treq
        ticket = self.ticket("--address", "http://192.0.2.1:1", "--address", ENDPOINT)
        self.http = _Unreachable(reached, "192.0.2.1")
        self.assertEqual(self.enroll(ticket).exit_code, 0)
        self.assertEqual((self.outcome, list(self.trusted())), (0, ["a-1"]))
        self.http = _Unreachable(reached, "")
        self.enroll(ticket)
        self.assertIn("No answer from", str(self.outcome))

    def test_loopback_is_pointed_out(self) -> None:
        """A ticket that leads to this host only is made, with a word about it."""
        self.assertIn("this host only", self.invoke("ticket").stderr)
        self.assertNotIn("this host only", self.invoke("ticket", "--address", "https://sorna.example").stderr)
        self.assertEqual(self.invoke("ticket", "--address", "x").exit_code, 125)

    def test_restart(self) -> None:
        """An agent that is not there cannot be restarted."""
        self.invoke("restart", "a-1")
        self.assertIn("No such agent", str(self.outcome))
        prepare(lambda work: self.successResultOf(Deferred.fromCoroutine(work)), self.world, RESTART)
        self.assertIn("replaces its program", self.invoke("restart", "i-1").stdout)

    def test_revoke(self) -> None:
        """An administrator revokes an agent; nobody else does."""
        self.enroll(self.ticket())
        self.invoke("revoke", "a-1", keypair=OTHER)
        self.assertIn("for administrators", str(self.outcome))
        self.assertIn("kernels that it had: 0", self.invoke("revoke", "a-1").stdout)
        self.assertEqual(self.trusted(), {})
        self.invoke("revoke", "a-1")
        self.assertIn("No such agent", str(self.outcome))


class _Unreachable:
    """An HTTP client for which one host is not there."""

    def __init__(self, http: Any, host: str) -> None:
        self._http = http
        self._host = host

    def request(self, method: str, url: str, **more: Any) -> Any:
        """Refuse, or pass on."""
        if self._host in url:
            return Deferred.fromCoroutine(self._refuse())
        return self._http.request(method, url, **more)

    async def _refuse(self) -> None:
        raise Refused


class _ChangingSeal:
    """The managers' seal, whose answers somebody changes."""

    def __init__(self, seal: Any) -> None:
        self._seal = seal
        self.keypair = seal.keypair
        self.open = seal.open

    def close(self, *arguments: Any) -> bytes:
        """Seal, and change the last byte."""
        sealed: bytes = self._seal.close(*arguments)
        return sealed[:-1] + bytes([sealed[-1] ^ 1])
