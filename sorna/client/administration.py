"""``sorna ps`` and ``sorna admin``: kernels, keypairs, resource policies and usage, over the server's GraphQL.

Knows queries and columns, and how sizes and days are written; everything else is in its neighbours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import click

from sorna.client.door import Command, Door, connection
from sorna.client.questions import change as _change
from sorna.client.questions import format_option
from sorna.client.questions import listing as _listing

_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGT]?)i?B?", re.IGNORECASE)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

_PS = """
query($limit: Int!, $offset: Int!, $status: String) {
  found: compute_session_list(limit: $limit, offset: $offset, status: $status) {
    items { sess_id container_id lang status queue_position created_at agent cpu_used mem_cur_bytes num_queries }
  }
}"""
_LIVE = "PENDING,PREPARING,RUNNING,RESTARTING,TERMINATING"
_PS_COLUMNS = {
    "sess_id": "SESSION", "container_id": "KERNEL", "lang": "RUNTIME", "status": "STATUS", "queue_position": "QUEUE",
    "created_at": "CREATED", "agent": "AGENT", "cpu_used": "CPU MS", "mem_cur_bytes": "MEMORY", "num_queries": "QUERIES",
}  # fmt: skip
_USAGE = """
query($since: DateTime!, $until: DateTime!, $access_key: String, $limit: Int, $offset: Int) {
  found: usage(since: $since, until: $until, access_key: $access_key, limit: $limit, offset: $offset) {
    access_key user_id kernels wall_time cpu_used mem_max_bytes net_rx_bytes net_tx_bytes io_read_bytes io_write_bytes
  }
}"""
_USAGE_COLUMNS = {
    "access_key": "ACCESS KEY", "user_id": "USER", "kernels": "KERNELS", "wall_time": "SECONDS", "cpu_used": "CPU MS",
    "mem_max_bytes": "MOST MEMORY", "net_rx_bytes": "RECEIVED", "net_tx_bytes": "SENT", "io_read_bytes": "READ",
    "io_write_bytes": "WRITTEN",
}  # fmt: skip
_KEYPAIRS = """
query($user_id: String, $is_active: Boolean, $limit: Int, $offset: Int) {
  found: keypairs(user_id: $user_id, is_active: $is_active, limit: $limit, offset: $offset) {
    access_key user_id is_active is_admin resource_policy rate_limit concurrency_limit concurrency_used last_used
  }
}"""
_KEYPAIR_COLUMNS = {
    "access_key": "ACCESS KEY", "user_id": "USER", "is_active": "ACTIVE", "is_admin": "ADMIN", "resource_policy": "POLICY",
    "rate_limit": "RATE", "concurrency_limit": "KERNELS", "concurrency_used": "USED", "last_used": "LAST USED",
}  # fmt: skip
_POLICIES = """
query($limit: Int, $offset: Int) {
  found: resource_policies(limit: $limit, offset: $offset) {
    name max_kernels cpu_cores memory gpus max_folders max_folder_size runtimes lifetime idle_timeout
  }
}"""
_POLICY_COLUMNS = {
    "name": "NAME", "max_kernels": "KERNELS", "cpu_cores": "CPUS", "memory": "MEMORY", "gpus": "GPUS",
    "max_folders": "FOLDERS", "max_folder_size": "FOLDER SIZE", "lifetime": "LIFETIME", "idle_timeout": "IDLE",
    "runtimes": "RUNTIMES",
}  # fmt: skip


class Size(click.ParamType[int]):
    """A number of bytes, with a unit or without."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read a size such as ``512M``."""
        read = _SIZE.fullmatch(str(value))
        if read is None:
            self.fail(f"{value!r} is no size such as 512M or 2G", param, ctx)
        return round(float(read[1]) * _UNITS[read[2].upper()])


class Moment(click.ParamType[datetime]):
    """A day, or a time of one; UTC where no zone is given."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Read a time such as ``2026-01-31`` or ``2026-01-31T12:00+09:00``."""
        try:
            parsed = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is no time such as 2026-01-31 or 2026-01-31T12:00", param, ctx)
        return parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Those that have ended, too.")
@format_option
@connection
def ps(*, everything: bool, how: str) -> Command:
    """List kernels: your own; with an administrator's keypair everybody's."""
    return _listing(_PS, {"status": None if everything else _LIVE}, _PS_COLUMNS, how)


@click.group()
def admin() -> None:
    """Commands for administrators."""


@admin.command()
@click.option("--since", type=Moment(), help="First moment.  [default: the beginning of this month]")
@click.option("--until", type=Moment(), help="First moment that does not count.  [default: now]")
@click.option("--of", metavar="ACCESS_KEY", help="Of this keypair only.")
@format_option
@connection
def usage(*, since: datetime | None, until: datetime | None, of: str | None, how: str) -> Command:
    """Report what each keypair used in a period.

    Times are in UTC. Processor time, memory, network and disk are those of kernels that ended in the period.
    """

    async def carry_out(door: Door) -> int:
        now = datetime.fromtimestamp(door.reactor.seconds(), UTC)
        first = since or now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        period = {"since": first.isoformat(), "until": (until or now).isoformat(), "access_key": of}
        return await _listing(_USAGE, period, _USAGE_COLUMNS, how)(door)

    return carry_out


