"""Tests of the routes of kernels: shapes, statuses and units per version."""

from __future__ import annotations

from typing import Any

from attrs import evolve

from sorna import errors
from sorna.gateway import execution
from sorna.model.limits import MIB
from sorna.model.run import RunMode, RunReply, RunRequest, RunStatus
from sorna.testing.gateway import form
from tests.gateway.base import TOKEN, GatewayTestCase

BASIC = {"lang": "python3", "clientSessionToken": TOKEN}


class LifeTests(GatewayTestCase):
    def test_describe(self) -> None:
        """A description has every key in the unit that clients expect."""
        self.request(
            "POST", "/v1/kernel/create", {**BASIC, "lang": "python", "limits": {"execTimeout": 5000, "maxMem": 64}}
        )
        self.clock.advance(2.5)
        answer = self.request("GET", f"/v2/kernel/{TOKEN}")
        self.assertEqual(
            answer.json,
            {
                "lang": "python",
                "age": 2500.0,
                "queryTimeout": 5000,
                "idleTimeout": 600_000,
                "memoryLimit": 64,
                "maxCpuCredit": 5000,
                "numQueriesExecuted": 1,
                "idle": 2500,
                "memoryUsed": -1,
                "cpuCreditUsed": 0.0,
            },
        )

    def test_restart(self) -> None:
        """A restart answers 204 with the headers that old clients index."""
        answer = self.request("PATCH", f"/v2/kernel/{self.create()}")
        self.assertEqual((answer.status, answer.body), (204, b""))
        self.assertEqual(answer.headers["content-type"], "application/octet-stream")
        self.assertEqual(answer.headers["content-length"], "0")
        (kernel,) = self.kernels.live.values()
        self.assertEqual(kernel.starts, 2)

    def test_destroy(self) -> None:
        """The first version gets 204, later ones numbers; a second time nothing is found."""
        self.assertEqual(self.request("DELETE", f"/v1/kernel/{self.create()}").status, 204)
        kernel = self.create()
        answer = self.request("DELETE", f"/v2/kernel/{kernel}", content_type=b"application/octet-stream")
        self.assertEqual(answer.status, 200)
        self.assertTrue(all(isinstance(one, int | float) for one in answer.json["stats"].values()))
        self.assertEqual(answer.json["stats"]["cpu_used"], 12.5)
        again = self.request("DELETE", f"/v2/kernel/{kernel}")
        self.assert_problem(again, 404, "kernel-not-found", "No such kernel.")

    def test_references(self) -> None:
        """A kernel is found by either spelling of its id and by its token, and by nothing else."""
        short = self.create()
        (long,) = self.kernels.live
        for reference, status in (
            (short, 200),
            (str(long), 200),
            (TOKEN, 200),
            (short[:-1], 404),
            ("%00", 404),
            ("a%2Fb", 404),
        ):
            self.assertEqual(self.request("GET", f"/v2/kernel/{reference}").status, status, reference)

    def test_interrupt_complete_logs(self) -> None:
        """The small routes have the shapes of section 2.8."""
        kernel = self.create()
        self.assertEqual(self.request("POST", f"/v3/kernel/{kernel}/interrupt").status, 204)
        code = {"code": "pri", "options": {"row": 0, "col": 3, "line": "pri", "post": ""}}
        answer = self.request("POST", f"/v2/kernel/{kernel}/complete", code)
        self.assertEqual(answer.json, {"result": {"status": "finished", "completions": ["pri_completed"]}})
        self.request("POST", f"/v2/kernel/{kernel}", {"mode": "query", "code": "1"})
        answer = self.request("GET", f"/v2/kernel/{kernel}/logs")
        self.assertEqual(answer.json, {"result": {"logs": "1"}})

    def test_completion_fields(self) -> None:
        """A position is a number and a line a text."""
        kernel = self.create()
        for field, options in (
            ("row", {"row": "0"}),
            ("col", {"col": -1}),
            ("line", {"line": 1}),
            ("post", {"post": []}),
        ):
            answer = self.request("POST", f"/v2/kernel/{kernel}/complete", {"options": options})
            self.assert_problem(answer, 400, "invalid-api-params")
            self.assertIn(f"(options.{field} ", answer.json["title"])


