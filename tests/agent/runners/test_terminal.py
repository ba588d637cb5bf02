"""The kernel's terminal: a real shell on a real pseudo-terminal, driven frame by frame."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import time
from pathlib import Path
from typing import Any

from sorna.agent.runners import frames
from sorna.agent.runners.poller import Link, Poller
from sorna.agent.runners.processes import Processes
from sorna.agent.runners.terminal import Terminal
from sorna.testing.unit import UnitTestCase
from tests.agent.runners.driver import KernelTestCase


class ShellTests(KernelTestCase):
    """What the shell is."""

    def test_what_it_finds(self) -> None:
        """It is interactive, leads a session with this terminal, and is in the working directory."""
        kernel = self.kernel()
        kernel.open_terminal(30, 100)
        kernel.keys("tty; stty size; echo $TERM:$-; ps -o pid=,sid=,tpgid= -p $$; pwd; echo $((6*7))!\n")
        kernel.see("42!")
        screen = kernel.screen.decode()
        self.assertIn("/dev/pts/", screen)
        self.assertIn("\n30 100\r\n", screen)
        self.assertRegex(screen, r"\nxterm-256color:\w*i\w*\r\n")
        self.assertIn(f"\n{kernel.work}\r\n", screen)
        pid, session, _ = next(line.split() for line in screen.splitlines() if line.split()[:1] == line.split()[1:2])
        self.assertEqual(pid, session)

    def test_resize(self) -> None:
        """The program in the foreground is told of a new size."""
        kernel = self.kernel()
        program = (
            "import os, signal\n"
            "say = lambda *words: os.write(1, (' '.join(map(str, words)) + '\\n').encode())\n"
            "signal.signal(signal.SIGWINCH, lambda *_: say('new:', *os.get_terminal_size()))\n"
            "say('ready')\n"
            "while True: signal.pause()\n"
        )
        Path(kernel.work, "watch.py").write_text(program, encoding="utf-8")
        kernel.open_terminal()
        kernel.keys("python3 watch.py\n")
        kernel.see("ready")
        kernel.send(frames.TERMINAL_RESIZE, {"rows": 50, "columns": 132})
        kernel.see("new: 132 50")
        kernel.send(frames.TERMINAL_OPEN, {"rows": 7, "columns": 9})
        kernel.see("new: 9 7")

    def test_control_characters(self) -> None:
        """Ctrl-C is a character like every other, and interrupts what runs in the foreground; a run is not touched."""
        kernel = self.kernel()
        kernel.open_terminal()
        identity = kernel.begin("import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('interrupted')")
        kernel.keys("echo sta''rted; sleep 60\n")
        kernel.see("started")
        time.sleep(0.1)
        kernel.keys("\x03echo af''ter $?\n")
        kernel.see("after 130")
        self.assertEqual(kernel.stream("stdout"), "")
        kernel.interrupt()
        self.assertEqual(kernel.wait(frames.FINISHED)["run"], identity)
        self.assertEqual(kernel.stream("stdout"), "interrupted\n")

    def test_a_program_draws_the_whole_screen(self) -> None:
        """A curses program draws at the screen's size, takes keys, and leaves the shell as it was."""
        kernel = self.kernel()
        program = (
            "import curses\n"
            "def main(screen):\n"
            "    rows, columns = screen.getmaxyx()\n"
            "    screen.addstr(rows - 2, columns - 12, f'{rows}x{columns}')\n"
            "    while screen.getch() != ord('q'): pass\n"
            "curses.wrapper(main)\n"
        )
        Path(kernel.work, "draw.py").write_text(program, encoding="utf-8")
        kernel.open_terminal(20, 60)
        kernel.keys("python3 draw.py; echo st''atus $?\n")
        kernel.see("20x60")
        kernel.keys("q")
        kernel.see("status 0")
        self.assertIn(b"\x1b[?1049h", kernel.screen)

    def test_characters_of_several_bytes(self) -> None:
        """The terminal knows UTF-8: what is erased is one character, not a byte."""
        kernel = self.kernel()
        kernel.open_terminal()
        kernel.keys("cat | od -An -c | head -1\n")
        kernel.see("\n")
        time.sleep(0.3)
        kernel.keys("a\u00e9\u6f22\x7f\x7fb\n\x04")
        kernel.see("a   b  \\n")


