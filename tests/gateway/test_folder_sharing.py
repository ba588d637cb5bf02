"""Tests of sharing folders without asking, of cloning them, and of what administrators ask about their storage."""

from __future__ import annotations

from typing import Any

from attrs import evolve

from sorna.model.folder import FolderBounds
from sorna.testing.gateway import EXAMPLE
from tests.gateway.base import ADMINISTRATOR, OTHER
from tests.gateway.test_folders import FolderTestCase


class DirectSharingTests(FolderTestCase):
    def seen(self) -> list[tuple[str, str]]:
        """Tell what the other keypair sees."""
        return [(one["name"], one["permission"]) for one in self.request("GET", "/v2/folders", keypair=OTHER).json]

    def test_to_and_fro(self) -> None:
        """Who is let in sees the folder at once, with the permission of the last time, until turned out."""
        self.make()
        for permission, seen in (("ro", "ro"), ("wd", "rw"), (None, "rw")):
            body = {"permission": permission, "emails": [OTHER.access_key, "nobody@x"]}
            answer = self.request("POST", "/folders/vf1/share", body)
            self.assertEqual((answer.status, answer.json), (201, {"shared_emails": [OTHER.access_key]}))
            self.assertEqual(self.seen(), [("vf1", seen)])
        body = {"emails": [OTHER.access_key, EXAMPLE.access_key]}
        answer = self.request("DELETE", "/folders/vf1/unshare", body)
        self.assertEqual((answer.status, answer.json), (200, {"unshared_emails": [OTHER.access_key]}))
        self.assertEqual(self.seen(), [])

    def test_wrong_wishes(self) -> None:
        """Nobody, too many and a permission that is none are refused, and whoever is not the owner."""
        self.make()
        wrong: tuple[dict[str, Any], ...] = (
            {"emails": []},
            {"emails": ["x"] * 101},
            {"emails": None},
            {"permission": "x", "emails": ["x"]},
        )
        for body in wrong:
            self.assert_problem(self.request("POST", "/folders/vf1/share", body), 400, "invalid-api-params")
        self.assert_problem(self.request("DELETE", "/folders/vf1/unshare", {"emails": []}), 400, "invalid-api-params")
        self.share()
        for method, path in (("POST", "share"), ("DELETE", "unshare")):
            answer = self.request(method, f"/folders/vf1/{path}", {"emails": [EXAMPLE.access_key]}, keypair=OTHER)
            self.assert_problem(answer, 403, "generic-forbidden")

    def test_who_it_is_shared_with(self) -> None:
        """An owner lists who may use its folders, all or one, and changes that."""
        folder_id, other_id = self.make(), self.make("vf2")
        for name in ("vf1", "vf2"):
            self.request("POST", f"/folders/{name}/share", {"emails": [OTHER.access_key]})
        first, second = self.request("GET", "/folders/_/shared").json["shared"]
        self.assertEqual(
            first,
            {
                "vfolder_id": folder_id,
                "vfolder_name": "vf1",
                "owner": EXAMPLE.access_key,
                "status": "ready",
                "type": "user",
                "perm": "rw",
                "shared_to": {"access_key": OTHER.access_key, "email": OTHER.user_id},
            },
        )
        self.assertEqual(second["vfolder_id"], other_id)
        self.assertEqual(self.request("GET", "/folders/_/shared", {"vfolder_id": other_id}).json["shared"], [second])
        self.assertEqual(self.request("GET", f"/folders/_/shared?vfolder_id={other_id}").json["shared"], [second])
        self.assertEqual(self.request("GET", "/folders/_/shared", keypair=OTHER).json["shared"], [])
        self.assert_problem(self.request("GET", "/folders/_/shared", {"vfolder_id": "x"}), 404, "folder-not-found")
        change: dict[str, Any] = {"vfolder": folder_id, "user": OTHER.access_key}
        self.assertEqual(self.request("POST", "/folders/_/shared", {**change, "perm": "ro"}).status, 200)
        self.assertEqual(self.seen(), [("vf1", "ro"), ("vf2", "rw")])
        self.assertEqual(self.request("POST", "/folders/_/shared", {**change, "perm": None}).status, 200)
        self.assertEqual(self.seen(), [("vf2", "rw")])
        stranger = self.request("POST", "/folders/_/shared", {**change, "vfolder": other_id}, keypair=OTHER)
        self.assert_problem(stranger, 403, "generic-forbidden")


