"""``twistd sorna``: its options and ``makeService``, the table of contents of the program.

With its sibling ``agent_tap`` the only place where the reactor and the process's environment are reached for.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import ClassVar

from twisted.application.service import IService
from twisted.python import usage

from sorna.config import ConfigurationError, ServerConfig, server_config
from sorna.freed_memory import keep_freed_memory
from sorna.settings import SERVER_SETTINGS, Setting


class SettingsOptions(usage.Options):
    """Options that a table of :class:`sorna.config.Setting` describes; what was not given stays None."""

    settings: ClassVar[Sequence[Setting]] = ()
    optFlags: ClassVar[list[list[str | None]]]
    optParameters: ClassVar[list[list[str | None]]]

    def __init_subclass__(cls) -> None:
        """Spell the table the way Twisted collects options from classes."""
        cls.optFlags = [[s.name, None, s.described] for s in cls.settings if s.is_flag]
        cls.optParameters = [[s.name, None, None, s.described] for s in cls.settings if not s.is_flag]


class Options(SettingsOptions):
    """Options of the server."""

    synopsis = "[options]"
    longdesc = (
        "Without --db-addr and --redis-addr a private PostgreSQL and Redis are started under --state-dir, and with the "
        "latter a local agent: one command gives a working system on a loopback address."
    )
    settings = SERVER_SETTINGS
    server: ServerConfig

    def postOptions(self) -> None:
        """Build the configuration; a value that cannot be right ends the program before any socket opens."""
        try:
            self.server = server_config(self, os.environ)
        except ConfigurationError as error:
            raise usage.UsageError(str(error)) from error


def makeService(options: Options) -> IService:
    """Build the service tree of the server."""
    from twisted.internet import reactor  # noqa: PLC0415, TID251 - Twisted installs it just before this call

    from sorna.assembly import assemble_server  # noqa: PLC0415 - what it imports wants the reactor installed

    keep_freed_memory()
    return assemble_server(reactor, options.server)
