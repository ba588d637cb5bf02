"""Tests of the version query, the authorization test, the operator's questions, and of what no route answers."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from attrs import evolve
from treq.testing import StubTreq
from twisted.internet.testing import EventLoggingObserver
from twisted.logger import LogLevel, globalLogPublisher

from sorna.errors import Unavailable
from sorna.gateway.authentication import Authentication
from sorna.gateway.call import Access, Call, Reply, json_reply
from sorna.gateway.gate import Gate
from sorna.gateway.router import Application, Router
from sorna.gateway.websockets import WebSocketLimits, WebSockets
from sorna.model.keypair import Keypair
from tests.gateway.base import NOW, OTHER, POOR, TOKEN, Answer, GatewayTestCase


class VersionTests(GatewayTestCase):
    def test_version_query(self) -> None:
        """Every known major version and none tell the same one, with and without a slash, without any credentials."""
        for path in ("/", "/v1", "/v2", "/v3", "/v4", "/v1/", "/v2/", "/v3/", "/v4/"):
            answer = self.send("GET", path, {})
            self.assertEqual((answer.status, answer.body), (200, b'{"version": "v4.20181215"}'))
            self.assertEqual(answer.headers["content-type"], "application/json; charset=utf-8")
            self.assertEqual(answer.headers["server"], "BackendAI-API/v4.20181215")
            self.assertEqual(answer.headers["content-length"], "26")
            self.assertEqual(answer.headers["x-ratelimit-limit"], "1000")
            self.assertEqual(answer.headers["x-ratelimit-remaining"], "1000")
            self.assertEqual(answer.headers["x-ratelimit-reset"], "900000")

    def test_public_routes_ignore_credentials(self) -> None:
        """No signature, however wrong, and no malformed header is held against a public route."""
        for value in (b"junk", b"Basic x", b"Sorna signMethod=HMAC-SHA256, credential=no:body"):
            self.assertEqual(self.send("GET", "/v2", {b"Authorization": value, b"Date": b"junk"}).status, 200)
        self.assertEqual(self.keypairs.searches, [])
        self.assertEqual(self.rate_limits.counted, frozenset())

    def test_unsupported_versions(self) -> None:
        """A major version that is not known is a bad request whatever follows it."""
        for path in ("/v0", "/v5", "/v10/authorize", "/v5/kernel/create", "/v01"):
            answer = self.send("GET", path, {})
            self.assert_problem(answer, 400, "generic-bad-request", "Bad request. (Unsupported API major version.)")

    def test_unknown_urls(self) -> None:
        """What no route has is not found, without a look at the credentials."""
        for path in (
            "/nothing",
            "/v2/nothing",
            "/favicon.ico",
            "/v2//authorize",
            "/vtest",
            "/v2/kernel/a/b/c",
            "/v2/stream",
        ):
            answer = self.send("GET", path, {})
            self.assert_problem(answer, 404, "generic-not-found", "Unknown URL path.")
            self.assertEqual(answer.headers["x-ratelimit-remaining"], "1000")

    def test_methods(self) -> None:
        """Methods a URL does not have are refused with those it has; HEAD and OPTIONS are among them."""
        for method, path, allowed in (
            ("POST", "/v2", "GET"),
            ("OPTIONS", "/v2/authorize", "GET"),
            ("PROPFIND", "/v2", "GET"),
            ("GET", f"/v2/kernel/{TOKEN}/interrupt", "POST"),
            ("PUT", f"/v2/kernel/{TOKEN}", "DELETE, GET, PATCH, POST"),
        ):
            answer = self.send(method, path, {})
            self.assert_problem(answer, 405, "method-not-allowed", "HTTP Method Not Allowed.")
            self.assertEqual(answer.headers["allow"], allowed)
        head = self.send("HEAD", "/v2", {})
        self.assertEqual((head.status, head.body), (405, b""))
        self.assertEqual(head.headers["content-type"], "application/problem+json; charset=utf-8")

    def test_problems_of_each_generation(self) -> None:
        """A problem's type lies where the servers of the request's generation had it."""
        for path, header, host in (
            ("/v1/nothing", b"X-BackendAI-Version", "sorna.io"),
            ("/v2/kernel/nobody-has-this", b"X-BackendAI-Version", "sorna.io"),
            ("/v3/nothing", b"X-Sorna-Version", "backend.ai"),
            ("/v4/kernel/nobody-has-this", b"X-BackendAI-Version", "backend.ai"),
            ("/nothing", b"X-BackendAI-Version", "backend.ai"),
            ("/kernel/nobody-has-this", b"X-Sorna-Version", "sorna.io"),
            ("/v5", b"X-BackendAI-Version", "backend.ai"),
        ):
            answer = self.request("GET", path, version_header=header)
            self.assertTrue(answer.json["type"].startswith(f"https://api.{host}/probs/"), (path, answer))

    def test_paths_and_hosts_that_are_none(self) -> None:
        """Bytes that are no UTF-8 and hosts that are no names get a problem like everything else."""
        self.assert_problem(self.send("GET", "/v2/%ff", {}), 400, "generic-bad-request")
        answer = self.send("GET", "/v2", {b"Host": b"x" * 70 + b".example"})
        self.assert_problem(answer, 400, "generic-bad-request", "Bad request. (Malformed Host header.)")
        self.assert_problem(self.send("GET", "/v2", {b"Host": b"\xff\xfe"}), 400, "generic-bad-request")

    def test_method_override(self) -> None:
        """A client that can only POST names another method, and signs that one."""
        kernel = self.create()
        body = b""
        headers = self.signer.headers(b"DELETE", f"/v2/kernel/{kernel}".encode(), body)
        answer = self.send("POST", f"/v2/kernel/{kernel}", {**headers, b"X-Method-Override": b"delete"}, body)
        self.assertEqual(answer.status, 200)
        self.assertEqual(self.kernels.live, {})

    def test_method_override_is_covered_by_the_signature(self) -> None:
        """Adding the header to somebody's signed request does not turn it into another one."""
        kernel = self.create()
        headers = self.signer.headers(b"POST", f"/v2/kernel/{kernel}".encode(), b"{}")
        answer = self.send("POST", f"/v2/kernel/{kernel}", {**headers, b"X-Method-Override": b"DELETE"}, b"{}")
        self.assert_problem(answer, 401, "auth-failed")
        self.assertEqual(len(self.kernels.live), 1)

    def test_method_override_bounds(self) -> None:
        """HEAD, which changes what an answer looks like, cannot be asked for, nor anything unknown."""
        for method in (b"HEAD", b"OPTIONS", b"X" * 1000, b""):
            self.assert_problem(self.send("POST", "/v2", {b"X-Method-Override": method}), 405, "method-not-allowed")
        self.assertEqual(self.send("POST", "/v2", {b"X-Method-Override": b"GET"}).status, 200)


