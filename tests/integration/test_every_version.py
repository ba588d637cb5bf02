"""The sections of the interface about kernels, in each of its versions, against a whole server of its own.

Kernels in memory answer the unit tests of these routes; here runtimes, sandboxes and databases do, with devices that are
handed out and output that is soon forgotten.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from attrs import frozen
from twisted.internet.interfaces import IReactorTime

from sorna.testing.gateway import Signer, form
from sorna.testing.server import RunningServer, running_server
from sorna.testing.unit import UnitTestCase
from tests.agent.test_devices import make_nodes

VERSIONS: Mapping[str, bytes] = {
    "/v1": b"v1.20160915",
    "/v2": b"v2.20170315",
    "/v3": b"v3.20170615",
    "/v4": b"v4.20181215",
    "": b"v4.20181215",
}
INFO = [
    "lang",
    "age",
    "queryTimeout",
    "idleTimeout",
    "memoryLimit",
    "maxCpuCredit",
    "numQueriesExecuted",
    "idle",
    "memoryUsed",
    "cpuCreditUsed",
]
POSITION = {"row": 0, "col": 3, "line": "pri", "post": ""}
RETENTION = 6.0


@frozen
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def problem(self) -> tuple[int, str]:
        return self.status, str(self.json["type"]).rpartition("/")[2]


class VersionCase(UnitTestCase):
    """Each test has a server of its own."""

    server: RunningServer
    stack: contextlib.ExitStack

    def setUp(self) -> None:
        from twisted.internet import reactor  # noqa: PLC0415, TID251 - the server goes by the wall clock

        self.clock = cast("IReactorTime", reactor)
        self.stack = contextlib.ExitStack()
        self.addCleanup(self.stack.close)
        options = ("--gpu-devices", str(self.devices()), "--output-retention", f"{RETENTION:g}", "--kernel-preload", "")
        self.server = self.stack.enter_context(running_server(*options))
        self.host = urlsplit(self.server.endpoint).netloc
        self.prefix = "/v2"

    def devices(self) -> Path:
        """Give the directory of the host's device nodes."""
        return Path("/nonexistent")

    def send(self, method: str, path: str, body: bytes, headers: Mapping[bytes, bytes]) -> Answer:
        connection = http.client.HTTPConnection(self.host, timeout=60)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in {**headers, b"Content-Length": str(len(body)).encode()}.items():
                connection.putheader(name.decode(), value)
            connection.endheaders(body)
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def call(
        self, method: str, path: str, content: Any = b"", kind: bytes = b"application/json", override: str = ""
    ) -> Answer:
        """Send one request in the version at hand; ``override`` is the method that it has on the wire."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        signer = Signer(self.clock, host=self.host.encode(), version=VERSIONS[self.prefix])
        target = self.prefix + path
        headers = signer.headers(method.encode(), target.encode(), body, kind)
        if override:
            headers[b"X-Method-Override"] = method.encode()
        return self.send(override or method, target, body, headers)

    def assert_empty(self, answer: Answer) -> None:
        """See that a 204 has what old clients index without asking."""
        self.assertEqual((answer.status, answer.body), (204, b""))
        self.assertEqual(answer.headers["Content-Length"], "0")
        self.assertEqual(answer.headers["Content-Type"], "application/octet-stream")


class EveryVersionTests(VersionCase):
    def test_every_version(self) -> None:
        """Create, describe, run, files, small calls, restart and destroy are answered as each version's clients want."""
        for prefix in VERSIONS:
            self.prefix = prefix
            self.token = f"version-{secrets.token_hex(6)}"
            self.wish: dict[str, Any] = {"lang": "python3", "clientSessionToken": self.token}
            created = self.call("POST", "/kernel/create", self.wish)
            self.assertEqual((created.status, created.json["created"]), (201, True), created)
            self.kernel = f"/kernel/{created.json['kernelId']}"
            again = self.call("POST", "/kernel/", self.wish).json
            self.assertEqual((again["kernelId"], again["created"]), (created.json["kernelId"], False))
            other = self.call("POST", "/kernel", {**self.wish, "lang": "c"})
            self.assertEqual(other.problem, (400, "kernel-already-exists"))
            self.describe()
            if prefix == "/v1":
                self.run_first()
            else:
                self.run_later()
            self.use_files()
            self.small_calls()
            self.refuse()
            self.end()

    def describe(self) -> None:
        described = self.call("GET", self.kernel).json
        self.assertEqual(list(described), INFO)
        self.assertEqual(described["numQueriesExecuted"], 1)
        listed = self.call("GET", "/kernel").json["sessions"]
        self.assertIn(self.token, [one["sessionName"] for one in listed])

    def run_first(self) -> None:
        """Run code as the first version does, which answers at the end."""
        result = self.call("POST", self.kernel, {"code": "print(1+1)", "codeId": "x"}).json["result"]
        self.assertEqual((result["status"], result["stdout"], result["stderr"]), ("finished", "2\n", ""))
        self.assertLessEqual({"media", "html", "options", "exceptions", "files"}, set(result))

    def execute(self, mode: str, code: str = "", **more: Any) -> Any:
        answer = self.call("POST", self.kernel, {"mode": mode, "code": code, **more})
        self.assertEqual(answer.status, 200, answer)
        return answer.json["result"]

    def run_later(self) -> None:
        result = self.execute("query", "print(1+1)", runId=None)
        self.assertEqual(
            (result["status"], result["console"], result["exitCode"]), ("finished", [["stdout", "2\n"]], 0)
        )
        asked = self.execute("query", "print('hi', input('who? '))")
        self.assertEqual((asked["status"], asked["options"]), ("waiting-input", {"is_password": False}))
        told = self.execute("input", "you", runId=asked["runId"])
        self.assertEqual((told["status"], told["console"]), ("finished", [["stdout", "hi you\n"]]))
        slow = self.execute("query", "import time; time.sleep(2.5); print('late')")
        self.assertEqual(slow["status"], "continued")
        while slow["status"] == "continued":
            slow = self.execute("continue", runId=slow["runId"])
        self.assertEqual(slow["console"], [["stdout", "late\n"]])
        self.assertIn("ZeroDivisionError", str(self.execute("query", "1/0")["console"]))
        self.assertTrue(self.execute("complete", "pri", options=POSITION)["completions"][0].startswith("print"))
        kind, body = form(("sub/main.py", b"print('from a file')\n"))
        self.assert_empty(self.call("POST", f"{self.kernel}/upload", body, kind))
        batch = {"build": "echo built", "exec": "python sub/main.py", "buildLog": True}
        seen, result = [], self.execute("batch", options=batch)
        while result["status"] != "finished":
            seen.append(result["status"])
            result = self.execute("batch", options=batch)
        self.assertIn("build-finished", seen)
        self.assertIn("from a file", str(result["console"]))

    def use_files(self) -> None:
        kind, body = form(("sub/x.py", b"1"), ("a.txt", b"hello"))
        self.assert_empty(self.call("POST", f"{self.kernel}/upload", body, kind))
        for files, words in (
            ([(f"f{number}", b"x") for number in range(21)], "(Too many files)"),
            ([("big", bytes(1024 * 1024 + 1))], "(Too large file)"),
            ([("../../etc/x", b"x")], "working directory"),
        ):
            kind, body = form(*files)
            answer = self.call("POST", f"{self.kernel}/upload", body, kind)
            self.assertEqual(answer.problem, (400, "invalid-api-params"))
            self.assertIn(words, answer.json["title"])
        listed = self.call("GET", f"{self.kernel}/files", {"path": "."}).json
        self.assertLessEqual({"a.txt", "sub"}, {one["filename"] for one in json.loads(listed["files"])})
        self.assertEqual(self.call("GET", f"{self.kernel}/files", {"path": "../.."}).status, 400)
        several = self.call("GET", f"{self.kernel}/download", {"files": ["a.txt", "sub"]})
        self.assertTrue(several.headers["Content-Type"].startswith("multipart/mixed"))
        self.assertIn(b"hello", several.body)
        self.assertEqual(self.call("GET", f"{self.kernel}/download", {"files": ["a.txt"] * 6}).status, 400)
        self.assertIn(b"hello", self.call("GET", f"{self.kernel}/download_single", {"file": "a.txt"}).body)

    def small_calls(self) -> None:
        self.assert_empty(self.call("POST", f"{self.kernel}/interrupt"))
        completed = self.call("POST", f"{self.kernel}/complete", {"code": "pri", "options": POSITION}).json["result"]
        self.assertEqual(completed["status"], "finished")
        self.assertTrue(completed["completions"][0].startswith("print"))
        self.assertIn("2\n", self.call("GET", f"{self.kernel}/logs").json["result"]["logs"])
        self.assert_empty(self.call("PATCH", self.kernel))
        self.assertIn("a.txt", self.call("GET", f"{self.kernel}/files", {"path": "."}).json["files"])
        self.assertEqual(list(self.call("GET", self.kernel, override="POST").json), INFO)
        self.assert_empty(self.call("PATCH", self.kernel, override="POST"))

    def refuse(self) -> None:
        if self.prefix != "/v1":
            for body in ({"mode": "fly", "code": ""}, {"code": "1"}, {"mode": "query", "code": 1}):
                self.assertEqual(self.call("POST", self.kernel, body).problem, (400, "invalid-api-params"))
        unknown = {**self.wish, "lang": "cobol", "clientSessionToken": "cobol-1"}
        self.assertEqual(self.call("POST", "/kernel/create", unknown).problem, (404, "image-not-found"))
        self.assertEqual(self.call("POST", "/kernel/create", b"{").problem, (400, "invalid-api-params"))
        many = {**self.wish, "clientSessionToken": "cluster-1", "config": {"clusterSize": 2}}
        self.assertEqual(self.call("POST", "/kernel/create", many).problem, (400, "invalid-api-params"))

    def end(self) -> None:
        destroyed = self.call("DELETE", self.kernel, override="POST")
        if self.prefix == "/v1":
            self.assert_empty(destroyed)
        else:
            self.assertTrue(all(isinstance(one, int | float) for one in destroyed.json["stats"].values()))
        for method in ("GET", "DELETE", "PATCH"):
            answer = self.call(method, self.kernel)
            self.assertEqual(answer.problem, (404, "kernel-not-found"))
        era = "https://api.sorna.io" if self.prefix in {"/v1", "/v2"} else "https://api.backend.ai"
        self.assertTrue(answer.json["type"].startswith(era))


