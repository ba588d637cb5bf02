"""Kernels that wait for an agent: in order, woken by news, given up at their deadline, and lost by no manager's death."""

from __future__ import annotations

import uuid
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred

from sorna.errors import (
    AgentFailed,
    KernelCreationFailed,
    KernelNotFound,
    NoAgentAvailable,
    QueueFull,
    Unavailable,
)
from sorna.manager.interfaces import KernelEnded
from sorna.manager.queue import MARGIN, Queue
from sorna.manager.requests import Created, CreateRequest
from sorna.model.agent import AgentAddress, Room
from sorna.model.kernel import Kernel, KernelStatus, Usage, short_id
from sorna.model.keypair import Keypair
from sorna.model.limits import MIB
from sorna.model.queue import QueueBounds
from sorna.testing.unit import UnitTestCase
from tests.manager.world import HEARTBEAT, INTERVAL, OWNER, STRANGER, ManagerTestCase


class QueueTestCase(ManagerTestCase):
    """An agent with one place, and owners with enough quota."""

    places_of_agent = 1

    def setUp(self) -> None:
        super().setUp()
        for key in (OWNER, STRANGER):
            self.keypairs._keypairs[key] = Keypair(key, "s" * 40, concurrency_limit=20)
        self.tell()

    def tell(self, **more: Any) -> None:
        """Let the agent beat with the kernels that it holds."""
        held = frozenset(map(short_id, self.agent.kernels))
        given = {"kernels": held, "max_kernels": self.places_of_agent, **more}
        self.done(self.heartbeats.beat(evolve(HEARTBEAT, **given), INTERVAL))

    def wait_for(self, token: str, owner: str = OWNER, wait: float = 60.0, **more: Any) -> Deferred[Created]:
        """Ask for a kernel that may wait."""
        request = evolve(self.wish(token, owner=owner), wait=wait, **more)
        return self.start(self.registry.create(request))

    def enqueue(self, token: str, owner: str = OWNER, **more: Any) -> Created:
        """Ask for a kernel that may wait, and not for its turn; each a moment after the one before."""
        self.clock.advance(0.125)
        return self.successResultOf(self.wait_for(token, owner, enqueue_only=True, **more))

    def end(self, kernel_id: uuid.UUID, owner: str = OWNER) -> None:
        """Destroy a kernel."""
        self.done(self.registry.destroy(owner, str(kernel_id)))

    def row(self, kernel_id: uuid.UUID) -> Kernel:
        """Give a kernel's row."""
        kernel = self.done(self.kernels.by_id(kernel_id))
        assert kernel is not None
        return kernel

    def waiting(self) -> list[str]:
        """Give the tokens of those who wait, in order."""
        return [one.kernel.session_token for one in self.done(self.queue.store.waiting(99))]


