"""Who pays: the one keypair that everybody at the ZeroMQ door is charged to, and whether it may be used now."""

from __future__ import annotations

from attrs import frozen

from sorna.errors import AuthenticationFailed
from sorna.legacy.interfaces import Keypairs


@frozen
class Access:
    """The keypair of the door; the protocol itself has no credentials."""

    keypairs: Keypairs
    access_key: str

    async def is_open(self) -> bool:
        """Tell whether the keypair exists and is active; a change is seen within a second."""
        keypair = await self.keypairs.find(self.access_key)
        return keypair is not None and keypair.is_active

    async def check(self) -> str:
        """Count one request and give the access key.

        :raises AuthenticationFailed: the keypair is not active (any more).
        """
        if not await self.is_open():
            raise AuthenticationFailed("The access key of this service is not active.")
        self.keypairs.used(self.access_key)
        return self.access_key
