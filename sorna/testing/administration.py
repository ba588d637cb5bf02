"""The manager's administration over stores in memory: what tests of doors need to ask questions and see the answers.

All parts are the verified fakes of their rooms, so that nothing here has a behaviour of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attrs import frozen
from twisted.internet.interfaces import IReactorTime

from sorna.agent.interfaces import AgentOperations
from sorna.cluster.enrolment import Trust, TrustedDirectory
from sorna.cluster.memory import MemoryAgentLink
from sorna.curve_keys import CurveKeypair, generate
from sorna.live.memory import (
    MemoryAgentDirectory,
    MemoryAnnouncements,
    MemoryHeartbeatStore,
    MemoryLiveKernels,
    MemoryRedis,
)
from sorna.manager.administration import Administration
from sorna.manager.agents import AgentAdministration
from sorna.manager.ending import Ending
from sorna.manager.enrolments import Enrolments, RedisTold
from sorna.manager.events import KernelEvents
from sorna.manager.placing import Placing
from sorna.model.keypair import Keypair
from sorna.model.limits import LimitPolicy
from sorna.sealing import Seal
from sorna.store.memory import MemoryKernels, MemoryKeypairs, MemoryReports
from sorna.store.memory_agents import MemoryAgents, MemoryTickets
from sorna.store.memory_folders import MemoryFolders
from sorna.store.memory_queue import MemoryQueue


@frozen
class MemoryWorld:
    """What there is, and the administration that tells of it."""

    redis: MemoryRedis
    keypairs: MemoryKeypairs
    kernels: MemoryKernels
    agents: MemoryAgents
    heartbeats: MemoryHeartbeatStore
    live: MemoryLiveKernels
    announcements: MemoryAnnouncements
    administration: Administration
    folders: MemoryFolders
    hosts: dict[str, AgentOperations]
    queue: MemoryQueue
    enrolments: Enrolments
    manager_keys: CurveKeypair


#: An agent that can be reached and holds no kernel: it can only be told to replace its program.
_NOBODY: Any = None


def memory_world(
    clock: IReactorTime, keypairs: Iterable[Keypair] = (), reachable: Iterable[str] = ("i-1",)
) -> MemoryWorld:
    """Make a world with these keypairs and nothing else."""
    redis = MemoryRedis(clock)
    stored = MemoryKeypairs(keypairs)
    kernels, agents = MemoryKernels(stored), MemoryAgents()
    live, announcements = MemoryLiveKernels(redis), MemoryAnnouncements(redis)
    folders = MemoryFolders(stored, kernels)
    directory, keys = MemoryAgentDirectory(redis), generate()
    hosts: dict[str, AgentOperations] = dict.fromkeys(reachable, _NOBODY)
    link = MemoryAgentLink(clock, hosts, lambda ended: ending.on_kernel_ended(ended))  # noqa: PLW0108 - made below
    ending = Ending(clock, kernels, live, directory, link, KernelEvents(clock, kernels, announcements))
    trust = Trust(clock, agents, lambda _agent_id: None)
    trusted = TrustedDirectory(trust, directory)
    queue = MemoryQueue(kernels)
    placing = Placing(clock, trusted)
    agent_administration = AgentAdministration(
        clock, agents, trusted, link, kernels, ending, announcements, placing, LimitPolicy(), trust.changed
    )
    enrolments = Enrolments(
        clock,
        agents,
        MemoryTickets(agents),
        kernels,
        directory,
        link,
        ending,
        announcements,
        Seal(keys),
        RedisTold("redis://192.0.2.1:6379", "pass"),
    )
    administration = Administration(
        clock,
        stored,
        stored.policies,
        kernels,
        MemoryReports(kernels, stored),
        agents,
        directory,
        live,
        announcements,
        folders,
        folders.remove_forsaken,
        agent_administration,
        queue,
    )
    heartbeats = MemoryHeartbeatStore(redis)
    return MemoryWorld(
        redis,
        stored,
        kernels,
        agents,
        heartbeats,
        live,
        announcements,
        administration,
        folders,
        hosts,
        queue,
        enrolments,
        keys,
    )
