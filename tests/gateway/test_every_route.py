"""What every route answers to bad input, generated from the application's own list, so that none can be forgotten."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator, Mapping
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from sorna.gateway.call import Access
from sorna.gateway.router import VERSIONS, Route
from sorna.testing.gateway import EXAMPLE, encode, form
from tests.gateway import enrolment_routes, folder_routes
from tests.gateway.base import ADMINISTRATOR, INACTIVE, NOW, OTHER, POOR, TOKEN, Answer, GatewayTestCase

FORM = "form"


def both(method: str, below: str, value: Any) -> dict[tuple[str, str], Any]:
    """Give the rows of a route that exists for kernels and for sessions."""
    return {(method, f"/{collection}/<reference>{below}"): value for collection in ("kernel", "session")}


GRAPHQL = {"query": "{ keypair { access_key } }"}

#: For each route that reads a body: one that it accepts, or FORM. A route that is missing here reads none.
RIGHT_BODIES: Mapping[tuple[str, str], Any] = {
    ("GET", "/authorize"): {"echo": 1},
    **{(method, path): {"echo": 1} for method in ("GET", "POST") for path in ("/auth", "/auth/test")},
    ("POST", "/kernel/create"): {"lang": "python3", "clientSessionToken": TOKEN},
    ("POST", "/kernel"): {"lang": "python3", "clientSessionToken": TOKEN},
    ("POST", "/session"): {"image": "python3", "name": TOKEN},
    **both("POST", "", {"mode": "query", "code": "1"}),
    **both("POST", "/complete", {"code": "1", "options": {"line": "1", "col": 1}}),
    **both("POST", "/upload", FORM),
    **both("GET", "/files", {"path": "."}),
    **both("GET", "/download", {"files": ["."]}),
    **both("GET", "/download_single", {"file": "."}),
    **both("POST", "/shutdown-service", {"service_name": "files"}),
    **folder_routes.BODIES,
    **enrolment_routes.BODIES,
    ("POST", "/admin/graphql"): GRAPHQL,
    ("POST", "/admin/gql"): GRAPHQL,
}
#: What a route wants in its query, by the end of its path.
RIGHT_QUERIES = {"/httpproxy": "?app=files", "/tcpproxy": "?app=files"}
#: Routes that read a body whose being none is a problem of the authorization.
AUTHORIZATION = frozenset({"/authorize", "/auth", "/auth/test"})

#: What a client that wants a WebSocket sends besides.
HANDSHAKE = {
    b"Connection": b"Upgrade",
    b"Upgrade": b"Websocket",
    b"Sec-WebSocket-Version": b"13",
    b"Sec-WebSocket-Key": b"dGhlIHNhbXBsZSBub25jZQ==",
}

#: For each route, the fields whose type it checks, outermost last.
TYPED_FIELDS: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("POST", "/kernel/create"): {
        "lang": 1,
        "clientSessionToken": [],
        "limits": 1,
        "resourceLimits": "x",
        "config": [],
        "mounts": {},
        "tag": 5,
    },
    ("POST", "/admin/gql"): {"query": 1},
    ("POST", "/admin/graphql"): {"query": 1, "variables": [], "operationName": {}},
    ("POST", "/kernel"): {"lang": None, "clientSessionToken": 7},
    ("POST", "/session"): {"image": 5, "name": 7, "type": 1, "reuseIfExists": "no"},
    **both("POST", "", {"mode": 1, "code": 2, "runId": [], "options": "x"}),
    **both("POST", "/complete", {"code": 1, "options": []}),
    **both("GET", "/files", {"path": 1}),
    **both("GET", "/download", {"files": "x"}),
    **both("GET", "/download_single", {"file": []}),
    **both("POST", "/shutdown-service", {"service_name": ["files"]}),
    **folder_routes.TYPED,
    **enrolment_routes.TYPED,
}


class RouteTestCase(GatewayTestCase):
    """Calls every route of the application rightly, as an administrator, who may."""

    def setUp(self) -> None:
        super().setUp()
        enrolment_routes.administrator(self.keypairs)

    def routes(self, access: Access | None = None, *, kernel: bool | None = None) -> Iterator[tuple[Route, str]]:
        """Give routes with a target of each version they exist in."""
        for route in self.application.routes:
            if (access is None or route.access is access) and kernel in {None, "<reference>" in route.path}:
                for prefix in (*VERSIONS, "") if route.versioned else ("",):
                    path = route.path.replace("<run_id>", "run-1")
                    yield route, f"/{prefix}{path}" if prefix else path or "/"

    def call(self, route: Route, target: str, reference: str = TOKEN, **signing: Any) -> Answer:
        """Call a route with a body that it accepts."""
        world = folder_routes.FolderWorld(self.do, self.folders, self.transfers)
        if "/folder" in route.path and reference == TOKEN and "keypair" not in signing:
            target += world.prepare((route.method, route.path))
        if (route.method, route.path) in folder_routes.FOR_ADMINISTRATORS:
            signing = {"keypair": ADMINISTRATOR, **signing}
        right = world.filled(RIGHT_BODIES.get((route.method, route.path)))
        if "/agents" in route.path:
            right = enrolment_routes.prepare(self.do, self.world, route.path) or right
        target = (
            target.replace("<agent>", enrolment_routes.NAME)
            .replace("<reference>", reference)
            .replace("<folder>", self.folder_in(route, world))
        )
        target += next((query for end, query in RIGHT_QUERIES.items() if route.path.endswith(end)), "")
        if route.access is Access.TOKEN:
            headers = folder_routes.HEADERS.get((route.method, route.path), {})
            return self.send(route.method, target, headers, b"" if right is None else encode(right))
        if route.websocket:
            signing["changes"] = {**HANDSHAKE, **signing.get("changes", {})}
        if right == FORM:
            content_type, body = form(("x", b"1"))
            return self.request(route.method, target, body=body, content_type=content_type, **signing)
        return self.request(route.method, target, right, **signing)

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Do something that is done at once."""
        return self.successResultOf(Deferred.fromCoroutine(work))

    def folder_in(self, route: Route, world: folder_routes.FolderWorld) -> str:
        """Name a folder as the route does: by its id or by its name."""
        return world.values.get(folder_routes.ID, "0" * 32) if route.path.startswith("/folder/") else folder_routes.NAME