class EndTests(KernelTestCase):
    """How shells end."""

    def test_exit(self) -> None:
        """Everything the shell said comes before its end is told; the next open starts another one."""
        kernel = self.kernel()
        kernel.open_terminal()
        kernel.keys("seq 20000; exit\n")
        kernel.wait(frames.TERMINAL_CLOSED)
        self.assertIn(b"\r\n20000\r\n", kernel.screen)
        kernel.keys("lost\n")
        kernel.open_terminal()
        kernel.keys("echo an''other\n")
        kernel.see("another")

    def test_end_waits_for_credit(self) -> None:
        """A shell that ends while nobody reads has its last words kept."""
        kernel = self.kernel()
        kernel.lavish = False
        kernel.open_terminal(window=1)
        kernel.keys("seq 500; exit\n")
        time.sleep(0.5)
        while kernel.receive(0.1):
            pass
        self.assertLessEqual(len(kernel.screen), 1)
        self.assertEqual(kernel.seen, [])
        kernel.terminal_credit(100_000)
        kernel.wait(frames.TERMINAL_CLOSED)
        self.assertIn(b"\r\n500\r\n", kernel.screen)

    def test_a_background_program_does_not_hold_the_end(self) -> None:
        """The end comes with the shell's, although a program it started still has the terminal open."""
        kernel = self.kernel()
        kernel.open_terminal()
        kernel.keys("(trap '' HUP; sleep 60) & exit\n")
        kernel.wait(frames.TERMINAL_CLOSED)

    def test_stop(self) -> None:
        """A shell that is stopped is gone with what it runs, even if both try to stay."""
        kernel = self.kernel()
        kernel.open_terminal()
        before = kernel.processes()
        kernel.keys("trap '' HUP; sleep 60 & echo rea''dy; sleep 60\n")
        kernel.see("ready")
        kernel.send(frames.TERMINAL_STOP, {})
        kernel.wait(frames.TERMINAL_CLOSED)
        kernel.open_terminal()
        kernel.keys("echo af''resh\n")
        kernel.see("afresh")
        deadline = time.monotonic() + 5
        while kernel.processes() & before - {kernel.ready["pid"]} and time.monotonic() < deadline:
            time.sleep(0.05)
        repl_and_shell = kernel.processes()
        self.assertEqual(len(repl_and_shell & before), 1, repl_and_shell)

    def test_a_shell_that_lets_go(self) -> None:
        """A shell that closes its terminal and lives on is ended, without a turning loop."""
        kernel = self.kernel()
        kernel.open_terminal()
        kernel.keys("exec sleep 60 <&- >&- 2>&-\n")
        kernel.wait(frames.TERMINAL_CLOSED)

    def test_restart_ends_it(self) -> None:
        """A restart of the kernel ends the shell like everything else."""
        kernel = self.kernel()
        kernel.open_terminal()
        kernel.keys("trap '' HUP; echo rea''dy; sleep 60\n")
        kernel.see("ready")
        kernel.send(frames.RESTART, {"request": 1})
        kernel.wait(frames.TERMINAL_CLOSED)
        kernel.wait(frames.REPLY)
        self.assertEqual(len(kernel.processes()), 1)

    def test_killed_runs_leave_it_alone(self) -> None:
        """A run that is killed, in the session or beside it, and a session that dies leave the shell and its programs."""
        for first_process in (False, True):
            kernel = self.kernel(first_process=first_process)
            kernel.open_terminal()
            kernel.keys("sleep 60 & x=7; echo rea''dy\n")
            kernel.see("ready")
            for code, options in (
                ("import time, os\nos.system('sleep 60 &')\ntime.sleep(60)", {}),
                ("", {"mode": "batch", "exec": "(setsid sleep 60 &); echo go; sleep 60"}),
            ):
                identity = kernel.begin(code, **options)
                time.sleep(0.3)
                kernel.send(frames.KILL_RUN, {"run": identity, "message": ""})
                kernel.wait(frames.FINISHED)
            kernel.run("import os; os._exit(3)")
            kernel.keys("echo $((x*6)) jo''bs: $(jobs -r | wc -l)\n")
            kernel.see("42 jobs: 1")
            self.assertEqual([message for kind, message in kernel.seen if kind == frames.TERMINAL_CLOSED], [])


