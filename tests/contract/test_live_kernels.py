"""The contract of LiveKernels."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from attrs import evolve
from twisted.internet.defer import Deferred, gatherResults

from sorna.live.kernels import NAMES_TOGETHER
from sorna.model.census import Traces
from sorna.model.kernel import short_id
from sorna.model.limits import MIB, Limits
from tests.contract.live_backends import MemoryCase, ValkeyCase, address_of, all_traces, beat_of, kernel_of

if TYPE_CHECKING:
    from tests.contract.live_backends import LiveCase as _Case
else:
    _Case = object

LIKE_AN_ID = "session-named-like-anQ"
LIKE_A_UUID = "01234567-89ab-cdef-0123-456789abcdef"


class LiveKernelsContract(_Case):
    async def test_found_by_every_reference(self) -> None:
        """A kernel is found by both spellings of its id and by its owner's token, with all that was written."""
        kernel = kernel_of()
        await self.kernels.add(kernel, address_of())
        for number, reference in enumerate((short_id(kernel.id), str(kernel.id), "token-1"), 1):
            place = await self.kernels.use("AKIAONE", reference)
            assert place is not None
            self.assertEqual(place.kernel_id, kernel.id)
            self.assertEqual(place.num_queries, number)
        assert place is not None
        self.assertEqual((place.runtime, place.requested_runtime, place.access_key), ("python3", "python", "AKIAONE"))
        self.assertEqual(place.session_token, "token-1")
        self.assertEqual(place.agent, address_of())
        self.assertAlmostEqual(place.created_at, 1_700_000_000.25, places=5)
        self.assertEqual(
            dict(place.stats), {"exec_timeout": "180", "idle_timeout": "600", "mem_limit": str(512 * 1024)}
        )

    async def test_several_at_once(self) -> None:
        """Several kernels are found at once with what their agents said; those that are not there are left out."""
        kernels = [kernel_of(session=f"token-{number}") for number in range(3)]
        for kernel in kernels[:2]:
            await self.kernels.add(kernel, address_of())
        name = short_id(kernels[0].id)
        await self.heartbeats.beat(beat_of(kernels=frozenset({name}), stats={name: {"cpu_used": "1.5"}}), 3)
        places = await self.kernels.places([kernel.id for kernel in kernels])
        self.assertEqual(set(places), {kernel.id for kernel in kernels[:2]})
        for kernel in kernels[:2]:
            one = await self.kernels.use(kernel.access_key, kernel.session_token, count=False)
            self.assertEqual(places[kernel.id], one)
        self.assertEqual(places[kernels[0].id].stats["cpu_used"], "1.5")
        self.assertEqual(await self.kernels.places([]), {})

    async def test_absent(self) -> None:
        """Of some kernels, those are told that have no entry."""
        kernels = [kernel_of(session=f"token-{number}") for number in range(3)]
        await self.kernels.add(kernels[1], address_of())
        names = [short_id(kernel.id) for kernel in kernels]
        self.assertEqual(set(await self.kernels.absent(names)), {names[0], names[2]})
        self.assertEqual(list(await self.kernels.absent(names[1:2])), [])
        self.assertEqual(list(await self.kernels.absent([])), [])

    async def test_not_counted(self) -> None:
        """A use that is not a query leaves the count alone."""
        kernel = kernel_of(num_queries=7)
        await self.kernels.add(kernel, address_of())
        for _ in range(2):
            place = await self.kernels.use("AKIAONE", "token-1", count=False)
            assert place is not None
            self.assertEqual(place.num_queries, 7)

    async def test_counted_afterwards(self) -> None:
        """Queries of kernels that were found before are added; a kernel that is gone is not brought back."""
        kernels = [kernel_of(session=f"token-{number}") for number in range(3)]
        for kernel in kernels[:2]:
            await self.kernels.add(kernel, address_of())
        await self.kernels.count({kernels[0].id: 2, kernels[1].id: 40, kernels[2].id: 1})
        await self.kernels.count({kernels[0].id: 1})
        await self.kernels.count({})
        places = await self.kernels.places([kernel.id for kernel in kernels])
        self.assertEqual(
            {one: place.num_queries for one, place in places.items()}, {kernels[0].id: 3, kernels[1].id: 40}
        )

    async def test_never_anothers(self) -> None:
        """No reference finds another owner's kernel, nor counts a query of it."""
        kernel = kernel_of()
        await self.kernels.add(kernel, address_of())
        for reference in (short_id(kernel.id), str(kernel.id), "token-1"):
            for thief in ("AKIATWO", "", "AKIAONE:", "akiaone"):
                self.assertIsNone(await self.kernels.use(thief, reference))
        self.assertIsNone(await self.kernels.use("AKIAONE:token-1"[:4], "ONE:token-1"))
        place = await self.kernels.use("AKIAONE", "token-1", count=False)
        assert place is not None
        self.assertEqual(place.num_queries, 0)

    async def test_keys_that_join_alike(self) -> None:
        """Owner and token that join to the same key as another's find nothing of that one."""
        kernel = kernel_of("AKIA:ONE", "token")
        await self.kernels.add(kernel, address_of())
        self.assertIsNone(await self.kernels.use("AKIA", "ONE:token"))
        self.assertIsNotNone(await self.kernels.use("AKIA:ONE", "token"))

    async def test_same_token_of_two_owners(self) -> None:
        """A token names each owner's own kernel."""
        first, second = kernel_of("AKIAONE"), kernel_of("AKIATWO")
        await self.kernels.add(first, address_of())
        await self.kernels.add(second, address_of())
        for kernel in (first, second):
            place = await self.kernels.use(kernel.access_key, "token-1")
            assert place is not None
            self.assertEqual(place.kernel_id, kernel.id)

    async def test_token_like_an_id(self) -> None:
        """A token that looks like an id, in either spelling, is found as a token when no kernel has that id."""
        for token in (LIKE_AN_ID, LIKE_A_UUID):
            kernel = kernel_of(session=token)
            await self.kernels.add(kernel, address_of())
            place = await self.kernels.use("AKIAONE", token)
            assert place is not None
            self.assertEqual(place.kernel_id, kernel.id)

    async def test_token_like_anothers_id(self) -> None:
        """A token that equals another owner's id finds the owner's own kernel."""
        theirs = kernel_of("AKIATWO")
        await self.kernels.add(theirs, address_of())
        mine = kernel_of("AKIAONE", short_id(theirs.id))
        await self.kernels.add(mine, address_of())
        place = await self.kernels.use("AKIAONE", short_id(theirs.id))
        assert place is not None
        self.assertEqual(place.kernel_id, mine.id)

    async def test_nothing_there(self) -> None:
        """Unknown references, odd ones included, find nothing and raise nothing."""
        for reference in (
            "",
            "nope",
            short_id(uuid.uuid4()),
            "*",
            "a\x00b",
            "\ud800",
            "한" * 9,
            "x" * 100_000,
            "a b\r\nc",
        ):
            self.assertIsNone(await self.kernels.use("AKIAONE", reference))

    async def test_odd_text_survives(self) -> None:
        """Text that needs escaping comes back as it was."""
        odd = "python:\"\\/\x00\x01\x7f\n한🎉'"
        kernel = kernel_of(session='t"\\\n한', requested_runtime=odd)
        await self.kernels.add(kernel, address_of())
        place = await self.kernels.use("AKIAONE", 't"\\\n한')
        assert place is not None
        self.assertEqual(place.requested_runtime, odd)

    async def test_forget(self) -> None:
        """A forgotten kernel is found by nothing; forgetting again, or what never was, is harmless."""
        kernel = kernel_of()
        await self.kernels.add(kernel, address_of())
        await self.kernels.forget(kernel)
        for reference in (short_id(kernel.id), str(kernel.id), "token-1"):
            self.assertIsNone(await self.kernels.use("AKIAONE", reference))
        await self.kernels.forget(kernel)
        await self.kernels.forget(evolve(kernel, agent_id=None))
        self.assertEqual(await self.directory.kernels_of("i-one"), frozenset())

    async def test_forget_leaves_the_next_session_alone(self) -> None:
        """A late removal of a kernel does not take the token from the kernel that has it now."""
        old, new = kernel_of(), kernel_of()
        await self.kernels.add(old, address_of())
        await self.kernels.add(new, address_of())
        await self.kernels.forget(old)
        place = await self.kernels.use("AKIAONE", "token-1")
        assert place is not None
        self.assertEqual(place.kernel_id, new.id)

    async def test_add_again(self) -> None:
        """Written again, after a loss or by another manager, a kernel keeps its count."""
        kernel = kernel_of(num_queries=3)
        await self.kernels.add(kernel, address_of())
        await self.kernels.use("AKIAONE", "token-1")
        await self.kernels.add(kernel, address_of())
        place = await self.kernels.use("AKIAONE", "token-1")
        assert place is not None
        self.assertEqual(place.num_queries, 5)

    async def test_concurrent_queries_are_all_counted(self) -> None:
        """Of many uses at once each gets its own number."""
        await self.kernels.add(kernel_of(), address_of())
        places = await gatherResults(
            [Deferred.fromCoroutine(self.kernels.use("AKIAONE", "token-1")) for _ in range(200)]
        )
        self.assertEqual([place.num_queries for place in places if place], list(range(1, 201)))

    async def test_many_kinds_of_uses_at_once(self) -> None:
        """Uses that are asked together are answered each for itself, whatever becomes of the others."""
        mine, theirs = kernel_of(), kernel_of("AKIATWO")
        await self.kernels.add(mine, address_of())
        await self.kernels.add(theirs, address_of())
        questions = [
            ("AKIAONE", "token-1"),
            ("AKIAONE", short_id(theirs.id)),
            ("AKIATWO", str(theirs.id)),
            ("AKIAONE", "nope"),
            ("AKIAONE", short_id(mine.id)),
        ]
        found = await gatherResults([Deferred.fromCoroutine(self.kernels.use(*question)) for question in questions])
        ids = [place and place.kernel_id for place in found]
        self.assertEqual(ids, [mine.id, None, theirs.id, None, mine.id])


