"""From the body of a create request, in any of its historic shapes, to what the manager is asked; pure.

Source: section 2.2 of the REST interface's specification. The three generations spell limits in three places and three
units; a client may send any of them under any version, and the newest spelling wins.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sorna.errors import InvalidRequest
from sorna.gateway.parameters import Parameters
from sorna.gateway.problems import FolderNotFound
from sorna.manager.requests import CreateRequest
from sorna.model.kernel import valid_session_token
from sorna.model.limits import KIB, MIB

MAX_ENVIRON = 64
MAX_ENVIRON_VALUE = 16 * 1024
_MAX_NAME = 64
_ENVIRON_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}", re.ASCII)


def read_create(access_key: str, body: Parameters) -> CreateRequest:
    """Read a create request.

    :raises InvalidRequest: a field is missing or wrong; the detail names it.
    :raises FolderNotFound: it wants to mount a folder.
    """
    runtime = body.required_text("lang")
    if not runtime or len(runtime) > _MAX_NAME:
        raise body.wrong("lang", f"1 to {_MAX_NAME} characters long")
    token = body.required_text("clientSessionToken")
    if not valid_session_token(token):
        raise InvalidRequest(
            "clientSessionToken must be 4 to 80 of A-Z a-z 0-9 _ . -, with a letter, digit or _ at both ends"
        )
    config = body.inner("config")
    limits, first_limits = body.inner("limits"), body.inner("resourceLimits")
    _refuse_mounts(body)
    _refuse_mounts(config)
    _check_ignored(config)
    memory = config.number("instanceMemory") * MIB or _kib(limits) or _kib(first_limits)
    timeout = limits.number("execTimeout") or first_limits.number("timeout")
    return CreateRequest(
        access_key=access_key,
        session_token=token,
        runtime=runtime,
        memory=int(memory),
        execution_timeout=timeout / 1000,
        cpu_cores=config.number("instanceCores"),
        environ=_environ(config),
        tag=body.optional_text("tag", _MAX_NAME),
    )


def _kib(limits: Parameters) -> float:
    return limits.number("maxMem") * KIB


def _refuse_mounts(where: Parameters) -> None:
    for name in where.texts("mounts"):
        raise FolderNotFound(f"{where.name('mounts')}: {name[:_MAX_NAME]}")


def _check_ignored(config: Parameters) -> None:
    # Accepted and without effect, as they always were; only nonsense is refused.
    for key in ("clusterSize", "instanceGPUs", "instanceTPUs"):
        config.number(key)


def _environ(config: Parameters) -> Mapping[str, str]:
    given = config.inner("environ")
    if len(given.content) > MAX_ENVIRON:
        raise config.wrong("environ", f"an object with at most {MAX_ENVIRON} names")
    environ = {}
    for name in given.content:
        if not _ENVIRON_NAME.fullmatch(name):
            raise config.wrong("environ", "an object whose names are those of environment variables")
        value = given.required_text(name)
        if len(value) > MAX_ENVIRON_VALUE or "\0" in value:
            raise given.wrong(name, f"at most {MAX_ENVIRON_VALUE} characters long and without NUL")
        environ[name] = value
    return environ
