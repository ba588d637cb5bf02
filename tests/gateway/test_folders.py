"""Tests of the routes about folders as wholes, with the shapes that clients of every generation read."""

from __future__ import annotations

from typing import Any

from sorna.model.policy import ResourcePolicy
from sorna.testing.folders import BOUNDS, MOST
from sorna.testing.gateway import EXAMPLE
from tests.gateway.base import OTHER, GatewayTestCase

NEWEST = {
    "name": "vf1",
    "host": "local",
    "unmanaged_path": None,
    "group": None,
    "usage_mode": "general",
    "permission": "rw",
    "quota": "0",
    "cloneable": False,
}


class FolderTestCase(GatewayTestCase):
    def make(self, name: str = "vf1", **signing: Any) -> str:
        answer = self.request("POST", "/v2/folders/", {"name": name}, **signing)
        self.assertEqual(answer.status, 201, answer)
        folder_id: str = answer.json["id"]
        return folder_id

    def share(self, perm: str = "ro", name: str = "vf1") -> None:
        """Let the other keypair see a folder of the first."""
        invite = {"perm": perm, "user_ids": [OTHER.access_key]}
        self.assertEqual(self.request("POST", f"/v2/folders/{name}/invite", invite).status, 201)
        (found,) = self.request("GET", "/v2/folders/invitations/list", keypair=OTHER).json["invitations"]
        accept = {"inv_id": found["id"], "inv_ak": OTHER.access_key}
        self.assertEqual(self.request("POST", "/v2/folders/invitations/accept", accept, keypair=OTHER).status, 201)


