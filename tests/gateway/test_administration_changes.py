"""``POST /admin/graphql``: what a user sees, and what an administrator changes."""

from __future__ import annotations

from typing import Any

from sorna.errors import Unavailable
from sorna.manager.keypairs import KEYPAIR_TOPIC
from sorna.model.agent import Heartbeat
from sorna.model.kernel import KernelSpec, KernelStatus
from sorna.model.queue import QueueBounds
from sorna.testing.gateway import EXAMPLE
from tests.cluster.scripted import ScriptedOperations
from tests.gateway.administration import CREATE, MODIFY, AdministrationTestCase
from tests.gateway.base import NOW, OTHER


class UserTests(AdministrationTestCase):
    """Who is no administrator sees only what is its own."""

    def test_own_things(self) -> None:
        """Its keypair, its sessions and its usage, and nobody else's under any name."""
        mine, theirs = self.kernel("token-1", OTHER.access_key), self.kernel("token-2")
        query = "{ keypair { access_key secret_key compute_sessions { sess_id } } compute_sessions { sess_id } vfolders { name } }"
        self.assertEqual(
            self.data(query, keypair=OTHER),
            {
                "keypair": {
                    "access_key": OTHER.access_key,
                    "secret_key": OTHER.secret_key,
                    "compute_sessions": [{"sess_id": "token-1"}],
                },
                "compute_sessions": [{"sess_id": "token-1"}],
                "vfolders": [],
            },
        )
        one = "query($s: String) { compute_session(sess_id: $s) { sess_id } }"
        for reference, token in ((str(mine.id), "token-1"), ("token-2", None), (str(theirs.id), None)):
            self.assertEqual(self.data(one, {"s": reference}, keypair=OTHER)["compute_session"]["sess_id"], token)
        page = "query($k: String) { compute_session_list(limit: 9, offset: 0, access_key: $k) { total_count items { name } } }"
        for access_key, count in ((None, 1), (OTHER.access_key, 1), (EXAMPLE.access_key, 0)):
            found = self.data(page, {"k": access_key}, keypair=OTHER)["compute_session_list"]
            self.assertEqual((found["total_count"], len(found["items"])), (count, count))
        usage = '{ usage(since: "2017-07-14", until: "2027-07-15") { access_key } }'
        self.clock.advance(9)
        self.assertEqual(self.data(usage, keypair=OTHER), {"usage": [{"access_key": OTHER.access_key}]})
        other = usage.replace("until", f'access_key: "{EXAMPLE.access_key}", until')
        self.assertEqual(self.data(other, keypair=OTHER), {"usage": []})

    def test_nothing_of_an_administrator(self) -> None:
        """Every query and mutation of the administrator's root is no part of a user's."""
        for query in (
            "{ keypairs { access_key } }",
            '{ keypair(access_key: "x") { access_key } }',
            '{ compute_sessions(access_key: "x") { sess_id } }',
            "{ agents { id } }",
            "{ resource_policies { name } }",
            'mutation { delete_keypair(access_key: "x") { ok } }',
            'mutation { modify_keypair(access_key: "x", props: {is_admin: true}) { ok } }',
        ):
            self.assert_problem(self.ask(query, keypair=OTHER), 400, "invalid-api-params")


