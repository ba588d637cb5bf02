"""Tests of runs over a WebSocket, on a socket and kernels in memory."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred

from sorna.errors import KernelExecutionFailed, KernelNotFound, Unavailable
from sorna.gateway.run_streams import MAX_LINES, MAX_TYPED, RunSession
from sorna.gateway.websockets import NORMAL, POLICY
from sorna.model.run import RunMode, RunReply, RunRequest, RunStatus
from sorna.testing.gateway import EXAMPLE
from tests.gateway.base import TOKEN, GatewayTestCase, MemorySocket

FINISHED, CONTINUED, WAITING = RunStatus.FINISHED, RunStatus.CONTINUED, RunStatus.WAITING_INPUT


class RunStreamTests(GatewayTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.create()
        self.calls: list[tuple[RunRequest, Deferred[RunReply]]] = []

        async def execute(request: RunRequest) -> RunReply:
            answer: Deferred[RunReply] = Deferred()
            self.calls.append((request, answer))
            return await answer

        self.kernels.on_execute = execute
        self.socket = MemorySocket()
        self.session = RunSession(self.kernels, EXAMPLE.access_key, TOKEN)
        self.session.opened(self.socket)

    def begin(self, **message: Any) -> RunRequest:
        self.session.received(json.dumps({"code": "x", "mode": "query", "options": {}, **message}))
        return self.calls[-1][0]

    def answer(self, status: RunStatus, text: str = "", at: int = -1, **more: Any) -> None:
        request, answer = self.calls[at]
        console = (("stdout", text),) if text else ()
        answer.callback(RunReply(request.run_id or "", status, console, **more))

    def test_query(self) -> None:
        """Output is told as it comes, an empty answer is not, and the end closes the connection."""
        first = self.begin()
        self.assertEqual((first.mode, first.code, first.eager), (RunMode.QUERY, "x", True))
        self.answer(CONTINUED, "one", next_seq=3)
        second = self.calls[-1][0]
        self.assertEqual((second.mode, second.code, second.run_id), (RunMode.CONTINUE, "", first.run_id))
        self.answer(CONTINUED)
        self.answer(FINISHED, "two", exit_code=0, next_seq=6)
        one, two = self.socket.sent
        run: dict[str, Any] = {"options": {}, "files": [], "runId": first.run_id}
        self.assertEqual(
            one, {"status": "continued", "console": [["stdout", "one"]], "exitCode": None, "next": 3, **run}
        )
        self.assertEqual(two, {"status": "finished", "console": [["stdout", "two"]], "exitCode": 0, "next": 6, **run})
        self.assertEqual(self.socket.closed_with, (NORMAL, ""))
        self.assertEqual(len(self.calls), 3)

    def test_batch(self) -> None:
        """The steps of a batch travel once; its build is told, and it goes on."""
        options = {"clean": "*", "build": "make", "buildLog": True, "exec": "./a"}
        request = self.begin(code="", mode="batch", options=options)
        self.assertEqual((request.build, request.exec, request.build_log), ("make", "./a", True))
        self.assertIsNone(request.clean)  # no runtime has one of its own
        self.answer(RunStatus.BUILD_FINISHED, exit_code=0)
        self.assertEqual(self.calls[-1][0].build, None)
        self.answer(FINISHED, exit_code=3)
        self.assertEqual([one["status"] for one in self.socket.sent], ["build-finished", "finished"])
        session = RunSession(self.kernels, EXAMPLE.access_key, TOKEN)
        session.opened(MemorySocket())
        session.received('{"mode": "batch", "options": {"clean": "make clean"}}')
        self.assertEqual(self.calls[-1][0].clean, "make clean")
        session.closed()

    def test_input(self) -> None:
        """A run that waits for a line gets the raw text of the next message."""
        self.begin()
        self.answer(WAITING, "name? ", options={"is_password": False})
        self.assertEqual(len(self.calls), 1)
        self.session.received('{"not": "json"')
        request = self.calls[-1][0]
        self.assertEqual((request.mode, request.code), (RunMode.INPUT, '{"not": "json"'))
        self.answer(FINISHED)
        self.assertEqual(self.socket.sent[0]["options"], {"is_password": False})

    def test_input_while_running(self) -> None:
        """A line that comes during a run is given to it at once; answers stay in order."""
        self.begin()
        self.session.received("early")
        self.session.received("later")
        request = self.calls[1][0]
        self.assertEqual((len(self.calls), request.mode, request.code, request.wait), (2, RunMode.INPUT, "early", 0.0))
        self.answer(CONTINUED, "second", at=1)
        self.assertEqual(self.socket.sent, [])
        self.answer(CONTINUED, "first", at=0)
        self.assertEqual([one["console"][0][1] for one in self.socket.sent], ["first", "second"])
        self.assertEqual(self.calls[2][0].code, "later")
        self.answer(FINISHED)
        self.assertEqual(self.socket.closed_with, (NORMAL, ""))

    def test_line_for_a_run_that_is_over(self) -> None:
        """A line that comes too late changes nothing about the end."""
        self.begin()
        self.session.received("late")
        self.answer(FINISHED, "end", at=0)
        self.calls[1][1].errback(KernelNotFound())
        self.assertEqual([one["status"] for one in self.socket.sent], ["finished"])
        self.assertEqual(self.socket.closed_with, (NORMAL, ""))

    def test_slow_reader(self) -> None:
        """Nothing is asked for while the client does not read."""
        self.begin()
        self.socket.is_writable = False
        self.answer(CONTINUED, "much")
        self.assertEqual(len(self.calls), 1)
        self.session.resumed()
        self.assertEqual(len(self.calls), 1)
        self.socket.is_writable = True
        self.session.resumed()
        self.assertEqual(len(self.calls), 2)

    def test_going_away(self) -> None:
        """A client that goes away cancels the call, which gives its output back, and leaves no error behind."""
        for lines in ([], ["typed"]):
            self.calls.clear()
            session = RunSession(self.kernels, EXAMPLE.access_key, TOKEN)
            session.opened(MemorySocket())
            session.received('{"code": "x", "mode": "query"}')
            for line in lines:
                session.received(line)
            session.closed()
            self.assertTrue(all(answer.called for _request, answer in self.calls))
        self.begin()
        self.answer(WAITING)
        self.session.closed()
        self.session.resumed()

    def test_bad_beginnings(self) -> None:
        """What is no request is answered with an error, and the connection closed."""
        for text in (
            "x",
            "[]",
            '{"mode": "input"}',
            '{"mode": 5}',
            '{"code": 1}',
            '{"code": "", "options": []}',
            "\ud800",
        ):
            session, socket = RunSession(self.kernels, EXAMPLE.access_key, TOKEN), MemorySocket()
            session.opened(socket)
            session.received(text)
            (message,) = socket.sent
            self.assertEqual((message["status"], socket.closed_with), ("error", (NORMAL, "")))
            self.assertIn("Missing or invalid API parameters. (", message["msg"])
        self.assertEqual(self.calls, [])

    def test_errors(self) -> None:
        """What goes wrong is told by its title; a server that stops says so, and a fault of ours says nothing more."""
        for error, status, words in (
            (KernelExecutionFailed(), "error", "Executing user code"),
            (KernelNotFound("terminated"), "error", "No such kernel. (terminated)"),
            (Unavailable("stopping"), "server-restarting", "stopping"),
            (ZeroDivisionError("secret"), "error", "Internal server error."),
        ):
            session, socket = RunSession(self.kernels, EXAMPLE.access_key, TOKEN), MemorySocket()
            session.opened(socket)
            session.received('{"code": "x"}')
            self.calls[-1][1].errback(error)
            (message,) = socket.sent
            self.assertEqual(message["status"], status)
            self.assertIn(words, message["msg"])
            self.assertNotIn("secret", message["msg"])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_restarting_server(self) -> None:
        """A server that stops says so in the words that clients know."""
        self.begin()
        self.session.going_away()
        (message,) = self.socket.sent
        self.assertEqual(message["status"], "server-restarting")
        self.session.closed()

    def test_bounds(self) -> None:
        """Whoever types without end is cut off."""
        for lines in (["x" * (MAX_TYPED + 1)], [""] * (MAX_LINES + 2)):
            session, socket = RunSession(self.kernels, EXAMPLE.access_key, TOKEN), MemorySocket()
            session.opened(socket)
            session.received('{"code": "x"}')
            for line in lines:
                session.received(line)
            assert socket.closed_with is not None
            self.assertEqual(socket.closed_with[0], POLICY)
            session.closed()
