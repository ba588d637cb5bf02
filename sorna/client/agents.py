"""``sorna agent``: the hosts that hold kernels, for administrators.

Knows the commands, their questions and columns; how the server is asked is in ``questions``.
"""

from __future__ import annotations

import ipaddress
import os
import shlex
import socket
import sys
from pathlib import Path
from typing import IO, Any

import click

from sorna.client.administration import Size
from sorna.client.configuration import ClientConfiguration, state_directory
from sorna.client.door import Command, Door, Perform, Unusable, connection
from sorna.client.questions import UNREADABLE, change, format_option, items, listing
from sorna.client.tables import print_rows
from sorna.client.wire import host_header, text_of

LONGEST_INPUT = 64 * 1024

_AGENTS = """
query($limit: Int!, $offset: Int!, $status: String) {
  found: agent_list(limit: $limit, offset: $offset, status: $status) {
    items { id status addr isolation kernels max_kernels load labels drain_deadline first_contact }
  }
}"""
_AGENT_COLUMNS = {
    "id": "AGENT", "status": "STATUS", "addr": "ADDRESS", "isolation": "ISOLATION", "kernels": "KERNELS",
    "max_kernels": "OF", "load": "LOAD", "labels": "LABELS", "drain_deadline": "DRAINED BY", "first_contact": "SINCE",
}  # fmt: skip
_LIVE = "ALIVE,DRAINING"
_EXPLAIN = """
query($runtime: String!, $cpu_cores: Float, $memory: BigInt, $gpus: Int, $labels: [String!]) {
  found: explain_placement(runtime: $runtime, cpu_cores: $cpu_cores, memory: $memory, gpus: $gpus, labels: $labels) {
    place agent load reasons
  }
}"""
_EXPLAIN_COLUMNS = {"place": "PLACE", "agent": "AGENT", "load": "LOAD", "reasons": "WHY NOT"}
_DRAIN = """
mutation($agent_id: String!, $wait: Float) { done: drain_agent(agent_id: $agent_id, wait: $wait) { ok msg } }"""
_UNDRAIN = "mutation($agent_id: String!) { done: undrain_agent(agent_id: $agent_id) { ok msg } }"


@click.group()
def agent() -> None:
    """Agents: the hosts that hold kernels; for administrators."""


@agent.command("list")
@click.option("-a", "--all", "everything", is_flag=True, help="Those that are not there now, too.")
@format_option
@connection
def list_agents(*, everything: bool, how: str) -> Command:
    """List the agents that are there now."""
    return listing(_AGENTS, {"status": None if everything else _LIVE}, _AGENT_COLUMNS, how)


@agent.command()
@click.argument("runtime")
@click.option("--cpu", "cpu_cores", type=click.FloatRange(0), metavar="N", help="Processors.  [default: the server's]")
@click.option("--memory", type=Size(), help="Memory.  [default: the server's]")
@click.option("--gpu", "gpus", type=click.IntRange(0), metavar="N", help="GPUs.  [default: those of the runtime]")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label of the agent.  [repeatable]")
@format_option
@connection
def explain(*, how: str, labels: tuple[str, ...], **wishes: Any) -> Command:
    """Say which agent would get a kernel of this runtime now, and what is in the way of the others."""

    async def carry_out(door: Door) -> int:
        answer = await door.api.ask(_EXPLAIN, {**wishes, "labels": list(labels)})
        print_rows(_EXPLAIN_COLUMNS, items(answer.get("found")), how, sys.stdout)
        return 0

    return carry_out


@agent.command()
@click.argument("name", metavar="AGENT")
@click.option("--wait", type=click.FloatRange(0), metavar="SECONDS", help="End kernels that are left after this time.")
@click.option("--undo", is_flag=True, help="Let it have kernels again.")
@connection
def drain(*, name: str, wait: float | None, undo: bool) -> Command:
    """Take an agent out of service: it gets no new kernels, and stops when it has none.

    Kernels end as their clients wish or as their limits want it, and with --wait those that are left after this time.
    """
    if undo:
        if wait is not None:
            raise click.UsageError("--wait and --undo exclude each other.")
        return change(_UNDRAIN, {"agent_id": name})
    return change(_DRAIN, {"agent_id": name, "wait": wait})


@agent.command()
@click.option(
    "--agent-id",
    metavar="NAME",
    help="The agent that it is for; it alone may then replace a key.  [default: a new one]",
)
@click.option(
    "--minutes", type=click.IntRange(1, 24 * 60), default=10, show_default=True, help="How long it can be used."
)
@click.option(
    "--address", "addresses", multiple=True, metavar="URL",
    help="A manager as the agent's host reaches it.  [default: the --endpoint; repeatable]",
)  # fmt: skip
@connection
def ticket(*, agent_id: str | None, minutes: int, addresses: tuple[str, ...]) -> Command:
    """Print a ticket with which one agent can enrol itself, once."""
    from sorna.client import enrolment  # noqa: PLC0415 - it loads ZeroMQ, which no other command needs

    try:
        for address in addresses:
            host_header(address)
    except ValueError as error:
        raise Unusable(str(error)) from error

    async def carry_out(door: Door) -> int:
        made = await door.api.make_ticket(agent_id, minutes)
        reached = addresses or (door.api.endpoint,)
        try:
            secret = bytes.fromhex(text_of(made, "secret"))
        except ValueError:
            raise UNREADABLE from None
        word = enrolment.Ticket(
            reached, text_of(made, "id"), secret, text_of(made, "manager_key"), agent_id, text_of(made, "expires_at")
        )
        click.echo(word.text())
        click.echo(
            f"For one agent, until {word.expires_at}. On its host: sorna agent enroll, with the ticket on standard input.",
            err=True,
        )
        for address in filter(enrolment.is_loopback, reached):
            click.echo(f"sorna: {address} is this host only: give --address for an agent on another.", err=True)
        return 0

    return carry_out