class MutationTests(AdministrationTestCase):
    """What an administrator changes."""

    def setUp(self) -> None:
        super().setUp()
        self.announced: list[str] = []
        self.world.announcements.subscribe(KEYPAIR_TOPIC, self.announced.append)

    def stored(self, access_key: str) -> Any:
        return self.done(self.world.keypairs.by_access_key(access_key))

    def test_create(self) -> None:
        """The mutation of a published client; what it leaves out gets the defaults."""
        wishes = {
            "is_active": True,
            "is_admin": False,
            "resource_policy": None,
            "rate_limit": None,
            "concurrency_limit": 7,
        }
        made = self.data(CREATE, {"user_id": 5, "input": wishes})["create_keypair"]
        self.assertEqual((made["ok"], made["msg"]), (True, ""))
        keypair = self.stored(made["keypair"]["access_key"])
        self.assertEqual(keypair.secret_key, made["keypair"]["secret_key"])
        self.assertEqual(
            (keypair.user_id, keypair.rate_limit, keypair.concurrency_limit, keypair.created_at), ("5", 1000, 7, NOW)
        )
        named = CREATE.replace("$user_id: Int!", "$user_id: String!")
        made = self.data(named, {"user_id": "user@example.com", "input": {}})["create_keypair"]
        self.assertEqual(self.stored(made["keypair"]["access_key"]).user_id, "user@example.com")

    def test_create_refused(self) -> None:
        """A refusal is an answer with ok false and the reason, and makes nothing."""
        before = self.done(self.world.keypairs.count())
        for user, wishes, word in (
            (1, {"rate_limit": -1}, "rate_limit"),
            (1, {"concurrency_limit": -5}, "concurrency_limit"),
            (1, {"resource_policy": "nothing"}, "resource policy"),
            ("", {}, "user id"),
            ("x" * 257, {}, "user id"),
        ):
            query = CREATE if user == 1 else CREATE.replace("$user_id: Int!", "$user_id: String!")
            answer = self.data(query, {"user_id": user, "input": wishes})["create_keypair"]
            self.assertEqual((answer["ok"], answer["keypair"]), (False, None))
            self.assertIn(word, answer["msg"])
        self.assertEqual(self.done(self.world.keypairs.count()), before)

    def test_modify(self) -> None:
        """What is given changes and is announced."""
        changes = {"is_active": False, "is_admin": None, "rate_limit": 3}
        done = self.data(MODIFY, {"access_key": OTHER.access_key, "input": changes})
        self.assertEqual(done, {"modify_keypair": {"ok": True, "msg": ""}})
        keypair = self.stored(OTHER.access_key)
        self.assertEqual((keypair.is_active, keypair.is_admin, keypair.rate_limit), (False, False, 3))
        self.assertEqual(self.announced, [OTHER.access_key])
        done = self.data(MODIFY, {"access_key": "AKIANOBODY", "input": {}})
        self.assertEqual(done["modify_keypair"], {"ok": False, "msg": "there is no such keypair"})

    def test_nobody_locks_itself_out(self) -> None:
        """An administrator can change its own limits, and neither disable, demote nor remove itself."""
        for changes, ok in (
            ({"is_active": False}, False),
            ({"is_admin": False}, False),
            ({"is_admin": True, "rate_limit": 5}, True),
        ):
            done = self.data(MODIFY, {"access_key": EXAMPLE.access_key, "input": changes})["modify_keypair"]
            self.assertEqual((done["ok"], "itself" in done["msg"]), (ok, not ok))
        removed = self.data(f'mutation {{ delete_keypair(access_key: "{EXAMPLE.access_key}") {{ ok msg }} }}')
        self.assertFalse(removed["delete_keypair"]["ok"])

    def test_a_lost_announcement_loses_no_change(self) -> None:
        """A change that cannot be announced is a change all the same."""
        self.world.redis.available = False
        self.data(MODIFY, {"access_key": OTHER.access_key, "input": {"is_active": False}})
        self.assertFalse(self.stored(OTHER.access_key).is_active)
        self.assertEqual(len(self.flushLoggedErrors(Unavailable)), 1)

    def test_delete(self) -> None:
        """A keypair without live kernels is removed; one with them is not."""
        kernel = self.kernel("token-1", OTHER.access_key)
        query = "mutation($access_key: String!) {  delete_keypair(access_key: $access_key) {    ok msg  }}"
        refused = self.data(query, {"access_key": OTHER.access_key})["delete_keypair"]
        self.assertFalse(refused["ok"])
        self.assertIn("live kernels", refused["msg"])
        self.done(self.world.kernels.change_status(kernel.id, KernelStatus.TERMINATED, "asked", NOW + 5))
        self.assertTrue(self.data(query, {"access_key": OTHER.access_key})["delete_keypair"]["ok"])
        self.assertIsNone(self.stored(OTHER.access_key))
        self.assertEqual(self.announced, [OTHER.access_key])

    def test_several_in_their_order(self) -> None:
        """Mutations of one document happen one after another, and what is read with each is as it left things."""
        change = f'modify_keypair(access_key: "{OTHER.access_key}", props: {{rate_limit: %d}}) {{ ok }}'
        query = (
            "mutation { a: create_keypair(user_id: 1, props: {rate_limit: 1}) { ok keypair { rate_limit } }"
            f' b: {change % 2} c: delete_keypair(access_key: "AKIANOBODY") {{ ok msg }} d: {change % 4} }}'
        )
        answer = self.data(query)
        self.assertEqual([answer[key]["ok"] for key in answer], [True, True, False, True])
        self.assertEqual(list(answer), ["a", "b", "c", "d"])
        self.assertEqual(self.stored(OTHER.access_key).rate_limit, 4)

    def test_policies(self) -> None:
        """A policy is stored, given to a keypair, seen, and removed when nobody has it."""
        put = 'mutation($props: ResourcePolicyInput!) { put_resource_policy(name: "course", props: $props) { ok msg } }'
        props = {"max_kernels": 2, "memory": 2**33, "cpu_cores": 1.5, "runtimes": ["python", "c"], "lifetime": 60}
        self.assertEqual(self.data(put, {"props": props})["put_resource_policy"], {"ok": True, "msg": ""})
        self.data(MODIFY, {"access_key": OTHER.access_key, "input": {"resource_policy": "course"}})
        self.assertEqual(self.announced, ["", OTHER.access_key])
        seen = self.data(
            "{ resource_policies { name max_kernels memory cpu_cores gpus runtimes lifetime }"
            ' resource_policy(name: "course") { name } nothing: resource_policy(name: "x") { name }'
            f' keypair(access_key: "{OTHER.access_key}") {{ resource_policy }} }}'
        )
        (policy,) = seen["resource_policies"]
        self.assertEqual(sorted(policy.pop("runtimes")), ["c", "python3"])
        self.assertEqual(
            policy,
            {"name": "course", "max_kernels": 2, "memory": 2**33, "cpu_cores": 1.5, "gpus": None, "lifetime": 60.0},
        )
        self.assertEqual((seen["resource_policy"], seen["nothing"]), ({"name": "course"}, None))
        self.assertEqual(seen["keypair"], {"resource_policy": "course"})
        remove = 'mutation { delete_resource_policy(name: "course") { ok msg } }'
        self.assertIn("keypairs have this policy", self.data(remove)["delete_resource_policy"]["msg"])
        self.data(MODIFY, {"access_key": OTHER.access_key, "input": {"resource_policy": ""}})
        self.assertTrue(self.data(remove)["delete_resource_policy"]["ok"])
        self.assertEqual(self.data(remove)["delete_resource_policy"]["msg"], "there is no such resource policy")

    def test_policies_refused(self) -> None:
        """A policy with a value that makes no sense is not stored."""
        put = "mutation($name: String!, $props: ResourcePolicyInput!) { put_resource_policy(name: $name, props: $props) { ok msg } }"
        for name, props, word in (
            ("", {}, "name"),
            ("x" * 65, {}, "name"),
            ("p", {"max_kernels": -1}, "max_kernels"),
            ("p", {"memory": "much"}, "memory"),
            ("p", {"memory": 2**63}, "memory"),
            ("p", {"memory": True}, "memory"),
            ("p", {"cpu_cores": -0.5}, "cpu_cores"),
            ("p", {"lifetime": 0}, "lifetime"),
            ("p", {"runtimes": ["c", "cobol"]}, "cobol"),
        ):
            answer = self.data(put, {"name": name, "props": props})["put_resource_policy"]
            self.assertFalse(answer["ok"], props)
            self.assertIn(word, answer["msg"])
        self.assertEqual(self.done(self.world.keypairs.policies.all()), [])


