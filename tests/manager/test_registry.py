"""What a door can ask of kernels: creation, ownership, use and end."""

from __future__ import annotations

from functools import partial

from attrs import evolve
from twisted.internet.defer import Deferred

from sorna.errors import (
    AgentFailed,
    AgentRefused,
    AgentTimeout,
    InvalidRequest,
    KernelAlreadyExists,
    KernelCreationFailed,
    KernelExecutionFailed,
    KernelNotFound,
    KernelRestartFailed,
    NoAgentAvailable,
    QuotaExceeded,
    RuntimeUnknown,
    Unavailable,
)
from sorna.manager.creation import SETTLE_DEADLINE
from sorna.manager.interfaces import UploadFile
from sorna.model.agent import Room
from sorna.model.kernel import KernelSpec, KernelStatus, new_kernel_id, short_id
from sorna.model.keypair import KeypairChanges
from sorna.model.limits import MIB, Limits
from sorna.model.policy import ResourcePolicy
from sorna.model.run import RunMode, RunRequest
from sorna.testing.terminals import MemoryViewer
from tests.cluster.scripted import USAGE
from tests.manager.world import HEARTBEAT, INTERVAL, OWNER, STRANGER, ManagerTestCase

QUERY = RunRequest(RunMode.QUERY, "1+1")