class TracesContract(_Case):
    """What may be known by name only."""

    async def taken(self) -> tuple[int, int, int, int]:
        """Tell what the only agent has taken: kernels, memory, thousandths of processors, devices."""
        (agent,) = await self.directory.alive()
        return agent.num_kernels, agent.memory_taken, agent.cpu_millis_taken, agent.gpus_taken

    async def test_all_in_parts(self) -> None:
        """Every entry is in some part, however many there are; what is added or forgotten meanwhile makes nobody miss another."""
        self.assertEqual(await self.kernels.traces(), Traces(frozenset(), {}))
        kernels = [kernel_of(session=f"token-{number}") for number in range(2 * NAMES_TOGETHER + 50)]
        for kernel in kernels:
            await self.kernels.add(kernel, address_of())
        names = {short_id(kernel.id) for kernel in kernels}
        self.assertEqual(await all_traces(self.kernels), Traces(frozenset(names), {}))
        found, parts, rest = set[str](), 0, ""
        while rest or not parts:
            part = await self.kernels.traces(rest)
            self.assertLess(len(part.names), 1.5 * NAMES_TOGETHER)
            found |= part.names
            rest, parts = part.rest, parts + 1
            await self.kernels.forget(kernels[parts])
            await self.kernels.add(kernel_of(session=f"more-{parts}"), address_of())
        gone = {short_id(kernel.id) for kernel in kernels[1 : parts + 1]}
        self.assertGreater(parts, 1)
        self.assertEqual(names - gone - found, set())

    async def test_sessions_without_entry(self) -> None:
        """A session id is told of when the kernel that it names has no entry, and only then."""
        kernels = [kernel_of(session=f"token-{number}") for number in range(3)]
        for kernel in kernels:
            await self.kernels.add(kernel, address_of())
        await self.lose_entry(kernels[1])
        found = await all_traces(self.kernels)
        self.assertEqual(found.sessions, {"AKIAONE:token-1": short_id(kernels[1].id)})
        self.assertEqual(found.names, {short_id(kernels[0].id), short_id(kernels[2].id)})

    async def test_forgotten_by_name(self) -> None:
        """By its name alone every trace of a kernel goes, with what it counts on its agent; others stay as they are."""
        await self.heartbeats.beat(beat_of(), 60)
        limits = Limits(memory=64 * MIB, cpu_cores=0.5)
        stays, goes = kernel_of(), kernel_of("AKIATWO", limits=limits, runtime="python3-gpu")
        await self.kernels.add(stays, address_of())
        before = await self.taken()
        await self.kernels.add(goes, address_of())
        self.assertEqual(await self.taken(), (2, before[1] + 64 * MIB, before[2] + 500, before[3] + 1))
        stale = Traces(frozenset({short_id(goes.id), short_id(uuid.uuid4())}), {})
        self.assertEqual(await self.kernels.forget_traces(stale), 1)
        self.assertEqual(await self.taken(), before)
        self.assertIsNone(await self.kernels.use("AKIATWO", "token-1"))
        self.assertEqual(await all_traces(self.kernels), Traces(frozenset({short_id(stays.id)}), {}))
        self.assertEqual(await self.directory.kernels_of("i-one"), {short_id(stays.id)})
        self.assertEqual(await self.kernels.forget_traces(stale), 0)
        self.assertEqual(await self.taken(), before)

    async def test_counted_by_a_heartbeat_already(self) -> None:
        """What the agent's heartbeat has ceased to count is not taken off again, and no agent comes back by that."""
        kernel = kernel_of()
        await self.kernels.add(kernel, address_of())
        await self.heartbeats.beat(beat_of(), 60)
        stale = Traces(frozenset({short_id(kernel.id)}), {})
        self.assertEqual(await self.kernels.forget_traces(stale), 1)
        self.assertEqual(await self.taken(), (0, 0, 0, 0))
        await self.kernels.add(kernel, address_of())
        await self.heartbeats.leave("i-one")
        self.assertEqual(await self.kernels.forget_traces(stale), 1)
        self.assertEqual(list(await self.directory.alive()), [])

    async def test_the_next_session_stays(self) -> None:
        """The token of a kernel that is forgotten by its name may be the next one's already; a lone one goes only as it was seen."""
        old, new = kernel_of(), kernel_of()
        await self.kernels.add(old, address_of())
        await self.kernels.add(new, address_of())
        names = frozenset({short_id(old.id)})
        self.assertEqual(await self.kernels.forget_traces(Traces(names, {"AKIAONE:token-1": short_id(old.id)})), 1)
        place = await self.kernels.use("AKIAONE", "token-1")
        assert place is not None
        self.assertEqual(place.kernel_id, new.id)
        await self.lose_entry(new)
        lone = await all_traces(self.kernels)
        self.assertEqual(await self.kernels.forget_traces(lone), 1)
        self.assertEqual(await all_traces(self.kernels), Traces(frozenset(), {}))

    async def test_many_forgotten_at_once(self) -> None:
        """Hundreds go at once, entries and session ids; nothing of nothing is nothing."""
        self.assertEqual(await self.kernels.forget_traces(Traces(frozenset(), {})), 0)
        kernels = [kernel_of(session=f"t-\n한{number}") for number in range(250)]
        for kernel in kernels:
            await self.kernels.add(kernel, address_of())
        for kernel in kernels[:120]:
            await self.lose_entry(kernel)
        self.assertEqual(await self.kernels.forget_traces(await all_traces(self.kernels)), 250)
        self.assertEqual(await all_traces(self.kernels), Traces(frozenset(), {}))

    async def test_an_agent_cannot_change_what_counts(self) -> None:
        """What a kernel takes is the manager's word, and no figure of it."""
        kernel = kernel_of()
        name = short_id(kernel.id)
        await self.kernels.add(kernel, address_of())
        await self.heartbeats.beat(
            beat_of(kernels=frozenset({name}), stats={name: {"takes": "9 9 9", "idle": "1"}}), 60
        )
        place = await self.kernels.use("AKIAONE", name)
        assert place is not None
        self.assertEqual((place.stats["idle"], "takes" in place.stats), ("1", False))


