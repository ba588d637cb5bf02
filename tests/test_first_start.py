"""What a first start leaves for its operator."""

from __future__ import annotations

import stat
import subprocess
import sys
import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from twisted.internet.defer import Deferred

from sorna.config import ServerConfig, server_config
from sorna.first_start import FirstKeypair, banner, command, endpoint_of, ensure_keypairs, write_client_file
from sorna.model.keypair import EXAMPLE_ACCESS_KEY, Keypair, generate_keypair
from sorna.testing.unit import UnitTestCase


class DictStore:
    """Keypairs in a dict."""

    def __init__(self) -> None:
        self.keypairs: dict[str, Keypair] = {}

    async def by_access_key(self, access_key: str) -> Keypair | None:
        return self.keypairs.get(access_key)

    async def add(self, keypair: Keypair) -> bool:
        return self.keypairs.setdefault(keypair.access_key, keypair) is keypair

    async def count(self) -> int:
        return len(self.keypairs)

    async def by_access_keys(self, access_keys: Collection[str]) -> Sequence[Keypair]:
        raise AssertionError

    async def note_use(self, queries: Mapping[str, int], at: float) -> None:
        raise AssertionError


class FirstStartTests(UnitTestCase):
    """The first start and the ones after it."""

    def setUp(self) -> None:
        self.state_dir = Path(self.mktemp())
        self.state_dir.mkdir()
        self.store = DictStore()

    def config(self, **flags: str | int) -> ServerConfig:
        return server_config(
            {"state-dir": str(self.state_dir), **{k.replace("_", "-"): v for k, v in flags.items()}}, {}
        )

    def start(self, config: ServerConfig) -> FirstKeypair | None:
        first = self.successResultOf(Deferred.fromCoroutine(ensure_keypairs(self.store, config, 1.5e9)))
        if first is not None:
            write_client_file(self.state_dir, endpoint_of(config), first.keypair)
        return first

    def test_first_start_makes_and_shows_a_keypair_once(self) -> None:
        """The secret is printed by the first start only; later starts use the same keypair."""
        first = self.start(self.config())
        assert first is not None
        self.assertTrue(first.made_now)
        self.assertIn(first.keypair.secret_key, banner(self.config(), first))
        second = self.start(self.config(service_port="8099"))
        assert second is not None
        self.assertEqual((second.keypair, second.made_now), (first.keypair, False))
        self.assertNotIn(first.keypair.secret_key, banner(self.config(), second))
        self.assertEqual(len(self.store.keypairs), 1)

    def test_the_client_file_is_private_and_current(self) -> None:
        """The file has the address of the latest start and is readable by its owner only."""
        self.start(self.config())
        self.start(self.config(service_port="8099"))
        path = self.state_dir / "client.toml"
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)
        self.assertEqual(tomllib.loads(path.read_text(encoding="utf-8"))["endpoint"], "http://127.0.0.1:8099")

    def test_the_example_keypair_comes_besides_a_private_one(self) -> None:
        """With --example-keypair there are both, however often it is started."""
        for _ in range(2):
            first = self.start(self.config(example_keypair=1))
            assert first is not None
            self.assertNotEqual(first.keypair.access_key, EXAMPLE_ACCESS_KEY)
        self.assertEqual(len(self.store.keypairs), 2)
        self.assertIn(EXAMPLE_ACCESS_KEY, self.store.keypairs)

    def test_keypairs_of_others_are_not_taken(self) -> None:
        """Where there are keypairs and this host's file names none, none is made and none is shown."""
        keypair = generate_keypair()
        self.store.keypairs[keypair.access_key] = keypair
        self.assertIsNone(self.start(self.config()))
        self.assertNotIn("secret", banner(self.config(), None))

    def test_a_planted_link_is_not_followed(self) -> None:
        """A link where the new file goes is replaced, not written through."""
        victim = Path(self.mktemp())
        victim.write_text("untouched", encoding="utf-8")
        (self.state_dir / "client.new").symlink_to(victim.absolute())
        self.start(self.config())
        self.assertEqual(victim.read_text(encoding="utf-8"), "untouched")

    def test_the_command_survives_a_shell(self) -> None:
        """The printed command, taken apart by a real shell, names the program, the directory and the code."""
        self.state_dir = self.state_dir / "with 'quotes' and spaces"
        self.state_dir.mkdir()
        text = command(self.config()).replace(str(Path(sys.executable).with_name("sorna")), "env #")
        completed = subprocess.run(["sh", "-c", text.split(" run ")[0]], capture_output=True, check=True, text=True)
        self.assertIn(f"SORNA_STATE_DIR={self.state_dir.absolute()}\n", completed.stdout)
