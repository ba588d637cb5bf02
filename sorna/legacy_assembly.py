"""The wiring of the ZeroMQ door: who may use it, what it is built on, and what of it goes on a timer. Nothing else.

Knows the configuration and the manager's parts; what is said at the door is in ``legacy/``.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from attrs import frozen
from twisted.internet.error import CannotListenError
from twisted.logger import Logger

from sorna.boot import repeating
from sorna.config import ServerConfig, is_loopback
from sorna.curve_keys import AuthorisedKeys, load_or_make
from sorna.errors import Unavailable
from sorna.legacy.access import Access
from sorna.legacy.service import Curve, LegacyDoor, Place
from sorna.lifecycle import OrderedServices
from sorna.live.channels import RedisAnnouncements
from sorna.manager.events import KERNEL_TOPIC
from sorna.manager.keypairs import CachedKeypairs
from sorna.manager.registry import Registry

ACCESS_INTERVAL = 0.5
SWEEP_INTERVAL = 30.0

_log = Logger()


@frozen
class BehindTheDoor:
    """What the door is built on."""

    registry: Registry
    keypairs: CachedKeypairs
    operations: Any
    announcements: RedisAnnouncements


async def open_legacy_door(
    reactor: Any, config: ServerConfig, parent: OrderedServices, behind: BehindTheDoor, own: str | None
) -> None:
    """Open the ZeroMQ door to a keypair that the operator named, or in the embedded mode to this host's own.

    :param own: the access key of this host's own keypair, where there is one.
    :raises Unavailable: the one that was named does not exist, or its door cannot listen.
    """
    access_key = config.legacy.access_key or own
    if access_key is None:
        _log.info("the ZeroMQ interface is closed: --legacy-keypair names no keypair")
        return
    if await behind.keypairs.find(access_key) is None:
        raise Unavailable(f"--legacy-keypair: there is no keypair {access_key}")
    door = _door(reactor, config, behind, access_key)
    try:
        parent.addService(door)
    except CannotListenError as error:
        where = f"port {error.port} of {error.interface}: {error.socketError}"
        if config.legacy.access_key is not None:
            raise Unavailable(f"the ZeroMQ interface cannot listen on {where}") from error
        # Nobody asked for it by name: another server on this host is no reason not to start.
        _log.error("the ZeroMQ interface is closed, as it cannot listen on {where}", where=where)
        parent.removeService(door)
        return
    parent.addService(repeating(reactor, ACCESS_INTERVAL, door.check_access, "while checking a keypair"))
    parent.addService(repeating(reactor, SWEEP_INTERVAL, door.sweep, "while closing terminals"))


def _door(reactor: Any, config: ServerConfig, behind: BehindTheDoor, access_key: str) -> LegacyDoor:
    given = config.legacy
    if not is_loopback(given.ip) and not given.curve:
        _log.warn("whoever reaches {ip} may use the ZeroMQ interface; --legacy-curve asks for keys", ip=given.ip)
    return LegacyDoor(
        reactor,
        reactor,
        Place(given.ip, given.manager_port, given.execution_port, given.override),
        kernels=behind.registry,
        access=Access(behind.keypairs, access_key),
        operations=behind.operations,
        changes=partial(behind.announcements.subscribe, KERNEL_TOPIC),
        curve=_curve(reactor, config) if given.curve else None,
    )


def _curve(reactor: Any, config: ServerConfig) -> Curve:
    folder = config.state_dir / "legacy"
    keypair = load_or_make(folder)
    authorised = folder / "authorised"
    authorised.mkdir(mode=0o700, exist_ok=True)
    return Curve(keypair, AuthorisedKeys(reactor, authorised))
