"""Virtual folders: making, listing, renaming, sharing and removing them; what is in them is ``folder_files.py``'s.

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
    FolderNotFound,
    InvalidRequest,
    InvitationNotFound,
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
from sorna.model.folder import HOST, Folder, FolderAccess, Invitation, Permission

_MAX_NAME = 64
#: Later clients tell apart who may also delete; here who may write may delete.
_PERMISSIONS = {"ro": Permission.READ_ONLY, "rw": Permission.READ_WRITE, "wd": Permission.READ_WRITE}
_USAGE_MODES = ("general", "data", "model")

_TIME: Schema = {"type": "string", "format": "date-time"}
_FOLDER: dict[str, Schema] = {
    **dict.fromkeys(("name", "id", "host", "user", "creator"), TEXT),
    "group": {"type": "null"},
    "type": one_of("user"),
    "ownership_type": one_of("user"),
    "usage_mode": one_of("general"),
    "cloneable": FLAG,
    **dict.fromkeys(("created", "created_at"), _TIME),
    "last_used": optional(_TIME),
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
_DELETE = Described(answers={204: NOTHING}, raises=(FolderForbidden,))
_DELETE_BY_ID = Described(
    body=json_content(open_object("id", id=TEXT)),
    answers={204: NOTHING},
    raises=(FolderNotFound, FolderForbidden),
)
_RENAME = Described(
    body=json_content(open_object("new_name", new_name=TEXT)),
    answers={201: json_content(exactly())},
    raises=(FolderForbidden, FolderAlreadyExists),
)
_TOLD = json_content(exactly(msg=TEXT))
_LEAVE = Described(answers={200: _TOLD}, raises=(FolderForbidden,))
_HOSTS = Described(answers={200: json_content(exactly(default=TEXT, allowed=list_of(TEXT)))})
_TYPES = Described(answers={200: json_content(list_of(TEXT))})
_INVITE = Described(
    body=json_content(open_object(perm=optional(one_of(*_PERMISSIONS)), user_ids=list_of(TEXT))),
    answers={201: json_content(exactly(invited_ids=list_of(TEXT)))},
    raises=(FolderForbidden, QuotaExceeded),
)
_INVITATIONS = Described(
    answers={
        200: json_content(
            exactly(
                invitations=list_of(
                    exactly(
                        **dict.fromkeys(
                            ("id", "inviter", "invitee", "perm", "state", "vfolder_id", "vfolder_name"), TEXT
                        ),
                        created_at=_TIME,
                    )
                )
            )
        )
    }
)
_INVITATION = json_content(open_object("inv_id", inv_id=TEXT))
_ACCEPT = Described(
    body=_INVITATION, answers={201: _TOLD}, raises=(InvitationNotFound, FolderAlreadyExists, QuotaExceeded)
)
_WITHDRAW = Described(body=_INVITATION, answers={200: _TOLD}, raises=(InvitationNotFound,))


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
        _refuse_what_is_not_offered(body)
        size = int(read_size(body, "quota"))
        folder = await self._make(call, body.required_text("name"), size)
        return json_reply(
            _description(folder) | {"quota": folder.bounds.size, "permission": "rw", "is_owner": True}, 201
        )

    @router.route("POST", "/folder/create", needs_ready=True, described=_CREATE_EARLY)
    async def create_early(self, call: Call) -> Reply:
        """Make a folder as the interface of 2017 was to do it."""
        body = Parameters(call.json_object())
        return json_reply({"folderId": (await self._make(call, body.required_text("name"), 0)).id.hex}, 201)

    async def _make(self, call: Call, name: str, size: int) -> Folder:
        return await self.operations.detach(self.folders.create(call.access_key, name, size))

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

    @router.route("POST", "/folders/<folder>/leave", needs_ready=True, described=_LEAVE)
    async def leave(self, call: Call) -> Reply:
        """Give up a folder that somebody else shares."""
        await self.operations.detach(self.folders.leave(call.access_key, call.values["folder"]))
        return json_reply({"msg": f"Left the shared virtual folder {call.values['folder']}."})

    # -- what later clients ask about the storage

    @router.route("GET", "/folders/_/hosts", "/folders/_/all_hosts", needs_ready=True, described=_HOSTS)
    async def hosts(self, _call: Call) -> Reply:
        """Tell the names of the storages."""
        return json_reply({"default": HOST, "allowed": [HOST]})

    @router.route("GET", "/folders/_/allowed_types", needs_ready=True, described=_TYPES)
    async def allowed_types(self, _call: Call) -> Reply:
        """Tell that folders are users'; there are no groups."""
        return json_reply(["user"])

    # -- sharing

    @router.route("POST", "/folders/<folder>/invite", needs_ready=True, described=_INVITE)
    async def invite(self, call: Call) -> Reply:
        """Offer a folder to users, or to access keys."""
        body = Parameters(call.json_object())
        permission = _PERMISSIONS.get(body.text("perm", "rw"))
        if permission is None:
            raise body.wrong("perm", "ro or rw")
        invitees = [name for name in body.texts("user_ids" if "user_ids" in body.content else "emails") if name]
        work = self.folders.invite(call.access_key, call.values["folder"], invitees, permission)
        return json_reply({"invited_ids": list(await self.operations.detach(work))}, 201)

    @router.route("GET", "/folders/invitations/list", needs_ready=True, described=_INVITATIONS)
    async def invitations(self, call: Call) -> Reply:
        """List what the key is invited to."""
        found = await self.folders.invitations(call.access_key)
        return json_reply({"invitations": [_invitation(one) for one in found]})

    @router.route("POST", "/folders/invitations/accept", needs_ready=True, described=_ACCEPT)
    async def accept(self, call: Call) -> Reply:
        """Take an offer; the access key that early clients send besides is the one of the request."""
        work = self.folders.accept(call.access_key, _invitation_id(call))
        invitation = await self.operations.detach(work)
        return json_reply({"msg": f"You can access the virtual folder {invitation.folder_name} now."}, 201)

    @router.route("DELETE", "/folders/invitations/delete", needs_ready=True, described=_WITHDRAW)
    async def withdraw(self, call: Call) -> Reply:
        """Refuse an offer, or take it back."""
        work = self.folders.withdraw(call.access_key, _invitation_id(call))
        invitation = await self.operations.detach(work)
        return json_reply({"msg": f"The invitation to the virtual folder {invitation.folder_name} is deleted."})


