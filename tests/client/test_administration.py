"""``sorna ps`` and ``sorna admin``: what is asked, and how the answers are printed."""

from __future__ import annotations

import io
import json
from typing import Any

from sorna.client.running import FAILED
from sorna.client.tables import print_rows
from tests.client.test_cli import CommandLineTestCase

ROW = {
    "access_key": "AKIA1",
    "user_id": "me",
    "kernels": 2,
    "wall_time": 12.345,
    "cpu_used": 1500.0,
    "mem_max_bytes": 5,
}


def found(rows: Any) -> tuple[int, Any]:
    """Prepare an answer with rows."""
    return 200, {"found": rows}


def done(msg: str = "", **more: Any) -> tuple[int, Any]:
    """Prepare the answer to a mutation, a refusal where there is a message."""
    return 200, {"done": {"ok": not msg, "msg": msg, **more}}


class PrintTests(CommandLineTestCase):
    """The three formats."""

    columns = {"a": "FIRST", "b": "SECOND"}  # noqa: RUF012 - nobody changes it
    rows = (
        {"a": 1, "b": "x,y", "c": "not asked for"},
        {"a": 22, "b": None},
        {"a": 3, "b": ["p", "q"]},
    )

    def printed(self, how: str, rows: Any = None) -> str:
        out = io.StringIO()
        print_rows(self.columns, self.rows if rows is None else rows, how, out)
        return out.getvalue()

    def test_table(self) -> None:
        """Columns line up, numbers at the right, and nothing in a name is obeyed."""
        self.assertEqual(
            [line.rstrip() for line in self.printed("table").splitlines()],
            ["FIRST  SECOND", "    1  x,y", "   22  -", "    3  p, q"],
        )
        (_head, line) = self.printed("table", [{"a": True, "b": "[red]\x1b[31m\n" + "long " * 50}]).splitlines()
        self.assertTrue(line.startswith("yes"), line)
        self.assertIn("[red]?[31m?long long", line)
        self.assertEqual(self.printed("table", []).split(), ["FIRST", "SECOND"])

    def test_for_programs(self) -> None:
        """CSV and JSON have the names of the fields and the values as they are."""
        self.assertEqual(self.printed("csv").splitlines(), ["a,b", '1,"x,y"', "22,", "3,\"['p', 'q']\""])
        self.assertEqual(json.loads(self.printed("json"))[1], {"a": 22, "b": None})


class ListTests(CommandLineTestCase):
    """What is listed."""

    def asked(self) -> Any:
        """Give the variables of the last question."""
        return self.setting.server.seen[-1].json["variables"]

    def test_kernels(self) -> None:
        """Live kernels, or all of them."""
        row = {"sess_id": "token-1", "lang": "python3", "status": "RUNNING", "cpu_used": 5}
        ran = self.invoke(["ps"], found({"items": [row]}))
        self.assertEqual((ran.exit_code, self.codes), (0, [0]), ran.output)
        self.assertIn("token-1", ran.stdout)
        self.assertEqual(self.setting.server.seen[0].path, "/v3/admin/graphql")
        self.assertEqual(
            self.asked(), {"status": "PENDING,PREPARING,RUNNING,RESTARTING,TERMINATING", "limit": 100, "offset": 0}
        )
        self.invoke(["ps", "--all"], found({"items": []}))
        self.assertIsNone(self.asked()["status"])

    def test_pages(self) -> None:
        """A long list is fetched page by page."""
        rows = [{"sess_id": f"token-{number}"} for number in range(250)]
        ran = self.invoke(
            ["ps", "--format", "json"], *(found({"items": rows[first : first + 100]}) for first in (0, 100, 200))
        )
        self.assertEqual(len(json.loads(ran.stdout)), 250)
        self.assertEqual([one.json["variables"]["offset"] for one in self.setting.server.seen], [0, 100, 200])

    def test_usage(self) -> None:
        """The report of a period, for people and for programs."""
        ran = self.invoke(
            ["admin", "usage", "--since", "2026-01-01", "--until", "2026-02-01T00:00+01:00", "--of", "AKIA1"],
            found([ROW]),
        )
        self.assertEqual(
            self.asked(),
            {
                "since": "2026-01-01T00:00:00+00:00", "until": "2026-02-01T00:00:00+01:00", "access_key": "AKIA1",
                "limit": 100, "offset": 0,
            },
        )  # fmt: skip
        self.assertIn("12.3", ran.stdout)
        ran = self.invoke(["admin", "usage", "--format", "csv"], found([ROW]))
        self.assertEqual(ran.stdout.splitlines()[1], "AKIA1,me,2,12.345,1500.0,5,,,,")
        self.assertTrue(self.asked()["since"].endswith("-01T00:00:00+00:00"), self.asked())
        self.assertGreater(self.asked()["until"], self.asked()["since"])

    def test_keypairs_and_policies(self) -> None:
        """Lists with their conditions; secrets are no part of them."""
        ran = self.invoke(["admin", "keypair", "list", "--user", "me", "--inactive"], found([{"access_key": "AKIA1"}]))
        self.assertIn("AKIA1", ran.stdout)
        self.assertEqual(self.asked(), {"user_id": "me", "is_active": False, "limit": 100, "offset": 0})
        self.assertNotIn("secret_key", self.setting.server.seen[0].json["query"])
        ran = self.invoke(["admin", "policy", "list"], found([{"name": "course", "runtimes": ["c", "go"]}]))
        self.assertIn("c, go", ran.stdout)

    def test_wrong_times(self) -> None:
        """What is no time is refused before anything is asked."""
        ran = self.invoke(["admin", "usage", "--since", "yesterday"])
        self.assertEqual((ran.exit_code, self.setting.server.seen), (2, []))

    def test_unreadable(self) -> None:
        """An answer of another shape is told, not shown."""
        for content in (None, 5, [1]):
            ran = self.invoke(["admin", "policy", "list"], found(content))
            self.assertIn("ApiError", str(ran.exception))
        ran = self.invoke(["admin", "policy", "remove", "x"], (200, {}))
        self.assertIn("ApiError", str(ran.exception))


