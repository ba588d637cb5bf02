"""``sorna app``: a port of this machine that leads to an application in a kernel.

Knows flags and what is printed; the connections are carried by ``tunnels``.
"""

from __future__ import annotations

import sys

import click
from attrs import asdict
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError

from sorna.client.door import Command, Door, Unusable, connection
from sorna.client.running import FAILED
from sorna.client.tables import print_rows
from sorna.client.tunnels import Tunnels

LAST_PORT = 65535
COLUMNS = {"name": "app", "protocol": "protocol", "port": "port"}


@click.command()
@click.argument("kernel")
@click.argument("app", required=False)
@click.option(
    "-b", "--bind", default="127.0.0.1:8080", metavar="[HOST:]PORT", show_default=True, help="Where to listen."
)
@connection
def app(*, kernel: str, app: str | None, bind: str) -> Command:
    """Open an application in a kernel on a port of this machine.

    APP is an application's name, or the port on which a program in the kernel listens; without it, list what there is. It
    stays open until Ctrl-C. Whoever can connect with this port can use the application, so think before you bind it
    to more than 127.0.0.1.
    """
    host, port = _address(bind)

    async def carry_out(door: Door) -> int:
        apps = await door.api.apps(kernel)
        if app is None:
            print_rows(COLUMNS, [asdict(one) for one in apps], "table", sys.stdout)
            return 0
        if not app.isdecimal() and app not in {one.name for one in apps}:
            names = ", ".join(one.name for one in apps) or "none"
            click.echo(f"sorna: there is no app {app!r}; there are: {names}, and any port by its number", err=True)
            return FAILED
        return await _serve(door, kernel, app, host, port)

    return carry_out


async def _serve(door: Door, kernel: str, app: str, host: str, port: int) -> int:
    stopped: Deferred[None] = Deferred()
    door.on_interrupt = lambda: None if stopped.called else stopped.callback(None)
    tunnels = Tunnels(
        door.reactor,
        lambda: door.api.tunnel_handshake(kernel, app),
        lambda what: click.echo(f"sorna: {what}", err=True),
    )
    try:
        found = tunnels.listen(host, port)
    except CannotListenError as error:
        click.echo(f"sorna: cannot listen on port {port} of {host}: {error.socketError}", err=True)
        return FAILED
    shown = f"[{host}]" if ":" in host else host
    click.echo(f"{app} of {kernel} is at http://{shown}:{found}/ until Ctrl-C")
    try:
        await stopped
    finally:
        await tunnels.close()
    return 0


def _address(bind: str) -> tuple[str, int]:
    host, colon, port = bind.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if colon else "127.0.0.1"
    if not host or not port.isdecimal() or len(port) > 5 or int(port) > LAST_PORT:
        raise Unusable(f"--bind wants [HOST:]PORT, not {bind!r}.")
    return host, int(port)