@admin.group()
def keypair() -> None:
    """Keypairs: who may use the server, and how much."""


def keypair_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options for what a keypair may."""
    for option in (
        click.option("--policy", "resource_policy", metavar="NAME", help="Its resource policy; '' for none."),
        click.option("--rate-limit", type=click.IntRange(0), metavar="N", help="Requests in 15 minutes."),
        click.option("--concurrency-limit", type=click.IntRange(0), metavar="N", help="Live kernels."),
        click.option("--admin/--no-admin", "is_admin", default=None, help="Whether it is an administrator's."),
        click.option("--active/--inactive", "is_active", default=None, help="Whether it works."),
    ):
        command = option(command)
    return command


@keypair.command("add")
@click.argument("user")
@keypair_options
@connection
def add_keypair(*, user: str, **wishes: Any) -> Command:
    """Make a keypair for a user (a number or a name), and print it: the secret is shown nowhere else by this program."""
    mutation = """
    mutation($user: String!, $props: KeyPairInput!) {
      done: create_keypair(user_id: $user, props: $props) { ok msg keypair { access_key secret_key } }
    }"""

    def made(done: Mapping[str, Any]) -> None:
        click.echo(f"access key  {done['keypair']['access_key']}\nsecret key  {done['keypair']['secret_key']}")

    return _change(mutation, {"user": user, "props": wishes}, made)


@keypair.command("list")
@click.option("--user", "user_id", metavar="USER", help="Of this user only.")
@click.option("--active/--inactive", "is_active", default=None, help="Only those that work, or that do not.")
@format_option
@connection
def list_keypairs(*, user_id: str | None, is_active: bool | None, how: str) -> Command:
    """List keypairs, the newest first."""
    return _listing(_KEYPAIRS, {"user_id": user_id, "is_active": is_active}, _KEYPAIR_COLUMNS, how)


@keypair.command("modify")
@click.argument("key", metavar="ACCESS_KEY")
@keypair_options
@connection
def modify_keypair(*, key: str, **changes: Any) -> Command:
    """Change what is given of a keypair; it takes effect within a second."""
    if all(value is None for value in changes.values()):
        raise click.UsageError("Nothing is to be changed.")
    mutation = """
    mutation($access_key: String!, $props: ModifyKeyPairInput!) {
      done: modify_keypair(access_key: $access_key, props: $props) { ok msg }
    }"""
    return _change(mutation, {"access_key": key, "props": changes})


@keypair.command("remove")
@click.argument("key", metavar="ACCESS_KEY")
@connection
def remove_keypair(*, key: str) -> Command:
    """Remove a keypair that has no live kernels, for good; what it used stays in the reports."""
    mutation = "mutation($access_key: String!) { done: delete_keypair(access_key: $access_key) { ok msg } }"
    return _change(mutation, {"access_key": key})


@admin.group()
def policy() -> None:
    """Resource policies: what all kernels of a keypair may take together."""


@policy.command("put")
@click.argument("name")
@click.option("--kernels", "max_kernels", type=click.IntRange(0), metavar="N", help="Live kernels.")
@click.option("--cpus", "cpu_cores", type=click.FloatRange(0), metavar="N", help="Processors.")
@click.option("--memory", type=Size(), help="Memory.")
@click.option("--gpus", type=click.IntRange(0), metavar="N", help="GPUs.")
@click.option("--folders", "max_folders", type=click.IntRange(0), metavar="N", help="Virtual folders.")
@click.option("--folder-size", "max_folder_size", type=Size(), help="Size of each.")
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    metavar="NAME",
    help="A runtime that may be used.  [repeatable; default: all]",
)
@click.option("--lifetime", type=click.FloatRange(1), metavar="SECONDS", help="How long a kernel may live.")
@click.option("--idle-timeout", type=click.FloatRange(1), metavar="SECONDS", help="How long a kernel may sit idle.")
@connection
def put_policy(*, name: str, runtimes: tuple[str, ...], **bounds: Any) -> Command:
    """Store a policy, or replace the one of this name; what is not given is not bounded."""
    mutation = """
    mutation($name: String!, $props: ResourcePolicyInput!) {
      done: put_resource_policy(name: $name, props: $props) { ok msg }
    }"""
    return _change(mutation, {"name": name, "props": {**bounds, "runtimes": list(runtimes) or None}})


@policy.command("list")
@format_option
@connection
def list_policies(*, how: str) -> Command:
    """List the policies by name."""
    return _listing(_POLICIES, {}, _POLICY_COLUMNS, how)


@policy.command("remove")
@click.argument("name")
@connection
def remove_policy(*, name: str) -> Command:
    """Remove a policy that no keypair has."""
    mutation = "mutation($name: String!) { done: delete_resource_policy(name: $name) { ok msg } }"
    return _change(mutation, {"name": name})
