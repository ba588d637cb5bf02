"""One kernel's ends, restarts and requests, on a tier without processes and a clock."""

from __future__ import annotations

import uuid

from sorna.agent import kernel as module
from sorna.agent.runners import frames
from sorna.agent.runs import GATHER
from sorna.errors import AgentFailed, KernelNotFound
from sorna.model.kernel import short_id
from sorna.model.limits import MIB
from sorna.model.run import RunStatus
from tests.agent.fakes import USAGE, KernelTestCase, poll, query, spec, text_of


class EndTests(KernelTestCase):
    """How kernels end."""

    def test_destroy_during_a_run(self) -> None:
        """The waiting call gets all output and 130; destroying returns when the processes are gone."""
        init = self.create()
        init.obedient = False
        answer = self.execute(query())
        queued = self.execute(query("B", "b"))
        init.print("last")
        destroyed = self.start(self.kernels.destroy_kernel(self.kernel_id, "user-requested"))
        self.assertNoResult(destroyed)
        self.assertNoResult(answer)
        init.exit(-9)
        self.assertEqual(self.successResultOf(destroyed), USAGE)
        reply = self.successResultOf(answer)
        self.assertEqual((reply.status, reply.exit_code, text_of(reply)), (RunStatus.FINISHED, 130, "last"))
        self.assertIn("user-requested", text_of(reply, "stderr"))
        self.assertEqual(self.successResultOf(queued).exit_code, 130)
        self.assertEqual(self.news.ended, [])

    def test_destroy_is_idempotent(self) -> None:
        """Two destroys share the end, a late one gets the same usage, an unknown id is an error."""
        init = self.create()
        init.obedient = False
        both = [self.start(self.kernels.destroy_kernel(self.kernel_id, "x")) for _ in range(2)]
        init.exit(-9)
        self.assertEqual([self.successResultOf(one) for one in both], [USAGE, USAGE])
        self.assertEqual(self.successResultOf(self.start(self.kernels.destroy_kernel(self.kernel_id, "x"))), USAGE)
        self.failureResultOf(self.start(self.kernels.destroy_kernel(uuid.UUID(int=99), "x")), KernelNotFound)

    def test_processes_that_do_not_end(self) -> None:
        """A destroy gives up after its deadline; the place stays taken until the processes are gone."""
        init = self.create()
        init.obedient = False
        destroyed = self.start(self.kernels.destroy_kernel(self.kernel_id, "x"))
        self.advance(8.1)
        self.agent_failed(destroyed)
        self.assertEqual(self.kernels.occupied, 1)
        init.exit(-9)
        self.assertEqual(self.kernels.occupied, 0)

    def test_crash(self) -> None:
        """Init that dies ends its runs and is news."""
        init = self.create()
        answer = self.execute(query())
        init.exit(1)
        reply = self.successResultOf(answer)
        self.assertEqual((reply.status, reply.exit_code), (RunStatus.FINISHED, 130))
        self.assertIn("unexpectedly (exit status 1)", text_of(reply, "stderr"))
        self.assertEqual(self.news.ended, [(self.kernel_id, "crashed", USAGE)])

    def test_killed_from_outside(self) -> None:
        """Init killed by somebody gives its run 137."""
        init = self.create()
        answer = self.execute(query())
        init.exit(-9)
        self.assertEqual(self.successResultOf(answer).exit_code, 137)

    def test_kernel_out_of_memory(self) -> None:
        """Init that fell to the memory limit is told apart from a crash."""
        init = self.create(memory=128 * MIB)
        answer = self.execute(query())
        init.exit(-9, out_of_memory=True)
        reply = self.successResultOf(answer)
        self.assertEqual(reply.exit_code, 137)
        self.assertIn("128 MiB of memory", text_of(reply, "stderr"))
        self.assertEqual(self.news.ended[0][1], "out-of-memory")

    def test_end_is_read_by_a_later_call(self) -> None:
        """What a kernel said before it died is read by a call that comes after; then the kernel is unknown."""
        init = self.create()
        self.execute(query("A", "a", wait=0))
        init.print("last words")
        init.exit(1)
        reply = self.reply(poll("a"))
        self.assertEqual((text_of(reply), reply.status, reply.exit_code), ("last words", RunStatus.FINISHED, 130))
        self.failureResultOf(self.execute(query("B")), KernelNotFound)

    def test_channel_closed_by_the_kernel(self) -> None:
        """Init that closes its channel is killed."""
        init = self.create()
        init.peer.close()
        init.gone = True
        init.obedient = False
        self.clock.serve()
        self.assertEqual(init.kills, 1)
        init.gone = False
        init.exit(-9)
        self.assertEqual(self.news.ended[0][1], "crashed")

    def test_protocol_errors(self) -> None:
        """Nonsense on the channel ends the kernel."""
        nonsense = (
            (200, b""),
            (frames.FINISHED, b"not json"),
            (frames.FINISHED, b'{"run": "1"}'),
            (frames.FINISHED, b"[1]"),
            (frames.EMIT, b'["media"]'),
            (frames.EMIT, b"[" * 100_000),
            (frames.REPLY, b'{"request": "x"}'),
            (frames.WAITING_INPUT, b"\xff"),
        )
        for kind, payload in nonsense:
            init = self.create()
            answer = self.execute(query())
            init.say(kind, payload)
            self.flow()
            self.assertEqual(self.news.ended[-1][1:], ("protocol-error", USAGE), (kind, payload[:20]))
            self.assertEqual(self.successResultOf(answer).status, RunStatus.FINISHED)

    def test_output_without_credit(self) -> None:
        """Init that ignores its credit does not fill the agent's memory."""
        init = self.create()
        self.reply(query(wait=0))
        for _ in range(100):
            if init.gone:
                break
            init.print(b"x" * 60_000)
            self.flow()
        self.assertEqual(self.news.ended[0][1], "protocol-error")
        self.assertLess(-init.credit, 2 * GATHER)

    def test_announced_frame_too_large(self) -> None:
        """A frame beyond the bound is refused by its header."""
        init = self.create()
        init.peer.send(frames.HEADER.pack(frames.MAX_PAYLOAD + 1, frames.STDOUT))
        self.flow()
        self.assertEqual(self.news.ended[0][1], "protocol-error")


