"""All wiring of the server, and nothing else: which part is built from which, in the order in which they depend.

``assemble_server`` binds the HTTP port at once and brings everything else up step by step; what a step brought up is a child
of one parent that stops its children in reverse. ``assemble_worker`` does so for one more process that shares the port.

With ``--workers`` the first process alone starts the databases, the agent and the ZeroMQ door, brings the schema up to date, and
starts the others; see also Note [What one process does for all] in ``upkeep_assembly``.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from attrs import define, evolve, field, frozen
from twisted.application.service import IService
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import quoteStringArgument, serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.logger import Logger
from twisted.web.server import Site

from sorna.beneath.storage_root import prepare_root
from sorna.boot import Boot, Listening, Stopping, repeating, until_available
from sorna.cluster.enrolment import LOOK_INTERVAL, Trust, TrustedDirectory
from sorna.cluster.link import ZmqAgentLink
from sorna.config import ServerConfig
from sorna.curve_keys import CurveKeypair, load_or_make
from sorna.embedded.postgres import EmbeddedPostgres
from sorna.embedded.redis import EmbeddedRedis
from sorna.errors import Unavailable
from sorna.first_start import banner, endpoint_of, ensure_keypairs, manager_keys, write_client_file
from sorna.folders.storage import DiskFolders, Threads
from sorna.gateway.service import make_site
from sorna.gateway.starting import FrontDoor
from sorna.legacy_assembly import BehindTheDoor, open_legacy_door
from sorna.lifecycle import Draining, Operations, OrderedServices, Readiness, fail_process, settle_memory
from sorna.live.address import RedisAddress, parse_redis_address
from sorna.live.channels import RedisAnnouncements
from sorna.live.connection import RedisConnection
from sorna.live.instances import RedisAgentDirectory, RedisHeartbeatStore
from sorna.live.kernels import KERNELS_DB, RedisLiveKernels
from sorna.live.rate_counters import RedisRateCounters
from sorna.local_agent_assembly import FirstAgent, local_agent_id
from sorna.manager.absence import Absence
from sorna.manager.administration import Administration
from sorna.manager.agents import AgentAdministration
from sorna.manager.creation import Creation
from sorna.manager.ending import Ending
from sorna.manager.enrolment_interfaces import AgentStore
from sorna.manager.enrolments import AGENT_TOPIC, Enrolments, RedisTold
from sorna.manager.entitlements import Entitlements
from sorna.manager.events import KernelEvents
from sorna.manager.folders import Folders
from sorna.manager.interfaces import AgentDirectory
from sorna.manager.keypairs import MAX_AGE, CachedKeypairs
from sorna.manager.places import Places
from sorna.manager.placing import Placing
from sorna.manager.queue import Queue
from sorna.manager.reaper import Reaper
from sorna.manager.registry import Registry
from sorna.manager.transfers import Transfers
from sorna.manager.turns import SharedMending
from sorna.model.keypair import EXAMPLE_ACCESS_KEY
from sorna.observability import show_debug
from sorna.parent_watch import ParentWatch
from sorna.sealing import Seal
from sorna.shared_port import SharedPorts
from sorna.stages import Stages, WatchedResource, watched
from sorna.store.address import DatabaseAddress
from sorna.store.service import Store, Tables, open_store
from sorna.upkeep_assembly import Upkeep, turn_of
from sorna.workers import Place, Workers

EVENTS_INTERVAL = 1.0
KEYPAIR_USE_INTERVAL = 1.0
# Seconds that a worker may take to stop when the first process is gone; the private databases have gone with that.
ORPHAN_TIMEOUT = 4

T = TypeVar("T")

_log = Logger()


def assemble_server(reactor: Any, config: ServerConfig) -> IService:
    """Build the service tree of ``twistd sorna``."""
    server = _server(reactor, config, Place(1, secrets.token_hex(8)))
    # Stopped in reverse: first no new connections, then no further steps, then what the steps brought up. The port is bound
    # before anything starts all the same, because twistd lets all services do their privileged part first.
    parent = _process(server, Boot(server.bring_up, lambda why: fail_process(reactor, why)))
    parent.addService(Listening(server.endpoint, server.front_door))
    return parent


def assemble_worker(reactor: Any, config: ServerConfig, place: Place) -> IService:
    """Build the service tree of one more process; it opens its part of the port when it can serve, and closes it first."""
    server = _server(reactor, config, place)
    parent = _process(server, Boot(server.join, lambda why: fail_process(reactor, why)))
    parent.addService(ParentWatch(reactor, within=ORPHAN_TIMEOUT))
    return parent


def _server(reactor: Any, config: ServerConfig, place: Place) -> _Server:
    readiness = Readiness()
    readiness.expect("server", "starting")
    if config.debug:
        show_debug()
    return _Server(reactor, config, readiness, FrontDoor(lambda: readiness.reason), OrderedServices(reactor), place)


def _process(server: _Server, boot: Boot) -> OrderedServices:
    parent = OrderedServices(server.reactor, stop_timeout=60.0)
    parent.addService(server.parent)
    parent.addService(boot)
    return parent


@frozen
class _Manager:
    """What the doors are built on, and the HTTP door itself."""

    directory: AgentDirectory
    heartbeats: RedisHeartbeatStore
    site: Site
    behind: BehindTheDoor


@define
class _Server:
    """The steps of the server's start; each adds what must be stopped to ``parent``."""

    reactor: Any
    config: ServerConfig
    readiness: Readiness
    front_door: FrontDoor
    parent: OrderedServices
    place: Place
    storage_id: str = ""
    ports: Any = field(init=False)

    @ports.default
    def _ports(self) -> Any:
        return SharedPorts(self.reactor, self.place.number == 1) if self.config.workers > 1 else self.reactor

    @property
    def endpoint(self) -> IStreamServerEndpoint:
        """The HTTP port."""
        host, port = quoteStringArgument(self.config.service_ip), self.config.service_port
        if self.config.tls:
            key, cert = quoteStringArgument(str(self.config.ssl_key)), quoteStringArgument(str(self.config.ssl_cert))
            description = f"ssl:{port}:interface={host}:privateKey={key}:certKey={cert}"
        else:
            description = f"{'tcp6' if ':' in self.config.service_ip else 'tcp'}:{port}:interface={host}"
        endpoint: IStreamServerEndpoint = serverFromString(self.ports, description)
        return endpoint

    async def bring_up(self) -> None:
        """Start everything in the order in which it depends on each other."""
        self._make_state_dir()
        database, redis = await self._databases()
        store = await self._store(database)
        self.parent.addService(store)
        first = await self._patiently(
            lambda: ensure_keypairs(store.tables.keypairs, self.config, self.reactor.seconds())
        )
        if first is not None:
            # At once: a secret that is in the database alone is lost to its operator if a later step fails.
            write_client_file(self.config.state_dir, endpoint_of(self.config), first.keypair)
        shared_keys = await manager_keys(
            self.config.state_dir / "manager", store.tables.cluster_keys, self.reactor.seconds()
        )
        agent_keys = load_or_make(self.config.state_dir / "agent") if self.config.local_agent else None
        await self._patiently(lambda: self._enrol(store.tables.agents, shared_keys, agent_keys))
        manager = self._serve(store.tables, redis, shared_keys)
        if agent_keys is not None:
            agent_id = local_agent_id(agent_keys)
            # What the agent of a killed predecessor has left behind is no sign of life of the one that starts now.
            await manager.heartbeats.leave(agent_id)
            announcements = manager.behind.announcements
            local = FirstAgent(self.reactor, self.config, self.readiness, self.parent, manager.directory, announcements)
            await local.start(store.tables.agents, agent_id, redis)
        own = first.keypair.access_key if self.config.embedded and first is not None else None
        await open_legacy_door(self.reactor, self.config, self.parent, manager.behind, own)
        self._open(manager)
        if self.config.workers > 1:
            self._start_workers(database, redis)
        _show(banner(self.config, first))
        _log.info("serving at {endpoint}", endpoint=endpoint_of(self.config))

    async def join(self) -> None:
        """Bring up what serves beside the first process, which has made the rest, and open this process's part of the port."""
        self.storage_id = prepare_root(self.config.folders.root)
        database, redis = await self._databases()
        store = Store(self.reactor, database)
        self.parent.addService(store)
        manager = self._serve(store.tables, redis, load_or_make(self.config.state_dir / "manager"))
        # Nobody is to wait in this process's queue while it still has to find out that it cannot serve.
        await self._patiently(manager.directory.alive)
        self._open(manager)
        try:
            port = await self.endpoint.listen(self.front_door)
        except CannotListenError as error:
            raise Unavailable(f"cannot share port {error.port}: {error.socketError}") from error
        self.parent.addService(Stopping(partial(maybeDeferred, port.stopListening)))
        _log.info("serving at {endpoint} too", endpoint=endpoint_of(self.config))

    def _open(self, manager: _Manager) -> None:
        settle_memory()
        self.readiness.arrived("server")
        self.front_door.open(manager.site)

    def _start_workers(self, database: DatabaseAddress, redis: RedisAddress) -> None:
        """Start the other processes. :raises Unavailable: they could not share the port, which another user has opened."""
        if self.ports.user != os.geteuid():
            raise Unavailable("--workers: twistd's --uid cannot be used with it; start the server as that user")
        self.parent.addService(Workers(self.reactor, self.config, self.place.group, database, redis))

    def _make_state_dir(self) -> None:
        """Make the directories that only this user may look into."""
        for path in (self.config.state_dir, self.config.state_dir / "manager", self.config.state_dir / "agent"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.storage_id = prepare_root(self.config.folders.root)

    async def _databases(self) -> tuple[DatabaseAddress, RedisAddress]:
        """Find both databases: the operator's, or private ones started side by side."""
        database = Deferred.fromCoroutine(self._database())
        redis = Deferred.fromCoroutine(self._redis())
        try:
            return await database, await redis
        except BaseException:
            for starting in (database, redis):
                starting.cancel()
                starting.addErrback(lambda _failure: None)
            raise

    async def _database(self) -> DatabaseAddress:
        given = self.config.database
        if given is not None:
            return DatabaseAddress(given.host, given.port, given.name, given.user, given.password)
        embedded = EmbeddedPostgres(self.reactor, self.config.state_dir / "postgres")
        self.parent.addService(Stopping(embedded.stop))
        address = await embedded.start()
        embedded.when_lost().addCallback(self._lost)
        return address

    async def _store(self, database: DatabaseAddress) -> Store:
        return await self._patiently(lambda: open_store(self.reactor, database))

    async def _patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Do what needs the database, again until that is there if somebody else runs it: it may come up later than we do."""
        if self.config.database is None:
            return await attempt()

        def note(error: Unavailable | None) -> None:
            if error is None:
                self.readiness.arrived("database")
                _log.info("the database is there")
            else:
                self.readiness.expect("database", "no answer yet")
                _log.warn("waiting for the database: {error}", error=error)

        return await until_available(self.reactor, attempt, note)

    async def _redis(self) -> RedisAddress:
        given = self.config.redis
        if given is not None:
            address = parse_redis_address(given.address)
            return evolve(address, password=given.password) if given.password else address
        embedded = EmbeddedRedis(self.reactor, self.config.state_dir / "redis")
        self.parent.addService(Stopping(embedded.stop))
        started = await embedded.start()
        embedded.when_lost().addCallback(self._lost)
        return RedisAddress(path=started.path, password=started.password)

    def _lost(self, why: str) -> None:
        """End the process, because a private database is gone for good: whoever supervises it starts it again."""
        fail_process(self.reactor, why)

    async def _enrol(self, agents: AgentStore, manager: CurveKeypair, local: CurveKeypair | None) -> None:
        """Trust the local agent and those whose public keys the operator put into ``manager/agents``, and make it trust us."""
        now = self.reactor.seconds()
        enrolled = self.config.state_dir / "manager" / "agents"
        enrolled.mkdir(mode=0o700, exist_ok=True)
        for path in sorted(enrolled.glob("*.public")):
            # "#" is also a character of keys: what follows the key is a comment.
            key = (path.read_text(encoding="ascii").split(maxsplit=1) or [""])[0]
            if not await agents.enrol(path.stem, key, now, again=False):
                _log.warn(
                    "agent {agent_id} was revoked; {path} does not bring it back", agent_id=path.stem, path=str(path)
                )
        if local is not None:
            await agents.enrol(local_agent_id(local), local.public, now)
            authorised = self.config.state_dir / "agent" / "authorised"
            authorised.mkdir(mode=0o700, exist_ok=True)
            (authorised / "local-manager.public").write_text(f"{manager.public}\n", encoding="ascii")

    def _serve(self, store: Tables, redis: RedisAddress, keys: CurveKeypair) -> _Manager:  # noqa: PLR0915 - a list of what there is
        """Build the manager and the gateway on the databases."""
        reactor, parent = self.reactor, self.parent
        threads = Threads(reactor)
        # One for all databases: commands of one turn travel together.
        asked = RedisConnection(reactor, redis, KERNELS_DB)

        def distrusted(agent_id: str) -> None:
            link.forget(agent_id)
            places.forget_all()

        trust = Trust(reactor, store.agents, distrusted)
        stages = Stages(reactor, self.config.trace_stages) if self.config.trace_stages else None
        seen = partial(watched, stages)
        store = evolve(store, kernels=seen("store", store.kernels))
        directory = seen("directory", TrustedDirectory(trust, RedisAgentDirectory(asked)))
        live = seen("live", RedisLiveKernels(asked))
        # The link brings news to what is built on it.
        link = ZmqAgentLink(
            reactor,
            keys,
            lambda ended: ending.on_kernel_ended(ended),  # noqa: PLW0108 - made below
            permits=trust.permits,
        )
        refused = () if self.config.example_keypair else (EXAMPLE_ACCESS_KEY,)
        keypairs = CachedKeypairs(reactor, store.keypairs, refused)
        # Whatever was announced while nobody listened is caught up with.
        places, absence = Places(reactor, store.kernels, live, directory), Absence(reactor)

        def resync() -> None:
            keypairs.changed()
            places.forget_all()
            absence.distrust()
            trust.changed()
            events.heard_again()

        announcements = RedisAnnouncements(
            reactor,
            redis,
            asked,
            on_resync=resync,
            on_loss=lambda: events.lost(),  # noqa: PLW0108 - made below
        )
        keypairs.listen(announcements)
        places.listen(announcements)
        announcements.subscribe(AGENT_TOPIC, trust.changed)
        calls = seen("link", link)
        events = KernelEvents(reactor, store.kernels, seen("announcements", announcements))
        events.listen()
        ending = Ending(reactor, store.kernels, live, directory, calls, events)
        storage = DiskFolders(self.config.folders.root, self.storage_id, threads)
        own, entitlements = self.config.folders, Entitlements(store.folders, store.reports, ending.destroy)
        folders = Folders(reactor, store.folders, storage, keypairs, entitlements, own.bounds, own.most)
        placing = Placing(reactor, directory, self.config.placement)
        queue = Queue(
            reactor,
            store.kernels,
            store.queue,
            placing,
            ending,
            announcements,
            lambda spec: creation.demand(spec),  # noqa: PLW0108 - made below
            lambda *chosen: creation.make_waiting(*chosen),  # noqa: PLW0108 - made below
        )
        queue.listen()
        creation = Creation(
            reactor,
            store.kernels,
            live,
            directory,
            calls,
            announcements,
            ending,
            absence,
            keypairs,
            folders,
            self.config.limits,
            placing,
            queue,
        )
        registry = Registry(reactor, store.kernels, live, directory, calls, creation, ending, seen("places", places))
        agents = AgentAdministration(
            reactor,
            store.agents,
            directory,
            link,
            store.kernels,
            ending,
            announcements,
            placing,
            self.config.limits,
            directory.changed,
        )
        administration = Administration(
            reactor,
            store.keypairs,
            store.policies,
            store.kernels,
            store.reports,
            store.agents,
            directory,
            live,
            announcements,
            store.folders,
            folders.remove_forsaken,
            agents,
            store.queue,
        )
        enrolments = Enrolments(
            reactor,
            store.agents,
            store.tickets,
            store.kernels,
            directory,
            link,
            ending,
            announcements,
            Seal(keys),
            self._redis_told(redis),
        )
        reaper = Reaper(reactor, store.kernels, live, directory, link, ending, absence, agents, queue)
        operations = Operations()
        last = [Stopping(write) for write in (keypairs.write_use, places.write_queries)]
        for service in (threads, asked, announcements, link, *last):
            parent.addService(service)
        turn = turn_of(self.place, self.config.workers, asked)
        upkeep = Upkeep(reactor, parent, turn)
        upkeep.look_after_kernels(SharedMending(turn, reaper, ending, queue))
        upkeep.look_after_folders(folders, storage, store)
        upkeep.look_after_agents(directory, store)
        parent.addService(repeating(reactor, EVENTS_INTERVAL, events.repair, "while repairing streams of events"))
        parent.addService(
            repeating(reactor, KEYPAIR_USE_INTERVAL, keypairs.write_use, "while writing the use of keypairs")
        )
        parent.addService(
            repeating(reactor, MAX_AGE, keypairs.check_watched, "while looking at the keypairs of open streams")
        )
        parent.addService(repeating(reactor, LOOK_INTERVAL, trust.look, "while looking at the keys of agents"))
        parent.addService(Draining(operations))
        parent.addService(Stopping(queue.stop))
        site = make_site(
            reactor,
            kernels=seen("manager", registry),
            folders=folders,
            transfers=Transfers(reactor, keypairs, folders),
            administration=administration,
            enrolments=enrolments,
            keypairs=seen("keypairs", keypairs),
            rate_limits=seen("rate limit", RedisRateCounters(asked)),
            operations=operations,
            readiness=self.readiness,
            tls=self.config.tls,
            worker=self.place.number,
        )
        if stages is not None:
            site.resource = WatchedResource(stages, site.resource)
            parent.addService(Stopping(stages.write))
        behind = BehindTheDoor(registry, keypairs, operations, announcements)
        return _Manager(directory, RedisHeartbeatStore(asked), site, behind)

    def _redis_told(self, redis: RedisAddress) -> RedisTold:
        """Say where agents that enrol themselves find Redis: where this process finds it, unless the operator knows better."""
        given = self.config.redis
        address = given.address if given is not None else f"unix://{redis.path}"
        return RedisTold(self.config.agent_redis_address or address, redis.password)


def _show(text: str) -> None:
    """Print to the terminal itself: a log line would have a prefix, and a log file must never hold a secret."""
    if sys.__stdout__ is not None:
        sys.__stdout__.write(text)
        sys.__stdout__.flush()