class CreationTests(ManagerTestCase):
    """One kernel per owner and token, never more than the quota."""

    def test_a_new_kernel_runs_and_takes_a_place(self) -> None:
        """The row is RUNNING on its agent, found by id and by token, and one place of the quota is taken."""
        created = self.done(self.registry.create(self.wish()))
        self.assertTrue(created.created)
        kernel = self.done(self.kernels.by_id(created.kernel_id))
        assert kernel is not None
        self.assertEqual((kernel.status, kernel.agent_id, kernel.runtime), (KernelStatus.RUNNING, "i-1", "python3"))
        for reference in (short_id(kernel.id), str(kernel.id), "token-1"):
            self.assertEqual(self.done(self.registry.info(OWNER, reference)).kernel_id, kernel.id)
        self.assertEqual(self.used(), 1)

    def test_an_alias_finds_the_same_session(self) -> None:
        """The same token with another name of the runtime is the same kernel, and nothing new is made."""
        first = self.done(self.registry.create(self.wish()))
        again = self.done(self.registry.create(self.wish(runtime="python3")))
        self.assertEqual((again.kernel_id, again.created), (first.kernel_id, False))
        self.assertEqual(self.used(), 1)

    def test_tokens_made_of_names(self) -> None:
        """What the ZeroMQ door makes of names no client may choose, and it is a session like any other."""
        wish = evolve(self.wish("user:entry:python3"), names_joined=True)
        first = self.done(self.registry.create(wish))
        self.assertEqual(self.done(self.registry.create(wish)).kernel_id, first.kernel_id)
        self.assertEqual(self.done(self.registry.info(OWNER, short_id(first.kernel_id))).runtime, "python3")
        self.fails(self.registry.create(self.wish("user:entry:python3")), InvalidRequest)

    def test_another_runtime_is_refused(self) -> None:
        """The token of a live kernel of another runtime cannot be used."""
        self.make()
        self.fails(self.registry.create(self.wish(runtime="c")), KernelAlreadyExists)

    def test_a_new_session_is_wanted(self) -> None:
        """Whoever wants no existing session is told that there is one."""
        self.make()
        self.fails(self.registry.create(evolve(self.wish(), reuse=False)), KernelAlreadyExists)

    def test_owners_do_not_share_tokens(self) -> None:
        """The same token of two owners is two kernels."""
        self.assertNotEqual(self.make(), self.make(owner=STRANGER))

    def test_two_at_once_share_one_kernel(self) -> None:
        """The second request waits for the first one's kernel."""
        gate: Deferred[None] = Deferred()
        self.agent.script["create_kernel"] = lambda: gate
        first = self.start(self.registry.create(self.wish()))
        second = self.start(self.registry.create(self.wish()))
        self.assertNoResult(second)
        gate.callback(None)
        made, found = self.successResultOf(first), self.successResultOf(second)
        self.assertEqual((made.kernel_id, made.created, found.created), (found.kernel_id, True, False))
        self.assertEqual([call[0] for call in self.agent.calls], ["create_kernel", "services"])

    def test_the_second_makes_its_own_when_the_first_fails(self) -> None:
        """A failed first request does not fail the one that waited for it."""
        gate: Deferred[None] = Deferred()
        self.agent.script["create_kernel"] = lambda: gate
        first = self.start(self.registry.create(self.wish()))
        second = self.start(self.registry.create(self.wish()))
        del self.agent.script["create_kernel"]
        gate.errback(AgentFailed("boom"))
        self.failureResultOf(first, KernelCreationFailed)
        self.assertTrue(self.successResultOf(second).created)
        self.assertEqual(self.used(), 1)

    def test_waiting_has_a_deadline(self) -> None:
        """A request does not wait for ever for another one's kernel."""
        # Made by a manager that died: nobody announces anything.
        spec = KernelSpec(OWNER, "token-1", "python3", "python", Limits())
        self.done(self.kernels.reserve(new_kernel_id(), spec, self.clock.seconds()))
        second = self.start(self.registry.create(self.wish()))
        self.clock.advance(SETTLE_DEADLINE)
        self.failureResultOf(second, Unavailable)

    def test_quota(self) -> None:
        """At the limit a new session is refused and an old one is found; an end gives the place back."""
        first, _ = self.make("token-1"), self.make("token-2")
        self.fails(self.registry.create(self.wish("token-3")), QuotaExceeded)
        self.assertFalse(self.done(self.registry.create(self.wish("token-1"))).created)
        self.done(self.registry.destroy(OWNER, short_id(first)))
        self.assertEqual(self.used(), 1)
        self.make("token-3")

    def test_policy(self) -> None:
        """The owner's policy names the runtimes, bounds the limits, and is told of when there is no room."""
        policies = self.keypairs.policies
        course = ResourcePolicy("course", memory=600 * MIB, runtimes=frozenset({"python3"}), idle_timeout=30.0)
        self.done(policies.put(course))
        self.done(self.keypairs.modify(OWNER, KeypairChanges(resource_policy="course")))
        error = self.fails(self.registry.create(self.wish(runtime="c")), QuotaExceeded)
        self.assertEqual(error.detail, "the policy course does not allow c")
        kernel = self.done(self.kernels.by_id(self.make()))
        assert kernel is not None
        self.assertEqual(kernel.limits, Limits(idle_timeout=30.0))
        error = self.fails(self.registry.create(self.wish("token-2")), QuotaExceeded)
        self.assertEqual(error.detail, "memory: 512 of 600 MiB in use, 512 MiB more asked for")
        self.assertEqual(self.used(), 1)

    def test_failures_leave_nothing(self) -> None:
        """Whatever fails, the quota is free, the row final, and the agent was told to take the kernel back."""
        for error, seen in [
            (AgentFailed("boom", "ValueError('x')"), KernelCreationFailed),
            (AgentTimeout("silent"), KernelCreationFailed),
            (NoAgentAvailable("full"), NoAgentAvailable),
        ]:
            self.agent.script["create_kernel"] = partial(self._raise, error)
            self.fails(self.registry.create(self.wish()), seen)
            self.assertEqual(self.used(), 0)
        self.assertEqual([call[0] for call in self.agent.calls].count("destroy_kernel"), 2)
        self.assertEqual(list(self.done(self.kernels.live())), [])

    def test_redis_away_while_a_kernel_ends(self) -> None:
        """Its entry goes when Redis is back."""
        kernel_id = self.make()
        kernel = self.done(self.kernels.by_id(kernel_id))
        assert kernel is not None
        self.redis.available = False
        self.done(self.ending.forget(kernel))
        self.assertEqual(len(self.redis.kernels), 1)
        self.redis.available = True
        self.done(self.ending.forget_rest())
        self.assertEqual((self.redis.kernels, self.redis.sessions), ({}, {}))

    def _raise(self, error: Exception) -> None:
        raise error

    def test_refusals_change_nothing(self) -> None:
        """A bad token, an unknown runtime and one that nobody offers are refused with their reasons."""
        self.fails(self.registry.create(self.wish("a/b")), InvalidRequest)
        self.fails(self.registry.create(self.wish(runtime="cobol")), RuntimeUnknown)
        self.assertIn("lua5", self.fails(self.registry.create(self.wish(runtime="lua")), NoAgentAvailable).detail)
        self.clock.advance(60)
        self.assertIn("alive", self.fails(self.registry.create(self.wish()), NoAgentAvailable).detail)
        self.assertEqual(self.used(), 0)

    def test_devices(self) -> None:
        """Devices reach the agent's order and the row; where nobody has as many the request is refused, and says so."""
        heartbeat = evolve(HEARTBEAT, room=Room(gpus=2))
        self.done(self.heartbeats.beat(heartbeat, INTERVAL))
        created = self.done(self.registry.create(evolve(self.wish(), gpus=2)))
        (_method, _kernel_id, spec) = self.agent.calls[-1]
        self.assertEqual(spec.limits.gpus, 2)
        row = self.done(self.kernels.by_id(created.kernel_id))
        assert row is not None
        self.assertEqual(row.limits.gpus, 2)
        error = self.fails(self.registry.create(evolve(self.wish("token-2"), gpus=3)), NoAgentAvailable)
        self.assertIn("GPUs: 2 of 2 taken, 3 asked for", error.detail)
        self.assertEqual(self.used(), 1)

    def test_a_kernel_of_a_dead_agent_is_replaced(self) -> None:
        """When its agent is gone the session gets a new kernel on another start of it."""
        first = self.make()
        self.clock.advance(60)
        self.fails(self.registry.create(self.wish()), NoAgentAvailable)
        self.beat(incarnation="second")
        second = self.done(self.registry.create(self.wish()))
        self.assertTrue(second.created)
        self.assertNotEqual(second.kernel_id, first)
        self.assertEqual(self.used(), 1)


