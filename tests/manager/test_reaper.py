"""What is mended without anyone asking."""

from __future__ import annotations

from attrs import evolve
from twisted.internet.defer import Deferred

from sorna.errors import AgentTimeout, KernelDestructionFailed, Unavailable
from sorna.live.kernels import NAMES_TOGETHER
from sorna.live.memory import MemoryLiveKernels
from sorna.manager.absence import SEEN_AGAIN
from sorna.manager.reaper import DEADLINES, MISSING_FOR, SEEN_WITHIN, SWEEP_AGAIN
from sorna.model.agent import AgentAddress
from sorna.model.census import Traces
from sorna.model.kernel import FINAL_STATUSES, KernelSpec, KernelStatus, new_kernel_id, short_id
from sorna.model.keypair import Keypair
from sorna.model.limits import Limits
from tests.manager.world import HEARTBEAT, INTERVAL, OWNER, ManagerTestCase


class ReaperTests(ManagerTestCase):
    """Every pass compares what should be with what is."""

    def status(self) -> str:
        """Tell the status and reason of the only kernel."""
        kernel = self.done(self.kernels.last_by_token(OWNER, "token-1"))
        assert kernel is not None
        return f"{kernel.status} {kernel.status_reason}".strip()

    def pass_time(self, seconds: float, *kernels: str, alive: bool = True) -> None:
        """Let time pass with heartbeats and passes of the reaper every half second."""
        for _ in range(round(seconds * 2)):
            self.clock.advance(0.5)
            if alive:
                self.beat(*kernels)
            self.done(self.reaper.mend())

    def test_a_healthy_kernel_is_left_alone(self) -> None:
        """A kernel that its agent holds lives."""
        kernel_id = self.make()
        self.pass_time(30, short_id(kernel_id))
        self.assertEqual(self.status(), "RUNNING")

    def test_agents_are_listened_to_before_they_are_asked(self) -> None:
        """A manager that has just started hears the news of every live agent, and no longer of one that is gone."""
        self.done(self.reaper.mend())
        self.assertEqual({address.agent_id for address in self.link.watched}, {"i-1"})
        self.pass_time(10, alive=False)
        self.assertEqual(self.link.watched, frozenset())

    def test_a_dead_agent_ends_its_kernels_within_five_seconds(self) -> None:
        """From the last heartbeat to the end of its kernels and their free places it takes less than 5 s."""
        self.make()
        self.beat()
        self.pass_time(5, alive=False)
        self.assertEqual(self.status(), "TERMINATED agent-lost")
        self.assertEqual(self.used(), 0)

    def test_what_a_dead_agent_has_told_is_written(self) -> None:
        """The usage of a kernel whose agent died is what the agent told last; figures that are none do no harm."""
        for told, expected in (
            ({"cpu_used": "12.5", "mem_max_bytes": "4096"}, (12.5, 4096)),
            ({"cpu_used": "x"}, (0.0, -1)),
        ):
            name = short_id(self.make())
            heartbeat = evolve(HEARTBEAT, kernels=frozenset({name}), stats={name: told})
            self.done(self.heartbeats.beat(heartbeat, INTERVAL))
            self.pass_time(6, alive=False)
            self.assertEqual(self.status(), "TERMINATED agent-lost")
            kernel = self.done(self.kernels.last_by_token(OWNER, "token-1"))
            assert kernel is not None
            self.assertEqual((kernel.usage.cpu_used, kernel.usage.mem_max_bytes), expected)
            self.beat()

    def test_a_kernel_its_agent_does_not_hold_is_lost(self) -> None:
        """After the time a heartbeat needs, and a later look, a kernel that is missing is ended."""
        self.make()
        self.pass_time(SEEN_WITHIN)
        self.assertEqual(self.status(), "RUNNING")
        self.pass_time(MISSING_FOR + 1)
        self.assertEqual(self.status(), "TERMINATED lost")

    def test_one_bad_heartbeat_ends_nothing(self) -> None:
        """A kernel that is missing from one heartbeat and back in the next lives."""
        kernel_id = self.make()
        self.pass_time(SEEN_WITHIN + 1, short_id(kernel_id))
        self.pass_time(1)
        self.pass_time(10, short_id(kernel_id))
        self.assertEqual(self.status(), "RUNNING")

    def test_a_creation_that_never_ends_is_given_up(self) -> None:
        """A PREPARING row past its deadline is an error, and its place is free."""
        spec = KernelSpec(OWNER, "token-1", "python3", "python", Limits())
        self.done(self.kernels.reserve(new_kernel_id(), spec, self.clock.seconds()))
        self.clock.advance(DEADLINES[KernelStatus.PREPARING] + 1)
        self.beat()
        self.done(self.reaper.mend())
        self.assertEqual(self.status(), "ERROR creation-timeout")
        self.assertEqual(self.used(), 0)

    def test_an_unanswered_destroy_is_tried_again(self) -> None:
        """A kernel that an agent did not end is ended when the agent answers again."""

        def silent() -> None:
            raise AgentTimeout("silent")

        kernel_id = self.make()
        self.agent.script["destroy_kernel"] = silent
        self.fails(self.registry.destroy(OWNER, short_id(kernel_id)), KernelDestructionFailed)
        self.assertEqual(self.status(), "TERMINATING user-requested")
        del self.agent.script["destroy_kernel"]
        self.pass_time(3, short_id(kernel_id))
        self.assertEqual(self.status(), "TERMINATED user-requested")

    def test_orphans_are_ended(self) -> None:
        """A kernel that an agent holds and no row wants is ended on the agent."""
        orphan = new_kernel_id()
        self.agent.kernels.add(orphan)
        self.pass_time(1, short_id(orphan))
        self.assertNotIn(orphan, self.agent.kernels)

    def test_an_agent_that_is_stuck_delays_nobody(self) -> None:
        """While it answers nothing, it is asked once per kernel, and another kernel's end is written in time."""
        stuck, missing = self.make("token-1"), self.make("token-2")
        asked: list[Deferred[None]] = []

        def answer_nothing() -> Deferred[None]:
            asked.append(Deferred())
            return asked[-1]

        self.agent.script["destroy_kernel"] = answer_nothing
        self.done(self.kernels.change_status(stuck, KernelStatus.TERMINATING, "asked", self.clock.seconds()))
        self.pass_time(SEEN_WITHIN + MISSING_FOR + 1, short_id(stuck))
        ended = self.done(self.kernels.by_id(missing))
        assert ended is not None
        self.assertEqual((ended.status, ended.status_reason), (KernelStatus.TERMINATED, "lost"))
        self.assertEqual(len(asked), 1)

    def test_redis_restarted_empty_ends_nothing(self) -> None:
        """Agents are believed to be gone only some time after Redis is back; what it lost of live kernels is written again."""
        kernel_id = self.make()
        self.pass_time(10, short_id(kernel_id))
        for lost in (self.redis.instances, self.redis.members, self.redis.kernels, self.redis.sessions):
            lost.clear()
        self.absence.distrust()
        self.pass_time(SEEN_AGAIN - 0.5, alive=False)
        self.fails(self.registry.info(OWNER, "token-1"), Unavailable)
        self.fails(self.registry.create(self.wish()), Unavailable)
        self.pass_time(10, short_id(kernel_id))
        self.assertEqual(self.status(), "RUNNING")
        self.assertEqual(set(self.redis.kernels), {short_id(kernel_id)})
        self.assertEqual(set(self.redis.sessions.values()), {short_id(kernel_id)})

    def test_what_nobody_remembers_is_forgotten(self) -> None:
        """An entry that no live row has goes, with its membership, what it counts and its session id; the others stay."""
        kernel_id, ended = self.make("token-1"), self.make("token-2")
        row = self.done(self.kernels.by_id(ended))
        assert row is not None
        lost = evolve(row, id=new_kernel_id(), session_token="token-3")
        self.pass_time(SWEEP_AGAIN, short_id(kernel_id), short_id(ended))
        self.done(self.kernels.change_status(ended, KernelStatus.TERMINATED, "by a manager that died", 0.0))
        self.done(self.live.add(lost, AgentAddress("i-1", HEARTBEAT.endpoint, HEARTBEAT.public_key)))
        self.assertEqual((len(self.redis.kernels), len(self.redis.sessions)), (3, 3))
        self.agent.kernels = {kernel_id}
        before = self.done(self.directory.alive())[0]
        self.clock.advance(0.5)
        self.done(self.reaper.mend())
        self.assertEqual(set(self.redis.kernels), {short_id(kernel_id)})
        self.assertEqual(self.redis.sessions, {f"{OWNER}:token-1": short_id(kernel_id)})
        self.assertEqual(self.redis.members["i-1"], {short_id(kernel_id)})
        now = self.done(self.directory.alive())[0]
        self.assertEqual(before.memory_taken - now.memory_taken, 2 * row.limits.memory)

    def test_kernels_of_every_live_status_are_remembered(self) -> None:
        """Nothing is forgotten of a kernel that has not ended, whatever it does now."""
        address = AgentAddress("i-1", HEARTBEAT.endpoint, HEARTBEAT.public_key)
        for status in set(KernelStatus) - FINAL_STATUSES:
            kernel_id = self.make()
            self.kernels._kernels[kernel_id] = evolve(
                self.kernels._kernels[kernel_id], status=status, status_changed_at=self.clock.seconds() + 60
            )
            self.pass_time(2 * SWEEP_AGAIN, short_id(kernel_id))
            self.assertEqual(set(self.redis.kernels), {short_id(kernel_id)}, status)
            self.done(self.live.add(self.kernels._kernels[kernel_id], address))
            self.kernels._kernels[kernel_id] = evolve(self.kernels._kernels[kernel_id], status=KernelStatus.RUNNING)
            self.done(self.registry.destroy(OWNER, short_id(kernel_id)))

    def test_a_session_id_of_nothing_is_forgotten(self) -> None:
        """A session id that names a kernel without entry and row goes; one whose kernel's entry is lost is written again."""
        kernel_id = self.make()
        self.redis.sessions[f"{OWNER}:token-2"] = short_id(new_kernel_id())
        self.pass_time(4, short_id(kernel_id))
        self.redis.kernels.clear()
        self.pass_time(SWEEP_AGAIN, short_id(kernel_id))
        self.assertEqual(self.redis.sessions, {f"{OWNER}:token-1": short_id(kernel_id)})
        self.assertEqual(set(self.redis.kernels), {short_id(kernel_id)})

    def test_a_kernel_that_comes_during_the_look_is_remembered(self) -> None:
        """The names are read before the rows: what is made in between is taken for nobody's by no pass."""
        made: list[str] = []

        class Late(MemoryLiveKernels):
            async def traces(_live, begin: str = "") -> Traces:  # noqa: N805 - the test's own self is meant
                made.append(short_id(self.make(f"token-{len(made)}")))
                return await super().traces(begin)

        self.keypairs._keypairs[OWNER] = Keypair(OWNER, "s" * 40, concurrency_limit=20)
        self.beat()
        reaper = evolve(self.reaper, live=Late(self.redis))
        for _ in range(3):
            self.clock.advance(SWEEP_AGAIN)
            self.beat(*made)
            self.done(reaper.mend())
        self.assertEqual((set(self.redis.kernels), len(made)), (set(made), 3))

    def test_many_names_are_looked_at_in_parts(self) -> None:
        """One part in a pass; a pass that fails looks at its part again, and all parts are seen in the end."""
        kernel_id = self.make()
        row = self.done(self.kernels.by_id(kernel_id))
        assert row is not None
        for _ in range(2 * NAMES_TOGETHER):
            self.done(self.live.add(evolve(row, id=new_kernel_id()), AgentAddress("i-1", "tcp://127.0.0.1:1", "k")))
        self.done(self.live.add(row, AgentAddress("i-1", HEARTBEAT.endpoint, HEARTBEAT.public_key)))
        self.beat(short_id(kernel_id))
        self.done(self.reaper.mend())
        left = len(self.redis.kernels)
        self.assertIn(left, {NAMES_TOGETHER + 1, NAMES_TOGETHER + 2})
        self.redis.available = False
        self.fails(self.reaper.mend(), Unavailable)
        self.redis.available = True
        self.pass_time(1, short_id(kernel_id))
        self.assertEqual(set(self.redis.kernels), {short_id(kernel_id)})
        self.assertEqual(self.redis.sessions, {f"{OWNER}:token-1": short_id(kernel_id)})
        self.assertEqual(self.reaper._sweeping_from, "")

    def test_an_agent_that_died_with_redis_is_believed_dead_in_the_end(self) -> None:
        """The wait is bounded."""
        self.make()
        self.redis.instances.clear()
        self.absence.distrust()
        self.pass_time(SEEN_AGAIN + MISSING_FOR + 1, alive=False)
        self.assertEqual(self.status(), "TERMINATED agent-lost")