class BoundTests(VersionCase):
    def devices(self) -> Path:
        return make_nodes(self, "nvidia0", "nvidia1")

    def test_devices_and_retention(self) -> None:
        """Devices are given out up to the last one and come back; output of an ended session is gone when its time is over."""
        self.prefix = ""
        wish = {"lang": "python3", "clientSessionToken": "devices-1", "config": {"resources": {"cuda.device": 2}}}
        kernel = f"/kernel/{self.call('POST', '/kernel', wish).json['kernelId']}"
        code = "import os; print(sorted(n for n in os.listdir('/dev') if n[:2] == 'nv'), os.environ['CUDA_VISIBLE_DEVICES'])"
        result = self.call("POST", kernel, {"mode": "query", "code": code}).json["result"]
        self.assertEqual(result["console"], [["stdout", "['nvidia0', 'nvidia1'] 0,1\n"]])
        another = {**wish, "clientSessionToken": "devices-2", "config": {"instanceGPUs": "1"}}
        refused = self.call("POST", "/kernel", another)
        self.assertEqual(refused.problem, (503, "instance-not-available"))
        self.assertIn("GPUs: 2 of 2 taken, 1 asked for", refused.json["title"])
        output = f"{kernel}/runs/{result['runId']}/output"
        self.assertEqual(self.call("DELETE", kernel).status, 200)
        self.assertEqual(self.call("GET", output).json["result"]["console"], result["console"])
        # A heartbeat of the agent may be behind by a moment.
        self.eventually(lambda: self.call("POST", "/kernel", another).status == 201)
        self.eventually(lambda: self.call("GET", output).status != 200)
        self.assertEqual(self.call("GET", output).problem, (410, "output-gone"))

    def eventually(self, condition: Any) -> None:
        for _ in range(60):
            if condition():
                return
            time.sleep(0.5)
        self.fail("nothing of the kind happened")
