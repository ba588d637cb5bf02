"""What a route tells a document about itself, besides its path, its access and its docstring; plain values, no behaviour.

Schemas are JSON Schema as in OpenAPI 3.1. Those of answers allow no field that they do not name, so that an answer that
drifts away from what is written here is found; those of requests do, because clients of every generation send more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from sorna.errors import SornaError

Schema = Mapping[str, Any]
#: Media type -> schema.
Content = Mapping[str, Schema]

ANY: Schema = {}
BINARY: Schema = {"type": "string", "format": "binary"}
TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
NUMBER: Schema = {"type": "number"}
WHOLE: Schema = {"type": "integer"}
OBJECT: Schema = {"type": "object"}
NOTHING: Content = {}


@frozen
class Described:
    """What a route takes and gives.

    :ivar answers: status -> what the body may be, when all goes well.
    :ivar body: what it reads; None when it reads none.
    :ivar query: the fields of the query, none of which must be there.
    :ivar headers: the same of headers.
    :ivar raises: errors besides those that its access, its path and its readiness bring with them.
    """

    answers: Mapping[int, Content]
    body: Content | None = None
    query: Mapping[str, Schema] = field(factory=dict)
    headers: Mapping[str, Schema] = field(factory=dict)
    raises: tuple[type[SornaError], ...] = ()


def json_content(schema: Schema) -> Content:
    """Say that a body is JSON."""
    return {"application/json": schema}


def exactly(**properties: Schema) -> Schema:
    """Describe an object with all of these fields and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def open_object(*required: str, **properties: Schema) -> Schema:
    """Describe an object of which some fields must be there, and whose other fields do not matter."""
    schema = {"type": "object", "properties": properties}
    return {**schema, "required": list(required)} if required else schema


def optional(schema: Schema) -> Schema:
    """Describe the same or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def list_of(schema: Schema, **bounds: int) -> Schema:
    """Describe a list."""
    return {"type": "array", "items": schema, **bounds}


def one_of(*values: str) -> Schema:
    """Describe one of several texts."""
    return {"type": "string", "enum": list(values)}


def text_of(shortest: int, longest: int) -> Schema:
    """Describe a text by how many characters it has."""
    return {"type": "string", "minLength": shortest, "maxLength": longest}
