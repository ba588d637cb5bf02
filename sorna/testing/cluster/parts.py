"""The parts of a test cluster as processes that can be started, stopped, killed, frozen and thawed one by one.

Knows how an operator starts each part and how to tell that it is ready; which parts there are and where, ``cluster`` decides.
Everything blocks, as tests may. All waiting is bounded.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from attrs import define, field

from sorna.testing.server import PROJECT, server_command

START_TIMEOUT = 60.0  # seconds; a first start makes a database, on a machine that may be busy
STOP_TIMEOUT = 30.0
LOOK = 0.05


class PartDidNotStart(Exception):
    """A part ended or was not ready in time; the text holds the end of its log."""


def descendants(pid: int) -> list[int]:
    """Give a process and all that descend from it, parents first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        one = todo.pop(0)
        found.append(one)
        todo += children.get(one, [])
    return found


@define(eq=False)
class Part:
    """One process of a cluster.

    :ivar name: unique in the cluster, for instance ``m1``.
    :ivar folder: everything it writes, its log included.
    :ivar command: argument vector; :ivar inside: words put before it to run it where it belongs.
    :ivar environ: variables besides ours.
    """

    name: str
    folder: Path
    command: Sequence[str]
    inside: Sequence[str] = ()
    environ: Mapping[str, str] = field(factory=dict)
    process: subprocess.Popen[bytes] | None = None
    frozen: bool = False

    @property
    def pid(self) -> int:
        """Its process id; 0 while it does not run."""
        return self.process.pid if self.process is not None and self.process.poll() is None else 0

    @property
    def running(self) -> bool:
        """Whether its process lives, frozen or not."""
        return self.pid != 0

    @property
    def log(self) -> str:
        """Everything it said, in all its lives."""
        try:
            return (self.folder / "log").read_text("utf-8", "replace")
        except FileNotFoundError:
            return ""

    def ready(self) -> bool:
        """Tell whether it serves now."""
        return self.running

    def start(self, *, wait: bool = True) -> None:
        """Start the process, and unless told otherwise wait until it serves. Harmless when it runs already.

        :raises PartDidNotStart: with what it said.
        """
        if not self.running:
            self.folder.mkdir(mode=0o711, parents=True, exist_ok=True)
            with (self.folder / "log").open("ab") as log:
                self.process = subprocess.Popen(
                    [*self.inside, *self.command],
                    cwd="/",
                    env={**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONUNBUFFERED": "1", **self.environ},
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        if wait:
            self.wait_until_ready()

    def wait_until_ready(self, seconds: float = START_TIMEOUT) -> None:
        """Wait until it serves.

        :raises PartDidNotStart: it ended instead, or takes too long.
        """
        if not until(self.ready, seconds, giving_up=lambda: not self.running):
            state = "is not ready" if self.running else f"ended with {self.process and self.process.returncode}"
            raise PartDidNotStart(f"{self.name} {state}; the end of its log:\n{self.log[-4000:]}")

    def stop(self, seconds: float = STOP_TIMEOUT) -> None:
        """End it as an operator does, and by force when that takes too long. Harmless when it does not run."""
        self.thaw()
        self._signal(signal.SIGTERM)
        self._reap(seconds)

    def kill(self) -> None:
        """``kill -9`` the process alone, and wait until it is gone."""
        self._signal(signal.SIGKILL)
        self._reap(STOP_TIMEOUT)

    def freeze(self) -> None:
        """Stop it in the middle of whatever it does (SIGSTOP); its connections stay open."""
        for pid in self._to_freeze():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        self.frozen = self.running

    def thaw(self) -> None:
        """Let it go on (SIGCONT). Harmless when it was not frozen."""
        if self.frozen and self.running:
            for pid in self._to_freeze():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        self.frozen = False

    def _to_freeze(self) -> list[int]:
        return [self.pid] if self.running else []

    def _signal(self, number: signal.Signals) -> None:
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _reap(self, seconds: float) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        self.frozen = False
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            # Its session, too: it had its time to end its children.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()


def until(what: Callable[[], bool], seconds: float, *, giving_up: Callable[[], bool] = bool) -> bool:
    """Wait until something is so, and tell whether it is; ``giving_up`` ends the waiting early."""
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline or giving_up():
            return what()
        time.sleep(LOOK)
    return True


@define(eq=False)
class Manager(Part):
    """A ``twistd sorna`` without databases and agent of its own.

    :ivar address, port: of its REST service.
    """

    address: str = "127.0.0.1"
    port: int = 8080

    @property
    def endpoint(self) -> str:
        """The URL of its REST service."""
        return f"http://{self.address}:{self.port}"

    def ready(self) -> bool:
        """Tell whether it can serve kernels now."""
        connection = http.client.HTTPConnection(self.address, self.port, timeout=5)
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


@define(eq=False)
class Agent(Part):
    """A ``twistd sorna-agent``.

    :ivar agent_id: what the managers call it.
    """

    agent_id: str = ""
    address: str = "127.0.0.1"
    port: int = 6011
    _said_before: int = 0

    def start(self, *, wait: bool = True) -> None:
        """Start it; ready is what it says itself after its first heartbeats have begun."""
        if not self.running:
            self._said_before = len(self.log)
        super().start(wait=wait)

    def ready(self) -> bool:
        """Tell whether it has announced itself in its present life."""
        return self.running and "the agent serves" in self.log[self._said_before :]


@define(eq=False)
class Database(Part):
    """A PostgreSQL or Redis from the embedded packages, on a TCP port.

    :ivar kind: ``postgres`` or ``redis``.
    """

    kind: str = "postgres"
    address: str = "127.0.0.1"
    port: int = 5432
    _said_before: int = 0

    def start(self, *, wait: bool = True) -> None:
        """Start it; ready is when it answers."""
        if not self.running:
            self._said_before = len(self.log)
        super().start(wait=wait)

    def ready(self) -> bool:
        """Tell whether it has answered in its present life."""
        for line in self.log[self._said_before :].splitlines():
            with contextlib.suppress(ValueError):
                return self.running and isinstance(json.loads(line), dict)
        return False

    @property
    def password_file(self) -> Path:
        """The file with its password; it is there once it has started."""
        return self.folder / self.kind / "password"

    @property
    def password(self) -> str:
        """Its password."""
        return self.password_file.read_text("ascii").strip()

    def kill(self) -> None:
        """``kill -9`` everything of it at once, as a host that loses its power does."""
        doomed = descendants(self.pid) if self.running else []
        for pid in doomed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._reap(STOP_TIMEOUT)
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in doomed), STOP_TIMEOUT)

    def kill_backends(self) -> int:
        """``kill -9`` one process that serves a client, which makes PostgreSQL restart all of them; tell how many there were."""
        backends = [pid for pid in descendants(self.pid) if b"sorna sorna" in _title(pid)]
        if backends:
            with contextlib.suppress(ProcessLookupError):
                os.kill(backends[0], signal.SIGKILL)
        return len(backends)

    def empty(self) -> None:
        """Forget everything that a Redis kept; it must not run."""
        if self.kind != "redis" or self.running:
            raise ValueError("only a Redis that does not run can be emptied")
        shutil.rmtree(self.folder / "redis" / "data", ignore_errors=True)

    def _to_freeze(self) -> list[int]:
        return descendants(self.pid) if self.running else []


