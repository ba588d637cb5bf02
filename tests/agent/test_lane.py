"""The agent's side of a lane: what it sends init and the REPL, and what it believes of them."""

from __future__ import annotations

import json
import socket
from typing import Any

from sorna.agent.kernel_files import to_json
from sorna.agent.runners import frames, repl_link
from sorna.model.run import RunMode, RunRequest, RunStatus
from tests.agent.fakes import FakeKernel, FakeLane, KernelTestCase, poll, query, text_of, typed


class LaneTestCase(KernelTestCase):
    """Kernels whose REPL takes lanes."""

    def setUp(self) -> None:
        super().setUp()
        self.sandbox.has_lanes = True

    def both(self, **limits: Any) -> tuple[FakeKernel, FakeLane]:
        """Make a kernel and give both its sides."""
        init = self.create(**limits)
        assert init.lane is not None
        return init, init.lane

    def about(self, init: FakeKernel, *kinds: int) -> list[int]:
        """Give the kinds of frames that init was sent, of these."""
        return [kind for kind, _payload in init.received if kind in kinds]


class RunTests(LaneTestCase):
    """Runs."""

    def test_short_cut(self) -> None:
        """A run, its last words and its end pass init by; the next one follows."""
        init, lane = self.both()
        answers = [self.execute(query("1+1")), self.execute(query("2+2", "b"))]
        self.assertEqual(lane.received[-1], (repl_link.EXECUTE, b"1\x001+1"))
        for answer, words in zip(answers, ("2\n", "4\n"), strict=True):
            lane.end(
                words, exceptions=[{"name": "E", "args": [], "before_exec": False, "traceback": None}], files=["f"]
            )
            self.flow()
            reply = self.successResultOf(answer)
            self.assertEqual((reply.status, text_of(reply), reply.exit_code), (RunStatus.FINISHED, words, 0))
            self.assertEqual((reply.files, [one.name for one in reply.exceptions]), (("f",), ["E"]))
        self.assertEqual(self.about(init, frames.RUN, frames.UNDER_WAY, frames.OVER), [])

    def test_what_it_is_not_for(self) -> None:
        """Scripts, blank code and other languages go to init; an unattended run says so."""
        init, lane = self.both()
        self.execute(RunRequest(RunMode.BATCH, exec="true", wait=0))
        self.flow()
        init.finish()
        self.execute(query(" ", wait=0))
        self.flow()
        init.finish()
        self.execute(RunRequest(RunMode.QUERY, "1", wait=0, unattended=True))
        self.assertEqual((len(init.sent(frames.RUN)), lane.received[-1][0]), (2, repl_link.EXECUTE_UNATTENDED))
        self.create("c")
        self.execute(query("x", wait=0))
        self.assertEqual(self.about(self.sandbox.kernels[-1], frames.LANE), [])

    def test_environment(self) -> None:
        """It goes to both, to each with the first of what it has to do, and init learns that it need not hand it on."""
        init, lane = self.both()
        self.assertEqual((init.sent(frames.ASSIGN), lane.received), ([], []))
        self.execute(query("1", wait=0))
        self.assertEqual(init.sent(frames.ASSIGN), [])
        self.start(self.kernels.interrupt(self.kernel_id))
        (assign,) = init.sent(frames.ASSIGN)
        self.assertEqual(assign["lane"], 1)
        self.assertEqual(lane.received[0], (repl_link.ENVIRON, to_json(assign["environ"])))
        self.assertEqual([kind for kind, _payload in lane.received], [repl_link.ENVIRON, repl_link.EXECUTE])

    def test_environment_without_a_lane(self) -> None:
        """Init, told before a script, hands on what the REPL has not heard; one that hears it over the lane does so first."""
        init, lane = self.both()
        lane.socket.close()
        self.flow()
        self.execute(query("1", wait=0))
        self.assertEqual(init.sent(frames.ASSIGN)[0]["lane"], 0)
        init, lane = self.both()
        self.execute(RunRequest(RunMode.BATCH, exec="true", wait=0))
        self.assertEqual((init.sent(frames.ASSIGN)[0]["lane"], lane.received[0][0]), (1, repl_link.ENVIRON))

    def test_end_by_init(self) -> None:
        """A run of the lane whose output went through init ends there, behind it."""
        init, _lane = self.both()
        answer = self.execute(query("print(1)"))
        init.print("1\n")
        end = {"run": "1", "exit_code": 0, "exceptions": [], "files": [], "reset": False}
        init.say(frames.FINISHED, end)
        self.flow()
        self.assertEqual(text_of(self.successResultOf(answer)), "1\n")

    def test_too_many_last_words(self) -> None:
        """The limit of a run's output counts for them."""
        init, lane = self.both(output_size=4)
        answer = self.execute(query("'x' * 10"))
        lane.end("0123456789")
        self.flow()
        reply = self.successResultOf(answer)
        self.assertEqual((text_of(reply), self.about(init, frames.KILL_RUN)), ("0123", []))
        self.assertIn("more than its limit of 4 bytes", text_of(reply, "stderr"))
        self.assertNotEqual(reply.exit_code, 0)

    def test_words_about_other_runs(self) -> None:
        """They are passed over, before, in and after a run."""
        _init, lane = self.both()
        self.execute(query("1", "a", wait=0))
        lane.end("no", run="77")
        self.flow()
        self.assertEqual(self.reply(poll("a", wait=0)).status, RunStatus.CONTINUED)
        lane.end("yes")
        lane.end("twice")
        self.flow()
        reply = self.reply(poll("a", wait=0))
        self.assertEqual((reply.status, text_of(reply)), (RunStatus.FINISHED, "yes"))