class AgentTests(AdministrationTestCase):
    """Explanations and drains."""

    def setUp(self) -> None:
        super().setUp()
        self.done(self.world.agents.enrol("i-1", "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7", NOW))
        self.host = ScriptedOperations()
        self.world.hosts["i-1"] = self.host
        self.beat()

    def beat_labelled(self, **more: Any) -> None:
        """Let the agent say that it lives in the zone a."""
        heartbeat = Heartbeat(
            "i-1", "x", "tcp://127.0.0.1:1", "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7", frozenset({"c"}), frozenset(),
            5, "none", {}, labels={"zone": "a", "scaling-group": "fast"}, **more,
        )  # fmt: skip
        self.done(self.world.heartbeats.beat(heartbeat, 3.0))

    def test_explained(self) -> None:
        """Each agent has a place, or reasons why it has none."""
        self.beat_labelled()
        query = """query($labels: [String!], $memory: BigInt) {
          explain_placement(runtime: "c", labels: $labels, memory: $memory, cpu_cores: 0.5, gpus: 0) { agent place load reasons }
        }"""
        self.assertEqual(
            self.data(query, {"labels": ["zone=a"], "memory": 2**28})["explain_placement"],
            [{"agent": "i-1", "place": 1, "load": 0.0, "reasons": []}],
        )
        self.assertEqual(
            self.data(query, {"labels": ["zone=b"]})["explain_placement"],
            [{"agent": "i-1", "place": None, "load": 0.0, "reasons": ["lacks the label zone=b"]}],
        )
        self.assert_problem(self.ask(query, {"labels": ["zone"]}), 400, "invalid-api-params")
        self.assert_problem(self.ask(query, {"memory": "much"}), 400, "invalid-api-params")

    def test_for_administrators_only(self) -> None:
        """Users neither see agents nor drain them."""
        for query in (
            '{ explain_placement(runtime: "c") { agent } }',
            'mutation { drain_agent(agent_id: "i-1") { ok } }',
            'mutation { undrain_agent(agent_id: "i-1") { ok } }',
        ):
            self.assert_problem(self.ask(query, keypair=OTHER), 400, "invalid-api-params")
        self.assertEqual(self.done(self.world.agents.drains()), {})

    def test_drain(self) -> None:
        """A drained agent is listed as such, and told; undone it is as before; one that has gone is terminated."""
        self.beat_labelled()
        drain = 'mutation($w: Float) { drain_agent(agent_id: "i-1", wait: $w) { ok msg } }'
        self.assertEqual(self.data(drain, {"w": 60})["drain_agent"], {"ok": True, "msg": ""})
        self.assertEqual(self.host.calls, [("drain", True)])
        query = """{ agents { id status schedulable labels scaling_group kernels max_kernels load drained_since drain_deadline } }"""
        (listed,) = self.data(query)["agents"]
        self.assertIsNotNone(listed.pop("drained_since"))
        self.assertIsNotNone(listed.pop("drain_deadline"))
        self.assertEqual(
            listed,
            {
                "id": "i-1",
                "status": "DRAINING",
                "schedulable": False,
                "labels": ["scaling-group=fast", "zone=a"],
                "scaling_group": "fast",
                "kernels": 0,
                "max_kernels": 5,
                "load": 0.0,
            },
        )
        page = "query($s: String, $g: String) { agent_list(limit: 9, offset: 0, status: $s, scaling_group: $g) { total_count } }"
        for status, group, count in (
            ("ALIVE", None, 0),
            ("DRAINING", None, 1),
            ("ALIVE,DRAINING", "fast", 1),
            ("DRAINING", "default", 0),
        ):
            self.assertEqual(self.data(page, {"s": status, "g": group})["agent_list"]["total_count"], count)
        self.clock.advance(7)
        self.assertEqual(self.data("{ agents { status } }")["agents"], [{"status": "TERMINATED"}])
        self.assertTrue(self.data('mutation { undrain_agent(agent_id: "i-1") { ok } }')["undrain_agent"]["ok"])
        self.assertEqual(
            self.data("{ agents { status schedulable } }")["agents"], [{"status": "LOST", "schedulable": True}]
        )

    def test_refused(self) -> None:
        """What is not there, or no time, changes nothing and says so."""
        for query, why in (
            ('mutation { done: drain_agent(agent_id: "i-9") { ok msg } }', "there is no such agent"),
            ('mutation { done: undrain_agent(agent_id: "i-9") { ok msg } }', "there is no such agent"),
            ('mutation { done: drain_agent(agent_id: "i-1", wait: -1) { ok msg } }', "the time to wait must be"),
        ):
            answer = self.data(query)["done"]
            self.assertFalse(answer["ok"])
            self.assertIn(why, answer["msg"])


