"""The choice of an agent: what each strategy means, that nothing is overfilled, and that every choice can be explained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from sorna.model.agent import Agent, AgentAddress, Capacity, Room, read_label, room_of
from sorna.model.limits import MIB
from sorna.model.placement import (
    Demand,
    Obstacle,
    PlacementRules,
    Strategy,
    explain,
    fits,
    load,
    place,
    read_rules,
    why_nobody,
)
from sorna.model.placement_index import REMEMBERED, PlacementIndex
from sorna.model.policy import Slots
from sorna.testing.unit import UnitTestCase

ONE = Demand("c", Slots(1, 512 * MIB, 1000, 0))
SPREAD = PlacementRules()


def agent(name: str, used: int = 0, size: int = 10, runtimes: Sequence[str] = ("c",), **more: Any) -> Agent:
    """Build an agent."""
    built = Agent(AgentAddress(name, f"tcp://{name}:6011", "k"), "1", frozenset(runtimes), used, size)
    return evolve(built, **more)


def with_kernel(chosen: Agent, slots: Slots) -> Agent:
    """Give the agent as it is with one kernel more."""
    return evolve(
        chosen,
        num_kernels=chosen.num_kernels + slots.kernels,
        memory_taken=chosen.memory_taken + slots.memory,
        cpu_millis_taken=chosen.cpu_millis_taken + slots.cpu_millis,
        gpus_taken=chosen.gpus_taken + slots.gpus,
    )


def chosen_id(
    demand: Demand, agents: Sequence[Agent], rules: PlacementRules = SPREAD, excluded: Sequence[str] = ()
) -> str:
    """Give the id of the agent that is chosen; empty for none."""
    found = place(demand, agents, rules, excluded)
    return "" if found is None else found.id


RUNTIMES = ("c", "python3", "python3-torch-gpu")
slots_of_any = st.builds(
    Slots, st.just(1), st.sampled_from([64, 256, 512, 1024]).map(MIB.__mul__), st.sampled_from([500, 1000, 4000]), st.integers(0, 2)
)  # fmt: skip
demands = st.builds(
    Demand,
    st.sampled_from(RUNTIMES),
    slots_of_any,
    st.frozensets(st.sampled_from([("zone", "a"), ("zone", "b"), ("disk", "ssd")]), max_size=2),
    st.sampled_from([None, "store"]),
)
rules_of_any = st.builds(
    PlacementRules,
    st.sampled_from(Strategy),
    st.just("zone"),
    st.frozensets(st.sampled_from(["i-0", "i-1", "i-2"]), max_size=2),
)


@st.composite
def clusters(draw: st.DrawFn, most: int = 7) -> Sequence[Agent]:
    """Draw the agents of a cluster, partly taken."""
    rooms = st.builds(
        Room,
        st.none() | st.integers(0, 8).map(lambda number: number * 512 * MIB),
        st.none() | st.integers(0, 16).map(lambda number: number * 500),
        st.none() | st.integers(0, 3),
    )
    found = []
    for number in range(draw(st.integers(0, most))):
        size = draw(st.integers(0, 6))
        found.append(
            agent(
                f"i-{number}",
                draw(st.integers(0, size)),
                size,
                draw(st.lists(st.sampled_from(RUNTIMES), unique=True)),
                room=draw(rooms),
                memory_taken=draw(st.integers(0, 4)) * 256 * MIB,
                cpu_millis_taken=draw(st.integers(0, 4)) * 500,
                gpus_taken=draw(st.integers(0, 1)),
                labels=draw(
                    st.fixed_dictionaries({}, optional={"zone": st.sampled_from("ab"), "disk": st.just("ssd")})
                ),
                storage=draw(st.sampled_from(["", "store"])),
                draining=draw(st.integers(0, 5)) == 0,
            )
        )
    return found


class StrategyTests(UnitTestCase):
    """What the strategies mean."""

    def test_spread(self) -> None:
        """The lowest load wins, ties by id; a load is the largest share of anything."""
        self.assertEqual(chosen_id(ONE, [agent("b", 1), agent("a", 1), agent("d", 1, 5)]), "a")
        tight = agent("a", 1, room=Room(memory=1024 * MIB), memory_taken=512 * MIB)
        self.assertEqual(load(tight), 0.5)
        self.assertEqual(chosen_id(ONE, [tight, agent("b", 4)]), "b")

    def test_pack(self) -> None:
        """The highest load that still has room wins."""
        packed = PlacementRules(Strategy.PACK)
        self.assertEqual(chosen_id(ONE, [agent("a", 1), agent("b", 9), agent("c", 10), agent("d", 9)], packed), "b")

    def test_label(self) -> None:
        """The zone with the smallest share of kernels comes first, whatever the load of its agents."""
        rules = PlacementRules(Strategy.LABEL, "zone")
        agents = [
            agent("a1", 0, labels={"zone": "a"}),
            agent("a2", 8, labels={"zone": "a"}),
            agent("b1", 3, labels={"zone": "b"}),
            agent("b2", 3, labels={"zone": "b"}),
        ]
        self.assertEqual(chosen_id(ONE, agents, rules), "b1")
        self.assertEqual(chosen_id(ONE, agents, rules, ("b1", "b2")), "a1")

    def test_device(self) -> None:
        """Kernels without devices keep away from them; those with go to where just enough are free."""
        rules = PlacementRules(Strategy.DEVICE)
        agents = [
            agent("big", room=Room(gpus=8)),
            agent("small", room=Room(gpus=2)),
            agent("half", room=Room(gpus=4), gpus_taken=3),
            agent("plain", 9, room=Room(gpus=0)),
        ]
        self.assertEqual(chosen_id(ONE, agents, rules), "plain")
        self.assertEqual(chosen_id(evolve(ONE, slots=Slots(1, 0, 0, 1)), agents, rules), "half")
        self.assertEqual(chosen_id(evolve(ONE, slots=Slots(1, 0, 0, 2)), agents, rules), "small")
        self.assertEqual(chosen_id(evolve(ONE, slots=Slots(1, 0, 0, 3)), agents, rules), "big")

    def test_gpu_runtimes_go_to_gpu_instances(self) -> None:
        """Where GPU instances are named, only they get runtimes for GPUs."""
        name = "python3-torch-gpu"
        agents = [agent("cpu", runtimes=[name]), agent("gpu", 8, runtimes=[name])]
        demand = Demand(name, Slots(1))
        self.assertEqual(chosen_id(demand, agents, PlacementRules(gpu_instances=frozenset({"gpu"}))), "gpu")
        self.assertEqual(chosen_id(demand, agents), "cpu")

    def test_reading(self) -> None:
        """The operator's word for a strategy, or nothing."""
        self.assertEqual(read_rules("label:zone"), PlacementRules(Strategy.LABEL, "zone"))
        self.assertEqual(read_rules("pack", ["g"]), PlacementRules(Strategy.PACK, "", frozenset({"g"})))
        for wrong in ("", "label", "label:", "spread:x", "random"):
            self.assertIsNone(read_rules(wrong), wrong)

    def test_labels_are_read(self) -> None:
        """A label has a key and a value; a key may have a prefix with a slash."""
        self.assertEqual(read_label("zone=a"), ("zone", "a"))
        self.assertEqual(read_label("example.org/zone=eu-1.b"), ("example.org/zone", "eu-1.b"))
        for wrong in ("", "zone", "zone=", "=a", "a b=c", "a=b=c", "-a=b", "a=b-", "k" * 64 + "=v"):
            self.assertIsNone(read_label(wrong), wrong)

    def test_room(self) -> None:
        """Overcommitment multiplies what a host has; without it there is no bound, but for devices."""
        host = Capacity(4000, 1024, 2)
        self.assertEqual(room_of(host, 2, 1.5), Room(2048, 6000, 2))
        self.assertEqual(room_of(host, 0, 0), Room(None, None, 2))