class LifeTests(FolderTestCase):
    def test_as_clients_of_every_generation_create(self) -> None:
        """Each spelling makes a folder, whose id is 32 hexadecimal digits."""
        bodies: tuple[dict[str, Any], ...] = ({"name": "x"}, {"host": []}, {"host": ["local"]}, NEWEST)
        for number, body in enumerate(bodies):
            path = "/folders" if number else "/v2/folders/"
            answer = self.request("POST", path, {**body, "name": "vf1"})
            self.assertEqual(answer.status, 201)
            self.assertRegex(answer.json["id"], "^[0-9a-f]{32}$")
            self.assertEqual((answer.json["name"], answer.json["host"]), ("vf1", "local"))
            self.assertEqual(answer.json["quota"], BOUNDS.size)
            self.assertEqual(self.request("DELETE", "/v2/folders/vf1").status, 204)

    def test_list_and_info(self) -> None:
        """A folder is listed, and described with what it holds, with the keys that any client prints."""
        self.assertEqual(self.request("GET", "/v2/folders/").json, [])
        folder_id = self.make()
        (listed,) = self.request("GET", "/folders", {"all": False}).json
        info = self.request("GET", "/v2/folders/vf1").json
        self.assertEqual(info, {**listed, "numFiles": 0, "num_files": 0, "cur_size": 0})
        self.assertEqual(
            listed,
            {
                "name": "vf1",
                "id": folder_id,
                "host": "local",
                "user": EXAMPLE.access_key,
                "creator": EXAMPLE.access_key,
                "group": None,
                "type": "user",
                "ownership_type": "user",
                "usage_mode": "general",
                "status": "ready",
                "cloneable": False,
                "created": "2017-07-14T02:40:00+00:00",
                "created_at": "2017-07-14T02:40:00+00:00",
                "last_used": None,
                "max_files": BOUNDS.files,
                "max_size": BOUNDS.size,
                "is_owner": True,
                "permission": "rw",
            },
        )

    def test_of_2017(self) -> None:
        """The interface that was documented first works too, by ids."""
        answer = self.request("POST", "/v2/folder/create", {"name": "vf1"})
        self.assertEqual((answer.status, list(answer.json)), (201, ["folderId"]))
        path = f"/v2/folder/{answer.json['folderId']}"
        self.assertEqual(self.request("GET", path).json["name"], "vf1")
        self.assertEqual(self.request("DELETE", path).status, 204)
        for wrong in (path, "/v2/folder/x", f"/v2/folder/{'z' * 32}"):
            self.assert_problem(self.request("GET", wrong), 404, "folder-not-found")

    def test_deleting_by_id(self) -> None:
        """Later clients remove a folder by its id."""
        folder_id = self.make()
        self.assert_problem(
            self.request("DELETE", "/folders", {"id": folder_id}, keypair=OTHER), 404, "folder-not-found"
        )
        self.assertEqual(self.request("DELETE", "/folders", {"id": folder_id}).status, 204)
        self.assert_problem(self.request("DELETE", "/folders", {"id": folder_id}), 404, "folder-not-found")

    def test_names(self) -> None:
        """A name that could be a path, or anything else, is refused, and a second folder of a name."""
        for wrong in ("", ".", "..", "a/b", "-a", "a-", "a b", "ä", "a\0", "a\n", "x" * 65, "_"):
            self.assert_problem(self.request("POST", "/v2/folders", {"name": wrong}), 400, "invalid-api-params")
        self.make("a.b-c_d")
        answer = self.request("POST", "/v2/folders", {"name": "a.b-c_d"})
        self.assert_problem(answer, 400, "folder-already-exists")

    def test_renaming(self) -> None:
        """A folder gets another name, unless that is taken or none."""
        self.make()
        self.make("vf2")
        self.assert_problem(
            self.request("POST", "/folders/vf1/rename", {"new_name": "vf2"}), 400, "folder-already-exists"
        )
        self.assert_problem(
            self.request("POST", "/folders/vf1/rename", {"new_name": "../x"}), 400, "invalid-api-params"
        )
        self.assertEqual(self.request("POST", "/v2/folders/vf1/rename", {"new_name": "vf3"}).status, 201)
        self.assertEqual([one["name"] for one in self.request("GET", "/v2/folders").json], ["vf2", "vf3"])
        self.assert_problem(self.request("GET", "/v2/folders/vf1"), 404, "folder-not-found")

    def test_what_is_not_offered(self) -> None:
        """Wishes that would make another folder than the client thinks are refused by their name."""
        for field, wrong in (
            ("host", "elsewhere"),
            ("host", ["local", "b"]),
            ("unmanaged_path", "/etc"),
            ("group", "g"),
            ("usage_mode", "x"),
            ("permission", "ro"),
            ("quota", "much"),
            ("cloneable", "yes"),
        ):
            answer = self.request("POST", "/v2/folders", {**NEWEST, field: wrong})
            self.assert_problem(answer, 400, "invalid-api-params")
            self.assertIn(field, answer.json["title"])

    def test_bounds(self) -> None:
        """A keypair has so many folders, each so large, by default or by its policy."""
        for number in range(MOST):
            self.make(f"vf{number}")
        self.assert_problem(self.request("POST", "/v2/folders", {"name": "more"}), 412, "quota-exceeded")
        self.request("DELETE", "/v2/folders/vf0")
        self.assert_problem(self.request("POST", "/v2/folders", {"name": "a", "quota": "1g"}), 412, "quota-exceeded")
        answer = self.request("POST", "/v2/folders", {"name": "a", "quota": "1m"})
        self.assertEqual(answer.json["max_size"], 1024 * 1024)

    def test_policies(self) -> None:
        """A policy's bounds replace the defaults."""
        policy = ResourcePolicy("p", max_folders=1, max_folder_size=4096)
        known: Any = self.folders.keypairs
        known.all[OTHER.access_key] = known.all[OTHER.access_key].__class__(
            OTHER.access_key, OTHER.secret_key, policy=policy
        )
        answer = self.request("POST", "/v2/folders", {"name": "a"}, keypair=OTHER)
        self.assertEqual(answer.json["max_size"], 4096)
        self.assert_problem(self.request("POST", "/v2/folders", {"name": "b"}, keypair=OTHER), 412, "quota-exceeded")

    def test_storage(self) -> None:
        """Clients that know of several storages hear of one."""
        for path in ("hosts", "all_hosts"):
            answer = self.request("GET", f"/folders/_/{path}")
            self.assertEqual(answer.json, {"default": "local", "allowed": ["local"]})
        self.assertEqual(self.request("GET", "/folders/_/allowed_types").json, ["user"])