class _Echo:
    """Answers with the variable parts of paths."""

    router: ClassVar[Router[_Echo]] = Router()

    @router.route("GET", "/one/<reference>", "/one/<reference>/<path:rest>", "/two/<path:rest>", access=Access.PUBLIC)
    async def echo(self, call: Call) -> Reply:
        """Echo."""
        return json_reply(dict(call.values))


class MatchTests(GatewayTestCase):
    def test_paths_that_differ_in_a_kernel_alone(self) -> None:
        """They are matched as one, and each gets its own id; an id in another place of the path is no such kernel."""
        gate = Gate(Authentication(self.clock, self.keypairs), self.rate_limits, self.readiness)
        websockets = WebSockets(self.clock, WebSocketLimits())
        self.treq = StubTreq(Application(gate, websockets, self.keypairs, _Echo.router.bind(_Echo())))
        one, two = "a" * 21 + "A", "b" * 21 + "Q"
        for path, values in (
            (f"/one/{one}", {"reference": one}),
            (f"/one/{two}", {"reference": two}),
            (f"/v2/one/{one}", {"reference": one}),
            ("/one/token", {"reference": "token"}),
            (f"/one/{one}/{one}", {"reference": one, "rest": one}),
            (f"/one/{two}/{one}", {"reference": two, "rest": one}),
            (f"/one/{one}/x/{two}", {"reference": one, "rest": f"x/{two}"}),
            (f"/one/{two}/x/{two}", {"reference": two, "rest": f"x/{two}"}),
            (f"/two/{one}/y", {"rest": f"{one}/y"}),
            (f"/two/{two}/y", {"rest": f"{two}/y"}),
        ):
            for _again in range(2):
                self.assertEqual(self.request("GET", path).json, values, path)


