"""What later clients ask about the storages of virtual folders, of which Sorna has one that it does not mount itself.

The administrators' requests to mount and unmount file systems on the hosts are answered with the reason why Sorna does not:
what is mounted where is for the operator of a host to say, and no request can change it.
"""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from sorna.errors import FolderForbidden, NotOffered
from sorna.gateway.call import Call, Reply, json_reply
from sorna.gateway.described import FLAG, TEXT, Described, exactly, json_content, list_of
from sorna.gateway.interfaces import Administration
from sorna.gateway.router import Router
from sorna.model.folder import HOST

_HOSTS = Described(answers={200: json_content(exactly(default=TEXT, allowed=list_of(TEXT)))})
_TYPES = Described(answers={200: json_content(list_of(TEXT))})
_MOUNTED = exactly(success=FLAG, mounts=list_of(TEXT), message=TEXT)
_MOUNTS = Described(
    answers={200: json_content(exactly(manager=_MOUNTED, agents={"type": "object", "additionalProperties": _MOUNTED}))},
    raises=(FolderForbidden,),
)
_NOT_OFFERED = Described(answers={}, raises=(FolderForbidden, NotOffered))
_NO_MOUNTING = "Hosts' file systems are mounted by their operators; give the servers and agents the same --folder-root"
_NO_METRICS = "The storage of folders is a directory of the hosts, whose performance the hosts' own tools measure"


@frozen
class FolderStorageRoutes:
    """The routes about storages."""

    administration: Administration
    storage_id: str

    router: ClassVar[Router[FolderStorageRoutes]] = Router()

    @router.route("GET", "/folders/_/hosts", "/folders/_/all_hosts", needs_ready=True, described=_HOSTS)
    async def hosts(self, _call: Call) -> Reply:
        """Tell the names of the storages."""
        return json_reply({"default": HOST, "allowed": [HOST]})

    @router.route("GET", "/folders/_/allowed_types", needs_ready=True, described=_TYPES)
    async def allowed_types(self, _call: Call) -> Reply:
        """Tell that folders are users'; there are no groups."""
        return json_reply(["user"])

    @router.route("GET", "/folders/_/mounts", needs_ready=True, described=_MOUNTS)
    async def mounts(self, call: Call) -> Reply:
        """Tell an administrator which live agents see the storage of folders."""
        _require_administrator(call)
        alive = [agent.alive for agent in await self.administration.agents() if agent.alive is not None]
        agents = {agent.id: _mounted(agent.storage == self.storage_id) for agent in alive}
        return json_reply({"manager": _mounted(True), "agents": agents})

    @router.route("POST", "/folders/_/mounts", needs_ready=True, described=_NOT_OFFERED)
    @router.route("DELETE", "/folders/_/mounts", needs_ready=True, described=_NOT_OFFERED)
    @router.route("GET", "/folders/_/fstab", needs_ready=True, described=_NOT_OFFERED)
    async def mount(self, call: Call) -> Reply:
        """Refuse to change, or to show, what hosts mount."""
        _require_administrator(call)
        raise NotOffered(_NO_MOUNTING)

    @router.route("GET", "/folders/_/perf-metric", needs_ready=True, described=_NOT_OFFERED)
    async def performance(self, call: Call) -> Reply:
        """Refuse to tell how a storage performs."""
        _require_administrator(call)
        raise NotOffered(_NO_METRICS)


def _require_administrator(call: Call) -> None:
    if not call.caller.is_admin:
        raise FolderForbidden("Only administrators may ask about storages.")


def _mounted(there: bool) -> dict[str, object]:
    message = "" if there else "This agent has another storage of folders, or none."
    return {"success": there, "mounts": [HOST] if there else [], "message": message}