def _refuse_what_is_not_offered(body: Parameters) -> None:
    host = body.content.get("host")
    if host not in (None, "", HOST, [], [HOST]):
        raise body.wrong("host", HOST)
    for key in ("unmanaged_path", "group"):
        if body.content.get(key) not in (None, ""):
            raise InvalidRequest(f"{key} is not supported")
    if body.text("usage_mode", _USAGE_MODES[0]) not in _USAGE_MODES:
        raise body.wrong("usage_mode", f"one of {', '.join(_USAGE_MODES)}")
    if _PERMISSIONS.get(body.text("permission", "rw")) is not Permission.READ_WRITE:
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


def _invitation_id(call: Call) -> uuid.UUID:
    text = Parameters(call.json_object()).required_text("inv_id")
    try:
        return uuid.UUID(text) if len(text) in {32, 36} else uuid.UUID("")
    except ValueError:
        raise InvitationNotFound from None


def _time(seconds: float | None) -> str | None:
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
        "cloneable": False,
        "created": _time(folder.created_at),
        "created_at": _time(folder.created_at),
        "last_used": _time(folder.last_used),
        "max_files": folder.bounds.files,
        "max_size": folder.bounds.size,
    }


def _seen(access: FolderAccess) -> dict[str, Any]:
    return _description(access.folder) | {"is_owner": access.is_owner, "permission": access.permission.value}


async def _information(folder: OpenFolder) -> Reply:
    use = await folder.use()
    return json_reply(_seen(folder.access) | {"numFiles": use.files, "num_files": use.files, "cur_size": use.size})


def _invitation(invitation: Invitation) -> dict[str, Any]:
    return {
        "id": invitation.id.hex,
        "inviter": invitation.inviter,
        "invitee": invitation.invitee,
        "perm": invitation.permission.value,
        "state": "pending",
        "vfolder_id": invitation.folder_id.hex,
        "vfolder_name": invitation.folder_name,
        "created_at": _time(invitation.created_at),
    }
