"""Runs code by commands: a file compiled and run in query mode, a build and an exec step in batch mode.

Standard library only. Knows scripts, processes and the pipe of standard input; what a run is to the agent, its owner
knows. Every step is ``bash -c`` with the script as one argument, in the working directory, in a session of its own.
"""

import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from sorna.agent.runners.frames import STDERR, STDOUT
from sorna.agent.runners.language import Language
from sorna.agent.runners.output_files import remove_tree
from sorna.agent.runners.poller import NOTHING, WRITE, Poller
from sorna.agent.runners.processes import Processes
from sorna.agent.runners.pump import Pump
from sorna.agent.runners.stdin_notify import StdinWatch, install_and_hand_over, take_over

BASH = shutil.which("bash") or "/bin/bash"
# Most of a build's output that is kept for the case that the build fails.
MOST_BUILD_LOG = 1024 * 1024
# What the exec step answers when the build before it failed.
BUILD_FAILED = 127
# coreutils' own way of making C programs print prompts and lines at once, as on a terminal.
_LINE_BUFFERING = ("/usr/libexec/coreutils/libstdbuf.so", "/usr/lib/coreutils/libstdbuf.so")


def base_environ(work: str, repl: bool) -> dict[str, str]:
    """Give what every program of the kernel finds in its environment, before what the client configured."""
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    own = sys.executable.rpartition("/")[0]
    if repl and own and own not in path.split(":"):
        path = f"{own}:{path}"
    libraries = os.environ.get("LD_LIBRARY_PATH")  # without it such an interpreter starts no script of its own kind
    return {
        **({"LD_LIBRARY_PATH": libraries} if repl and libraries else {}),
        "TERM": "xterm",
        "LANG": "C.UTF-8",
        "SHELL": "/bin/bash",
        "USER": "work",
        "LOGNAME": "work",
        "HOME": work,
        "PATH": path,
    }


def command_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """Add what makes programs show their output when they print it, and not when a buffer is full."""
    result = {"PYTHONUNBUFFERED": "1", **environ}
    library = next((path for path in _LINE_BUFFERING if Path(path).exists()), None)
    if library and "LD_PRELOAD" not in environ:
        result.update(LD_PRELOAD=library, _STDBUF_I="L", _STDBUF_O="L")
    return result


def exit_code_of(status: int) -> tuple[int, int | None]:
    """Turn a status of ``waitpid`` into an exit code as shells give it, and the signal if it was one."""
    code = os.waitstatus_to_exitcode(status)
    return (128 - code, -code) if code < 0 else (code, None)


class CommandOwner(Protocol):
    """What a running command tells; implemented by ``init.py``."""

    def command_waits(self) -> None:
        """Take note that a program waits for a line of input."""
        ...

    def build_finished(self, exit_code: int) -> None:
        """Take note that the build is over and the exec step begins."""
        ...

    def command_done(self, exit_code: int, signal_number: int | None) -> None:
        """Take note that the last step is over; its output is still to be drained."""
        ...


class _Step(NamedTuple):
    script: str
    is_build: bool
    quiet: bool
    environ: Mapping[str, str]


