"""A real Sorna server as a process of its own, for tests and benches that want the whole system.

Knows only what an operator knows: the command line, the readiness address and the example keypair.  The server keeps its state
in a temporary directory, listens on loopback, and is gone, with everything it started, when the fixture ends.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from attrs import frozen

from sorna.model.keypair import EXAMPLE_ACCESS_KEY, EXAMPLE_SECRET_KEY
from sorna.testing import doctor

START_TIMEOUT = 60.0  # seconds; the first start makes a database
STOP_TIMEOUT = 20.0
PROJECT = doctor.PROJECT
_TWISTD = "import sys; from twisted.scripts.twistd import run; sys.exit(run())"


class ServerDidNotStart(Exception):
    """The server ended or was not ready in time; the text holds the end of its log."""


@frozen
class RunningServer:
    """A server that is ready.

    :ivar endpoint: for instance ``http://127.0.0.1:40123``.
    :ivar pid: the server's process id, or 0 for one that was running before.
    :ivar folder: the temporary directory with ``state`` and ``server.log``; None for one that was running before.
    :ivar manager_port, execution_port: the two of the ZeroMQ interface.
    """

    endpoint: str
    access_key: str
    secret_key: str
    pid: int = 0
    folder: Path | None = None
    manager_port: int = 5001
    execution_port: int = 6001

    def check(self) -> None:
        """Let the doctor look at a server that this process has started.

        :raises PromisesBroken: with what it found.
        """
        if self.folder is not None:
            doctor.check_promises("--state-dir", str(self.folder / "state"), TMPDIR=str(self.folder / "tmp"))

    @property
    def log(self) -> str:
        """Everything the server said so far."""
        return (self.folder / "server.log").read_text("utf-8", "replace") if self.folder else ""


@contextlib.contextmanager
def running_server(*arguments: str, checked: bool = True) -> Iterator[RunningServer]:
    """Start a server, wait until it is ready, and end it.

    :param arguments: more options for ``twistd sorna``; they win over the fixture's.
    :param checked: whether all promises must hold at the end, where the server still runs then.
    :raises ServerDidNotStart: with what it said. :raises PromisesBroken: with what the doctor found.
    """
    owner = os.getpid()
    # Readable for other users but not listable: the database of a server that root starts runs as somebody else.
    folder = Path(tempfile.mkdtemp(prefix="sorna-test-"))
    folder.chmod(0o711)
    try:
        service, manager, execution, agent = free_ports(4)
        ports = f"--service-port={service} --manager-port={manager} --legacy-execution-port={execution} --agent-port={agent}"
        # Its own, so that the doctor's look at what kernels left there is not at what others left.
        (folder / "tmp").mkdir()
        command = server_command(
            ["--service-ip=127.0.0.1", *ports.split()],
            ["--state-dir", str(folder / "state"), "--example-keypair", *arguments],
        )
        with (folder / "server.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env={
                    **os.environ,
                    "PYTHONPATH": str(PROJECT),
                    "PYTHONUNBUFFERED": "1",
                    "TMPDIR": str(folder / "tmp"),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            endpoint = f"http://127.0.0.1:{service}"
            server = RunningServer(
                endpoint, EXAMPLE_ACCESS_KEY, EXAMPLE_SECRET_KEY, process.pid, folder, manager, execution
            )
            _wait_until_ready(server, process, service)
            yield server
            if checked and os.getpid() == owner and process.poll() is None:
                server.check()
        finally:
            if os.getpid() == owner:
                _end(process)
    finally:
        # A fork that lets go of the fixture comes here too, and the server is not the fork's.
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)


def server_command(*parts: Sequence[str]) -> list[str]:
    """Give the command that starts a server in the foreground as ``make run`` does, from wherever the project lies."""
    return [
        sys.executable,
        "-c",
        _TWISTD,
        "--nodaemon",
        "--pidfile=",
        "--logger=sorna.observability.text_log_observer",
        "sorna",
        *(text for part in parts for text in part),
    ]


def free_ports(count: int) -> list[int]:
    """Find TCP ports of the loopback address that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@functools.cache
def shared_server() -> RunningServer:
    """Give one server for all the tests of a process; it ends with the process.

    ``SORNA_TEST_ENDPOINT`` names a running server with the example keypair to be used instead.
    """
    endpoint = os.environ.get("SORNA_TEST_ENDPOINT")
    if endpoint:
        return RunningServer(endpoint, EXAMPLE_ACCESS_KEY, EXAMPLE_SECRET_KEY)
    stack = contextlib.ExitStack()
    server = stack.enter_context(running_server(checked=False))
    atexit.register(stack.close)
    _lift_rate_limit(server)
    return server


def _lift_rate_limit(server: RunningServer) -> None:
    """Let one keypair make the requests of many tests, which are more than a window allows."""
    environ = {
        **os.environ,
        "SORNA_ENDPOINT": server.endpoint,
        "SORNA_ACCESS_KEY": server.access_key,
        "SORNA_SECRET_KEY": server.secret_key,
        "PYTHONPATH": str(PROJECT),
    }
    command = ["admin", "keypair", "modify", server.access_key, "--rate-limit", "1000000"]
    subprocess.run([sys.executable, "-m", "sorna.client.cli", *command], env=environ, check=True, capture_output=True)


def _wait_until_ready(server: RunningServer, process: subprocess.Popen[bytes], port: int) -> None:
    waiting = threading.Event()  # nobody sets it: a bounded nap that needs no global clock
    for _ in range(int(START_TIMEOUT / 0.1)):
        if process.poll() is not None:
            raise ServerDidNotStart(f"the server ended with {process.returncode}:\n{server.log[-4000:]}")
        if _ready(port):
            return
        waiting.wait(0.1)
    raise ServerDidNotStart(f"the server was not ready within {START_TIMEOUT:.0f} s:\n{server.log[-4000:]}")


def _ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server as an operator does, and what is left of its session by force."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