def _title(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


Place = tuple[Sequence[str], str, int]  # what stands before a command to run it there, address, port


def database_part(kind: str, name: str, folder: Path, place: Place) -> Database:
    """Describe a database part."""
    inside, address, port = place
    command = [sys.executable, "-m", "sorna.testing.cluster.database", kind, str(folder / kind), address, str(port)]
    return Database(name, folder, command, inside, kind=kind, address=address, port=port)


def manager_part(name: str, folder: Path, place: Place, options: Sequence[str]) -> Manager:
    """Describe a manager part."""
    inside, address, port = place
    words = [f"--service-ip={address}", f"--service-port={port}", "--local-agent=no", f"--state-dir={folder / 'state'}"]
    return Manager(name, folder, server_command(words, options), inside, address=address, port=port)


def agent_part(name: str, agent_id: str, folder: Path, place: Place, options: Sequence[str]) -> Agent:
    """Describe an agent part."""
    inside, address, port = place
    words = [f"--agent-id={agent_id}", f"--agent-ip={address}", f"--agent-port={port}"]
    command = [sys.executable, "-m", "sorna.agent", *words, f"--state-dir={folder / 'state'}", "--exit-with-parent"]
    return Agent(name, folder, [*command, *options], inside, agent_id=agent_id, address=address, port=port)