class QueueTests(AdministrationTestCase):
    """Kernels that wait for an agent."""

    def test_listed_with_their_places(self) -> None:
        """Who waits has a position and a deadline, and counts among the live ones; who does not has neither."""
        self.kernel("token-1")
        for token in ("token-2", "token-3"):
            kernel = self.kernel(token, status=None)
            spec = KernelSpec(EXAMPLE.access_key, token, "python3", "python", kernel.limits)
            now = self.clock.seconds()
            self.done(self.world.queue.put(kernel.id, spec, now + 60, now, QueueBounds()))
        query = """{ compute_session_list(limit: 9, offset: 0, status: "PENDING,RUNNING") {
          items { sess_id status status_info queue_position queue_deadline } } }"""
        items = self.data(query)["compute_session_list"]["items"]
        for item in items:
            self.assertEqual(item.pop("queue_deadline") is not None, item["status"] == "PENDING")
        self.assertEqual(
            items,
            [
                {"sess_id": "token-3", "status": "PENDING", "status_info": "queued", "queue_position": 2},
                {"sess_id": "token-2", "status": "PENDING", "status_info": "queued", "queue_position": 1},
                {"sess_id": "token-1", "status": "RUNNING", "status_info": "", "queue_position": None},
            ],
        )
        one = '{ compute_session(sess_id: "nobody") { queue_position } }'
        self.assertIsNone(self.data(one)["compute_session"]["queue_position"])
