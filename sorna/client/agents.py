"""``sorna agent``: the hosts that hold kernels, for administrators.

Knows the commands, their questions and columns; how the server is asked is in ``questions``.
"""

from __future__ import annotations

import sys
from typing import Any

import click

from sorna.client.administration import Size
from sorna.client.door import Command, Door, connection
from sorna.client.questions import change, format_option, items, listing
from sorna.client.tables import print_rows

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