class InitTests(LaneTestCase):
    """What init has to hear first."""

    def test_before_anything_about_the_run(self) -> None:
        """It learns of the run once, before input, interrupts, completions and restarts."""
        init, _lane = self.both()
        self.execute(query("input()", "a", wait=0))
        self.assertEqual(self.about(init, frames.UNDER_WAY), [])
        self.execute(typed("x", "a", wait=0))
        self.start(self.kernels.interrupt(self.kernel_id))
        self.start(self.kernels.complete(self.kernel_id, "a", {})).addErrback(lambda _failure: None)
        kinds = (frames.UNDER_WAY, frames.INPUT, frames.INTERRUPT, frames.COMPLETE)
        self.assertEqual(self.about(init, *kinds), list(kinds))
        self.assertEqual(init.sent(frames.UNDER_WAY), [{"run": "1", "lane": 1, "unattended": False, "since": 0.0}])

    def test_nothing_about_no_run(self) -> None:
        """Between runs there is nothing to learn."""
        init, lane = self.both()
        self.execute(query("1", wait=0))
        lane.end()
        self.flow()
        self.start(self.kernels.interrupt(self.kernel_id))
        self.assertEqual(self.about(init, frames.UNDER_WAY), [])

    def test_end_goes_back(self) -> None:
        """What the REPL says of a run that init knows of is for init to tell."""
        init, lane = self.both()
        self.execute(query("1", "a", wait=0))
        self.start(self.kernels.interrupt(self.kernel_id))
        lane.end("words")
        self.flow()
        self.assertEqual(self.reply(poll("a", wait=0)).status, RunStatus.CONTINUED)
        header, _nul, words = init.received[-1][1].partition(b"\0")
        self.assertEqual((init.received[-1][0], words), (frames.OVER, b"words"))
        init.say(frames.FINISHED, json.loads(header))
        self.flow()
        self.assertEqual(self.reply(poll("a", wait=0)).status, RunStatus.FINISHED)

    def test_time_limit(self) -> None:
        """A run that passes its limit is ended by init, which is told of it."""
        init, lane = self.both(execution_timeout=5.0)
        answer = self.execute(query("while True: pass", wait=10))
        self.advance(5.1)
        self.assertEqual(self.about(init, frames.UNDER_WAY, frames.KILL_RUN), [frames.UNDER_WAY, frames.KILL_RUN])
        lane.socket.close()
        end = {"run": "1", "exit_code": 137, "exceptions": [], "files": [], "reset": True, "signal": 9}
        init.say(frames.FINISHED, end)
        self.flow()
        self.assertTrue(self.successResultOf(answer).timed_out)


