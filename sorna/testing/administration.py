"""The manager's administration over stores in memory: what tests of doors need to ask questions and see the answers.

All parts are the verified fakes of their rooms, so that nothing here has a behaviour of its own.
"""

from __future__ import annotations

from collections.abc import Iterable

from attrs import frozen
from twisted.internet.interfaces import IReactorTime

from sorna.live.memory import (
    MemoryAgentDirectory,
    MemoryAnnouncements,
    MemoryHeartbeatStore,
    MemoryLiveKernels,
    MemoryRedis,
)
from sorna.manager.administration import Administration
from sorna.model.keypair import Keypair
from sorna.store.memory import MemoryAgents, MemoryKernels, MemoryKeypairs, MemoryReports
from sorna.store.memory_folders import MemoryFolders


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


def memory_world(clock: IReactorTime, keypairs: Iterable[Keypair] = ()) -> MemoryWorld:
    """Make a world with these keypairs and nothing else."""
    redis = MemoryRedis(clock)
    stored = MemoryKeypairs(keypairs)
    kernels, agents = MemoryKernels(stored), MemoryAgents()
    live, announcements = MemoryLiveKernels(redis), MemoryAnnouncements(redis)
    folders = MemoryFolders(stored, kernels)
    administration = Administration(
        clock,
        stored,
        stored.policies,
        kernels,
        MemoryReports(kernels, stored),
        agents,
        MemoryAgentDirectory(redis),
        live,
        announcements,
        folders,
        folders.remove_forsaken,
    )
    heartbeats = MemoryHeartbeatStore(redis)
    return MemoryWorld(redis, stored, kernels, agents, heartbeats, live, announcements, administration, folders)
