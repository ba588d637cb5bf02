"""The administrators' commands of backend.ai-client 1.1.11 and 1.4.2, as published, against the real server."""

from __future__ import annotations

import secrets

from sorna.model.keypair import EXAMPLE_ACCESS_KEY, EXAMPLE_SECRET_KEY
from tests.interop.environments import BACKEND_1_1_11, BACKEND_1_4_2
from tests.interop.setting import Said
from tests.interop.test_backend_client import BackendTestCase


def columns(said: Said) -> list[list[str]]:
    """Give the words of each line of a table, its head first and its rule left out."""
    lines = [line.split() for line in said.out.splitlines()]
    return [words for words in lines if words and not words[0].startswith("---")]


class OldAdministrationTests(BackendTestCase):
    """Release 1.1.11; the newer release runs the same tests."""

    client = BACKEND_1_1_11
    first_column = "Access Key"

    def added(self, *arguments: str) -> tuple[str, str]:
        """Add a keypair with the client and give it."""
        said = self.backend("admin", "keypairs", "add", *arguments)
        self.says(said, "Access Key: AKIA", "Secret Key: ")
        access, secret = said.out.splitlines()
        return access.removeprefix("Access Key: "), secret.removeprefix("Secret Key: ")

    def test_keypairs(self) -> None:
        """The table of keypairs has the example one, under the right heads."""
        said = self.backend("admin", "keypairs")
        self.says(said, EXAMPLE_ACCESS_KEY, EXAMPLE_SECRET_KEY)
        self.assertTrue(said.out.startswith(self.first_column), said.out)
        (row,) = (words for words in columns(said) if EXAMPLE_ACCESS_KEY in words)
        place = row.index(EXAMPLE_ACCESS_KEY)
        self.assertEqual(row[place : place + 4], [EXAMPLE_ACCESS_KEY, EXAMPLE_SECRET_KEY, "True", "True"])
        # The shared server's keypair may make more requests than others, because all tests use it.
        self.assertRegex(" ".join(row[-2:]), r"^\d+ 30$")

    def test_add(self) -> None:
        """A keypair that the client makes works at once, and is found under its user."""
        user = str(secrets.randbelow(10**9) + 10)
        access_key, secret_key = self.added("-u", user)
        said = self.backend("admin", "keypairs", "-u", user)
        self.assertEqual(
            [words for words in columns(said) if access_key in words and secret_key in words], columns(said)[1:]
        )
        self.says(self.backend("admin", "keypairs", "-u", "1000000000"), "no matching keypairs")
        self.access_key, self.secret_key = access_key, secret_key
        self.says(self.backend("run", "--rm", "python3", "-c", "print(6*7)"), "42\n")

    def test_user(self) -> None:
        """Who is no administrator sees its own sessions with the same command, and no keypairs."""
        self.access_key, self.secret_key = self.added("-u", "5")
        self.says(self.backend("ps"), "no compute sessions")
        self.assertIn("Cannot query field", self.backend("admin", "keypairs").text)

    def test_agents(self) -> None:
        """The local agent lives, and has processors and memory."""
        said = self.backend("admin", "agents")
        self.says(said, "Mem.Slots", "ALIVE")
        row = columns(said)[1]
        self.assertEqual(row[1], "ALIVE")
        self.assertGreater(int(row[-3]), 0)
        self.assertGreaterEqual(int(row[-2]), 2)
        self.says(self.backend("admin", "agents", "--status", "LOST"), "no matching agents")

    def test_sessions(self) -> None:
        """A running session is in the tables of both commands, and after its end in that of ended ones."""
        token = self.session()
        self.says(self.backend("run", "-t", token, "python3", "-c", "print(1)"), " is ready.")
        for command in (("ps",), ("admin", "sessions"), ("admin", "sessions", "--access-key", self.server.access_key)):
            said = self.backend(*command)
            self.says(said, token)
            (row,) = (words for words in columns(said) if token in words)
            self.assertEqual((row[1], row[-4:]), ("python3", ["RUNNING", "2", "2", "0"]))
        self.says(self.backend("terminate", token))
        self.assertNotIn(token, self.backend("ps").out)
        self.says(self.backend("admin", "sessions", "--status", "TERMINATED"), token)
        self.says(self.backend("admin", "sessions", "--status", "ALL"), token)

    def test_folders(self) -> None:
        """There are no folders, which the client shows as a table without rows."""
        self.says(self.backend("admin", "vfolders"), "Max Size")


class NewAdministrationTests(OldAdministrationTests):
    """Release 1.4.2: users have names, and a session can be looked at."""

    client = BACKEND_1_4_2
    first_column = "User ID"

    def test_add_for_a_name(self) -> None:
        """A user id that is a text, with every option."""
        user = f"{secrets.token_hex(6)}@example.com"
        access_key, _secret_key = self.added("-u", user, "-a", "-c", "3", "-r", "77")
        (row,) = columns(self.backend("admin", "keypairs", "-u", user))[1:]
        self.assertEqual((row[0], row[1], row[3], row[4], row[-2:]), (user, access_key, "True", "True", ["77", "3"]))
        self.says(
            self.backend("admin", "keypairs", "add", "-u", user, "--resource-policy", "nothing"),
            "resource policy",
            code=1,
        )

    def test_one_session(self) -> None:
        """Everything that is known of a session, and of one that is not there."""
        token = self.session()
        self.says(self.backend("run", "-t", token, "python3", "-c", "print(1)"), " is ready.")
        for command in (("info",), ("admin", "session")):
            self.says(
                self.backend(*command, token), f"Session ID: {token}", "Status: RUNNING", "Role: master", "CPU Used: "
            )
            self.says(self.backend(*command, "nobody-has-this"), "no such running compute session")