class CrossOriginTests(GatewayTestCase):
    def test_answers(self) -> None:
        """A page of any origin may read any answer, an error too; other clients are not bothered."""
        for path, status in (("/v2", 200), ("/nothing", 404), ("/kernel/x", 400)):
            answer = self.send("GET", path, {b"Origin": b"https://ide.example"})
            self.assertEqual(answer.status, status)
            self.assertEqual(answer.headers["access-control-allow-origin"], "*")
            self.assertEqual(answer.headers["access-control-expose-headers"], "*")
            self.assertNotIn("access-control-allow-credentials", answer.headers)
            self.assertNotIn("access-control-allow-origin", self.send("GET", path, {}).headers)

    def preflight(self, path: str, wanted: bytes = b"") -> Answer:
        """Ask as a browser does."""
        headers = {b"Origin": b"https://ide.example", b"Access-Control-Request-Method": b"POST"}
        if wanted:
            headers[b"Access-Control-Request-Headers"] = wanted
        return self.send("OPTIONS", path, headers)

    def test_preflight(self) -> None:
        """A browser is told the methods of the URL and may send the headers it asked for, without credentials."""
        wanted = b"authorization, content-type,x-backendai-date"
        answer = self.preflight(f"/v2/kernel/{TOKEN}", wanted)
        self.assertEqual((answer.status, answer.body), (200, b""))
        self.assertEqual(answer.headers["access-control-allow-methods"], "DELETE, GET, PATCH, POST")
        self.assertEqual(answer.headers["access-control-allow-headers"], wanted.decode())
        self.assertEqual(answer.headers["access-control-allow-origin"], "*")
        self.assertEqual(self.preflight("/kernel/").headers["access-control-allow-methods"], "GET, POST")
        self.assertEqual(self.rate_limits.counted, frozenset())

    def test_preflight_bounds(self) -> None:
        """Nothing is given back that is no list of header names, and URLs that do not exist have no methods."""
        for wanted in (b"a: b", b"x" * 2000, b"\xc3\xa9", b""):
            self.assertEqual(self.preflight("/v2", wanted).headers["access-control-allow-headers"], "*")
        self.assert_problem(self.preflight("/nothing"), 404, "generic-not-found")
        self.assert_problem(self.preflight("/v9/kernel"), 400, "generic-bad-request")
        self.assert_problem(self.preflight("/v2/%ff"), 400, "generic-bad-request")


class UnversionedTests(GatewayTestCase):
    def test_bodies_are_not_signed(self) -> None:
        """Clients of version 4 sign an empty body, and any client may on paths without a version."""
        for path in ("/auth", "/auth/test", "/authorize"):
            answer = self.request("GET", path, {"echo": 1}, version=b"v4.20181215")
            self.assertEqual(answer.json, {"authorized": "yes", "echo": 1})
        for version, path, status in (
            (b"v6.20220315", "/auth", 200),
            (b"v3.20170615", "/auth", 200),
            (b"v3.20170615", "/v3/auth/test", 401),
            (b"v2.20170315", "/v2/authorize", 401),
            (b"v4.20181215", "/v4/auth", 200),
        ):
            headers = evolve(self.signer, version=version).headers(b"GET", path.encode(), b"")
            self.assertEqual(self.send("GET", path, headers, b'{"echo": 1}').status, status, (version, path))

    def test_signed_bodies(self) -> None:
        """A client of an older version that signs its body may use these paths too."""
        self.assertEqual(self.request("POST", "/auth", {"echo": 2}, version=b"v3.20170615").json["echo"], 2)

    def test_announcement(self) -> None:
        """Nothing is announced."""
        answer = self.request("GET", "/manager/announcement", version=b"v4.20181215")
        self.assertEqual(answer.json, {"enabled": False, "message": ""})


