"""Tests of the list of one's own sessions."""

from __future__ import annotations

import base64
from typing import Any

from sorna.model.kernel import KernelStatus, short_id
from sorna.testing.gateway import EXAMPLE
from tests.gateway.administration import AdministrationTestCase
from tests.gateway.base import OTHER


class SessionListTests(AdministrationTestCase):
    def listed(self, query: str = "", **signing: Any) -> Any:
        answer = self.request("GET", f"/v4/kernel{query}", **signing)
        self.assertEqual(answer.status, 200, answer)
        return answer.json

    def names(self, query: str = "", **signing: Any) -> list[str]:
        return [one["sessionName"] for one in self.listed(query, **signing)["sessions"]]

    def test_one_session(self) -> None:
        """A session is described as create has answered, with its limits, its times and why it is as it is."""
        kernel = self.kernel("token-1", status=KernelStatus.TERMINATED, gpus=2)
        (found,) = self.listed("?status=terminated")["sessions"]
        self.assertEqual(
            found,
            {
                "kernelId": short_id(kernel.id),
                "sessionId": str(kernel.id),
                "sessionName": "token-1",
                "lang": "python",
                "status": "TERMINATED",
                "statusReason": "asked",
                "createdAt": found["createdAt"],
                "terminatedAt": found["terminatedAt"],
                "tag": None,
                "memoryLimit": 300 * 1024,
                "cpuCores": 1.0,
                "gpus": 2,
            },
        )
        self.assertLess(found["createdAt"], found["terminatedAt"])

    def test_whose_and_which(self) -> None:
        """The newest come first, nobody sees another's, and only those that live are shown unless others are named."""
        self.kernel("token-1")
        self.kernel("token-2", status=KernelStatus.TERMINATED)
        self.kernel("token-3", status=None)
        self.kernel("token-4", OTHER.access_key)
        for path in ("/kernel", "/session/", "/v2/kernel/"):
            answer = self.request("GET", path, version=b"v4.20181215" if path[1] != "v" else b"v2.20170315")
            self.assertEqual([one["sessionName"] for one in answer.json["sessions"]], ["token-3", "token-1"])
        self.assertEqual(self.names("?status=running,Terminated"), ["token-2", "token-1"])
        self.assertEqual(self.names("?status="), ["token-3", "token-1"])
        self.assertEqual(self.names(keypair=OTHER), ["token-4"])

    def test_pages(self) -> None:
        """Following the cursors shows every session once, although some are made and some end meanwhile."""
        kernels = [self.kernel(f"token-{number}") for number in range(7)]
        seen: list[str] = []
        after = ""
        while True:
            page = self.listed(f"?limit=3{after}&status=RUNNING")
            seen += [one["sessionName"] for one in page["sessions"]]
            if page["next"] is None:
                break
            after = f"&after={page['next']}"
            self.kernel(f"later-{len(seen)}")
            last = kernels[6 - len(seen) + 1]
            self.done(self.world.kernels.change_status(last.id, KernelStatus.TERMINATED, "x", self.clock.seconds()))
        self.assertEqual(seen, [f"token-{number}" for number in reversed(range(7))])
        self.assertIsNone(self.listed("?limit=100")["next"])

    def test_a_page_that_is_just_full(self) -> None:
        """No page follows when there is nothing more."""
        for number in range(2):
            self.kernel(f"token-{number}")
        self.assertIsNone(self.listed("?limit=2")["next"])
        self.assertIsNotNone(self.listed("?limit=1")["next"])

    def test_somebody_elses_cursor(self) -> None:
        """A cursor is a place and no right: whoever has another's sees their own sessions."""
        self.kernel("theirs-1", OTHER.access_key)
        self.kernel("mine-1")
        self.kernel("mine-2")
        after = self.listed("?limit=1")["next"]
        self.assertEqual(self.names(f"?after={after}", keypair=OTHER), ["theirs-1"])

    def test_refusals(self) -> None:
        """What is no status, no number and no cursor is refused by name."""
        nowhen = base64.urlsafe_b64encode(b"\x7f\xf0" + bytes(22)).decode()
        far = base64.urlsafe_b64encode(b"\x7f" * 24).decode()
        for query, name in (
            ("status=FLYING", "status"),
            ("status=RUNNING,x", "status"),
            ("limit=0", "limit"),
            ("limit=101", "limit"),
            ("limit=-1", "limit"),
            ("limit=%C2%B2", "limit"),
            ("after=x", "after"),
            ("after=" + "A" * 31, "after"),
            ("after=%F0%9F%98%80", "after"),
            (f"after={nowhen}", "after"),
            (f"after={far}", "after"),
        ):
            answer = self.request("GET", f"/v4/kernel?{query}")
            self.assert_problem(answer, 400, "invalid-api-params")
            self.assertIn(f"({name} ", answer.json["title"])
        self.assertEqual(EXAMPLE.access_key, self.keypairs.uses[-1])
