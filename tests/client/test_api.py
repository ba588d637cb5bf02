"""The API client over a scripted server."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar, cast

from treq.client import HTTPClient
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.python.failure import Failure
from twisted.web.client import ResponseNeverReceived

from sorna.client.api import ApiClient, Run
from sorna.client.wire import ApiError, BuildFinished, Call, Output, Session, host_header, multipart
from sorna.testing.unit import UnitTestCase
from tests.client.scripted import CREATED, ENDPOINT, KERNEL, Setting, problem, result

T = TypeVar("T")


class ApiTestCase(UnitTestCase):
    """Ways to get results out of coroutines."""

    def done(self, work: Coroutine[Deferred[Any], Any, T]) -> T:
        """Give what a coroutine ended with."""
        return self.successResultOf(Deferred.fromCoroutine(work))

    def refused(self, work: Coroutine[Deferred[Any], Any, Any]) -> ApiError:
        """Give the error that a coroutine ended with."""
        error = self.failureResultOf(Deferred.fromCoroutine(work), ApiError).value
        assert isinstance(error, ApiError)
        return error


class CallTests(ApiTestCase):
    """Each call: what it sends and what it makes of the answer."""

    def test_version(self) -> None:
        """The version query."""
        setting = Setting((200, {"version": "v3.20170615"}))
        self.assertEqual(self.done(setting.api.version()), "v3.20170615")
        self.assertEqual(setting.server.calls, ["GET /v3"])

    def test_create(self) -> None:
        """Limits go in the interface's units: KiB and milliseconds."""
        setting = Setting(CREATED)
        made = setting.api.create("c", "tokentoken", environ={"A": "B"}, memory=65536 * 1024, execution_timeout=2.5)
        self.assertEqual(self.done(made), Session(KERNEL, created=True))
        self.assertEqual(setting.server.calls, ["POST /v3/kernel/create"])
        self.assertEqual(
            setting.server.seen[0].json,
            {
                "lang": "c",
                "clientSessionToken": "tokentoken",
                "limits": {"maxMem": 65536, "execTimeout": 2500},
                "config": {"environ": {"A": "B"}},
            },
        )

    def test_create_finds(self) -> None:
        """A session that was there already is told apart."""
        setting = Setting((201, {"kernelId": KERNEL, "created": False}))
        self.assertFalse(self.done(setting.api.create("c", "tokentoken")).created)

    def test_info(self) -> None:
        """Info is handed on as it is."""
        setting = Setting((200, {"lang": "c", "age": 1.5}))
        self.assertEqual(self.done(setting.api.info(KERNEL)), {"lang": "c", "age": 1.5})
        self.assertEqual(setting.server.calls, [f"GET /v3/kernel/{KERNEL}"])

    def test_reference_cannot_climb(self) -> None:
        """What is no id is escaped and stays one part of the path."""
        setting = Setting((200, {}))
        self.done(setting.api.info("../admin?x"))
        self.assertEqual(setting.server.calls, ["GET /v3/kernel/..%2Fadmin%3Fx"])

    def test_restart_and_interrupt(self) -> None:
        """Calls without an answer's body."""
        setting = Setting((204, None), (204, None))
        self.done(setting.api.restart(KERNEL))
        self.done(setting.api.interrupt(KERNEL))
        self.assertEqual(setting.server.calls, [f"PATCH /v3/kernel/{KERNEL}", f"POST /v3/kernel/{KERNEL}/interrupt"])

    def test_destroy(self) -> None:
        """Newer servers tell what was used, older ones do not."""
        setting = Setting((200, {"stats": {"cpu_used": 12}}), (204, None), (200, {"stats": None}))
        self.assertEqual(self.done(setting.api.destroy(KERNEL)), {"cpu_used": 12})
        self.assertIsNone(self.done(setting.api.destroy(KERNEL)))
        self.assertIsNone(self.done(setting.api.destroy(KERNEL)))

    def test_complete(self) -> None:
        """The object form of completions."""
        setting = Setting((200, {"result": {"status": "finished", "completions": ["print"]}}))
        self.assertEqual(self.done(setting.api.complete(KERNEL, "pri", {"row": 0, "col": 3})), ["print"])
        self.assertEqual(setting.server.seen[0].json, {"code": "pri", "options": {"row": 0, "col": 3}})

    def test_logs(self) -> None:
        """The console's past."""
        setting = Setting((200, {"result": {"logs": "hello\n"}}))
        self.assertEqual(self.done(setting.api.logs(KERNEL)), "hello\n")

    def test_upload_in_twenties(self) -> None:
        """More files than one call takes go in several."""
        setting = Setting((204, None), (204, None))
        self.done(setting.api.upload(KERNEL, [(f"{number}.txt", b"x") for number in range(21)]))
        counts = [seen.body.count(b"filename=") for seen in setting.server.seen]
        self.assertEqual(counts, [20, 1])
        self.assertTrue(setting.server.seen[0].content_type.startswith("multipart/form-data; boundary="))