class FlowTests(KernelTestCase):
    """Much output, much input, and nobody who reads."""

    def test_no_credit_stops_the_terminal_and_nothing_else(self) -> None:
        """A program that prints without end into a terminal nobody reads waits; runs go on, and init rests."""
        kernel = self.kernel()
        kernel.lavish = False
        kernel.open_terminal(window=50_000)
        kernel.keys("yes\n")
        while len(kernel.screen) < 50_000:
            self.assertTrue(kernel.receive(5))
        self.assertFalse(kernel.receive(0.3))
        self.assertEqual(len(kernel.screen), 50_000)
        began = _cpu_seconds(kernel.pid)
        kernel.run("print('x' * 300_000)")
        self.assertEqual(len(kernel.stream("stdout")), 300_001)
        time.sleep(0.5)
        self.assertLess(_cpu_seconds(kernel.pid) - began, 0.25)
        kernel.keys("\x03")
        kernel.lavish = True
        kernel.terminal_credit(50_000)
        kernel.keys("echo do''ne\n")
        kernel.see("done")

    def test_run_output_is_not_the_terminals(self) -> None:
        """What the terminal prints is in no run, and a run's lack of credit is not the terminal's."""
        kernel = self.kernel(window=1000)
        kernel.automatic = False
        kernel.open_terminal()
        kernel.begin("print('x' * 100_000)")
        kernel.keys("seq 30000 | tail -1; echo en''d\n")
        kernel.see("30000\r\n")
        kernel.see("end")
        self.assertNotIn("30000", kernel.stream("stdout"))

    def test_much_is_typed(self) -> None:
        """Half a mebibyte that is pasted at once arrives whole when the program reads it later."""
        kernel = self.kernel()
        kernel.open_terminal()
        lines = "".join(f"{number:062d}\n" for number in range(8000))
        kernel.keys("stty -echo; echo rea''dy; sleep 0.5; head -8000 | sha256sum\n")
        kernel.see("ready")
        kernel.keys(lines)
        kernel.see(hashlib.sha256(lines.encode()).hexdigest())

    def test_typed_without_end(self) -> None:
        """What nobody reads is dropped beyond a bound; init does not grow."""
        kernel = self.kernel()
        kernel.open_terminal()
        kernel.keys("stty -echo raw; echo rea''dy; sleep 60\n")
        kernel.see("ready")
        before = _resident(kernel.pid)
        for _ in range(40):
            kernel.keys("x" * 500_000)
        kernel.run("1")
        self.assertLess(_resident(kernel.pid) - before, 8_000_000)


class _NoProcesses(Processes):
    """A host that makes no processes any more."""

    def __init__(self) -> None:
        """Leave this process's own signals alone."""

    def start(self, *_arguments: Any) -> int:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))


class RefusalTests(UnitTestCase):
    """Where no shell can be made."""

    def test_no_more_processes(self) -> None:
        """The agent is told why, and no descriptor stays open."""
        poller = Poller()
        ours, theirs = socket.socketpair()
        self.addCleanup(theirs.close)
        link = Link(poller, ours, lambda _kind, _payload: None, lambda: None)
        self.addCleanup(link.close)
        terminal = Terminal(poller, _NoProcesses())
        terminal.attach(link)
        before = list(Path("/proc/self/fd").iterdir())
        for _ in range(2):
            terminal.open(24, 80, {})
            terminal.type(b"lost")
            (frame,) = frames.FrameReader().feed(theirs.recv(1000))
            reason = b'{"error": "The shell cannot be started: Resource temporarily unavailable.", "stopped": false}'
            self.assertEqual(frame, (frames.TERMINAL_CLOSED, reason))
        self.assertEqual(list(Path("/proc/self/fd").iterdir()), before)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