class CloningTests(FolderTestCase):
    def test_cloning(self) -> None:
        """A clone is a folder of one's own, described like every other, and nothing is left to watch."""
        self.make()
        wish = {"target_name": "vf2", "target_host": "local", "usage_mode": "general", "permission": "rw"}
        answer = self.request("POST", "/folders/vf1/clone", wish)
        self.assertEqual((answer.status, answer.json["name"], answer.json["bgtask_id"]), (201, "vf2", None))
        self.assert_problem(self.request("POST", "/folders/vf1/clone", wish), 400, "folder-already-exists")
        for field, wrong in (("target_host", "elsewhere"), ("usage_mode", "x"), ("permission", "ro")):
            self.assert_problem(
                self.request("POST", "/folders/vf1/clone", {**wish, "target_name": "vf3", field: wrong}),
                400,
                "invalid-api-params",
            )
        self.request("POST", "/folders/vf1/clone", {"target_name": "vf3"})
        self.assert_problem(self.request("POST", "/folders/vf1/clone", {"target_name": "vf4"}), 412, "quota-exceeded")

    def test_options(self) -> None:
        """Those whom a folder is shared with may clone it when the owner says so."""
        self.make()
        self.share()
        wish = {"target_name": "mine"}
        refused = self.request("POST", "/folders/vf1/clone", wish, keypair=OTHER)
        self.assert_problem(refused, 403, "generic-forbidden")
        for cloneable in (True, None):
            body = {"cloneable": cloneable, "permission": None}
            self.assertEqual(self.request("POST", "/folders/vf1/update-options", body).status, 201)
            self.assertIs(self.request("GET", "/folders/vf1").json["cloneable"], True)
        self.assertEqual(self.request("POST", "/folders/vf1/clone", wish, keypair=OTHER).status, 201)
        answer = self.request("POST", "/folders/vf1/update-options", {"permission": "ro"})
        self.assert_problem(answer, 400, "invalid-api-params")

    def test_too_large_for_oneself(self) -> None:
        """Whoever may have only smaller folders gets no clone, and no part of one."""
        self.make()
        self.folders = evolve(self.folders, bounds=FolderBounds(0, 1))
        self.rebuild(self.world.administration)
        self.do_write()
        self.assert_problem(self.request("POST", "/folders/vf1/clone", {"target_name": "b"}), 412, "quota-exceeded")
        self.assertEqual([one["name"] for one in self.request("GET", "/folders").json], ["vf1"])

    def do_write(self) -> None:
        answer = self.request("POST", "/folders/vf1/mkdir", {"path": "d"})
        self.assertEqual(answer.status, 201)


class StorageTests(FolderTestCase):
    def test_administrators(self) -> None:
        """They hear what sees the storage, and why Sorna mounts nothing; others hear neither."""
        answer = self.request("GET", "/folders/_/mounts", keypair=ADMINISTRATOR)
        self.assertEqual(answer.json["manager"], {"success": True, "mounts": ["local"], "message": ""})
        self.assertEqual(answer.json["agents"], {})
        for method, path in (("POST", "mounts"), ("DELETE", "mounts"), ("GET", "fstab"), ("GET", "perf-metric")):
            body = {"name": "x", "fs_location": "nfs:/x"}
            refused = self.request(method, f"/folders/_/{path}", body, keypair=ADMINISTRATOR)
            self.assert_problem(refused, 501, "not-implemented")
            self.assertGreater(len(refused.json["title"]), len("This API query is not implemented. ()"))
            self.assert_problem(self.request(method, f"/folders/_/{path}", body), 403, "generic-forbidden")
