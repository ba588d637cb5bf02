"""Init's end of the connections to applications in the kernel, and those applications that are started on first use.

Standard library only. Knows the kernel's loopback, bytes and credit; what may be connected to, the agent decides, but no
other address and no privileged port is ever reached from here. Nothing blocks: what an application does not read waits in a
buffer as large as the agent was allowed to send, and without credit an application's socket is not read.
"""

import os
import signal
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from errno import EINPROGRESS
from pathlib import Path
from typing import Any, NoReturn

from sorna.agent.runners import frames
from sorna.agent.runners.commands import BASH, exit_code_of
from sorna.agent.runners.poller import NOTHING, READ, WRITE, Link, Poller
from sorna.agent.runners.processes import Processes
from sorna.agent.runners.repl_link import to_json

PIECE = 64 * 1024
SMALL = 4 * 1024
LOWEST_PORT, HIGHEST_PORT = 1024, 65535
LOOPBACK = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
# How long what was sent to an application that does not read is kept after its client has gone.
LINGER = 10.0
# How long an application may take to end after SIGTERM.
GRACE = 2.0
# Between two looks whether an application that is being started listens yet.
FIRST_LOOK, LAST_LOOK = 0.01, 0.2
# Where Linux lists the sockets of the kernel's own network, and how it spells one that listens.
TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
LISTENING = "0A"
MOST_LISTED = 64
# What is remembered of an application's own messages, to tell why it ended.
LAST_WORDS = 2000


class Services:
    """The applications of a kernel and the connections to them. ``attach`` it to the link before anything else."""

    def __init__(self, poller: Poller, processes: Processes) -> None:
        self._poller = poller
        self._processes = processes
        self._link: Link | None = None
        self._connections: dict[int, _Connection] = {}
        self._running: dict[str, _Application] = {}

    def attach(self, link: Link) -> None:
        """Say where everything goes."""
        self._link = link

    @property
    def pids(self) -> set[int]:
        """The applications that run, for those who spare them."""
        return {application.pid for application in self._running.values()}

    @property
    def congested(self) -> bool:
        """Whether the agent does not keep up with what is sent to it."""
        return self._link is None or self._link.congested

    def send(self, kind: int, payload: bytes) -> None:
        """Tell the agent."""
        if self._link is not None:
            self._link.send(kind, payload)

    # What the agent asks for.

    def open(self, message: Mapping[str, Any], environ: Mapping[str, str]) -> None:
        """Connect, and start the application first if that is wanted and it does not run."""
        number, port, start = int(message["connection"]), int(message["port"]), message.get("start")
        connection = _Connection(self, self._poller, number, port, int(message["credit"]))
        self._connections[number] = connection
        if not LOWEST_PORT <= port <= HIGHEST_PORT:
            connection.end(f"Port {port} cannot be reached.")
            return
        if start is not None:
            try:
                application = self._started(start, port, environ)
            except OSError as error:
                connection.end(f"The application cannot be started: {error.strerror}.")
                return
            connection.wait_for(application, float(start["patience"]))
        connection.connect()

    def input(self, payload: bytes) -> None:
        """Send bytes to an application."""
        connection = self._connection(payload)
        if connection is not None:
            connection.write(payload[4:])

    def add_credit(self, payload: bytes) -> None:
        """Take note that more of an application's bytes may be sent."""
        connection = self._connection(payload)
        if connection is not None:
            connection.credit += int.from_bytes(payload[4:8], "big")
            connection.adjust()

    def finish(self, payload: bytes) -> None:
        """Let an application read the end."""
        connection = self._connection(payload)
        if connection is not None:
            connection.finish()

    def close(self, payload: bytes) -> None:
        """Let a connection go."""
        connection = self._connection(payload)
        if connection is not None:
            connection.leave()

    def stop(self, message: Mapping[str, Any]) -> None:
        """End an application, and say so when it is gone."""
        application = self._running.get(str(message["name"]))
        if application is None:
            self.reply(message["request"])
            return
        application.requests.append(message["request"])
        application.signal(signal.SIGTERM)
        self._poller.later(GRACE, lambda: application.signal(signal.SIGKILL))

    def list(self, message: Mapping[str, Any]) -> None:
        """Tell on which ports something listens."""
        self.reply(message["request"], listening()[:MOST_LISTED])

    def resume(self) -> None:
        """Go on after the link had no room."""
        for connection in list(self._connections.values()):
            connection.adjust()

    # What happens.

    def gone(self, connection: "_Connection") -> None:
        """Forget a connection that has said its last word."""
        del self._connections[connection.number]

    def reply(self, request: Any, result: Any = None) -> None:
        """Answer a request."""
        self.send(frames.REPLY, to_json({"request": request, "error": None, "result": result}))

    def _connection(self, payload: bytes) -> "_Connection | None":
        return self._connections.get(int.from_bytes(payload[:4], "big"))

    def _started(self, start: Mapping[str, Any], port: int, environ: Mapping[str, str]) -> "_Application":
        name = str(start["name"])
        application = self._running.get(name)
        if application is None:
            added = {str(key): str(value) for key, value in start["environ"].items()}
            arguments = [str(argument) for argument in start["arguments"]]
            application = _Application(self._poller, name, self._ended)
            application.start(
                self._processes, str(start["script"]), arguments, {**environ, **added, "SORNA_PORT": str(port)}
            )
            self._running[name] = application
        return application

    def _ended(self, application: "_Application") -> None:
        del self._running[application.name]
        for request in application.requests:
            self.reply(request)
        for connection in list(self._connections.values()):
            connection.application_ended(application)


