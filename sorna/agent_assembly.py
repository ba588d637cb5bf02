"""All wiring of an agent, and nothing else. Apart from ``assembly``, so that an agent loads no gateway and no manager."""

from __future__ import annotations

import os
import secrets
from functools import partial
from typing import Any

from attrs import evolve
from twisted.application.service import IService
from twisted.internet.threads import deferToThreadPool

from sorna.agent.channel import Channel
from sorna.agent.detection import Detection, detect, host_capacity
from sorna.agent.devices import Devices
from sorna.agent.ended import EndedKernels
from sorna.agent.factory import KernelFactory
from sorna.agent.folder_watch import FolderWatch
from sorna.agent.heartbeat import AgentIdentity, Heart
from sorna.agent.interfaces import Sandbox, SandboxSettings
from sorna.agent.kernels import Kernels
from sorna.agent.link_server import LinkServer
from sorna.agent.pool import Pool
from sorna.agent.retirement import Retirement
from sorna.agent.sandbox.tiers import NamespaceSandbox, UnconfinedSandbox
from sorna.agent.service import AgentParts, AgentService
from sorna.boot import Stopping
from sorna.config import AgentConfig
from sorna.curve_keys import AuthorisedKeys, KeyFileError, load_or_make
from sorna.embedded.child import EX_CONFIG
from sorna.errors import IsolationUnavailable
from sorna.lifecycle import OrderedServices, fail_process, settle_memory, stop_process
from sorna.live.address import parse_redis_address
from sorna.live.connection import RedisConnection
from sorna.live.instances import RedisHeartbeatStore
from sorna.model.agent import room_of
from sorna.observability import show_debug
from sorna.parent_watch import ParentWatch
from sorna.stages import Stages, watched
from sorna.zeromq import tcp_endpoint

# Short, because a dead agent's kernels are to be reported as ended within five seconds: two intervals until the liveness
# key expires, and two looks of the managers' reaper.
HEARTBEAT_INTERVAL = 1.2
INSTANCES_DB = 2


def assemble_agent(reactor: Any, config: AgentConfig) -> IService:
    """Build the service tree of ``twistd sorna-agent``."""
    if config.debug:
        show_debug()
    address = parse_redis_address(config.redis.address)
    if config.redis.password:
        address = evolve(address, password=config.redis.password)
    redis = RedisConnection(reactor, address, INSTANCES_DB)
    directory = config.state_dir / "agent"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    keys = load_or_make(directory)
    authorised = AuthorisedKeys(reactor, directory / "authorised")
    incarnation = secrets.token_hex(8)
    devices = Devices(config.kernels.gpu_devices, hidden=config.kernels.isolation != "none")
    stages = Stages(reactor, config.trace_stages) if config.trace_stages else None

    def assemble(detection: Detection) -> AgentParts:
        sandbox = _sandbox(reactor, config, detection)
        factory = KernelFactory(
            reactor, watched(stages, "sandbox", sandbox), detection.runtimes, partial(Channel, reactor)
        )
        pool = Pool(reactor, factory, config.kernels.pool)
        in_thread = partial(deferToThreadPool, reactor, reactor.getThreadPool())
        watch = FolderWatch(reactor, config.folder_root, in_thread)
        ended = EndedKernels(reactor, config.kernels.output)
        capacity = host_capacity(len(devices))
        room = room_of(capacity, config.kernels.memory_overcommit, config.kernels.cpu_overcommit)
        most = config.kernels.max_kernels
        ready = watched(stages, "pool", pool)
        kernels = Kernels(reactor, ready, detection.runtimes, most, watch, ended=ended, devices=devices, room=room)
        operations = watched(stages, "agent", kernels)
        link = LinkServer(
            reactor, operations, keys, authorised, interface=config.ip, port=config.port, incarnation=incarnation
        )
        kernels.report_to(link)
        Retirement(reactor, kernels, lambda: link.untold, partial(stop_process, reactor))
        endpoint = tcp_endpoint(config.ip, config.port)
        identity = AgentIdentity(
            config.agent_id,
            incarnation,
            endpoint,
            keys.public,
            sandbox.name,
            capacity,
            lambda: sandbox.storage,
            config.kernels.labels,
        )
        return AgentParts(
            sandbox,
            pool,
            kernels,
            link,
            Heart(reactor, RedisHeartbeatStore(redis), kernels, identity, HEARTBEAT_INTERVAL),
        )

    def failed(error: Exception) -> None:
        hopeless = isinstance(error, IsolationUnavailable | KeyFileError)
        detail = getattr(error, "detail", "") or str(error)
        fail_process(reactor, f"the agent cannot start: {detail}", EX_CONFIG if hopeless else 1)

    parent = OrderedServices(reactor, stop_timeout=30.0)
    parent.addService(redis)
    if stages is not None:
        parent.addService(Stopping(stages.write))
    agent = AgentService(
        reactor,
        lambda: detect(reactor, reactor, config.kernels.python, dict(os.environ), has_gpu=len(devices) > 0),
        assemble,
        failed,
    )
    # Whoever hears of a failed start is told by ``failed``.
    agent.when_ready().addCallbacks(lambda _ready: settle_memory(), lambda _failure: None)
    parent.addService(agent)
    if config.exit_with_parent:
        parent.addService(ParentWatch(reactor))
    return parent


def _sandbox(reactor: Any, config: AgentConfig, detection: Detection) -> Sandbox:
    settings = SandboxSettings(
        python=config.kernels.python,
        preload=config.kernels.preload,
        read_only=detection.read_only,
        folder_root=str(config.folder_root),
    )
    tier = UnconfinedSandbox if config.kernels.isolation == "none" else NamespaceSandbox
    return tier(reactor, settings, config.agent_id)