class PropertyTests(UnitTestCase):
    """What holds for every cluster."""

    @given(clusters(), demands, rules_of_any, st.frozensets(st.sampled_from(["i-0", "i-1"])))
    def test_never_over_capacity(
        self, agents: Sequence[Agent], demand: Demand, rules: PlacementRules, excluded: frozenset[str]
    ) -> None:
        """Who is chosen offers what is wanted and has room for it; nobody is chosen only when nobody can be."""
        found = place(demand, agents, rules, excluded)
        able = [one for one in agents if fits(one, demand, rules) and one.id not in excluded]
        self.assertEqual(found is None, not able)
        if found is None:
            return
        self.assertIn(found, able)
        after = with_kernel(found, demand.slots)
        self.assertLessEqual(after.num_kernels, after.max_kernels)
        for taken, bound in (
            (after.memory_taken, after.room.memory),
            (after.cpu_millis_taken, after.room.cpu_millis),
            (after.gpus_taken if demand.slots.gpus else 0, after.room.gpus),
        ):
            self.assertTrue(bound is None or taken <= bound)
        self.assertFalse(found.draining)
        self.assertIn(demand.runtime, found.runtimes)
        self.assertLessEqual(demand.labels, set(found.labels.items()))

    @given(clusters(), demands, rules_of_any, st.randoms())
    def test_deterministic(
        self, agents: Sequence[Agent], demand: Demand, rules: PlacementRules, random: object
    ) -> None:
        """The order in which agents are listed does not matter."""
        shuffled = list(agents)
        random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis types it as an object
        self.assertEqual(place(demand, agents, rules), place(demand, shuffled, rules))

    @given(clusters(), demands)
    def test_spread_and_pack(self, agents: Sequence[Agent], demand: Demand) -> None:
        """Nobody who could hold it has a lower load than who spread chooses, or a higher one than who pack chooses."""
        able = [load(one) for one in agents if fits(one, demand, SPREAD)]
        spread, packed = place(demand, agents, SPREAD), place(demand, agents, PlacementRules(Strategy.PACK))
        if spread is not None and packed is not None:
            self.assertEqual((load(spread), load(packed)), (min(able), max(able)))

    @given(clusters(), demands, rules_of_any)
    def test_explained(self, agents: Sequence[Agent], demand: Demand, rules: PlacementRules) -> None:
        """The first judgement is the choice; whoever has no place has a reason in words."""
        judged = explain(demand, agents, rules)
        self.assertEqual({one.agent_id for one in judged}, {one.id for one in agents})
        found = place(demand, agents, rules)
        self.assertEqual([one.agent_id for one in judged if one.place == 1], [] if found is None else [found.id])
        for one in judged:
            self.assertEqual(one.place is None, bool(one.obstacles))
            self.assertTrue(all(sentence for _obstacle, sentence in one.obstacles))
        if found is None:
            self.assertRegex(why_nobody(demand, judged), r"\A(No|Every) .*\.\Z")

    @settings(max_examples=200)
    @given(
        clusters(),
        rules_of_any,
        st.lists(st.tuples(st.integers(0, 6), demands, clusters(1), st.frozensets(st.sampled_from(["i-0", "i-3"]))), max_size=25),
    )  # fmt: skip
    def test_index_is_the_same(self, agents: Sequence[Agent], rules: PlacementRules, steps: Sequence[tuple[int, Demand, Sequence[Agent], frozenset[str]]]) -> None:  # fmt: skip
        """However agents change, the index chooses whom the pure function chooses."""
        index = PlacementIndex(rules)
        for one in agents:
            index.put(one)
        for number, demand, news, excluded in steps:
            found = index.choose(demand, excluded)
            self.assertEqual(found, place(demand, list(index.agents.values()), rules, excluded))
            if found is not None:
                index.put(with_kernel(found, demand.slots))
            agent_id = f"i-{number}"
            if news:
                index.put(evolve(news[0], address=evolve(news[0].address, agent_id=agent_id)))
            else:
                index.remove(agent_id)

    def test_index_is_bounded(self) -> None:
        """Lists are kept for the last kinds of demands only, and those of before are made again."""
        index = PlacementIndex(SPREAD)
        index.put(agent("a"))
        for memory in range(2 * REMEMBERED):
            self.assertIsNotNone(index.choose(Demand("c", Slots(1, memory))))
        self.assertEqual(len(index._kinds), 1)
        for number in range(2 * REMEMBERED):
            self.assertIsNone(index.choose(Demand("c", Slots(1), frozenset({("zone", str(number))}))))
        self.assertEqual(len(index._kinds), REMEMBERED)