def listening() -> "list[int]":
    """Give the ports that something listens on, in order, as far as they may be connected to."""
    found = set()
    for table in TABLES:
        with suppress(OSError):
            for line in Path(table).read_text("ascii").splitlines()[1:]:
                _number, local, _remote, state = line.split(maxsplit=4)[:4]
                port = int(local.rpartition(":")[2], 16)
                if state == LISTENING and LOWEST_PORT <= port <= HIGHEST_PORT:
                    found.add(port)
    return sorted(found)


class _Application:
    """An application that init has started.

    :ivar requests: who is to be told when it is gone.
    :ivar epitaph: how it ended; empty while it runs.
    """

    def __init__(self, poller: Poller, name: str, on_end: Any) -> None:
        self._poller = poller
        self._on_end = on_end
        self._words = bytearray()
        self._reading = -1
        self.name = name
        self.pid = 0
        self.requests: list[Any] = []
        self.epitaph = ""

    def start(self, processes: Processes, script: str, arguments: list[str], environ: Mapping[str, str]) -> None:
        """Run the script. :raises OSError: it cannot be run."""

        def become() -> NoReturn:
            os.execve(BASH, ["bash", "-c", script, self.name, *arguments], dict(environ))  # noqa: S606 - from our own table

        self._reading, writing = os.pipe2(os.O_CLOEXEC)
        nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.pid = processes.start(become, (nothing, writing, writing), (), environ, self._exited)
        except BaseException:
            os.close(self._reading)
            raise
        finally:
            os.close(nothing)
            os.close(writing)
        os.set_blocking(self._reading, False)
        self._poller.add(self._reading, self._speaks)

    def signal(self, number: int) -> None:
        """Signal it and what it started, unless it is gone."""
        if not self.epitaph:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def _speaks(self, _events: int) -> None:
        self._listen()

    def _listen(self) -> bool:
        """Remember its last words; False when there are none to come now."""
        if self._reading < 0:
            return False
        try:
            words = os.read(self._reading, PIECE)
        except BlockingIOError:
            return False
        if not words:
            self._poller.remove(self._reading)
            os.close(self._reading)
            self._reading = -1
            return False
        self._words += words
        del self._words[:-LAST_WORDS]
        return True

    def _exited(self, status: int) -> None:
        while self._listen():
            pass
        if self._reading >= 0:  # something that it has started holds the other end
            self._poller.remove(self._reading)
            os.close(self._reading)
            self._reading = -1
        code, number = exit_code_of(status)
        how = f"ended with exit code {code}" if number is None else f"was ended by signal {number}"
        last = self._words.decode("utf-8", "replace").strip().rpartition("\n")[2][-200:]
        self.epitaph = f"The app {self.name} {how}{f': {last}' if last else '.'}"
        self._on_end(self)


