"""The mutations: what an administrator may change. Each says what is to be done, and is done once its turn has come."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from graphql import GraphQLResolveInfo

from sorna.errors import InvalidRequest
from sorna.gateway.graphql.asking import Asking
from sorna.model.keypair import KeypairChanges
from sorna.model.policy import ResourcePolicy

Info = GraphQLResolveInfo[Asking]


def _create_keypair(_root: None, info: Info, user_id: int | str, props: Mapping[str, Any]) -> Any:
    asking = info.context

    async def act() -> Mapping[str, Any]:
        return {"keypair": await asking.administration.create_keypair(str(user_id), KeypairChanges(**props))}

    return asking.do(info.path.key, act)


def _require_another(asking: Asking, access_key: str) -> None:
    """Keep an administrator from taking its own rights away: there would be nobody left to give them back."""
    if access_key == asking.access_key:
        raise InvalidRequest("an administrator's keypair does not disable, demote or remove itself")


def _modify_keypair(_root: None, info: Info, access_key: str, props: Mapping[str, Any]) -> Any:
    asking = info.context

    async def act() -> Mapping[str, Any]:
        if props.get("is_active") is False or props.get("is_admin") is False:
            _require_another(asking, access_key)
        await asking.administration.modify_keypair(access_key, KeypairChanges(**props))
        return {}

    return asking.do(info.path.key, act)


def _delete_keypair(_root: None, info: Info, access_key: str) -> Any:
    asking = info.context

    async def act() -> Mapping[str, Any]:
        _require_another(asking, access_key)
        await asking.administration.remove_keypair(access_key)
        return {}

    return asking.do(info.path.key, act)


def _put_policy(_root: None, info: Info, name: str, props: Mapping[str, Any]) -> Any:
    asking = info.context

    async def act() -> Mapping[str, Any]:
        runtimes = props.get("runtimes")
        given = {**props, "runtimes": None if runtimes is None else frozenset(runtimes)}
        await asking.administration.put_policy(ResourcePolicy(name, **given))
        return {}

    return asking.do(info.path.key, act)


def _delete_policy(_root: None, info: Info, name: str) -> Any:
    asking = info.context

    async def act() -> Mapping[str, Any]:
        await asking.administration.remove_policy(name)
        return {}

    return asking.do(info.path.key, act)


def _drain_agent(_root: None, info: Info, agent_id: str, wait: float | None = None) -> Any:
    asking = info.context

    async def act() -> Mapping[str, Any]:
        await asking.administration.drain_agent(agent_id, wait)
        return {}

    return asking.do(info.path.key, act)


def _undrain_agent(_root: None, info: Info, agent_id: str) -> Any:
    asking = info.context

    async def act() -> Mapping[str, Any]:
        await asking.administration.undrain_agent(agent_id)
        return {}

    return asking.do(info.path.key, act)


MUTATIONS: Mapping[str, Callable[..., Any]] = {
    "create_keypair": _create_keypair,
    "modify_keypair": _modify_keypair,
    "delete_keypair": _delete_keypair,
    "put_resource_policy": _put_policy,
    "delete_resource_policy": _delete_policy,
    "drain_agent": _drain_agent,
    "undrain_agent": _undrain_agent,
}
