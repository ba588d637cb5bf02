"""The wiring of the agent that the embedded mode runs as a child: its name, its options, and the wait for its first heartbeat."""

from __future__ import annotations

import hashlib
from typing import Any

from attrs import frozen
from twisted.internet.task import deferLater
from twisted.logger import Logger

from sorna.config import ServerConfig
from sorna.curve_keys import CurveKeypair
from sorna.embedded.local_agent import LocalAgent
from sorna.errors import Unavailable
from sorna.lifecycle import OrderedServices, Readiness, fail_process
from sorna.live.address import RedisAddress
from sorna.manager.agents import UNDRAINED_TOPIC
from sorna.manager.enrolment_interfaces import AgentStore
from sorna.manager.interfaces import AgentDirectory, Announcements
from sorna.model.limits import MIB

AGENT_DEADLINE = 60.0
# A predecessor's agent, killed a moment ago, may still hold the port at the first attempts.
AGENT_ATTEMPTS = 4

_log = Logger()


def local_agent_id(keys: CurveKeypair) -> str:
    """Name the local agent after its key: stable over restarts, and another one for every state directory.

    Two servers on one host must not share it, because an agent takes control groups of its name for its own leftovers.
    """
    return f"i-{hashlib.sha256(keys.public.encode('ascii')).hexdigest()[:12]}"


@frozen
class FirstAgent:
    """Starts the agent of this host, which is stopped with ``parent``."""

    reactor: Any
    config: ServerConfig
    readiness: Readiness
    parent: OrderedServices
    directory: AgentDirectory
    announcements: Announcements

    async def start(self, agents: AgentStore, agent_id: str, redis: RedisAddress) -> None:
        """Start the local agent and wait for its first heartbeat: without it nothing could be created.

        One that is drained is not started until that is undone.
        """
        drained = agent_id in await agents.drains()
        agent = self._spawn(redis, agent_id, waiting=drained)
        self.announcements.subscribe(UNDRAINED_TOPIC, lambda which: agent.resume() if which == agent_id else None)
        if drained:
            _log.warn("the local agent {agent_id} is drained and is not started", agent_id=agent_id)
            return
        self.readiness.expect("agent", "no heartbeat yet")
        deadline = self.reactor.seconds() + AGENT_DEADLINE
        while await self.directory.find(agent_id) is None:
            if agent.early_ends >= AGENT_ATTEMPTS:
                raise Unavailable(f"the local agent does not start: {agent.last_words}")
            if self.reactor.seconds() > deadline:
                raise Unavailable("the local agent sends no heartbeat")
            await deferLater(self.reactor, 0.02)
        self.readiness.arrived("agent")

    def _spawn(self, redis: RedisAddress, agent_id: str, *, waiting: bool) -> LocalAgent:
        """Run the agent of this host as a child, or have it wait for its turn."""
        given = self.config.redis
        options: dict[str, str | float | bool] = {
            "agent-id": agent_id,
            "agent-port": self.config.agent_port,
            "state-dir": str(self.config.state_dir),
            "redis-addr": given.address if given is not None else f"unix://{redis.path}",
            "isolation": self.config.kernels.isolation,
            "max-kernels": self.config.kernels.max_kernels,
            "kernel-pool": "auto" if self.config.kernels.pool is None else self.config.kernels.pool,
            "kernel-python": self.config.kernels.python,
            "folder-root": str(self.config.folders.root),
            "gpu-devices": str(self.config.kernels.gpu_devices),
            "output-kept": str(self.config.kernels.output.size / MIB),
            "output-retention": str(self.config.kernels.output.retention),
            "kernel-preload": ",".join(self.config.kernels.preload),
            "agent-labels": ",".join(f"{key}={value}" for key, value in self.config.kernels.labels.items()),
            "memory-overcommit": self.config.kernels.memory_overcommit,
            "cpu-overcommit": self.config.kernels.cpu_overcommit,
            "debug": self.config.debug,
            "trace-stages": str(self.config.trace_stages or ""),
        }
        if redis.password is not None:
            options["redis-password"] = redis.password
        refused = lambda why: fail_process(self.reactor, f"the local agent cannot start: {why}")  # noqa: E731
        agent = LocalAgent(self.reactor, self.reactor, self.config.state_dir, options, refused, waiting=waiting)
        self.parent.addService(agent)
        return agent
