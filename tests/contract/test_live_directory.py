"""The contract of AgentDirectory and HeartbeatStore."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from twisted.logger import capturedLogs

from sorna.errors import InvalidRequest
from sorna.live.instances import MOST_TOGETHER, RedisAgentDirectory
from sorna.model.agent import AGENT_TOPIC, Agent, Capacity, HostLoad, Room
from sorna.model.kernel import short_id
from sorna.model.policy import Slots, slots_of
from tests.contract.live_backends import MemoryCase, ValkeyCase, address_of, beat_of, kernel_of

if TYPE_CHECKING:
    from tests.contract.live_backends import LiveCase as _Case
else:
    _Case = object


class DirectoryContract(_Case):
    async def test_nobody(self) -> None:
        """Without heartbeats there is no agent."""
        self.assertEqual(list(await self.directory.alive()), [])
        self.assertIsNone(await self.directory.find("i-one"))
        self.assertEqual(await self.directory.kernels_of("i-one"), frozenset())

    async def test_alive_after_a_beat(self) -> None:
        """An agent that has beaten is listed as it described itself."""
        await self.heartbeats.beat(beat_of(kernels=frozenset({"k1", "k2"})), 3)
        expected = Agent(address_of(), "one", frozenset({"python3", "c"}), 2, 10, "zygote", Capacity(4000, 1024, 1))
        self.assertEqual(list(await self.directory.alive()), [expected])
        self.assertEqual(await self.directory.find("i-one"), expected)

    async def test_load(self) -> None:
        """What a host uses is told with each beat, and forgotten with one that does not know."""
        for load in (HostLoad(12.5, 2**40), None):
            await self.heartbeats.beat(attrs.evolve(beat_of(), load=load), 3)
            (agent,) = await self.directory.alive()
            self.assertEqual(agent.load, load)

    async def test_in_order_of_id(self) -> None:
        """Several agents are listed in order of their ids."""
        for agent_id in ("i-c", "i-a", "i-b"):
            await self.heartbeats.beat(beat_of(agent_id), 3)
        self.assertEqual([agent.id for agent in await self.directory.alive()], ["i-a", "i-b", "i-c"])

    async def test_many_agents(self) -> None:
        """Hundreds of agents are listed in order, and those that have died among them are not."""
        ids = [f"i-{number:03}" for number in range(3 * MOST_TOGETHER // 2)]
        for agent_id in ids:
            await self.heartbeats.beat(beat_of(agent_id), 0.05 if agent_id == "i-007" else 30)
        await self.pass_time(0.15)
        ids.remove("i-007")
        self.assertEqual([agent.id for agent in await self.directory.alive()], ids)

    async def test_no_runtimes(self) -> None:
        """An agent without any runtime is listed with none."""
        await self.heartbeats.beat(beat_of(runtimes=frozenset(), isolation=""), 3)
        (agent,) = await self.directory.alive()
        self.assertEqual((agent.runtimes, agent.isolation), (frozenset(), ""))

    async def test_the_last_beat_counts(self) -> None:
        """A beat replaces what the one before said, kernels included."""
        await self.heartbeats.beat(beat_of(kernels=frozenset({"k1", "k2"})), 3)
        await self.heartbeats.beat(beat_of(kernels=frozenset({"k2", "k3"}), incarnation="two", max_kernels=5), 3)
        (agent,) = await self.directory.alive()
        self.assertEqual((agent.incarnation, agent.num_kernels, agent.max_kernels), ("two", 2, 5))
        self.assertEqual(await self.directory.kernels_of("i-one"), {"k2", "k3"})

    async def test_lease_ends(self) -> None:
        """An agent that is silent for two intervals is dead, and its kernels are still known."""
        await self.heartbeats.beat(beat_of(kernels=frozenset({"k1"})), 0.3)
        await self.pass_time(0.3)
        self.assertIsNotNone(await self.directory.find("i-one"))
        await self.pass_time(0.35)
        self.assertEqual(list(await self.directory.alive()), [])
        self.assertIsNone(await self.directory.find("i-one"))
        self.assertEqual(await self.directory.kernels_of("i-one"), {"k1"})

    async def test_back_from_the_dead(self) -> None:
        """An agent that beats again is listed again."""
        await self.heartbeats.beat(beat_of(), 0.05)
        await self.pass_time(0.15)
        self.assertEqual(list(await self.directory.alive()), [])
        await self.heartbeats.beat(beat_of(), 3)
        self.assertEqual([agent.id for agent in await self.directory.alive()], ["i-one"])

    async def test_leave(self) -> None:
        """An agent that leaves is gone at once, and only that one; leaving twice is harmless."""
        await self.heartbeats.beat(beat_of("i-one", kernels=frozenset({"k1"})), 3)
        await self.heartbeats.beat(beat_of("i-two"), 3)
        await self.heartbeats.leave("i-one")
        await self.heartbeats.leave("i-one")
        self.assertEqual([agent.id for agent in await self.directory.alive()], ["i-two"])
        self.assertEqual(await self.directory.kernels_of("i-one"), frozenset())

    async def test_a_kernel_younger_than_the_beat(self) -> None:
        """A kernel placed since the last beat is a member and takes a place; forgotten, it gives it back."""
        await self.heartbeats.beat(beat_of(kernels=frozenset({"k1"})), 3)
        kernel = kernel_of()
        await self.kernels.add(kernel, address_of())
        self.assertEqual(await self.directory.kernels_of("i-one"), {"k1", short_id(kernel.id)})
        (agent,) = await self.directory.alive()
        self.assertEqual(agent.num_kernels, 2)
        await self.kernels.forget(kernel)
        self.assertEqual(await self.directory.kernels_of("i-one"), {"k1"})

    async def test_room_and_labels(self) -> None:
        """An agent's room and labels are as it says; what has no bound is None."""
        room, labels = Room(memory=2048, gpus=0), {"zone": "a", "disk": "ssd"}
        await self.heartbeats.beat(beat_of(room=room, labels=labels, taken=Slots(1, 1024, 500, 1)), 3)
        (agent,) = await self.directory.alive()
        self.assertEqual((agent.room, agent.labels, agent.refuses_kernels), (room, labels, False))
        self.assertEqual(agent.taken, Slots(0, 1024, 500, 1))
        await self.heartbeats.beat(beat_of(refuses_kernels=True), 3)
        (agent,) = await self.directory.alive()
        self.assertEqual((agent.room, agent.labels, agent.refuses_kernels), (Room(), {}, True))

    async def test_changes_are_announced(self) -> None:
        """A heartbeat that comes after none, or offers something else, is announced; others are not, whatever they hold."""
        heard: list[str] = []
        end = self.announcements.subscribe(AGENT_TOPIC, heard.append)
        await self.settle()
        for more in ({}, {"kernels": frozenset({"k1"}), "taken": Slots(1, 1024, 500, 0)}, {"max_kernels": 11}):
            await self.heartbeats.beat(beat_of("i-one", **more), 3)
        await self.heartbeats.beat(beat_of("i-two", labels={"zone": "a"}), 0.05)
        await self.pass_time(0.15)
        await self.heartbeats.beat(beat_of("i-two", labels={"zone": "a"}), 3)
        await self.settle()
        self.assertEqual(heard, ["i-one", "i-one", "i-two", "i-two"])
        end()

    async def test_what_a_younger_kernel_takes(self) -> None:
        """A kernel counts on its agent from when it is added until it is forgotten, once; the next beat says the same."""
        await self.heartbeats.beat(beat_of(taken=Slots(0, 1000, 500, 0)), 3)
        kernel = kernel_of()
        takes = slots_of(kernel.runtime, kernel.limits)
        before = Slots(0, 1000, 500, 0)
        for _ in range(2):
            await self.kernels.add(kernel, address_of())
            (agent,) = await self.directory.alive()
            self.assertEqual(agent.taken, before + takes)
        for _ in range(2):
            await self.kernels.forget(kernel)
            (agent,) = await self.directory.alive()
            self.assertEqual(agent.taken, before)

    async def test_nothing_is_counted_on_nobody(self) -> None:
        """A kernel that is added to an agent that has gone, or forgotten there, makes no agent of it."""
        kernel = kernel_of()
        await self.kernels.add(kernel, address_of())
        await self.kernels.forget(kernel)
        self.assertEqual(list(await self.directory.alive()), [])

    async def test_figures_reach_the_kernel(self) -> None:
        """An agent's figures appear with its kernel, and cannot change what the manager owns."""
        kernel = kernel_of()
        short = short_id(kernel.id)
        await self.kernels.add(kernel, address_of())
        stats = {"cpu_used": "12.5", "access_key": "AKIATHIEF", "instance": "i-evil", "num_queries": "99", "id": "x"}
        await self.heartbeats.beat(beat_of(kernels=frozenset({short}), stats={short: stats}), 3)
        place = await self.kernels.use("AKIAONE", short)
        assert place is not None
        self.assertEqual(place.stats["cpu_used"], "12.5")
        self.assertEqual((place.access_key, place.agent.agent_id, place.num_queries), ("AKIAONE", "i-one", 1))

    async def test_figures_never_resurrect(self) -> None:
        """Figures of a kernel that was forgotten, or that is another agent's, go nowhere."""
        kernel = kernel_of()
        short = short_id(kernel.id)
        await self.kernels.add(kernel, address_of("i-one"))
        await self.heartbeats.beat(beat_of("i-two", stats={short: {"cpu_used": "1"}}), 3)
        place = await self.kernels.use("AKIAONE", short)
        assert place is not None
        self.assertNotIn("cpu_used", place.stats)
        await self.kernels.forget(kernel)
        await self.heartbeats.beat(beat_of("i-one", stats={short: {"cpu_used": "1"}}), 3)
        self.assertIsNone(await self.kernels.use("AKIAONE", short))

    async def test_many_kernels(self) -> None:
        """A beat may name more kernels than Lua's stack has places."""
        kernels = frozenset(f"kernel-{number}" for number in range(9_000))
        await self.heartbeats.beat(beat_of(kernels=kernels, max_kernels=10_000), 3)
        self.assertEqual(await self.directory.kernels_of("i-one"), kernels)
        (agent,) = await self.directory.alive()
        self.assertEqual(agent.num_kernels, 9_000)

    async def test_ids_that_are_keys(self) -> None:
        """An id that would be taken for a key of the layout is refused, and finds nothing."""
        for agent_id in ("instances", "shadow:i-one", "i-one.kernels", "", "a b", "-x", "x" * 129, "i-one\n"):
            with self.assertRaises(InvalidRequest):
                await self.heartbeats.beat(beat_of(agent_id), 3)
            await self.heartbeats.leave(agent_id)
            self.assertIsNone(await self.directory.find(agent_id))
            self.assertEqual(await self.directory.kernels_of(agent_id), frozenset())