class MemoryTracesTests(TracesContract, MemoryCase):
    """The fakes."""


class ValkeyTracesTests(TracesContract, ValkeyCase):
    """A real server."""

    async def test_what_is_none_of_ours(self) -> None:
        """Whatever else lies there is neither told of nor removed, whatever it is called."""
        name = short_id(uuid.uuid4())
        other = short_id(uuid.uuid4())
        await self.db[1].command("SET", name, "text")
        await self.db[1].command("HSET", other, "id", name)
        await self.db[1].command("HSET", "hash", "id", "hash")
        await self.db[3].command("RPUSH", "list", name)
        await self.db[3].command("SET", "short", "x")
        await self.db[3].command("SET", "long", "!" * 22)
        found = await all_traces(self.kernels)
        self.assertEqual(found, Traces(frozenset({name, other}), {}))
        wrong = Traces(frozenset({name, other, "nothing"}), {"list": name, "short": name})
        self.assertEqual(await self.kernels.forget_traces(wrong), 0)
        self.assertEqual([await self.db[number].command("DBSIZE") for number in (1, 3)], [3, 3])

    async def test_of_an_older_manager(self) -> None:
        """An entry that does not say what it takes goes all the same; its agent's next heartbeat counts right."""
        kernel = kernel_of()
        await self.heartbeats.beat(beat_of(), 60)
        await self.kernels.add(kernel, address_of())
        await self.db[1].command("HDEL", short_id(kernel.id), "takes")
        self.assertEqual(await self.kernels.forget_traces(await all_traces(self.kernels)), 1)
        self.assertEqual([await self.db[number].command("DBSIZE") for number in (1, 3)], [0, 0])
        self.assertEqual(await self.directory.kernels_of("i-one"), frozenset())