class Commands:
    """The steps of one run.

    :param environ: of the programs.
    :param can_type: False where there will be no input: programs find its end at once.
    """

    def __init__(
        self,
        poller: Poller,
        pump: Pump,
        processes: Processes,
        owner: CommandOwner,
        environ: Mapping[str, str],
        *,
        can_type: bool = True,
    ) -> None:
        self._poller = poller
        self._pump = pump
        self._can_type = can_type
        self._processes = processes
        self._owner = owner
        self._environ = command_environ(environ)
        self._steps: list[_Step] = []
        self._scratch: str | None = None
        self._group: int | None = None
        self._stdin: _StdinPipe | None = None
        self._capture: _Capture | None = None
        self._handover: socket.socket | None = None

    def query(self, language: Language, code: str) -> None:
        """Write the code to a file and run the language's script for it. :raises OSError: that was not possible."""
        self._scratch = tempfile.mkdtemp(prefix="sorna-")
        source = Path(self._scratch, language.source)
        source.write_bytes(code.encode("utf-8", "replace"))
        environ = {"SORNA_SOURCE": str(source), "SORNA_SOURCE_DIR": self._scratch}
        self._steps = [_Step(language.query, is_build=False, quiet=False, environ=environ)]
        self._next(0, None)

    def batch(
        self, language: Language, clean: str | None, build: str | None, execute: str | None, *, build_log: bool
    ) -> None:
        """Run the steps that are asked for; ``*`` means the language's own. :raises OSError: as for :meth:`query`.

        What cleans is silent unless it fails, and stops nothing that comes after it.
        """
        if clean:
            self._steps.append(_Step(clean, is_build=False, quiet=True, environ={}))
        if build:
            script = language.build if build == "*" else build
            self._steps.append(_Step(script, is_build=True, quiet=not build_log, environ={}))
        if execute:
            script = language.exec if execute == "*" else execute
            self._steps.append(_Step(script, is_build=False, quiet=False, environ={}))
        self._next(0, None)

    def interrupt(self) -> None:
        """Send SIGINT to the step that runs."""
        if self._group is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._group, signal.SIGINT)

    def type(self, text: str) -> bool:
        """Give a line to the program; True when another program waits for one, too."""
        return self._stdin is not None and self._stdin.type(text)

    def abandon(self) -> None:
        """Forget what runs; the caller kills it."""
        if self._group is not None:
            self._processes.forget(self._group)
        self._steps.clear()
        self._end_step()
        self._clear_scratch()

    def _next(self, exit_code: int, signal_number: int | None) -> None:
        if not self._steps:
            self._clear_scratch()
            self._owner.command_done(exit_code, signal_number)
            return
        self._start(self._steps.pop(0))

    def _start(self, step: _Step) -> None:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        ours, theirs = socket.socketpair()
        capture = _Capture(self._poller) if step.quiet else None
        stdout, stderr = capture.write_ends if capture else self._pump.write_ends
        self._pump.restore()
        environ = {**self._environ, **step.environ}

        def become() -> None:
            install_and_hand_over(theirs)
            theirs.close()
            os.execve(BASH, ["bash", "-c", step.script], environ)  # noqa: S606 - the user's own script, inside the kernel

        try:
            pid = self._processes.start(
                become,
                (reading, stdout, stderr),
                [theirs.fileno()],
                environ,
                lambda status: self._exited(step, status),
            )
        except BaseException:
            os.close(writing)
            ours.close()
            if capture:
                capture.finish()
            raise
        finally:
            os.close(reading)
            theirs.close()
            if capture:
                capture.close_write_ends()
        self._group = pid
        self._capture = capture
        self._stdin = _StdinPipe(self._poller, writing, self._owner.command_waits)
        if not self._can_type:
            self._stdin.close()
        self._expect_listener(ours, self._stdin)

    def _expect_listener(self, receiver: socket.socket, stdin: "_StdinPipe") -> None:
        """Take the listener of the filter when the child sends it; until then the child's reads just wait."""
        self._handover = receiver

        def ready(_events: int) -> None:
            self._end_handover()
            listener = take_over(receiver)
            receiver.close()
            if listener is not None:
                stdin.watch(listener)

        self._poller.add(receiver.fileno(), ready)

    def _end_handover(self) -> None:
        if self._handover is not None:
            self._poller.remove(self._handover.fileno())
            self._handover = None

    def _exited(self, step: _Step, status: int) -> None:
        exit_code, signal_number = exit_code_of(status)
        capture = self._end_step()
        if capture is not None and exit_code != 0:
            self._pump.when_drained(lambda: None, capture.frames())
        if signal_number not in {None, signal.SIGINT, signal.SIGPIPE}:
            message = f"{signal.strsignal(signal_number or 0)}\n"
            self._pump.when_drained(lambda: None, [(STDERR, message.encode())])
        if step.is_build and self._steps:
            self._owner.build_finished(exit_code)
            if exit_code != 0:
                self._steps.clear()
                exit_code, signal_number = BUILD_FAILED, None
        try:
            self._next(exit_code, signal_number)
        except OSError as error:
            self.fail(error)

    def fail(self, error: OSError) -> None:
        """End the run because a step could not be started."""
        self._steps.clear()
        message = f"The command cannot be started: {error.strerror}.\n"
        self._pump.when_drained(lambda: None, [(STDERR, message.encode())])
        self._next(126, None)

    def _end_step(self) -> "_Capture | None":
        self._group = None
        if self._handover is not None:
            receiver = self._handover
            self._end_handover()
            # The child sent it before it ran anything, so it is here if there is one.
            receiver.setblocking(False)
            listener = take_over(receiver)
            receiver.close()
            if listener is not None and self._stdin is not None:
                self._stdin.watch(listener)
        if self._stdin is not None:
            self._stdin.close()
            self._stdin = None
        capture, self._capture = self._capture, None
        if capture is not None:
            capture.finish()
        return capture

    def _clear_scratch(self) -> None:
        if self._scratch is not None:
            remove_tree(self._scratch)
            self._scratch = None