class RestartTests(KernelTestCase):
    """Restarting."""

    def test_restart_during_a_run(self) -> None:
        """The run and those behind it end with 130; what comes later starts on a fresh state."""
        init = self.create()
        answer = self.execute(query("A", "a"))
        queued = self.execute(query("B", "b"))
        restarted = self.start(self.kernels.restart_kernel(self.kernel_id))
        again = self.start(self.kernels.restart_kernel(self.kernel_id))
        later = self.execute(query("C", "c"))
        self.assertEqual(len(init.sent(frames.RESTART)), 1)
        init.print("dying")
        init.finish(137, signal=9, reset=True)
        init.say(frames.REPLY, {"request": init.sent(frames.RESTART)[0]["request"], "error": None, "result": None})
        self.flow()
        self.successResultOf(restarted)
        self.successResultOf(again)
        reply = self.successResultOf(answer)
        self.assertEqual((reply.status, reply.exit_code, text_of(reply)), (RunStatus.FINISHED, 130, "dying"))
        self.assertIn("restarted", text_of(reply, "stderr"))
        self.assertEqual(self.successResultOf(queued).exit_code, 130)
        # C was queued while the restart went on: it is of the old session's queue.
        self.assertEqual(self.successResultOf(later).exit_code, 130)
        fresh = self.execute(query("D"))
        init.finish()
        self.flow()
        self.assertEqual(self.successResultOf(fresh).exit_code, 0)

    def test_restart_without_finished(self) -> None:
        """A run that init does not speak of any more is ended by the restart's reply."""
        init = self.create()
        answer = self.execute(query("A"))
        restarted = self.start(self.kernels.restart_kernel(self.kernel_id))
        init.say(frames.REPLY, {"request": 1, "error": None, "result": None})
        self.flow()
        self.successResultOf(restarted)
        self.assertEqual(self.successResultOf(answer).exit_code, 130)

    def test_restart_that_never_comes(self) -> None:
        """A kernel that does not restart is killed."""
        init = self.create()
        restarted = self.start(self.kernels.restart_kernel(self.kernel_id))
        self.advance(module.RESTART_DEADLINE)
        self.agent_failed(restarted)
        self.assertEqual((init.kills, self.news.ended[0][1]), (1, "stuck"))


