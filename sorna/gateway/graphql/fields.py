"""Who resolves what: the resolvers of keypairs, policies and usage, and the table of all.

Plain functions, each with its request's Asking; kernels, agents and folders have rooms of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sorna.errors import InvalidRequest
from sorna.gateway.graphql import agent_fields, folder_fields, kernel_fields
from sorna.gateway.graphql.bounds import INNER_LIMIT
from sorna.gateway.graphql.kernel_fields import statuses_of
from sorna.gateway.graphql.mutations import MUTATIONS
from sorna.gateway.graphql.needs import FoldersOf, KernelsOf, KeypairNamed, KeypairsOf, Policies, UsageOf
from sorna.gateway.graphql.pages import NOTHING, PAGE, Info, Page, always, bounds, text_of
from sorna.gateway.graphql.selecting import moment, read_selection
from sorna.model.agent import DEFAULT_GROUP
from sorna.model.keypair import Keypair
from sorna.model.policy import ResourcePolicy
from sorna.model.selection import KEYPAIR_FIELDS


def _moment(value: Any) -> float:
    try:
        return moment(value)
    except (TypeError, ValueError, OverflowError):
        raise InvalidRequest("a time must be written as in 2026-01-31T12:00:00+00:00") from None


def _keypair(_root: None, info: Info, access_key: str | None = None) -> Any:
    asking = info.context
    return asking.get(KeypairNamed(asking.owner or access_key or asking.access_key))


def _keypairs(
    _root: None, info: Info, *, user_id: int | str | None = None, is_active: bool | None = None,
    limit: int | None = None, offset: int | None = None,
) -> Sequence[Keypair]:  # fmt: skip
    # Clients of 2018 send 0 for "of everybody".
    user = None if user_id in {None, 0, "0"} else str(user_id)
    found: Sequence[Keypair] = info.context.get(KeypairsOf(user, is_active, *bounds(limit, offset)), ())
    return found


def _keypair_list(
    _root: None, info: Info, *, limit: int, offset: int, is_active: bool | None = None,
    domain_name: str | None = None, filter: str | None = None, order: str | None = None,  # noqa: A002 - the argument's name
) -> Page:  # fmt: skip
    selection = read_selection(KEYPAIR_FIELDS, filter, order)
    if domain_name not in {None, DEFAULT_GROUP}:
        return NOTHING
    asking = info.context
    need = KeypairsOf(None, is_active, *bounds(limit, offset), selection)
    return Page(lambda: asking.get(need, ()), lambda: asking.get(KeypairsOf(None, is_active, selection=selection)))


def _sessions_of_keypair(keypair: Keypair, info: Info, status: str | None = None, limit: int | None = None) -> Any:
    _offset, most = bounds(limit, 0, INNER_LIMIT)
    return info.context.get(KernelsOf(keypair.access_key, statuses_of(status), most), ())


_KEYPAIR: Mapping[str, Callable[..., Any]] = {
    "user_info": lambda keypair, _info: {"full_name": keypair.user_id},
    "created_at": lambda keypair, _info: text_of(keypair.created_at),
    "last_used": lambda keypair, _info: text_of(keypair.last_used),
    "memory_used": lambda keypair, _info: keypair.taken.memory,
    "cpu_used": lambda keypair, _info: keypair.taken.cpu_millis / 1000,
    "gpus_used": lambda keypair, _info: keypair.taken.gpus,
    "projects": always((DEFAULT_GROUP,)),
    # Later servers keep these for a keypair and put them into its sessions; Sorna has nothing of the kind.
    **dict.fromkeys(("modified_at", "ssh_public_key", "ssh_private_key", "dotfiles", "bootstrap_script"), always(None)),
    "vfolders": lambda keypair, info: info.context.get(FoldersOf(keypair.access_key, INNER_LIMIT), ()),
    "compute_sessions": _sessions_of_keypair,
}


# Policies and usage.


def _policy(_root: None, info: Info, name: str) -> ResourcePolicy | None:
    return next((policy for policy in info.context.get(Policies(), ()) if policy.name == name), None)


def _policies(_root: None, info: Info, limit: int | None = None, offset: int | None = None) -> Any:
    first, most = bounds(limit, offset)
    return info.context.get(Policies(), ())[first : first + most]


def _usage(
    _root: None, info: Info, *, since: Any, until: Any, access_key: str | None = None,
    limit: int | None = None, offset: int | None = None,
) -> Any:  # fmt: skip
    asking = info.context
    if asking.owner is not None and access_key not in {None, asking.owner}:
        return ()
    need = UsageOf(_moment(since), _moment(until), asking.owner or access_key, *bounds(limit, offset))
    return asking.get(need, ())


RESOLVERS: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "Query": {
        "agent": agent_fields.agent,
        "agents": agent_fields.agents,
        "agent_list": agent_fields.agent_list,
        "explain_placement": agent_fields.explain_placement,
        "keypair": _keypair,
        "keypairs": _keypairs,
        "keypair_list": _keypair_list,
        "vfolders": folder_fields.folders,
        "vfolder_list": folder_fields.folder_list,
        "vfolder_own_list": folder_fields.own_folder_list,
        "vfolder_invited_list": folder_fields.invited_folder_list,
        "vfolder_project_list": folder_fields.project_folder_list,
        "images": agent_fields.images,
        "compute_session": kernel_fields.compute_session,
        "compute_sessions": kernel_fields.compute_sessions,
        "compute_session_list": kernel_fields.compute_session_list,
        "compute_workers": kernel_fields.no_workers,
        "resource_policy": _policy,
        "resource_policies": _policies,
        "usage": _usage,
    },
    "Mutation": MUTATIONS,
    "ComputeSession": kernel_fields.KERNEL,
    "ComputeWorker": kernel_fields.KERNEL,
    "ComputeContainer": kernel_fields.KERNEL,
    "KeyPair": _KEYPAIR,
    "Agent": agent_fields.AGENT,
    "VirtualFolder": folder_fields.FOLDER,
    "ComputeSessionList": PAGE,
    "VirtualFolderList": PAGE,
    "KeyPairList": PAGE,
    "AgentList": PAGE,
}
