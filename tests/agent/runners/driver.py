"""Drives an unconfined init over a socket pair, as an agent would; knows the frames and nothing of how init works."""

from __future__ import annotations

import json
import os
import resource
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sorna.agent.runners import frames, init
from sorna.agent.runners.language import Language
from sorna.testing.unit import UnitTestCase

WINDOW = 1024 * 1024
UNSHARE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
MAIN = "from sorna.agent.runners.init import main; main(200)"
ROOT = str(Path(__file__).resolve().parents[3])
PYTHON = Language("python3", repl=True, source="main.py", query="", build="", exec="python3 main.py")


class TimedOut(AssertionError):
    """Init did not do what was waited for."""


class Kernel:
    """One init process in a directory of its own.

    :param first_process: make it PID 1 of a namespace of its own, in a fresh interpreter.

    :ivar console: ``[type, text]`` of everything that was printed, neighbours of the same type merged.
    :ivar outputs: how many frames of output came.
    :ivar screen: everything that the terminal printed.
    :ivar lavish: whether credit for the terminal and for connections is given back as fast as it is used.
    :ivar received: connection -> everything that its application sent.
    :ivar room: connection -> how many bytes its application took.
    :ivar finished: the connections whose application sends no more.
    """

    def __init__(
        self,
        language: Language,
        environ: Mapping[str, str] | None = None,
        window: int = WINDOW,
        file_size: int | None = None,
        first_process: bool = False,
    ) -> None:
        self.work = tempfile.mkdtemp(prefix="sorna-test-")
        self.window = window
        self.automatic = True
        self._owed = 0
        self.taken = 0
        self._count = 0
        self.console: list[list[Any]] = []
        self.outputs = 0
        self.screen = bytearray()
        self.lavish = True
        self.received: dict[int, bytearray] = {}
        self.room: dict[int, int] = {}
        self.finished: set[int] = set()
        self.seen: list[tuple[int, Any]] = []
        ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.chdir(self.work)
                if file_size is not None:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
                ours.close()
                os.dup2(theirs.fileno(), 200, inheritable=True)
                os.closerange(3, 200)
                os.closerange(201, 1024)
                if first_process:
                    os.execvpe("unshare", [*UNSHARE, sys.executable, "-c", MAIN], {**os.environ, "PYTHONPATH": ROOT})  # noqa: S606
                init.main(200)
            finally:
                os._exit(99)
        theirs.close()
        self.socket = ours
        self._reader = frames.FrameReader()
        self.send(frames.CONFIGURE, {"runtime": language._asdict(), "environ": dict(environ or {}), "credit": window})
        self.ready = self.wait(frames.READY)

    def send(self, kind: int, message: dict[str, Any]) -> None:
        self.socket.sendall(frames.pack_frame(kind, json.dumps(message).encode()))

    def send_raw(self, kind: int, payload: bytes) -> None:
        self.socket.sendall(frames.pack_frame(kind, payload))

    def credit(self, amount: int) -> None:
        self.send_raw(frames.CREDIT, amount.to_bytes(4, "big"))

    def receive(self, timeout: float = 20.0) -> bool:
        """Take what is there, waiting for something at most so long."""
        if not select.select([self.socket], [], [], timeout)[0]:
            return False
        chunk = self.socket.recv(1024 * 1024)
        if not chunk:
            raise TimedOut("init is gone")
        for kind, payload in self._reader.feed(chunk):
            self._take(kind, payload)
        if self.automatic and self._owed >= min(self.window // 4, 65536):
            self.credit(self._owed)
            self._owed = 0
        return True

    def _take(self, kind: int, payload: bytes) -> None:
        if kind in frames.OUTPUT_KINDS:
            self._owed += len(payload)
            self.taken += len(payload)
            self.outputs += 1
        if kind == frames.TERMINAL_OUTPUT:
            self.screen += payload
            if self.lavish:
                self.terminal_credit(len(payload))
        elif kind in {frames.SERVICE_OUTPUT, frames.SERVICE_ROOM, frames.SERVICE_FINISHED}:
            self._take_of_connection(kind, int.from_bytes(payload[:4], "big"), payload[4:])
        elif kind == frames.EMIT:
            self.console.append(json.loads(payload))
        elif kind in frames.OUTPUT_KINDS:
            name = "stdout" if kind == frames.STDOUT else "stderr"
            if self.console and self.console[-1][0] == name:
                self.console[-1][1].append(payload)
            else:
                self.console.append([name, [payload]])
        elif kind == frames.CONTENT:
            header, _nul, content = payload.partition(b"\0")
            self.seen.append((kind, {**json.loads(header), "content": content}))
        else:
            self.seen.append((kind, json.loads(payload)))

    def _take_of_connection(self, kind: int, number: int, content: bytes) -> None:
        if kind == frames.SERVICE_OUTPUT:
            self.received.setdefault(number, bytearray()).extend(content)
            if self.lavish:
                self.about(frames.SERVICE_CREDIT, number, len(content).to_bytes(4, "big"))
        elif kind == frames.SERVICE_ROOM:
            self.room[number] = self.room.get(number, 0) + int.from_bytes(content, "big")
        else:
            self.finished.add(number)

    def about(self, kind: int, number: int, content: bytes = b"") -> None:
        """Say something about a connection."""
        self.send_raw(kind, number.to_bytes(4, "big") + content)

    def until(self, condition: Callable[[], bool], timeout: float = 20.0) -> None:
        """Receive until something is true."""
        deadline = time.monotonic() + timeout
        while not condition():
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not self.receive(remaining):
                message = f"it did not happen; seen {self.seen!r}, console {self.texts()!r}"
                raise TimedOut(message)

    def wait(self, *kinds: int, timeout: float = 20.0) -> dict[str, Any]:
        """Wait for a control frame of these kinds and give its message."""
        deadline = time.monotonic() + timeout
        while True:
            for place, (kind, message) in enumerate(self.seen):
                if kind in kinds:
                    del self.seen[place]
                    return {"kind": kind, **message}
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not self.receive(remaining):
                message = f"no frame of {kinds}; console {self.texts()!r}, seen {self.seen!r}"
                raise TimedOut(message)

    def texts(self) -> list[list[Any]]:
        """Give the console with text instead of bytes."""
        return [
            [name, b"".join(value).decode("utf-8", "replace")] if name in {"stdout", "stderr"} else [name, value]
            for name, value in self.console
        ]

    def stream(self, name: str) -> str:
        """Give all text of one stream."""
        return "".join(value for kind, value in self.texts() if kind == name)

    def hear(self, text: str, times: int = 1) -> None:
        """Receive until this was printed to stdout so many times since the run began."""
        deadline = time.monotonic() + 20
        while self.stream("stdout").count(text) < times:
            if not self.receive(max(0, deadline - time.monotonic())):
                message = f"{text!r} was not printed {times} times; console {self.texts()!r}, seen {self.seen!r}"
                raise TimedOut(message)

    def begin(self, code: str = "", **options: Any) -> str:
        """Start a run with an empty console and give its id."""
        self._count += 1
        self.console.clear()
        self.outputs = 0
        identity = str(self._count)
        self.send(
            frames.RUN,
            {
                "run": identity,
                "mode": "query",
                "code": code,
                "build": None,
                "exec": None,
                "clean": None,
                "build_log": False,
                **options,
            },
        )
        return identity

    def run(self, code: str = "", timeout: float = 20.0, **options: Any) -> dict[str, Any]:
        """Run something to its end."""
        self.begin(code, **options)
        return self.wait(frames.FINISHED, timeout=timeout)

    def type(self, identity: str, text: str) -> None:
        self.send(frames.INPUT, {"run": identity, "text": text})

    def interrupt(self) -> None:
        self.send(frames.INTERRUPT, {})

    def open_terminal(self, rows: int = 24, columns: int = 80, window: int = WINDOW) -> None:
        self.send(frames.TERMINAL_OPEN, {"rows": rows, "columns": columns})
        self.terminal_credit(window)

    def terminal_credit(self, amount: int) -> None:
        self.send_raw(frames.TERMINAL_CREDIT, amount.to_bytes(4, "big"))

    def keys(self, text: str) -> None:
        """Type into the terminal."""
        self.send_raw(frames.TERMINAL_INPUT, text.encode())

    def see(self, text: str, times: int = 1, timeout: float = 20.0) -> None:
        """Wait until the terminal has printed a text so many times."""
        deadline = time.monotonic() + timeout
        while self.screen.count(text.encode()) < times:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not self.receive(remaining):
                message = f"no {text!r} on the screen: {bytes(self.screen[-2000:])!r}, seen {self.seen!r}"
                raise TimedOut(message)

    def processes(self) -> set[int]:
        """Give all descendants of init."""
        from sorna.agent.runners.processes import _below, _parents  # noqa: PLC0415 - the test's own look

        return _below(self.pid, dict(_parents()))

    def close(self) -> None:
        """End the kernel; everything of it must be gone within seconds."""
        self.socket.close()
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                break
            time.sleep(0.002)
        else:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            raise TimedOut("init did not end with its channel")
        shutil.rmtree(self.work, ignore_errors=True)


class KernelTestCase(UnitTestCase):
    """Gives tests kernels and ends them.

    :cvar make: what kind of kernel.
    """

    make: type[Kernel] = Kernel

    def kernel(self, language: Language = PYTHON, **options: Any) -> Kernel:
        kernel = self.make(language, **options)
        self.addCleanup(kernel.close)
        return kernel
