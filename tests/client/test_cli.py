"""The command line: flags, variables, and what each command asks of the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from twisted.internet.defer import Deferred

from sorna.client.cli import cli
from sorna.client.configuration import ClientConfiguration
from sorna.client.door import Command, Door
from sorna.first_start import write_client_file
from sorna.model.keypair import Keypair
from sorna.testing.unit import UnitTestCase
from tests.client.scripted import CREATED, ENDPOINT, KERNEL, Prepared, Setting, result

KEYS = {"SORNA_ACCESS_KEY": "AKIAIOSFODNN7EXAMPLE", "SORNA_SECRET_KEY": "secret"}
GONE: tuple[int, Any] = (200, {"stats": {"cpu_used": 12}})


class CommandLineTestCase(UnitTestCase):
    """Runs the command line with a scripted server in the network's place."""

    def invoke(self, arguments: list[str], *answers: Prepared, environ: dict[str, str] | None = None) -> Result:
        """Run one command."""
        self.setting = Setting(*answers)
        self.codes: list[int] = []
        self.configurations: list[ClientConfiguration] = []

        def perform(configuration: ClientConfiguration, command: Command) -> None:
            self.configurations.append(configuration)

            async def carry_out() -> int:
                return await command(Door(self.setting.reactor, self.setting.api))

            self.codes.append(self.successResultOf(Deferred.fromCoroutine(carry_out())))

        folder = self.mktemp()
        Path(folder).mkdir()
        variables = {"SORNA_STATE_DIR": folder, "SORNA_ENDPOINT": None, **(KEYS if environ is None else environ)}
        return CliRunner().invoke(cli, arguments, obj=perform, env=variables)


class RunTests(CommandLineTestCase):
    """``sorna run``."""

    def test_snippet(self) -> None:
        """A snippet runs in a kernel of its own, which is destroyed."""
        done = self.invoke(["run", "python3", "-c", "print(1)"], CREATED, result("finished", ["stdout", "1\n"]), GONE)
        self.assertEqual((done.exit_code, self.codes, done.stdout), (0, [0], "1\n"))
        create, execute, destroy = self.setting.server.seen
        self.assertEqual(create.json["lang"], "python3")
        self.assertRegex(create.json["clientSessionToken"], "^[0-9a-f]{32}$")
        self.assertEqual(execute.json["code"], "print(1)")
        self.assertEqual(destroy.method, "DELETE")

    def test_where_and_when(self) -> None:
        """Labels of the agent and the time to wait for one are passed on; nonsense is refused here."""
        arguments = ["run", "c", "-c", "x", "--label", "zone=a", "--label", "disk=ssd", "--wait", "9"]
        self.invoke(arguments, CREATED, result("finished"), GONE)
        body = self.setting.server.seen[0].json
        self.assertEqual((body["config"]["labels"], body["maxWaitSeconds"]), ({"zone": "a", "disk": "ssd"}, 9.0))
        self.assertEqual(self.invoke(["run", "c", "-c", "x", "--label", "zone"]).exit_code, 2)

    def test_token_keeps(self) -> None:
        """A session that was named stays, unless --rm says otherwise."""
        self.invoke(["run", "-t", "mine", "-q", "c", "-c", "x"], CREATED, result("finished"))
        self.assertEqual(self.setting.server.seen[0].json["clientSessionToken"], "mine")
        self.assertEqual(len(self.setting.server.seen), 2)
        self.invoke(["run", "-t", "mine", "--rm", "c", "-c", "x"], CREATED, result("finished"), GONE)
        self.assertEqual(len(self.setting.server.seen), 3)
        self.invoke(["run", "--keep", "c", "-c", "x"], CREATED, result("finished"))
        self.assertEqual(len(self.setting.server.seen), 2)

    def test_files(self) -> None:
        """Files with commands of one's own."""
        base = Path(self.mktemp())
        base.mkdir()
        (base / "main.c").write_text("main(){}")
        arguments = ["run", "--basedir", str(base), "-b", "make", "-e", "./main", "--env", "A=B=C", "c"]
        self.invoke([*arguments, str(base / "main.c")], CREATED, (204, None), result("finished", exitCode=4), GONE)
        self.assertEqual(self.codes, [4])
        create, upload, execute, _ = self.setting.server.seen
        self.assertEqual(create.json["config"]["environ"], {"A": "B=C"})
        self.assertIn(b'filename="main.c"', upload.body)
        self.assertEqual(execute.json["options"], {"build": "make", "exec": "./main", "buildLog": False})

    def test_misuse(self) -> None:
        """What cannot be meant is refused before anything is sent."""
        for arguments in (
            ["c"],
            ["c", "-c", "x", "file"],
            ["c", "-c", "x", "--env", "A"],
            ["c", "-c", "x", "--env", "=B"],
        ):
            self.assertEqual(self.invoke(["run", *arguments]).exit_code, 2)
        self.assertEqual(self.invoke(["run", "c", "/no/such/file"]).exit_code, 125)


