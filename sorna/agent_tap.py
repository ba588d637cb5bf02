"""``twistd sorna-agent``: its options and ``makeService``.

Note [An agent has no use for the time of day]
    Everything that an agent times is how long something took or may take: leases, budgets of runs, idleness, retention. Twisted's
    timers go by the wall clock, and when somebody sets that by an hour, either every timer fires at once, which ends runs and
    idle kernels, or none does for an hour, which lets the lease end. So the agent's reactor counts the seconds since the host
    started instead, which nobody can set. Log lines have the time of day as ever.
"""

from __future__ import annotations

import os
import time

from twisted.application.service import IService
from twisted.python import usage

from sorna.config import AgentConfig, ConfigurationError, agent_config
from sorna.freed_memory import keep_freed_memory
from sorna.settings import AGENT_SETTINGS
from sorna.tap import SettingsOptions


class Options(SettingsOptions):
    """Options of an agent."""

    synopsis = "[options]"
    longdesc = (
        "An agent reports to the Redis of its managers and takes calls from those whose keys it was told to trust."
    )
    settings = AGENT_SETTINGS
    agent: AgentConfig

    def postOptions(self) -> None:
        """Build the configuration; a value that cannot be right ends the program before any socket opens."""
        try:
            self.agent = agent_config(self, os.environ)
        except ConfigurationError as error:
            raise usage.UsageError(str(error)) from error


def makeService(options: Options) -> IService:
    """Build the service tree of an agent."""
    from twisted.internet import reactor  # noqa: PLC0415, TID251 - Twisted installs it just before this call

    reactor.seconds = time.monotonic  # type: ignore[method-assign]  # see Note [An agent has no use for the time of day]

    from sorna.agent_assembly import assemble_agent  # noqa: PLC0415 - what it imports wants the reactor installed

    keep_freed_memory()
    return assemble_agent(reactor, options.agent)
