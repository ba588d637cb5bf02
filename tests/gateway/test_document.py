"""The OpenAPI document: valid, complete, the same as the routes, and served in two forms."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from attrs import evolve
from openapi_spec_validator import OpenAPIV31SpecValidator
from twisted.internet.defer import Deferred
from twisted.web.template import flattenString

from sorna.gateway.call import Access
from sorna.gateway.document import SECURITY, document_of
from sorna.gateway.reference import page_of
from tests.gateway import folder_routes
from tests.gateway.base import GatewayTestCase


class _Page(HTMLParser):
    """Collects what a page would load, and where it can be pointed to."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.loaded: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loaded += [value or "" for name, value in attrs if name in {"src", "href", "data", "action"}]
        self.ids += [value or "" for name, value in attrs if name == "id"]


class DocumentTests(GatewayTestCase):
    """What the server says of itself."""

    def setUp(self) -> None:
        super().setUp()
        self.answer = self.send("GET", "/openapi.json", {})
        self.document = self.answer.json

    def test_it_is_valid(self) -> None:
        """It is a valid document of OpenAPI 3.1, for everybody."""
        self.assertEqual(self.answer.status, 200)
        self.assertEqual(self.answer.headers["content-type"], "application/json; charset=utf-8")
        self.assertEqual(self.document["openapi"], "3.1.0")
        OpenAPIV31SpecValidator(self.document).validate()

    def test_every_route_describes_itself(self) -> None:
        """Each route has a sentence, says what it takes and gives, and is in the document; nothing else is."""
        expected = set()
        for route in self.application.routes:
            self.assertRegex(route.summary, r"^[A-Z].*\.$", route)
            self.assertIsNotNone(route.described, route)
            expected.add((route.method.lower(), re.sub(r"<(\w+)>", r"{\1}", route.path) or "/"))
        there = {(method, path) for path, one in self.document["paths"].items() for method in one}
        self.assertEqual(there, expected)

    def test_every_route_says_how_it_goes_well(self) -> None:
        """Each has an answer that is no problem, and one that is."""
        for path, operations in self.document["paths"].items():
            for method, operation in operations.items():
                statuses = set(operation["responses"])
                well = ("501",) if (method.upper(), path) in folder_routes.REFUSED else ("1", "2")
                self.assertTrue({status for status in statuses if status.startswith(well)}, (method, path))
                self.assertLessEqual({"400", "413", "500"}, statuses)

    def test_signatures(self) -> None:
        """A route says whether it wants a signature, however it is protected."""
        self.assertEqual(set(SECURITY), set(Access))
        for route in self.application.routes:
            path = re.sub(r"<(\w+)>", r"{\1}", route.path) or "/"
            operation = self.document["paths"][path][route.method.lower()]
            self.assertEqual(operation["security"] == [], route.access is Access.PUBLIC, path)
            self.assertEqual("401" in operation["responses"], route.access is not Access.PUBLIC, path)

    def test_websockets(self) -> None:
        """A route for WebSockets is a GET that answers 101."""
        for route in self.application.routes:
            path = re.sub(r"<(\w+)>", r"{\1}", route.path) or "/"
            responses = self.document["paths"][path][route.method.lower()]["responses"]
            self.assertEqual("101" in responses, route.websocket, path)

    def test_what_has_no_version(self) -> None:
        """Routes that are not found below a version say so themselves."""
        self.assertEqual([one["url"] for one in self.document["servers"]], ["/", "/v4", "/v3", "/v2"])
        self.assertEqual(self.document["paths"]["/health"]["get"]["servers"], [{"url": "/"}])
        self.assertNotIn("servers", self.document["paths"]["/kernel/{reference}"]["get"])

    def test_a_route_that_says_nothing(self) -> None:
        """Such a route is in the document with what its path tells, and the document is still valid."""
        route = next(route for route in self.application.routes if route.path == "/kernel/<reference>")
        document = document_of([evolve(route, described=None)])
        OpenAPIV31SpecValidator(document).validate()
        self.assertIn("404", document["paths"]["/kernel/{reference}"]["get"]["responses"])

    def test_the_page(self) -> None:
        """The page has a section for every operation and loads nothing."""
        answer = self.send("GET", "/docs", {})
        self.assertEqual((answer.status, answer.headers["content-type"]), (200, "text/html; charset=utf-8"))
        self.assertIn("default-src 'none'", answer.headers["content-security-policy"])
        page = _Page()
        page.feed(answer.body.decode("utf-8"))
        operations = [one["operationId"] for path in self.document["paths"].values() for one in path.values()]
        self.assertEqual(page.ids, operations)
        self.assertEqual(len(set(page.ids)), len(page.ids))
        self.assertEqual((page.loaded, page.tags & {"script", "link", "img", "iframe"}), ([], set()))

    def test_the_page_is_escaped(self) -> None:
        """What a description holds is text."""
        info = {**self.document["info"], "description": "<script>alert(1)</script>"}
        page = self.successResultOf(
            Deferred.fromCoroutine(_flat({**self.document, "info": info})),
        )
        self.assertIn(b"&lt;script&gt;alert(1)", page)
        self.assertNotIn(b"<script", page)


async def _flat(document: dict[str, object]) -> bytes:
    return await flattenString(None, page_of(document))
