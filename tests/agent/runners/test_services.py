"""Connections to applications, as a real init makes them."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

from sorna.agent.runners import frames
from sorna.agent.runners.services import PIECE
from tests.agent.runners.driver import KernelTestCase

WINDOW = frames.SERVICE_WINDOW
SERVER = """
import socket, threading
listener = socket.create_server(("127.0.0.1", 0))
def serve():
    while True:
        peer, _ = listener.accept()
        threading.Thread(target=talk, args=(peer,), daemon=True).start()
def talk(peer):
    {talk}
threading.Thread(target=serve, daemon=True).start()
print(listener.getsockname()[1])
"""
ECHO = """
    while data := peer.recv(65536):
        peer.sendall(data)
    peer.sendall(b"bye")
    peer.close()
"""
APP = 'echo starting >&2; exec python3 -m http.server --bind 127.0.0.1 "$@" "$SORNA_PORT"'


def free_port() -> int:
    """Give a port that nobody listens on; this init shares the host's network."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class ServiceTestCase(KernelTestCase):
    """One kernel, unconfined."""

    def setUp(self) -> None:
        self.init = self.kernel()

    def serve(self, talk: str) -> int:
        """Let the user's program listen, and give the port."""
        self.init.run(SERVER.format(talk=talk.strip()))
        return int(self.init.stream("stdout"))

    def open(self, number: int, port: int, credit: int = WINDOW, **start: Any) -> None:
        wanted = {"name": "app", "arguments": [], "environ": {}, "patience": 20.0, **start} if start else None
        self.init.send(frames.SERVICE_OPEN, {"connection": number, "port": port, "credit": credit, "start": wanted})

    def input(self, number: int, data: bytes) -> None:
        self.init.about(frames.SERVICE_INPUT, number, data)

    def closed(self, number: int) -> str | None:
        """Wait for the last word about a connection."""
        frame = self.init.wait(frames.SERVICE_CLOSED)
        self.assertEqual(frame["connection"], number)
        error: str | None = frame["error"]
        return error

    def got(self, number: int, data: bytes) -> None:
        """Wait until an application has sent just this."""
        self.init.until(lambda: len(self.init.received.get(number, b"")) >= len(data))
        self.assertEqual(bytes(self.init.received[number]), data)

    def ask(self, kind: int, **message: Any) -> Any:
        self.init.send(kind, {"request": 7, **message})
        return self.init.wait(frames.REPLY)["result"]


