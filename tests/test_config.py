"""Where options come from, and which values are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sorna.config import (
    ConfigurationError,
    agent_config,
    default_state_dir,
    host_and_port,
    server_config,
)
from sorna.model.limits import MIB
from sorna.model.placement import PlacementRules, Strategy
from sorna.settings import AGENT_SETTINGS, SERVER_SETTINGS
from sorna.testing.unit import UnitTestCase


class PrecedenceTests(UnitTestCase):
    """Flags win over variables, variables over the file, the file over defaults."""

    def setUp(self) -> None:
        self.file = Path(self.mktemp())
        self.file.write_text("service-port = 8083\nmax_kernels = 7\nexample-keypair = true\n", encoding="utf-8")

    def test_each_layer_wins_over_the_next(self) -> None:
        """The same option from three layers has the value of the highest."""
        variables = {"SORNA_CONFIG": str(self.file)}
        self.assertEqual(server_config({}, {}).service_port, 8080)
        self.assertEqual(server_config({}, variables).service_port, 8083)
        variables["SORNA_SERVICE_PORT"] = "8082"
        self.assertEqual(server_config({}, variables).service_port, 8082)
        self.assertEqual(server_config({"service-port": "8081"}, variables).service_port, 8081)

    def test_file_spells_names_with_dash_or_underscore(self) -> None:
        """Both spellings and TOML's own types are understood."""
        config = server_config({"config": str(self.file)}, {})
        self.assertEqual(config.kernels.max_kernels, 7)
        self.assertTrue(config.example_keypair)

    def test_options_of_the_other_program_are_passed_over(self) -> None:
        """One file may serve the server and its agents."""
        self.file.write_text('agent-id = "i-one"\nredis-addr = "127.0.0.1:6379"\ndb-name = "x"\n', encoding="utf-8")
        self.assertEqual(agent_config({"config": str(self.file)}, {}).agent_id, "i-one")
        self.assertIsNone(server_config({"config": str(self.file)}, {}).database)

    def test_what_enrolment_left_is_the_last_word(self) -> None:
        """Options of an agent that has enrolled itself come before the defaults, and after everything else."""
        state = Path(self.mktemp())
        (state / "agent").mkdir(parents=True)
        file = state / "agent" / "enrolled.toml"
        file.write_text('agent-id = "a-1"\nredis-addr = "redis://r:1"\nagent-port = 7\n', encoding="utf-8")
        options = {"state-dir": str(state)}
        config = agent_config(options, {})
        self.assertEqual((config.agent_id, config.redis.address, config.port), ("a-1", "redis://r:1", 7))
        own = Path(self.mktemp())
        own.write_text('agent-port = 8\nagent-id = "b"\n', encoding="utf-8")
        config = agent_config({**options, "config": str(own), "agent-id": "c"}, {"SORNA_REDIS_ADDR": "s"})
        self.assertEqual((config.agent_id, config.redis.address, config.port), ("c", "redis://s:6379", 8))
        file.write_text("agent-port = ", encoding="utf-8")
        with self.assertRaisesRegex(ConfigurationError, "enrolled.toml is not TOML"):
            agent_config(options, {})

    def test_every_setting_is_described_with_its_variable(self) -> None:
        """The help names the variable and the default of each option."""
        for setting in (*SERVER_SETTINGS, *AGENT_SETTINGS):
            self.assertIn(setting.variable, setting.described)
            self.assertIn("default: ", setting.described)


