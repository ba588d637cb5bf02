"""``POST /admin/graphql``: what an administrator sees."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from typing import Any

from attrs import evolve

from sorna.errors import Unavailable
from sorna.model.folder import Folder, FolderBounds, FolderUse, Permission
from sorna.model.kernel import KernelStatus, new_kernel_id, short_id
from sorna.testing.gateway import EXAMPLE
from tests.gateway.administration import AGENTS, KEYPAIRS, PATH, SESSIONS, AdministrationTestCase
from tests.gateway.base import ADMINISTRATOR, INACTIVE, NOW, OTHER, POOR


class Counting:
    """Passes everything on and counts what was asked."""

    def __init__(self, asked: Any) -> None:
        self._asked = asked
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        self.calls[name] += 1
        return getattr(self._asked, name)


class QueryTests(AdministrationTestCase):
    """What an administrator sees."""

    def test_keypairs(self) -> None:
        """The query of a published client: bare data, keys in the order of the query, 0 for every user."""
        answer = self.data(KEYPAIRS, {"user_id": 0, "is_active": None})
        self.assertEqual(list(answer), ["keypairs"])
        self.assertEqual(
            {one["access_key"] for one in answer["keypairs"]}, set(self.keypairs.all) - {ADMINISTRATOR.access_key}
        )
        self.assertEqual(
            list(answer["keypairs"][0]),
            [
                "access_key",
                "secret_key",
                "is_active",
                "is_admin",
                "created_at",
                "last_used",
                "resource_policy",
                "rate_limit",
                "concurrency_limit",
            ],
        )
        answer = self.data(KEYPAIRS, {"user_id": 0, "is_active": False})
        self.assertEqual([one["access_key"] for one in answer["keypairs"]], [INACTIVE.access_key])
        self.assertEqual(self.data(KEYPAIRS, {"user_id": 77})["keypairs"], [])

    def test_every_version_and_none(self) -> None:
        """The route is below every version and at the root, where the body is not signed."""
        for prefix in ("", "/v1", "/v2", "/v3"):
            for version in (b"v2.20170315", b"v4.20181215"):
                got = self.data("{ keypair { access_key } }", path=f"{prefix}/admin/graphql", version=version)
                self.assertEqual(got, {"keypair": {"access_key": EXAMPLE.access_key}})

    def test_sessions(self) -> None:
        """Sessions of all owners, the newest first, in any of several statuses."""
        first, second = self.kernel("token-1"), self.kernel("token-2", OTHER.access_key)
        self.kernel("token-3", status=KernelStatus.TERMINATED)
        answer = self.data(SESSIONS, {"status": "RUNNING", "ak": None})
        self.assertEqual(
            answer["compute_sessions"][1],
            {
                "sess_id": "token-1", "lang": "python", "created_at": "2017-07-14T02:40:01+00:00", "terminated_at": None,
                "status": "RUNNING", "mem_slot": 2, "cpu_slot": 2, "gpu_slot": 0,
            },
        )  # fmt: skip
        for wanted, tokens in (
            (None, "321"), ("RUNNING", "21"), ("PENDING,TERMINATED,PULLING", "3"), ("RUNNING,TERMINATED", "321"),
            ("PENDING", ""), ("nonsense", ""),
        ):  # fmt: skip
            found = self.data(SESSIONS, {"status": wanted})["compute_sessions"]
            self.assertEqual("".join(one["sess_id"][-1] for one in found), tokens, wanted)
        query = "query($ak:String) { compute_sessions(access_key:$ak) { sess_id id access_key } }"
        self.assertEqual(
            self.data(query, {"ak": OTHER.access_key})["compute_sessions"],
            [{"sess_id": "token-2", "id": str(second.id), "access_key": OTHER.access_key}],
        )
        self.assertNotEqual(first.id, second.id)

    def test_pages(self) -> None:
        """Later clients page through everything, and learn how much there is."""
        for number in range(5):
            self.kernel(f"token-{number}")
        query = (
            "query($limit:Int!, $offset:Int!, $status: String, $access_key: String) { compute_session_list(limit:$limit,"
            " offset:$offset, status:$status, access_key:$access_key) { items { name } total_count } }"
        )
        page = self.data(query, {"limit": 2, "offset": 1, "status": None, "access_key": None})["compute_session_list"]
        self.assertEqual(page, {"items": [{"name": "token-3"}, {"name": "token-2"}], "total_count": 5})
        listed = self.data("{ keypair_list(limit: 1, offset: 0) { total_count items { user_info { full_name } } } }")
        self.assertEqual(listed["keypair_list"], {"total_count": 4, "items": [{"user_info": {"full_name": "2"}}]})
        plain = self.data(
            "{ compute_sessions(limit: 1, offset: 4) { sess_id } keypairs(limit: 1, offset: 9) { user_id } }"
        )
        self.assertEqual(plain, {"compute_sessions": [{"sess_id": "token-0"}], "keypairs": []})
        for other in ('domain_name: "x"', 'domain_name: ""'):
            found = self.data(f"{{ keypair_list(limit: 1, offset: 0, {other}) {{ total_count items {{ user_id }} }} }}")
            self.assertEqual(found["keypair_list"], {"total_count": 0, "items": []})

    def test_one_session(self) -> None:
        """A session by token or id, with what its agent said of it; clients look into one that is not there."""
        kernel = self.kernel("token-1")
        self.beat()
        self.done(self.world.live.add(kernel, self.done(self.world.administration.directory.find("i-1")).address))
        name = short_id(kernel.id)
        self.beat(kernel, stats={name: {"cpu_used": "12.6", "mem_max_bytes": "4096", "net_rx_bytes": "x"}})
        self.done(self.world.live.use(kernel.access_key, name))
        query = (
            "query($sess_id:String) { compute_session(sess_id:$sess_id) { sess_id role agent status_info cpu_used"
            " mem_max_bytes net_rx_bytes num_queries } }"
        )
        right = {
            "sess_id": "token-1", "role": "master", "agent": "i-1", "status_info": "", "cpu_used": 13,
            "mem_max_bytes": 4096, "net_rx_bytes": None, "num_queries": 1,
        }  # fmt: skip
        for reference in ("token-1", name, str(kernel.id)):
            self.assertEqual(self.data(query, {"sess_id": reference})["compute_session"], right)
        for nobody in ("nobody-has-this", None, "\0", short_id(new_kernel_id())):
            self.assertEqual(self.data(query, {"sess_id": nobody})["compute_session"], dict.fromkeys(right))

    def test_an_ended_session(self) -> None:
        """What an ended session used is in the record."""
        self.kernel("token-1", status=KernelStatus.TERMINATED)
        query = "{ compute_sessions { cpu_used mem_max_bytes mem_cur_bytes net_rx_bytes num_queries terminated_at workers { id } } }"
        self.assertEqual(
            self.data(query)["compute_sessions"],
            [
                {
                    "cpu_used": 1500, "mem_max_bytes": 2**40, "mem_cur_bytes": None, "net_rx_bytes": 7, "num_queries": 3,
                    "terminated_at": "2017-07-14T02:40:10+00:00", "workers": [],
                }
            ],
        )  # fmt: skip

    def test_agents(self) -> None:
        """Agents that live and those that are lost, with what their kernels take."""
        self.done(self.world.agents.enrol("i-1", "k" * 40, NOW))
        self.done(self.world.agents.enrol("i-2", "l" * 40, NOW + 1))
        self.kernel("token-1")
        self.beat()
        alive = {
            "id": "i-1", "status": "ALIVE", "first_contact": "2017-07-14T02:40:00+00:00", "mem_slots": 4, "cpu_slots": 8,
            "gpu_slots": 2,
        }  # fmt: skip
        self.assertEqual(self.data(AGENTS, {"status": "ALIVE"})["agents"], [alive])
        self.assertEqual([one["id"] for one in self.data(AGENTS, {"status": "LOST"})["agents"]], ["i-2"])
        self.assertEqual(len(self.data(AGENTS, {"status": None})["agents"]), 2)
        query = (
            '{ agent(agent_id: "i-1") { used_mem_slots used_cpu_slots available_slots occupied_slots addr'
            ' computations { sess_id } } nobody: agent(agent_id: "i-9") { id } }'
        )
        self.assertEqual(
            self.data(query),
            {
                "agent": {
                    "used_mem_slots": 2, "used_cpu_slots": 2,
                    "available_slots": '{"cpu": "4", "mem": "1073741824", "cuda.device": "1"}',
                    "occupied_slots": '{"cpu": "1", "mem": "314572800", "cuda.device": "0"}',
                    "addr": "tcp://127.0.0.1:1", "computations": [{"sess_id": "token-1"}],
                },
                "nobody": None,
            },
        )  # fmt: skip
        listed = self.data(
            '{ agent_list(limit: 1, offset: 1, scaling_group: "default") { total_count items { id addr } } }'
        )
        self.assertEqual(listed["agent_list"], {"total_count": 2, "items": [{"id": "i-2", "addr": None}]})

    def test_never_a_query_per_row(self) -> None:
        """However many keypairs and kernels there are, each level of a query is asked for once."""
        for number in range(4):
            for keypair in (EXAMPLE, OTHER, POOR):
                self.kernel(f"token-{number}", keypair.access_key)
        counting = Counting(self.world.administration)
        query = (
            "{ keypairs { access_key all: compute_sessions(limit: 3) { sess_id cpu_used num_queries }"
            ' running: compute_sessions(status: "RUNNING") { sess_id } } }'
        )
        self.rebuild(counting)
        found = self.data(query)["keypairs"]
        self.assertEqual(sum(len(one["all"]) for one in found), 9)
        self.assertEqual(sum(len(one["running"]) for one in found), 12)
        self.assertEqual(counting.calls, {"keypairs": 1, "kernels_of_owners": 2, "figures": 1})

    def test_aliases_and_fragments(self) -> None:
        """Keys of the answer are those of the query, in its order, through aliases, fragments and directives."""
        query = (
            "query($no: Boolean!) { b: keypair { ...f } a: keypair { x: user_id skipped: user_id @include(if: $no) } }"
            " fragment f on KeyPair { is_active __typename access_key }"
        )
        text = self.ask(query, {"no": False}).body.decode()
        self.assertEqual(
            text,
            '{"b": {"is_active": true, "__typename": "KeyPair", "access_key": "AKIAIOSFODNN7EXAMPLE"}, "a": {"x": "2"}}',
        )

    def test_usage(self) -> None:
        """The report of a period: of every keypair, of one, and in pages."""
        self.kernel("token-1", status=KernelStatus.TERMINATED)
        self.kernel("token-2", OTHER.access_key)
        self.clock.advance(3600)
        query = (
            "query($since: DateTime!, $until: DateTime!, $ak: String) { usage(since: $since, until: $until, access_key: $ak)"
            " { access_key user_id kernels wall_time cpu_used net_rx_bytes } }"
        )
        period = {"since": "2017-07-14T02:40:00Z", "until": "2017-07-14T03:00:00"}
        mine = {
            "access_key": EXAMPLE.access_key, "user_id": "2", "kernels": 1, "wall_time": 9.0, "cpu_used": 1500.4,
            "net_rx_bytes": 7,
        }  # fmt: skip
        found = self.data(query, period)["usage"]
        self.assertEqual(len(found), 2)
        self.assertIn(mine, found)
        self.assertEqual(self.data(query, {**period, "ak": EXAMPLE.access_key})["usage"], [mine])
        self.assertEqual(self.data(query, {"since": "2027-01-01", "until": "2028-01-01"})["usage"], [])
        for wrong in ({"since": "yesterday"}, {"since": 5}, {"until": "2017-07-14T02:00:00Z"}, {"since": None}):
            self.assert_problem(self.ask(query, {**period, **wrong}), 400, "invalid-api-params")

    def test_folders(self) -> None:
        """An administrator sees everybody's folders, a page at a time and with their keypairs."""
        for number, owner in enumerate((EXAMPLE.access_key, OTHER.access_key, EXAMPLE.access_key)):
            folder = Folder(uuid.UUID(int=number), f"f{number}", owner, NOW + number, FolderBounds(7, 2**21))
            self.done(self.world.folders.add(folder, None))
        query = (
            "query($ak:String) { vfolders(access_key:$ak) { id host name max_files max_size created_at last_used creator }"
            " vfolder_list(limit: 1, offset: 1) { items { name num_files cur_size permission } total_count }"
            " keypairs(user_id: 0) { access_key vfolders { name } } }"
        )
        answer = self.data(query, {"ak": OTHER.access_key})
        self.assertEqual(
            answer["vfolders"],
            [
                {
                    "id": "00000000-0000-0000-0000-000000000001",
                    "host": "local",
                    "name": "f1",
                    "max_files": 7,
                    "max_size": 2048,
                    "created_at": "2017-07-14T02:40:01+00:00",
                    "last_used": None,
                    "creator": OTHER.access_key,
                }
            ],
        )
        page = {"name": "f1", "num_files": None, "cur_size": None, "permission": "rw"}
        self.assertEqual(answer["vfolder_list"], {"items": [page], "total_count": 3})
        owned = {one["access_key"]: [folder["name"] for folder in one["vfolders"]] for one in answer["keypairs"]}
        self.assertEqual((owned[EXAMPLE.access_key], owned[OTHER.access_key]), (["f2", "f0"], ["f1"]))

    def test_selected_lists(self) -> None:
        """Lists hold what a filter lets through, in the wanted order, and count it; a user selects among its own."""
        for number, owner in enumerate((EXAMPLE.access_key, OTHER.access_key, EXAMPLE.access_key)):
            held = FolderUse(number, 100)
            folder = Folder(uuid.UUID(int=number), f"f{number}", owner, NOW + number, FolderBounds(7, 2**21), held=held)
            self.done(self.world.folders.add(folder, None))
        self.kernel("token-2")
        self.kernel("token-1")
        self.kernel("other-1", OTHER.access_key)
        query = (
            "query($limit:Int!, $offset:Int!, $filter: String, $order: String) {"
            " compute_session_list(limit:$limit, offset:$offset, filter:$filter, order:$order) { items { name } total_count }"
            "}"
        )
        wanted = {"limit": 1, "offset": 1, "filter": 'name like "token-%" & status == "RUNNING"', "order": "+name"}
        expected = {"items": [{"name": "token-2"}], "total_count": 2}
        self.assertEqual(self.data(query, wanted), {"compute_session_list": expected})
        nothing = {"items": [], "total_count": 0}
        self.assertEqual(self.data(query, {**wanted, "offset": 0}, keypair=OTHER), {"compute_session_list": nothing})
        for field, text, names in (
            ("vfolder_list", "num_files >= 1", ["f1", "f2"]),
            ("vfolder_own_list", "num_files >= 1", ["f2"]),
            ("vfolder_invited_list", 'name == "f1"', []),
            ("vfolder_project_list", 'name == "f1"', []),
        ):
            query = f'query($f: String) {{ {field}(limit: 9, offset: 0, filter: $f, order: "name") {{ items {{ name }} }} }}'
            found = self.data(query, {"f": text})[field]["items"]
            self.assertEqual([one["name"] for one in found], names)
        query = (
            'query($f: String) { keypair_list(limit: 9, offset: 0, filter: $f, order: "-access_key") { total_count } }'
        )
        self.assertEqual(self.data(query, {"f": "!is_active == true"}), {"keypair_list": {"total_count": 1}})

    def test_invited_folders(self) -> None:
        """What others share is listed apart, with what may be done with it."""
        for number, permission in enumerate((Permission.READ_ONLY, Permission.READ_WRITE)):
            folder = Folder(uuid.UUID(int=number), f"f{number}", OTHER.access_key, NOW + number, FolderBounds(7, 2**21))
            self.done(self.world.folders.add(folder, None))
            self.done(self.world.folders.share(folder.id, OTHER.access_key, [EXAMPLE.access_key], permission))
        query = (
            'query($f: String) { vfolder_invited_list(limit: 1, offset: 0, filter: $f, order: "-name")'
            " { items { name permission creator } total_count } }"
        )
        first = {"name": "f1", "permission": "rw", "creator": OTHER.access_key}
        expected = {"vfolder_invited_list": {"items": [first], "total_count": 2}}
        self.assertEqual(self.data(query, {"f": None}), expected)
        found = self.data(query, {"f": 'permission == "ro"'})["vfolder_invited_list"]
        self.assertEqual([one["name"] for one in found["items"]], ["f0"])

    def test_live_agents(self) -> None:
        """An agent tells what its host uses; one that is lost tells nothing and is lost since a time."""
        for name in ("i-1", "i-2"):
            self.done(self.world.agents.enrol(name, "k" * 40, NOW))
        self.done(self.world.agents.note_alive(["i-1"], NOW + 1))
        self.beat()
        query = (
            "query($f: String, $o: String) { agent_list(limit: 9, offset: 0, filter: $f, order: $o)"
            " { items { id cpu_cur_pct mem_cur_bytes live_stat lost_at schedulable } } }"
        )
        alive, lost = self.data(query, {"o": "id"})["agent_list"]["items"]
        stat = json.loads(alive.pop("live_stat"))
        self.assertEqual(stat["node"]["mem"]["current"], "2048")
        self.assertEqual(
            alive, {"id": "i-1", "cpu_cur_pct": 12.5, "mem_cur_bytes": 2048, "lost_at": None, "schedulable": True}
        )
        self.assertEqual(
            lost,
            {
                "id": "i-2",
                "cpu_cur_pct": None,
                "mem_cur_bytes": None,
                "live_stat": None,
                "lost_at": "2017-07-14T02:40:01+00:00",
                "schedulable": True,
            },
        )
        for text, names in (("cpu_cur_pct > 10", ["i-1"]), ('status == "lost"', ["i-2"]), ("lost_at is null", ["i-1"])):
            found = self.data(query, {"f": text})["agent_list"]["items"]
            self.assertEqual([one["id"] for one in found], names)

    def test_no_folders(self) -> None:
        """Every field of folders can be asked for although there are none."""
        fields = "id host name max_files max_size created_at last_used num_files cur_size"
        query = (
            f"query($ak:String) {{ vfolders(access_key:$ak) {{ {fields} }} keypair {{ vfolders {{ {fields} }} }}"
            f" vfolder_list(limit: 9, offset: 0, access_key:$ak) {{ items {{ {fields} }} total_count }} }}"
        )
        nothing = {"items": [], "total_count": 0}
        self.assertEqual(
            self.data(query, {"ak": "x"}), {"vfolders": [], "keypair": {"vfolders": []}, "vfolder_list": nothing}
        )

    def test_images(self) -> None:
        """Images are the runtimes that live agents offer."""
        self.done(self.world.agents.enrol("i-1", "k" * 40, NOW))
        query = "query($o: Boolean) { images(is_operation: $o) { name tag hash } }"
        self.assertEqual(self.data(query, {"o": False}), {"images": []})
        self.beat()
        self.assertEqual(self.data(query), {"images": [{"name": "c", "tag": "latest", "hash": None}]})
        self.assertEqual(self.data(query, {"o": True}), {"images": []})

    def test_refused_arguments(self) -> None:
        """What cannot be answered is refused, and says why."""
        for query, word in (
            ("{ keypairs(limit: -1) { user_id } }", "limit"),
            ("{ keypairs(limit: 501) { user_id } }", "limit"),
            ("{ keypairs(offset: -1) { user_id } }", "offset"),
            ('{ keypair_list(limit: 1, offset: 0, filter: "x") { total_count } }', "filter"),
            ('{ agent_list(limit: 1, offset: 0, order: "x") { total_count } }', "no field x"),
            ('{ vfolder_own_list(limit: 1, offset: 0, order: "x desc") { total_count } }', "order"),
            ('{ vfolder_project_list(limit: 1, offset: 0, filter: "x") { total_count } }', "filter"),
            ("{ nothing }", "nothing"),
            ("query($x: Int!) { keypairs(limit: $x) { user_id } }", "$x"),
        ):
            answer = self.ask(query)
            self.assert_problem(answer, 400, "invalid-api-params")
            self.assertIn(word, answer.json["title"])

    def test_operations(self) -> None:
        """One of several operations is chosen by its name."""
        query = "query a { keypair { user_id } } query b { keypair { is_admin } }"
        for name, key in (("a", "user_id"), ("b", "is_admin")):
            answer = self.request("POST", PATH, {"query": query, "operationName": name})
            self.assertEqual(list(answer.json["keypair"]), [key])
        self.assert_problem(self.request("POST", PATH, {"query": query}), 400, "invalid-api-params")
        self.assert_problem(self.request("POST", PATH, {"variables": {}}), 400, "invalid-api-params")

    def test_a_store_that_is_away(self) -> None:
        """What everything stands on being away is that, for every kind of need at once."""
        self.world.redis.available = False
        self.assert_problem(self.ask(AGENTS), 503, "service-unavailable")

    def test_a_resolver_that_fails(self) -> None:
        """A fault of ours is a general error, which names the field and gives nothing away."""
        self.done(self.world.keypairs.add(evolve(OTHER, access_key="AKIABROKEN", concurrency_limit="many")))  # type: ignore[arg-type]
        answer = self.ask('{ keypair(access_key: "AKIABROKEN") { concurrency_limit } }')
        self.assert_problem(answer, 500, "general-error")
        self.assertIn("General Sorna API Error. (", answer.json["title"])

    def test_a_fetch_that_fails(self) -> None:
        """An error that nobody expected is an internal error with its traceback in the log."""

        class Broken:
            async def keypairs(self, *_arguments: Any) -> Any:
                raise ValueError("secret")

        self.rebuild(Broken())
        answer = self.ask("{ keypairs { user_id } }")
        self.assert_problem(answer, 500, "internal-server-error")
        self.assertNotIn("secret", answer.json["title"])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_unavailable_is_told(self) -> None:
        """A fetch that finds its store away is not a fault of ours."""

        class Away:
            async def keypairs(self, *_arguments: Any) -> Any:
                raise Unavailable("the database does not answer")

        self.rebuild(Away())
        self.assert_problem(self.ask("{ keypairs { user_id } }"), 503, "service-unavailable")
