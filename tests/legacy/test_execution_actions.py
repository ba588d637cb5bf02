"""Requests to the execution address, over real sockets, with runs that do what a test says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import attrs
from twisted.internet.defer import Deferred, gatherResults

from sorna.errors import (
    AgentFailed,
    AgentTimeout,
    KernelExecutionFailed,
    KernelRestartFailed,
    NoAgentAvailable,
    Unavailable,
)
from sorna.legacy import execution
from sorna.model.run import RunException, RunMode, RunReply, RunRequest, RunStatus
from tests.legacy.door import SESSION, Client, DoorTestCase

FINISHED = RunReply("r", RunStatus.FINISHED, options={}, exit_code=0)
CONTINUED = RunReply("r", RunStatus.CONTINUED)


class ExecutionTestCase(DoorTestCase):
    """A session, and the runs' answers one after another."""

    async def begin(self, lang: str = "python3") -> Client:
        """Make a kernel and connect to the execution address."""
        self.kernel_id = (await self.manager().ask({**SESSION, "lang": lang}))["kernel_id"]
        return self.execution()

    def say(self, *replies: RunReply | Exception) -> None:
        """Let the calls to execute be answered so."""
        left = list(replies)

        async def answer(request: RunRequest) -> RunReply:
            reply = left.pop(0)
            if isinstance(reply, Exception):
                raise reply
            return attrs.evolve(reply, run_id=request.run_id or "")

        self.kernels.on_execute = answer

    @property
    def runs(self) -> Sequence[RunRequest]:
        """Give the calls that reached the kernel."""
        [kernel] = self.kernels.live.values()
        return kernel.runs

    def request(self, code: Any = "1", **fields: Any) -> dict[str, Any]:
        """Give an EXECUTE of the session's kernel."""
        return {"action": 1, "entry_id": "e", "kernel_id": self.kernel_id, "cell_id": "1", "code": code, **fields}