class ServerConfigTests(UnitTestCase):
    """The server's configuration."""

    def test_workers(self) -> None:
        """One by default; as many as the databases can take; no half ones."""
        given = {"db-addr": "db.example", "redis-addr": "redis.example"}
        self.assertEqual(server_config({}, {}).workers, 1)
        self.assertEqual(server_config({}, {"SORNA_WORKERS": "6"}).workers, 6)
        self.assertEqual(server_config({**given, "workers": "64"}, {}).workers, 64)
        for wrong in ("0", "-1", "65", "2.5", "two"):
            error = self.assertRaises(ConfigurationError, server_config, {**given, "workers": wrong}, {})
            self.assertIn("--workers", str(error))
        error = self.assertRaises(ConfigurationError, server_config, {"workers": "7"}, {})
        self.assertIn("private PostgreSQL", str(error))

    def test_embedded_by_default_on_loopback(self) -> None:
        """Nothing configured means private databases, a local agent, and a loopback address."""
        config = server_config({}, {})
        self.assertTrue(config.embedded)
        self.assertTrue(config.local_agent)
        self.assertEqual((config.service_ip, config.service_port), ("127.0.0.1", 8080))
        self.assertEqual(str(config.state_dir), default_state_dir())

    def test_placement(self) -> None:
        """How agents are chosen, and what an agent says of itself."""
        config = server_config({}, {})
        self.assertEqual((config.placement, dict(config.kernels.labels)), (PlacementRules(), {}))
        self.assertEqual((config.kernels.memory_overcommit, config.kernels.cpu_overcommit), (8.0, 0.0))
        config = server_config(
            {"placement": "label:zone", "gpu-instances": "i-1, i-2", "cpu-overcommit": "1.5"},
            {"SORNA_AGENT_LABELS": "zone=a, disk=ssd"},
        )
        self.assertEqual(config.placement, PlacementRules(Strategy.LABEL, "zone", frozenset({"i-1", "i-2"})))
        self.assertEqual(dict(config.kernels.labels), {"zone": "a", "disk": "ssd"})
        self.assertEqual(config.kernels.cpu_overcommit, 1.5)
        for wrong, name in (
            ({"placement": "random"}, "--placement"),
            ({"placement": "label"}, "--placement"),
            ({"agent-labels": "zone"}, "--agent-labels"),
            ({"agent-labels": ",".join(f"k{number}=v" for number in range(33))}, "--agent-labels"),
            ({"memory-overcommit": "-1"}, "--memory-overcommit"),
            ({"cpu-overcommit": "much"}, "--cpu-overcommit"),
        ):
            with self.assertRaises(ConfigurationError) as caught:
                server_config(wrong, {})
            self.assertIn(name, str(caught.exception))

    def test_zeromq_interface(self) -> None:
        """It is on loopback unless told otherwise, at the ports of 2016, and charged to nobody by default."""
        legacy = server_config({}, {}).legacy
        self.assertEqual((legacy.ip, legacy.manager_port, legacy.execution_port), ("127.0.0.1", 5001, 6001))
        self.assertEqual((legacy.access_key, legacy.curve, legacy.override), (None, False, None))
        external = {"db-addr": "10.0.0.1", "redis-addr": "10.0.0.2"}
        self.assertEqual(server_config(external, {}).legacy.ip, "127.0.0.1")
        legacy = server_config(
            {**external, "legacy-ip": "0.0.0.0", "kernel-ip-override": "localhost", "legacy-curve": 1},
            {"SORNA_LEGACY_KEYPAIR": "AKIAX"},
        ).legacy
        self.assertEqual(
            (legacy.ip, legacy.override, legacy.curve, legacy.access_key), ("0.0.0.0", "127.0.0.1", True, "AKIAX")
        )
        for options in (
            {"legacy-ip": "10.0.0.1"},
            {"legacy-ip": "host.example"},
            {"manager-port": "6001"},
            {"kernel-ip-override": "somewhere"},
        ):
            with self.assertRaisesRegex(ConfigurationError, next(iter(options))):
                server_config(options, {})
        self.assertEqual(server_config({"legacy-ip": "10.0.0.1", "allow-remote": 1}, {}).legacy.ip, "10.0.0.1")

    def test_external_databases(self) -> None:
        """With both addresses nothing is embedded, no agent is started, and all interfaces are served."""
        config = server_config({"db-addr": "10.0.0.1:5433", "db-password": "pw", "redis-addr": "10.0.0.2"}, {})
        self.assertFalse(config.embedded)
        self.assertFalse(config.local_agent)
        self.assertEqual(config.service_ip, "0.0.0.0")
        assert config.database is not None
        assert config.redis is not None
        self.assertEqual(
            (config.database.host, config.database.port, config.database.name), ("10.0.0.1", 5433, "sorna")
        )
        self.assertEqual(config.redis.address, "redis://10.0.0.2:6379")

    def test_secrets_are_not_shown(self) -> None:
        """A configuration in a log line holds no password."""
        config = server_config(
            {
                "db-addr": "10.0.0.1",
                "db-password": "hidden1",
                "redis-addr": "redis://u:hidden2@h:1",
                "redis-password": "hidden3",
            },
            {},
        )
        self.assertNotIn("hidden", repr(config))

    def test_units(self) -> None:
        """Limits are given in MiB and seconds and kept in bytes and seconds."""
        limits = server_config({"kernel-memory": "256", "exec-timeout": "2.5", "kernel-output": "0.5e1"}, {}).limits
        self.assertEqual(limits.default.memory, 256 * MIB)
        self.assertEqual(limits.default.execution_timeout, 2.5)
        self.assertEqual(limits.most_execution_timeout, 2.5)
        self.assertEqual(limits.default.output_size, 5 * MIB)

    def test_tls_changes_the_default_port(self) -> None:
        """With a certificate the default port is 8443."""
        pem = Path(self.mktemp())
        pem.write_text("", encoding="utf-8")
        config = server_config({"ssl-cert": str(pem), "ssl-key": str(pem)}, {})
        self.assertEqual(config.service_port, 8443)
        self.assertTrue(config.tls)

    def test_refusals_name_the_option(self) -> None:
        """Every value that cannot be right is refused with the option's name."""
        loopback_only = {"db-addr": "h", "redis-addr": "h"}
        refused: list[tuple[dict[str, Any], str]] = [
            ({"service-port": "http"}, "--service-port"),
            ({"service-port": "70000"}, "--service-port"),
            ({"service-ip": "example.org"}, "--service-ip"),
            ({"service-ip": "0.0.0.0"}, "--allow-remote"),
            ({"service-ip": "0.0.0.0", "allow-remote": 1, "example-keypair": 1}, "--example-keypair"),
            ({**loopback_only, "example-keypair": 1}, "--example-keypair"),
            ({"ssl-cert": "/nowhere.pem"}, "--ssl-cert"),
            ({"ssl-cert": __file__}, "--ssl-key"),
            ({"db-addr": "host:0"}, "host:0"),
            ({"redis-addr": "http://x"}, "--redis-addr"),
            ({"isolation": "weak"}, "--isolation"),
            ({"max-kernels": "0"}, "--max-kernels"),
            ({"max-kernels": "1.5"}, "--max-kernels"),
            ({"kernel-memory": "nan"}, "--kernel-memory"),
            ({"kernel-python": "/nowhere/python"}, "--kernel-python"),
            ({"local-agent": "maybe"}, "--local-agent"),
            ({"config": "/nowhere.toml"}, "--config"),
            ({"trace-stages": "/nowhere"}, "--trace-stages"),
        ]
        for flags, named in refused:
            with self.assertRaises(ConfigurationError) as caught:
                server_config(flags, {})
            self.assertIn(named, str(caught.exception))

    def test_broken_files_are_refused(self) -> None:
        """A file that is no TOML, has unknown options or tables is refused with the reason."""
        for content, said in [
            ("a = ", "not TOML"),
            ("colour = 1", "unknown option"),
            ("[redis-addr]\na = 1", "plain value"),
        ]:
            path = Path(self.mktemp())
            path.write_text(content, encoding="utf-8")
            with self.assertRaises(ConfigurationError) as caught:
                server_config({"config": str(path)}, {})
            self.assertIn(said, str(caught.exception))


class AgentConfigTests(UnitTestCase):
    """The agent's configuration."""

    def test_needs_redis(self) -> None:
        """An agent without a Redis is refused."""
        with self.assertRaises(ConfigurationError):
            agent_config({}, {})

    def test_id_is_checked(self) -> None:
        """An id that could not be a key or a file name is refused."""
        with self.assertRaises(ConfigurationError):
            agent_config({"redis-addr": "h", "agent-id": "../x"}, {})


class HostAndPortTests(UnitTestCase):
    """Addresses as clients of 2016 and today's operators write them."""

    def test_forms(self) -> None:
        """Names, IPv4 and bracketed IPv6, with and without a port."""
        self.assertEqual(host_and_port("db", 5432), ("db", 5432))
        self.assertEqual(host_and_port("10.0.0.1:15432", 5432), ("10.0.0.1", 15432))
        self.assertEqual(host_and_port("[::1]:1", 5432), ("::1", 1))

    @given(st.text(max_size=40))
    def test_anything_is_split_or_refused(self, text: str) -> None:
        """No text makes it fail in another way."""
        try:
            host, port = host_and_port(text, 5432)
        except ConfigurationError:
            return
        self.assertTrue(host)
        self.assertTrue(0 < port < 65536)
