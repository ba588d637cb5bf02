"""The command line ``sorna``: run code on a server, and look after the kernels that stay.

Knows flags and variables; how a command is carried out is in ``door``, administrators' commands are in ``administration``.
"""

from __future__ import annotations

import json
import secrets
import sys
from pathlib import Path
from typing import Any

import click

from sorna import __version__
from sorna.client import administration
from sorna.client.agents import agent
from sorna.client.app_commands import app
from sorna.client.door import Command, Door, Unusable, connection, perform
from sorna.client.folder_commands import folder
from sorna.client.running import FilesUnusable, RunOfCode, RunOrder, read_files
from sorna.client.terminal import Terminal

STANDARD_INPUT = 0


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sorna")
@click.pass_context
def cli(context: click.Context) -> None:
    """Run code on a Sorna server.

    Without --endpoint and a keypair, those of the server that this user started with `make run` are used.  Exit codes: the
    run's own; 125 when Sorna itself failed, 130 after Ctrl-C.
    """
    if context.obj is None:
        context.obj = perform


@cli.command()
@click.argument("runtime")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("-c", "--code", help="Run this snippet instead of files.")
@click.option("-b", "--build", default="*", metavar="COMMAND", help="Build the files with this command.")
@click.option("-e", "--exec", "execute", default="*", metavar="COMMAND", help="Run what was built with this command.")
@click.option("-t", "--token", "--client-token", help="Use this session: its kernel is found again, or made.")
@click.option("--rm/--keep", "remove", default=None, help="Destroy the kernel at the end.  [default: unless -t]")
@click.option("--basedir", type=click.Path(exists=True, file_okay=False, path_type=Path), default=Path())
@click.option("--env", "environ", multiple=True, metavar="KEY=VALUE", help="A variable of a new kernel.  [repeatable]")
@click.option(
    "-m", "--mount", "mounts", multiple=True, metavar="NAME[:ALIAS]", help="A folder of a new kernel.  [repeatable]"
)
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label of its agent.  [repeatable]")
@click.option("--wait", type=click.FloatRange(0), default=0, metavar="SECONDS", help="Wait for an agent with room.")
@click.option(
    "--media",
    type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
    metavar="FOLDER",
    help="Save figures and pages here.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but the run's own output.")
@connection
def run(
    *,
    runtime: str,
    files: tuple[Path, ...],
    code: str | None,
    build: str,
    execute: str,
    token: str | None,
    remove: bool | None,
    basedir: Path,
    environ: tuple[str, ...],
    mounts: tuple[str, ...],
    labels: tuple[str, ...],
    wait: float,
    media: Path | None,
    quiet: bool,
) -> Command:
    """Run a snippet or files.

    Files are uploaded to the kernel's working directory under their path relative to --basedir, built, and run: the first
    is the program, unless -b and -e say otherwise.
    """
    if bool(files) == (code is not None):
        raise click.UsageError("Give either files or a snippet with -c.")
    try:
        order = RunOrder(
            runtime=runtime,
            token=token or secrets.token_hex(16),
            keep=token is not None if remove is None else not remove,
            code=code or "",
            files=read_files(files, basedir),
            build=build,
            execute=execute,
            environ=dict(_pair("--env", text) for text in environ),
            mounts=mounts,
            labels=dict(_pair("--label", text) for text in labels),
            wait=wait,
        )
    except FilesUnusable as error:
        raise Unusable(str(error)) from error

    async def carry_out(door: Door) -> int:
        terminal = Terminal(door.reactor, STANDARD_INPUT, sys.stdout, sys.stderr, quiet=quiet, media=media)
        work = RunOfCode(door.api, terminal, order, door.reactor)
        door.on_interrupt = work.interrupt
        return await work.carry_out()

    return carry_out


def _pair(option: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise click.UsageError(f"{option} wants KEY=VALUE, not {text!r}.")
    return name, value


@cli.command()
@click.argument("kernel")
@connection
def info(kernel: str) -> Command:
    """Describe a kernel, given its id or session token."""

    async def carry_out(door: Door) -> int:
        _table(await door.api.info(kernel))
        return 0

    return carry_out


@cli.command()
@click.argument("kernel")
@click.option("-s", "--stats", is_flag=True, help="Print what the kernel used.")
@connection
def terminate(kernel: str, stats: bool) -> Command:
    """Destroy a kernel, given its id or session token."""

    async def carry_out(door: Door) -> int:
        used = await door.api.destroy(kernel)
        if stats:
            _table(used or {})
        return 0

    return carry_out


@cli.command()
@click.argument("kernel")
@connection
def restart(kernel: str) -> Command:
    """Throw a kernel's memory away and keep its files."""

    async def carry_out(door: Door) -> int:
        await door.api.restart(kernel)
        return 0

    return carry_out


@cli.command()
@click.argument("kernel")
@connection
def logs(kernel: str) -> Command:
    """Print what a kernel printed lately."""

    async def carry_out(door: Door) -> int:
        click.echo(await door.api.logs(kernel), nl=False)
        return 0

    return carry_out


def _table(values: dict[str, Any]) -> None:
    """Print names and values in two columns."""
    width = max(map(len, values), default=0)
    for name, value in values.items():
        click.echo(f"{name:<{width}}  {value if isinstance(value, str) else json.dumps(value)}")


cli.add_command(administration.ps)
cli.add_command(administration.admin)
cli.add_command(agent)
cli.add_command(folder)
cli.add_command(app)


def main() -> None:
    """Start the command line."""
    cli(prog_name="sorna")


if __name__ == "__main__":
    main()
