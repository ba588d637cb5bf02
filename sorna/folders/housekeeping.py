"""Takes away what nobody will ever ask for again: unfinished uploads, and content whose folder does not exist.

Knows the storage and who knows of folders. Folders of removed keypairs go with their keypair; here goes what is left of them
when a process ended in between. Content without a folder is what a crash leaves between the making of the one and
of the other; it must be old, because right after it was made its folder may still be on the way into the database.
"""

from __future__ import annotations

from attrs import frozen
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from sorna.folders.storage import DiskFolders
from sorna.manager.folder_interfaces import FolderStore

_AT_ONCE = 500


@frozen
class Housekeeping:
    """Tidies one storage; several managers may do it at the same time."""

    clock: IReactorTime
    storage: DiskFolders
    store: FolderStore

    _log = Logger()

    async def tidy(self) -> None:
        """Look once. :raises Unavailable: what it stands on does not answer; next time, then."""
        for folder_id in await self.store.remove_forsaken():
            await self.storage.destroy(folder_id)
        found = list(await self.storage.sweep(self.clock.seconds()))
        for first in range(0, len(found), _AT_ONCE):
            some = found[first : first + _AT_ONCE]
            for folder_id in set(some) - await self.store.existing(some):
                self._log.warn("the content of {folder_id} belongs to no folder; removed", folder_id=folder_id.hex)
                await self.storage.destroy(folder_id)