class ErrorTests(ApiTestCase):
    """Everything that can go wrong comes as one exception."""

    def test_problem(self) -> None:
        """Status, the slug of the type, and the title."""
        setting = Setting(problem(404, "kernel-not-found", "No such kernel."))
        error = self.refused(setting.api.info(KERNEL))
        self.assertEqual((error.status, error.type, error.title), (404, "kernel-not-found", "No such kernel."))

    def test_agent_details(self) -> None:
        """The agent's exception is part of what is said."""
        details = {"type": "x", "title": "Agent-side exception occurred.", "exception": "ValueError('boom')"}
        setting = Setting(problem(500, "kernel-execution-failed", "It failed.", **{"agent-details": details}))
        self.assertEqual(self.refused(setting.api.info(KERNEL)).title, "It failed. (ValueError('boom'))")

    def test_no_problem_document(self) -> None:
        """A proxy's page in HTML is no reason to crash."""
        setting = Setting((502, b"<html>"), (200, b"<html>"), (200, b"[]"), (200, {}))
        self.assertEqual(self.refused(setting.api.info(KERNEL)).status, 502)
        for _ in range(2):
            self.assertEqual(self.refused(setting.api.info(KERNEL)).type, "unreadable-answer")
        self.assertEqual(self.refused(setting.api.create("c", "tokentoken")).type, "unreadable-answer")

    def test_redirect_is_not_followed(self) -> None:
        """A signed request goes to no other place than the one it was signed for."""
        setting = Setting((302, b""))
        self.assertEqual(self.refused(setting.api.info(KERNEL)).status, 302)

    def test_deadline(self) -> None:
        """A server that is silent is given up."""
        setting = Setting(None)
        asked = Deferred.fromCoroutine(setting.api.info(KERNEL))
        setting.reactor.advance(14.9)
        self.assertNoResult(asked)
        setting.reactor.advance(0.2)
        error = self.failureResultOf(asked, ApiError).value
        assert isinstance(error, ApiError)
        self.assertEqual((error.status, error.type), (0, "timeout"))

    def test_unreachable(self) -> None:
        """A refused connection and one that breaks are told in words."""
        for reason in (Refused("nobody"), ResponseNeverReceived([Failure(Refused("nobody"))])):
            http = cast("HTTPClient", Broken(reason))
            error = self.refused(ApiClient(http, ENDPOINT, "a", "b", Setting().reactor).info(KERNEL))
            self.assertEqual((error.status, error.type), (0, "unreachable"))
            self.assertIn("nobody", error.title)

    def test_too_large(self) -> None:
        """An answer without end is cut off."""
        setting = Setting((200, b"x" * 101), largest_answer=100)
        self.assertEqual(self.refused(setting.api.info(KERNEL)).type, "unreadable-answer")


class Broken:
    """An HTTP client without a network."""

    def __init__(self, reason: Exception) -> None:
        self.reason = reason

    def request(self, *_args: Any, **_options: Any) -> Deferred[Any]:
        """Fail."""
        return fail(self.reason)


