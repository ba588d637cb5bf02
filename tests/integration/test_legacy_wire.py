"""Every wire example of the ZeroMQ interface's description, with plain REQ sockets against a whole server."""

from __future__ import annotations

import json
import re
from typing import Any, ClassVar

from sorna.testing.legacy import LegacyClient, legacy_context
from sorna.testing.server import RunningServer, running_server
from sorna.testing.unit import UnitTestCase

# One request frame and the reply frame as it was observed; names in angle brackets stand for what differs each time.
CREATE = '{"action": 2, "user_id": "test", "entry_id": "abcdef", "lang": "python34"}'
CREATED = (
    '{"reply": 200, "kernel_id": "<id>", "kernel_addr": "tcp://127.0.0.1:<port>", '
    '"stdin_addr": "tcp://127.0.0.1:<port>", "stdout_addr": "tcp://127.0.0.1:<port>"}'
)
MISSING = '{"reply": 400, "cause": "Missing API parameters."}'
MALFORMED = '{"reply": 400, "cause": "Malformed API request."}'
MANAGER_EXAMPLES = (
    ('{"action": 0, "body": "hello"}', '{"reply": 0, "body": "hello"}'),
    ('{"action": 0}', MISSING),
    ('{"action": 0, "body": {"x": [1, null, "한"]}}', '{"reply": 0, "body": {"x": [1, null, "한"]}}'),
    ('{"foo": 1}', MALFORMED),
    ("{}", MALFORMED),
    ("not json", MALFORMED),
    ('{"action": 1}', "{}"),
    ('{"action": 99, "x": 1}', "{}"),
    ('{"action": "PING", "body": "x"}', "{}"),
    ('{"action": 2, "user_id": "u"}', MISSING),
    (CREATE, CREATED),
    ('{"action": 3}', MISSING),
    ('{"action": 3, "kernel_id": "nope"}', '{"reply": 400, "cause": "No such kernel."}'),
)
RESULT = '{"stdout": "%s", "stderr": "%s", "media": [], "options": null, "exceptions": [%s], "files": []}'
EXECUTIONS: tuple[tuple[str, str, str], ...] = (
    (r'"print(\"hi\")\na=1"', "", '{"reply": 200, "result": ' + RESULT % (r"hi\n", "", "") + "}"),
    (
        '"a + "',
        "",
        '{"reply": 200, "result": '
        + RESULT % ("", "", r'["SyntaxError", ["invalid syntax", ["<input>", 1, 5, "a + \n"]], true, null]')
        + "}",
    ),
    (
        r'"raise ValueError(\"boo\", 3)"',
        "",
        '{"reply": 200, "result": ' + RESULT % ("", "", '["ValueError", ["boo", 3], false, null]') + "}",
    ),
    (
        r'"import sys; sys.stderr.write(\"err\")\nprint(a)"',
        r', "match": {"op": "equal", "target": "stdout", "value": "1\n"}',
        '{"match_result": true, "reply": 200, "result": ' + RESULT % (r"1\n", "err", "") + "}",
    ),
    (
        '"print(a)"',
        ', "match": {"op": "bogus", "target": "stdout", "value": "1"}',
        '{"reply": 500, "cause": "AssertionError: Invalid match operator."}',
    ),
)
EXECUTION_EXAMPLES = (
    (
        '{"action": 1, "entry_id": "e", "kernel_id": "nope", "cell_id": "1", "code": "1"}',
        '{"reply": 400, "cause": "Could not find such kernel."}',
    ),
    ('{"action": 7}', '{"reply": 400, "cause": "Invalid request."}'),
    ('{"action": 2, "lang": "cobol"}', '{"reply": 400, "cause": "Unsupported kernel language."}'),
    ('{"action": 0, "body": "hello"}', '{"reply": 0, "body": "hello"}'),
    (
        '{"action": 2, "lang": "python3"}',
        '{"reply": 200, "kernel_id": "<id>", "stdin_port": "<port>", "stdout_port": "<port>"}',
    ),
)
_STANDS_FOR = {"<id>": "[A-Za-z0-9_-]{22}", "<port>": "[0-9]{2,5}"}