class ConnectionTests(CommandLineTestCase):
    """Which server, and in whose name."""

    def test_variables_and_flags(self) -> None:
        """Flags win over variables."""
        arguments = ["info", KERNEL]
        self.invoke(arguments, (200, {}), environ={**KEYS, "SORNA_ENDPOINT": "http://one"})
        self.assertEqual(self.configurations[0].endpoint, "http://one")
        self.invoke(
            [*arguments, "--endpoint", "http://two"], (200, {}), environ={**KEYS, "SORNA_ENDPOINT": "http://one"}
        )
        self.assertEqual(self.configurations, [ClientConfiguration("http://two", *KEYS.values())])

    def test_file(self) -> None:
        """What `make run` left is enough."""
        folder = Path(self.mktemp())
        folder.mkdir()
        write_client_file(folder, ENDPOINT, Keypair("A", "S"))
        self.invoke(["info", KERNEL], (200, {}), environ={"SORNA_STATE_DIR": str(folder)})
        self.assertEqual(self.configurations, [ClientConfiguration(ENDPOINT, "A", "S")])

    def test_nothing(self) -> None:
        """Without a keypair the way out is told, with the exit code of our own failures."""
        done = self.invoke(["info", KERNEL], environ={})
        self.assertEqual(done.exit_code, 125)
        self.assertIn("make run", done.stderr)

    def test_no_endpoint(self) -> None:
        """An endpoint that is no URL is refused."""
        done = self.invoke(["info", KERNEL, "--endpoint", "localhost"])
        self.assertEqual(done.exit_code, 125)
        self.assertIn("http://127.0.0.1:8080", done.stderr)


class KernelTests(CommandLineTestCase):
    """The commands for kernels that stay."""

    def test_info(self) -> None:
        """Names and values in columns."""
        done = self.invoke(["info", KERNEL], (200, {"lang": "c", "idleTimeout": 5}))
        self.assertEqual(done.stdout, "lang         c\nidleTimeout  5\n")

    def test_terminate(self) -> None:
        """What was used is told on request."""
        self.assertEqual(self.invoke(["terminate", KERNEL], GONE).stdout, "")
        self.assertEqual(self.invoke(["terminate", "--stats", KERNEL], GONE).stdout, "cpu_used  12\n")
        self.assertEqual(self.invoke(["terminate", "--stats", KERNEL], (204, None)).stdout, "")

    def test_restart(self) -> None:
        """Restart asks for just that."""
        self.invoke(["restart", KERNEL], (204, None))
        self.assertEqual(self.setting.server.calls, [f"PATCH /v3/kernel/{KERNEL}"])

    def test_logs(self) -> None:
        """The log is printed as it is."""
        done = self.invoke(["logs", KERNEL], (200, {"result": {"logs": "one\ntwo"}}))
        self.assertEqual(done.stdout, "one\ntwo")

    def test_help(self) -> None:
        """Every command explains itself."""
        for name in ("run", "info", "terminate", "restart", "logs"):
            self.assertIn("Usage: ", self.invoke([name, "--help"]).stdout)
        self.assertIn("sorna", self.invoke(["--version"]).stdout)
