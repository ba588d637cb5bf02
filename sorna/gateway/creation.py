"""From the body of a create request, in any of its historic shapes, to what the manager is asked; pure.

Source: section 2.2 of the REST interface's specification, and what published clients send. Each generation spells the
session's name, the runtime and the limits in its own places and units; a client may send any of them under any version, and the
newest spelling wins. Wishes that would change what a session does and cannot be fulfilled here are refused; those that only
say in which group or domain to run are accepted without effect.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from sorna.errors import FolderNotFound, InvalidRequest
from sorna.gateway.described import (
    FLAG,
    OBJECT,
    TEXT,
    Schema,
    list_of,
    one_of,
    open_object,
    optional,
    text_of,
)
from sorna.gateway.parameters import MOST, Parameters
from sorna.gateway.sizes import read_size
from sorna.manager.requests import CreateRequest, MountWish
from sorna.model.agent import DEFAULT_GROUP, MAX_LABELS, SCALING_GROUP, read_label
from sorna.model.folder import valid_folder_name
from sorna.model.kernel import valid_session_token
from sorna.model.limits import KIB, MIB
from sorna.model.queue import QueueBounds
from sorna.model.service import HIGHEST_PORT, LOWEST_PORT, MOST_PORTS, NotReachable, check_ports

HOME = "/home/work"
MAX_ENVIRON = 64
MAX_ENVIRON_VALUE = 16 * 1024
_MAX_NAME = 64
_MAX_IMAGE = 256
_ENVIRON_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}", re.ASCII)
#: Later clients may want these; a session that silently went without them would be another one. A ``startupCommand`` is for
#: batch sessions alone, which are refused; clients of 19.09 send one whatever they want.
_REFUSED = ("bootstrap_script", "starts_at", "dependencies", "callback_url")

#: How clients of each generation ask for GPUs in ``config.resources``; shares are of a plugin that could split devices.
_GPU_KEYS = ("cuda.device", "cuda.shares", "gpu")
MAX_GPUS = 64

_NUMBER: Schema = optional({"type": "number", "minimum": 0, "maximum": MOST})
_AMOUNT: Schema = {"anyOf": [_NUMBER, {"type": "string", "pattern": r"^[0-9]{1,15}(\.[0-9]{1,9})? ?[kmgtpKMGTP]?$"}]}
_GPUS: Schema = {"type": "integer", "minimum": 0, "maximum": MAX_GPUS}
_ONE: Schema = {"type": "integer", "minimum": 1, "maximum": 1}
_NAME: Schema = {"type": "string", "pattern": "^[A-Za-z0-9_][A-Za-z0-9_.-]{2,78}[A-Za-z0-9_]$"}
#: The newest spellings; the older ones are read as well.
CREATE_BODY: Schema = open_object(
    "image",
    "name",
    image=text_of(1, _MAX_IMAGE),
    name=_NAME,
    type=optional(one_of("interactive")),
    tag=optional(text_of(0, _MAX_NAME)),
    reuseIfExists=optional(FLAG),
    enqueueOnly=optional(FLAG),
    maxWaitSeconds=_NUMBER,
    config=optional(
        open_object(
            environ=optional({**OBJECT, "additionalProperties": TEXT, "maxProperties": MAX_ENVIRON}),
            resources=optional(
                {
                    **open_object(**{"cpu": _NUMBER, "mem": _AMOUNT, "cuda.device": optional(_GPUS)}),
                    "additionalProperties": False,
                }
            ),
            mounts=optional(list_of(TEXT)),
            preopen_ports=optional(
                list_of({"type": "integer", "minimum": LOWEST_PORT, "maximum": HIGHEST_PORT}, maxItems=MOST_PORTS)
            ),
            labels=optional({**OBJECT, "additionalProperties": TEXT, "maxProperties": MAX_LABELS}),
            scalingGroup=optional(text_of(0, _MAX_NAME)),
            clusterSize=optional(_ONE),
        )
    ),
    clusterSize=optional(_ONE),
)


def read_create(access_key: str, body: Parameters) -> CreateRequest:
    """Read a create request.

    :raises InvalidRequest: a field is missing or wrong, or cannot be fulfilled; the detail names it.
    :raises FolderNotFound: it wants to mount what no folder is called.
    """
    config = body.inner("config")
    limits, first_limits = body.inner("limits"), body.inner("resourceLimits")
    resources = config.inner("resources")
    runtime, token = _runtime(body), _token(body)
    for where in (body, config):
        if where.number("clusterSize") not in {0, 1}:
            raise where.wrong("clusterSize", "1: a session is one kernel here")
    _refuse_what_is_not_offered(access_key, body)
    _refuse_other_devices(config, resources)
    memory = read_size(resources, "mem") or _instance_memory(config) or _kib(limits) or _kib(first_limits)
    timeout = limits.number("execTimeout") or first_limits.number("timeout")
    return CreateRequest(
        access_key=access_key,
        session_token=token,
        runtime=runtime,
        memory=int(memory),
        execution_timeout=timeout / 1000,
        cpu_cores=resources.number("cpu") or config.number("instanceCores"),
        gpus=_gpus(config, resources),
        environ=_environ(config),
        tag=body.optional_text("tag", _MAX_NAME),
        mounts=(*_mounts(body), *_mounts(config)),
        ports=_ports(config),
        labels=_labels(config),
        wait=_wait(body),
        enqueue_only=body.flag("enqueueOnly"),
        reuse=body.content.get("reuseIfExists") is None or body.flag("reuseIfExists"),
    )


def _runtime(body: Parameters) -> str:
    key = "lang" if body.content.get("image") is None else "image"
    runtime = body.required_text(key)
    # An image may be named with the registry it lies in and with a tag; neither says anything here.
    name = runtime.rpartition("/")[2] if key == "image" else runtime
    longest = _MAX_IMAGE if key == "image" else _MAX_NAME
    if not name or len(runtime) > longest:
        raise body.wrong(key, f"1 to {longest} characters long")
    return name


def _token(body: Parameters) -> str:
    key = "clientSessionToken" if body.content.get("name") is None else "name"
    token = body.required_text(key)
    if not valid_session_token(token):
        raise InvalidRequest(f"{key} must be 4 to 80 of A-Z a-z 0-9 _ . -, with a letter, digit or _ at both ends")
    return token


def _kib(limits: Parameters) -> float:
    return limits.number("maxMem") * KIB


def _instance_memory(config: Parameters) -> float:
    # Mebibytes, but for the one release that counts in gibibytes, which is also the only one to send this other key.
    return config.number("instanceMemory") * MIB * (KIB if "instanceTPUs" in config.content else 1)


def _mounts(where: Parameters) -> Sequence[MountWish]:
    """Read names of folders, ``name:alias`` among them, and the map of aliases that later clients send besides.

    An alias is a path below the working directory, or one that begins with it.
    """
    aliases = where.inner("mount_map")
    wishes = []
    for mount in (*where.texts("mounts"), *(name for name in aliases.content if name not in where.texts("mounts"))):
        name, colon, alias = mount.partition(":")
        if not valid_folder_name(name):
            raise FolderNotFound(f"{where.name('mounts')}: {name[:_MAX_NAME]}")
        alias = alias if colon else aliases.text(name)
        wishes.append(MountWish(name, alias.removeprefix(f"{HOME}/").rstrip("/")))
    return wishes


def _ports(config: Parameters) -> Sequence[int]:
    """Read the ports that the client's own programs will listen on; the newest clients write null for none."""
    key = "preopenPorts" if config.content.get("preopen_ports") is None else "preopen_ports"
    ports = config.whole_numbers(key)
    try:
        check_ports(ports)
    except NotReachable as error:
        raise InvalidRequest(f"{config.name(key)}: {error}") from None
    return ports