class WireTestCase(UnitTestCase):
    """A server of its own, and a client of each port."""

    options: ClassVar[tuple[str, ...]] = ("--exec-timeout=2",)
    server: RunningServer
    manager: LegacyClient
    execution: LegacyClient

    def setUp(self) -> None:
        context = running_server(*self.options)
        self.server = context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)
        sockets = legacy_context()
        self.zmq = sockets.__enter__()
        self.addCleanup(sockets.__exit__, None, None, None)
        self.manager = LegacyClient(self.zmq, self.server.manager_port)
        self.execution = LegacyClient(self.zmq, self.server.execution_port)
        for client in (self.manager, self.execution):
            self.addCleanup(client.socket.close)

    def check(self, client: LegacyClient, request: str, expected: str) -> dict[str, Any]:
        """Send a frame and compare the reply byte for byte, but for what differs each time."""
        raw = client.exchange(request.encode()).decode("utf-8")
        pattern = re.escape(expected)
        for name, what in _STANDS_FOR.items():
            pattern = pattern.replace(re.escape(name), what)
        self.assertRegex(raw, f"^{pattern}$", request)
        reply: dict[str, Any] = json.loads(raw)
        return reply


class ExamplesTests(WireTestCase):
    def test_examples(self) -> None:
        """Every example of the description, in its order, on one session."""
        for request, expected in MANAGER_EXAMPLES:
            self.check(self.manager, request, expected)
        session = self.check(self.manager, CREATE, CREATED)
        self.assertEqual(session["kernel_addr"], f"tcp://127.0.0.1:{self.server.execution_port}")
        for code, match, expected in EXECUTIONS:
            head = (
                f'{{"action": 1, "entry_id": "abcdef", "kernel_id": "{session["kernel_id"]}", "cell_id": "1", "code": '
            )
            self.check(self.execution, f"{head}{code}{match}}}", expected)
        for request, expected in EXECUTION_EXAMPLES:
            last = self.check(self.execution, request, expected)
        for client, kernel_id in ((self.execution, last["kernel_id"]), (self.manager, session["kernel_id"])):
            destroy = f'{{"action": 3, "kernel_id": "{kernel_id}"}}'
            self.check(client, destroy, '{"reply": 200}')
            self.check(client, destroy, '{"reply": 400, "cause": "No such kernel."}')

    def test_life_of_a_session(self) -> None:
        """A time limit ends the kernel, the next request of the session gets another, a restart loses the state."""
        session = json.loads(CREATE)
        first = self.manager.ask(session)["kernel_id"]

        def execute(kernel_id: str, code: str) -> dict[str, Any]:
            return self.execution.ask(
                {"action": 1, "entry_id": "e", "kernel_id": kernel_id, "cell_id": "1", "code": code}
            )

        self.assertEqual(execute(first, "while True: pass"), {"reply": 500, "cause": "TimeoutError"})
        self.assertEqual(execute(first, "1"), {"reply": 400, "cause": "Could not find such kernel."})
        second = self.manager.ask(session)["kernel_id"]
        self.assertNotEqual(second, first)
        self.assertEqual(execute(second, "x = 5; input('name? ')")["result"]["exceptions"][0][0], "EOFError")
        self.assertEqual(execute(second, "x")["result"]["stdout"], "5\n")
        self.assertEqual(self.execution.ask({"action": 4, "kernel_id": second})["reply"], 200)
        self.assertEqual(execute(second, "x")["result"]["exceptions"][0][0], "NameError")
        self.assertEqual(execute(second, "import os, signal; os.kill(1, signal.SIGKILL)")["reply"], 200)

    def test_quota_is_the_keypairs(self) -> None:
        """Kernels of this door are on the quota of its keypair, and the cause of a full one is that of 2016."""
        replies = [
            self.manager.ask({"action": 2, "user_id": number, "entry_id": "e", "lang": "git"}) for number in range(31)
        ]
        self.assertEqual([reply["reply"] for reply in replies], [200] * 30 + [500])
        self.assertEqual(replies[-1]["cause"], "You cannot create more kernels.")
        self.assertEqual(self.manager.ask({"action": 3, "kernel_id": replies[0]["kernel_id"]}), {"reply": 200})
        self.assertEqual(self.manager.ask({"action": 2, "user_id": "x", "entry_id": "e", "lang": "git"})["reply"], 200)


class NoAgentTests(WireTestCase):
    options = ("--local-agent=no",)

    def test_no_agent(self) -> None:
        """Without an agent there is no instance."""
        request = '{"action": 2, "user_id": "u", "entry_id": "e", "lang": "python3"}'
        self.check(self.manager, request, '{"reply": 500, "cause": "There is no available instance."}')
