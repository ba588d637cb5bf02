"""``twistd sorna-agent``: its options and ``makeService``."""

from __future__ import annotations

import os

from twisted.application.service import IService
from twisted.python import usage

from sorna.config import AgentConfig, ConfigurationError, agent_config
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

    from sorna.agent_assembly import assemble_agent  # noqa: PLC0415 - what it imports wants the reactor installed

    return assemble_agent(reactor, options.agent)