class ExecuteTests(ExecutionTestCase):
    async def test_pieces_are_put_together(self) -> None:
        """A run is followed to its end under one id of its own; text keeps its order within each stream."""
        client = await self.begin()
        self.say(
            attrs.evolve(CONTINUED, console=(("stdout", "a"), ("stderr", "x"), ("media", ["image/png", "P"]))),
            attrs.evolve(CONTINUED, console=(("html", "<b>"), ("stdout", "b"), ("log", ["info", "t", "l", "m"]))),
            attrs.evolve(
                FINISHED,
                console=(("stdout", "c"),),
                files=("f.txt",),
                exceptions=(RunException("ValueError", ["boo", 3], False, "Traceback"),),
            ),
        )
        self.assertEqual(
            await client.ask(self.request("code")),
            {
                "reply": 200,
                "result": {
                    "stdout": "abc",
                    "stderr": "x",
                    "media": [["image/png", "P"], ["text/html", "<b>"]],
                    "options": None,
                    "exceptions": [["ValueError", ["boo", 3], False, None]],
                    "files": ["f.txt"],
                },
            },
        )
        self.assertEqual([run.mode for run in self.runs], [RunMode.QUERY, RunMode.CONTINUE, RunMode.CONTINUE])
        self.assertEqual([run.code for run in self.runs], ["code", "", ""])
        self.assertEqual(len({run.run_id for run in self.runs}), 1)
        self.assertTrue(all(run.unattended and run.wait == execution.WAIT for run in self.runs))

    async def test_each_execution_is_a_run(self) -> None:
        """Executions at once have ids of their own, so that the kernel queues them."""
        client = await self.begin()
        await gatherResults([client.ask(self.request(str(number))) for number in range(10)])
        self.assertEqual(len({run.run_id for run in self.runs}), 10)

    async def test_too_much_output_is_cut(self) -> None:
        """A result is bounded, and says so."""
        client = await self.begin()
        half = "x" * (execution.MOST_RESULT // 2)
        self.say(
            attrs.evolve(CONTINUED, console=(("stdout", half), ("media", ["image/png", half + "y"]))),
            attrs.evolve(CONTINUED, console=(("stdout", half), ("stderr", "late"))),
            FINISHED,
        )
        result = (await client.ask(self.request()))["result"]
        self.assertEqual((len(result["stdout"]), result["media"]), (execution.MOST_RESULT, []))
        self.assertEqual(result["stderr"], "\nThe output was cut: a result holds 8 MiB.\n")

    async def test_time_limit(self) -> None:
        """A run that took too long ends its kernel; the next execution does not find it, the session gets another."""
        client = await self.begin()
        self.say(CONTINUED, attrs.evolve(FINISHED, timed_out=True, exit_code=124))
        self.assertEqual(await client.ask(self.request()), {"reply": 500, "cause": "TimeoutError"})
        unknown = {"reply": 400, "cause": "Could not find such kernel."}
        self.assertEqual(await client.ask(self.request()), unknown)
        self.assertNotEqual((await self.manager().ask(SESSION))["kernel_id"], self.kernel_id)

    async def test_time_limit_of_a_kernel_that_is_not_ended(self) -> None:
        """The client learns of the limit although ending the kernel failed."""
        client = await self.begin()
        self.say(attrs.evolve(FINISHED, timed_out=True))
        self.kernels.errors["destroy"] = Unavailable("x")
        self.assertEqual(await client.ask(self.request()), {"reply": 500, "cause": "TimeoutError"})

    async def test_errors_are_spelt_as_in_2016(self) -> None:
        """The name of the exception and its text, those of the agent's where it is one; a run that asks ends."""
        client = await self.begin()
        failed = KernelExecutionFailed()
        failed.__cause__ = AgentFailed("It broke.")
        silent = KernelExecutionFailed()
        silent.__cause__ = AgentTimeout()
        for error, cause in (
            (failed, "AgentFailed: It broke."),
            (silent, "AgentTimeout"),
            (Unavailable("The database is away."), "Unavailable: The database is away."),
            (attrs.evolve(FINISHED, status=RunStatus.WAITING_INPUT), "KernelExecutionFailed: The run cannot go on: "),
        ):
            self.say(error)
            reply = await client.ask(self.request())
            self.assertEqual(reply["reply"], 500)
            self.assertTrue(reply["cause"].startswith(cause), reply)

    async def test_wrong_requests(self) -> None:
        """Fields are wanted, kernels known, code is text; nothing of it stops the service as it did in 2016."""
        client = await self.begin()
        for name in ("entry_id", "kernel_id", "cell_id", "code"):
            request = {key: value for key, value in self.request().items() if key != name}
            self.assertEqual(await client.ask(request), {"reply": 400, "cause": "Missing API parameters."})
        self.assertEqual((await client.ask(self.request(3)))["cause"], "TypeError: The code must be a string.")
        for kernel_id in ("nope", None, 3, "u:e:python3", "A" * 22):
            reply = await client.ask({**self.request(), "kernel_id": kernel_id})
            self.assertEqual(reply, {"reply": 400, "cause": "Could not find such kernel."})
        for action in (5, -1, "1", None):
            self.assertEqual(await client.ask({"action": action}), {"reply": 400, "cause": "Invalid request."})
        self.assertEqual(await client.ask({"action": 0, "body": 2}), {"reply": 0, "body": 2})
        self.assertEqual(self.runs, [])

    async def test_what_json_cannot_carry(self) -> None:
        """A kernel that sends what no JSON can be is its own client's problem only."""
        client = await self.begin()
        self.say(attrs.evolve(FINISHED, console=(("media", ["x", float("inf")]),)))
        self.assertEqual((await client.ask(self.request()))["reply"], 500)

    async def test_match(self) -> None:
        """The result of the match comes first; a bad match is an error after the code was run."""
        client = await self.begin()
        wish = {"op": "contains", "target": "stdout", "value": "print"}
        reply = await client.ask(self.request("print(1)", match=wish))
        self.assertEqual((list(reply), reply["match_result"]), (["match_result", "reply", "result"], True))
        reply = await client.ask(self.request("x", match={**wish, "op": "regex", "value": "^(p|q)"}))
        self.assertIs(reply["match_result"], False)
        self.assertNotIn("match_result", await client.ask(self.request(match=None)))
        reply = await client.ask(self.request(match={**wish, "op": "bogus"}))
        self.assertEqual(reply, {"reply": 500, "cause": "AssertionError: Invalid match operator."})
        reply = await client.ask(self.request(match={**wish, "op": "regex", "value": "("}))
        self.assertTrue(reply["cause"].startswith("error: "), reply)
        self.assertEqual(len(self.runs), 5)


class LifeTests(ExecutionTestCase):
    async def test_kernel_without_session(self) -> None:
        """CREATE_KERNEL makes a new kernel each time, and names its ports as text."""
        client = self.execution()
        first, second = [await client.ask({"action": 2, "lang": "python"}) for _ in range(2)]
        self.assertEqual(list(first), ["reply", "kernel_id", "stdin_port", "stdout_port"])
        self.assertNotEqual(first["kernel_id"], second["kernel_id"])
        self.assertTrue(all(int(first[name]) > 0 for name in ("stdin_port", "stdout_port")))
        self.assertEqual(await client.ask({"action": 3, "kernel_id": first["kernel_id"]}), {"reply": 200})
        gone = {"reply": 400, "cause": "No such kernel."}
        self.assertEqual(await client.ask({"action": 3, "kernel_id": first["kernel_id"]}), gone)
        self.assertEqual(await client.ask({"action": 4, "kernel_id": first["kernel_id"]}), gone)

    async def test_creation_errors(self) -> None:
        """An unknown runtime is the client's fault here, unlike at the other port."""
        client = self.execution()
        for lang in ("cobol", None, 1, json.loads("[" * 900 + "]" * 900)):
            reply = await client.ask({"action": 2, "lang": lang})
            self.assertEqual(reply, {"reply": 400, "cause": "Unsupported kernel language."})
        self.kernels.errors["create"] = NoAgentAvailable()
        reply = await client.ask({"action": 2, "lang": "c"})
        self.assertEqual(reply, {"reply": 500, "cause": "There is no available instance."})

    async def test_restart(self) -> None:
        """A restarted kernel keeps its id and its ports."""
        client = await self.begin()
        reply = await client.ask({"action": 4, "kernel_id": self.kernel_id})
        self.assertEqual((list(reply), reply["reply"]), (["reply", "stdin_port", "stdout_port"], 200))
        again = await self.manager().ask(SESSION)
        self.assertTrue(again["stdin_addr"].endswith(f":{reply['stdin_port']}"))
        self.kernels.errors["restart"] = KernelRestartFailed("Another request restarts it.")
        reply = await client.ask({"action": 4, "kernel_id": self.kernel_id})
        self.assertEqual(reply, {"reply": 500, "cause": "KernelRestartFailed: Another request restarts it."})


class ControlTests(ExecutionTestCase):
    async def test_only_where_it_cannot_be_code(self) -> None:
        """Code that begins with a percent sign is code in every runtime but the terminal's own."""
        client = await self.begin()
        self.assertEqual((await client.ask(self.request("%ping")))["result"]["stdout"], "%ping")

    async def test_commands(self) -> None:
        """The commands answer in the words of 2016, and their size reaches the terminal."""
        client = await self.begin("git")
        for code, stdout, stderr in (
            ("%ping", "pong!", ""),
            ("%resize 30 100", "OK; terminal resized to 30 rows and 100 cols", ""),
            ("%resize 0 99999", "OK; terminal resized to 1 rows and 1000 cols", ""),
            ("%resize 30", "", "Invalid command."),
            ("%reboot", "", "Invalid command."),
        ):
            result = (await client.ask(self.request(code)))["result"]
            self.assertEqual((result["stdout"], result["stderr"]), (stdout, stderr), code)
            self.assertEqual(result["options"], {"upload_output_files": False})
        self.assertEqual(self.runs, [])
        self.assertEqual((await client.ask(self.request("echo 1")))["result"]["stdout"], "echo 1")

    async def test_paths_never_reach_a_shell(self) -> None:
        """What a client names travels as hexadecimal bytes."""
        client = await self.begin("git")
        self.say(attrs.evolve(FINISHED, console=(("stdout", "/home/work/a\nx"),)), FINISHED)
        path = "$(reboot); `id`\n'\"한"
        result = (await client.ask(self.request(f"%chdir {path}")))["result"]
        self.assertEqual(result["stdout"], "OK; changed working directory to /home/work/a")
        self.assertNotIn("reboot", self.runs[0].code)
        self.assertIn("".join(f"\\x{byte:02x}" for byte in path.encode()), self.runs[0].code)
        await client.ask(self.request("%show graph"))
        self.assertIn("".join(f"\\x{byte:02x}" for byte in b"/home/work/a"), self.runs[1].code)

    async def test_graph(self) -> None:
        """The commits come as JSON in a media record; what git says on stderr is passed on."""
        client = await self.begin("git")
        log = "a1\x1fb2 c3\x1fA B\x1f2016-10-25T00:00:00Z\x1fHEAD -> main, v1\x1fsubject\n\nbody\n\x1e\nb2\x1f\x1fC\x1fd\x1f\x1fm\x1e\n"
        self.say(
            attrs.evolve(FINISHED, console=(("stdout", log),)), attrs.evolve(FINISHED, console=(("stderr", "fatal"),))
        )
        [[mime, text]] = (await client.ask(self.request("%show graph .")))["result"]["media"]
        self.assertEqual(mime, "application/vnd.sorna.gitgraph")
        first, second = json.loads(text)
        self.assertEqual((first["oid"], first["parents"], first["refs"]), ("a1", ["b2", "c3"], ["HEAD -> main", "v1"]))
        self.assertEqual((second["parents"], second["refs"], second["message"]), ([], [], "m"))
        self.assertEqual((await client.ask(self.request("%show graph")))["result"]["stderr"], "fatal")


class CancelledTests(ExecutionTestCase):
    async def test_client_that_left(self) -> None:
        """A client that goes away takes nobody with it, and its run goes on to its end."""
        client = await self.begin()
        gate: Deferred[RunReply] = Deferred()
        self.kernels.on_execute = lambda _request: gate
        waiting = client.ask(self.request())
        waiting.addErrback(lambda _failure: None)
        await self.eventually(lambda: bool(self.runs))
        client.socket.shutdown()
        gate.callback(FINISHED)
        self.assertEqual((await self.execution().ask({"action": 0, "body": 1}))["reply"], 0)
        waiting.cancel()