class MemoryDirectoryTests(DirectoryContract, MemoryCase):
    """The fakes."""


class ValkeyDirectoryTests(DirectoryContract, ValkeyCase):
    """A real server, and what only it has: the layout."""

    async def test_layout(self) -> None:
        """An operator's scripts of 2016 find the keys and fields they know."""
        await self.heartbeats.beat(beat_of("i-vm", kernels=frozenset({"k1"})), 3)
        flat = await self.db[2].command("HGETALL", "i-vm")
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        self.assertEqual(
            fields,
            {
                b"status": b"ok",
                b"id": b"i-vm",
                b"ip": b"127.0.0.1",
                b"addr": b"tcp://127.0.0.1:6011",
                b"type": b"unknown",
                b"num_kernels": b"1",
                b"max_kernels": b"10",
                b"incarnation": b"one",
                b"public_key": address_of().public_key.encode(),
                b"runtimes": b"c,python3",
                b"isolation": b"zygote",
                b"cpu_millis": b"4000",
                b"memory": b"1024",
                b"gpus": b"1",
                b"storage": b"",
                b"cpu_percent": b"",
                b"memory_used": b"",
                b"room_memory": b"",
                b"room_cpu_millis": b"",
                b"room_gpus": b"",
                b"taken_memory": b"0",
                b"taken_cpu_millis": b"0",
                b"taken_gpus": b"0",
                b"labels": b"{}",
                b"refuses_kernels": b"",
            },
        )
        self.assertEqual(await self.db[2].command("SMEMBERS", "i-vm.kernels"), [b"k1"])
        self.assertEqual(await self.db[2].command("GET", "shadow:i-vm"), b"")
        left = await self.db[2].command("PTTL", "shadow:i-vm")
        self.assertTrue(5_500 < left <= 6_000, left)

    async def test_the_connection_stays_in_its_database(self) -> None:
        """A script that writes to other databases leaves the connection where it was."""
        await self.heartbeats.beat(beat_of(), 3)
        await self.kernels.add(kernel_of(), address_of())
        self.assertEqual(await self.db[2].command("EXISTS", "shadow:i-one"), 1)
        self.assertEqual(await self.db[1].command("DBSIZE"), 1)

    async def test_one_malformed_agent(self) -> None:
        """A hash that somebody spoilt hides that agent only, and is logged once."""
        for agent_id in ("i-bad", "i-good", "i-gone"):
            await self.heartbeats.beat(beat_of(agent_id), 3)
        await self.db[2].command("HSET", "i-bad", "max_kernels", "many")
        await self.db[2].command("HDEL", "i-good", "cpu_millis", "memory", "gpus")
        await self.db[2].command("DEL", "i-gone")
        directory = RedisAgentDirectory(self.db[2])
        with capturedLogs() as events:
            for _ in range(2):
                self.assertEqual([agent.id for agent in await directory.alive()], ["i-good"])
        self.assertEqual(sorted(event["agent_id"] for event in events), ["i-bad", "i-gone"])
        self.assertIsNone(await directory.find("i-bad"))
