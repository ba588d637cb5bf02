"""Where the command line finds its keypair."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from sorna.client.configuration import (
    ClientConfiguration,
    ConfigurationMissing,
    find_configuration,
    read_configuration,
    state_directory,
)
from sorna.config import default_state_dir
from sorna.first_start import write_client_file
from sorna.model.keypair import Keypair
from sorna.testing.unit import UnitTestCase

KEYS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1)


class ConfigurationTests(UnitTestCase):
    """Flags and variables before the file of a local server."""

    def setUp(self) -> None:
        """Make an empty state directory."""
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.path = self.folder / "client.toml"
        self.environ = {"SORNA_STATE_DIR": str(self.folder)}

    def leave(self, configuration: ClientConfiguration) -> None:
        """Do what a server does at its start."""
        keypair = Keypair(configuration.access_key, configuration.secret_key)
        write_client_file(self.folder, configuration.endpoint, keypair)

    def test_given(self) -> None:
        """A keypair that is given needs no file."""
        found = find_configuration({}, access_key="A", secret_key="S")
        self.assertEqual(found, ClientConfiguration("http://127.0.0.1:8080", "A", "S"))

    def test_file(self) -> None:
        """Without a keypair, the file says which and where; an endpoint that was given wins."""
        left = ClientConfiguration("http://127.0.0.1:8081", "A", "S")
        self.leave(left)
        self.assertEqual(find_configuration(self.environ), left)
        self.assertEqual(find_configuration(self.environ, endpoint="http://x").endpoint, "http://x")

    def test_half_a_keypair(self) -> None:
        """A key is never completed with the secret of another place."""
        self.leave(ClientConfiguration("http://x", "A", "S"))
        error = self.assertRaises(ConfigurationMissing, find_configuration, self.environ, access_key="B")
        self.assertIn("SORNA_SECRET_KEY", str(error))
        error = self.assertRaises(ConfigurationMissing, find_configuration, self.environ, secret_key="T")
        self.assertIn("SORNA_ACCESS_KEY", str(error))

    def test_nothing(self) -> None:
        """The message names the file that was looked for and the way out."""
        error = self.assertRaises(ConfigurationMissing, find_configuration, self.environ)
        self.assertIn(str(self.path), str(error))
        self.assertIn("make run", str(error))

    def test_unusable_files(self) -> None:
        """A broken file is told apart from a missing one."""
        for content in (b"\xff", b"= 1", b'access_key = "A"', b'access_key = 1\nsecret_key = "S"'):
            self.path.write_bytes(content)
            self.assertIn(str(self.path), str(self.assertRaises(ConfigurationMissing, read_configuration, self.path)))

    @given(KEYS, KEYS, KEYS)
    def test_round_trip(self, endpoint: str, access_key: str, secret_key: str) -> None:
        """Whatever a server writes is read again."""
        left = ClientConfiguration(endpoint, access_key, secret_key)
        self.leave(left)
        self.assertEqual(read_configuration(self.path), left)

    def test_default_directory(self) -> None:
        """Without SORNA_STATE_DIR it is where a server of this user looks too."""
        self.assertEqual(str(state_directory({})), default_state_dir())

    def test_secret_is_not_shown(self) -> None:
        """The secret is not in the configuration's text."""
        self.assertNotIn("hidden", repr(ClientConfiguration("e", "a", "hidden")))
