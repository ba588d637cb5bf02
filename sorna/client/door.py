"""How a command of the command line gets to the server: options that say which one, a reactor as long as the command, signals.

It is one of the program's entry points: the reactor begins with a command, and is handed down from there. Knows no command.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import click
from treq.client import HTTPClient
from twisted.internet import task
from twisted.internet.defer import CancelledError, Deferred
from twisted.web.client import Agent, HTTPConnectionPool

from sorna.client.api import ApiClient
from sorna.client.configuration import ClientConfiguration, ConfigurationMissing, find_configuration
from sorna.client.running import FAILED, INTERRUPTED
from sorna.client.wire import ApiError, host_header

CONNECT_TIMEOUT = 10.0
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