@agent.command()
@click.argument("refused", nargs=-1, metavar="")
@click.option(
    "--ticket-file",
    type=click.File("r"),
    default="-",
    metavar="FILE",
    help="Where the ticket is.  [default: standard input]",
)
@click.option(
    "--state-dir", type=click.Path(file_okay=False, path_type=Path), envvar="SORNA_STATE_DIR", metavar="FOLDER",
    help="As of `twistd sorna-agent`.  [env: SORNA_STATE_DIR]",
)  # fmt: skip
@click.option(
    "--agent-id", metavar="NAME", help="The agent's name.  [default: the ticket's, or i- and the host's name]"
)
@click.option(
    "--agent-ip", metavar="ADDRESS", help="Where it listens.  [default: the address that reaches the manager]"
)
@click.option("--agent-port", type=click.IntRange(1, 65535), default=6011, show_default=True)
@click.pass_obj
def enroll(
    carry_out: Perform,
    *,
    refused: tuple[str, ...],
    ticket_file: IO[str],
    state_dir: Path | None,
    agent_id: str | None,
    agent_ip: str | None,
    agent_port: int,
) -> None:
    """Make this host an agent of the managers that made a ticket.

    Reads the ticket from standard input or a file, makes the agent's keys in its state directory, and leaves there what
    `twistd sorna-agent` needs.
    """
    from sorna.client import enrolment  # noqa: PLC0415 - it loads ZeroMQ, which no other command needs
    from sorna.curve_keys import KeyFileError, load_or_make  # noqa: PLC0415

    if refused:
        raise click.UsageError(
            "The ticket is not taken from the command line, where every user of this host can read it: give it on standard "
            "input or by --ticket-file. If that was one, have another made."
        )
    try:
        ticket = enrolment.read_ticket(_ticket_text(ticket_file))
        address = None if agent_ip is None else str(ipaddress.ip_address(agent_ip))
        name = agent_id or ticket.agent_id or f"i-{socket.gethostname()}"
        directory = (state_dir or state_directory(os.environ)).expanduser().absolute()
        if (directory / "manager").exists():
            raise Unusable(f"{directory} is a server's: its own agent is enrolled. Give another --state-dir.")
        keys = load_or_make(directory / "agent")
    except (enrolment.TicketUnusable, ValueError, KeyFileError) as error:
        raise Unusable(str(error)) from error

    async def exchange(door: Door) -> int:
        own = address or await enrolment.own_address(door.reactor, ticket.addresses[0])
        endpoint = f"tcp://[{own}]:{agent_port}" if ":" in own else f"tcp://{own}:{agent_port}"
        enrolled = await enrolment.exchange(door.api, ticket, keys, name, endpoint)
        enrolment.keep(directory / "agent", ticket, enrolled, own, agent_port)
        click.echo(f"{enrolled.agent_id} is enrolled and will listen on {endpoint}. Start it:")
        click.echo(f"  twistd --nodaemon --pidfile= sorna-agent --state-dir {shlex.quote(str(directory))}")
        if enrolment.only_on_this_host(enrolled.redis_address) and not ipaddress.ip_address(own).is_loopback:
            click.echo(
                "sorna: the managers' Redis is on their own host only: start them with --agent-redis-addr.", err=True
            )
        return 0

    carry_out(ClientConfiguration(ticket.addresses[0], "", ""), exchange)


def _ticket_text(file: IO[str]) -> str:
    if file.isatty():
        return str(click.prompt("Ticket", hide_input=True, err=True))
    return file.read(LONGEST_INPUT)


@agent.command()
@click.argument("agent_id", metavar="AGENT")
@connection
def revoke(agent_id: str) -> Command:
    """Take an agent back: no manager talks to it any more, and its kernels are ended."""

    async def carry_out(door: Door) -> int:
        ended = (await door.api.revoke_agent(agent_id)).get("kernels")
        click.echo(f"{agent_id} is revoked; kernels that it had: {ended}")
        return 0

    return carry_out


@agent.command()
@click.argument("agent_id", metavar="AGENT")
@connection
def restart(agent_id: str) -> Command:
    """Have an agent replace its program by the one that is installed now; its kernels live on."""

    async def carry_out(door: Door) -> int:
        await door.api.restart_agent(agent_id)
        click.echo(f"{agent_id} replaces its program.")
        return 0

    return carry_out