class SentenceTests(UnitTestCase):
    """What a refused client is told."""

    def why(self, demand: Demand, *agents: Agent) -> str:
        """Give the sentence."""
        self.assertIsNone(place(demand, agents, SPREAD))
        return why_nobody(demand, explain(demand, agents, SPREAD))

    def test_sentences(self) -> None:
        """The sentence is about those that come closest."""
        full, other = agent("full", 10), agent("other", runtimes=["go"])
        self.assertEqual(self.why(ONE), "No agent is alive.")
        self.assertEqual(self.why(ONE, other), "No agent offers c.")
        self.assertEqual(self.why(ONE, other, full), "Every agent that offers c is full.")
        labelled = evolve(ONE, labels=frozenset({("zone", "a")}))
        self.assertEqual(self.why(labelled, other, full), "No agent that offers c has the label zone=a.")
        mounting = evolve(ONE, storage="s")
        self.assertEqual(
            self.why(mounting, agent("a")), "No agent has the storage of the folders that are to be mounted."
        )
        self.assertEqual(self.why(ONE, agent("a", draining=True)), "Every agent that could hold c is being drained.")
        two = evolve(ONE, slots=Slots(1, 0, 0, 2))
        without, one = agent("a", room=Room(gpus=0)), agent("b", room=Room(gpus=1), gpus_taken=1)
        for agents, figures in (((without,), "0 of 0"), ((one, without), "0 of 0"), ((one,), "1 of 1")):
            sentence = f"No agent has what is asked for: GPUs: {figures} taken, 2 asked for."
            self.assertEqual(self.why(two, *agents), sentence)

    def test_reasons(self) -> None:
        """Each agent's reasons name figures."""
        tight = agent("a", 10, room=Room(600 * MIB, 1500, 0), memory_taken=512 * MIB, cpu_millis_taken=1000)
        (judged,) = explain(Demand("c", Slots(1, 512 * MIB, 1000, 1)), [tight], SPREAD)
        ((obstacle, sentence),) = judged.obstacles
        self.assertIs(obstacle, Obstacle.ROOM)
        self.assertTrue(judged.would_fit_if_empty)
        self.assertEqual(
            sentence,
            "kernels: 10 of 10 taken; memory: 512 of 600 MiB taken, 512 MiB asked for;"
            " processors: 1 of 1.5 taken, 1 asked for; GPUs: 0 of 0 taken, 1 asked for",
        )
