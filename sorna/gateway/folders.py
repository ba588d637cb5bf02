"""Virtual folders: making, listing, renaming, cloning and removing them.

What is in them is ``folder_files.py``'s, and who may use them ``folder_sharing.py``'s.
Source: section 2.11 of the REST interface's specification and the requests of published clients. Clients of every
generation read other fields of the same answers, so each answer has those of all.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any, ClassVar

from attrs import frozen

from sorna.errors import (
    FolderAlreadyExists,
    FolderForbidden,
    FolderInUse,
    FolderNotFound,
    InvalidRequest,
    QuotaExceeded,
)
from sorna.gateway.call import Call, Reply, json_reply, no_content
from sorna.gateway.described import (
    FLAG,
    NOTHING,
    TEXT,
    WHOLE,
    Described,
    Schema,
    exactly,
    json_content,
    list_of,
    one_of,
    open_object,
    optional,
)
from sorna.gateway.interfaces import Operations
from sorna.gateway.parameters import Parameters
from sorna.gateway.router import Router
from sorna.gateway.sizes import read_size
from sorna.manager.folders import Folders, OpenFolder
from sorna.model.folder import HOST, Folder, FolderAccess, Permission

_MAX_NAME = 64
#: Later clients tell apart who may also delete; here who may write may delete.
PERMISSIONS = {"ro": Permission.READ_ONLY, "rw": Permission.READ_WRITE, "wd": Permission.READ_WRITE}
_USAGE_MODES = ("general", "data", "model")

TIME: Schema = {"type": "string", "format": "date-time"}
_FOLDER: dict[str, Schema] = {
    **dict.fromkeys(("name", "id", "host", "user", "creator"), TEXT),
    "group": {"type": "null"},
    "type": one_of("user"),
    "ownership_type": one_of("user"),
    "usage_mode": one_of("general"),
    "status": one_of("ready"),
    "cloneable": FLAG,
    **dict.fromkeys(("created", "created_at"), TIME),
    "last_used": optional(TIME),
    "max_files": WHOLE,
    "max_size": WHOLE,
    "is_owner": FLAG,
    "permission": one_of("ro", "rw"),
}
_NAME = json_content(open_object("name", name=TEXT, quota={"type": ["integer", "string", "null"]}))
_MAKING = (FolderAlreadyExists, QuotaExceeded)
_CREATE = Described(body=_NAME, answers={201: json_content(exactly(**_FOLDER, quota=WHOLE))}, raises=_MAKING)
_CREATE_EARLY = Described(
    body=json_content(open_object("name", name=TEXT)),
    answers={201: json_content(exactly(folderId=TEXT))},
    raises=_MAKING,
)
_LIST = Described(answers={200: json_content(list_of(exactly(**_FOLDER)))})
_INFO = Described(
    answers={200: json_content(exactly(**_FOLDER, numFiles=WHOLE, num_files=WHOLE, cur_size=WHOLE))},
)
_DELETE = Described(answers={204: NOTHING}, raises=(FolderForbidden, FolderInUse))
_DELETE_BY_ID = Described(
    body=json_content(open_object("id", id=TEXT)),
    answers={204: NOTHING},
    raises=(FolderNotFound, FolderForbidden, FolderInUse),
)
_RENAME = Described(
    body=json_content(open_object("new_name", new_name=TEXT)),
    answers={201: json_content(exactly())},
    raises=(FolderForbidden, FolderAlreadyExists),
)
_TOLD = json_content(exactly(msg=TEXT))
_LEAVE = Described(answers={200: _TOLD}, raises=(FolderForbidden,))
_OPTIONS = Described(
    body=json_content(open_object(cloneable=optional(FLAG), permission=optional(one_of("rw", "wd")))),
    answers={201: json_content(exactly())},
    raises=(FolderForbidden,),
)
_CLONE = Described(
    body=json_content(
        open_object(
            "target_name",
            target_name=TEXT,
            target_host=optional(one_of("", HOST)),
            usage_mode=optional(one_of(*_USAGE_MODES)),
            permission=optional(one_of("rw", "wd")),
            cloneable=optional(FLAG),
        )
    ),
    answers={201: json_content(exactly(**_FOLDER, bgtask_id={"type": "null"}))},
    raises=(FolderForbidden, *_MAKING),
)


@frozen
class FolderRoutes:
    """The routes about folders as wholes."""

    folders: Folders
    operations: Operations

    router: ClassVar[Router[FolderRoutes]] = Router()

    @router.route("POST", "/folders", needs_ready=True, described=_CREATE)
    async def create(self, call: Call) -> Reply:
        """Make a folder."""
        body = Parameters(call.json_object())
        _refuse_what_is_not_offered(body, "host")
        size = int(read_size(body, "quota"))
        work = self.folders.create(call.access_key, body.required_text("name"), size, cloneable=body.flag("cloneable"))
        folder = await self.operations.detach(work)
        return json_reply(_owned(folder) | {"quota": folder.bounds.size}, 201)

    @router.route("POST", "/folder/create", needs_ready=True, described=_CREATE_EARLY)
    async def create_early(self, call: Call) -> Reply:
        """Make a folder as the interface of 2017 was to do it."""
        body = Parameters(call.json_object())
        folder = await self.operations.detach(self.folders.create(call.access_key, body.required_text("name")))
        return json_reply({"folderId": folder.id.hex}, 201)

    @router.route("GET", "/folders", needs_ready=True, described=_LIST)
    async def list_folders(self, call: Call) -> Reply:
        """List the folders that the key sees; later clients send a body that changes nothing here."""
        return json_reply([_seen(access) for access in await self.folders.seen_by(call.access_key)])

    @router.route("DELETE", "/folders", needs_ready=True, described=_DELETE_BY_ID)
    async def delete_by_id(self, call: Call) -> Reply:
        """Remove a folder by its id."""
        folder_id = folder_id_of(Parameters(call.json_object()).required_text("id"))
        return await self._remove(call, await self.folders.open_by_id(call.access_key, folder_id))

    @router.route("GET", "/folders/<folder>", needs_ready=True, described=_INFO)
    async def info(self, call: Call) -> Reply:
        """Describe a folder, with what it holds now."""
        return await _information(await self.folders.open(call.access_key, call.values["folder"]))

    @router.route("DELETE", "/folders/<folder>", needs_ready=True, described=_DELETE)
    async def delete(self, call: Call) -> Reply:
        """Remove a folder with everything in it."""
        return await self._remove(call, await self.folders.open(call.access_key, call.values["folder"]))

    @router.route("GET", "/folder/<folder>", needs_ready=True, described=_INFO)
    async def info_early(self, call: Call) -> Reply:
        """Describe a folder by its id."""
        return await _information(await self._by_id(call))

    @router.route("DELETE", "/folder/<folder>", needs_ready=True, described=_DELETE)
    async def delete_early(self, call: Call) -> Reply:
        """Remove a folder by its id."""
        return await self._remove(call, await self._by_id(call))

    async def _by_id(self, call: Call) -> OpenFolder:
        return await self.folders.open_by_id(call.access_key, folder_id_of(call.values["folder"]))

    async def _remove(self, call: Call, folder: OpenFolder) -> Reply:
        await self.operations.detach(self.folders.remove(call.access_key, folder))
        return no_content()

    @router.route("POST", "/folders/<folder>/rename", needs_ready=True, described=_RENAME)
    async def rename(self, call: Call) -> Reply:
        """Give a folder another name."""
        new_name = Parameters(call.json_object()).required_text("new_name")
        await self.operations.detach(self.folders.rename(call.access_key, call.values["folder"], new_name))
        return json_reply({}, 201)

    @router.route("POST", "/folders/<folder>/update-options", needs_ready=True, described=_OPTIONS)
    async def update_options(self, call: Call) -> Reply:
        """Say whether those whom a folder is shared with may clone it."""
        body = Parameters(call.json_object())
        _refuse_what_is_not_offered(body, "host")
        cloneable = body.flag("cloneable") if body.content.get("cloneable") is not None else None
        folder = call.values["folder"]
        if cloneable is not None:
            await self.operations.detach(self.folders.allow_cloning(call.access_key, folder, cloneable))
        else:
            await self.folders.open(call.access_key, folder)
        return json_reply({}, 201)

    @router.route("POST", "/folders/<folder>/clone", needs_ready=True, described=_CLONE)
    async def clone(self, call: Call) -> Reply:
        """Make a folder with the same content; the answer comes when it is whole, so that no task is left to watch."""
        body = Parameters(call.json_object())
        _refuse_what_is_not_offered(body, "target_host")
        name, cloneable = body.required_text("target_name"), body.flag("cloneable")
        work = self.folders.clone(call.access_key, call.values["folder"], name, cloneable=cloneable)
        return json_reply(_owned(await self.operations.detach(work)) | {"bgtask_id": None}, 201)

    @router.route("POST", "/folders/<folder>/leave", needs_ready=True, described=_LEAVE)
    async def leave(self, call: Call) -> Reply:
        """Give up a folder that somebody else shares."""
        await self.operations.detach(self.folders.leave(call.access_key, call.values["folder"]))
        return json_reply({"msg": f"Left the shared virtual folder {call.values['folder']}."})


def _refuse_what_is_not_offered(body: Parameters, host: str) -> None:
    if body.content.get(host) not in (None, "", HOST, [], [HOST]):
        raise body.wrong(host, HOST)
    for key in ("unmanaged_path", "group"):
        if body.content.get(key) not in (None, ""):
            raise InvalidRequest(f"{key} is not supported")
    if body.text("usage_mode", _USAGE_MODES[0]) not in _USAGE_MODES:
        raise body.wrong("usage_mode", f"one of {', '.join(_USAGE_MODES)}")
    if PERMISSIONS.get(body.text("permission", "rw")) is not Permission.READ_WRITE:
        raise body.wrong("permission", "rw")
    body.flag("cloneable")


def folder_id_of(text: str) -> uuid.UUID:
    """Read a folder's id, with dashes or without. :raises FolderNotFound: it is none."""
    if len(text) not in {32, 36}:
        raise FolderNotFound
    try:
        return uuid.UUID(text)
    except ValueError:
        raise FolderNotFound from None


def time_of(seconds: float | None) -> str | None:
    """Write a time as clients read it."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()


def _description(folder: Folder) -> dict[str, Any]:
    return {
        "name": folder.name,
        "id": folder.id.hex,
        "host": HOST,
        "user": folder.owner,
        "creator": folder.owner,
        "group": None,
        "type": "user",
        "ownership_type": "user",
        "usage_mode": "general",
        # Nothing is ever done with a folder that others would have to wait for.
        "status": "ready",
        "cloneable": folder.cloneable,
        "created": time_of(folder.created_at),
        "created_at": time_of(folder.created_at),
        "last_used": time_of(folder.last_used),
        "max_files": folder.bounds.files,
        "max_size": folder.bounds.size,
    }


def _owned(folder: Folder) -> dict[str, Any]:
    return _seen(FolderAccess(folder, True, Permission.READ_WRITE))


def _seen(access: FolderAccess) -> dict[str, Any]:
    return _description(access.folder) | {"is_owner": access.is_owner, "permission": access.permission.value}


async def _information(folder: OpenFolder) -> Reply:
    use = await folder.use()
    return json_reply(_seen(folder.access) | {"numFiles": use.files, "num_files": use.files, "cur_size": use.size})
