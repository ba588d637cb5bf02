"""All wiring of an agent, and nothing else. Apart from ``assembly``, so that an agent loads no gateway and no manager."""

from __future__ import annotations

import os
import secrets
import signal
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

from attrs import evolve
from twisted.application.service import IService
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.internet.utils import getProcessOutputAndValue
from twisted.logger import Logger
from twisted.python.failure import Failure

from sorna.agent.channel import Channel
from sorna.agent.detection import Detection, detect, host_capacity
from sorna.agent.devices import Devices
from sorna.agent.ended import EndedKernels
from sorna.agent.factory import KernelFactory
from sorna.agent.folder_watch import FolderWatch
from sorna.agent.handover import SIGNAL, HandoverImpossible, Program, descriptors_of, pack, receive, replace
from sorna.agent.heartbeat import AgentIdentity, Heart
from sorna.agent.host_load import HostLoadMeter
from sorna.agent.interfaces import Sandbox, SandboxSettings
from sorna.agent.kernels import Kernels
from sorna.agent.link_server import LinkServer
from sorna.agent.pool import Pool, suggested_size
from sorna.agent.retirement import Retirement
from sorna.agent.sandbox.tiers import NamespaceSandbox, UnconfinedSandbox
from sorna.agent.service import AgentParts, AgentService
from sorna.agent.succession import Succession, take_over
from sorna.boot import Stopping
from sorna.config import AgentConfig
from sorna.curve_keys import AuthorisedKeys, KeyFileError, load_or_make
from sorna.embedded.child import EX_CONFIG
from sorna.errors import IsolationUnavailable, Unavailable
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
TRIAL_DEADLINE = 30.0


def assemble_agent(reactor: Any, config: AgentConfig) -> IService:  # noqa: PLR0915 - a list of what there is
    """Build the service tree of ``twistd sorna-agent``."""
    if config.debug:
        show_debug()
    address = parse_redis_address(config.redis.address)
    if config.redis.password:
        address = evolve(address, password=config.redis.password)
    hearts: list[Heart] = []

    def announce_again() -> None:
        # A Redis that comes back may have forgotten this agent, and no manager gives it kernels until it has beaten again.
        for heart in hearts:
            heart.soon()

    redis = RedisConnection(reactor, address, INSTANCES_DB, on_up=announce_again)
    directory = config.state_dir / "agent"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    carried = _carried()
    keys = load_or_make(directory)
    authorised = AuthorisedKeys(reactor, directory / "authorised")
    incarnation = secrets.token_hex(8) if carried is None else carried["incarnation"]
    signalled = RestartSignal(reactor)
    devices = Devices(config.kernels.gpu_devices, hidden=config.kernels.isolation != "none")
    stages = Stages(reactor, config.trace_stages) if config.trace_stages else None

    def assemble(detection: Detection) -> AgentParts:
        sandbox = _sandbox(reactor, config, detection)
        open_channel = partial(Channel, reactor)
        confining = watched(stages, "sandbox", sandbox)
        factory = KernelFactory(reactor, confining, detection.runtimes, open_channel)
        capacity = host_capacity(len(devices))
        most_ready = config.kernels.pool if config.kernels.pool is not None else suggested_size(capacity.memory)
        pool = Pool(reactor, factory, most_ready)
        in_thread = partial(deferToThreadPool, reactor, reactor.getThreadPool())
        watch = FolderWatch(reactor, config.folder_root, in_thread)
        ended = EndedKernels(reactor, config.kernels.output)
        room = room_of(capacity, config.kernels.memory_overcommit, config.kernels.cpu_overcommit)
        most = config.kernels.max_kernels
        ready = watched(stages, "pool", pool)
        kernels = Kernels(reactor, ready, detection.runtimes, most, watch, ended=ended, devices=devices, room=room)
        operations = watched(stages, "agent", kernels)
        link = LinkServer(
            reactor, operations, keys, authorised, interface=config.ip, port=config.port, incarnation=incarnation
        )
        kernels.report_to(link)
        if carried is not None:
            link.take_over(carried["news"])
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
            HostLoadMeter(),
        )
        heart = Heart(reactor, RedisHeartbeatStore(redis), kernels, identity, HEARTBEAT_INTERVAL)
        hearts.append(heart)
        signalled.succession = _succession(
            reactor, sandbox=sandbox, pool=pool, kernels=kernels, link=link, heart=heart, incarnation=incarnation
        )
        link.restart_program = signalled.succession.begin
        begin = None if carried is None else partial(take_over, carried, sandbox, kernels, open_channel)
        return AgentParts(sandbox, pool, kernels, link, heart, begin)

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
    agent.when_ready().addCallbacks(lambda _ready: signalled.listen(), lambda _failure: None)
    if config.exit_with_parent:
        parent.addService(ParentWatch(reactor))
    return parent


def _carried() -> Mapping[str, Any] | None:
    """Read what the program before this one has left; what cannot be read is gone, and the agent starts as a new one."""
    try:
        return receive(os.environ)
    except HandoverImpossible as error:
        Logger().error("the kernels of the program before this one are ended: {error}", error=str(error))
        return None


def _succession(
    reactor: Any,
    *,
    sandbox: Sandbox,
    pool: Pool,
    kernels: Kernels,
    link: LinkServer,
    heart: Heart,
    incarnation: str,
) -> Succession:
    """Build what replaces the program of this process by itself, as it is installed then."""
    program = Program(sys.orig_argv, sys.argv)
    return Succession(
        reactor,
        sandbox,
        pool,
        kernels,
        link,
        heart,
        incarnation,
        lambda: _try_program(reactor, program),
        lambda state: replace(program, pack(state), descriptors_of(state)),
        lambda why: fail_process(reactor, why),
    )


async def _try_program(reactor: Any, program: Program) -> None:
    """Load the next program beside this one. :raises HandoverImpossible: it cannot be loaded, or would not start."""
    program.check()
    arguments = ("-c", "import sorna.agent_assembly, sorna.agent_tap")
    said, errors, code = await getProcessOutputAndValue(
        program.arguments[0], arguments, env=dict(os.environ), reactor=reactor
    ).addTimeout(TRIAL_DEADLINE, reactor)
    if code != 0:
        last = (errors or said).decode("utf-8", "replace").strip().splitlines()[-1:]
        raise HandoverImpossible(f"the new program cannot be loaded: {' '.join(last)[:500]}")


class RestartSignal:
    """Replaces the agent's program when SIGUSR2 comes.

    :ivar succession: who does it, known when the agent is assembled.
    """

    _log = Logger()

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self.succession: Succession | None = None

    def listen(self) -> None:
        """Heed the signal from now on."""
        signal.signal(SIGNAL, lambda _number, _frame: self._reactor.callFromThread(self._received))

    def _received(self) -> None:
        if self.succession is not None:
            Deferred.fromCoroutine(self.succession.begin()).addErrback(self._refused)

    def _refused(self, failure: Failure) -> None:
        failure.trap(Unavailable)
        self._log.error("{error}", error=failure.getErrorMessage())


def _sandbox(reactor: Any, config: AgentConfig, detection: Detection) -> Sandbox:
    settings = SandboxSettings(
        python=config.kernels.python,
        preload=config.kernels.preload,
        read_only=detection.read_only,
        folder_root=str(config.folder_root),
    )
    tier = UnconfinedSandbox if config.kernels.isolation == "none" else NamespaceSandbox
    return tier(reactor, settings, config.agent_id)