class ConnectionTests(ServiceTestCase):
    """What the user's own program listens on."""

    def test_both_ways_and_their_ends(self) -> None:
        """Bytes go both ways at once; the end of one direction leaves the other open, and both ends close it."""
        port = self.serve(ECHO)
        self.open(1, port)
        self.open(2, port)
        self.input(2, b"two")
        self.input(1, b"one")
        self.got(1, b"one")
        self.got(2, b"two")
        self.init.about(frames.SERVICE_FINISH, 1)
        self.assertIsNone(self.closed(1))
        self.assertEqual(bytes(self.init.received[1]), b"onebye")
        self.assertEqual(self.init.finished, {1})
        self.init.about(frames.SERVICE_CLOSE, 2)
        self.assertIsNone(self.closed(2))

    def test_nothing_listens(self) -> None:
        """A refused connection says so, whatever was sent meanwhile, and nothing is started."""
        port = free_port()
        self.open(1, port)
        self.input(1, b"x")
        self.assertEqual(self.closed(1), f"Nothing listens on port {port} (Connection refused).")
        for kind in (frames.SERVICE_INPUT, frames.SERVICE_CREDIT, frames.SERVICE_FINISH, frames.SERVICE_CLOSE):
            self.init.about(kind, 1, b"\0\0\0\1")
        self.assertEqual(self.init.run("print(1)")["exit_code"], 0)

    def test_ports_with_privileges(self) -> None:
        """Init connects with no such port, even when the agent says so."""
        for number, port in enumerate((0, 22, 1023, 65536)):
            self.open(number, port)
            self.assertEqual(self.closed(number), f"Port {port} cannot be reached.")

    def test_either_loopback(self) -> None:
        """A program that listens on ::1 alone is reached as well."""
        self.init.run(
            "import socket, threading\n"
            "listener = socket.create_server(('::1', 0), family=socket.AF_INET6)\n"
            "threading.Thread(target=lambda: listener.accept()[0].sendall(b'six'), daemon=True).start()\n"
            "print(listener.getsockname()[1])"
        )
        self.open(1, int(self.init.stream("stdout")))
        self.got(1, b"six")

    def test_credit(self) -> None:
        """An application that sends much is read as far as there is credit, and waits; runs and others do not."""
        self.init.lavish = False
        port = self.serve("peer.sendall(bytes(5_000_000)); peer.close()")
        self.open(1, port, credit=100_000)
        self.init.until(lambda: len(self.init.received.get(1, b"")) == 100_000)
        self.open(2, port, credit=PIECE)
        self.init.until(lambda: len(self.init.received.get(2, b"")) == PIECE)
        self.init.run("print('still here')")
        self.assertEqual(len(self.init.received[1]), 100_000)
        self.init.lavish = True
        self.init.about(frames.SERVICE_CREDIT, 1, WINDOW.to_bytes(4, "big"))
        self.init.until(lambda: 1 in self.init.finished)
        self.assertEqual(len(self.init.received[1]), 5_000_000)

    def test_room(self) -> None:
        """What an application does not read stays with init, a window of it; room comes back as it reads."""
        port = self.serve(
            "import time\n    time.sleep(1)\n    n = 0\n    while d := peer.recv(65536): n += len(d)\n    print(n)"
        )
        self.open(1, port)
        sent = 0
        total = 6_000_000
        while sent < total:
            size = min(WINDOW + self.init.room.get(1, 0) - sent, PIECE, total - sent)
            if size:
                self.input(1, bytes(size))
                sent += size
            else:
                self.init.receive()
        self.init.about(frames.SERVICE_FINISH, 1)
        self.init.hear(f"{total}\n")

    def test_more_than_there_is_room_for(self) -> None:
        """An agent that has lost count is told, and the connection is gone."""
        port = self.serve("import time; time.sleep(60)")
        self.open(1, port)
        for _ in range(80):  # the sockets take some megabytes before anything has to wait
            self.input(1, bytes(WINDOW))
        self.assertEqual(self.closed(1), "More was sent than there was room for.")

    def test_last_words_are_written(self) -> None:
        """What was sent before the close is written, although the application reads only later."""
        port = self.serve(
            "import time\n    time.sleep(1)\n    n = 0\n    while d := peer.recv(65536): n += len(d)\n    print('got', n)"
        )
        self.open(1, port)
        self.input(1, bytes(WINDOW))
        self.init.about(frames.SERVICE_CLOSE, 1)
        self.init.hear(f"got {WINDOW}\n")
        self.assertIsNone(self.closed(1))

    def test_a_reset(self) -> None:
        """An application that breaks the connection off is told about."""
        port = self.serve(
            "import struct\n"
            "    peer.recv(1)\n"
            "    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))\n"
            "    peer.close()"
        )
        self.open(1, port)
        self.input(1, b"x")
        self.assertEqual(self.closed(1), "The connection broke: Connection reset by peer.")

    def test_many_at_once(self) -> None:
        """Sixty-four connections each get their own bytes."""
        port = self.serve(ECHO)
        for number in range(64):
            self.open(number, port)
            self.input(number, b"%d" % number * 1000)
        for number in range(64):
            self.got(number, b"%d" % number * 1000)

    def test_listing(self) -> None:
        """Ports that something listens on are listed, those with privileges are not."""
        port = self.serve(ECHO)
        ports = self.ask(frames.SERVICE_LIST)
        self.assertIn(port, ports)
        self.assertEqual(ports, sorted(ports))
        self.assertTrue(all(1024 <= one <= 65535 for one in ports))


