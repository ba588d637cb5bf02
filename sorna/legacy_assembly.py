"""The wiring of the ZeroMQ door: to whom it opens, if at all, and what is done when its ports are taken."""

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
from sorna.first_start import FirstKeypair
from sorna.legacy.access import Access
from sorna.legacy.service import Curve, LegacyDoor, Place
from sorna.lifecycle import Operations, OrderedServices
from sorna.live.channels import RedisAnnouncements
from sorna.manager.events import KERNEL_TOPIC
from sorna.manager.keypairs import CachedKeypairs
from sorna.manager.registry import Registry

ACCESS_INTERVAL = 0.5
SWEEP_INTERVAL = 30.0

_log = Logger()


@frozen
class LegacyOpening:
    """Opens the door, which is stopped with ``parent``."""

    reactor: Any
    config: ServerConfig
    parent: OrderedServices
    registry: Registry
    keypairs: CachedKeypairs
    operations: Operations
    announcements: RedisAnnouncements

    async def open(self, first: FirstKeypair | None) -> None:
        """Open the ZeroMQ door to a keypair that the operator named, or in the embedded mode to this host's own.

        :raises Unavailable: the one that was named does not exist.
        """
        config = self.config.legacy
        access_key = config.access_key
        if access_key is None and self.config.embedded and first is not None:
            access_key = first.keypair.access_key
        if access_key is None:
            _log.info("the ZeroMQ interface is closed: --legacy-keypair names no keypair")
            return
        if await self.keypairs.find(access_key) is None:
            raise Unavailable(f"--legacy-keypair: there is no keypair {access_key}")
        door = self._door(access_key)
        try:
            self.parent.addService(door)
        except CannotListenError as error:
            where = f"port {error.port} of {error.interface}: {error.socketError}"
            if config.access_key is not None:
                raise Unavailable(f"the ZeroMQ interface cannot listen on {where}") from error
            # Nobody asked for it by name: another server on this host is no reason not to start.
            _log.error("the ZeroMQ interface is closed, as it cannot listen on {where}", where=where)
            self.parent.removeService(door)
            return
        self.parent.addService(repeating(self.reactor, ACCESS_INTERVAL, door.check_access, "while checking a keypair"))
        self.parent.addService(repeating(self.reactor, SWEEP_INTERVAL, door.sweep, "while closing terminals"))

    def _door(self, access_key: str) -> LegacyDoor:
        config = self.config.legacy
        if not is_loopback(config.ip) and not config.curve:
            _log.warn("whoever reaches {ip} may use the ZeroMQ interface; --legacy-curve asks for keys", ip=config.ip)
        return LegacyDoor(
            self.reactor,
            self.reactor,
            Place(config.ip, config.manager_port, config.execution_port, config.override),
            kernels=self.registry,
            access=Access(self.keypairs, access_key),
            operations=self.operations,
            changes=partial(self.announcements.subscribe, KERNEL_TOPIC),
            curve=self._curve() if config.curve else None,
        )

    def _curve(self) -> Curve:
        folder = self.config.state_dir / "legacy"
        keypair = load_or_make(folder)
        authorised = folder / "authorised"
        authorised.mkdir(mode=0o700, exist_ok=True)
        return Curve(keypair, AuthorisedKeys(self.reactor, authorised))