class ExecuteTests(GatewayTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.kernel = self.create()

    def execute(self, content: Any, version: str = "v2") -> Any:
        """Execute, and give the result."""
        answer = self.request("POST", f"/{version}/kernel/{self.kernel}", content)
        self.assertEqual(answer.status, 200, answer.body)
        return answer.json["result"]

    def run_request(self) -> RunRequest:
        """Give what the manager was asked last."""
        (kernel,) = self.kernels.live.values()
        return kernel.runs[-1]

    def reply(self, **changes: Any) -> None:
        """Let every run answer with this."""

        async def answer(request: RunRequest) -> RunReply:
            return evolve(RunReply(request.run_id or "0123456789abcdef", RunStatus.FINISHED), **changes)

        self.kernels.on_execute = answer

    def test_query(self) -> None:
        """A query gives the superset of what later clients need."""
        result = self.execute({"mode": "query", "code": "1", "runId": "abc"}, "v3")
        self.assertEqual(
            result,
            {
                "status": "finished",
                "runId": "abc",
                "exitCode": 0,
                "console": [["stdout", "1"]],
                "options": {},
                "files": [],
                "completions": [],
            },
        )
        self.assertEqual(self.run_request(), RunRequest(RunMode.QUERY, "1", "abc"))

    def test_run_ids(self) -> None:
        """A run's id may be missing, null, empty or a text, and the answer always has one."""
        for content in ({}, {"runId": None}, {"runId": ""}):
            self.assertEqual(len(self.execute({"mode": "query", "code": "1", **content})["runId"]), 16)
            self.assertIsNone(self.run_request().run_id)

    def test_batch(self) -> None:
        """Commands of a batch arrive, empty ones as none, whatever the options are called."""
        options = {"build": "*", "buildLog": True, "exec": ""}
        for name in ("options", "opts"):
            self.execute({"mode": "batch", "code": "", name: options})
            run = self.run_request()
            self.assertEqual((run.mode, run.build, run.exec, run.build_log), (RunMode.BATCH, "*", None, True))
        self.execute({"mode": "continue", "options": None})
        self.assertEqual(self.run_request().mode, RunMode.CONTINUE)

    def test_waiting_input(self) -> None:
        """A run that waits for input says so with an object, and gets its line."""
        self.reply(status=RunStatus.WAITING_INPUT, options={"is_password": True}, console=(("stdout", "? "),))
        result = self.execute({"mode": "query", "code": "input()"})
        self.assertEqual((result["status"], result["options"]), ("waiting-input", {"is_password": True}))
        self.assertIsNone(result["exitCode"])
        self.execute({"mode": "input", "code": "line", "runId": "r"})
        self.assertEqual(self.run_request(), RunRequest(RunMode.INPUT, "line", "r"))

    def test_options_are_always_an_object(self) -> None:
        """Clients index the options of every status."""
        self.reply(status=RunStatus.CONTINUED, options=None, files=["a.txt"])
        result = self.execute({"mode": "query", "code": "x"})
        self.assertEqual((result["options"], result["files"]), ({}, []))

    def test_first_version(self) -> None:
        """The first version gets one text per stream, and waits for the end."""
        console = (
            ("stdout", "a"),
            ("media", ["image/png", "data:"]),
            ("stderr", "e"),
            ("html", "<b>"),
            ("log", ["info", "t", "l", "m"]),
            ("stdout", "b"),
        )
        self.reply(console=console, files=["x"], options={})
        result = self.execute({"code": "1", "codeId": "abc"}, "v1")
        self.assertEqual(
            result,
            {
                "status": "finished",
                "stdout": "ab",
                "stderr": "e",
                "media": [["image/png", "data:"]],
                "html": ["<b>"],
                "options": {},
                "exceptions": [],
                "files": ["x"],
            },
        )
        self.assertEqual(self.run_request(), RunRequest(RunMode.QUERY, "1", None, wait=None))

    def test_complete_mode(self) -> None:
        """Completion inside execute has the shape of a result."""
        result = self.execute({"mode": "complete", "code": "pr", "opts": {"line": "x.pr"}, "runId": "abc"})
        self.assertEqual((result["status"], result["runId"]), ("finished", "abc"))
        self.assertEqual(result["completions"], ["x.pr_completed"])

    def test_odd_output(self) -> None:
        """Output that JSON has no spelling for does not cost the client the rest of it."""
        self.reply(
            console=(("log", [float("nan"), (float("inf"), {"x": float("-inf")})]), ("stdout", "\udc80\U0001f40d"))
        )
        result = self.execute({"mode": "query", "code": "1"})
        self.assertEqual(result["console"], [["log", [None, [None, {"x": None}]]], ["stdout", "\udc80\U0001f40d"]])

    def test_wrong_fields_are_named(self) -> None:
        """Every wrong field is refused by its name before anything runs."""
        before = self.run_count()
        for version, field, content in (
            ("v1", "code", {}),
            ("v1", "code", {"code": 1}),
            ("v1", "codeId", {"code": "", "codeId": 1}),
            ("v2", "mode", {"code": "1"}),
            ("v2", "mode", {"mode": None}),
            ("v2", "mode", {"mode": 1}),
            ("v2", "mode", {"mode": "explode"}),
            ("v2", "code", {"mode": "query", "code": []}),
            ("v2", "code", {"mode": "query", "code": "\ud800"}),
            ("v2", "runId", {"mode": "query", "runId": 1}),
            ("v2", "runId", {"mode": "query", "runId": "x" * 65}),
            ("v2", "options", {"mode": "batch", "options": "x"}),
            ("v2", "options.build", {"mode": "batch", "options": {"build": 1}}),
            ("v2", "options.exec", {"mode": "batch", "options": {"exec": ["ls"]}}),
            ("v2", "options.buildLog", {"mode": "batch", "options": {"buildLog": "yes"}}),
            ("v2", "opts", {"mode": "batch", "opts": 1}),
        ):
            answer = self.request("POST", f"/{version}/kernel/{self.kernel}", content)
            self.assert_problem(answer, 400, "invalid-api-params")
            self.assertIn(f"({field} ", answer.json["title"], content)
        self.assertEqual(self.run_count(), before)

    def run_count(self) -> int:
        (kernel,) = self.kernels.live.values()
        return len(kernel.runs)

    def test_agent_details(self) -> None:
        """What an agent said is told in the historic words."""
        for cause, details in (
            (errors.AgentTimeout("200 s"), {"type": "agent-timeout", "title": None}),
            (errors.AgentRefused("no such line"), {"type": "agent-invalid-input", "title": "no such line"}),
            (
                errors.AgentFailed("", "ValueError('boom', 1)"),
                {
                    "type": "agent-failure",
                    "title": "Agent-side exception occurred.",
                    "exception": "ValueError('boom', 1)",
                },
            ),
            (
                OSError("/secret"),
                {"type": "agent-failure", "title": "Unexpected exception ocurred.", "exception": "OSError"},
            ),
            (
                errors.Unavailable("link"),
                {"type": "agent-failure", "title": "Unexpected exception ocurred.", "exception": "Unavailable('link')"},
            ),
        ):
            error = errors.KernelExecutionFailed()
            error.__cause__ = cause
            self.kernels.errors["execute"] = error
            answer = self.request("POST", f"/v2/kernel/{self.kernel}", {"mode": "query", "code": "1"})
            self.assert_problem(answer, 500, "kernel-execution-failed", "Executing user code in the kernel has failed.")
            base = "https://api.sorna.io/probs/"
            self.assertEqual(answer.json["agent-details"], {**details, "type": base + str(details["type"])})

    def test_modes_are_those_of_the_model(self) -> None:
        """A mode that the model gains is known here too."""
        self.assertEqual(set(execution.MODES), {mode.value for mode in RunMode} | {"complete"})


class UploadTests(GatewayTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.kernel = self.create()

    def upload(self, *files: tuple[str, bytes]) -> Any:
        content_type, body = form(*files)
        return self.request("POST", f"/v2/kernel/{self.kernel}/upload", body=body, content_type=content_type)

    def files(self) -> dict[str, bytes]:
        (kernel,) = self.kernels.live.values()
        return kernel.files

    def test_files(self) -> None:
        """Files arrive by path; the signature covers no multipart body."""
        self.assertEqual(self.upload(("main.c", b"int main() {}"), ("a/b.bin", bytes(range(256)))).status, 204)
        self.assertEqual(self.files(), {"main.c": b"int main() {}", "a/b.bin": bytes(range(256))})

    def test_limits(self) -> None:
        """Twenty files of a mebibyte are accepted, and neither one more nor one byte more."""
        self.assertEqual(self.upload(*((f"{number}", b"x") for number in range(20))).status, 204)
        answer = self.upload(*((f"{number}", b"x") for number in range(21)))
        self.assert_problem(answer, 400, "invalid-api-params", "Missing or invalid API parameters. (Too many files)")
        self.assertEqual(self.upload(("full", bytes(MIB))).status, 204)
        answer = self.upload(("over", bytes(MIB + 1)))
        self.assert_problem(answer, 400, "invalid-api-params", "Missing or invalid API parameters. (Too large file)")

    def test_paths_that_climb_out(self) -> None:
        """The manager sees the path as it was sent, and refuses it."""
        for path in ("../x", "/etc/passwd", "a/../../x"):
            self.assert_problem(self.upload((path, b"")), 400, "invalid-api-params")
        self.assertEqual(self.files(), {})

    def test_bodies_that_are_no_forms(self) -> None:
        """Anything else than a form is refused."""
        for content_type in (b"application/json", b"multipart/mixed; boundary=x", b""):
            answer = self.request("POST", f"/v2/kernel/{self.kernel}/upload", body=b"{}", content_type=content_type)
            self.assert_problem(answer, 400, "invalid-api-params")