class ChangeTests(CommandLineTestCase):
    """What is changed."""

    def asked(self) -> Any:
        """Give the variables of the last mutation."""
        return self.setting.server.seen[-1].json["variables"]

    def test_add(self) -> None:
        """A new keypair is printed."""
        made = done(keypair={"access_key": "AKIA1", "secret_key": "s"})
        ran = self.invoke(["admin", "keypair", "add", "me", "--rate-limit", "7", "--policy", "course", "--admin"], made)
        self.assertEqual(ran.stdout, "access key  AKIA1\nsecret key  s\n")
        self.assertEqual(
            self.asked(),
            {
                "user": "me",
                "props": {
                    "resource_policy": "course", "rate_limit": 7, "concurrency_limit": None, "is_admin": True,
                    "is_active": None,
                },
            },
        )  # fmt: skip

    def test_modify_and_remove(self) -> None:
        """What is given is changed; nothing given is a mistake."""
        self.invoke(["admin", "keypair", "modify", "AKIA1", "--inactive", "--policy", ""], done())
        self.assertEqual(self.codes, [0])
        self.assertEqual((self.asked()["props"]["is_active"], self.asked()["props"]["resource_policy"]), (False, ""))
        ran = self.invoke(["admin", "keypair", "modify", "AKIA1"])
        self.assertEqual((ran.exit_code, self.setting.server.seen), (2, []))
        self.invoke(["admin", "keypair", "remove", "AKIA1"], done())
        self.assertEqual(self.asked(), {"access_key": "AKIA1"})

    def test_policies(self) -> None:
        """Sizes have units, and what is not given is not bounded."""
        arguments = [
            "--memory",
            "1.5G",
            "--folder-size",
            "10M",
            "--runtime",
            "c",
            "--runtime",
            "go",
            "--lifetime",
            "60",
        ]
        self.invoke(["admin", "policy", "put", "course", *arguments], done())
        props = self.asked()["props"]
        self.assertEqual(
            (props["memory"], props["max_folder_size"], props["runtimes"], props["lifetime"], props["gpus"]),
            (1536 * 2**20, 10 * 2**20, ["c", "go"], 60.0, None),
        )
        self.invoke(["admin", "policy", "put", "free"], done())
        self.assertEqual(set(self.asked()["props"].values()), {None})
        self.assertEqual(self.invoke(["admin", "policy", "put", "x", "--memory", "much"]).exit_code, 2)
        self.invoke(["admin", "policy", "remove", "course"], done())
        self.assertEqual(self.asked(), {"name": "course"})

    def test_refused(self) -> None:
        """The server's reason is told and the command fails."""
        ran = self.invoke(["admin", "keypair", "remove", "AKIA1"], done("the keypair has live kernels"))
        self.assertEqual((self.codes, ran.stderr), ([FAILED], "sorna: the keypair has live kernels\n"))