class WaitingTests(QueueTestCase):
    """One who waits."""

    def test_free(self) -> None:
        """Where an agent is free nobody waits, and the answer is the same as ever."""
        created = self.successResultOf(self.wait_for("token-1"))
        self.assertEqual((created.status, created.created, created.queue), (KernelStatus.RUNNING, True, None))

    def test_waits_its_turn(self) -> None:
        """The request is answered when a kernel has ended and its own runs; without asking it is refused at once."""
        first = self.make()
        self.fails(self.registry.create(self.wish("token-0")), NoAgentAvailable)
        asked = self.wait_for("token-2")
        self.assertNoResult(asked)
        self.assertEqual((self.waiting(), self.used()), (["token-2"], 2))
        self.end(first)
        created = self.successResultOf(asked)
        self.assertEqual((created.status, created.created), (KernelStatus.RUNNING, True))
        self.assertIn(created.kernel_id, self.agent.kernels)
        self.assertEqual((self.waiting(), self.used()), ([], 1))

    def test_enqueued_only(self) -> None:
        """Whoever does not want to wait with the request learns the position, and sees it change."""
        first = self.make()
        second, third = self.enqueue("token-2"), self.enqueue("token-3")
        assert second.queue is not None
        assert third.queue is not None
        self.assertEqual((second.status, third.status), (KernelStatus.PENDING,) * 2)
        self.assertEqual((second.queue.position, third.queue.position), (1, 2))
        self.assertEqual(third.queue.deadline, self.clock.seconds() + 60)
        info = self.done(self.registry.info(OWNER, "token-3"))
        self.assertEqual((info.status, info.queue), (KernelStatus.PENDING, third.queue))
        self.end(first)
        info = self.done(self.registry.info(OWNER, "token-3"))
        self.assertEqual(info.queue and info.queue.position, 1)
        self.assertEqual(self.done(self.registry.info(OWNER, "token-2")).status, KernelStatus.RUNNING)
        self.fails(self.registry.info(STRANGER, "token-3"), KernelNotFound)
        self.done(self.registry.check(OWNER, "token-3"))
        self.fails(self.registry.check(STRANGER, "token-3"), KernelNotFound)

    def test_same_session(self) -> None:
        """Who asks for a session that waits waits with it, hears where it stands, or is refused, as it wishes."""
        first = self.make()
        asked = self.wait_for("token-2")
        again, place = self.wait_for("token-2"), self.enqueue("token-2")
        self.assertEqual((place.created, place.queue and place.queue.position), (False, 1))
        self.fails(self.registry.create(self.wish("token-2")), NoAgentAvailable)
        self.end(first)
        created, found = self.successResultOf(asked), self.successResultOf(again)
        self.assertEqual((created.kernel_id, found.created), (found.kernel_id, False))

    def test_deadline(self) -> None:
        """At its deadline a kernel is given up: a final row with a reason, an answer, and its quota free."""
        self.make()
        asked = self.wait_for("token-2", wait=10)
        kernel_id = self.done(self.queue.store.waiting(1))[0].kernel.id
        self.clock.advance(9.9)
        self.tell()
        self.done(self.reaper.mend())
        self.assertNoResult(asked)
        self.clock.advance(0.1)
        self.tell()
        self.done(self.reaper.mend())
        self.assertIn("queue-timeout", self.failureResultOf(asked, NoAgentAvailable).value.detail)
        self.assertEqual(
            (self.row(kernel_id).status, self.row(kernel_id).status_reason), (KernelStatus.ERROR, "queue-timeout")
        )
        self.assertEqual(self.used(), 1)

    def test_nobody_mends(self) -> None:
        """A request is answered although every reaper is away."""
        self.make()
        asked = self.wait_for("token-2", wait=10)
        self.clock.advance(10 + MARGIN)
        self.failureResultOf(asked, Unavailable)

    def test_destroyed(self) -> None:
        """Destroyed while it waits, it is gone with its quota, and the request says so."""
        self.make()
        asked = self.wait_for("token-2")
        self.done(self.registry.destroy(OWNER, "token-2"))
        self.failureResultOf(asked, KernelCreationFailed)
        self.assertEqual((self.waiting(), self.used()), ([], 1))

    def test_client_gone(self) -> None:
        """A kernel does not wait on for a client that has gone; for one that had only joined it does."""
        self.make()
        gone: Deferred[None] = Deferred()
        joined: Deferred[None] = Deferred()
        request = evolve(self.wish("token-2"), wait=60.0)
        asked, other = (self.start(self.registry.create(request, one)) for one in (gone, joined))
        joined.callback(None)
        self.failureResultOf(other, KernelCreationFailed)
        self.assertEqual(self.waiting(), ["token-2"])
        gone.callback(None)
        self.failureResultOf(asked, KernelCreationFailed)
        self.assertEqual((self.waiting(), self.used()), ([], 1))
        kernel = self.done(self.kernels.last_by_token(OWNER, "token-2"))
        self.assertEqual(kernel and kernel.status_reason, "client-gone")

    def test_stopping(self) -> None:
        """A manager that stops sends its clients away, and their kernels wait on for another manager."""
        self.make()
        asked = self.wait_for("token-2")
        self.done(self.queue.stop())
        self.failureResultOf(asked, Unavailable)
        self.assertEqual((self.waiting(), self.used()), (["token-2"], 2))
        self.queue.wake()
        self.assertEqual(self.waiting(), ["token-2"])

    def test_bounds(self) -> None:
        """When too many wait, one more is refused and leaves nothing."""
        self.make()
        for number in range(3):
            self.enqueue(f"token-a{number}")
        error = self.failureResultOf(self.wait_for("token-9"), QueueFull).value
        self.assertIn("3 of your kernels wait", error.detail)
        self.enqueue("token-b1", STRANGER)
        self.failureResultOf(self.wait_for("token-b2", STRANGER), QueueFull)
        self.assertEqual((self.used(), self.used(STRANGER)), (4, 1))


