"""Bad input, limits and planted traps against a real server over HTTP: what each is answered."""

from __future__ import annotations

import http.client
import json
import re
import secrets
import threading
from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import urlsplit

from attrs import frozen
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import Clock

from sorna.model.keypair import Keypair
from sorna.testing.gateway import EXAMPLE, Signer, form
from sorna.testing.server import shared_server
from sorna.testing.unit import UnitTestCase

MIB = 1 << 20


@frozen
class Answer:
    """What the server said. ``body`` is the parsed JSON, or None for none."""

    status: int
    body: Any

    @property
    def problem(self) -> tuple[int, str]:
        """Status and the last part of the problem's type."""
        return self.status, self.body["type"].rpartition("/")[2]


class SystemCase(UnitTestCase):
    """Speaks to the shared server as a client of its own making."""

    def setUp(self) -> None:
        """Find the server."""
        from twisted.internet import reactor  # noqa: PLC0415, TID251 - the server goes by the wall clock

        self.clock = cast("IReactorTime", reactor)
        server = shared_server()
        self.addCleanup(server.check)
        self.host = urlsplit(server.endpoint).netloc

    def send(self, method: str, path: str, body: bytes, headers: Mapping[bytes, bytes]) -> Answer:
        """Send one request as it is."""
        connection = http.client.HTTPConnection(self.host, timeout=30)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in {**headers, b"Content-Length": str(len(body)).encode()}.items():
                connection.putheader(name.decode(), value)
            connection.endheaders(body)
            response = connection.getresponse()
            said = response.read()
            return Answer(response.status, json.loads(said) if said else None)
        finally:
            connection.close()

    def signer(self, **changed: Any) -> Signer:
        """Give a signer for this server."""
        return Signer(**{"clock": self.clock, "host": self.host.encode(), **changed})

    def call(
        self, method: str, path: str, body: Any = b"", kind: bytes = b"application/json", **signing: Any
    ) -> Answer:
        """Send one signed request; what is not bytes goes as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = self.signer(**signing).headers(method.encode(), path.encode(), content, kind)
        return self.send(method, path, content, headers)

    def kernel(self, **more: Any) -> str:
        """Make a kernel that is gone after the test."""
        body = {"lang": "python3", "clientSessionToken": f"t-{secrets.token_hex(8)}", **more}
        answer = self.call("POST", "/v2/kernel/create", body)
        self.assertEqual(answer.status, 201, answer.body)
        path = f"/v2/kernel/{answer.body['kernelId']}"
        self.addCleanup(self.call, "DELETE", path)
        return path

    def run_code(self, kernel: str, code: str) -> tuple[int, str]:
        """Run to the end; give the exit code and everything that was printed."""
        mode, run, said = "query", secrets.token_hex(8), []
        while True:
            answer = self.call("POST", kernel, {"mode": mode, "code": code, "runId": run})
            self.assertEqual(answer.status, 200, answer.body)
            result = answer.body["result"]
            said += [text for _stream, text in result["console"] or ()]
            if result["status"] == "finished":
                return result["exitCode"], "".join(said)
            mode, code = "continue", ""


class BadInputTests(SystemCase):
    """Each gets a problem that says what is wrong, and nothing changes."""

    CREATE = "/v2/kernel/create"

    def test_identity(self) -> None:
        """Without a signature, with a wrong, an old or an unknown one."""
        body = json.dumps({"lang": "python3", "clientSessionToken": "test-token"}).encode()
        right = self.signer().headers(b"POST", self.CREATE.encode(), body)
        bare = {name: value for name, value in right.items() if name != b"Authorization"}
        self.assertEqual(self.send("POST", self.CREATE, body, bare).problem, (401, "auth-failed"))
        wrong = Keypair(access_key=EXAMPLE.access_key, secret_key="x" * 40)
        self.assertEqual(self.call("POST", self.CREATE, body, keypair=wrong).problem, (401, "auth-failed"))
        nobody = Keypair(access_key="AKIA" + "Z" * 16, secret_key="x" * 40)
        self.assertEqual(self.call("POST", self.CREATE, body, keypair=nobody).problem, (401, "auth-failed"))
        old = Clock()
        old.advance(self.clock.seconds() - 3600)
        self.assertEqual(self.call("POST", self.CREATE, body, clock=old).problem, (400, "invalid-auth-params"))

    def test_body(self) -> None:
        """No JSON, wrong types, an unknown runtime, and more than is read."""
        for body in (b"{", b"[1]", b"\xff", {"lang": 3, "clientSessionToken": "abcd"}, {"lang": "python3"}):
            self.assertEqual(self.call("POST", self.CREATE, body).problem, (400, "invalid-api-params"), body)
        unknown = {"lang": "cobol", "clientSessionToken": "abcd"}
        self.assertEqual(self.call("POST", self.CREATE, unknown).problem, (404, "image-not-found"))
        large = self.call("POST", self.CREATE, b" " * (40 * MIB))
        self.assertEqual(large.problem, (413, "payload-too-large"))

    def test_foreign_and_unknown_kernels(self) -> None:
        """What is not there cannot be described, used or destroyed."""
        for method, path in (("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", ""), ("POST", "/interrupt")):
            body = {"mode": "query", "code": "1"} if (method, path) == ("POST", "") else b""
            answer = self.call(method, f"/v2/kernel/{'A' * 22}{path}", body)
            self.assertEqual(answer.problem, (404, "kernel-not-found"), (method, path))

    def test_uploads(self) -> None:
        """Too many, too large, out of the working directory, through a planted link, onto one."""
        kernel = self.kernel()
        upload = f"{kernel}/upload"

        def put(*files: tuple[str, bytes]) -> Answer:
            kind, body = form(*files)
            return self.call("POST", upload, body, kind)

        many = [(f"f{number}", b"x") for number in range(21)]
        self.assertEqual(put(*many).problem, (400, "invalid-api-params"))
        self.assertEqual(put(*many[:20]).status, 204)
        self.assertEqual(put(("big", b"x" * (MIB + 1))).problem, (400, "invalid-api-params"))
        self.assertEqual(put(("big", b"x" * MIB)).status, 204)
        for path in ("../x", "/etc/x", "a/../../x"):
            answer = put((path, b"x"))
            self.assertEqual(answer.problem, (400, "invalid-api-params"), path)
        code = "import os; os.symlink('/tmp', 'link'); open('/tmp/target', 'w').write('old'); os.symlink('/tmp/target', 'f')"
        self.assertEqual(self.run_code(kernel, code), (0, ""))
        self.assertEqual(put(("link/x", b"x")).problem, (400, "invalid-api-params"))
        self.assertEqual(put(("f", b"new")).status, 204)
        code = "print(os.path.exists('/tmp/x'), open('/tmp/target').read(), open('f').read(), os.path.islink('f'))"
        self.assertEqual(self.run_code(kernel, code), (0, "False old new False\n"))

    def test_two_creates_at_once(self) -> None:
        """One of them makes the kernel, both get it."""
        body = {"lang": "python3", "clientSessionToken": f"t-{secrets.token_hex(8)}"}
        answers: list[Answer] = []

        def create() -> None:
            answers.append(self.call("POST", self.CREATE, body))

        threads = [threading.Thread(target=create) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual([answer.status for answer in answers], [201, 201])
        self.assertEqual(len({answer.body["kernelId"] for answer in answers}), 1)
        self.assertEqual(sorted(answer.body["created"] for answer in answers), [False, True])
        self.call("DELETE", f"/v2/kernel/{answers[0].body['kernelId']}")


class LimitTests(SystemCase):
    """A run that passes a limit ends with a sentence that says which, and the kernel works on where it can."""

    def ends(self, kernel: str, code: str, exit_code: int, words: str) -> None:
        """Check how a run ends."""
        status, said = self.run_code(kernel, code)
        self.assertEqual(status, exit_code, said[-2000:])
        self.assertRegex(said, words)
        # A kernel that is still full says so once more.
        status, said = self.run_code(kernel, "print(6*7)")
        self.assertEqual((status, said[:3]), (0, "42\n"), said)

    def test_time(self) -> None:
        """Longer than the client allowed."""
        kernel = self.kernel(limits={"execTimeout": 1000})
        self.ends(kernel, "while True: pass", 124, re.escape("it took longer than its limit of 1 second"))

    def test_memory(self) -> None:
        """More than the kernel may have."""
        kernel = self.kernel(config={"instanceMemory": 128})
        code = "hog = []\nwhile True: hog.append(bytearray(b'x') * (8 << 20))"
        self.ends(kernel, code, 137, "The kernel ran out of memory: its limit is 128 MiB")

    def test_processes(self) -> None:
        """More than the kernel may have; its children end soon, so that the next run meets a quiet kernel."""
        code = "import os, time\nwhile True:\n    if os.fork() == 0: time.sleep(.5); os._exit(0)"
        self.ends(self.kernel(), code, 1, "The kernel ran out of processes: its limit is 128")

    def test_destroyed(self) -> None:
        """Whoever waits for a run learns that its kernel was destroyed."""
        kernel = self.kernel()
        self.call("POST", kernel, {"mode": "query", "code": "import time; time.sleep(60)", "runId": "long-run"})
        answers: list[Answer] = []
        body = {"mode": "continue", "code": "", "runId": "long-run"}
        waiting = threading.Thread(target=lambda: answers.append(self.call("POST", kernel, body)))
        waiting.start()
        self.assertEqual(self.call("DELETE", kernel).status, 200)
        waiting.join()
        if answers[0].status == 200:  # it was sent before the kernel was gone
            self.assertEqual(answers[0].body["result"]["exitCode"], 130)
            self.assertIn("the kernel was destroyed", json.dumps(answers[0].body))
        else:
            self.assertEqual(answers[0].problem, (404, "kernel-not-found"))
        self.assertEqual(self.call("GET", kernel).problem, (404, "kernel-not-found"))