class EveryRouteTests(RouteTestCase):
    """The columns of the table; the rows come from the application."""

    def test_the_tables_of_this_test_name_routes_that_exist(self) -> None:
        """A route that goes away leaves no row behind, and every POST has one or needs no body."""
        there = {(route.method, route.path) for route in self.application.routes}
        self.assertLessEqual(set(RIGHT_BODIES) | set(TYPED_FIELDS), there)
        posts = {key for key in there if key[0] == "POST"}
        self.assertEqual(
            posts - set(RIGHT_BODIES),
            set(both("POST", "/interrupt", None)) | folder_routes.BODILESS | enrolment_routes.BODILESS,
        )

    def test_right_calls(self) -> None:
        """Every route answers a right call, with and without a slash at the end; WebSockets need a real connection."""
        for route, target in self.routes():
            if route.websocket:
                continue
            self.rate_limits.forget()
            for slash in ("", "/"):
                self.create()
                answer = self.call(route, target if target == "/" else target + slash)
                refused = (route.method, route.path) in folder_routes.REFUSED
                self.assertIn(answer.status, {501} if refused else {200, 201, 204}, (target, answer))
                self.assertEqual(answer.headers["server"], "BackendAI-API/v4.20181215")
                if "multipart/mixed" not in answer.headers["content-type"] or "<folder>" not in route.path:
                    self.assertEqual(answer.headers["content-length"], str(len(answer.body)))
                self.assertIn("content-type", answer.headers)
                self.assertIn("x-request-id", answer.headers)

    def test_no_credentials(self) -> None:
        """Without Authorization protected routes answer 401, without a date 400, and public ones 200."""
        for route, target in self.routes():
            there = target.replace("<folder>", folder_routes.NAME)
            public = route.access is Access.PUBLIC
            answer = self.send(route.method, there, {b"Date": self.signer.date().isoformat().encode()})
            self.assertEqual(answer.status, 200 if public else 401, target)
            if route.method == "HEAD":
                continue
            if not public:
                self.assert_problem(answer, 401, "auth-failed")
                if route.access is Access.TOKEN:
                    continue
                undated = self.send(route.method, there, {})
                self.assert_problem(
                    undated,
                    400,
                    "invalid-auth-params",
                    "Missing or invalid authorization parameters. (Date/time sync error)",
                )

    def test_bad_credentials(self) -> None:
        """Each way of being nobody has one answer on all protected routes, and changes nothing."""
        stale = Clock()
        stale.advance(NOW - 3600)
        kernel = self.create()
        for signing, status, slug in (
            ({"keypair": evolve(EXAMPLE, secret_key="guess")}, 401, "auth-failed"),
            ({"clock": stale}, 400, "invalid-auth-params"),
            ({"keypair": evolve(OTHER, access_key="AKIANOBODY0000000000")}, 401, "auth-failed"),
            ({"keypair": INACTIVE}, 401, "auth-failed"),
            ({"scheme": b"Basic"}, 400, "invalid-auth-params"),
            ({"changes": {b"Authorization": b"Sorna"}}, 400, "invalid-auth-params"),
            ({"changes": {b"Authorization": b"Sorna x"}}, 400, "invalid-auth-params"),
        ):
            for route, target in self.routes(Access.KEYPAIR):
                self.assert_problem(self.call(route, target, kernel, **signing), status, slug)
        self.assertEqual(len(self.kernels.live), 1)
        self.assertEqual(self.rate_limits.counted, {EXAMPLE.access_key})

    def test_exhausted_keypairs(self) -> None:
        """A keypair without requests left is refused by every protected route."""
        for _ in range(3):
            self.request("GET", "/v2/authorize", {}, keypair=POOR)
        for route, target in self.routes(Access.KEYPAIR):
            answer = self.call(route, target, keypair=POOR)
            self.assert_problem(answer, 429, "rate-limit-exceeded")
            self.assertEqual(answer.headers["x-ratelimit-remaining"], "0")

    def test_malformed_bodies(self) -> None:
        """Every route that reads a body refuses one that it cannot read."""
        for route, target in self.routes(Access.KEYPAIR):
            if (route.method, route.path) in RIGHT_BODIES:
                slug = "invalid-auth-params" if route.path in AUTHORIZATION else "invalid-api-params"
                for body in (b"", b"{", b"[1]", b"\xff\xff"):
                    target_of = target.replace("<reference>", self.create()).replace("<folder>", folder_routes.NAME)
                    self.rate_limits.forget()
                    self.assert_problem(self.request(route.method, target_of, body=body), 400, slug)

    def test_wrong_types(self) -> None:
        """Every field with a type refuses another one by its name."""
        for route, target in self.routes(Access.KEYPAIR):
            key = (route.method, route.path)
            for field, wrong in TYPED_FIELDS.get(key, {}).items():
                if target.startswith("/v1") and field in {"mode", "options"} and "complete" not in target:
                    continue  # The first version has neither.
                body = encode({**RIGHT_BODIES[key], field: wrong})
                self.rate_limits.forget()
                target_of = target.replace("<reference>", self.create()).replace("<folder>", folder_routes.NAME)
                answer = self.request(route.method, target_of, body=body)
                self.assert_problem(answer, 400, "invalid-api-params")
                self.assertIn(f"({field} ", answer.json["title"])

    def test_folders_of_another_owner(self) -> None:
        """Another owner's folder is not there, by name or by id, and stays as it was."""
        world = folder_routes.FolderWorld(self.do, self.folders, self.transfers)
        for route, target in self.routes(Access.KEYPAIR):
            if "<folder>" in route.path:
                world.prepare((route.method, route.path.replace("leave", "info")))
                target_of = target.replace("<folder>", self.folder_in(route, world))
                content = world.filled(RIGHT_BODIES.get((route.method, route.path)))
                self.rate_limits.forget()
                if content == FORM:
                    content_type, body = form(("x", b"1"))
                    answer = self.request(route.method, target_of, body=body, content_type=content_type, keypair=OTHER)
                else:
                    answer = self.request(route.method, target_of, content, keypair=OTHER)
                self.assert_problem(answer, 404, "folder-not-found")
                folder = self.do(self.folders.open(EXAMPLE.access_key, folder_routes.NAME))
                self.assertEqual([one.name for one in self.do(folder.list_files("."))], ["a.txt"])

    def test_unknown_kernels(self) -> None:
        """A kernel that is not there is the same to every route."""
        for reference in ("nobody-has-this", "HHUaCVyvKnLzMKr__wv6_Q", "x", "%F0%9F%90%8D", "a" * 81):
            for route, target in self.routes(kernel=True):
                self.assert_problem(self.call(route, target, reference), 404, "kernel-not-found", "No such kernel.")

    def test_kernels_of_another_owner(self) -> None:
        """Another owner's kernel is not there, by id or by token, and stays as it was."""
        kernel = self.create()
        before = repr(self.kernels.live)
        for reference in (kernel, TOKEN):
            for route, target in self.routes(kernel=True):
                answer = self.call(route, target, reference, keypair=OTHER)
                self.assert_problem(answer, 404, "kernel-not-found")
        self.assertEqual(repr(self.kernels.live), before)

    def test_websockets_want_a_handshake(self) -> None:
        """A plain request, one from a page of another host and one with a body are no handshakes, and open nothing."""
        kernel = self.create()
        wrong: tuple[dict[bytes, bytes], ...] = (
            dict.fromkeys(HANDSHAKE, b""),
            {b"Sec-WebSocket-Version": b"12"},
            {b"Upgrade": b"h2c"},
            {b"Origin": b"https://elsewhere.example"},
            {b"Origin": b"null"},
            {b"Sec-WebSocket-Key": b"dGhlIHNhbXBsZSBub24="},
            {b"Sec-WebSocket-Key": b"=" * 24},
            {b"Sec-WebSocket-Protocol": b"\xe9"},
            {b"Sec-WebSocket-Key": b"\xe9" * 24},
            {b"Origin": b"\xe9"},
            {b"Origin": b"http://["},
        )
        for route, target in self.routes():
            if route.websocket:
                for changes in wrong:
                    self.assert_problem(self.call(route, target, kernel, changes=changes), 400, "generic-bad-request")
                there = target.replace("<reference>", kernel)
                answer = self.request("GET", there, body=b"{}", changes=HANDSHAKE)
                self.assert_problem(answer, 400, "generic-bad-request")
        self.assertEqual([one.terminal.seats for one in self.kernels.live.values()], [[]])
        self.assertEqual([one.services.tunnels for one in self.kernels.live.values()], [[]])

    def test_not_ready(self) -> None:
        """Routes of kernels wait for the process to be ready, and no others do."""
        self.readiness.reason = "starting"
        for route, target in self.routes():
            answer = self.call(route, target)
            if route.needs_ready and route.method == "HEAD":
                self.assertEqual(answer.status, 503)
            elif route.needs_ready:
                self.assert_problem(answer, 503, "service-unavailable", "Serivce unavailable. (Server not ready.)")
            elif route.path != "/ready":
                self.assertEqual(answer.status, 200)
