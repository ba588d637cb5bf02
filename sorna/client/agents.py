"""``sorna agent``: the hosts that hold kernels, for administrators.

Knows the commands, their questions and columns; how the server is asked is in ``questions``.
"""

from __future__ import annotations

import click

from sorna.client.door import Command, connection
from sorna.client.questions import format_option, listing

_AGENTS = """
query($limit: Int!, $offset: Int!, $status: String) {
  found: agent_list(limit: $limit, offset: $offset, status: $status) {
    items { id status addr isolation used_cpu_slots cpu_slots used_mem_slots mem_slots first_contact }
  }
}"""
_AGENT_COLUMNS = {
    "id": "AGENT", "status": "STATUS", "addr": "ADDRESS", "isolation": "ISOLATION", "used_cpu_slots": "CPUS USED",
    "cpu_slots": "CPUS", "used_mem_slots": "MIB USED", "mem_slots": "MIB", "first_contact": "SINCE",
}  # fmt: skip


@click.group()
def agent() -> None:
    """Agents: the hosts that hold kernels; for administrators."""


@agent.command("list")
@click.option("-a", "--all", "everything", is_flag=True, help="Those that are not there now, too.")
@format_option
@connection
def list_agents(*, everything: bool, how: str) -> Command:
    """List the agents that are there now."""
    return listing(_AGENTS, {"status": None if everything else "ALIVE"}, _AGENT_COLUMNS, how)