class ServingTests(QueueTestCase):
    """The order, and who may pass whom."""

    def test_owners_take_turns(self) -> None:
        """Whoever asks for many comes with the second one after everybody else's first."""
        running = self.make()
        owner = OWNER
        for token, whose in (("token-a1", OWNER), ("token-a2", OWNER), ("token-b1", STRANGER)):
            self.enqueue(token, whose)
        served = []
        for _ in range(3):
            self.end(running, owner)
            (running,) = self.agent.kernels
            owner = self.row(running).access_key
            served.append(self.row(running).session_token)
        self.assertEqual(served, ["token-a1", "token-b1", "token-a2"])

    def test_an_agent_comes(self) -> None:
        """A new agent, or one that may hold more, serves those who wait without anybody asking."""
        self.done(self.heartbeats.leave("i-1"))
        second, third = self.wait_for("token-2"), self.wait_for("token-3")
        self.assertNoResult(second)
        self.tell()
        self.successResultOf(second)
        self.assertNoResult(third)
        self.places_of_agent = 2
        self.tell()
        self.successResultOf(third)

    def test_who_does_not_wait_passes_nobody(self) -> None:
        """A request that does not wait gets no place that somebody who waits could have, and gets it when nobody does."""
        first = self.make()
        asked = self.wait_for("token-2")
        self.agent.script["create_kernel"] = Deferred
        self.end(first)
        self.assertNoResult(asked)
        self.fails(self.registry.create(self.wish("token-3")), NoAgentAvailable)
        self.assertEqual(self.used(), 1)

    def test_an_old_reservation_refuses_nobody(self) -> None:
        """What was kept for one who has gone since is free for others, although no reaper has looked yet."""
        first = self.make()
        self.enqueue("token-2")
        self.assertEqual(set(self.queue.reserved), {"i-1"})
        waiting = self.done(self.queue.store.waiting(1))[0].kernel
        self.done(self.kernels.change_status(waiting.id, KernelStatus.ERROR, "elsewhere", self.clock.seconds()))
        self.done(self.kernels.change_status(first, KernelStatus.TERMINATED, "elsewhere", self.clock.seconds()))
        self.agent.kernels.clear()
        self.tell()
        self.make("token-3")
        self.assertEqual(set(self.queue.reserved), set())

    def test_a_large_wish_is_not_starved(self) -> None:
        """One that needs more than is free keeps its agents to itself; those behind it may use other agents only."""
        self.places_of_agent = 5
        self.tell(room=Room(memory=1024 * MIB))
        first = self.make()
        large = self.wait_for("token-2", memory=1024 * MIB)
        small = self.wait_for("token-3")
        self.fails(self.registry.create(self.wish("token-4")), NoAgentAvailable)
        self.assertNoResult(small)
        other = evolve(HEARTBEAT, agent_id="i-2", max_kernels=1, room=Room(memory=600 * MIB))
        self.done(self.agents.enrol("i-2", "k" * 40, 0.0))
        self.link._operations = {"i-1": self.agent, "i-2": self.agent}
        self.done(self.heartbeats.beat(other, INTERVAL))
        found = self.successResultOf(small)
        self.assertEqual(self.row(found.kernel_id).agent_id, "i-2")
        self.assertNoResult(large)
        self.end(first)
        self.assertEqual(self.row(self.successResultOf(large).kernel_id).agent_id, "i-1")

    def test_an_impossible_wish_blocks_nobody(self) -> None:
        """One that no agent could ever hold keeps no agent from others."""
        self.done(self.agents.drain("i-1", None))
        self.enqueue("token-1", labels={"zone": "nowhere"})
        self.assertEqual(set(self.queue.reserved), set())
        self.make("token-2")

    def test_an_agent_that_is_full_after_all(self) -> None:
        """Where the agent refuses, the kernel waits on in its place, and is served later."""
        first = self.make()
        asked = self.wait_for("token-2")

        def refuse() -> None:
            raise NoAgentAvailable("full")

        self.agent.script["create_kernel"] = refuse
        self.end(first)
        self.assertNoResult(asked)
        self.assertEqual(self.waiting(), ["token-2"])
        del self.agent.script["create_kernel"]
        self.tell()
        self.done(self.reaper.mend())
        self.successResultOf(asked)

    def test_an_agent_that_fails(self) -> None:
        """What breaks while the kernel is made ends it with a reason."""
        first = self.make()
        asked = self.wait_for("token-2")

        def fail() -> None:
            raise AgentFailed("broken")

        self.agent.script["create_kernel"] = fail
        self.end(first)
        self.assertIn("AgentFailed", self.failureResultOf(asked, KernelCreationFailed).value.detail)
        self.assertEqual((self.waiting(), self.used()), ([], 0))

    def test_redis_away(self) -> None:
        """While agents cannot be listed nobody is served or lost."""
        first = self.make()
        asked = self.wait_for("token-2")
        self.redis.available = False
        self.queue.wake()
        self.redis.available = True
        self.assertNoResult(asked)
        self.end(first)
        self.successResultOf(asked)