class AuthorizeTests(GatewayTestCase):
    def test_echo(self) -> None:
        """A right signature is confirmed, and any JSON comes back as it was sent."""
        echo: Any
        for echo in ("hello", None, {"ключ": ["\U0001f40d", 1.5, True]}, []):
            answer = self.request("GET", "/v2/authorize", {"echo": echo})
            self.assertEqual((answer.status, answer.json), (200, {"authorized": "yes", "echo": echo}))
        self.assertEqual(self.request("GET", "/v3/authorize/", {}).body, b'{"authorized": "yes"}')

    def test_malformed_body(self) -> None:
        """A body that is no JSON object is a problem of the authorization, as it always was."""
        for body in (b"", b"{", b"[]", b'{"echo": NaN}', b"\xff", b"[" * 100_000, b'{"echo": ' + b"9" * 5000 + b"}"):
            answer = self.request("GET", "/v1/authorize", body=body)
            self.assert_problem(answer, 400, "invalid-auth-params")
            self.assertIn("(Malformed body", answer.json["title"])

    def test_many_values(self) -> None:
        """Values without end are refused before they are built; the same bytes within a text are only text."""
        for values in (b"[]," * 30_000, b"1," * 30_000, b'{"":{}},' * 10_001, b'"",' * 50_000):
            answer = self.request("GET", "/v2/authorize", body=b'{"echo": [' + values + b"0]}")
            self.assert_problem(answer, 400, "invalid-auth-params")
            self.assertIn("more than 20000 values", answer.json["title"])
        text = '[],{\\"' * 30_000
        self.assertEqual(self.request("GET", "/v2/authorize", {"echo": text}).json["echo"], text)

    def test_works_before_the_process_is_ready(self) -> None:
        """The two routes without kernels do not wait for kernels to be there."""
        self.readiness.reason = "database: connecting"
        self.assertEqual(self.request("GET", "/v2/authorize", {}).status, 200)
        self.assertEqual(self.send("GET", "/v2", {}).status, 200)

    def test_unsigned(self) -> None:
        """Without an Authorization header a client is anonymous, which is not enough here."""
        headers = self.signer.headers(b"GET", b"/v2/authorize")
        del headers[b"Authorization"]
        answer = self.send("GET", "/v2/authorize", headers)
        self.assert_problem(answer, 401, "auth-failed", "Credential/signature mismatch.")
        self.assertEqual(self.rate_limits.counted, frozenset())


class RateLimitTests(GatewayTestCase):
    def test_window(self) -> None:
        """With a limit of three, three requests pass and report 3, 2, 1; errors count; then 429 until the reset."""
        seen = []
        for path in ("/v2/authorize", "/v2/kernel/unknown", "/v2/authorize"):
            answer = self.request("GET", path, {}, keypair=POOR)
            seen.append((answer.status, answer.headers["x-ratelimit-remaining"]))
            self.clock.advance(1)
        self.assertEqual(seen, [(200, "3"), (404, "2"), (200, "1")])
        answer = self.request("GET", "/v2/authorize", {}, keypair=POOR)
        self.assert_problem(answer, 429, "rate-limit-exceeded", "You have reached your API query rate limit.")
        self.assertEqual(answer.headers["x-ratelimit-limit"], "3")
        self.assertEqual(answer.headers["x-ratelimit-remaining"], "0")
        self.assertEqual(answer.headers["x-ratelimit-reset"], "897000")
        self.assertEqual(answer.headers["retry-after"], "897")
        self.assertEqual(self.request("GET", "/v2/authorize", {}, keypair=OTHER).status, 200)
        self.clock.advance(897)
        answer = self.request("GET", "/v2/authorize", {}, keypair=POOR)
        self.assertEqual((answer.status, answer.headers["x-ratelimit-remaining"]), (200, "3"))

    def test_wrong_signatures_do_not_use_up_somebody_elses_window(self) -> None:
        """Knowing an access key is not enough to exhaust it."""
        for _ in range(5):
            answer = self.request("GET", "/v2/authorize", {}, keypair=evolve(POOR, secret_key="guess"))
            self.assert_problem(answer, 401, "auth-failed")
            self.assertEqual(answer.headers["x-ratelimit-remaining"], "1000")
        self.assertEqual(self.rate_limits.counted, frozenset())


