"""What workers are told, and how they are kept running."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tomllib
from pathlib import Path
from typing import Any

from sorna.config import ServerConfig, server_config
from sorna.embedded.child import EX_CONFIG
from sorna.live.address import RedisAddress
from sorna.settings import SERVER_SETTINGS
from sorna.store.address import DatabaseAddress
from sorna.testing.unit import UnitTestCase
from sorna.worker_tap import Options
from sorna.workers import Place, Workers, worker_options
from tests.embedded.test_local_agent import ProcessReactor, end_process

DATABASE = DatabaseAddress("/run/private", 5432, "sorna", "sorna", "data secret")
REDIS = RedisAddress(path="/run/redis.sock", password="live secret")
GROUP = "0123456789abcdef"
# What a worker has of its own, or has no use for.
DIFFERENT = {"database", "redis", "local_agent", "texts", "kernels"}


class OptionsTests(UnitTestCase):
    """A worker is the same server without what is done once."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()

    def worker(self, config: ServerConfig) -> ServerConfig:
        """Give the configuration that a worker of this server reads."""
        file = self.folder / "workers.toml"
        options = worker_options(config, DATABASE, REDIS)
        file.write_text("".join(f"{name} = {_toml(text)}\n" for name, text in options.items()), encoding="utf-8")
        return server_config({"config": str(file)}, {})

    def assert_same(self, one: ServerConfig, other: ServerConfig) -> None:
        """Compare everything that must be the same."""
        for name in {field.name for field in ServerConfig.__attrs_attrs__} - DIFFERENT:
            self.assertEqual(getattr(one, name), getattr(other, name), name)

    def test_the_private_databases_are_found(self) -> None:
        """A worker of the embedded mode has both databases' addresses and starts nothing."""
        first = server_config({"workers": "3", "state-dir": str(self.folder), "example-keypair": 1}, {})
        worker = self.worker(first)
        self.assert_same(first, worker)
        self.assertFalse(worker.embedded or worker.local_agent)
        assert worker.database is not None
        assert worker.redis is not None
        self.assertEqual(
            (worker.database.host, worker.database.user, worker.database.password),
            ("/run/private", "sorna", "data secret"),
        )
        self.assertEqual((worker.redis.address, worker.redis.password), ("unix:///run/redis.sock", "live secret"))

    def test_every_option_is_passed_on(self) -> None:
        """Whatever is chosen, and by whichever way, a worker has it too."""
        certificate = self.folder / "cert.pem"
        certificate.touch()
        chosen = {
            "workers": "20",
            "service-ip": "::1",
            "ssl-cert": str(certificate),
            "ssl-key": str(certificate),
            "db-addr": "[::1]:15432",
            "db-password": 'p"w\\ d',
            "redis-addr": "redis://u:pw@127.0.0.1:16379",
            "legacy-keypair": "AKIAX",
            "placement": "label:zone",
            "gpu-instances": "i-a,i-b",
            "exec-timeout": "12.5",
            "folder-size": "3",
            "local-agent": "yes",
            "state-dir": str(self.folder),
            "trace-stages": str(self.folder),
        }
        variables = {"SORNA_DEBUG": "yes", "SORNA_FOLDERS": "7"}
        first = server_config(chosen, variables)
        worker = self.worker(first)
        self.assert_same(first, worker)
        self.assertEqual((worker.database, worker.redis), (first.database, first.redis))
        self.assertFalse(worker.local_agent)

    def test_only_known_options_are_told(self) -> None:
        """Nothing is told that the reading of options would refuse."""
        told = worker_options(server_config({"workers": "2"}, {}), DATABASE, REDIS)
        self.assertEqual(set(told) - {setting.name for setting in SERVER_SETTINGS}, set())

    def test_secrets_are_not_shown(self) -> None:
        """The texts of options hold passwords."""
        config = server_config({"db-addr": "h", "db-password": "hidden-1", "redis-password": "hidden-2"}, {})
        self.assertNotIn("hidden", repr(config))