class MemoryLiveKernelsTests(LiveKernelsContract, MemoryCase):
    """The fakes."""


class ValkeyLiveKernelsTests(LiveKernelsContract, ValkeyCase):
    """A real server, and what only it has: the layout."""

    async def test_layout(self) -> None:
        """An operator's scripts of 2016 find the keys and fields they know."""
        kernel = kernel_of()
        short = short_id(kernel.id).encode()
        await self.kernels.add(kernel, address_of())
        flat = await self.db[1].command("HGETALL", short)
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        known = {
            b"id": short,
            b"instance": b"i-one",
            b"lang": b"python",
            b"addr": b"tcp://127.0.0.1:6011",
            b"stdin_port": b"",
            b"stdout_port": b"",
            b"created_at": b"2023-11-14T22:13:20.250000+00:00",
            b"num_queries": b"0",
            b"exec_timeout": b"180",
            b"mem_limit": b"524288",
        }
        self.assertEqual({name: fields[name] for name in known}, known)
        self.assertEqual(await self.db[3].command("GET", "AKIAONE:token-1"), short)
        self.assertEqual(await self.db[2].command("SMEMBERS", "i-one.kernels"), [short])

    async def test_forgotten_without_a_trace(self) -> None:
        """Removing leaves no key in any database."""
        kernel = kernel_of()
        await self.kernels.add(kernel, address_of())
        await self.kernels.forget(kernel)
        self.assertEqual([await self.db[number].command("DBSIZE") for number in (1, 2, 3)], [0, 0, 0])

    async def test_a_spoilt_hash(self) -> None:
        """A hash that lacks a field is no kernel."""
        kernel = kernel_of()
        await self.kernels.add(kernel, address_of())
        await self.db[1].command("HDEL", short_id(kernel.id), "created_at")
        self.assertIsNone(await self.kernels.use("AKIAONE", "token-1"))
