"""One kernel that prints much to one client: how fast it comes through, whether all of it does, and what the server holds."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping

from attrs import frozen

from bench.client import Effort, WebSocket
from bench.figures import Row, least_row, most_row, not_measured
from bench.parts import Settings, run_alone
from bench.processes import MIB, Growth
from bench.session import Failed, Session
from bench.wire import run_text

SIZE = 200_000_000
#: How much the server's memory may grow by and still be called flat, in MiB: far less than what is printed.
FLAT = 16.0


@frozen
class Program:
    """A program that prints lines of nothing but ``x``.

    :ivar line: bytes of each line, its end included.
    :ivar at_once: how many of them it gives to each call.
    """

    what: str
    line: int
    at_once: int = 1

    def lines(self, size: int) -> int:
        """Give how many lines make so many bytes."""
        return max(1, size // (self.line * self.at_once)) * self.at_once

    def code(self, size: int) -> str:
        """Give the program for so many bytes."""
        text, times = "x" * (self.line - 1), self.lines(size) // self.at_once
        if self.at_once == 1:
            return f"for _ in range({times}): print({text!r})"
        return f"import sys\npart = ({text!r} + '\\n') * {self.at_once}\nfor _ in range({times}): _ = sys.stdout.write(part)"


SHORT_LINES = Program("lines of 100 bytes", 100)
OTHERS = (Program("lines of 1,000 bytes", 1000), Program("lines of 100 bytes, 10,000 with each write", 100, 10_000))


@frozen
class Received:
    """What a client took of a run, and how hard that was."""

    lines: int
    size: int
    last: str
    effort: Effort


@frozen
class Printed:
    """What came of a program.

    :ivar alive: whether its kernel runs code afterwards.
    :ivar used: seconds of processor, by who took them.
    :ivar grown: by how much the resident memory of processes grew at the most, in bytes.
    :ivar plain: seconds that it takes into a pipe.
    """

    program: Program
    bytes: int
    received: Received
    alive: bool
    used: Mapping[str, float]
    grown: Mapping[int, int]
    plain: float


def printing(session: Session, settings: Settings) -> list[Row]:
    """Count the lines that arrive; the first and the last message are looked into, the others only counted."""
    watched = {"server": session.server.pid, "agent": session.agent or 0}
    watched = {name: pid for name, pid in watched.items() if pid}
    size = settings.scaled(SIZE)
    all_printed = [run(session, program, size, watched.values()) for program in (SHORT_LINES, *OTHERS)]
    rows = [row for printed in all_printed for row in rows_of(printed)]
    flat = "server memory while it does"
    if not watched:
        return [*rows, not_measured(flat, "flat", "which process the server is, is not known: --pid")]
    grown = {name: max(printed.grown[pid] for printed in all_printed) / MIB for name, pid in watched.items()}
    told = ", ".join(f"{name} +{size:.1f} MiB" for name, size in grown.items())
    return [*rows, most_row(flat, max(grown.values()), FLAT, " MiB", notes=[told])]


def run(session: Session, program: Program, size: int, watched: Iterable[int]) -> Printed:
    """Run a program in a kernel of its own."""
    code = program.code(size)
    plain = into_a_pipe(code)
    with session.kernels(1) as [kernel]:
        before = session.used()
        handshake = session.signer.handshake(f"/stream/kernel/{kernel}/execute")
        with contextlib.closing(WebSocket(session.endpoint, handshake)) as socket, Growth.watched(watched) as growth:
            received = read_lines(socket, code)
        used = {name: seconds - before[name] for name, seconds in session.used().items()}
        alive = session.alive([kernel]) == 1
    return Printed(program, program.lines(size) * program.line, received, alive, used, growth.most, plain)


def rows_of(printed: Printed) -> Iterator[Row]:
    """Say how fast the lines came, and how many did not."""
    program, received = printed.program, printed.received
    count, size = printed.bytes // program.line, printed.bytes / 1e6
    taken = ", ".join(f"{name} {1000 * seconds / size:.1f}" for name, seconds in printed.used.items())
    note = (
        f"{received.lines:,} of {count:,} lines arrived, in {received.size / 1e6:,.0f} MB of messages; the last one says "
        f"{received.last}; the kernel {'runs' if printed.alive else 'does not run'} code afterwards; the same program printing "
        f"into a pipe that is read by a program which does nothing else: {size / printed.plain:,.0f} MB/s; milliseconds of "
        f"processor per MB: {taken}"
    )
    what = f"one kernel printing {size:,.0f} MB to a WebSocket client: {program.what}"
    rate = received.lines * program.line / 1e6 / received.effort.seconds
    yield least_row(what, rate, 100, " MB/s", client=received.effort.share, notes=[note])
    if received.lines != count or received.last != "finished" or not printed.alive:
        yield Row(f"{program.what}: printed and did not arrive", "0", f"{count - received.lines:,}", met=False)


def read_lines(socket: WebSocket, code: str) -> Received:
    """Take what a program prints.

    :raises Failed: what came is not what was printed.
    """
    lines = size = 0
    message, first = b"{}", None
    with Effort.measured() as effort:
        socket.send(run_text(code))
        for message in socket.messages():
            if first is None:
                first = json.loads(message)
                if any(kind != "stdout" or set(text) - {"x", "\n"} for kind, text in first["console"]):
                    raise Failed(f"the first message is {message[:300]!r}")
            # Nothing but the ends of lines has a backslash, and one byte is found faster than two.
            lines += message.count(b"\\")
            size += len(message)
    return Received(lines, size, str(json.loads(message).get("status")), effort)


def into_a_pipe(code: str) -> float:
    """Give the seconds that the same program takes without a server, for comparison."""
    began = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        while program.stdout.read1(1 << 18):  # type: ignore[attr-defined]  # it is buffered
            pass
    return time.perf_counter() - began


PARTS = {"print": printing}

if __name__ == "__main__":
    run_alone(PARTS)
