"""``twistd sorna-worker``: its options and ``makeService``. Whoever runs a server does not start it: the server does."""

from __future__ import annotations

import re
import sys

from twisted.application.service import IService

from sorna.config import MOST_WORKERS, ConfigurationError, ServerConfig, server_config
from sorna.embedded.child import EX_CONFIG
from sorna.freed_memory import keep_freed_memory
from sorna.settings import WORKER_SETTINGS
from sorna.tap import SettingsOptions
from sorna.workers import Place


class Options(SettingsOptions):
    """Options of a worker: a file with the server's, which is all that counts, and which of the processes it is."""

    synopsis = "--config FILE --worker NUMBER --group NAME"
    longdesc = "Started by 'twistd sorna --workers N', whose port it shares, and never by hand."
    settings = WORKER_SETTINGS
    server: ServerConfig
    place: Place

    def postOptions(self) -> None:
        """Build the configuration; what cannot be right now will not be at another attempt either."""
        try:
            self.place = self._place()
            if not self["config"]:
                raise ConfigurationError("--config is missing")
            self.server = server_config({"config": self["config"]}, {})
        except ConfigurationError as error:
            sys.stderr.write(f"sorna: {error}\n")
            sys.exit(EX_CONFIG)

    def _place(self) -> Place:
        number, group = self["worker"] or "", self["group"] or ""
        if not re.fullmatch(r"[0-9]{1,3}", number) or not 2 <= int(number) <= MOST_WORKERS:
            raise ConfigurationError(f"--worker must be from 2 to {MOST_WORKERS}, not {number!r}")
        if not re.fullmatch(r"[0-9a-f]{16}", group):
            raise ConfigurationError("--group must be 16 hexadecimal digits")
        return Place(int(number), group)


def makeService(options: Options) -> IService:
    """Build the service tree of a worker."""
    from twisted.internet import reactor  # noqa: PLC0415, TID251 - Twisted installs it just before this call

    from sorna.assembly import assemble_worker  # noqa: PLC0415 - what it imports wants the reactor installed

    keep_freed_memory()
    return assemble_worker(reactor, options.server, options.place)