class UseTests(ManagerTestCase):
    """A kernel is used by its owner only."""

    def setUp(self) -> None:
        super().setUp()
        self.kernel_id = self.make()
        self.reference = short_id(self.kernel_id)

    def test_another_owner_sees_no_kernel(self) -> None:
        """Every operation of another owner fails as if there were no kernel, by id and by token, and changes nothing."""
        calls = len(self.agent.calls)
        for reference in (self.reference, str(self.kernel_id), "token-1"):
            for work in (
                self.registry.info(STRANGER, reference),
                self.registry.check(STRANGER, reference),
                self.registry.restart(STRANGER, reference),
                self.registry.destroy(STRANGER, reference),
                self.registry.execute(STRANGER, reference, QUERY),
                self.registry.interrupt(STRANGER, reference),
                self.registry.complete(STRANGER, reference, "x", {}),
                self.registry.upload(STRANGER, reference, [UploadFile("a", b"")]),
                self.registry.logs(STRANGER, reference),
                self.registry.open_terminal(STRANGER, reference, MemoryViewer()),
            ):
                self.assertEqual(self.fails(work, KernelNotFound).detail, "")
        self.assertEqual(len(self.agent.calls), calls)

    def test_queries_are_counted(self) -> None:
        """The count includes the call that asks for it."""
        self.assertEqual(self.done(self.registry.info(OWNER, self.reference)).num_queries, 1)
        self.done(self.registry.execute(OWNER, self.reference, QUERY))
        self.assertEqual(self.done(self.registry.info(OWNER, self.reference)).num_queries, 3)

    def test_redis_may_lose_it(self) -> None:
        """A kernel that Redis lost is written again from the row and goes on."""
        self.redis.kernels.clear()
        self.redis.sessions.clear()
        self.done(self.registry.execute(OWNER, self.reference, QUERY))
        self.redis.kernels.clear()
        self.redis.sessions.clear()
        self.done(self.registry.execute(OWNER, "token-1", QUERY))

    def test_an_agent_that_lost_it_ends_it(self) -> None:
        """A kernel that its agent does not hold is ended, with a reason the client sees, and its place is free."""
        self.agent.kernels.clear()
        self.assertIn("lost", self.fails(self.registry.execute(OWNER, self.reference, QUERY), KernelNotFound).detail)
        self.assertIn("lost", self.fails(self.registry.info(OWNER, "token-1"), KernelNotFound).detail)
        self.assertEqual(self.used(), 0)

    def test_terminal(self) -> None:
        """A look at a terminal reaches the kernel's agent and counts as a query; what goes wrong is told as for runs."""
        viewer = MemoryViewer()
        terminal = self.done(self.registry.open_terminal(OWNER, "token-1", viewer, rows=50, columns=132))
        self.assertEqual(self.agent.calls[-1], ("open_terminal", self.kernel_id, 50, 132))
        terminal.write(b"ls\r")
        self.assertEqual(viewer.seen, b"ls\r")
        self.assertEqual(self.done(self.registry.info(OWNER, "token-1")).num_queries, 2)
        self.agent.script["open_terminal"] = lambda: self._raise(AgentFailed("boom"))
        self.fails(self.registry.open_terminal(OWNER, "token-1", viewer), KernelExecutionFailed)
        del self.agent.script["open_terminal"]
        self.agent.kernels.clear()
        error = self.fails(self.registry.open_terminal(OWNER, "token-1", viewer), KernelNotFound)
        self.assertIn("lost", error.detail)

    def test_agent_errors_keep_their_cause(self) -> None:
        """A failing agent is told apart by the cause of the error."""
        self.agent.script["execute"] = lambda: self._raise(AgentFailed("boom", "ValueError('boom', 1)"))
        error = self.fails(self.registry.execute(OWNER, self.reference, QUERY), KernelExecutionFailed)
        self.assertEqual(error.__cause__.exception, "ValueError('boom', 1)")

    def _raise(self, error: Exception) -> None:
        raise error

    def test_upload_judges_every_path_first(self) -> None:
        """One path that climbs refuses the whole upload before anything is written."""
        calls = len(self.agent.calls)
        for path in ("../a", "/etc/passwd", "a/../../b", "", "a\0b", "a//b", "./a", "x" * 2000, "..\\a"):
            files = [UploadFile("fine", b"x"), UploadFile(path, b"x")]
            self.fails(self.registry.upload(OWNER, self.reference, files), InvalidRequest)
        self.assertEqual(len(self.agent.calls), calls)
        self.agent.script["upload"] = lambda: self._raise(AgentRefused("it is a link"))
        refused = self.fails(self.registry.upload(OWNER, self.reference, [UploadFile("a", b"")]), InvalidRequest)
        self.assertEqual(refused.detail, "it is a link")

    def test_restart(self) -> None:
        """The status comes back to RUNNING; a failed restart too, with an error."""
        self.done(self.registry.restart(OWNER, self.reference))
        self.agent.script["restart_kernel"] = lambda: self._raise(AgentFailed("boom"))
        self.fails(self.registry.restart(OWNER, self.reference), KernelRestartFailed)
        kernel = self.done(self.kernels.by_id(self.kernel_id))
        assert kernel is not None
        self.assertIs(kernel.status, KernelStatus.RUNNING)


