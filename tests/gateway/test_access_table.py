"""Who is answered what by every route: as it has to be, and as the documentation has it."""

from __future__ import annotations

import re
from unittest import SkipTest

from sorna.gateway.call import Access
from tests.gateway.access_table import (
    BAD_SIGNATURE,
    COLUMNS,
    DISABLED,
    NO_CREDENTIALS,
    NOT_ADMIN,
    OTHER_OWNER,
    PAGE,
    AccessTestCase,
)
from tests.gateway.folder_routes import FOR_ADMINISTRATORS

#: Routes that anybody may call. A new one is written down here by somebody who thought about it.
PUBLIC = frozenset(
    {
        *(("GET", path) for path in ("", "/health", "/ready", "/openapi.json", "/docs")),
        ("OPTIONS", "/folders/_/upload"),
    }
)
#: Variable parts of paths, and whether they name what has an owner.
OWNED = {"reference": True, "folder": True, "run_id": False, "agent": False}
OWNED_BODIES = frozenset(
    {
        ("DELETE", "/folders"),
        ("POST", "/folders/_/shared"),
        ("POST", "/folders/invitations/accept"),
        ("DELETE", "/folders/invitations/delete"),
    }
)


class AccessTableTests(AccessTestCase):
    """The table."""

    def test_the_page_is_current(self) -> None:
        """The committed table is what the routes answer now."""
        if not PAGE.parent.is_dir():
            raise SkipTest("these are the tests of a checkout")
        self.assertEqual(PAGE.read_text("utf-8"), self.page(), "python -m tests.gateway.access_table writes it anew")

    def test_every_cell_is_right(self) -> None:
        """Nobody but who may gets more than a problem, on any route."""
        for route in self.application.routes:
            cells = self.cells(route)
            public = (route.method, route.path) in PUBLIC
            self.assertEqual(route.access is Access.PUBLIC, public, route)
            unknown = {NO_CREDENTIALS, BAD_SIGNATURE, DISABLED} - (
                {DISABLED} if route.access is Access.TOKEN else set()
            )
            for column in unknown:
                self.assertEqual(cells[column], "200" if public else "401", (route, column))
            self.assertIn(cells.get(OTHER_OWNER), {None, "404"}, route)
            self.assertIn(cells.get(NOT_ADMIN), {None, "400", "403"}, route)
            self.assertLessEqual(set(cells), set(COLUMNS))

    def test_no_route_escapes_a_column(self) -> None:
        """A path with something new in it, or one below the administration's, has its column thought about."""
        for route in self.application.routes:
            variables = set(re.findall(r"<(\w+)>", route.path))
            self.assertLessEqual(variables, set(OWNED), route)
            # Some are told in the body what they are about.
            owned = any(OWNED[name] for name in variables) or (route.method, route.path) in OWNED_BODIES
            cells = self.cells(route)
            self.assertEqual(OTHER_OWNER in cells, owned, route)
            # A token is its bearer's, and public routes answer everybody; whoever is disabled finds all others closed.
            self.assertEqual(DISABLED in cells, route.access is not Access.TOKEN, route)
            administers = route.path.startswith("/admin/") or (route.method, route.path) in FOR_ADMINISTRATORS
            self.assertEqual(NOT_ADMIN in cells, administers, route)

    def test_every_route_is_in_the_page(self) -> None:
        """Each route has a row, and no other row is there."""
        if not PAGE.parent.is_dir():
            raise SkipTest("these are the tests of a checkout")
        rows = re.findall(r"^``(\w+) (\S+)``", PAGE.read_text("utf-8"), re.MULTILINE)
        self.assertEqual(rows, [(route.method, route.path or "/") for route in self.application.routes])