def _toml(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


class WorkersTests(UnitTestCase):
    """Starting, restarting, stopping."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.file = self.folder.absolute() / "workers.toml"
        self.reactor = ProcessReactor()
        config = server_config({"workers": "3", "state-dir": str(self.folder)}, {})
        self.workers = Workers(self.reactor, config, GROUP, DATABASE, REDIS)
        self.workers.startService()

    def numbers(self) -> list[str]:
        """Tell which workers were started, in order."""
        return [words[words.index("--worker") + 1] for words in self.reactor.arguments]

    def test_all_but_the_first_are_started(self) -> None:
        """Each is told its number, and the secrets through a private file alone."""
        self.assertEqual(self.numbers(), ["2", "3"])
        self.assertEqual(stat.S_IMODE(self.file.stat().st_mode), 0o600)
        self.assertEqual(tomllib.loads(self.file.read_text("utf-8"))["db-password"], "data secret")
        self.assertNotIn("secret", str(self.reactor.arguments))

    def test_one_that_dies_is_started_again(self) -> None:
        """After a moment, whatever it died of, and for the others nothing changes."""
        for status in (9, 0):
            end_process(self.reactor.processes[-1], status)
            self.reactor.advance(1)
        self.assertEqual(self.numbers(), ["2", "3", "3", "3"])

    def test_one_that_dies_again_and_again(self) -> None:
        """It is tried less and less often, up to every ten seconds."""
        for _ in range(8):
            end_process(self.reactor.processes[-1], 1)
            self.reactor.advance(10)
        started = len(self.reactor.processes)
        end_process(self.reactor.processes[-1], 1)
        self.reactor.advance(9.9)
        self.assertEqual(len(self.reactor.processes), started)
        self.reactor.advance(0.1)
        self.assertEqual(len(self.reactor.processes), started + 1)

    def test_one_that_can_never_start(self) -> None:
        """It is left alone, and the server goes on without it."""
        end_process(self.reactor.processes[0], EX_CONFIG, text=b"sorna: --config is wrong\n")
        self.reactor.advance(60)
        self.assertEqual(self.numbers(), ["2", "3"])

    def test_stop(self) -> None:
        """All are asked at once, the stubborn are killed, and the file with secrets goes last."""
        stopped = self.workers.stopService()
        self.assertEqual([process.signals for process in self.reactor.processes], [["TERM"], ["TERM"]])
        end_process(self.reactor.processes[0], 0)
        self.assertNoResult(stopped)
        self.reactor.advance(15)
        self.assertEqual(self.reactor.processes[1].signals, ["TERM", "KILL"])
        self.assertTrue(self.file.exists())
        end_process(self.reactor.processes[1], 9)
        self.successResultOf(stopped)
        self.reactor.advance(60)
        self.assertEqual((len(self.reactor.processes), self.file.exists()), (2, False))


class WorkerTapTests(UnitTestCase):
    """The options of the worker itself."""

    def parse(self, **options: str) -> Options | str:
        """Parse, and give what is said where that ends the program as one that can never start."""
        parsed, said = Options(), io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                parsed.parseOptions([f"--{name}={text}" for name, text in options.items()])
        except SystemExit as end:
            self.assertEqual(end.code, EX_CONFIG)
            return said.getvalue()
        return parsed

    def test_right(self) -> None:
        """The file's options count, and no variable does."""
        file = Path(self.mktemp())
        file.write_text('service-port = "8099"\nworkers = "2"\n', encoding="utf-8")
        self.patch_environment("SORNA_SERVICE_PORT", "1")
        parsed: Any = self.parse(config=str(file), worker="2", group=GROUP)
        self.assertEqual((parsed.server.service_port, parsed.place), (8099, Place(2, GROUP)))

    def patch_environment(self, name: str, value: str) -> None:
        """Set a variable for this test."""
        os.environ[name] = value
        self.addCleanup(os.environ.pop, name)

    def test_wrong(self) -> None:
        """What is missing or no number is named, as an error that no other attempt would mend."""
        for options, said in (
            ({"worker": "2", "group": GROUP}, "--config"),
            ({"config": "/nowhere", "worker": "2", "group": GROUP}, "/nowhere"),
            ({"config": "x", "worker": "1", "group": GROUP}, "--worker"),
            ({"config": "x", "worker": "two", "group": GROUP}, "--worker"),
            ({"config": "x", "group": GROUP}, "--worker"),
            ({"config": "x", "worker": "2"}, "--group"),
        ):
            self.assertIn(said, str(self.parse(**options)))
