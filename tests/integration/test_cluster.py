"""The cluster for tests and operators: hosts of their own, links that are cut, and nothing that stays behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import SkipTest

from sorna.testing.cluster import Namespaces, NamespacesUnavailable, make_cluster, until
from sorna.testing.cluster.client import RequestRefused
from sorna.testing.cluster.parts import descendants
from sorna.testing.doctor import findings
from sorna.testing.server import PROJECT
from sorna.testing.unit import UnitTestCase

PATIENCE = 60.0


def traces() -> set[str]:
    """List namespaces, interfaces, folders and groups of clusters that are here now."""
    found = {path.name for path in Path("/run/netns").glob("sorna-*")}
    found |= {path.name for path in Path("/sys/class/net").iterdir() if path.name.startswith(("sorna", "sv"))}
    found |= {path.name for path in Path(tempfile.gettempdir()).glob("sorna-cluster-*")}
    return found


class ClusterTests(UnitTestCase):
    """Starting, cutting, ending."""

    def seconds(self) -> Callable[[], float]:
        from twisted.internet import reactor  # noqa: PLC0415, TID251 - the servers go by the wall clock

        return reactor.seconds

    def namespaces(self) -> Namespaces:
        """Make namespaces where that can be done."""
        try:
            return Namespaces()
        except NamespacesUnavailable as error:
            raise SkipTest(str(error)) from error

    def test_links_are_cut_and_mended(self) -> None:
        """Each direction by itself; what is mended works again, and in the end nothing is left."""
        before = traces()
        network = self.namespaces()
        cluster = make_cluster(1, 1, network=network)
        with cluster:
            manager = cluster.managers[0]
            client = cluster.client(manager, self.seconds())
            client.timeout = 2.0
            client.create_and_destroy()
            for direction in ("to", "from", "both"):
                network.cut("m1", direction)
                self.assertRaises(OSError, client.info, "whatever")
                network.mend("m1")
                self.assertTrue(until(manager.ready, PATIENCE), direction)
            network.slow("m1", 64_000)
            self.assertTrue(until(manager.ready, PATIENCE))
            cluster.heal()
            self.assertTrue(until(lambda: self.works(client.create_and_destroy), PATIENCE))
        self.assertEqual(traces() - before, set())

    def works(self, what: Callable[[], None]) -> bool:
        """Tell whether something can be done now."""
        try:
            what()
        except (OSError, RequestRefused):
            return False
        return True

    def test_what_a_killed_run_left(self) -> None:
        """The next network removes namespaces and bridges whose process is no more, and leaves those of the living."""
        network = self.namespaces()
        self.addCleanup(network.close)
        network.place("m1", 80)
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        orphan = f"sorna-{dead.pid:x}g-m1"
        subprocess.run(["ip", "netns", "add", orphan], check=True)
        self.addCleanup(self.namespaces().close)
        self.assertFalse(Path("/run/netns", orphan).exists())
        self.assertTrue(any(Path("/run/netns").glob(f"sorna-{os.getpid():x}?-m1")))

    def test_the_command(self) -> None:
        """It prints how to use it, its commands work as printed, and Ctrl-C ends everything."""
        before = traces()
        command = [sys.executable, "-m", "sorna.testing.cluster", "--managers=2", "--agents=1"]
        with tempfile.NamedTemporaryFile("r+", suffix=".log") as log:
            environ = {**os.environ, "PYTHONPATH": str(PROJECT)}
            process = subprocess.Popen(command, cwd="/", env=environ, stdout=log, stderr=log, start_new_session=True)
            self.addCleanup(process.wait)
            self.addCleanup(process.kill)
            said = Path(log.name)
            ready = until(lambda: "Ctrl-C" in said.read_text(), PATIENCE, giving_up=lambda: process.poll() is not None)
            self.assertTrue(ready, said.read_text())
            text = said.read_text()
            state = re.findall(r"export SORNA_STATE_DIR=(\S+)", text)[0]
            printed = [line.strip() for line in text.splitlines() if " run -t mine" in line]
            answers = [self.shell(line, SORNA_STATE_DIR=state) for line in printed]
            self.assertEqual(answers, ["42\n", "6\n"])
            doctor = next(line.strip() for line in text.splitlines() if " doctor --config" in line)
            self.assertEqual(self.shell(doctor), "All promises hold.\n")
            family = descendants(process.pid)
            os.kill(process.pid, signal.SIGINT)
            self.assertEqual(process.wait(PATIENCE), 0)
        self.assertTrue(until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family), PATIENCE))
        self.assertEqual(traces() - before, set())

    def shell(self, line: str, **environ: str) -> str:
        """Type a line into a shell, with the program of this checkout."""
        line = re.sub(r"\S*/sorna ", f"{sys.executable} -m sorna.command ", line)
        environment = {"PATH": os.defpath, "PYTHONPATH": str(PROJECT), "HOME": "/", **environ}
        done = subprocess.run(
            ["/bin/sh", "-c", line], capture_output=True, text=True, timeout=PATIENCE, check=False, env=environment
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout


class DoctorTests(UnitTestCase):
    """The doctor on a patient who is ill."""

    def test_findings(self) -> None:
        """Kernels of a dead agent, while no manager mends; and databases that are away. It exits with 1 and says what to do."""
        from twisted.internet import reactor  # noqa: PLC0415, TID251 - the servers go by the wall clock

        with make_cluster(1, 1) as cluster:
            config = f"--config={cluster.options_file}"
            client = cluster.client(cluster.managers[0], reactor.seconds)
            kernel = client.create()
            self.assertEqual(findings(config), [])
            cluster.managers[0].kill()
            cluster.agents[0].kill()
            # The agent counts as alive until its lease ends.
            self.assertTrue(until(lambda: bool(findings(config, "--patience=0")), PATIENCE))
            found = findings(config, "--patience=0")
            self.assertEqual({(one["check"], one["subject"]) for one in found}, {("dead-agent", kernel)})
            done = self.doctor(config, "--patience=1")
            self.assertEqual(done.returncode, 1)
            self.assertRegex(done.stdout, rf"dead-agent  {kernel}\n  .*no sign of life.\n  To do: .*\n\n1 finding.\n")
            cluster.redis.stop()
            self.assertEqual([one["check"] for one in findings(config, "--patience=0")], ["reachable"])
        done = self.doctor("--state-dir=/nonexistent")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn("cannot read /nonexistent/postgres/password", done.stderr)
        self.assertEqual(self.doctor("--db-addr=a:b:c").returncode, 2)

    def doctor(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Run the command."""
        command = [sys.executable, "-m", "sorna.command", "doctor", *options]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE, check=False, env={"PYTHONPATH": str(PROJECT)}
        )
