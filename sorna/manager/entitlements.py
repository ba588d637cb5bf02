"""Which live kernels see folders that their owners may not use (any more), and what becomes of them: they end.

Knows no door and no agent.

Note [Taking a folder away]
~~~~~~~~~~~~~~~~~~~~~~~~~~~
A folder is taken from somebody when it stops being shared, is shared for reading only from now on, or is removed. A mount
could be taken out of a running kernel, but the files that its processes hold open would stay theirs, to write to for as
long as they run. Only their end is certain, so the kernel ends, with a reason. The owner's own kernels are another matter:
nobody has taken anything from them, so that a folder is not removed while they see it.

What is taken away is written first and kernels are looked for afterwards. A kernel's row, with what it sees, is written
before the permission is looked at once more. So of a kernel that is made and a permission that goes at the same time, one
always finds the other. A manager that dies in between is made up for by the next look, which every manager takes every few
seconds.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

from attrs import frozen
from twisted.logger import Logger

from sorna.errors import SornaError
from sorna.manager.folder_interfaces import FolderStore, MountingKernel
from sorna.manager.interfaces import KernelReports
from sorna.model.folder import Mount, Permission
from sorna.model.kernel import Kernel, short_id

TAKEN_AWAY = "folder-taken-away"
Permissions = Mapping[tuple[uuid.UUID, str], Permission]


def entitled(found: MountingKernel, permissions: Permissions) -> bool:
    """Tell whether a kernel's owner may use everything that it sees, as it can use it."""
    of_owner = {one: permissions.get((one, found.kernel.access_key)) for one in found.folders}
    return all(
        permission is not None and (permission is Permission.READ_WRITE or one not in found.writable)
        for one, permission in of_owner.items()
    )


@frozen
class Entitlements:
    """Looks after folders in kernels; see Note [Taking a folder away].

    :ivar end: ends a kernel for a reason.
    """

    store: FolderStore
    reports: KernelReports
    end: Callable[[Kernel, str], Awaitable[object]]

    _log = Logger()

    async def enforce(self, folder_ids: Collection[uuid.UUID] | None = None) -> None:
        """End the kernels that see one of these folders, or any, and whose owner may not; returns when they have ended."""
        found = await self.reports.mounting(folder_ids)
        if not found:
            return
        permissions = await self.store.permissions(frozenset().union(*(one.folders for one in found)))
        for one in found:
            if not entitled(one, permissions):
                await self._end(one.kernel)

    async def _end(self, kernel: Kernel) -> None:
        name = short_id(kernel.id)
        self._log.info("{kernel_id} ends: a folder was taken away from its owner", kernel_id=name)
        try:
            await self.end(kernel, TAKEN_AWAY)
        except SornaError as error:
            # It is TERMINATING, and whoever mends kernels tries again.
            self._log.warn("{kernel_id} could not be ended yet: {error!r}", kernel_id=name, error=error)

    async def sessions_of(self, access_key: str, folder_id: uuid.UUID) -> Sequence[str]:
        """Name the live sessions of an access key that see a folder."""
        found = await self.reports.mounting([folder_id])
        return [one.kernel.session_token for one in found if one.kernel.access_key == access_key]

    async def hold(self, access_key: str, mounts: Sequence[Mount]) -> bool:
        """Tell whether an access key may still use folders as they are to be mounted."""
        permissions = await self.store.permissions([uuid.UUID(mount.folder_id) for mount in mounts])
        given = [(mount, permissions.get((uuid.UUID(mount.folder_id), access_key))) for mount in mounts]
        return all(
            permission is not None and (mount.read_only or permission is Permission.READ_WRITE)
            for mount, permission in given
        )