class LeavingTests(LaneTestCase):
    """Ends of lanes."""

    def test_closed_between_runs(self) -> None:
        """The next run goes to init, and a new lane with it."""
        init, lane = self.both()
        lane.socket.close()
        self.flow()
        self.execute(query("1", wait=0))
        self.assertEqual(init.sent(frames.RUN)[-1]["code"], "1")
        self.assertEqual(init.sent(frames.LANE), [{"lane": 1}, {"lane": 2}])
        init.finish()
        self.flow()
        self.execute(query("2", wait=0))
        assert init.lane is not None
        self.assertEqual(init.lane.received[-1], (repl_link.EXECUTE, b"2\x002"))

    def test_repl_that_died_in_a_run(self) -> None:
        """Init, which knew of no run, is told that one has ended with the REPL, and says its end."""
        init, lane = self.both()
        answer = self.execute(query("crash()"))
        lane.socket.close()
        init.print("before")
        init.say(frames.RESTARTED, {"reason": "It was killed", "exit_code": 139, "signal": 11})
        self.flow()
        self.assertNoResult(answer)
        kind, payload = init.received[-1]
        end = json.loads(payload.partition(b"\0")[0])
        self.assertEqual(
            (kind, end["run"], end["exit_code"], end["signal"], end["reset"]), (frames.OVER, "1", 139, 11, True)
        )
        init.say(frames.FINISHED, {**end, "files": ["f"]})
        self.flow()
        reply = self.successResultOf(answer)
        self.assertEqual((text_of(reply), reply.exit_code, reply.files), ("before", 139, ("f",)))
        self.assertEqual(text_of(reply, "stderr"), "It was killed; its state is lost.\n")

    def test_lane_that_somebody_holds(self) -> None:
        """Where there is another REPL, nothing goes over the old one's lane, whoever still has its end."""
        init, lane = self.both()
        held = lane.socket.dup()
        self.addCleanup(held.close)
        init.say(frames.RESTARTED, {"reason": "It was killed", "exit_code": 137, "signal": 9})
        self.flow()
        self.execute(query("1", wait=0))
        self.assertEqual(init.sent(frames.RUN)[-1]["code"], "1")
        init.finish(reset=True)
        self.flow()
        self.execute(query("2", wait=0))
        self.assertEqual((init.sent(frames.RUN)[-1]["code"], init.sent(frames.LANE)[-1]), ("2", {"lane": 3}))
        init.finish()
        self.flow()
        restarted = self.start(self.kernels.restart_kernel(self.kernel_id))
        init.say(frames.REPLY, {"request": init.sent(frames.RESTART)[-1]["request"], "error": None, "result": None})
        self.flow()
        self.successResultOf(restarted)
        self.execute(query("3", wait=0))
        self.assertEqual((init.sent(frames.RUN)[-1]["code"], init.sent(frames.LANE)[-1]), ("3", {"lane": 4}))
        self.assertEqual(lane.received, [])

    def test_repl_that_died_behind_its_end(self) -> None:
        """An end that was said counts, though the news of the death is read first."""
        init, lane = self.both()
        answer = self.execute(query("1"))
        lane.end("1\n")
        lane.socket.close()
        init.say(frames.RESTARTED, {"reason": "It was killed", "exit_code": 137, "signal": 9})
        for reader in sorted(self.clock.readers, key=lambda one: getattr(one, "_socket", None) is not init.channel):
            if reader in self.clock.readers and self._readable(reader.fileno()):
                reader.doRead()
        self.flow()
        reply = self.successResultOf(answer)
        self.assertEqual((reply.exit_code, text_of(reply)), (0, "1\n"))
        self.assertEqual(self.about(init, frames.OVER), [])

    @staticmethod
    def _readable(descriptor: int) -> bool:
        with socket.socket(fileno=socket.dup(descriptor)) as copy:
            copy.setblocking(False)
            try:
                copy.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                return False
            return True

    def test_nonsense(self) -> None:
        """It ends the kernel, as it would on the channel."""
        for payload in (
            b"",
            b"{}\0",
            b"not json\0",
            b'{"run": "1", "exit_code": "x", "exceptions": [], "files": []}\0',
        ):
            init, lane = self.both()
            answer = self.execute(query("1"))
            lane.say(repl_link.ENDED, payload)
            self.flow()
            self.assertEqual((init.kills, self.news.ended.pop()[1]), (1, "protocol-error"), payload)
            self.successResultOf(answer)

    def test_end_of_the_kernel(self) -> None:
        """A run that was over before the kernel ended has its own end."""
        init, lane = self.both()
        answer = self.execute(query("1"))
        lane.end("1\n")
        init.exit(-9)
        reply = self.successResultOf(answer)
        self.assertEqual((reply.exit_code, text_of(reply)), (0, "1\n"))

    def test_next_program(self) -> None:
        """An agent that gives way leaves the lane, and the run, though its end has come, to init."""
        init, lane = self.both()
        self.execute(query("1", "a", wait=0))
        lane.end("1\n")
        [kernel] = self.kernels.live().values()
        state = kernel.carry()
        self.assertEqual((state["lane"], [run["state"] for run in state["runs"]["runs"]]), (True, ["running"]))
        init.read()
        self.assertEqual(self.about(init, frames.UNDER_WAY, frames.OVER), [frames.UNDER_WAY, frames.OVER])
        with self.assertRaises(BrokenPipeError):
            lane.say(repl_link.WARM, b"")
        socket.socket(fileno=state["channel"]["descriptor"]).close()
