"""The OpenAPI 3.1 document of a list of routes; pure. Knows routes and the table of problems, no route in particular.

One place says what clients of version 4 and later do, who leave the version out or write ``/v4``; versions 2 and 3 are the
same but for the base of a problem's type, and version 1 answers to executions in another shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from apispec import APISpec

from sorna import errors
from sorna.gateway.call import Access
from sorna.gateway.described import TEXT, Described
from sorna.gateway.problems import INTERNAL, TABLE, BadRequest, Era, PayloadTooLarge, Problem
from sorna.gateway.router import API_VERSION, Route

Operation = dict[str, Any]

_VARIABLE = re.compile(r"<(\w+)>")
_VERSIONS = [{"url": "/", "description": "without a version"}, *({"url": f"/v{number}"} for number in (4, 3, 2))]
_VARIABLES = {
    "reference": "A kernel's id, short or as a UUID, or the session's token.",
    "folder": "A folder's name; below /folder its id.",
    "run_id": "The run's id, as the answers to the execution tell it.",
}
#: Who may call a route, in the words of the document.
SECURITY: Mapping[Access, list[dict[str, list[str]]]] = {
    Access.PUBLIC: [],
    Access.KEYPAIR: [{"signature": []}],
    Access.TOKEN: [{"token": []}],
}
_SIGNATURE = {
    "type": "apiKey",
    "in": "header",
    "name": "Authorization",
    "description": "BackendAI signMethod=HMAC-SHA256, credential=ACCESS_KEY:SIGNATURE, with the headers Date and"
    " X-BackendAI-Version; the signature covers method, path, date, host, media type and version.",
}
_TOKEN = {
    "type": "apiKey",
    "in": "query",
    "name": "token",
    "description": "What the answer to a signed request for an upload or a download gave.",
}
_PROBLEM_SCHEMA = {
    "type": "object",
    "properties": {
        "type": {"type": "string", "pattern": "^(" + "|".join(re.escape(era.value) for era in Era) + ")[a-z-]+$"},
        "title": TEXT,
        "agent-details": {"type": "object", "properties": {"type": TEXT, "title": {"type": ["string", "null"]}}},
    },
    "required": ["type", "title"],
    "additionalProperties": False,
}


def document_of(routes: Iterable[Route]) -> dict[str, Any]:
    """Build the document; a route that says nothing of itself has what its path and access tell."""
    spec = APISpec(
        title="Sorna",
        version=API_VERSION,
        openapi_version="3.1.0",
        info={"description": "Code execution in sessions: kernels, their runs, files, terminals and events."},
        servers=_VERSIONS,
    )
    spec.components.security_scheme("signature", _SIGNATURE)
    spec.components.security_scheme("token", _TOKEN)
    spec.components.schema("Problem", dict(_PROBLEM_SCHEMA))
    for status, component in _problem_responses().items():
        spec.components.response(_problem_name(status), component)
    for route in routes:
        path = _VARIABLE.sub(r"{\1}", route.path) or "/"
        spec.path(path, operations={route.method.lower(): _operation(route)})
    return spec.to_dict()


def _operation(route: Route) -> Operation:
    described = route.described or Described(answers={})
    operation: Operation = {
        "operationId": _operation_id(route),
        "summary": route.summary,
        "tags": [route.path.removeprefix("/stream").split("/")[1] if route.path.strip("/") else "root"],
        "security": SECURITY[route.access],
        "parameters": _parameters(route, described),
        "responses": _responses(route, described),
    }
    if described.body is not None:
        operation["requestBody"] = {"required": True, "content": _content(described.body)}
    if not route.versioned:
        operation["servers"] = [{"url": "/"}]
    return operation


def _operation_id(route: Route) -> str:
    return "_".join([route.method.lower(), *re.findall(r"[\w-]+", route.path)])


def _parameters(route: Route, described: Described) -> list[dict[str, Any]]:
    variables = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": _VARIABLES.get(name, ""),
            "schema": {"type": "string", "minLength": 1, "maxLength": 80},
        }
        for name in _VARIABLE.findall(route.path)
    ]
    given = (("query", described.query), ("header", described.headers))
    return variables + [
        {"name": name, "in": where, "schema": dict(schema)}
        for where, fields in given
        for name, schema in fields.items()
    ]


def _responses(route: Route, described: Described) -> dict[str, Any]:
    responses: dict[str, Any] = {
        str(status): {"description": _says(status), **({"content": _content(content)} if content else {})}
        for status, content in described.answers.items()
    }
    if route.websocket:
        responses["101"] = {"description": "The connection is a WebSocket from here on; its messages are JSON in text."}
    statuses = {_row(error).status for error in _errors(route, described)}
    return responses | {str(status): _problem_name(status) for status in sorted(statuses)}


def _errors(route: Route, described: Described) -> Iterable[type[BaseException]]:
    """Give what a route may answer by what it is, and what it says of itself."""
    yield from described.raises
    yield from (BadRequest, PayloadTooLarge, errors.SornaError)
    if route.access is not Access.PUBLIC:
        yield errors.AuthenticationFailed
    if route.access is Access.KEYPAIR:
        yield from (errors.RateLimitExceeded, errors.Unavailable)
    if route.needs_ready:
        yield errors.Unavailable
    if "<reference>" in route.path:
        yield errors.KernelNotFound
    if "<folder>" in route.path:
        yield errors.FolderNotFound


def _row(error: type[BaseException]) -> Problem:
    return next(TABLE[cls] for cls in error.__mro__ if cls in TABLE)


def _problem_responses() -> dict[int, dict[str, Any]]:
    slugs: dict[int, list[str]] = {}
    for problem in (*TABLE.values(), INTERNAL):
        known = slugs.setdefault(problem.status, [])
        if problem.slug not in known:
            known.append(problem.slug)
    return {
        status: {
            "description": "A problem: " + ", ".join(names) + ".",
            "content": {"application/problem+json": {"schema": "Problem"}},
        }
        for status, names in slugs.items()
    }


def _problem_name(status: int) -> str:
    return f"Problem{status}"


def _content(content: Mapping[str, Any]) -> dict[str, Any]:
    return {media_type: {"schema": dict(schema)} for media_type, schema in content.items()}


def _says(status: int) -> str:
    return {206: "A part of it.", 416: "It ends before what was asked for."}.get(status, "It is done.")
