"""The resolvers of virtual folders; plain functions, each with its request's Asking."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sorna.gateway.graphql.asking import Asking
from sorna.gateway.graphql.needs import FoldersSharedWith, FoldersWhere
from sorna.gateway.graphql.pages import NOTHING, Info, Page, Resolver, always, bounds, text_of
from sorna.gateway.graphql.selecting import read_selection
from sorna.model.folder import HOST, Folder, FolderAccess
from sorna.model.limits import KIB
from sorna.model.selectable import of_folder
from sorna.model.selection import FOLDER_FIELDS, Selection, Value, select


def folders(_root: None, info: Info, access_key: str | None = None) -> Any:
    """List folders as clients until 2019 ask for them."""
    asking = info.context
    return asking.get(FoldersWhere(asking.owner or access_key, *bounds(None, None)), ())


def folder_list(
    _root: None, info: Info, *, limit: int, offset: int, group_id: str | None = None, access_key: str | None = None,
    filter: str | None = None, order: str | None = None,  # noqa: A002 - the argument's name
) -> Page:  # fmt: skip
    """List folders by the page."""
    selection = read_selection(FOLDER_FIELDS, filter, order)
    asking = info.context
    if group_id is not None or (asking.owner is not None and access_key not in {None, asking.owner}):
        return NOTHING
    owner = asking.owner or access_key
    return _page(asking, owner, selection, *bounds(limit, offset))


def _page(asking: Asking, owner: str | None, selection: Selection, offset: int, limit: int) -> Page:
    need = FoldersWhere(owner, offset, limit, selection)
    return Page(lambda: asking.get(need, ()), lambda: asking.get(FoldersWhere(owner, selection=selection)))


def own_folder_list(
    _root: None, info: Info, *, limit: int, offset: int, filter: str | None = None, order: str | None = None,  # noqa: A002 - the argument's name
) -> Page:  # fmt: skip
    """List the folders of whoever asks, administrators too."""
    selection = read_selection(FOLDER_FIELDS, filter, order)
    return _page(info.context, info.context.access_key, selection, *bounds(limit, offset))


def invited_folder_list(
    _root: None, info: Info, *, limit: int, offset: int, filter: str | None = None, order: str | None = None,  # noqa: A002 - the argument's name
) -> Page:  # fmt: skip
    """List the folders that others share with whoever asks."""
    selection = read_selection(FOLDER_FIELDS, filter, order)
    first, most = bounds(limit, offset)
    found = select(info.context.get(FoldersSharedWith(info.context.access_key), ()), selection, _value)
    return Page(lambda: found[first : first + most], lambda: len(found))


def project_folder_list(
    _root: None, _info: Info, *, limit: int, offset: int, filter: str | None = None, order: str | None = None,  # noqa: A002 - the argument's name
) -> Page:  # fmt: skip
    """List the folders of projects, of which there are none."""
    bounds(limit, offset)
    read_selection(FOLDER_FIELDS, filter, order)
    return NOTHING


def _folder(one: Folder | FolderAccess) -> Folder:
    return one.folder if isinstance(one, FolderAccess) else one


def _value(access: FolderAccess, field: str) -> Value:
    """Give what folders that others share can be selected by."""
    if field == "permission":
        return "READ_WRITE" if access.may_write else "READ_ONLY"
    return of_folder(access.folder, field)


def _of_folder(read: Callable[[Folder], Any]) -> Resolver:
    return lambda one, _info: read(_folder(one))


FOLDER: Mapping[str, Resolver] = {
    "id": _of_folder(lambda folder: str(folder.id)),
    "name": _of_folder(lambda folder: folder.name),
    "host": always(HOST),
    "max_files": _of_folder(lambda folder: folder.bounds.files),
    # In KiB, as it always was.
    "max_size": _of_folder(lambda folder: folder.bounds.size // KIB),
    "created_at": _of_folder(lambda folder: text_of(folder.created_at)),
    "last_used": _of_folder(lambda folder: text_of(folder.last_used)),
    # As it was counted last, which is seconds ago if it was changed since.
    "num_files": _of_folder(lambda folder: folder.held and folder.held.files),
    "cur_size": _of_folder(lambda folder: folder.held and folder.held.size),
    **dict.fromkeys(("creator", "user"), _of_folder(lambda folder: folder.owner)),
    "cloneable": _of_folder(lambda folder: folder.cloneable),
    "permission": lambda one, _info: one.permission.value if isinstance(one, FolderAccess) else "rw",
    **dict.fromkeys(("group", "unmanaged_path"), always(None)),
    "usage_mode": always("general"),
    "ownership_type": always("user"),
    "status": always("ready"),
}