class TwoManagersTests(QueueTestCase):
    """A second manager on the same databases."""

    def setUp(self) -> None:
        super().setUp()
        first = self.queue
        self.other = Queue(
            self.clock, self.kernels, first.store, self.placing, self.ending, first.announcements, first.demand,
            first.make, QueueBounds(),
        )  # fmt: skip
        self.other.listen()

    def test_each_kernel_is_made_once(self) -> None:
        """However many managers serve, a kernel is made by one of them, and the order stays."""
        first = self.make()
        asked = [self.wait_for(f"token-{number}") for number in (2, 3)]
        for manager in (self.queue, self.other):
            self.done(manager.mend(waited=True))
        self.end(first)
        self.successResultOf(asked[0])
        self.assertNoResult(asked[1])
        made = [call[1] for call in self.agent.calls if call[0] == "create_kernel"]
        self.assertEqual(len(made), len(set(made)))

    def test_a_manager_dies_while_kernels_wait(self) -> None:
        """The line is in the database: another manager serves it."""
        first = self.make()
        waiting = self.enqueue("token-2")
        self.queue._stopped = True
        self.end(first)
        self.done(self.other.mend(waited=True))
        self.assertIs(self.row(waiting.kernel_id).status, KernelStatus.RUNNING)

    def test_a_manager_dies_while_it_makes_one(self) -> None:
        """A kernel that was claimed and never made is put back into its place, and made."""
        first = self.make()
        waiting, behind = self.enqueue("token-2"), self.enqueue("token-3")
        make = self.queue.make

        async def die(*_chosen: Any) -> None:
            await Deferred()

        self.queue.make = self.other.make = die
        self.end(first)
        self.assertIs(self.row(waiting.kernel_id).status, KernelStatus.PREPARING)
        self.queue.make = self.other.make = make
        self.placing.over(waiting.kernel_id, live=False)
        for _second in range(31):
            self.clock.advance(1)
            self.tell()
        self.done(self.reaper.mend())
        self.assertIs(self.row(waiting.kernel_id).status, KernelStatus.RUNNING)
        self.assertIs(self.row(behind.kernel_id).status, KernelStatus.PENDING)

    def test_a_manager_dies_before_it_is_written_that_one_runs(self) -> None:
        """The kernel waits on; when its time is over nothing is left of what the dead manager wrote into Redis."""
        first = self.make()
        waiting = self.enqueue("token-2", wait=40.0)
        address = AgentAddress("i-1", HEARTBEAT.endpoint, HEARTBEAT.public_key)

        async def die(kernel: Kernel, *_chosen: Any) -> None:
            await self.live.add(kernel, address)
            await Deferred()

        self.queue.make = self.other.make = die
        self.end(first)
        self.assertEqual(set(self.redis.kernels), {short_id(waiting.kernel_id)})
        self.placing.over(waiting.kernel_id, live=False)
        self.queue._stopped = self.other._stopped = True  # nobody serves any more
        for _second in range(31):
            self.clock.advance(1)
            self.tell()
        self.done(self.reaper.mend())
        self.assertIs(self.row(waiting.kernel_id).status, KernelStatus.PENDING)
        self.clock.advance(10)
        self.done(self.queue.mend(waited=True))
        self.assertEqual(self.row(waiting.kernel_id).status_reason, "queue-timeout")
        self.assertEqual((self.redis.kernels, self.redis.sessions), ({}, {}))

    def test_its_double_is_ended(self) -> None:
        """What the first agent may have made of it is ended, and news of that says nothing of the second."""
        self.done(self.agents.enrol("i-2", "k" * 40, 0.0))
        self.link._operations = {"i-1": self.agent, "i-2": self.agent}
        kernel_id = self.make()
        self.assertEqual(self.row(kernel_id).agent_id, "i-1")
        news = KernelEnded("i-2", kernel_id, "idle-timeout", Usage())
        self.done(self.ending.on_kernel_ended(news))
        self.assertIs(self.row(kernel_id).status, KernelStatus.RUNNING)
        self.clock.advance(5)
        self.tell()
        held = frozenset({short_id(kernel_id)})
        self.done(self.heartbeats.beat(evolve(HEARTBEAT, agent_id="i-2", kernels=held), INTERVAL))
        self.agent.calls.clear()
        self.done(self.reaper.mend())
        self.assertEqual(self.agent.calls, [("destroy_kernel", kernel_id, "orphan")])
        self.done(self.ending.on_kernel_ended(evolve(news, agent_id="i-1")))
        self.assertTrue(self.row(kernel_id).status.final)


class RequestTests(UnitTestCase):
    """The request itself."""

    def test_nobody_waits_unasked(self) -> None:
        """A request that says nothing does not wait."""
        self.assertIsNone(CreateRequest(OWNER, "token-1", "c").wait)
