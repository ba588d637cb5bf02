"""``kill -9`` of a whole server and of its agent: within five seconds nothing of them is left, and the next start works."""

from __future__ import annotations

import contextlib
import http.client
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import SkipTest

import twisted
from sorna.model.keypair import EXAMPLE_ACCESS_KEY, EXAMPLE_SECRET_KEY
from sorna.testing.doctor import check_promises
from sorna.testing.server import PROJECT, START_TIMEOUT, free_ports, server_command
from sorna.testing.unit import UnitTestCase

PROMISED = 5.0  # seconds until nothing is left
LIBRARIES = Path(twisted.__file__).parents[1]
# A process, with the time of its birth: its number may be another's by now.
Process = tuple[int, str]


def family(pid: int) -> set[Process]:
    """Give a process with everything that descends from it."""
    births: dict[int, str] = {}
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            births[int(path.name)] = fields[19]
            children.setdefault(int(fields[1]), []).append(int(path.name))
    found, todo = set(), [pid]
    while todo:
        one = todo.pop()
        todo += children.get(one, [])
        if one in births:
            found.add((one, births[one]))
    return found


def mounts() -> list[bytes]:
    """List what is mounted, but named network namespaces: the server makes none, and other tests do."""
    return [line for line in Path("/proc/self/mounts").read_bytes().splitlines() if b" /run/netns" not in line]


def alive(processes: set[Process]) -> set[Process]:
    """Tell which of them still run; who is dead and was not yet reaped does not."""
    found = set()
    for pid, birth in processes:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if fields[19] == birth and fields[0] not in "ZX":
                found.add((pid, birth))
    return found


def groups(agent_id: str) -> set[str]:
    """List an agent's control groups, and its kernels' in them."""
    return {path for path, _directories, _files in os.walk("/sys/fs/cgroup") if f"/{agent_id}" in path}


def command_line(process: Process) -> bytes:
    """Give the words of a process; none when it is gone."""
    try:
        return Path(f"/proc/{process[0]}/cmdline").read_bytes()
    except OSError:
        return b""


