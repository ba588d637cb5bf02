"""What the table of every route needs for those of virtual folders: bodies that they accept, and things to act on."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any
from urllib.parse import urlencode

from sorna.manager.folder_interfaces import SmallFile
from sorna.manager.folders import Folders
from sorna.manager.transfers import Transfers
from sorna.model.folder import Permission
from sorna.testing.gateway import EXAMPLE
from tests.gateway.base import OTHER

NAME = "vf1"
#: Values that are looked up when the things to act on are there.
ID, INVITATION = "<id>", "<invitation>"

BODIES: Mapping[tuple[str, str], Any] = {
    ("POST", "/folders"): {"name": "vf2"},
    ("POST", "/folder/create"): {"name": "vf2"},
    ("DELETE", "/folders"): {"id": ID},
    ("POST", "/folders/<folder>/rename"): {"new_name": "vf3"},
    ("POST", "/folders/<folder>/clone"): {"target_name": "vf3"},
    ("POST", "/folders/<folder>/update-options"): {"cloneable": True},
    ("POST", "/folders/<folder>/invite"): {"perm": "rw", "user_ids": [OTHER.access_key]},
    ("POST", "/folders/<folder>/share"): {"permission": "rw", "emails": [OTHER.access_key]},
    ("DELETE", "/folders/<folder>/unshare"): {"emails": [OTHER.access_key]},
    ("POST", "/folders/_/shared"): {"vfolder": ID, "user": OTHER.access_key, "perm": "ro"},
    ("POST", "/folders/invitations/accept"): {"inv_id": INVITATION},
    ("DELETE", "/folders/invitations/delete"): {"inv_id": INVITATION},
    ("GET", "/folders/<folder>/files"): {"path": "."},
    ("POST", "/folders/<folder>/upload"): "form",
    ("POST", "/folders/<folder>/mkdir"): {"path": "d"},
    **{("POST", f"/folders/<folder>/rename{dash}file"): {"target_path": "a.txt", "new_name": "b.txt"} for dash in "-_"},
    ("POST", "/folders/<folder>/move-file"): {"src": "a.txt", "dst": "b.txt"},
    **{("DELETE", f"/folders/<folder>/delete{dash}files"): {"files": ["a.txt"], "recursive": False} for dash in "-_"},
    ("GET", "/folders/<folder>/download"): {"files": ["a.txt"]},
    ("POST", "/folders/<folder>/request-upload"): {"path": "c.txt", "size": 1},
    **{("POST", f"/folders/<folder>/request{dash}download"): {"path": "a.txt", "archive": False} for dash in "-_"},
}
#: POST routes that read no body.
BODILESS = frozenset({("POST", "/folders/<folder>/leave"), ("POST", "/folders/_/mounts")})
#: Routes for administrators alone, and those among them that say why Sorna does not do this.
REFUSED = frozenset(
    {
        ("POST", "/folders/_/mounts"),
        ("DELETE", "/folders/_/mounts"),
        ("GET", "/folders/_/fstab"),
        ("GET", "/folders/_/perf-metric"),
    }
)
FOR_ADMINISTRATORS = REFUSED | {("GET", "/folders/_/mounts")}
TYPED: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("POST", "/folders"): {"name": 1, "host": {}, "quota": [], "usage_mode": 2, "permission": 1, "cloneable": 1},
    ("POST", "/folder/create"): {"name": None},
    ("DELETE", "/folders"): {"id": 1},
    ("POST", "/folders/<folder>/rename"): {"new_name": []},
    ("POST", "/folders/<folder>/clone"): {"target_name": 1, "target_host": 1, "usage_mode": 1, "permission": 1},
    ("POST", "/folders/<folder>/update-options"): {"cloneable": "yes", "permission": []},
    ("POST", "/folders/<folder>/share"): {"permission": 1, "emails": "x"},
    ("DELETE", "/folders/<folder>/unshare"): {"emails": [1]},
    ("POST", "/folders/_/shared"): {"vfolder": 1, "user": [], "perm": 1},
    ("POST", "/folders/<folder>/move-file"): {"src": 1, "dst": None},
    ("POST", "/folders/<folder>/invite"): {"perm": 1, "user_ids": "x"},
    ("POST", "/folders/invitations/accept"): {"inv_id": 1},
    ("DELETE", "/folders/invitations/delete"): {"inv_id": {}},
    ("GET", "/folders/<folder>/files"): {"path": 1},
    ("POST", "/folders/<folder>/mkdir"): {"path": []},
    ("POST", "/folders/<folder>/rename_file"): {"target_path": 1, "new_name": 1},
    ("DELETE", "/folders/<folder>/delete_files"): {"files": "x", "recursive": 1},
    ("GET", "/folders/<folder>/download"): {"files": [1]},
    ("POST", "/folders/<folder>/request-upload"): {"path": 1, "size": "1"},
    ("POST", "/folders/<folder>/request-download"): {"path": 1, "archive": "x"},
}
HEADERS: Mapping[tuple[str, str], dict[bytes, bytes]] = {
    (method, "/folders/_/upload"): {
        b"Tus-Resumable": b"1.0.0",
        b"Upload-Offset": b"0",
        b"Content-Type": b"application/offset+octet-stream",
    }
    for method in ("HEAD", "PATCH", "DELETE")
}


class FolderWorld:
    """Two people's folders, as they are before each call."""

    def __init__(self, do: Callable[[Coroutine[Any, Any, Any]], Any], folders: Folders, transfers: Transfers) -> None:
        self._do = do
        self._folders = folders
        self._transfers = transfers
        self.values: dict[str, str] = {}

    def prepare(self, route: tuple[str, str]) -> str:
        """Make one folder with a file, and an invitation to another; gives the query that the route wants."""
        do, folders = self._do, self._folders
        mine, theirs = EXAMPLE.access_key, OTHER.access_key
        for key in (mine, theirs):
            for seen in do(folders.seen_by(key)):
                if seen.is_owner:
                    do(folders.remove(key, do(folders.open(key, seen.folder.name))))
        owner = theirs if route[1].endswith("/leave") else mine
        self.values[ID] = do(folders.create(owner, NAME)).id.hex
        do(do(folders.open(owner, NAME)).write_files([SmallFile("a.txt", b"1")]))
        do(folders.create(theirs, "vf9"))
        do(folders.invite(theirs, "vf9", [mine], Permission.READ_ONLY))
        if owner == theirs:
            do(folders.invite(theirs, NAME, [mine], Permission.READ_ONLY))
            for invitation in do(folders.invitations(mine)):
                if invitation.folder_name == NAME:
                    do(folders.accept(mine, invitation.id))
        self.values[INVITATION] = do(folders.invitations(mine))[0].id.hex
        if route[1] == "/folders/_/upload":
            return "?" + urlencode({"token": do(self._transfers.request_upload(mine, NAME, "c", 5))})
        if route[1] == "/folders/_/download":
            return "?" + urlencode({"token": do(self._transfers.request_download(mine, NAME, "a.txt", archive=False))})
        return ""

    def filled(self, content: Any) -> Any:
        """Put the values of now into a body."""
        if isinstance(content, dict):
            return {key: self.filled(value) for key, value in content.items()}
        return self.values.get(content, content) if isinstance(content, str) else content
