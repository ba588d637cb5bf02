"""What whoever operates the server asks it: is the process alive, and can it serve. Public, unversioned, unsigned."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from sorna.errors import Unavailable
from sorna.gateway.call import Access, Call, Reply, json_reply
from sorna.gateway.described import WHOLE, Described, exactly, json_content, one_of
from sorna.gateway.interfaces import Readiness
from sorna.gateway.router import Router

_HEALTH = Described(answers={200: json_content(exactly(status=one_of("ok"), worker=WHOLE))})
_READY = Described(answers={200: json_content(exactly(status=one_of("ready"), worker=WHOLE))}, raises=(Unavailable,))


@frozen
class OperationRoutes:
    """Liveness and readiness, for supervisors and load balancers.

    :ivar worker: which of the server's processes this is, from 1; a connection stays with the one that took it.
    """

    readiness: Readiness
    worker: int

    router: ClassVar[Router[OperationRoutes]] = Router()

    @router.route("GET", "/health", access=Access.PUBLIC, versioned=False, described=_HEALTH)
    async def health(self, _call: Call) -> Reply:
        """Tell that the reactor runs; a restart would help when this does not answer."""
        return json_reply({"status": "ok", "worker": self.worker})

    @router.route("GET", "/ready", access=Access.PUBLIC, versioned=False, described=_READY)
    async def ready(self, _call: Call) -> Reply:
        """Tell whether kernels can be served now; a restart would not help when they cannot."""
        if not self.readiness.is_ready:
            raise Unavailable(self.readiness.reason or "Server not ready.")
        return json_reply({"status": "ready", "worker": self.worker})
