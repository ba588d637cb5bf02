"""The command line ``sorna`` as it is installed: the commands of clients, and those that operators run beside a server.

The latter know databases, which clients do not; so they are put together here, and load what they need only when they run.
"""

from __future__ import annotations

import os
from typing import Any

import click

from sorna.client.cli import cli
from sorna.settings import SERVER_SETTINGS

_WANTED = {
    setting.name: setting
    for setting in SERVER_SETTINGS
    if setting.name in {"config", "state-dir"} or setting.name.startswith(("db-", "redis-"))
}


def _with_server_options(command: Any) -> Any:
    """Add the options by which the server is told where its databases are; its variables count too."""
    for setting in reversed(_WANTED.values()):
        command = click.option(f"--{setting.name}", default=None, help=setting.described)(command)
    return command


@cli.command()
@_with_server_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--patience",
    default=6.0,
    show_default=True,
    type=click.FloatRange(0, 600),
    help="Seconds that something must stay wrong to count.",
)
@click.option("--host/--no-host", default=True, help="Look at this host's processes, groups and mounts.  [default: do]")
def doctor(*, as_json: bool, patience: float, host: bool, **flags: str | None) -> None:
    """Check that everything the server promises holds now; exit with 1 where something does not.

    It reads PostgreSQL and Redis as a server with the same options would, and what agents left on this host.  It changes
    nothing.
    """
    # Loaded here, because clients who only run code have no databases to talk to.
    from twisted.internet.defer import Deferred  # noqa: PLC0415
    from twisted.internet.task import react  # noqa: PLC0415

    from sorna.config import ConfigurationError, server_config  # noqa: PLC0415
    from sorna.doctor import report  # noqa: PLC0415
    from sorna.errors import SornaError  # noqa: PLC0415

    try:
        config = server_config({name.replace("_", "-"): text for name, text in flags.items()}, os.environ)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error

    async def look(reactor: Any) -> None:
        try:
            status = await report(reactor, config, patience=patience, host=host, as_json=as_json)
        except SornaError as error:
            click.echo(f"sorna doctor: {error}", err=True)
            status = 1
        if status:
            raise SystemExit(status)

    react(lambda reactor: Deferred.fromCoroutine(look(reactor)))


def main() -> None:
    """Start the command line."""
    cli(prog_name="sorna")


if __name__ == "__main__":
    main()