def _wait(body: Parameters) -> float | None:
    """Read how long the kernel may wait for an agent; later clients send 0 where nobody asked them to wait."""
    seconds = body.number("maxWaitSeconds")
    if seconds > QueueBounds().longest:
        raise body.wrong("maxWaitSeconds", f"at most {QueueBounds().longest:g}")
    return seconds or (QueueBounds().default if body.flag("enqueueOnly") else None)


def _labels(config: Parameters) -> Mapping[str, str]:
    """Read the labels that the agent must have; what later clients call a scaling group is one of them."""
    given = config.inner("labels")
    if len(given.content) > MAX_LABELS:
        raise config.wrong("labels", f"an object with at most {MAX_LABELS} names")
    labels = {}
    for key in given.content:
        value = given.required_text(key)
        if read_label(f"{key}={value}") is None:
            raise config.wrong("labels", "an object of keys and values of 1 to 63 of A-Z a-z 0-9 _ . -")
        labels[key] = value
    group = config.optional_text("scalingGroup", _MAX_NAME)
    if group is not None and group != DEFAULT_GROUP:
        if read_label(f"{SCALING_GROUP}={group}") is None:
            raise config.wrong("scalingGroup", "1 to 63 of A-Z a-z 0-9 _ . -")
        labels[SCALING_GROUP] = group
    return labels


def _refuse_what_is_not_offered(access_key: str, body: Parameters) -> None:
    for key in _REFUSED:
        if body.content.get(key) not in (None, "", []):
            raise InvalidRequest(f"{key} is not supported")
    if body.text("type", "interactive").lower() != "interactive":
        raise body.wrong("type", "interactive")
    if body.text("owner_access_key", access_key) != access_key:
        raise body.wrong("owner_access_key", "the access key of the request")


def _refuse_other_devices(config: Parameters, resources: Parameters) -> None:
    """Refuse accelerators and the like that no agent has; nothing of them is nothing that would be missed."""
    known = {"cpu", "mem", *_GPU_KEYS}
    for where, keys in ((config, ("instanceTPUs",)), (resources, sorted(resources.content.keys() - known))):
        for key in keys:
            if read_size(where, key) > 0:
                raise where.wrong(key, "0: there is no such resource here")


def _gpus(config: Parameters, resources: Parameters) -> int:
    """Read how many devices are wanted, by whatever name; whole ones, because none is shared."""
    for where, keys in ((resources, _GPU_KEYS), (config, ("instanceGPUs",))):
        for key in keys:
            wanted = where.number(key)
            if not wanted.is_integer() or wanted > MAX_GPUS:
                raise where.wrong(key, f"a whole number from 0 to {MAX_GPUS}")
            if wanted:
                return int(wanted)
    return 0


def _environ(config: Parameters) -> Mapping[str, str]:
    key = "environ"
    if config.content.get(key) is None and isinstance(config.content.get("envs"), dict):
        key = "envs"  # as clients before 1.3.3 spell it
    given = config.inner(key)
    if len(given.content) > MAX_ENVIRON:
        raise config.wrong(key, f"an object with at most {MAX_ENVIRON} names")
    environ = {}
    for name in given.content:
        if not _ENVIRON_NAME.fullmatch(name):
            raise config.wrong(key, "an object whose names are those of environment variables")
        value = given.required_text(name)
        if len(value) > MAX_ENVIRON_VALUE or "\0" in value:
            raise given.wrong(name, f"at most {MAX_ENVIRON_VALUE} characters long and without NUL")
        environ[name] = value
    return environ
