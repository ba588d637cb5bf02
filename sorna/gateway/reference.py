"""The interface's description, served: the OpenAPI document, and a page for people made from it that loads nothing else.

Knows the document and nothing of the routes that it is about.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, ClassVar

from twisted.web.template import Tag, flattenString, tags

from sorna.gateway.call import JSON_TYPE, Access, Call, Reply, encode_json
from sorna.gateway.described import OBJECT, TEXT, Described, json_content
from sorna.gateway.router import Router

HTML_TYPE = b"text/html; charset=utf-8"
#: The page has styles of its own and nothing else, whatever somebody smuggles into a description.
_POLICY = {b"Content-Security-Policy": b"default-src 'none'; style-src 'unsafe-inline'"}
_STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
    "h2{border-top:1px solid;padding-top:.5em;font:1.1em monospace}pre{overflow:auto}"
    "td,th{text-align:left;vertical-align:top;padding-right:1em}"
)


class ReferenceRoutes:
    """The description's two forms. Public: it is the same for everybody, and names no secret.

    Both are made once, when they are first asked for: whoever asks again and again has nothing worked out.
    """

    def __init__(self, describe: Callable[[], Mapping[str, Any]]) -> None:
        self._describe = describe
        self._html = b""

    router: ClassVar[Router[ReferenceRoutes]] = Router()

    @cached_property
    def _document(self) -> Mapping[str, Any]:
        return self._describe()

    @cached_property
    def _json(self) -> bytes:
        return encode_json(self._document)

    @router.route(
        "GET",
        "/openapi.json",
        access=Access.PUBLIC,
        versioned=False,
        described=Described(answers={200: json_content(OBJECT)}),
    )
    async def openapi(self, _call: Call) -> Reply:
        """Give the OpenAPI document of this interface."""
        return Reply(200, self._json, JSON_TYPE)

    @router.route(
        "GET",
        "/docs",
        access=Access.PUBLIC,
        versioned=False,
        described=Described(answers={200: {"text/html": TEXT}}),
    )
    async def page(self, _call: Call) -> Reply:
        """Show the OpenAPI document as a page."""
        if not self._html:
            self._html = b"<!DOCTYPE html>\n" + await flattenString(None, page_of(self._document))
        return Reply(200, self._html, HTML_TYPE, _POLICY)


def page_of(document: Mapping[str, Any]) -> Tag:
    """Make the page; whatever the document holds is escaped when it is flattened."""
    title = f"{document['info']['title']} {document['info']['version']}"
    return tags.html(
        tags.head(tags.meta(charset="utf-8"), tags.title(title), tags.style(_STYLE)),
        tags.body(
            tags.h1(title),
            tags.p(document["info"]["description"]),
            tags.p("Before each path: ", ", ".join(server["url"] for server in document["servers"]), "."),
            tags.p("Signed: ", document["components"]["securitySchemes"]["signature"]["description"]),
            *(
                _section(document, path, method, operation)
                for path, operations in document["paths"].items()
                for method, operation in operations.items()
            ),
        ),
        lang="en",
    )


def _section(document: Mapping[str, Any], path: str, method: str, operation: Mapping[str, Any]) -> Tag:
    return tags.section(
        tags.h2(f"{method.upper()} {path}"),
        tags.p(
            operation["summary"],
            " Needs: ",
            ", ".join(name for one in operation["security"] for name in one) or "nothing, it is public",
            ".",
        ),
        tags.table(*(_row(*cells) for cells in _parameters(operation))),
        *_contents("Request", operation.get("requestBody", {})),
        *(
            piece
            for status, response in operation["responses"].items()
            for piece in _contents(status, _resolved(document, response))
        ),
        id=operation["operationId"],
    )


def _parameters(operation: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for one in operation["parameters"]:
        yield one["name"], one["in"], one.get("description") or json.dumps(one["schema"])


def _contents(name: str, what: Mapping[str, Any]) -> Iterator[Tag]:
    if not what:
        return
    yield tags.p(tags.b(name), " ", what.get("description", ""))
    for media_type, content in what.get("content", {}).items():
        if media_type != "application/problem+json":
            yield tags.pre(f"{media_type}\n{json.dumps(content['schema'], indent=2)}")


def _resolved(document: Mapping[str, Any], response: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = response.get("$ref")
    if reference is None:
        return response
    component: Mapping[str, Any] = document["components"]["responses"][reference.rpartition("/")[2]]
    return component


def _row(*cells: str) -> Tag:
    return tags.tr(*(tags.td(cell) for cell in cells))