class RequestTests(KernelTestCase):
    """Uploads, completions, interrupts, logs."""

    def test_complete(self) -> None:
        """Completions pass through; options of a wrong type count as missing."""
        init = self.create()
        found = self.start(
            self.kernels.complete(self.kernel_id, "pri", {"row": 1, "col": "x", "line": "pri", "more": 1})
        )
        self.assertEqual(
            init.sent(frames.COMPLETE),
            [{"request": 1, "code": "pri", "row": 1, "col": 0, "line": "pri", "post": ""}],
        )
        init.say(frames.REPLY, {"request": 1, "error": None, "result": ["print("]})
        self.flow()
        self.assertEqual(self.successResultOf(found), ["print("])

    def test_completions_that_are_none(self) -> None:
        """A result of another type is an error, not a crash."""
        init = self.create()
        found = self.start(self.kernels.complete(self.kernel_id, "pri", {}))
        init.say(frames.REPLY, {"request": 1, "error": None, "result": {"a": 1}})
        self.flow()
        self.agent_failed(found)

    def test_requests_of_a_kernel_that_dies(self) -> None:
        """What was asked of a kernel that dies fails at once."""
        init = self.create()
        found = self.start(self.kernels.complete(self.kernel_id, "", {}))
        init.exit(1)
        self.assertIn("crashed", self.agent_failed(found).detail)

    def test_interrupt(self) -> None:
        """An interrupt is a frame."""
        init = self.create()
        self.successResultOf(self.start(self.kernels.interrupt(self.kernel_id)))
        self.assertEqual(init.sent(frames.INTERRUPT), [{}])

    def test_logs_and_usage(self) -> None:
        """The log has what was printed, of both streams; usage is the tier's."""
        init = self.create()
        init.print("a\n")
        init.print("b\n", frames.STDERR)
        self.flow()
        self.assertEqual(self.successResultOf(self.start(self.kernels.logs(self.kernel_id))), "a\nb\n")
        self.assertEqual(self.successResultOf(self.start(self.kernels.usage(self.kernel_id))), USAGE)

    def test_surrogates_in_code(self) -> None:
        """Code with characters that no UTF-8 has still reaches init."""
        init = self.create()
        self.execute(query("'\ud800é'", wait=0))
        self.assertEqual(init.sent(frames.RUN)[0]["code"], "'\ud800é'")

    def test_what_the_link_cannot_carry(self) -> None:
        """Lone surrogates and huge numbers of user code become text that travels."""
        init = self.create()
        answer = self.execute(query())
        init.say(frames.EMIT, b'["html", "\\ud800x"]')
        error = {
            "name": "E\ud800",
            "args": [1 << 70, float("nan"), {"a": [True, None]}],
            "before_exec": False,
            "traceback": None,
        }
        init.finish(1, exceptions=[error], files=["\udcff.txt"])
        self.flow()
        reply = self.successResultOf(answer)
        self.assertEqual(reply.console, (("html", "?x"),))
        (found,) = reply.exceptions
        self.assertEqual((found.name, found.args), ("E?", [str(1 << 70), "NaN", {"a": [True, None]}]))
        self.assertEqual(reply.files, ("?.txt",))


class CreationTests(KernelTestCase):
    """Making kernels."""

    def test_configures(self) -> None:
        """Init gets the row, the environment and its first credit; the tier the limits."""
        init = self.create("java")
        (configuration,) = init.sent(frames.CONFIGURE)
        self.assertEqual(configuration["runtime"]["name"], "java")
        self.assertEqual(configuration["environ"]["SORNA_TOOL"], "/usr/bin/tool")
        self.assertGreater(configuration["credit"], 0)
        self.execute(query(wait=0))
        (assignment,) = init.sent(frames.ASSIGN)
        self.assertEqual(assignment["environ"]["SORNA_MEMORY_MIB"], "1024")
        self.assertEqual([kind for kind, _payload in init.received[-2:]], [frames.ASSIGN, frames.RUN])
        self.assertEqual((init.spec.stack, [limits.memory for limits in init.adjusted]), ("commands", [1024 * MIB]))
        self.assertEqual(self.kernels.live()[self.kernel_id].id, short_id(self.kernel_id))

    def test_asked_limits_stay(self) -> None:
        """What somebody asked for is not replaced by the runtime's default."""
        self.assertEqual([limits.memory for limits in self.create("java", memory=300 * MIB).adjusted], [300 * MIB])

    def test_limits_that_cannot_be_set(self) -> None:
        """A kernel whose limits are refused runs nobody's code: it is killed, and its place is free."""
        self.sandbox.unadjustable = True
        made = self.start(self.kernels.create_kernel(self.kernel_id, spec(memory=64 * MIB)))
        self.agent_failed(made)
        self.assertEqual((self.sandbox.kernels[0].kills, self.kernels.occupied, self.news.ended), (1, 0, []))
        self.assertEqual(self.sandbox.kernels[0].sent(frames.ASSIGN), [])

    def test_kernel_that_never_is_ready(self) -> None:
        """A kernel that does not answer in time is killed and its place is free."""
        self.sandbox.answers_ready = False

        made = self.start(self.kernels.create_kernel(self.kernel_id, spec()))
        self.advance(module.READY_DEADLINE)
        self.agent_failed(made)
        self.assertEqual((self.sandbox.kernels[0].kills, self.kernels.occupied, self.news.ended), (1, 0, []))

    def test_kernel_that_dies_first(self) -> None:
        """A kernel that dies before it is ready fails its creation, and is no news."""
        self.sandbox.answers_ready = False

        made = self.start(self.kernels.create_kernel(self.kernel_id, spec()))
        self.sandbox.kernels[0].exit(1)
        self.failureResultOf(made, AgentFailed)
        self.assertEqual(self.news.ended, [])