class OperationTests(GatewayTestCase):
    def test_health(self) -> None:
        """The process is alive even when it is not ready."""
        self.readiness.reason = "database: connecting"
        answer = self.send("GET", "/health", {})
        self.assertEqual((answer.status, answer.json), (200, {"status": "ok", "worker": 1}))

    def test_ready(self) -> None:
        """Readiness says what is waited for."""
        self.assertEqual(self.send("GET", "/ready", {}).status, 200)
        self.readiness.reason = "database: connecting"
        answer = self.send("GET", "/ready/", {})
        self.assert_problem(answer, 503, "service-unavailable", "Serivce unavailable. (database: connecting)")
        self.assertEqual(answer.headers["retry-after"], "2")

    def test_kernels_wait_for_readiness(self) -> None:
        """Every route of kernels answers 503 until the process is ready, before it looks at anything else."""
        self.readiness.reason = "database: connecting"
        answer = self.send("POST", "/v2/kernel/create", {})
        self.assert_problem(answer, 503, "service-unavailable", "Serivce unavailable. (Server not ready.)")
        self.assertIn("retry-after", answer.headers)


class FailureTests(GatewayTestCase):
    def observe(self) -> EventLoggingObserver:
        """Give what is logged from now on to the end of the test."""
        observer = EventLoggingObserver()
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        return observer

    def test_internal_error(self) -> None:
        """What nobody expected is logged once with the id that the client is told, and with nothing else."""
        observer = self.observe()
        self.kernels.errors["info"] = ValueError("secret of the house")
        answer = self.request("GET", f"/v2/kernel/{self.create()}")
        request_id = answer.headers["x-request-id"]
        self.assert_problem(answer, 500, "internal-server-error", f"Internal server error. (request {request_id})")
        self.assertNotIn(b"secret", answer.body)
        logged = [event for event in observer if event["log_level"] is LogLevel.critical]
        self.assertEqual([event["request_id"] for event in logged], [request_id])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_our_faults_are_logged(self) -> None:
        """A problem of the 5xx kind leaves a line, without a traceback."""
        observer = self.observe()
        self.kernels.errors["create"] = Unavailable("the database does not answer")
        body = {"lang": "python3", "clientSessionToken": TOKEN}
        answer = self.request("POST", "/v2/kernel/create", body)
        self.assert_problem(answer, 503, "service-unavailable", "Serivce unavailable. (the database does not answer)")
        self.assertEqual(answer.headers["retry-after"], "2")
        warned = [event for event in observer if event["log_level"] is LogLevel.warn]
        self.assertEqual([event["request_id"] for event in warned], [answer.headers["x-request-id"]])

    def test_a_broken_store_of_keypairs(self) -> None:
        """An error while the keypair is looked up is answered like any other."""

        async def broken(access_key: str) -> Keypair | None:
            raise KeyError(access_key)

        self.keypairs.find = broken  # type: ignore[method-assign]  # the only way to break a fake that cannot break
        self.assert_problem(self.request("GET", "/v2/authorize", {}), 500, "internal-server-error")
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    def test_request_ids_differ(self) -> None:
        """No two answers carry the same id."""
        ids = {self.send("GET", path, {}).headers["x-request-id"] for path in ("/v1", "/v2", "/v9", "/nothing")}
        self.assertEqual(len(ids), 4)

    def test_json_spelling(self) -> None:
        """JSON is spelt as Python's default does, in ASCII."""
        answer = self.request("GET", "/v2/authorize", {"echo": {"é": [1, 2]}})
        expected: Any = {"authorized": "yes", "echo": {"é": [1, 2]}}
        self.assertEqual(answer.body, json.dumps(expected).encode("ascii"))
        self.assertEqual(self.clock.seconds(), NOW)
