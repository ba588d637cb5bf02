"""The command line ``sorna``: run code on a server, and look after the kernels that stay.

Knows flags, variables and signals; everything else is in its neighbours.  It is one of the program's entry points: the reactor
begins with a command, and is handed down from there.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NoReturn

import click
from treq.client import HTTPClient
from twisted.internet import task
from twisted.internet.defer import CancelledError, Deferred
from twisted.web.client import Agent, HTTPConnectionPool

from sorna import __version__
from sorna.client.api import ApiClient
from sorna.client.configuration import ClientConfiguration, ConfigurationMissing, find_configuration
from sorna.client.running import FAILED, INTERRUPTED, FilesUnusable, RunOfCode, RunOrder, read_files
from sorna.client.terminal import Terminal
from sorna.client.wire import ApiError, host_header

CONNECT_TIMEOUT = 10.0
STANDARD_INPUT = 0
CLOSED_PIPE = 128 + signal.SIGPIPE


class Door:
    """What a command gets: the reactor, the API client, and a place to say what Ctrl-C shall do."""

    def __init__(self, reactor: Any, api: ApiClient) -> None:
        self.reactor = reactor
        self.api = api
        self.on_interrupt: Callable[[], None] | None = None


Command = Callable[[Door], Awaitable[int]]


Perform = Callable[[ClientConfiguration, Command], None]


def perform(configuration: ClientConfiguration, command: Command) -> NoReturn:
    """Carry a command out over the network, under a reactor that lives as long as the command."""
    task.react(_main, (configuration, command))


def _main(reactor: Any, configuration: ClientConfiguration, command: Command) -> Deferred[None]:
    pool = HTTPConnectionPool(reactor, persistent=True)
    http = HTTPClient(Agent(reactor, connectTimeout=CONNECT_TIMEOUT, pool=pool))
    keys = (configuration.access_key, configuration.secret_key)
    door = Door(reactor, ApiClient(http, configuration.endpoint, *keys, reactor))

    async def carry_out() -> None:
        try:
            code = await command(door)
        except ApiError as error:
            click.echo(f"sorna: {error}", err=True)
            code = FAILED
        except CancelledError:
            code = INTERRUPTED
        except BrokenPipeError:
            # Nobody reads any more; the interpreter must not find out again when it flushes at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = CLOSED_PIPE
        except OSError as error:
            click.echo(f"sorna: {error}", err=True)
            code = FAILED
        finally:
            await pool.closeCachedConnections()
        raise SystemExit(code)

    work = Deferred.fromCoroutine(carry_out())

    def interrupt() -> None:
        (door.on_interrupt or work.cancel)()

    def stop() -> Deferred[None] | None:
        """At SIGTERM: let the command clean up before the reactor ends."""
        if work.called:
            return None
        ended: Deferred[None] = Deferred()

        def tell(result: object) -> object:
            ended.callback(None)
            return result

        work.addBoth(tell)
        work.cancel()
        return ended

    # Twisted installs its own handler only where there is none, and its own would stop the reactor at once.
    signal.signal(signal.SIGINT, lambda _number, _frame: reactor.callFromThread(interrupt))
    reactor.addSystemEventTrigger("before", "shutdown", stop)
    return work


class Unusable(click.ClickException):
    """What was given cannot be used; told apart from a run that ended with 1 by its exit code."""

    exit_code = FAILED


def connection(command: Callable[..., Command]) -> Callable[..., None]:
    """Give a command the options that say which server and which keypair, and carry out what it returns."""

    @click.option("--endpoint", envvar="SORNA_ENDPOINT", metavar="URL", help="The server.  [env: SORNA_ENDPOINT]")
    @click.option("--access-key", envvar="SORNA_ACCESS_KEY", metavar="KEY", help="[env: SORNA_ACCESS_KEY]")
    @click.option(
        "--secret-key", envvar="SORNA_SECRET_KEY", metavar="KEY", help="Better by variable.  [env: SORNA_SECRET_KEY]"
    )
    @click.pass_obj
    def with_connection(
        carry_out: Perform, /, endpoint: str | None, access_key: str | None, secret_key: str | None, **options: Any
    ) -> None:
        try:
            configuration = find_configuration(
                os.environ, endpoint=endpoint, access_key=access_key, secret_key=secret_key
            )
            host_header(configuration.endpoint)
        except (ConfigurationMissing, ValueError) as error:
            raise Unusable(str(error)) from error
        carry_out(configuration, command(**options))

    # What click takes a command's name and help from; the rest of functools.wraps would hide the real parameters.
    with_connection.__name__, with_connection.__doc__ = command.__name__, command.__doc__
    return with_connection


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
            environ=dict(_variable(text) for text in environ),
        )
    except FilesUnusable as error:
        raise Unusable(str(error)) from error

    async def carry_out(door: Door) -> int:
        terminal = Terminal(door.reactor, STANDARD_INPUT, sys.stdout, sys.stderr, quiet=quiet, media=media)
        work = RunOfCode(door.api, terminal, order, door.reactor)
        door.on_interrupt = work.interrupt
        return await work.carry_out()

    return carry_out


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise click.UsageError(f"--env wants KEY=VALUE, not {text!r}.")
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


def main() -> None:
    """Start the command line."""
    cli(prog_name="sorna")


if __name__ == "__main__":
    main()