class SharingTests(FolderTestCase):
    def test_invitations(self) -> None:
        """Only those that there are become invited, and see by whom and to what."""
        folder_id = self.make()
        wanted = {"perm": "rw", "user_ids": [OTHER.access_key, "nobody@x", EXAMPLE.access_key]}
        answer = self.request("POST", "/v2/folders/vf1/invite", wanted)
        self.assertEqual((answer.status, answer.json), (201, {"invited_ids": [OTHER.access_key]}))
        (invitation,) = self.request("GET", "/v2/folders/invitations/list", keypair=OTHER).json["invitations"]
        self.assertRegex(invitation.pop("id"), "^[0-9a-f]{32}$")
        self.assertEqual(
            invitation,
            {
                "inviter": EXAMPLE.access_key,
                "invitee": OTHER.access_key,
                "perm": "rw",
                "state": "pending",
                "vfolder_id": folder_id,
                "vfolder_name": "vf1",
                "created_at": "2017-07-14T02:40:00+00:00",
            },
        )
        self.assertEqual(self.request("GET", "/v2/folders/vf1", keypair=OTHER).status, 404)

    def test_shared_folders(self) -> None:
        """Who accepted sees the folder as it was offered, may leave it, and may do nothing that is its owner's."""
        self.make()
        self.share("ro")
        (seen,) = self.request("GET", "/v2/folders", keypair=OTHER).json
        self.assertEqual((seen["name"], seen["is_owner"], seen["permission"]), ("vf1", False, "ro"))
        for method, path, body in (
            ("POST", "/v2/folders/vf1/rename", {"new_name": "x"}),
            ("DELETE", "/v2/folders/vf1", None),
            ("POST", "/v2/folders/vf1/invite", {"perm": "rw", "user_ids": [OTHER.access_key]}),
        ):
            self.assert_problem(self.request(method, path, body, keypair=OTHER), 403, "generic-forbidden")
        self.assert_problem(self.request("POST", "/v2/folders/vf1/leave", {}), 403, "generic-forbidden")
        self.assertEqual(self.request("POST", "/v2/folders/vf1/leave", {}, keypair=OTHER).status, 200)
        self.assertEqual(self.request("GET", "/v2/folders", keypair=OTHER).json, [])

    def test_accepting_a_name_that_is_taken(self) -> None:
        """A folder is not accepted while another one of its name is seen."""
        self.make()
        self.make(keypair=OTHER)
        self.request("POST", "/v2/folders/vf1/invite", {"perm": "ro", "user_ids": [OTHER.access_key]})
        (found,) = self.request("GET", "/v2/folders/invitations/list", keypair=OTHER).json["invitations"]
        accept = {"inv_id": found["id"]}
        answer = self.request("POST", "/v2/folders/invitations/accept", accept, keypair=OTHER)
        self.assert_problem(answer, 400, "folder-already-exists")
        self.request("POST", "/v2/folders/vf1/rename", {"new_name": "vf2"}, keypair=OTHER)
        self.assertEqual(self.request("POST", "/v2/folders/invitations/accept", accept, keypair=OTHER).status, 201)

    def test_refusing(self) -> None:
        """An invitation can be refused, and taken back, once."""
        self.make()
        for keypair in (OTHER, EXAMPLE):
            self.request("POST", "/v2/folders/vf1/invite", {"perm": "ro", "user_ids": [OTHER.access_key]})
            (found,) = self.request("GET", "/v2/folders/invitations/list", keypair=OTHER).json["invitations"]
            body = {"inv_id": found["id"]}
            answer = self.request("DELETE", "/v2/folders/invitations/delete", body, keypair=keypair)
            self.assertEqual((answer.status, list(answer.json)), (200, ["msg"]))
            for method, path in (("DELETE", "delete"), ("POST", "accept")):
                answer = self.request(method, f"/v2/folders/invitations/{path}", body, keypair=OTHER)
                self.assert_problem(answer, 404, "invitation-not-found")

    def test_wrong_invitations(self) -> None:
        """A permission or a list of invitees that is none is refused."""
        self.make()
        wrong: tuple[dict[str, Any], ...] = (
            {"perm": "rwx", "user_ids": ["x"]},
            {"user_ids": []},
            {"user_ids": ["x"] * 101},
            {"user_ids": "x"},
        )
        for body in wrong:
            self.assert_problem(self.request("POST", "/v2/folders/vf1/invite", body), 400, "invalid-api-params")
        for invitation_id in ("x", "g" * 32, ""):
            answer = self.request("POST", "/v2/folders/invitations/accept", {"inv_id": invitation_id})
            self.assert_problem(answer, 404, "invitation-not-found")
