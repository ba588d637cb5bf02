"""Who may use a virtual folder besides its owner: invitations, and sharing without one.

Source: as of ``folders.py``. Later servers share folders of groups without asking, and all others by invitation; Sorna has no
groups, so that every folder can be shared in both ways.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, ClassVar

from attrs import frozen

from sorna.errors import FolderAlreadyExists, FolderForbidden, FolderNotFound, InvitationNotFound, QuotaExceeded
from sorna.gateway.call import Call, Reply, json_reply
from sorna.gateway.described import (
    TEXT,
    Described,
    exactly,
    json_content,
    list_of,
    one_of,
    open_object,
    optional,
)
from sorna.gateway.folders import PERMISSIONS, TIME, folder_id_of, time_of
from sorna.gateway.interfaces import Operations
from sorna.gateway.parameters import Parameters
from sorna.gateway.router import Router
from sorna.manager.folders import Folders
from sorna.model.folder import Invitation, Permission, Share

_TOLD = json_content(exactly(msg=TEXT))
_INVITE = Described(
    body=json_content(open_object(perm=optional(one_of(*PERMISSIONS)), user_ids=list_of(TEXT))),
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
                        created_at=TIME,
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
_SHARE = Described(
    body=json_content(open_object("emails", permission=optional(one_of(*PERMISSIONS)), emails=list_of(TEXT))),
    answers={201: json_content(exactly(shared_emails=list_of(TEXT)))},
    raises=(FolderForbidden,),
)
_UNSHARE = Described(
    body=json_content(open_object("emails", emails=list_of(TEXT))),
    answers={200: json_content(exactly(unshared_emails=list_of(TEXT)))},
    raises=(FolderForbidden,),
)
_SHARED_TO = exactly(access_key=TEXT, email=TEXT)
_SHARES = Described(
    query={"vfolder_id": TEXT},
    answers={
        200: json_content(
            exactly(
                shared=list_of(
                    exactly(
                        **dict.fromkeys(("vfolder_id", "vfolder_name", "owner"), TEXT),
                        status=one_of("ready"),
                        type=one_of("user"),
                        perm=one_of("ro", "rw"),
                        shared_to=_SHARED_TO,
                    )
                )
            )
        )
    },
    raises=(FolderNotFound,),
)
_CHANGE = Described(
    body=json_content(open_object("vfolder", "user", vfolder=TEXT, user=TEXT, perm=optional(one_of(*PERMISSIONS)))),
    answers={200: _TOLD},
    raises=(FolderNotFound, FolderForbidden),
)


@frozen
class FolderSharingRoutes:
    """The routes about who may use a folder."""

    folders: Folders
    operations: Operations

    router: ClassVar[Router[FolderSharingRoutes]] = Router()

    @router.route("POST", "/folders/<folder>/invite", needs_ready=True, described=_INVITE)
    async def invite(self, call: Call) -> Reply:
        """Offer a folder to users, or to access keys."""
        body = Parameters(call.json_object())
        permission = _permission(body, "perm")
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

    @router.route("POST", "/folders/<folder>/share", needs_ready=True, described=_SHARE)
    async def share(self, call: Call) -> Reply:
        """Let users, or access keys, use a folder without asking them."""
        body = Parameters(call.json_object())
        permission, users = _permission(body, "permission"), _users(body)
        work = self.folders.share(call.access_key, call.values["folder"], users, permission)
        return json_reply({"shared_emails": list(await self.operations.detach(work))}, 201)

    @router.route("DELETE", "/folders/<folder>/unshare", needs_ready=True, described=_UNSHARE)
    async def unshare(self, call: Call) -> Reply:
        """Take a folder away from users, or access keys; their kernels that see it end."""
        users = _users(Parameters(call.json_object()))
        work = self.folders.unshare(call.access_key, call.values["folder"], users)
        return json_reply({"unshared_emails": list(await self.operations.detach(work))})

    @router.route("GET", "/folders/_/shared", needs_ready=True, described=_SHARES)
    async def shares(self, call: Call) -> Reply:
        """List who may use the caller's folders, or one of them, an entry for each access key."""
        body = Parameters(call.json_object() if call.body else {key: one[0] for key, one in call.query.items()})
        wanted = body.text("vfolder_id")
        found = await self.folders.shares(call.access_key, folder_id_of(wanted) if wanted else None)
        return json_reply({"shared": [_share(one) for one in found]})

    @router.route("POST", "/folders/_/shared", needs_ready=True, described=_CHANGE)
    async def change(self, call: Call) -> Reply:
        """Change what a user, or an access key, may do with a folder; without a permission, take the folder away."""
        body = Parameters(call.json_object())
        folder, user = body.required_text("vfolder"), body.required_text("user")
        permission = None if body.content.get("perm") is None else _permission(body, "perm")
        folder_id = folder_id_of(folder)
        name = (await self.folders.open_by_id(call.access_key, folder_id)).access.folder.name
        if permission is None:
            await self.operations.detach(self.folders.unshare(call.access_key, name, [user]))
            return json_reply({"msg": f"The virtual folder {name} is not shared with {user} any more."})
        await self.operations.detach(self.folders.share(call.access_key, name, [user], permission))
        return json_reply({"msg": f"The virtual folder {name} is shared with {user} as {permission}."})


def _permission(body: Parameters, key: str) -> Permission:
    permission = PERMISSIONS.get(body.text(key, "rw"))
    if permission is None:
        raise body.wrong(key, "ro or rw")
    return permission


def _users(body: Parameters) -> Sequence[str]:
    return [name for name in body.texts("emails") if name]


def _invitation_id(call: Call) -> uuid.UUID:
    text = Parameters(call.json_object()).required_text("inv_id")
    try:
        return uuid.UUID(text) if len(text) in {32, 36} else uuid.UUID("")
    except ValueError:
        raise InvitationNotFound from None


def _share(share: Share) -> dict[str, Any]:
    return {
        "vfolder_id": share.folder.id.hex,
        "vfolder_name": share.folder.name,
        "owner": share.folder.owner,
        "status": "ready",
        "type": "user",
        "perm": share.permission.value,
        "shared_to": {"access_key": share.access_key, "email": share.user_id},
    }


def _invitation(invitation: Invitation) -> dict[str, Any]:
    return {
        "id": invitation.id.hex,
        "inviter": invitation.inviter,
        "invitee": invitation.invitee,
        "perm": invitation.permission.value,
        "state": "pending",
        "vfolder_id": invitation.folder_id.hex,
        "vfolder_name": invitation.folder_name,
        "created_at": time_of(invitation.created_at),
    }
