"""How an application of a kernel looks in an answer; pure. Source: what published clients of 18.12 to 23.03 read."""

from __future__ import annotations

from typing import Any

from sorna.gateway.described import TEXT, WHOLE, Schema, list_of, one_of
from sorna.model.service import Service

SERVICE: Schema = {
    "type": "object",
    "properties": {
        "name": TEXT,
        "protocol": one_of("http", "tcp", "preopen"),
        "ports": list_of(WHOLE),
        "url_template": TEXT,
        "allowed_arguments": list_of(TEXT),
        "allowed_envs": list_of(TEXT),
    },
    "required": ["name", "protocol", "ports"],
    "additionalProperties": False,
}
# Clients fill in where they listen, and show the result; without one they would call it a URL of the scheme tcp.
_FOR_BROWSERS = "http://{host}:{port}/"


def service_row(service: Service) -> dict[str, Any]:
    """Give the JSON object of an application."""
    row: dict[str, Any] = {"name": service.name, "protocol": service.protocol, "ports": [service.port]}
    if service.protocol == "http":
        row["url_template"] = _FOR_BROWSERS
    # Clients take a key that is there, however empty its list, for something that can be chosen.
    if service.arguments:
        row["allowed_arguments"] = list(service.arguments)
    if service.environ:
        row["allowed_envs"] = list(service.environ)
    return row
