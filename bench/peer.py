"""Jupyter Kernel Gateway as a process to measure: installed into an environment of its own, started, asked to run code.

Knows that program and its protocol (REST for kernels, messages of Jupyter's protocol 5.3 as JSON over a WebSocket per
kernel), not what is compared with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import platformdirs
from attrs import frozen

from bench.client import Connection, Stuck, WebSocket
from bench.wire import Answer, plain_handshake, plain_request
from sorna.testing.server import free_ports

VERSION = "3.0.1"
REQUIREMENTS = (f"jupyter_kernel_gateway=={VERSION}", "ipykernel")
INSTALL_TIMEOUT = 300.0
START_TIMEOUT = 60.0
STOP_TIMEOUT = 10.0
_WRAPPER = Path(__file__).with_name("jupyter_nodelay.py")


class Unavailable(Exception):
    """The gateway cannot be installed or does not start."""


def installed() -> Path:
    """Give the Python that the gateway is installed for, having installed it if need be; it is kept for the next time.

    :raises Unavailable: PyPI cannot be reached, or does not have it.
    """
    name = f"jupyter-kernel-gateway-{VERSION}-py{sys.version_info[0]}.{sys.version_info[1]}"
    folder = platformdirs.user_cache_path("sorna-bench") / name
    python, done = folder / "bin" / "python", folder / ".installed"
    if done.exists():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    commands = (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", "--retries=1", "--timeout=10", *REQUIREMENTS],
    )
    for command in commands:
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_TIMEOUT)
        except subprocess.CalledProcessError as error:
            last = (error.stderr.strip().splitlines() or ["it does not say why"])[-1]
            raise Unavailable(f"{REQUIREMENTS[0]} cannot be installed: {last[-300:]}") from error
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"{REQUIREMENTS[0]} was not installed within {INSTALL_TIMEOUT:.0f} s") from error
    done.touch()
    return python


@frozen
class Peer:
    """A gateway that answers."""

    endpoint: str

    @property
    def host(self) -> str:
        """The value of the Host header."""
        return urlsplit(self.endpoint).netloc

    def creation(self) -> bytes:
        """Build the creation of a kernel."""
        return plain_request("POST", "/api/kernels", self.host, b'{"name": "python3"}')

    def description(self, kernel: str) -> bytes:
        """Build a read of a kernel's description."""
        return plain_request("GET", f"/api/kernels/{kernel}", self.host)

    def destroy(self, connection: Connection, kernel: str) -> None:
        """End a kernel."""
        connection.ask(plain_request("DELETE", f"/api/kernels/{kernel}", self.host))

    def open(self, kernel: str) -> WebSocket:
        """Open a kernel's channels."""
        path = f"/api/kernels/{kernel}/channels?session_id={secrets.token_hex(8)}"
        return WebSocket(self.endpoint, plain_handshake(path, self.host))


def kernel_of(answer: Answer) -> str:
    """Read the id of a kernel that was made.

    :raises Stuck: none was.
    """
    if answer.status != 201:
        raise Stuck(f"the peer answered create with {answer.status}: {answer.body[:300]!r}")
    return str(answer.json["id"])


def execution() -> tuple[str, bytes]:
    """Give the id and the text of a message that runs ``1+1``."""
    message_id = secrets.token_hex(16)
    header = {"msg_id": message_id, "msg_type": "execute_request", "username": "", "session": "bench", "version": "5.3"}
    content = {"code": "1+1", "silent": False, "store_history": False, "allow_stdin": False, "stop_on_error": True}
    message = {"header": header, "parent_header": {}, "metadata": {}, "channel": "shell", "content": content}
    return message_id, json.dumps({**message, "buffers": []}).encode("ascii")


def run(socket: WebSocket) -> None:
    """Run ``1+1`` and wait until it is over: its reply, its result and the kernel's word that it is idle are there.

    :raises Stuck: the result is another one.
    """
    message_id, text = execution()
    socket.send(text)
    missing = {"execute_reply", "execute_result", "status"}
    while missing:
        for _opcode, payload in socket.waiting():
            message = json.loads(payload)
            if message.get("parent_header", {}).get("msg_id") != message_id:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "execute_result" and content["data"]["text/plain"] != "2":
                raise Stuck(f"the peer says that 1+1 is {content['data']}")
            if kind != "status" or content["execution_state"] == "idle":
                missing.discard(kind)


@contextlib.contextmanager
def running(python: Path, *, nodelay: bool) -> Iterator[Peer]:
    """Start a gateway, wait until it answers, and end it with its kernels.

    :param nodelay: start it through ``jupyter_nodelay.py``.
    :raises Unavailable: it does not answer in time.
    """
    [port] = free_ports(1)
    folder = Path(tempfile.mkdtemp(prefix="sorna-bench-"))
    program = [str(_WRAPPER)] if nodelay else ["-m", "kernel_gateway"]
    options = [
        "--KernelGatewayApp.ip=127.0.0.1",
        f"--KernelGatewayApp.port={port}",
        "--KernelGatewayApp.port_retries=0",
    ]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("KG_", "JUPYTER_", "PYTHON"))}
    places = {f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("RUNTIME", "CONFIG", "DATA")}
    try:
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [str(python), *program, *options],
                cwd=folder,
                env={**environ, **places, "IPYTHONDIR": str(folder / "ipython")},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            peer = Peer(f"http://127.0.0.1:{port}")
            _wait(peer, process, folder / "log")
            yield peer
        finally:
            _end(process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait(peer: Peer, process: subprocess.Popen[bytes], log: Path) -> None:
    nap = threading.Event()
    for _ in range(int(START_TIMEOUT / 0.1)):
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError, Stuck), contextlib.closing(Connection(peer.endpoint)) as connection:
            if connection.ask(plain_request("GET", "/api", peer.host)).status == 200:
                return
        nap.wait(0.1)
    raise Unavailable(f"the gateway does not answer: {log.read_text('utf-8', 'replace')[-500:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the gateway, and what is left of its session, its kernels among it, by force."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
