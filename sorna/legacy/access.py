"""Who pays: the one keypair that everybody at the ZeroMQ door is charged to, and whether it may be used now."""

from __future__ import annotations

from attrs import frozen

from sorna.errors import AuthenticationFailed, Unavailable
from sorna.legacy.interfaces import Keypairs

NOT_ACTIVE = "The access key of this service is not active."


@frozen
class Access:
    """The keypair of the door; the protocol itself has no credentials."""

    keypairs: Keypairs
    access_key: str

    async def is_open(self) -> bool:
        """Tell whether the keypair exists and is active; a change is seen within a second."""
        keypair = await self.keypairs.find(self.access_key)
        return keypair is not None and keypair.is_active

    async def was_withdrawn(self) -> bool:
        """Tell whether the keypair stopped being active while a request was worked on; what cannot be read is no proof."""
        try:
            return not await self.is_open()
        except Unavailable:
            return False

    async def check(self) -> str:
        """Count one request and give the access key.

        :raises AuthenticationFailed: the keypair is not active (any more).
        """
        if not await self.is_open():
            raise AuthenticationFailed(NOT_ACTIVE)
        self.keypairs.used(self.access_key)
        return self.access_key