class _Connection:
    """One connection to a port of the loopback."""

    def __init__(self, services: Services, poller: Poller, number: int, port: int, credit: int) -> None:
        self._services = services
        self._poller = poller
        self._name = number.to_bytes(4, "big")
        self._port = port
        self._socket: socket.socket | None = None
        self._events = NOTHING
        self._outgoing = bytearray()
        self._written = 0
        self._address = 0
        self._connected = False
        self._client_finished = False
        self._app_finished = False
        self._leaving = False
        self._over = False
        self._application: _Application | None = None
        self._deadline = 0.0
        self._delay = FIRST_LOOK
        self.number = number
        self.credit = credit

    def wait_for(self, application: _Application, patience: float) -> None:
        """Be patient with an application that may only just have been started."""
        self._application = application
        self._deadline = time.monotonic() + patience

    def application_ended(self, application: _Application) -> None:
        """Give up on an application that has ended before it listened; one that is connected tells by its socket."""
        if application is self._application and not self._connected:
            self.end(application.epitaph)

    # Connecting.

    def connect(self) -> None:
        """Try the addresses of the loopback, one after the other."""
        if self._over:
            return
        family, host = LOOPBACK[self._address]
        try:
            self._socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            result = self._socket.connect_ex((host, self._port))
        except OSError as error:
            self._refused(error.errno or 0)
            return
        if result not in {0, EINPROGRESS}:
            self._refused(result)
            return
        self.adjust()

    def _refused(self, number: int) -> None:
        self._drop_socket()
        self._address += 1
        if self._address < len(LOOPBACK):
            self.connect()
            return
        self._address = 0
        if self._application is not None and time.monotonic() < self._deadline and not self._leaving:
            self._poller.later(self._delay, self.connect)
            self._delay = min(2 * self._delay, LAST_LOOK)
        elif self._application is not None:
            self.end(f"The app {self._application.name} does not listen on port {self._port}.")
        else:
            self.end(f"Nothing listens on port {self._port} ({os.strerror(number)}).")

    def _find_out(self) -> None:
        assert self._socket is not None
        number = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self._refused(number)
            return
        self._connected = True
        self._flush()

    # From the client.

    def write(self, data: bytes) -> None:
        """Take bytes for the application."""
        if self._over or self._leaving or self._client_finished:
            return
        if len(self._outgoing) + len(data) > frames.SERVICE_WINDOW:
            self.end("More was sent than there was room for.")
            return
        self._outgoing += data
        if self._connected:
            self._flush()

    def finish(self) -> None:
        """Let the application read the end, behind everything else."""
        self._client_finished = True
        if self._connected and not self._outgoing:
            self._flush()

    def leave(self) -> None:
        """Close, after what was sent was written or a while has passed."""
        if not self._outgoing or self._socket is None:
            self.end(None)
            return
        self._leaving = True
        self._poller.later(LINGER, lambda: self.end(None))
        self.adjust()

    # From the application.

    def _ready(self, events: int) -> None:
        if not self._connected:
            self._find_out()
            return
        if events & WRITE:
            self._flush()
        if events & ~WRITE and self._may_read():
            self._read()
        self.adjust()

    def _may_read(self) -> bool:
        listens = self._connected and not self._app_finished and not self._leaving
        return listens and not self._over and self.credit > 0 and not self._services.congested

    def _read(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(min(PIECE, self.credit))
        except BlockingIOError:
            return
        except OSError as error:
            self.end(f"The connection broke: {error.strerror}.")
            return
        if data:
            if len(data) < SMALL:
                # A server that writes a head and a body by themselves, with Nagle's algorithm, waits for this.
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            self.credit -= len(data)
            self._services.send(frames.SERVICE_OUTPUT, self._name + data)
            return
        self._app_finished = True
        self._services.send(frames.SERVICE_FINISHED, self._name)
        self._end_if_done()

    def _flush(self) -> None:
        if self._over or self._socket is None:
            return
        try:
            while self._outgoing:
                sent = self._socket.send(self._outgoing[:PIECE])
                del self._outgoing[:sent]
                self._written += sent
        except BlockingIOError:
            pass
        except OSError as error:
            self.end(f"The connection broke: {error.strerror}.")
            return
        if self._written >= frames.SERVICE_WINDOW // 4:
            self._services.send(frames.SERVICE_ROOM, self._name + self._written.to_bytes(4, "big"))
            self._written = 0
        if self._leaving and not self._outgoing:
            self.end(None)
            return
        if self._client_finished and not self._outgoing:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
            self._end_if_done()
        self.adjust()

    def _end_if_done(self) -> None:
        if self._app_finished and self._client_finished and not self._outgoing:
            self.end(None)

    def adjust(self) -> None:
        """Wait for what can be done now. A socket that was hung up is always ready, so it is not waited for in vain."""
        if self._over or self._socket is None:
            return
        waits = not self._connected or bool(self._outgoing)
        events = (READ if self._may_read() else NOTHING) | (WRITE if waits else NOTHING)
        if events == self._events:
            return
        if self._events == NOTHING:
            self._poller.add(self._socket.fileno(), self._ready, events)
        elif events == NOTHING:
            self._poller.remove(self._socket.fileno())
        else:
            self._poller.change(self._socket.fileno(), events)
        self._events = events

    def end(self, error: str | None) -> None:
        """Say the last word; harmless when that was said."""
        if self._over:
            return
        self._over = True
        self._drop_socket()
        self._outgoing.clear()
        self._services.gone(self)
        self._services.send(frames.SERVICE_CLOSED, to_json({"connection": self.number, "error": error}))

    def _drop_socket(self) -> None:
        if self._socket is not None:
            if self._events != NOTHING:
                self._poller.remove(self._socket.fileno())
            self._events = NOTHING
            self._socket.close()
            self._socket = None