class _StdinPipe:
    """Init's end of a step's standard input."""

    def __init__(self, poller: Poller, fd: int, on_wait: Callable[[], None]) -> None:
        self._poller = poller
        self._fd = fd
        self._on_wait = on_wait
        self._watch: StdinWatch | None = None
        self._waiting = bytearray()
        self._closed = False
        os.set_blocking(fd, False)
        poller.add(fd, self._writable, NOTHING)

    def watch(self, listener: int) -> None:
        """Use the listener of the step's filter.

        A short program may be gone, and this end of its pipe closed, before the listener is taken over. What it left
        behind still runs behind the filter and must be let through.
        """
        self._watch = StdinWatch(self._poller, listener, None if self._closed else self._fd, self._on_wait)

    def type(self, text: str) -> bool:
        self._waiting += text.encode("utf-8", "replace") + b"\n"
        self._write()
        return self._watch is not None and self._watch.line_arrived()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            if self._watch is not None:
                self._watch.run_over()
            self._poller.remove(self._fd)
            os.close(self._fd)

    def _writable(self, events: int) -> None:
        if events & WRITE:
            self._write()
        else:
            # Nobody has the other end any more; the step's exit will tell the rest.
            self._waiting.clear()
            self.close()

    def _write(self) -> None:
        if self._closed:
            return
        try:
            while self._waiting:
                del self._waiting[: os.write(self._fd, self._waiting)]
        except BlockingIOError:
            self._poller.change(self._fd, WRITE)
            return
        except OSError:
            self._waiting.clear()
        self._poller.change(self._fd, NOTHING)


class _Capture:
    """The output of a build that is only shown when the build fails."""

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        self._kept: list[tuple[int, bytes]] = []
        self._size = 0
        self._dropped = False
        self._finished = False
        self._open: dict[int, int] = {}
        ends = []
        for kind in (STDOUT, STDERR):
            reading, writing = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(reading, False)
            ends.append(writing)
            self._open[reading] = kind
            poller.add(reading, partial(self._readable, reading))
        self.write_ends = (ends[0], ends[1])

    def close_write_ends(self) -> None:
        """Leave them to the children."""
        for fd in self.write_ends:
            os.close(fd)

    def finish(self) -> None:
        """Take what is there; what comes later from what the build left behind is dropped."""
        for fd in list(self._open):
            while self._read(fd):
                pass
        self._finished = True

    def frames(self) -> list[tuple[int, bytes]]:
        """Give what was kept, in order."""
        if self._dropped:
            return [(STDERR, b"[the beginning of the build's output is left out]\n"), *self._kept]
        return self._kept

    def _readable(self, fd: int, _events: int) -> None:
        self._read(fd)

    def _read(self, fd: int) -> bool:
        try:
            chunk = os.read(fd, 64 * 1024)
        except BlockingIOError:
            return False
        if not chunk:
            self._poller.remove(fd)
            del self._open[fd]
            os.close(fd)
            return False
        if not self._finished:
            self._keep(self._open[fd], chunk)
        return True

    def _keep(self, kind: int, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._kept and self._kept[-1][0] == kind and len(self._kept[-1][1]) < 64 * 1024:
            self._kept[-1] = (kind, self._kept[-1][1] + chunk)
        else:
            self._kept.append((kind, chunk))
        while self._size > MOST_BUILD_LOG and len(self._kept) > 1:
            self._size -= len(self._kept.pop(0)[1])
            self._dropped = True