class DestroyTests(ManagerTestCase):
    """An end is an end."""

    def setUp(self) -> None:
        super().setUp()
        self.kernel_id = self.make()
        self.reference = short_id(self.kernel_id)

    def test_usage_is_given_and_kept(self) -> None:
        """Destroying gives what the kernel used; the row has it, with the reason and the count of queries."""
        self.done(self.registry.execute(OWNER, self.reference, QUERY))
        self.assertEqual(self.done(self.registry.destroy(OWNER, self.reference)), USAGE)
        kernel = self.done(self.kernels.by_id(self.kernel_id))
        assert kernel is not None
        self.assertEqual((kernel.status, kernel.status_reason), (KernelStatus.TERMINATED, "user-requested"))
        self.assertEqual((kernel.usage, kernel.num_queries), (USAGE, 1))
        self.assertEqual(self.redis.kernels, {})

    def test_life_and_reason(self) -> None:
        """A kernel lives until its end, for its owner, uncounted; the reason of its end is kept."""
        kernel_id = self.kernel_id
        self.assertTrue(self.done(self.registry.lives(OWNER, str(kernel_id))))
        self.assertFalse(self.done(self.registry.lives(STRANGER, str(kernel_id))))
        self.done(self.registry.destroy(OWNER, str(kernel_id), "execution-timeout"))
        self.assertFalse(self.done(self.registry.lives(OWNER, str(kernel_id))))
        kernel = self.done(self.kernels.by_id(kernel_id))
        assert kernel is not None
        self.assertEqual((kernel.status_reason, kernel.num_queries), ("execution-timeout", 0))

    def test_by_token_and_of_nobody_else(self) -> None:
        """A kernel is destroyed by its owner's token as by its id, and by no other owner."""
        for reference in (self.reference, str(self.kernel_id), "token-1"):
            self.fails(self.registry.destroy(STRANGER, reference), KernelNotFound)
        self.assertTrue(self.done(self.registry.lives(OWNER, self.reference)))
        self.assertEqual(self.done(self.registry.destroy(OWNER, "token-1")), USAGE)
        self.assertEqual(self.used(), 0)

    def test_a_second_destroy_finds_nothing(self) -> None:
        """After the end the kernel is not found, with the reason."""
        self.done(self.registry.destroy(OWNER, self.reference))
        error = self.fails(self.registry.destroy(OWNER, self.reference), KernelNotFound)
        self.assertIn("user-requested", error.detail)

    def test_two_at_once_end_it_once(self) -> None:
        """Both get the usage, and the place is given back once."""
        gate: Deferred[None] = Deferred()
        self.agent.script["destroy_kernel"] = lambda: gate
        first = self.start(self.registry.destroy(OWNER, self.reference))
        second = self.start(self.registry.destroy(OWNER, self.reference))
        gate.callback(None)
        self.assertEqual(self.successResultOf(first), USAGE)
        self.successResultOf(second)
        self.assertEqual(self.used(), 0)

    def test_news_of_an_end(self) -> None:
        """An agent's news ends the kernel once, however often it is told."""
        self.agent.kernels.clear()
        for _ in range(2):
            self.link.kernel_ended("i-1", self.kernel_id, "idle-timeout", USAGE)
        self.assertIn("idle-timeout", self.fails(self.registry.info(OWNER, self.reference), KernelNotFound).detail)
        self.assertEqual(self.used(), 0)
