"""One kernel that prints much to one client: how fast it comes through, whether all of it does, and what the server holds."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator

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
class Printed:
    """What came of a program, and what the client took for it."""

    lines: int
    received: int
    last: str
    effort: Effort


def printing(session: Session, settings: Settings) -> list[Row]:
    """Count the lines that arrive; the first and the last message are looked into, the others only counted."""
    size = settings.scaled(SIZE)
    watched = {"server": session.server.pid, "agent": session.agent or 0}
    watched = {name: pid for name, pid in watched.items() if pid}
    with Growth.watched(watched.values()) as growth:
        rows = [row for program in (SHORT_LINES, *OTHERS) for row in printed_rows(session, program, size)]
    flat = "server memory while it does"
    if not watched:
        return [*rows, not_measured(flat, "flat", "which process the server is, is not known: --pid")]
    grown = {name: growth.most[pid] / MIB for name, pid in watched.items()}
    told = ", ".join(f"{name} +{size:.1f} MiB" for name, size in grown.items())
    return [*rows, most_row(flat, max(grown.values()), FLAT, " MiB", notes=[told])]


def printed_rows(session: Session, program: Program, size: int) -> Iterator[Row]:
    """Run a program in a kernel of its own, and say how fast its lines came, and which did not."""
    plain = into_a_pipe(program.code(size))
    before = session.used()
    with session.kernels(1) as [kernel]:
        handshake = session.signer.handshake(f"/stream/kernel/{kernel}/execute")
        with contextlib.closing(WebSocket(session.endpoint, handshake)) as socket:
            printed = read_lines(socket, program.code(size))
        used = session.used()
        alive = session.alive([kernel])
    count = program.lines(size)
    taken = (
        ", ".join(f"{name} {1e9 * (used[name] - before[name]) / size:.1f}" for name in used)
        if session.server.pid
        else "unknown"
    )
    note = (
        f"{printed.lines:,} of {count:,} lines arrived, in {printed.received / 1e6:,.0f} MB of messages; the last one says "
        f"{printed.last}; the kernel {'runs' if alive else 'does not run'} code afterwards; the same program printing into a "
        f"pipe that is read by a program which does nothing else: {size / 1e6 / plain:,.0f} MB/s; milliseconds of processor per MB: {taken}"
    )
    what = f"one kernel printing {size / 1e6:,.0f} MB to a WebSocket client: {program.what}"
    rate = printed.lines * program.line / 1e6 / printed.effort.seconds
    yield least_row(what, rate, 100, " MB/s", client=printed.effort.share, notes=[note])
    if printed.lines != count or printed.last != "finished" or not alive:
        yield Row(f"{program.what}: printed and did not arrive", "0", f"{count - printed.lines:,}", met=False)


def read_lines(socket: WebSocket, code: str) -> Printed:
    """Take what a program prints.

    :raises Failed: what came is not what was printed.
    """
    lines = received = 0
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
            received += len(message)
    return Printed(lines, received, str(json.loads(message).get("status")), effort)


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
