"""One kernel that prints much to one client: how fast it comes through, whether all of it does, and what the server holds."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time

from bench.client import Effort, WebSocket
from bench.figures import Row, least_row, most_row, not_measured
from bench.parts import Settings, run_alone
from bench.processes import MIB, Growth
from bench.session import Failed, Session
from bench.wire import run_text

LINE = 100  # bytes, its end included
SIZE = 200_000_000
#: How much the server's memory may grow by and still be called flat, in MiB: far less than what is printed.
FLAT = 16.0


def printing_code(count: int) -> str:
    """Give a program that prints so many lines of :data:`LINE` bytes."""
    return f"for _ in range({count}): print({'x' * (LINE - 1)!r})"


def printing(session: Session, settings: Settings) -> list[Row]:
    """Count the lines that arrive; the first and the last message are looked into, the others only counted."""
    count = settings.scaled(SIZE / LINE)
    code = printing_code(count)
    plain = count * LINE / into_a_pipe(code)
    watched = {"server": session.server.pid, "agent": session.agent or 0}
    watched = {name: pid for name, pid in watched.items() if pid}
    with session.kernels(1) as [kernel]:
        handshake = session.signer.handshake(f"/stream/kernel/{kernel}/execute")
        with contextlib.closing(WebSocket(session.endpoint, handshake)) as socket:
            with Growth.watched(watched.values()) as growth, Effort.measured() as effort:
                lines, received, last = read_lines(socket, code)
            alive = session.alive([kernel])
    size = count * LINE
    note = (
        f"{lines:,} of {count:,} lines arrived, in {received / 1e6:,.0f} MB of messages; the last one says {last}; the kernel "
        f"{'runs' if alive else 'does not run'} code afterwards; the same program printing into a pipe that is read by a "
        f"program which does nothing else: {plain / 1e6:,.0f} MB/s"
    )
    what = f"one kernel printing {size / 1e6:,.0f} MB of lines to a WebSocket client"
    rows = [least_row(what, lines * LINE / 1e6 / effort.seconds, 100, " MB/s", client=effort.share, notes=[note])]
    if lines != count or last != "finished" or not alive:
        rows.append(Row("lines that were printed and did not arrive", "0", f"{count - lines:,}", met=False))
    flat = "server memory while it does"
    if not watched:
        return [*rows, not_measured(flat, "flat", "which process the server is, is not known: --pid")]
    grown = {name: growth.most[pid] / MIB for name, pid in watched.items()}
    told = ", ".join(f"{name} +{size:.1f} MiB" for name, size in grown.items())
    return [*rows, most_row(flat, max(grown.values()), FLAT, " MiB", notes=[told])]


def read_lines(socket: WebSocket, code: str) -> tuple[int, int, str]:
    """Give how many lines came, in how many bytes, and the status of the last message.

    :raises Failed: what came is not what was printed.
    """
    socket.send(run_text(code))
    lines = received = 0
    message, first = b"{}", None
    for message in socket.messages():
        if first is None:
            first = json.loads(message)
            if any(kind != "stdout" or set(text) - {"x", "\n"} for kind, text in first["console"]):
                raise Failed(f"the first message is {message[:300]!r}")
        lines += message.count(b"\\n")
        received += len(message)
    return lines, received, str(json.loads(message).get("status"))


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