class RunTests(ApiTestCase):
    """A run as an iterator over its console."""

    def setUp(self) -> None:
        """Type these lines when the run asks."""
        self.typed: list[str | None] = []
        self.asked: list[bool] = []

    async def read_input(self, is_password: bool) -> str | None:
        """Type the next line."""
        self.asked.append(is_password)
        return self.typed.pop(0)

    def items(self, run: Run) -> list[Output | BuildFinished]:
        """Give everything that a run brings."""

        async def collect() -> list[Output | BuildFinished]:
            return [item async for item in run]

        return self.done(collect())

    def test_continues_until_finished(self) -> None:
        """Every answer's items come in order, and later calls name the run."""
        setting = Setting(
            result("continued", ["stdout", "a"], ["stderr", "b"]),
            result("continued"),
            result("finished", ["stdout", "c"], exitCode=3),
        )
        run = setting.api.run(KERNEL, "code", self.read_input)
        self.assertEqual(self.items(run), [Output("stdout", "a"), Output("stderr", "b"), Output("stdout", "c")])
        self.assertEqual(run.exit_code, 3)
        bodies = [seen.json for seen in setting.server.seen]
        self.assertEqual(bodies[0], {"mode": "query", "code": "code", "runId": None})
        self.assertEqual(bodies[1:], [{"mode": "continue", "code": "", "runId": "0123456789abcdef"}] * 2)

    def test_input(self) -> None:
        """What is typed is sent, and only after the prompt was shown."""
        setting = Setting(
            result("waiting-input", ["stdout", "name? "], options={"is_password": False}),
            result("waiting-input", options={"is_password": True}),
            result("finished", ["stdout", "hi"]),
        )
        self.typed = ["me", "secret"]
        run = setting.api.run(KERNEL, "code", self.read_input)
        first = self.successResultOf(Deferred.fromCoroutine(run.__anext__()))
        self.assertEqual((first, self.asked), (Output("stdout", "name? "), []))
        self.assertEqual(self.items(run), [Output("stdout", "hi")])
        self.assertEqual(self.asked, [False, True])
        modes = [(seen.json["mode"], seen.json["code"]) for seen in setting.server.seen]
        self.assertEqual(modes, [("query", "code"), ("input", "me"), ("input", "secret")])

    def test_no_input_interrupts(self) -> None:
        """Where nothing will be typed the run is interrupted and its end is read."""
        setting = Setting(result("waiting-input"), (204, None), result("finished", ["stderr", "KeyboardInterrupt"]))
        self.typed = [None]
        self.items(setting.api.run(KERNEL, "code", self.read_input))
        self.assertEqual(setting.server.calls[1], f"POST /v3/kernel/{KERNEL}/interrupt")
        self.assertEqual(setting.server.seen[2].json["mode"], "continue")

    def test_batch(self) -> None:
        """The build's end is an item of its own, after the build's output."""
        setting = Setting(result("build-finished", ["stderr", "warning"], exitCode=0), result("finished", exitCode=0))
        run = setting.api.run_batch(KERNEL, "*", None, self.read_input)
        self.assertEqual(self.items(run), [Output("stderr", "warning"), BuildFinished(0)])
        self.assertEqual(
            setting.server.seen[0].json,
            {
                "mode": "batch",
                "code": "",
                "runId": None,
                "options": {"build": "*", "exec": None, "buildLog": False},
            },
        )
        self.assertEqual(setting.server.seen[1].json["mode"], "continue")

    def test_unknown_status_ends(self) -> None:
        """A status of another age ends the run instead of asking for ever."""
        setting = Setting(result("exec-timeout", ["stdout", "a"]))
        self.assertEqual(self.items(setting.api.run(KERNEL, "", self.read_input)), [Output("stdout", "a")])

    def test_malformed_answers(self) -> None:
        """An answer without a status is an error; console items that are none are left out."""
        setting = Setting((200, {"result": []}), result("finished", "x", ["only"], ["stdout", "a"]))  # type: ignore[arg-type]
        self.refused(setting.api.execute(KERNEL, Call("query")))
        answer = self.done(setting.api.execute(KERNEL, Call("query")))
        self.assertEqual(answer.console, (Output("stdout", "a"),))


class WireTests(UnitTestCase):
    """The pure parts of the wire."""

    def test_host_header(self) -> None:
        """The port is there unless it is the scheme's own, as HTTP libraries send it."""
        for endpoint, host in (
            ("http://127.0.0.1:8080", "127.0.0.1:8080"),
            ("http://localhost/prefix", "localhost"),
            ("http://localhost:80", "localhost"),
            ("https://localhost:443", "localhost"),
            ("https://localhost:80", "localhost:80"),
            ("http://[::1]:8080", "[::1]:8080"),
        ):
            self.assertEqual(host_header(endpoint), host)

    def test_not_an_endpoint(self) -> None:
        """What is no URL of a server is refused before anything is sent."""
        for endpoint in ("", "localhost:8080", "ftp://x", "http://", "http://x?y", "http://x:port"):
            self.assertRaises(ValueError, host_header, endpoint)

    def test_multipart(self) -> None:
        """A form as browsers send it; names are quoted."""
        content_type, body = multipart([('a"\\b.txt', b"one"), ("dir/é", b"two")], "limit")
        self.assertEqual(content_type, "multipart/form-data; boundary=limit")
        self.assertEqual(
            body,
            (
                '--limit\r\nContent-Disposition: form-data; name="src"; filename="a\\"\\\\b.txt"\r\n'
                "Content-Type: application/octet-stream\r\n\r\none\r\n"
                '--limit\r\nContent-Disposition: form-data; name="src"; filename="dir/é"\r\n'
                "Content-Type: application/octet-stream\r\n\r\ntwo\r\n--limit--\r\n"
            ).encode(),
        )

    def test_boundary_is_in_no_file(self) -> None:
        """A file that holds the boundary gets another one."""
        _, first = multipart([("a", b"")])
        boundary = first.split(b"\r\n")[0].removeprefix(b"--")
        content_type, _ = multipart([("a", b"x" + boundary)])
        self.assertNotIn(boundary.decode(), content_type)

    def test_control_characters(self) -> None:
        """A name cannot break out of its header."""
        self.assertRaises(ValueError, multipart, [("a\r\nb", b"")])
