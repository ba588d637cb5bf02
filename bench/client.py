"""The load client: plain sockets, requests prepared before the clock starts, and one loop that drives many connections.

It knows sockets and time, not what is measured. It is to cost so little that the server's figures are not its own; how much
processor it took is measured beside them (:class:`Effort`).
"""

from __future__ import annotations

import contextlib
import resource
import select
import socket
import struct
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from urllib.parse import urlsplit

from attrs import define, field

from bench.wire import CLOSE, PING, PONG, TEXT, Answer, Answers, Frames, frame

PATIENCE = 60.0  # seconds without a byte after which a server counts as stuck
CHUNK = 1 << 18
#: Requests that one connection of :func:`pace` sends before it has an answer.
DEPTH = 16

#: Sends requests by yielding them, is given each answer, and ends by returning.
Script = Generator[bytes, Answer, None]


class Stuck(Exception):
    """The server did not answer in time, or hung up."""


def connect(endpoint: str) -> socket.socket:
    """Open a connection whose reads fail after :data:`PATIENCE`, and which the client never waits on by polling."""
    parts = urlsplit(endpoint)
    opened = socket.create_connection((parts.hostname, parts.port or 80), timeout=PATIENCE)
    opened.setblocking(True)
    # The kernel's own time limit costs no further system call per read, as Python's would.
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(PATIENCE), 0))
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return opened


def receive(connection: socket.socket) -> bytes:
    """Read what there is.

    :raises Stuck: nothing came, or the connection is closed.
    """
    try:
        chunk = connection.recv(CHUNK)
    except BlockingIOError:
        raise Stuck(f"the server sent nothing for {PATIENCE:.0f} s") from None
    except ConnectionError as error:
        raise Stuck(f"the connection is lost: {error}") from error
    if not chunk:
        raise Stuck("the server closed the connection")
    return chunk


class Connection:
    """One kept-alive connection that sends a request and waits for its answer."""

    def __init__(self, endpoint: str) -> None:
        self._socket = connect(endpoint)
        self._answers = Answers()

    def ask(self, request: bytes) -> Answer:
        """Send a request and read its answer."""
        self._socket.sendall(request)
        while not (answers := self._answers.feed(receive(self._socket))):
            pass
        return answers[0]

    def close(self) -> None:
        """Close it."""
        self._socket.close()


