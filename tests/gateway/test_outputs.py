"""Tests of reading a run's output from a number on: plainly, as server-sent events and over a WebSocket."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred

from sorna.errors import KernelNotFound, OutputGone, RunNotFound
from sorna.gateway.outputs import UNSURE, Follower, _OutputSession
from sorna.model.kernel import short_id
from sorna.model.run import OutputRequest, RunReply, RunStatus
from sorna.testing.gateway import EXAMPLE
from tests.gateway.base import OTHER, TOKEN, Answer, GatewayTestCase, MemorySocket

FINISHED, CONTINUED, WAITING = RunStatus.FINISHED, RunStatus.CONTINUED, RunStatus.WAITING_INPUT


def piece(status: RunStatus, first: int, text: str = "", missing: int = 0, size: int = 0) -> RunReply:
    console = (("stdout", text),) if text else ()
    return RunReply("run-1", status, console, first_seq=first, next_seq=first + (size or len(text)), missing=missing)


class OutputTestCase(GatewayTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.create()
        self.asked: list[OutputRequest] = []
        self.answers: list[RunReply | Exception] = []

        async def read(request: OutputRequest) -> RunReply:
            self.asked.append(request)
            if not self.answers:
                return await Deferred[RunReply]()
            answer = self.answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        self.kernels.on_read = read

    def get(self, query: str = "", **headers: str) -> Answer:
        changes = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
        return self.request("GET", f"/kernel/{TOKEN}/runs/run-1/output{query}", version=b"v4.20181215", changes=changes)


class PlainTests(OutputTestCase):
    def test_a_piece(self) -> None:
        """An answer says what was printed, what to ask for next, what is missing and whether that was all."""
        self.answers = [piece(CONTINUED, 7, "abc", missing=2)]
        answer = self.get("?from=5&wait=2.5")
        self.assertEqual(
            answer.json["result"],
            {
                "status": "continued",
                "runId": "run-1",
                "console": [["stdout", "abc"]],
                "exitCode": None,
                "options": {},
                "first": 7,
                "next": 10,
                "missing": 2,
                "end": False,
            },
        )
        self.assertEqual(self.asked, [OutputRequest("run-1", 5, 5, 2.5)])
        self.answers = [piece(FINISHED, 10)]
        self.assertTrue(self.get("?from=10").json["result"]["end"])

    def test_refusals(self) -> None:
        """Numbers that are none, too long waits and ids, and unknown runs are refused."""
        for query in (
            "?from=-1",
            "?from=x",
            "?from=%C2%B2",
            "?wait=-1",
            "?wait=31",
            "?wait=nan",
            "?wait=x",
            "?from=" + "9" * 17,
        ):
            self.assert_problem(self.get(query), 400, "invalid-api-params")
        self.assertEqual(self.asked, [])
        answer = self.request("GET", f"/v4/kernel/{TOKEN}/runs/{'x' * 65}/output")
        self.assert_problem(answer, 400, "invalid-api-params")
        for error, status, slug in (
            (RunNotFound("No run of this session has this run id."), 404, "run-not-found"),
            (OutputGone("it is not kept any more"), 410, "output-gone"),
            (KernelNotFound(), 404, "kernel-not-found"),
        ):
            self.answers = [error]
            self.assert_problem(self.get(), status, slug)

    def test_a_kernel_that_has_ended(self) -> None:
        """Its owner reads on, by the id or the token; nobody else does."""
        kernel_id = next(iter(self.kernels.live))
        self.assertEqual(self.request("DELETE", f"/v2/kernel/{TOKEN}").status, 200)
        for reference in (short_id(kernel_id), str(kernel_id), TOKEN):
            path = f"/v4/kernel/{reference}/runs/run-1/output"
            self.answers = [piece(FINISHED, 0, "last words")]
            self.assertEqual(self.request("GET", path).json["result"]["console"], [["stdout", "last words"]])
            self.assert_problem(self.request("GET", path, keypair=OTHER), 404, "kernel-not-found")
        self.assertEqual(self.answers, [])


class ServerSentTests(OutputTestCase):
    def events(self, body: bytes) -> list[dict[str, Any]]:
        found = []
        for block in body.decode().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
            if fields:
                found.append({**fields, "data": json.loads(fields["data"])})
        return found

    def test_a_stream(self) -> None:
        """Each event carries the number to go on from; the end is an event of its own, silence a comment."""
        self.answers = [
            piece(CONTINUED, 0, "ab"),
            piece(CONTINUED, 2),
            piece(WAITING, 2),
            piece(WAITING, 2),
            piece(FINISHED, 2, "c"),
        ]
        answer = self.get(Accept="text/event-stream")
        self.assertEqual((answer.status, answer.headers["content-type"]), (200, "text/event-stream; charset=utf-8"))
        told = [(one["id"], one["event"], one["data"]["status"]) for one in self.events(answer.body)]
        self.assertEqual(
            told, [("2", "output", "continued"), ("2", "output", "waiting-input"), ("3", "end", "finished")]
        )
        self.assertEqual(answer.body.count(b": alive"), 2)
        self.assertEqual([(one.seq, one.known) for one in self.asked][1:3], [(2, "continued"), (2, "continued")])
        self.assertEqual(self.asked[4].known, "waiting-input")

    def test_coming_back(self) -> None:
        """A client that lost its connection goes on from the last event it has, whatever its URL says."""
        self.answers = [piece(FINISHED, 5, "x")]
        self.get("?from=1", Accept="text/event-stream", Last_Event_ID="5")
        self.assertEqual((self.asked[0].seq, self.asked[0].acknowledged), (5, 5))

    def test_what_was_sent_is_not_taken_for_received(self) -> None:
        """Only what lies well before the last number may be forgotten."""
        self.answers = [
            piece(CONTINUED, 100, "x", size=UNSURE),
            piece(CONTINUED, 100 + UNSURE, "x", size=50),
            piece(FINISHED, 0),
        ]
        self.get("?from=100", Accept="text/event-stream")
        self.assertEqual([one.acknowledged for one in self.asked], [100, 100, 150])

    def test_errors(self) -> None:
        """What goes wrong before is a problem, and after an event."""
        self.answers = [KernelNotFound()]
        self.assert_problem(self.get(Accept="text/event-stream"), 404, "kernel-not-found")
        self.answers = [piece(CONTINUED, 0, "x"), KernelNotFound("terminated")]
        last = self.events(self.get(Accept="text/event-stream").body)[-1]
        self.assertEqual((last["event"], last["data"]), ("error", {"msg": "No such kernel. (terminated)"}))


class SocketTests(OutputTestCase):
    def open(self, first: RunReply) -> tuple[_OutputSession, MemorySocket]:
        follower = Follower(self.kernels, EXAMPLE.access_key, TOKEN, "run-1", 0)
        session, socket = _OutputSession(follower, first), MemorySocket()
        session.opened(socket)
        return session, socket

    def test_to_the_end(self) -> None:
        """Pieces are messages, and the connection closes behind the last."""
        self.answers = [piece(CONTINUED, 2), piece(FINISHED, 2, "c")]
        _session, socket = self.open(piece(CONTINUED, 0, "ab"))
        self.assertEqual([(one["next"], one["end"]) for one in socket.sent], [(2, False), (3, True)])
        self.assertIsNotNone(socket.closed_with)

    def test_slow_reader(self) -> None:
        """Nothing more is read while the client does not."""
        follower = Follower(self.kernels, EXAMPLE.access_key, TOKEN, "run-1", 0)
        session, socket = _OutputSession(follower, piece(CONTINUED, 0, "ab")), MemorySocket()
        socket.is_writable = False
        session.opened(socket)
        self.assertEqual(self.asked, [])
        socket.is_writable = True
        session.resumed()
        self.assertEqual(len(self.asked), 1)
        session.received("what ever")
        session.closed()

    def test_errors(self) -> None:
        """An error is told and closes; a fault of ours closes without a word."""
        for error, told in ((KernelNotFound(), 2), (ZeroDivisionError(), 1)):
            self.answers = [error]
            _session, socket = self.open(piece(CONTINUED, 0, "ab"))
            self.assertEqual(len(socket.sent), told)
            self.assertIsNotNone(socket.closed_with)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
