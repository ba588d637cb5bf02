"""The table of what every route answers to whom it does not serve, as the documentation shows it.

``python -m tests.gateway.access_table`` makes it anew and writes it to ``docs/access.rst``; a test sees that it was. Every
cell is the answer to a call that is right in everything but who makes it. Rows are those of the application's own list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import evolve

import sorna
from sorna.gateway.call import Access
from sorna.gateway.router import Route
from sorna.model.keypair import Keypair
from sorna.testing.gateway import EXAMPLE, form
from tests.gateway import enrolment_routes, folder_routes
from tests.gateway.base import INACTIVE, OTHER, POOR, Answer
from tests.gateway.test_every_route import FORM, HANDSHAKE, RIGHT_BODIES, RouteTestCase

PAGE = Path(sorna.__file__).parents[1] / "docs" / "access.rst"
NO_CREDENTIALS, BAD_SIGNATURE, OTHER_OWNER, DISABLED, NOT_ADMIN = COLUMNS = (
    "no credentials",
    "bad signature",
    "other owner",
    "disabled key",
    "not admin",
)
#: For each route by which an administrator does what nobody else may: a body that asks for just that.
ADMINISTRATION: Mapping[tuple[str, str], Any] = {
    ("POST", path): {"query": 'mutation { delete_keypair(access_key: "AKIANABBDUSEREXAMPLE") { ok } }'}
    for path in ("/admin/graphql", "/admin/gql")
} | {
    ("POST", enrolment_routes.TICKET): {},
    ("DELETE", enrolment_routes.REVOKE): None,
    ("POST", enrolment_routes.RESTART): None,
}
_HEAD = """Who is answered what
====================

Each row is a route, without the version before it, and each column a caller who differs in one thing from one who is served. A
dash stands where the column says nothing: the route is about nothing that belongs to somebody, or nothing that is for administrators
alone. What belongs to another owner is answered as what does not exist. Routes
that want a token look at no key: a bad token stands for a bad signature. Public routes look at no signature.

Made by ``python -m tests.gateway.access_table`` out of the routes that answer requests; a test fails when it is not current.

"""


class AccessTestCase(RouteTestCase):
    """Fills the table in."""

    def cells(self, route: Route) -> Mapping[str, str]:
        """Give a route's row: the statuses, without those of columns that say nothing."""
        target = route.path.replace("<run_id>", "run-1").replace("<agent>", enrolment_routes.NAME) or "/"
        self.rate_limits.forget()
        kernel = self.create()
        dated = {b"Date": self.signer.date().isoformat().encode("ascii"), **(HANDSHAKE if route.websocket else {})}
        answers = {
            NO_CREDENTIALS: self.send(route.method, target.replace("<reference>", kernel), dated),
            BAD_SIGNATURE: self.call(route, target, kernel, keypair=evolve(EXAMPLE, secret_key="guess")),
            DISABLED: self.call(route, target, kernel, keypair=INACTIVE),
        }
        if route.access is Access.TOKEN:
            # Whoever has a right token is served, whatever else they are; that is what it is for.
            del answers[DISABLED]
            answers[BAD_SIGNATURE] = self.send(route.method, f"{target}?token=guess", {})
        if "<reference>" in route.path:
            answers[OTHER_OWNER] = self.call(route, target, kernel, keypair=OTHER)
        elif "<folder>" in route.path or folder_routes.ID in str(RIGHT_BODIES.get((route.method, route.path))):
            answers[OTHER_OWNER] = self.call_for_folder(route, OTHER)
        elif folder_routes.INVITATION in str(RIGHT_BODIES.get((route.method, route.path))):
            answers[OTHER_OWNER] = self.call_for_folder(route, POOR)
        if (route.method, route.path) in ADMINISTRATION:
            query = ADMINISTRATION[route.method, route.path]
            answers[NOT_ADMIN] = self.request(route.method, target, query, keypair=OTHER)
        if (route.method, route.path) in folder_routes.FOR_ADMINISTRATORS:
            answers[NOT_ADMIN] = self.request(route.method, target, keypair=OTHER)
        return {column: str(answer.status) for column, answer in answers.items()}

    def call_for_folder(self, route: Route, keypair: Keypair) -> Answer:
        """Call a route for a folder that is there, or for an invitation to one, as somebody whom it does not concern."""
        self.rate_limits.forget()
        key = (route.method, route.path)
        world = folder_routes.FolderWorld(self.do, self.folders, self.transfers)
        world.prepare((route.method, route.path.replace("leave", "info")))
        target = route.path.replace("<folder>", self.folder_in(route, world))
        content = world.filled(RIGHT_BODIES.get(key))
        if content == FORM:
            content_type, body = form(("x", b"1"))
            return self.request(route.method, target, body=body, content_type=content_type, keypair=keypair)
        return self.request(route.method, target, content, keypair=keypair)

    def page(self) -> str:
        """Give the text of the page."""
        rows = [["route", *COLUMNS]]
        for route in self.application.routes:
            cells = self.cells(route)
            rows.append([f"``{route.method} {route.path or '/'}``", *(cells.get(column, "-") for column in COLUMNS)])
        return _HEAD + _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = "  ".join("=" * width for width in widths)
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([rule, lines[0], rule, *lines[1:], rule, ""])


def main() -> None:
    """Write the page."""
    case = AccessTestCase("page")
    case.setUp()
    try:
        PAGE.write_text(case.page(), "utf-8")
    finally:
        case.doCleanups()


if __name__ == "__main__":
    main()