class WebSocket:
    """One WebSocket, open when the constructor returns.

    :raises Stuck: the server refused the handshake.
    """

    def __init__(self, endpoint: str, handshake: bytes) -> None:
        self._socket = connect(endpoint)
        self._socket.sendall(handshake)
        head = b""
        while b"\r\n\r\n" not in head:
            head += receive(self._socket)
        head, _, rest = head.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101"):
            self._socket.close()
            raise Stuck(f"the handshake was answered with {head[:200]!r} {rest[:200]!r}")
        self._frames = Frames(rest)

    def fileno(self) -> int:
        """Give the descriptor, for ``select``."""
        return self._socket.fileno()

    def send(self, text: bytes) -> None:
        """Send a text message."""
        self._socket.sendall(frame(text, TEXT))

    def waiting(self) -> list[tuple[int, bytes]]:
        """Read once, answer pings, and give the other frames that are complete."""
        return self._without_pings(self._frames.feed(receive(self._socket)))

    def messages(self) -> Iterator[bytes]:
        """Give each frame's payload until the server closes."""
        frames = self._without_pings(self._frames.feed())
        while True:
            for opcode, payload in frames:
                if opcode == CLOSE:
                    return
                yield payload
            frames = self.waiting()

    def _without_pings(self, frames: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
        for opcode, payload in frames:
            if opcode == PING:
                self._socket.sendall(frame(payload, PONG))
        return [one for one in frames if one[0] != PING]

    def close(self) -> None:
        """Close it as a client that goes away."""
        with contextlib.suppress(OSError):
            self._socket.sendall(frame(b"\x03\xe8", CLOSE))
        self._socket.close()


@define
class Effort:
    """How much of one processor this process took while something was measured; 1.0 is one processor wholly.

    :ivar seconds: how long it was measured.
    """

    seconds: float = 0.0
    share: float = 0.0

    @classmethod
    @contextlib.contextmanager
    def measured(cls) -> Iterator[Effort]:
        """Measure what happens within."""
        effort = cls()
        began, used = time.perf_counter(), _processor()
        yield effort
        effort.seconds = time.perf_counter() - began
        effort.share = (_processor() - used) / max(effort.seconds, 1e-9)


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def drive(endpoint: str, scripts: Sequence[Script]) -> None:
    """Run scripts side by side, each on a connection of its own; all are connected before the first sends.

    :raises Stuck: no script got an answer for :data:`PATIENCE`, or a connection was lost.
    """
    with contextlib.ExitStack() as stack:
        poller = stack.enter_context(contextlib.closing(select.epoll()))
        running: dict[int, tuple[socket.socket, Script, Answers]] = {}
        for script in scripts:
            opened = stack.enter_context(contextlib.closing(connect(endpoint)))
            running[opened.fileno()] = (opened, script, Answers())
            poller.register(opened, select.EPOLLIN)
        for descriptor, (opened, script, _answers) in list(running.items()):
            if not _go_on(opened, script, None):
                del running[descriptor]
        while running:
            ready = poller.poll(PATIENCE)
            if not ready:
                raise Stuck(f"{len(running)} of {len(scripts)} requests had no answer for {PATIENCE:.0f} s")
            for descriptor, _event in ready:
                opened, script, answers = running[descriptor]
                for answer in answers.feed(receive(opened)):
                    if not _go_on(opened, script, answer):
                        poller.unregister(descriptor)
                        del running[descriptor]


def _go_on(opened: socket.socket, script: Script, answer: Answer | None) -> bool:
    try:
        opened.sendall(next(script) if answer is None else script.send(answer))
    except StopIteration:
        return False
    return True


@define
class Paced:
    """What became of a load that was offered at a fixed rate.

    :ivar due: how many requests the clock asked for.
    :ivar times: from when each was due until its answer, in seconds.
    :ivar wrong: answers that were not what was to come.
    :ivar lost: sent and never answered.
    """

    due: int = 0
    sent: int = 0
    times: list[float] = field(factory=list)
    wrong: int = 0
    lost: int = 0


@define
class _Lane:
    """One connection of :func:`pace`."""

    opened: socket.socket
    number: int
    answers: Answers = field(factory=Answers)
    backlog: list[float] = field(factory=list)
    outstanding: list[tuple[float, int]] = field(factory=list)
    sent: int = 0
    dead: bool = False


def pace(
    endpoint: str,
    requests: Sequence[Sequence[bytes]],
    rate: float,
    seconds: float,
    right: Callable[[int, int, Answer], bool],
    *,
    depth: int = DEPTH,
    drain: float = 30.0,
) -> Paced:
    """Send to every lane at a rate, whether answers come or not, and count from when each request was due.

    A lane is a connection; what is due while ``depth`` requests of it wait for answers is sent later, or never when the time
    is over: a client can hold no more than that in its sockets.

    :param requests: of each lane, used in turn.
    :param rate: requests per second and lane.
    :param right: told lane, which of its requests, and the answer.
    :param drain: seconds that the last answers have after the end.
    """
    result = Paced()
    with contextlib.ExitStack() as stack:
        poller = stack.enter_context(contextlib.closing(select.epoll()))
        lanes = [
            _Lane(stack.enter_context(contextlib.closing(connect(endpoint))), number) for number in range(len(requests))
        ]
        by_descriptor = {lane.opened.fileno(): lane for lane in lanes}
        for lane in lanes:
            poller.register(lane.opened, select.EPOLLIN)
        gap = 1.0 / (rate * len(lanes))
        began = time.perf_counter()
        end = began + seconds
        while True:
            now = time.perf_counter()
            while now < end and began + result.due * gap <= now:
                lane = lanes[result.due % len(lanes)]
                lane.backlog.append(began + result.due * gap)
                result.due += 1
                _send_due(lane, requests, depth, result)
            if now >= end + drain or (now >= end and not any(lane.outstanding for lane in lanes)):
                break
            wait = began + result.due * gap - now if now < end else end + drain - now
            for descriptor, _event in poller.poll(max(0.0, min(wait, 0.1))):
                lane = by_descriptor[descriptor]
                if not _take(lane, right, result):
                    poller.unregister(descriptor)
                elif time.perf_counter() < end:
                    _send_due(lane, requests, depth, result)
        result.lost += sum(len(lane.outstanding) for lane in lanes if not lane.dead)
    return result


def _send_due(lane: _Lane, requests: Sequence[Sequence[bytes]], depth: int, result: Paced) -> None:
    mine = requests[lane.number]
    while lane.backlog and len(lane.outstanding) < depth and not lane.dead:
        which = lane.sent % len(mine)
        lane.outstanding.append((lane.backlog.pop(0), which))
        lane.sent += 1
        result.sent += 1
        with contextlib.suppress(ConnectionError):  # the next read tells
            lane.opened.sendall(mine[which])


def _take(lane: _Lane, right: Callable[[int, int, Answer], bool], result: Paced) -> bool:
    try:
        answers = lane.answers.feed(receive(lane.opened))
    except Stuck:
        result.lost += len(lane.outstanding)
        lane.dead = True
        return False
    now = time.perf_counter()
    for answer in answers:
        due, which = lane.outstanding.pop(0)
        result.times.append(now - due)
        if not right(lane.number, which, answer):
            result.wrong += 1
    return True