class SuddenDeathTests(UnitTestCase):
    """A server of root's, or of whoever runs the tests."""

    options: Sequence[str] = ()

    def setUp(self) -> None:
        """Give the server a folder for all that it writes, temporary files included."""
        self.folder = Path(tempfile.mkdtemp(prefix="sorna-test-"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.folder.chmod(0o711)
        self.temporary = self.folder / "tmp"
        self.temporary.mkdir()
        self.mounts = mounts()
        self.words = [sys.executable]
        self.environ = {**os.environ, "PYTHONPATH": str(PROJECT), "TMPDIR": str(self.temporary)}

    def start(self) -> subprocess.Popen[bytes]:
        """Start the server; it may not be ready yet."""
        self.port, manager, agent = free_ports(3)
        ports = f"--service-ip=127.0.0.1 --service-port={self.port} --manager-port={manager} --agent-port={agent}"
        command = server_command(
            ports.split(), ["--example-keypair", "--state-dir", str(self.folder / "state")], self.options
        )
        with (self.folder / "log").open("ab") as log:
            server = subprocess.Popen(
                [*self.words, *command[1:]], cwd="/", env=self.environ, stdin=-3, stdout=log, stderr=log
            )
        self.addCleanup(self.end, server)
        return server

    def end(self, server: subprocess.Popen[bytes]) -> None:
        """End the server as an operator does, with all its promises kept."""
        if server.poll() is None and self.ready():
            check_promises("--state-dir", str(self.folder / "state"), TMPDIR=str(self.temporary))
        server.terminate()
        try:
            server.wait(20)
        finally:
            server.kill()
            server.wait()

    def until(self, what: Callable[[], bool], seconds: float, failing: Callable[[], object]) -> None:
        """Wait until something is so; ``failing`` says what there is instead."""
        deadline = time.monotonic() + seconds
        while not what():
            if time.monotonic() > deadline:
                log = (self.folder / "log").read_text("utf-8", "replace")[-3000:]
                self.fail(f"after {seconds} s there is {failing()}; the server says\n{log}")
            time.sleep(0.02)

    def ready(self) -> bool:
        """Tell whether the server and an agent of it serve."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def sorna(self, *words: str) -> subprocess.Popen[str]:
        """Start the command line."""
        environ = {
            "PATH": os.defpath,
            "PYTHONPATH": str(PROJECT),
            "SORNA_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "SORNA_ACCESS_KEY": EXAMPLE_ACCESS_KEY,
            "SORNA_SECRET_KEY": EXAMPLE_SECRET_KEY,
        }
        program = [sys.executable, "-m", "sorna.client.cli", *words]
        process = subprocess.Popen(program, env=environ, stdin=-3, stdout=-1, stderr=-1, text=True)
        self.addCleanup(self.forget, process)
        return process

    def forget(self, process: subprocess.Popen[str]) -> None:
        """End a command line, whatever it does."""
        process.kill()
        process.communicate()

    def runs_code(self) -> bool:
        """Tell whether code runs, and an interpreter that it starts."""
        code = "import subprocess, sys; r = subprocess.run([sys.executable, '-c', 'print(6*7)'])"
        return self.sorna("run", "-q", "--rm", "python3", "-c", code).communicate(timeout=60)[0] == "42\n"

    def begin_printing(self) -> None:
        """Leave a run behind that prints for ever."""
        printing = self.sorna("run", "-q", "python3", "-c", "while True: print('x' * 99)")
        assert printing.stdout is not None
        self.assertEqual(printing.stdout.readline(), "x" * 99 + "\n")

    def agents(self, server: subprocess.Popen[bytes]) -> list[int]:
        """Find the server's agents."""
        return [process[0] for process in family(server.pid) if b"\0sorna.agent\0" in command_line(process)]

    @property
    def agent_id(self) -> str:
        """Give the id of the server's own agent."""
        return str(tomllib.loads((self.folder / "state" / "agent.toml").read_text())["agent-id"])

    def temporaries(self) -> list[str]:
        """List what there is of temporary files."""
        return [path.name for path in self.temporary.iterdir()]

    def nothing_is_left(self, processes: set[Process], of: str) -> None:
        """Check that within the promised time everything of a killed server is gone."""

        def left() -> tuple[object, ...]:
            return [command_line(one) for one in alive(processes)], groups(of), self.temporaries()

        self.until(lambda: not any(left()), PROMISED, left)
        self.assertEqual(mounts(), self.mounts)

    def kill(self, server: subprocess.Popen[bytes], also: list[int]) -> None:
        """Kill the server and others at once, with no chance to do anything."""
        doomed = family(server.pid)
        for pid in (server.pid, *also):
            os.kill(pid, signal.SIGKILL)
        server.wait()
        self.nothing_is_left(doomed, self.agent_id)

    def started(self) -> subprocess.Popen[bytes]:
        """Start the server and wait until it is ready."""
        server = self.start()
        self.until(self.ready, START_TIMEOUT, lambda: f"no server, {server.poll()}")
        return server

    def test_everything_dies_with_the_server(self) -> None:
        """Killed in the middle of a run, alone or with its agent, it leaves nothing, and starts again."""
        server = self.started()
        self.begin_printing()
        self.assertGreater(len(family(server.pid)), 5)
        self.kill(server, [])
        server = self.started()
        self.begin_printing()
        self.kill(server, self.agents(server))
        server = self.started()
        self.assertTrue(self.runs_code())
        processes = family(server.pid)
        self.end(server)
        # Twisted stops in order, and then ends as the signal would have ended it.
        self.assertEqual(server.returncode, -signal.SIGTERM)
        self.nothing_is_left(processes, self.agent_id)

    def test_everything_dies_with_the_agent(self) -> None:
        """A killed agent leaves no process and no group of its kernels, and another serves soon."""
        server = self.started()
        self.begin_printing()
        [agent] = self.agents(server)
        doomed = family(agent)
        kernels = groups(self.agent_id) - {path for path in groups(self.agent_id) if path.endswith(self.agent_id)}
        self.assertEqual(bool(kernels), bool(groups(self.agent_id)))
        os.kill(agent, signal.SIGKILL)

        def left() -> tuple[object, ...]:
            return [command_line(one) for one in alive(doomed)], kernels & groups(self.agent_id)

        self.until(lambda: not any(left()), PROMISED, left)
        self.until(self.runs_code, 30, lambda: "no agent that serves")
        self.assertEqual(self.temporaries(), [])

    def test_nothing_is_left_of_an_agent_that_only_starts(self) -> None:
        """Killed while its zygotes import, the agent leaves neither their homes nor its groups."""
        server = self.start()
        self.until(lambda: bool(self.temporaries()), START_TIMEOUT, lambda: "no zygote")
        self.kill(server, self.agents(server))


class OrdinaryUserTests(SuddenDeathTests):
    """The same for an ordinary user, whose kernels have user namespaces and no control groups."""

    def setUp(self) -> None:
        """Become somebody who may pass no directory of root's: Python is shown below ``/usr/local`` to the server alone."""
        if os.geteuid() != 0:
            raise SkipTest("this is an ordinary user already")
        if shutil.which("unshare") is None or shutil.which("setpriv") is None:
            raise SkipTest("takes unshare and setpriv")
        super().setUp()
        user = pwd.getpwnam("daemon")
        for path in (self.folder, self.temporary):
            os.chown(path, user.pw_uid, user.pw_gid)
        become = f"setpriv --reuid={user.pw_uid} --regid={user.pw_gid} --clear-groups"
        script = f'mount --bind "$1" /usr/local && shift && exec {become} "$@"'
        python = f"/usr/local/bin/python3.{sys.version_info.minor}"
        self.words = ["unshare", "--mount", "/bin/sh", "-c", script, "sh", sys.base_prefix, python]
        self.environ = {
            "PATH": "/usr/bin:/bin",
            "LD_LIBRARY_PATH": "/usr/local/lib",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": f"{PROJECT}:{LIBRARIES}",
            "TMPDIR": str(self.temporary),
        }