class ApplicationTests(ServiceTestCase):
    """What is started for a connection."""

    def get(self, number: int, port: int, path: str = "/", **start: Any) -> bytes:
        """Fetch a page, and wait for the end."""
        self.open(number, port, script=APP, **start)
        self.input(number, f"GET {path} HTTP/1.0\r\n\r\n".encode())
        self.init.until(lambda: number in self.init.finished)
        self.init.about(frames.SERVICE_CLOSE, number)
        self.assertIsNone(self.closed(number))
        return bytes(self.init.received[number])

    def applications(self) -> list[int]:
        """Give the processes that serve files."""
        found = []
        for pid in self.init.processes():
            with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123 - a process may end meanwhile
                if b"http.server" in file.read():
                    found.append(pid)
        return found

    def test_started_once_and_kept(self) -> None:
        """The first connection starts it, in the working directory and with the options; others find it."""
        port = free_port()
        self.init.run("import os; os.mkdir('d'); open('d/a.txt', 'w').write('hello')")
        for number in range(3):
            page = self.get(number, port, "/a.txt", arguments=["--directory", "d"])
            self.assertTrue(page.endswith(b"\r\n\r\nhello"), page)
        self.assertEqual(len(self.applications()), 1)

    def test_runs_come_and_go(self) -> None:
        """A run that is killed, or a dead interpreter, leaves applications alone; a restart ends them."""
        port = free_port()
        self.get(1, port)
        (before,) = self.applications()
        run = self.init.begin("import time; time.sleep(60)")
        self.init.send(frames.KILL_RUN, {"run": run, "message": ""})
        self.init.wait(frames.FINISHED)
        self.init.run("import os; os._exit(3)")
        self.assertEqual(self.applications(), [before])
        self.init.send(frames.RESTART, {"request": 1})
        self.init.wait(frames.REPLY)
        self.assertEqual(self.applications(), [])
        self.get(2, port)
        self.assertEqual(len(self.applications()), 1)

    def test_stopped(self) -> None:
        """It ends when it is asked to, also when it does not listen to SIGTERM, and the next connection starts another."""
        port = free_port()
        self.get(1, port)
        (before,) = self.applications()
        self.assertIsNone(self.ask(frames.SERVICE_STOP, name="app"))
        self.assertEqual(self.applications(), [])
        self.assertIsNone(self.ask(frames.SERVICE_STOP, name="app"))
        self.open(2, port, script=f"trap '' TERM; {APP}")
        self.input(2, b"GET / HTTP/1.0\r\n\r\n")
        self.init.until(lambda: 2 in self.init.finished)
        self.assertNotIn(before, self.applications())
        began = time.monotonic()
        self.ask(frames.SERVICE_STOP, name="app")
        self.assertGreater(time.monotonic() - began, 1.5)
        self.assertEqual(self.applications(), [])

    def test_it_cannot_start(self) -> None:
        """Who waits for an application that ends instead learns how, in its own last words."""
        self.open(1, free_port(), script="echo no such module >&2; exit 3")
        self.open(2, free_port(), script="echo no such module >&2; exit 3")
        for number in (1, 2):
            self.assertEqual(self.closed(number), "The app app ended with exit code 3: no such module")

    def test_it_does_not_listen(self) -> None:
        """Patience ends, and what was started goes on."""
        port = free_port()
        self.open(1, port, script="exec sleep 60", patience=0.5)
        self.assertEqual(self.closed(1), f"The app app does not listen on port {port}.")
        self.ask(frames.SERVICE_STOP, name="app")

    def test_a_talkative_application(self) -> None:
        """What it prints is read and dropped, so that it never waits, and is in no run."""
        port = free_port()
        self.open(1, port, script="head -c 3000000 /dev/zero | tr '\\0' x; echo done >&2; exit 1")
        self.assertEqual(self.closed(1), "The app app ended with exit code 1: " + "x" * 196 + "done")
        self.assertEqual(self.init.console, [])

    def test_ends_with_the_kernel(self) -> None:
        """Nothing of an application is left when the agent closes the channel."""
        self.get(1, free_port())
        (pid,) = self.applications()
        self.init.socket.shutdown(socket.SHUT_RDWR)
        deadline = time.monotonic() + 20
        while os.path.exists(f"/proc/{pid}/cwd") and time.monotonic() < deadline:  # noqa: PTH110
            time.sleep(0.01)
        self.assertFalse(os.path.exists(f"/proc/{pid}/cwd"))  # noqa: PTH110
